"""What a network takes in, and what an attack looks for in its place.

An `InputSpec` travels wherever the shape of an example has to be known: from a dataset
to the network, the attack and the scores. It has the shape and type of one example,
the *search space* in which an attack descends, and what is said of an example. Images
are the first kind (`images_of`); a kind of your own is a spec of your own, together
with its scores (`kljax.metrics.kinds`).

A network may take several inputs (`several_of`): an example is then a tree of arrays,
and so are its shape, its latents and whatever is said of a batch of them.

Letters: n examples, B in one upload, H W C of an image.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kljax.core.array_checks import refuse_rows
from kljax.core.trees import list_columns
from kljax.core.types import Array, Params, Path, PyTree, Rng


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
      trained: whether what is fed stands for entries of those parameters, each its own:
        over the local steps of a client, it then moves as they do.
      hold: ``(upload, fed) -> fed``: brings candidates in line with what a gradient, or
        a change, of the parameters says of inputs in plain sight, such as where a
        sentence ends; None where nothing is said so. It is left out where a defence is
        assumed to change what is sent: a 0 may be the defence's own.
      table: ``params -> [V, ...]``, what the network is fed for each value that a
        discrete input can have; None where inputs are numbers.
    """

    shape: Callable[[Params], PyTree]
    decode: Callable[[Params, Array], Array] = _as_they_are
    read: Callable[[Params, Array], Array] = _as_they_are
    project: Callable[[Array], Array] = _anywhere
    unexplained: tuple[Path, ...] = ()
    trained: bool = False
    hold: Callable[[Params, Array], Array] | None = None
    table: Callable[[Params], Array] | None = None


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The inputs of a study: one example of a dataset, without its label.

    Attributes:
      kind: ``image``, ``text``, ``table``, or ``package.module:name`` of the scores of
        a kind of your own.
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
      parts: of several inputs, the spec of each by name; empty for a single one. Shapes
        and types are then mappings of the same names.
      primary: of several inputs, the one that comes first in rows, and by which the
        examples of an upload are told apart.
      columns: of the rows of a table, a `kljax.core.tables.TableColumn` each.
    """

    kind: str
    shape: tuple[int, ...] | Mapping[str, tuple[int, ...]] = field(hash=False)
    dtype: Any = field(hash=False)
    check: Callable[[PyTree, np.ndarray, str], PyTree]
    search: SearchSpace
    draw: Callable[[Rng, int], PyTree]
    spell: Callable[[np.ndarray], str] | None = None
    sizes: Mapping[str, int] = field(default_factory=dict, hash=False)
    parts: Mapping[str, "InputSpec"] = field(default_factory=dict, hash=False)
    primary: str | None = None
    columns: tuple[Any, ...] = ()

    @property
    def entries(self) -> int:
        """Counts the entries of one example, of all its inputs."""
        return sum(map(math.prod, list_columns(self.shape)))

    @property
    def scored(self) -> dict[str | None, "InputSpec"]:
        """Lists what is scored, the primary input first; a single one has no name."""
        if not self.parts:
            return {None: self}
        return {self.primary: self.parts[self.primary], **self.parts}

    @property
    def primary_spec(self) -> "InputSpec":
        """Gives the spec of a single input, or of the primary one of several."""
        return self.parts[self.primary] if self.parts else self

    def input_of(self, inputs: PyTree, name: str | None) -> PyTree:
        """Takes one input, a name of `scored`, out of inputs of this spec."""
        return inputs if name is None else inputs[name]

    def primary_of(self, inputs: PyTree) -> PyTree:
        """Takes a single input, or the primary one, out of inputs of this spec."""
        return self.input_of(inputs, self.primary)

    def zeros(self, count: int) -> PyTree:
        """Gives inputs [count, *shape] of which nothing matters but shape and type."""
        if self.parts:
            return {name: part.zeros(count) for name, part in self.parts.items()}
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


def several_of(parts: Mapping[str, InputSpec], *, primary: str) -> InputSpec:
    """Makes the spec of several inputs: a network is called with {name: inputs}.

    An attack searches all of them, each in its own space. Each is scored by its own
    kind, beside its own floors, in rows of its own. A whole update is attacked only
    where no input stands for parameters that are trained (`SearchSpace.trained`), as
    tokens do: of several, replays of local training move none.

    Args:
      parts: the spec of each input, by the name that the network knows it by.
      primary: name of the one that comes first, and by which the guesses of an upload
        are paired with its examples.

    Raises:
      ValueError: for a primary input that is not there, inputs of inputs, and two of
        which a network would have to be told different sizes (two vocabularies).
    """
    parts = dict(parts)
    if primary not in parts:
        raise ValueError(
            f"primary={primary!r} is no input; they are {', '.join(parts) or 'none'}"
        )
    nested = [name for name, part in parts.items() if part.parts]
    if nested:
        raise ValueError(
            f"input {nested[0]!r} has several inputs itself: name them all"
        )

    def check(inputs: PyTree, rows: np.ndarray, name: str) -> PyTree:
        given = set(inputs) if isinstance(inputs, Mapping) else set()
        if given != set(parts):
            raise ValueError(
                f"inputs of {name} must be a mapping of {', '.join(parts)}, got "
                f"{', '.join(sorted(given)) or type(inputs).__name__}"
            )
        inputs = {part: np.asarray(inputs[part]) for part in parts}
        scalar = [part for part, column in inputs.items() if not column.ndim]
        if scalar:
            raise ValueError(
                f"{scalar[0]} of {name} is a scalar; give a column of one for every "
                "example"
            )
        lengths = {len(inputs[part]) for part in parts}
        if len(lengths) > 1:
            raise ValueError(
                f"inputs of {name} have lengths {sorted(lengths)}; give one of each "
                "for every example"
            )
        return {
            part: spec.check(inputs[part], rows, f"{part} of {name}")
            for part, spec in parts.items()
        }

    def of_each(function: str) -> Callable[..., PyTree]:
        def call_each(params: Params, values: PyTree) -> PyTree:
            functions = {n: getattr(s.search, function) for n, s in parts.items()}
            return {
                name: values[name] if call is None else call(params, values[name])
                for name, call in functions.items()
            }

        return call_each

    def draw(rng: Rng, count: int) -> PyTree:
        rngs = jax.random.split(rng, len(parts))
        pairs = zip(parts.items(), rngs, strict=True)
        return {name: spec.draw(own, count) for (name, spec), own in pairs}

    held = any(spec.search.hold is not None for spec in parts.values())
    return InputSpec(
        kind="several",
        shape={name: spec.shape for name, spec in parts.items()},
        dtype={name: spec.dtype for name, spec in parts.items()},
        check=check,
        search=SearchSpace(
            shape=lambda params: {
                name: spec.search.shape(params) for name, spec in parts.items()
            },
            decode=of_each("decode"),
            read=of_each("read"),
            project=lambda latents: {
                name: spec.search.project(latents[name]) for name, spec in parts.items()
            },
            unexplained=tuple(
                path for spec in parts.values() for path in spec.search.unexplained
            ),
            hold=of_each("hold") if held else None,
        ),
        draw=draw,
        sizes=_join_sizes(parts),
        parts=parts,
        primary=primary,
    )


def _join_sizes(parts: Mapping[str, InputSpec]) -> dict[str, int]:
    """Joins what a network's factory is told of several inputs.

    Raises:
      ValueError: for two inputs that say different things by one name.
    """
    told: dict[str, tuple[str, int]] = {}
    for name, spec in parts.items():
        for size, value in spec.sizes.items():
            other, there = told.setdefault(size, (name, value))
            if there != value:
                raise ValueError(
                    f"inputs {other!r} and {name!r} have {size} {there} and {value}, "
                    "and a network is told one: make them alike"
                )
    return {size: value for size, (_, value) in told.items()}


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
