"""Gradient inversion by PyTorch: cosine distance of uploads, and its image gradient.

Two ways, as users write it: eager (`torch.autograd.grad` with a graph, one victim after
another) and func (`torch.func.grad` twice under `torch.func.vmap`). Norms are in
evaluation mode. An upload is one gradient, or the change after several local steps of
plain gradient descent, one batch each.
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, grad_and_value, vmap

from .federated_torch import NETWORKS, named, transplanted
from .machine import DEVICE, clock, kernels, placed
from .serving import serve_object


class Layer(nn.Module):
    """Convolution, norm, ReLU."""

    def __init__(self, before, after):
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, padding=1)
        self.norm = nn.BatchNorm2d(after)

    def forward(self, x):
        return F.relu(self.norm(self.conv(x)))


class ConvNet64(nn.Module):
    """The ConvNet of Inverting Gradients, for images [B, 3, 32, 32]."""

    flattened = (256, 3, 3)

    def __init__(self, num_classes):
        super().__init__()
        widths = (3, 64, 128, 128, 256, 256, 256, 256, 256)
        self.layers = nn.ModuleList(
            Layer(*pair) for pair in zip(widths, widths[1:], strict=False)
        )
        self.fc = nn.Linear(2304, num_classes)

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in (5, 7):
                x = F.max_pool2d(x, 3)
        return self.fc(x.flatten(1))


NETWORKS = NETWORKS | {"convnet64": ConvNet64}


def cosine(simulated, observed):
    """1 - cos over all tensors."""
    dot = sum((s * o).sum() for s, o in zip(simulated, observed, strict=True))
    sizes = [sum((x * x).sum() for x in tree) for tree in (simulated, observed)]
    return 1 - dot / torch.sqrt(sizes[0] * sizes[1])


def variation(images):
    """Mean absolute difference of neighbours, both directions added."""
    return (images[..., 1:, :] - images[..., :-1, :]).abs().mean() + (
        images[..., 1:] - images[..., :-1]
    ).abs().mean()


class Inversion:
    """Victims with weights of their own, and what the server has seen of them."""

    def __init__(self, network, rate, weight, path):
        kind = NETWORKS[network]
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        # [N, T, B, 3, H, W]; one step is one gradient.
        images, self.starts = (
            placed(np.moveaxis(arrays.pop(name), -1, 3).copy())
            for name in ("images", "starts")
        )
        self.labels = placed(arrays.pop("labels"), torch.int64)  # [N, T, B]
        self.rate, self.weight = rate, weight
        self.nets = []
        for i in range(len(images)):
            net = kind(10).eval().to(DEVICE)
            state = {
                named(n): transplanted(kind, value[i], n) for n, value in arrays.items()
            }
            net.load_state_dict(state, strict=False)
            self.nets.append(net)
        self.observed = [
            [x.detach() for x in self._upload_eager(net, x, y)]
            for net, x, y in zip(self.nets, images, self.labels, strict=True)
        ]

    def _upload_eager(self, net, images, labels):
        params = dict(net.named_parameters())
        if len(images) == 1:
            loss = F.cross_entropy(net(images[0]), labels[0])
            return torch.autograd.grad(loss, [*params.values()], create_graph=True)
        now = params
        for x, y in zip(images, labels, strict=True):
            loss = F.cross_entropy(functional_call(net, now, (x,)), y)
            grads = torch.autograd.grad(loss, [*now.values()], create_graph=True)
            pairs = zip(now.items(), grads, strict=True)
            now = {name: p - self.rate * g for (name, p), g in pairs}
        return [now[name] - params[name] for name in params]

    def _upload_func(self, params, buffers, images, labels):
        net, now = self.nets[0], params

        def loss(now, x, y):
            return F.cross_entropy(functional_call(net, (now, buffers), (x,)), y)

        if len(images) == 1:
            return [*grad(loss)(now, images[0], labels[0]).values()]
        for x, y in zip(images, labels, strict=True):
            grads = grad(loss)(now, x, y)
            now = {name: p - self.rate * grads[name] for name, p in now.items()}
        return [now[name] - params[name] for name in params]

    def _objective(self, simulated, observed, images):
        return cosine(simulated, observed) + self.weight * variation(images)

    def evaluations(self, setting, first, last, repeats):
        """Evaluates victims first..last-1; see `timed`."""
        make = self._eager if setting["form"] == "eager" else self._func
        return timed(make, setting, first, last, repeats)

    def _eager(self, first, last, chunk):
        del chunk

        def evaluate(i):
            images = self.starts[i].clone().requires_grad_()
            simulated = self._upload_eager(self.nets[i], images, self.labels[i])
            value = self._objective(simulated, self.observed[i], images)
            torch.autograd.grad(value, images)
            return value.detach()

        return [functools.partial(evaluate, i) for i in range(first, last)]

    def _func(self, first, last, chunk):
        def objective(images, params, buffers, labels, observed):
            simulated = self._upload_func(params, buffers, images, labels)
            return self._objective(simulated, observed, images)

        evaluate, run = vmap(grad_and_value(objective)), []
        for start in range(first, last, chunk):
            part = slice(start, start + chunk)
            nets = self.nets[part]
            params = stacked([dict(net.named_parameters()) for net in nets])
            buffers = stacked([dict(net.named_buffers()) for net in nets])
            observed = [torch.stack(x) for x in zip(*self.observed[part], strict=True)]
            arguments = (self.starts[part], params, buffers, self.labels[part])
            run.append(lambda a=arguments, o=observed: evaluate(*a, o)[1])
        return run


def stacked(trees):
    """Stacks dicts of tensors along a new axis of victims."""
    return {n: torch.stack([tree[n].detach() for tree in trees]) for n in trees[0]}


def timed(make, setting, first, last, repeats):
    """Runs what `make` gives for victims first..last-1, `repeats` times.

    Returns the clock before and after, the number of evaluations, and the values of
    the first ones.
    """
    torch.set_num_threads(setting["threads"])
    with kernels(setting["kernels"]):
        run = make(first, last, setting["chunk"])
        start = clock()
        found = [[evaluate() for evaluate in run] for _ in range(repeats)]
        stop = clock()
    values = torch.cat([value.reshape(-1) for value in found[0]]).tolist()
    count = repeats * (last - first)
    return {"start": start, "stop": stop, "evaluations": count, "values": values}


if __name__ == "__main__":
    from .grnn import Generation

    serve_object("evaluations", load=Inversion, load_generators=Generation)
