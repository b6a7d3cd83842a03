"""A generator's images judged by PyTorch, and its features descended, in two ways.

Eager is `torch.autograd.grad` and `torch.optim.Adam`, one candidate or victim after
another, as GGL's and GIFD's codes do; func is `torch.func` under `vmap`, some
candidates or all victims at a time. The network is LeNet, the generator kljax's dense
decoder. Shapes are torch's: images [B, C, S, S].
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch.func import grad, grad_and_value, vmap

from .lenet import logits
from .machine import DEVICE, clock, kernels
from .serving import serve_object

BETAS, EPSILON = (0.9, 0.999), 1e-8
RISE, FALL = 0.05, 0.75  # shares of the steps


def dense(weights, layer, x):
    """Applies one layer of the decoder."""
    return x @ weights[f"{layer}/kernel"] + weights[f"{layer}/bias"]


def features_of(weights, latents, target):
    """Gives what goes into the decoder's second layer, [m]."""
    told = torch.cat([latents, target])
    return F.gelu(dense(weights, "layers/0", told), approximate="tanh")


def images_of(weights, features, side):
    """Makes the image [1, 3, S, S] of the features that go into the second layer."""
    layer = 1
    while f"layers/{layer}/kernel" in weights:
        features = F.gelu(
            dense(weights, f"layers/{layer}", features), approximate="tanh"
        )
        layer += 1
    pixels = torch.sigmoid(dense(weights, "fc", features))
    small = int(math.isqrt(pixels.shape[-1]))
    image = pixels.reshape(1, 1, small, small)
    image = F.interpolate(image, (side, side), mode="bilinear", align_corners=False)
    return image.expand(1, 3, side, side)


def loss(conv, params, image, target):
    """Gives the cross-entropy of one image."""
    return F.cross_entropy(logits(conv, params, image), target[None])


def squared(simulated, observed):
    """GGL's distance: squares, averaged over tensors."""
    parts = [((s - o) ** 2).sum() for s, o in zip(simulated, observed, strict=True)]
    return sum(parts) / len(parts)


def cosine(simulated, observed):
    """GIFD's distance, over the whole gradient."""
    s, o = (torch.cat([x.flatten() for x in part]) for part in (simulated, observed))
    return 1 - (s * o).sum() / (s.norm() * o.norm())


def prior(image, variation, size):
    """Adds GIFD's total variation and norm."""
    rows = (image[..., 1:, :] - image[..., :-1, :]).abs().mean()
    columns = (image[..., 1:] - image[..., :-1]).abs().mean()
    return variation * (rows + columns) + size * image.norm() / image.shape[-1] ** 2


def nearest(apart, radius):
    """Projects rows [N, m] onto the l1 ball, by sorting (Duchi et al. 2008)."""
    sizes = apart.abs()
    ordered = sizes.sort(-1, descending=True).values
    sums = ordered.cumsum(-1) - radius
    ranks = torch.arange(1, apart.shape[-1] + 1, device=apart.device)
    last = (ordered * ranks > sums).sum(-1, keepdim=True)
    threshold = (sums.gather(-1, last - 1) / last).clamp(min=0)
    return apart.sign() * (sizes - threshold).clamp(min=0)


def rate_at(step, steps, rate):
    """GIFD's rate."""
    share = step / steps
    falling = 0.5 - 0.5 * math.cos(math.pi * min(1, (1 - share) / FALL))
    return rate * falling * min(1, share / RISE)


