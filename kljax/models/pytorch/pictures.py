"""Pictures, which are channels first in PyTorch and last here.

A picture is kept channels last (`Picture`) as long as layers allow; whatever looks at
its axes sees PyTorch's order. Rows behind a flattening are therefore in PyTorch's
order, and no kernel of a dense layer is permuted.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from kljax.core.types import Array

FIRST, LAST = (0, 3, 1, 2), (0, 2, 3, 1)  # axes from one order into the other


class Picture(NamedTuple):
    """A value that is [B, C, H, W] in PyTorch.

    Attributes:
      array: [B, H, W, C].
    """

    array: Array


def first(value: Any) -> Any:
    """Gives a value in PyTorch's order of axes."""
    return jnp.transpose(value.array, FIRST) if isinstance(value, Picture) else value


def last(value: Any) -> Array:
    """Gives a picture channels last."""
    return value.array if isinstance(value, Picture) else jnp.transpose(value, LAST)
