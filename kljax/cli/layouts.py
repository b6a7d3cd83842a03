"""Options that say how the work is laid over the machine."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from kljax.parallel import LAYOUTS, Layout, fastest_layout


def check_device(device: Path | None, dry_run: bool) -> None:
    """Refuses to run on a described device: only a dry run can predict for one.

    Raises:
      ValueError: for a device without a dry run.
    """
    if device is not None and not dry_run:
        raise ValueError(
            f"--device {device} is what --dry-run predicts for: give both, or leave "
            "--device out"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayoutOptions:
    """What may be said of a layout; the rest is what is fastest on the backend.

    The backend is not asked for by the parser: help needs none.

    Attributes:
      layout: not an option by itself.
      layout_kind: how the work is laid over the machine (speed only), see
        `kljax.parallel.Layout`; None for what is fastest.
      layout_chunk: how many victims or clients at once on each device, at most (speed
        only); None for what is fastest.
    """

    layout: Annotated[Layout | None, tyro.conf.Suppress] = None
    layout_kind: Annotated[
        Literal[tuple(LAYOUTS)] | None, tyro.conf.arg(name="layout.kind")
    ] = None
    layout_chunk: Annotated[int | None, tyro.conf.arg(name="layout.chunk")] = None

    def __post_init__(self):
        """Checks what was said."""
        Layout(**self._said())

    def _said(self) -> dict[str, Any]:
        said = {"kind": self.layout_kind, "chunk": self.layout_chunk}
        return {name: value for name, value in said.items() if value is not None}

    def layout_of(self, work: Literal["victims", "clients"]) -> dict[str, Layout]:
        """Fills in what was not said; asks for the backend."""
        return {"layout": dataclasses.replace(fastest_layout(work), **self._said())}
