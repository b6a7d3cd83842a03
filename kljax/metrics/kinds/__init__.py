"""Kinds of inputs, by the name that an `InputSpec` gives them.

| kind  | primary score               | recovered if at most half as wrong as the best |
|       |                             | floor, and                                     |
|-------|-----------------------------|------------------------------------------------|
| image | SSIM                        | SSIM >= .6                                     |
| text  | share of tokens that are    | at least half of the tokens are right          |
|       | right in their place        |                                                |
| table | share of cells that are     | at least half of the cells are right           |
|       | right, within a tolerance   |                                                |
"""

from kljax.core.inputs import InputSpec
from kljax.core.registry import resolve
from kljax.metrics.kinds.images import IMAGES
from kljax.metrics.kinds.kind import Kind
from kljax.metrics.kinds.sentences import SENTENCES
from kljax.metrics.kinds.tables import TABLES

KINDS: dict[str, Kind] = {"image": IMAGES, "text": SENTENCES, "table": TABLES}


def find_kind(spec: InputSpec) -> Kind:
    """Finds how one input is scored; of several each has a kind of its own.

    Raises:
      ValueError: for an unknown kind, and for what is no `Kind`.
    """
    return kind_named(spec.kind)


def kind_named(name: str) -> Kind:
    """Finds a kind of input by its name.

    Raises:
      ValueError: for an unknown kind, and for what is no `Kind`.
    """
    found = resolve("kind of input", name, KINDS)
    if not isinstance(found, Kind):
        raise ValueError(
            f"kind of input {name!r} is {type(found).__name__}, expected a "
            "kljax.metrics.kinds.Kind"
        )
    return found


__all__ = ["Kind", "KINDS", "find_kind", "kind_named"]
