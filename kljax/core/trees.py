"""Trees of arrays: their leaves by name, and inputs of which there may be several."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from kljax.core.types import PyTree


def named(tree: PyTree) -> dict[str, Any]:
    """Lists the leaves of a tree by where they are, such as ``model/fc/kernel``.

    Names of the way are joined by a slash; those of a dictionary may hold some of their
    own. A tree that is a leaf has the name ``""``.
    """
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def map_columns(function: Callable[..., Any], columns: Any, *others: Any) -> Any:
    """Calls a function with inputs, or with each of several that have names.

    Args:
      function: ``(column, *others) -> value``.
      columns: a mapping of columns, or a single one, which may be a list.
      others: alike.
    """
    if not isinstance(columns, Mapping):
        return function(columns, *others)
    return {
        name: function(column, *(other[name] for other in others))
        for name, column in columns.items()
    }


def list_columns(columns: Any) -> list[Any]:
    """Lists the columns of inputs, of which there may be several."""
    return list(columns.values()) if isinstance(columns, Mapping) else [columns]
