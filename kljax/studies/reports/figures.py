"""Figures: drawn twice, for light pages and for dark ones.

Matplotlib is imported where something is drawn.
"""

import io
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from kljax.studies.figures import write_plainly

WIDTH = 3.4  # inches of one panel
HEIGHT = 2.7
ACROSS = 3  # panels side by side
MOST = 24  # panels in one figure; the tables have the rest

LIGHT = {
    "paper": "#ffffff",
    "ink": "#1c2430",
    "faint": "#8a94a3",
    "colours": (
        "#0b5fa5",
        "#c2410c",
        "#0f766e",
        "#a21caf",
        "#a16207",
        "#4d7c0f",
        "#be123c",
        "#57534e",
    ),
}
DARK = {
    "paper": "#14181f",
    "ink": "#e3e8ef",
    "faint": "#8b95a5",
    "colours": (
        "#60a5fa",
        "#fb923c",
        "#2dd4bf",
        "#e879f9",
        "#facc15",
        "#a3e635",
        "#fb7185",
        "#d6d3d1",
    ),
}
LINES = ("-", "--", "-.", ":")


class Figure(NamedTuple):
    """A picture.

    Attributes:
      name: of its file, without ending.
      title: what it shows.
      alt: the same for those who do not see it.
      note: what is left out of it; may be empty.
      light, dark: SVG.
    """

    name: str
    title: str
    alt: str
    note: str
    light: bytes
    dark: bytes

    @property
    def width(self) -> str:
        """Reads how wide it is, in CSS."""
        found = re.search(rb'width="([\d.]+pt)"', self.light)
        if found is None:
            raise AssertionError(f"figure {self.name} has no width")
        return found[1].decode()


class Style(NamedTuple):
    """How the arms of a study are told apart; the same in all figures."""

    arms: dict[str, dict[str, Any]]
    ink: str
    faint: str


# (panel, style, axis of matplotlib) -> None
Draw = Callable[[Any, Style, Any], None]


def draw_panels(
    name: str,
    title: str,
    alt: str,
    panels: dict[str, Any],
    arms: tuple[str, ...],
    draw: Draw,
) -> Figure:
    """Draws panels side by side under one legend of the arms.

    Args:
      name, title, alt: see `Figure`.
      panels: title -> what `draw` makes a panel of.
      arms: all arms of the study, in order.
      draw: draws one panel.
    """
    left = len(panels) - MOST
    note = f"{left} more panels are not drawn; the tables have all." if left > 0 else ""
    shown = dict(list(panels.items())[:MOST])
    light, dark = (_svg(shown, arms, draw, theme) for theme in (LIGHT, DARK))
    return Figure(name, title, alt, note, light, dark)


def _svg(panels: dict[str, Any], arms, draw: Draw, theme: dict[str, Any]) -> bytes:
    import matplotlib
    import matplotlib.figure

    colours = theme["colours"]
    styles = {
        arm: {
            "color": colours[n % len(colours)],
            "linestyle": LINES[(n // len(colours) + n) % len(LINES)],
        }
        for n, arm in enumerate(arms)
    }
    style = Style(styles, theme["ink"], theme["faint"])
    across = min(ACROSS, len(panels))
    down = -(-len(panels) // across)
    settings = {
        "text.color": style.ink,
        "axes.labelcolor": style.ink,
        "axes.edgecolor": style.faint,
        "xtick.color": style.faint,
        "ytick.color": style.faint,
        "xtick.labelcolor": style.ink,
        "ytick.labelcolor": style.ink,
        "grid.color": style.faint,
        "axes.facecolor": "none",
        "font.size": 9,
        "svg.hashsalt": "kljax",  # the same picture is the same file
    }
    with matplotlib.rc_context(settings):
        figure = matplotlib.figure.Figure(
            # A lone panel has its legend beside it.
            figsize=(max(across, 1.6) * WIDTH, down * HEIGHT + 0.6),
            layout="constrained",
        )
        axes = figure.subplots(down, across, squeeze=False).flat
        for axis, (title, panel) in zip(axes, panels.items(), strict=False):
            draw(panel, style, axis)
            axis.set_title(title, fontsize=9, loc="left", parse_math=False)
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(alpha=0.25, linewidth=0.6)
        for axis in list(axes)[len(panels) :]:
            axis.set_visible(False)
        _explain(figure, len(panels) == 1)
        svg = io.BytesIO()
        figure.savefig(
            svg, format="svg", facecolor=theme["paper"], metadata={"Date": None}
        )
    return svg.getvalue()


def _explain(figure, beside: bool) -> None:
    """Draws one legend for all panels."""
    handles = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        legend = figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside right upper" if beside else "outside lower left",
            ncols=1 if beside else 4,
            fontsize=8,
            frameon=False,
        )
        write_plainly(legend)
