"""Orders of a sentence judged by PyTorch: the gradient that each gives, and its cosine.

Two ways, as users write it: eager (`torch.autograd.grad`, one order after another, as
LAMP's code does) and func (`torch.func.grad` under `torch.func.vmap`, some orders at a
time). The network is kljax's encoder, without padding.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch.func import grad, vmap

from .machine import DEVICE, clock
from .serving import serve_object

EPSILON = 1e-5
TABLE = "tokens/embedding"


def logits(params, x):
    """Maps embeddings [T, d] to logits [Kc]; weights by kljax's names."""
    x = x + params["positions"]
    block = 0
    while f"blocks/{block}/expand/kernel" in params:
        own = {
            name.removeprefix(f"blocks/{block}/"): value
            for name, value in params.items()
            if name.startswith(f"blocks/{block}/")
        }
        x = x + attention(own, norm(own, "norm1", x))
        inner = norm(own, "norm2", x) @ own["expand/kernel"] + own["expand/bias"]
        inner = F.gelu(inner, approximate="tanh")
        x = x + inner @ own["contract/kernel"] + own["contract/bias"]
        block += 1
    return norm(params, "norm", x).mean(0) @ params["fc/kernel"] + params["fc/bias"]


def norm(params, name, x):
    """Normalises each place."""
    scale, bias = params[f"{name}/scale"], params[f"{name}/bias"]
    return F.layer_norm(x, x.shape[-1:], scale, bias, EPSILON)


def attention(params, x):
    """Lets each place attend to all."""
    query, key, value = (
        torch.einsum("td,dhk->htk", x, params[f"attention/{n}/kernel"])
        + params[f"attention/{n}/bias"][:, None]
        for n in ("query", "key", "value")
    )
    seen = F.softmax(query @ key.mT / query.shape[-1] ** 0.5, -1) @ value
    out = torch.einsum("htk,hkd->td", seen, params["attention/out/kernel"])
    return out + params["attention/out/bias"]


def loss(params, x, label):
    """Gives the cross-entropy of one sentence."""
    return F.cross_entropy(logits(params, x)[None], label[None])


def distance(simulated, observed):
    """Averages 1 - cos over tensors."""
    parts = [
        1 - (s * o).sum() / (s.norm() * o.norm())
        for s, o in zip(simulated, observed, strict=True)
    ]
    return sum(parts) / len(parts)


class Sentences:
    """Victims with weights of their own, one sentence each, and orders of it."""

    def __init__(self, path):
        with np.load(path) as file:
            arrays = {n: torch.from_numpy(file[n]).to(DEVICE) for n in file.files}
        self.sentences, self.guesses = arrays.pop("sentences"), arrays.pop("guesses")
        self.labels, self.orders = arrays.pop("labels"), arrays.pop("orders")
        # Keys' biases have no gradient, and weigh nothing in the distance.
        self.names = [n for n in arrays if not n.endswith("attention/key/bias")]
        self.params = arrays
        self.observed = [
            list(self.gradient(self._of(n), self.sentences[n], self.labels[n]).values())
            for n in range(len(self.labels))
        ]

    def _of(self, victim):
        return {name: value[victim] for name, value in self.params.items()}

    def gradient(self, params, x, label):
        """Computes the gradient of one sentence, by name."""
        fixed = {n: v for n, v in params.items() if n not in self.names}

        def of(free):
            return loss(free | fixed, x, label)

        return grad(of)({n: params[n] for n in self.names})

    def candidates(self, form, chunk, threads, first, last):
        """Judges all orders of some victims, and times it."""
        torch.set_num_threads(threads)
        values, start = [], clock()
        for victim in range(first, last):
            judged = self._eager if form == "eager" else self._func
            values += judged(victim, chunk).tolist()
        return {"start": start, "stop": clock(), "values": values}

    def _eager(self, victim, chunk):
        params = self._of(victim)
        leaves = {n: params[n].requires_grad_() for n in self.names}
        found = []
        for order in self.orders[victim]:
            value = loss(
                params | leaves, self.guesses[victim][order], self.labels[victim]
            )
            grads = torch.autograd.grad(value, list(leaves.values()))
            found.append(distance(grads, self.observed[victim]))
        return torch.stack(found).detach()

    def _func(self, victim, chunk):
        params, observed = self._of(victim), self.observed[victim]

        def judged(order):
            grads = self.gradient(
                params, self.guesses[victim][order], self.labels[victim]
            )
            return distance(grads.values(), observed)

        parts = self.orders[victim].split(chunk)
        return torch.cat([vmap(judged)(part) for part in parts])


if __name__ == "__main__":
    serve_object("candidates", load=Sentences)
