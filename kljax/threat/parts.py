"""Parts of an upload: an attacker who reads some of its tensors and no others.

A server may hold one layer of a client's gradient, or one matrix of an attention: a
client shares so much, or a proxy sees so much. Which is a fact of the threat model,
``visible=PATTERN[+PATTERN...]``.
"""

import fnmatch

import jax
import jax.numpy as jnp

from kljax.core.registry import nearest
from kljax.core.trees import named
from kljax.core.types import PyTree

ALL = "all"  # of the tensors can be read
SHOWN = 40  # names in an error


def check_patterns(visible: str) -> None:
    """Refuses what names no tensors in any network.

    Raises:
      ValueError: for an empty pattern.
    """
    if not isinstance(visible, str) or not all(visible.split("+")):
        raise ValueError(
            f"threat fact visible={visible!r}: expected 'all', or names of tensors "
            "with + between them, such as blocks/0/attention/query"
        )


def readable_tensors(sent: PyTree, visible: str) -> PyTree | None:
    """Marks the tensors that can be read, as `kljax.threat.View.visible` has them.

    A pattern is the name of a tensor as the network has it, ``fc/kernel``, or of what
    the tensor is in, ``blocks/0/attention``. A star stands for anything, slashes too,
    and a question mark for one character: ``blocks/*/attention/query/kernel``. What a
    defence has put into the upload begins with ``defence/``.

    Args:
      sent: the upload (`kljax.core.types.Public`), or its shapes.
      visible: ``all``, or patterns with + between them.

    Returns:
      A tree like `sent` of bool, True or False throughout a tensor; None for all.

    Raises:
      ValueError: for a pattern that no tensor has, with the names that there are.
    """
    if visible == ALL:
        return None
    leaves, tree = jax.tree.flatten(sent)
    seen = {*list_readable(sent, visible)}
    pairs = zip(leaves, _names(sent), strict=True)
    masks = [jnp.full(leaf.shape, name in seen) for leaf, name in pairs]
    return jax.tree.unflatten(tree, masks)


def list_readable(sent: PyTree, visible: str) -> list[str]:
    """Lists the names of the tensors that patterns allow; see `readable_tensors`."""
    names, seen = _names(sent), {}
    for pattern in visible.split("+"):
        allowed = [name for name in names if _matches(name, pattern)]
        if not allowed:
            raise ValueError(
                f"threat fact visible: no tensor of the upload is called {pattern!r}"
                f"{nearest(pattern, _ways(names))}; those are {_list(names)}"
            )
        seen |= dict.fromkeys(allowed)
    return [*seen]


def is_readable(name: str, visible: str) -> bool:
    """Tells whether patterns allow the tensor of this name; see `readable_tensors`."""
    return visible == ALL or any(_matches(name, p) for p in visible.split("+"))


def join_masks(one: PyTree | None, other: PyTree | None) -> PyTree | None:
    """Marks what is visible by both masks; None is a mask that hides nothing."""
    if one is None or other is None:
        return other if one is None else one
    return jax.tree.map(jnp.logical_and, one, other)


def _names(sent: PyTree) -> list[str]:
    return [name.removeprefix("model/") for name in named(sent)]


def _matches(name: str, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(way, pattern) for way in _ways([name]))


def _ways(names: list[str]) -> list[str]:
    """Lists names, and those of what is around them: a/b/c is in a/b, and that in a."""
    ways = {}
    for name in names:
        parts = name.split("/")
        ways |= {"/".join(parts[:n]): None for n in range(1, len(parts) + 1)}
    return [*ways]


def _list(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} others" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
