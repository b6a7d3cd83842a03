"""Timed rounds of the PyTorch peers, inside a worker process.

A round covers the victims first..last of those loaded and returns the clock before and
after, so that rounds of several processes can be put together. Chunks of victims run
one after another; compiled code and warm caches live as long as the process.
"""

import functools

import numpy as np
import torch

from . import lbfgs, lenet
from .machine import clock, kernels, placed
from .serving import serve_object


class Victims:
    """The four arguments of an evaluation at the start.

    Each has a leading axis of M victims: parameters, images [M, 1, 3, 32, 32], one-hot
    labels, and the gradients that are observed.
    """

    def __init__(self, path):
        """Loads what `timing.peers.dlg.TorchPeer.load` wrote; observes gradients."""
        with np.load(path) as file:
            arrays = {n: placed(file[n]) for n in file.files}
        named = [n for n in arrays if n.startswith("weights/")]
        params = {n.removeprefix("weights/"): arrays[n] for n in named}
        onehots = torch.nn.functional.one_hot(arrays["labels"].long(), 10).float()
        images, starts = arrays["images"][:, None], arrays["starts"][:, None]
        chunks = zip(*(_chunks(v, 16) for v in (params, images, onehots)), strict=True)
        observed = torch.cat([lenet.observed_gradients(*chunk) for chunk in chunks])
        self.loaded = params, starts, onehots, observed

    def part(self, first, last):
        """Returns the victims first..last-1."""
        params, *others = self.loaded
        some = {n: p[first:last] for n, p in params.items()}
        return some, *(x[first:last] for x in others)

    def evaluations(self, setting, first, last, repeats):
        """Evaluates some victims `repeats` times."""
        torch.set_num_threads(setting["threads"])
        return evaluations(self.part(first, last), setting, repeats)

    def attack(self, setting, first, last, **fields):
        """Attacks some victims."""
        torch.set_num_threads(setting["threads"])
        return attack(self.part(first, last), setting, **fields)


def evaluations(victims, setting, repeats):
    """Evaluates every victim `repeats` times; returns start, stop and the count."""
    run = _FORMS[setting["form"]](victims, setting)
    with kernels(setting["conv"]):
        start = clock()
        for _ in range(repeats):
            for evaluate, image in run:
                evaluate(image)
        stop = clock()
    return {"start": start, "stop": stop, "evaluations": repeats * len(victims[1])}


def attack(victims, setting, iterations, pairs, path):
    """Attacks every victim; writes best images and losses to `path`, returns clocks."""
    run = _FORMS[setting["form"]](victims, setting)
    minimise = _MINIMISERS[setting["form"]]
    with kernels(setting["conv"]):
        start = clock()
        found = [minimise(evaluate, im, iterations, pairs) for evaluate, im in run]
        stop = clock()
    images = torch.cat([image.reshape(-1, 3, 32, 32) for image, _ in found])
    losses = torch.cat([loss.reshape(-1) for _, loss in found])
    images, losses = images.cpu().numpy(), losses.cpu().numpy()
    np.savez(path, images=images, losses=losses)
    count = iterations * len(victims[1])
    return {"start": start, "stop": stop, "evaluations": count}


def _eager(victims, setting):
    """Returns one (evaluation, start) per victim, for a loop in Python."""
    params, *others = victims
    out = []
    for i, (image, onehot, observed) in enumerate(zip(*others, strict=True)):
        # contiguous storage of its own, as a user's module would have
        own = {n: p[i].clone().requires_grad_() for n, p in params.items()}
        args = functools.partial(lenet.eager_evaluation, setting["conv"], own)
        out.append((functools.partial(_call, args, onehot, observed), image))
    return out


def _func(victims, setting):
    """Returns one (evaluation, start) per chunk of victims."""
    evaluate = _func_evaluation(setting["conv"], setting["compiled"])
    chunks = [_chunks(v, setting["chunk"]) for v in victims]
    return [
        (functools.partial(_call, functools.partial(evaluate, params), *fixed), image)
        for params, image, *fixed in zip(*chunks, strict=True)
    ]


def _call(evaluate, onehots, observed, images):
    """Puts the unknown last."""
    return evaluate(images, onehots, observed)


# one compiled function per form: a second one would compile again
_func_evaluation = functools.cache(lenet.func_evaluation)
_FORMS = {"eager": _eager, "func": _func}


def _minimise_eager(evaluate, start, iterations, pairs):
    """Runs torch's own L-BFGS for one victim, never stopping early."""
    guess = start.clone().requires_grad_()
    never = -torch.inf
    optimiser = torch.optim.LBFGS(
        [guess], 1, iterations, 2 * iterations, never, never, pairs
    )
    best, best_objective = start, start.new_tensor(torch.inf)

    def closure():
        nonlocal best, best_objective
        objective, guess.grad = evaluate(guess)
        if objective < best_objective:
            best, best_objective = guess.detach().clone(), objective
        return objective

    optimiser.step(closure)
    return best, best_objective


def _minimise_func(evaluate, start, iterations, pairs):
    """Runs the batched L-BFGS for one chunk."""

    def flat(guess):
        objective, grads = evaluate(guess.view_as(start))
        return objective, grads.flatten(1)

    return lbfgs.minimise(flat, start.flatten(1), iterations, pairs)


_MINIMISERS = {"eager": _minimise_eager, "func": _minimise_func}


def _chunks(tree, size):
    """Splits tensors, or dicts of them, along the victim axis into contiguous parts."""
    if isinstance(tree, dict):
        parts = [_chunks(v, size) for v in tree.values()]
        return [dict(zip(tree, p, strict=True)) for p in zip(*parts, strict=True)]
    return [part.contiguous() for part in tree.split(size)]


if __name__ == "__main__":
    serve_object("evaluations", "attack", load=Victims)