class Latents:
    """Victims with weights of their own, one image each, and one generator."""

    def __init__(self, path):
        with np.load(path) as file:
            arrays = {n: torch.from_numpy(file[n]).to(DEVICE) for n in file.files}

        def part(prefix):
            found = [name for name in arrays if name.startswith(prefix)]
            return {name.removeprefix(prefix): arrays.pop(name) for name in found}

        self.params, self.weights = part("params/"), part("generator/")
        self.targets, self.images = arrays["targets"], arrays["images"]
        self.latents, self.candidates = arrays["latents"], arrays["candidates"]
        self.side = self.images.shape[-1]
        self.observed = [self._gradient(n) for n in range(len(self.targets))]

    def _leaves(self, victim):
        return {
            name: leaf[victim].clone().requires_grad_()
            for name, leaf in self.params.items()
        }

    def _gradient(self, victim):
        leaves = self._leaves(victim)
        value = loss("onednn", leaves, self.images[victim], self.targets[victim])
        return torch.autograd.grad(value, list(leaves.values()))

    def judge(self, form, conv, chunk, threads):
        """Judges all candidates of all victims, and times it."""
        torch.set_num_threads(threads)
        judged = self._judge_eager if form == "eager" else self._judge_func
        with kernels(conv):
            start = clock()
            values = torch.stack(
                [judged(conv, chunk, victim) for victim in range(len(self.targets))]
            )
            stop = clock()
        return {"seconds": stop - start, "values": values.flatten().tolist()}

    def _judge_eager(self, conv, chunk, victim):
        del chunk
        leaves, target, values = self._leaves(victim), self.targets[victim], []
        for latents in self.candidates[victim]:
            with torch.no_grad():
                features = features_of(self.weights, latents, target)
                image = images_of(self.weights, features, self.side)
            value = loss(conv, leaves, image, target)
            grads = torch.autograd.grad(value, list(leaves.values()))
            values.append(squared(grads, self.observed[victim]))
        return torch.stack(values)

    def _judge_func(self, conv, chunk, victim):
        params = {name: leaf[victim] for name, leaf in self.params.items()}
        target, observed = self.targets[victim], self.observed[victim]

        def judged(latents):
            features = features_of(self.weights, latents, target)
            image = images_of(self.weights, features, self.side)
            grads = grad(lambda p: loss(conv, p, image, target))(params)
            return squared(grads.values(), observed)

        parts = self.candidates[victim].split(chunk)
        with torch.no_grad():
            return torch.cat([vmap(judged)(part) for part in parts])

    def descend(self, form, conv, threads, steps, radius, rate, variation, size):
        """Makes steps on the features of all victims, and times it.

        Gives the distance, without priors, of each victim's best.
        """
        torch.set_num_threads(threads)
        run = self._descend_eager if form == "eager" else self._descend_func
        with kernels(conv):
            start = clock()
            values = run(conv, steps, radius, rate, variation, size)
            stop = clock()
        return {"seconds": stop - start, "values": values}

    def _first(self):
        pairs = zip(self.latents, self.targets, strict=True)
        with torch.no_grad():
            return torch.stack([features_of(self.weights, *pair) for pair in pairs])

    def _descend_eager(self, conv, steps, radius, rate, variation, size):
        values = []
        for victim, first in enumerate(self._first()):
            leaves, target = self._leaves(victim), self.targets[victim]
            features = first.clone().requires_grad_()
            optimiser = torch.optim.Adam([features], lr=rate)
            bound, best = radius * first.numel(), (math.inf, math.inf)
            for step in range(steps):
                optimiser.param_groups[0]["lr"] = rate_at(step, steps, rate)
                image = images_of(self.weights, features, self.side)
                value = loss(conv, leaves, image, target)
                grads = torch.autograd.grad(
                    value, list(leaves.values()), create_graph=True
                )
                matching = cosine(grads, self.observed[victim])
                total = matching + prior(image, variation, size)
                (features.grad,) = torch.autograd.grad(total, features)
                best = min(best, (total.item(), matching.item()))
                optimiser.step()
                with torch.no_grad():
                    apart = nearest((features - first)[None], bound)[0]
                    features.copy_(first + apart)
            values.append(best[1])
        return values

    def _descend_func(self, conv, steps, radius, rate, variation, size):
        def total(features, params, target, observed):
            image = images_of(self.weights, features, self.side)
            grads = grad(lambda p: loss(conv, p, image, target))(params)
            matching = cosine(grads.values(), observed)
            return matching + prior(image, variation, size), matching

        step_of = vmap(grad_and_value(total, has_aux=True))
        observed = [torch.stack(parts) for parts in zip(*self.observed, strict=True)]
        first = self._first()
        bound = radius * first.shape[-1]
        features, mean, square = first, torch.zeros_like(first), torch.zeros_like(first)
        lowest = torch.full((len(first),), math.inf, device=DEVICE)
        best = lowest.clone()
        with torch.no_grad():
            for step in range(steps):
                slopes, (value, matching) = step_of(
                    features, self.params, self.targets, observed
                )
                best = torch.where(value < lowest, matching, best)
                lowest = torch.minimum(lowest, value)
                mean = BETAS[0] * mean + (1 - BETAS[0]) * slopes
                square = BETAS[1] * square + (1 - BETAS[1]) * slopes**2
                corrected = mean / (1 - BETAS[0] ** (step + 1))
                spread = (square / (1 - BETAS[1] ** (step + 1))).sqrt() + EPSILON
                moved = features - rate_at(step, steps, rate) * corrected / spread
                features = first + nearest(moved - first, bound)
        return best.tolist()


if __name__ == "__main__":
    serve_object("judge", "descend", load=Latents)
