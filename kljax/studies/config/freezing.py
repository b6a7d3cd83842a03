"""What JSON makes of a configuration's tuples and layout, made right again."""

from collections.abc import Iterable
from typing import Any

from kljax.core.checks import shown
from kljax.parallel import Layout


def freeze(config: Any, names: tuple[str, ...]) -> None:
    # From config.json they come as lists and a dictionary.
    for name in names:
        value = getattr(config, name)
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise ValueError(f"{name} must be a tuple, got {shown(value)}")
        object.__setattr__(config, name, tuple(value))
    layout = config.layout
    if isinstance(layout, dict) and layout.keys() <= {"kind", "chunk"}:
        layout = Layout(**layout)
        object.__setattr__(config, "layout", layout)
    if not isinstance(layout, Layout):
        raise ValueError(f"layout must be a kljax.parallel.Layout, got {shown(layout)}")
