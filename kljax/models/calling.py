"""How a network is called: how it is told its mode, and what it has to give back."""

import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from kljax.core.trees import map_columns
from kljax.core.types import Array, PyTree

# (network, images [B, H, W, C], train) -> logits [B, Kc]
Call: TypeAlias = Callable[[Any, Array, bool], Array]

# Arguments by which networks are told their mode: true in train mode, and false.
TRAIN = ("train", "training", "is_train", "is_training")
EVALUATION = (
    "deterministic",
    "use_running_average",
    "inference",
    "eval",
    "evaluate",
    "is_eval",
)
# Names and words of names that speak of a mode, in values that are not known.
MODES = ("mode", "phase")
WORDS = {"train", "training", "eval", "evaluation", "test", "testing", "deterministic"}
CALL = "__call__"
HOW = "call=lambda network, images, train: network(images, ...)"


def find_call(kind: type) -> Call:
    """Finds out how networks of a class are called, from their signature.

    Every argument whose name is in `TRAIN` or `EVALUATION` is passed the mode; others
    that have a default are left at it. An argument that speaks of the mode by another
    name is refused: at its default the network would stay in one mode.

    Raises:
      ValueError: if the class takes no images, or an argument whose value cannot be
        guessed: it has no default, or its name is of `MODES` or has one of `WORDS`.
    """
    name = kind.__name__
    # Not by getattr, which finds the metaclass's, by which a class makes instances.
    called = next((vars(c)[CALL] for c in kind.__mro__ if CALL in vars(c)), None)
    if called is None:
        raise ValueError(
            f"{name} has no __call__: a network maps images to logits; pass {HOW}"
        )
    _, *arguments = inspect.signature(called).parameters.values()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if not arguments or arguments[0].kind in (
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.VAR_KEYWORD,
    ):
        raise ValueError(
            f"{name}.__call__ takes no images as its first argument: pass {HOW}"
        )
    others = [a for a in arguments[1:] if a.kind not in variadic]
    modes = {a.name: a.name in TRAIN for a in others if a.name in TRAIN + EVALUATION}
    unknown = [
        a.name
        for a in others
        if a.name not in modes and (a.default is a.empty or _speaks_of_mode(a.name))
    ]
    if unknown:
        raise ValueError(
            f"{name}.__call__ needs {', '.join(unknown)}, which cannot be guessed: "
            f"pass {HOW} with it"
        )

    def call(network: Any, images: Array, train: bool) -> Array:
        mode = {name: train == same for name, same in modes.items()}
        return network(images, **mode)

    return call


def _speaks_of_mode(argument: str) -> bool:
    return argument in MODES or bool(WORDS & {*argument.lower().split("_")})


def check_output(name: str, images: PyTree, output: Any) -> Array:
    """Checks that a network gave one array with a row per image.

    Args:
      name: of the network's class, for errors.
      images: [B, H, W, C], what it was given, or other inputs.
      output: what it gave.

    Raises:
      ValueError: for anything else, such as a tuple.
    """
    shape = output.shape if isinstance(output, jax.Array) else None
    count = jax.tree.leaves(images)[0].shape[0]
    if shape is None or shape[:1] != (count,):
        gives = type(output).__name__ if shape is None else f"shape {shape}"
        shapes = map_columns(jnp.shape, images)
        raise ValueError(
            f"{name} gives {gives} for images of shape {shapes}, expected one "
            f"array of logits [{count}, Kc]: pass {HOW} that gives it"
        )
    return output


def check_shape(images: Array, image_shape: tuple[int, ...]) -> None:
    """Checks that images [B, H, W, C] are those that a network was built for.

    A network that flattens would take 8 x 16 pixels for 16 x 8.

    Raises:
      ValueError: for images of another shape.
    """
    if images.shape[1:] != image_shape:
        raise ValueError(
            f"images of shape {images.shape}, expected [B, H, W, C] of the network's "
            f"image_shape {image_shape}"
        )
