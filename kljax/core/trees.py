"""Trees of arrays: their leaves by name."""

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
