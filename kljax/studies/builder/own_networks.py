"""Networks and data of somebody's own, in the simpler forms in which they come.

A factory ``(num_classes, *, image_shape, rngs)`` fits any data. One that needs no
shape, or is made for a number of classes, leaves that out. A network that is there
already, of NNX, of Linen, of PyTorch or as a `Model`, is taken as it is, and so is what
a function or class without arguments gives.
"""

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from flax import linen, nnx

from kljax import data
from kljax.core.inputs import InputSpec
from kljax.core.types import Model
from kljax.models import from_nnx
from kljax.models.linen import from_linen

FACTORY = "(num_classes, *, image_shape, rngs) -> flax.nnx.Module"
LOADER = "(shape) -> kljax.data.Dataset"
SHORTER = ("(num_classes, *, rngs)", "(*, rngs)", "(rngs)")


class Ready:
    """A network that is there already, in the place of a factory.

    Attributes:
      given: an `nnx.Module`, a Linen module, or a `Model`.
    """

    def __init__(self, given: nnx.Module | linen.Module | Model):
        self.given = given

    def __call__(self, num_classes, *, image_shape, rngs):
        """Gives it back, whatever is asked for."""
        del num_classes, image_shape, rngs
        return self.given

    def model(self, inputs: InputSpec, convolution: str) -> Model:
        """Makes a `Model` of it, see `from_nnx` and `from_linen`."""
        if isinstance(self.given, Model):
            return self.given
        if isinstance(self.given, linen.Module):
            return from_linen(self.given, inputs)
        return from_nnx(self.given, convolution=convolution)


def as_factory(name: str, given: Any) -> Callable[..., Any]:
    """Makes a factory, as studies call it, of what a user names as a model.

    Args:
      name: of the model, for errors.
      given: what it stands for.

    Raises:
      ValueError: for what is none of the forms above.
    """
    if _is_of_torch(given):
        from kljax.models.pytorch.reading import network_from_torch

        return Ready(network_from_torch(given))
    if isinstance(given, (nnx.Module, linen.Module, Model)):
        return Ready(given)
    if not callable(given):
        raise ValueError(
            f"model {name!r} is {given!r}, expected a function or class {FACTORY}"
        )
    first = _misfit(given, 1, image_shape=(), rngs=None)
    if first is None:
        return given
    if _misfit(given, 1, rngs=None) is None:
        return lambda num_classes, *, image_shape, rngs: given(num_classes, rngs=rngs)
    if _misfit(given, rngs=None) is None:
        return lambda num_classes, *, image_shape, rngs: given(rngs=rngs)
    if _misfit(given) is None:
        return as_factory(name, _built(name, given))
    raise ValueError(
        f"model {name!r} cannot be called as {FACTORY}: {first}; {', '.join(SHORTER)}, "
        "() and a network that is there already, also of PyTorch, will do, too"
    ) from first


def _built(name: str, given: Callable[[], Any]) -> Any:
    """Calls what needs no arguments; it has to give a network.

    Raises:
      ValueError: if it fails, or gives something else.
    """
    try:
        made = given()
    except Exception as error:
        raise ValueError(f"model {name!r}: building it failed: {error}") from error
    if _is_of_torch(made) or isinstance(made, (nnx.Module, linen.Module, Model)):
        return made
    raise ValueError(
        f"model {name!r} gave {type(made).__name__}, expected a network of Flax or "
        "PyTorch"
    )


def _is_of_torch(given: Any) -> bool:
    """Tells whether it is a module of PyTorch, which is not imported for that."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(given, torch.nn.Module)


def _misfit(function: Callable, *arguments, **options) -> Exception | None:
    while isinstance(function, functools.partial):
        arguments = (*function.args, *arguments)
        options = function.keywords | options
        function = function.func
    if inspect.isclass(function):
        # NNX classes are called through their metaclass, which hides __init__.
        arguments, function = (None, *arguments), function.__init__
    try:
        inspect.signature(function).bind(*arguments, **options)
    except (TypeError, ValueError) as error:
        return error
    return None


def as_dataset(name: str, given: Any) -> data.Dataset:
    """Makes a dataset of what a user's loader gives: one, or (images, labels).

    Args:
      name: of the data.
      given: a `kljax.data.Dataset`; or images [N, H, W, C], or [N, H, W] of grey ones,
        of floating point in [0, 1] or of bytes, and labels [N], integers from 0.

    Raises:
      ValueError: for anything else, and what a dataset refuses.
    """
    if isinstance(given, data.Dataset):
        return given
    if not isinstance(given, tuple) or len(given) != 2:
        raise ValueError(
            f"dataset {name!r} gave {type(given).__name__}, expected a "
            "kljax.data.Dataset, or the arrays (images, labels)"
        )
    images, labels = map(np.asarray, given)
    if images.dtype == np.uint8:
        images = images.astype(np.float32) / 255
    if images.ndim == 3:  # grey ones without an axis of channels
        images = images[..., None]
    if (
        not np.issubdtype(labels.dtype, np.integer)
        or labels.ndim != 1
        or not len(labels)
    ):
        raise ValueError(
            f"dataset {name!r} gave labels of shape {labels.shape} and type "
            f"{labels.dtype}; give [N] integers"
        )
    licence = f"not stated; whoever wrote {name} knows"
    classes = max(int(labels.max()) + 1, 2)
    return data.Dataset(
        name, images.astype(np.float32), labels, classes, groups=None, licence=licence
    )
