"""The training of Learning to Invert's inverter, by PyTorch, in two forms.

Eager computes one gradient after another, as the paper's code does; func computes those
of a step by `torch.func.grad` under `torch.func.vmap`. Hashing and the inverter's step
are the same.
"""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch.func import grad, vmap

from .lenet import flat, loss
from .machine import DEVICE, clock, kernels
from .serving import serve_object

CLASSES = 10


class Training:
    """Steps from one start."""

    def __init__(self, hashed, rate, path):
        """Loads what `timing.peers.inverters.InverterPeer.load` wrote."""
        with np.load(path) as file:
            arrays = {n: torch.from_numpy(file[n]).to(DEVICE) for n in file.files}
        self.params = self._under(arrays, "weights/")
        self.layers = self._under(arrays, "layers/")
        self.images, self.truths = arrays["images"], arrays["truths"]
        self.targets = F.one_hot(arrays["labels"], CLASSES).float()
        self.order, self.signs = arrays["order"], arrays["signs"]
        self.hashed, self.rate = hashed, rate

    @staticmethod
    def _under(arrays, prefix):
        return {
            name.removeprefix(prefix): value
            for name, value in arrays.items()
            if name.startswith(prefix)
        }

    def train(self, form, convolution, threads):
        """Makes all steps; gives times and the error of each."""
        torch.set_num_threads(threads)
        gradients = self._eager if form == "eager" else self._func
        layers = {n: x.clone().requires_grad_() for n, x in self.layers.items()}
        optimiser = torch.optim.Adam(layers.values(), lr=self.rate)
        errors = []
        with kernels(convolution):
            start = clock()
            for step in range(len(self.images)):
                entries = gradients(convolution, step)
                found = self._invert(layers, self._hash(entries))
                error = F.mse_loss(found, self.truths[step])
                optimiser.zero_grad()
                error.backward()
                optimiser.step()
                errors.append(error.detach())
            errors = torch.stack(errors).tolist()
        return {"start": start, "stop": clock(), "errors": errors}

    def _eager(self, convolution, step):
        params = {n: x.requires_grad_() for n, x in self.params.items()}
        found = []
        for image, target in zip(self.images[step], self.targets[step], strict=True):
            value = loss(convolution, params, image[None], target)
            grads = torch.autograd.grad(value, list(params.values()))
            found.append(torch.cat([g.flatten() for g in grads]))
        return torch.stack(found)

    def _func(self, convolution, step):
        params = {n: x.detach() for n, x in self.params.items()}
        one = grad(partial(loss, convolution))

        def gradient(image, target):
            return flat(one(params, image[None], target))

        return vmap(gradient)(self.images[step], self.targets[step])

    def _hash(self, entries):
        signed = entries[:, self.order] * self.signs
        missing = -signed.shape[1] % self.hashed
        dealt = F.pad(signed, (0, missing)).unflatten(1, (-1, self.hashed))
        return dealt.sum(1)

    @staticmethod
    def _invert(layers, values):
        for number in (0, 1):
            kernel, bias = layers[f"{number}/kernel"], layers[f"{number}/bias"]
            values = torch.relu(values @ kernel + bias)
        return torch.sigmoid(values @ layers["2/kernel"] + layers["2/bias"])


if __name__ == "__main__":
    serve_object("train", load=Training)
