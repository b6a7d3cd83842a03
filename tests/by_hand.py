"""Layers written out in NumPy, to hold a network against; and counts without memory."""

import math

import jax
import numpy as np
from flax import nnx


def convolve(x, kernel, stride=1):
    """Convolves images [B, H, W, C], padded by half the window, in float64."""
    height, width = kernel.shape[:2]
    x = np.pad(x, ((0, 0), (height // 2,) * 2, (width // 2,) * 2, (0, 0)))
    rows, columns = ((n - height) // stride + 1 for n in x.shape[1:3])
    out = np.zeros((len(x), rows, columns, kernel.shape[-1]))
    for i, j in np.ndindex(rows, columns):
        window = x[:, i * stride :, j * stride :][:, :height, :width]
        out[:, i, j] = np.tensordot(window, kernel, 3)
    return out


def pool(x, window, stride, padding=0):
    """Takes the largest value of each window."""
    pads = (padding, padding)
    x = np.pad(x, ((0, 0), pads, pads, (0, 0)), constant_values=-np.inf)
    rows, columns = ((n - window) // stride + 1 for n in x.shape[1:3])
    out = np.zeros((len(x), rows, columns, x.shape[-1]))
    for i, j in np.ndindex(rows, columns):
        out[:, i, j] = x[:, i * stride :, j * stride :][:, :window, :window].max((1, 2))
    return out


def normalise(x, kind, groups=1, stats=None):
    """Norms [B, H, W, C] by its batch, by stats (mean, var), or in groups."""
    shape = x.shape
    if kind == "group":
        x = x.reshape(*shape[:-1], groups, -1)
        mean, var = (f(x, axis=(1, 2, 4), keepdims=True) for f in (np.mean, np.var))
    else:
        mean, var = stats or (np.mean(x, (0, 1, 2)), np.var(x, (0, 1, 2)))
    return ((x - mean) / np.sqrt(var + 1e-5)).reshape(shape)


ACTIVATIONS = {
    "relu": (jax.nn.relu, lambda x: np.maximum(x, 0)),
    "sigmoid": (jax.nn.sigmoid, lambda x: 1 / (1 + np.exp(-x))),
}


def parameter_shapes(build):
    """Lists the shapes of a network's parameters by path; allocates nothing."""
    network = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    flat = nnx.to_flat_state(nnx.state(network, nnx.Param))
    return {"/".join(map(str, parts)): leaf.get_value().shape for parts, leaf in flat}


def parameter_count(build):
    """Counts a network's parameters."""
    return sum(map(math.prod, parameter_shapes(build).values()))
