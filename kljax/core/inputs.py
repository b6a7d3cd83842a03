"""What a network takes in, and what an attack looks for in its place.

An `InputSpec` travels wherever the shape of an example has to be known: from a dataset
to the network, the attack and the scores. It has the shape and type of one example,
the *search space* in which an attack descends, and what is said of an example. Images
are the first kind (`images_of`); a kind of your own is a spec of your own, together
with its scores (`kljax.metrics.kinds`).

Letters: n examples, B in one upload, H W C of an image.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kljax.core.types import Array, Params, Path, Rng


def _as_they_are(params: Params, inputs: Array) -> Array:
    del params
    return inputs


def _anywhere(latents: Array) -> Array:
    return latents


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Where an attack looks for inputs, and how it comes back.

    Pixels are numbers, and are looked for as they are. What is discrete has to be
    looked for in something continuous that the network can be fed in its place.

    Attributes:
      shape: ``params -> shape`` of one example's latent.
      decode: ``(params, latents [B, *shape]) -> `` what the network is fed.
      read: ``(params, fed) -> inputs [B, ...]`` as a dataset has them: what a finished
        search has found.
      project: ``latents -> latents``, to the nearest that an input can have; the
        attacks that stay inside a box do so after every move.
      unexplained: parameters whose gradient a latent does not explain, because the
        network uses them only for real inputs. They are left out of what is compared.
    """

    shape: Callable[[Params], tuple[int, ...]]
    decode: Callable[[Params, Array], Array] = _as_they_are
    read: Callable[[Params, Array], Array] = _as_they_are
    project: Callable[[Array], Array] = _anywhere
    unexplained: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The inputs of a study: one example of a dataset, without its label.

    Attributes:
      kind: ``image``, ``text``, or ``package.module:name`` of the scores of a kind of
        your own.
      shape: of one example.
      dtype: of its entries.
      check: ``(inputs [n, *shape], rows [n], name) -> inputs`` in `dtype`; refuses
        what is no input, and names the row and the value.
      search: where an attack looks.
      draw: ``(rng, n) -> inputs [n, *shape]`` that anybody can draw, without any data:
        what a network is probed with.
      spell: ``input [*shape] -> str``, where an example can be read as text.
      sizes: what else a network's factory is told where it asks for it, by name:
        ``vocabulary``, the number of tokens.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: Any
    check: Callable[[np.ndarray, np.ndarray, str], np.ndarray]
    search: SearchSpace
    draw: Callable[[Rng, int], Array]
    spell: Callable[[np.ndarray], str] | None = None
    sizes: Mapping[str, int] = field(default_factory=dict, hash=False)

    def zeros(self, count: int) -> Array:
        """Gives inputs [count, *shape] of which nothing matters but shape and type."""
        return jnp.zeros((count, *self.shape), self.dtype)


def zeros_of(inputs: InputSpec | tuple[int, ...], count: int) -> Array:
    """Gives inputs [count, ...] of nothing, of a spec or of images of a shape."""
    spec = inputs if isinstance(inputs, InputSpec) else images_of(inputs)
    return spec.zeros(count)


def images_of(shape: tuple[int, ...]) -> InputSpec:
    """Makes the spec of images: floats in [0, 1], looked for pixel by pixel.

    Args:
      shape: [H, W, C] of one image; any sides, any number of channels.
    """
    shape = tuple(shape)
    return InputSpec(
        kind="image",
        shape=shape,
        dtype=np.float32,
        check=check_images,
        search=SearchSpace(
            shape=lambda params: shape, project=lambda x: jnp.clip(x, 0.0, 1.0)
        ),
        draw=lambda rng, count: jax.random.normal(rng, (count, *shape)),
    )


def check_images(images: np.ndarray, rows: np.ndarray, name: str) -> np.ndarray:
    """Checks images and returns them as kljax works with them.

    Args:
      images: [n, H, W, C], n at least 1: floating point in [0, 1], or 8-bit integers,
        of which 255 is white. No image is constant.
      rows: [n], what error messages call them.
      name: what error messages call the batch.

    Returns:
      images [n, H, W, C] float32 in [0, 1].

    Raises:
      TypeError: for any other type.
      ValueError: for another shape, NaN, a value outside [0, 1], and an image whose
        standard deviation is 0: SSIM and floors mean nothing there.
    """
    if images.dtype == np.uint8:
        images = images.astype(np.float32) / 255
    if not np.issubdtype(images.dtype, np.floating):
        raise TypeError(
            f"images of {name} are {images.dtype}; give floating point in [0, 1], or "
            "8-bit integers (uint8)"
        )
    if images.ndim != 4:
        raise ValueError(
            f"images of {name} have shape {images.shape}; give [n, H, W, C], with "
            "C = 1 for grey images"
        )
    if images[0].size == 0:
        raise ValueError(f"images of {name} have shape {images.shape}: no pixels")
    images = images.astype(np.float32, copy=False)
    low = images.min(axis=(1, 2, 3))
    high = images.max(axis=(1, 2, 3))

    def refuse(culprits: np.ndarray, explain: Callable[[int], str]) -> None:
        refuse_rows(culprits, rows, f"image {{}} of {name}", explain)

    # min and max of an image that holds a NaN are NaN.
    refuse(np.isnan(low), lambda i: "holds NaN")
    refuse(
        (low < 0) | (high > 1),
        lambda i: f"spans [{low[i]:g}, {high[i]:g}]; values must lie in [0, 1]",
    )
    refuse(
        low == high,
        lambda i: f"is constant ({low[i]:g} everywhere, standard deviation 0)",
    )
    return images


def refuse_rows(
    culprits: np.ndarray, rows: np.ndarray, what: str, explain: Callable[[int], str]
) -> None:
    """Raises ValueError at the first of the culprits [n] bool, if there is one.

    Args:
      culprits: which rows are wrong.
      rows: [n], what they are called.
      what: the subject of the sentence, with ``{}`` for the row.
      explain: ``index -> str``, what is wrong with that one.
    """
    if culprits.any():
        first = int(np.argmax(culprits))
        more = int(culprits.sum()) - 1
        also = f" (and {more} more)" if more else ""
        raise ValueError(f"{what.format(rows[first])} {explain(first)}{also}")
