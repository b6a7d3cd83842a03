"""Figures: pictures of a federated run, for people.

Matplotlib is imported where something is drawn: the library does not need a plotting
stack to train.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

NAMED_CLIENTS = 30  # as many have a bar, and a number, of their own
NAMED_CLASSES = 20  # as many colours can be told apart


def draw_partition(
    partition: Sequence[np.ndarray],
    labels,
    num_classes: int,
    path: Path | str,
    class_names: Sequence[str] | None = None,
) -> None:
    """Draws which client has how many examples of which class, as stacked bars.

    Args:
      partition: for each client, the indices of its examples.
      labels: [N] integers in [0, num_classes).
      num_classes: number of classes.
      path: the picture to write; its ending says the format.
      class_names: the names of the classes; their numbers if None.
    """
    if class_names is not None and len(class_names) != num_classes:
        raise ValueError(
            f"there are {num_classes} classes and {len(class_names)} class_names; "
            "give one name per class"
        )
    import matplotlib.figure

    counts = label_counts(partition, labels, num_classes)
    clients = len(counts)
    figure = matplotlib.figure.Figure(
        figsize=(8, float(np.clip(1.2 + 0.3 * clients, 2.6, 8))), layout="constrained"
    )
    axis = figure.subplots()
    colours = _draw_bars(axis, counts)
    axis.set_xlabel("examples")
    axis.set_ylabel("client")
    axis.set_title(_title(counts), fontsize=10, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    names = class_names if class_names is not None else range(num_classes)
    _explain(figure, axis, colours, [str(name) for name in names])
    figure.savefig(path, dpi=120)


def label_counts(partition, labels, num_classes: int) -> np.ndarray:
    """Counts the examples of each class at each client, [clients, classes].

    Raises:
      ValueError: a label outside [0, num_classes), or no client.
    """
    labels = np.asarray(labels)
    if not len(partition):
        raise ValueError("the partition has no client; give at least one")
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"labels span [{labels.min()}, {labels.max()}]; they must lie in "
            f"[0, {num_classes})"
        )
    return np.stack(
        [np.bincount(labels[own], minlength=num_classes) for own in partition]
    )


def _draw_bars(axis, counts: np.ndarray) -> np.ndarray:
    """Draws one bar per client, and returns the colours [classes, 4]."""
    import matplotlib
    from matplotlib.collections import PolyCollection
    from matplotlib.ticker import MaxNLocator

    clients, classes = counts.shape
    few = clients <= NAMED_CLIENTS
    right = np.cumsum(counts, axis=1)
    left = right - counts
    height = 0.8 if clients <= 100 else 1.0  # no gap where it is less than a dot
    middle = np.arange(clients)[:, None]
    top, bottom = middle - height / 2, middle + height / 2
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    boxes = np.stack(
        [np.stack(np.broadcast_arrays(x, y), axis=-1) for x, y in corners], axis=2
    )  # [clients, classes, 4, 2]
    if classes <= 10:
        colours = matplotlib.colormaps["tab10"](np.arange(classes))
    elif classes <= NAMED_CLASSES:
        colours = matplotlib.colormaps["tab20"](np.arange(classes))
    else:
        colours = matplotlib.colormaps["turbo"](np.linspace(0, 1, classes))
    shown = counts > 0
    faces = np.broadcast_to(colours, (*counts.shape, 4))[shown]
    # One artist for all boxes: a bar of its own for each takes seconds.
    axis.add_collection(
        # Lines of the face's own colour close the seams between neighbours.
        PolyCollection(boxes[shown], facecolors=faces, edgecolors=faces, linewidths=0.2)
    )
    axis.set_xlim(0, 1.02 * max(right.max(), 1))
    axis.set_ylim(clients - 0.5, -0.5)  # the first client on top
    axis.yaxis.set_major_locator(
        MaxNLocator(nbins=NAMED_CLIENTS if few else 10, integer=True)
    )
    return colours


def _title(counts: np.ndarray) -> str:
    sizes = counts.sum(axis=1)
    held = (counts > 0).sum(axis=1)
    return (
        f"{sizes.sum():,} examples, {len(counts)} client{'s' * (len(counts) > 1)}: "
        f"{_span(sizes)} examples and {_span(held)} of {counts.shape[1]} classes each"
    )


def _span(values: np.ndarray) -> str:
    low, high = values.min(), values.max()
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _explain(figure, axis, colours: np.ndarray, names: list[str]) -> None:
    """Says which colour is which class: a legend, or a scale where there are many."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.patches import Patch

    classes = len(colours)
    if classes <= NAMED_CLASSES:
        handles = [Patch(color=c, label=n) for c, n in zip(colours, names, strict=True)]
        legend = figure.legend(
            handles=handles, loc="outside right upper", fontsize=8, frameon=False
        )
        write_plainly(legend)
        return
    norm = BoundaryNorm(np.arange(classes + 1) - 0.5, classes)
    scale = ScalarMappable(norm, ListedColormap(colours))
    ticks = np.linspace(0, classes - 1, 6).astype(int)
    bar = figure.colorbar(scale, ax=axis, label="class", ticks=ticks)
    bar.minorticks_off()
    bar.ax.set_yticklabels([names[tick] for tick in ticks], parse_math=False)


def write_plainly(legend) -> None:
    """Writes the names of a legend as they are: none is a formula."""
    for text in legend.get_texts():
        text.set_parse_math(False)


def draw_curves(
    rows: Sequence[Mapping[str, Any]], path: Path | str, measure: str = "accuracy"
) -> None:
    """Draws loss and accuracy of every arm against the number of finished rounds.

    Rounds in which a client was left out are marked on the loss.

    Args:
      rows: one per arm and round, with ``arm``, ``round`` (the one run, from 0),
        ``loss``, ``train_accuracy``, ``test_accuracy`` (None where not measured),
        ``excluded`` (the clients left out) and, with attackers, ``attack_success``.
      path: the picture to write; its ending says the format.
      measure: what accuracies are, see `kljax.core.targets.TargetSpec.measure`.
    """
    import matplotlib.figure
    from matplotlib.ticker import LogLocator, MaxNLocator, PercentFormatter

    figure = matplotlib.figure.Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    for n, arm in enumerate(arms):
        own = sorted(
            (row for row in rows if row["arm"] == arm), key=lambda row: row["round"]
        )
        # Arms often lie upon each other: later ones are drawn with gaps.
        style = {"color": f"C{n}", "linestyle": ("-", "--", "-.", ":")[n % 4]}
        dot = {"marker": "o", "markersize": 3} if len(own) <= 30 else {}
        left.plot(*_curve(own, "loss"), **style, **dot, label=arm)
        left.plot(
            *_curve([row for row in own if row["excluded"]], "loss"),
            marker="x",
            color="black",
            linestyle="none",
        )
        right.plot(*_curve(own, "test_accuracy"), **style, **dot)
        right.plot(*_curve(own, "train_accuracy"), color=f"C{n}", alpha=0.35, lw=0.8)
        right.plot(
            *_curve(own, "attack_success"),
            color=f"C{n}",
            linestyle=":",
            marker="^",
            markersize=3,
        )
    left.set_ylabel("training loss")
    losses = [row["loss"] for row in rows if row["loss"] > 0]
    if losses and max(losses) > 10 * min(losses):
        left.set_yscale("log")
        left.yaxis.set_major_formatter("{x:g}")
        left.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        left.yaxis.set_minor_formatter("{x:g}")
    attacked = any(row.get("attack_success") is not None for row in rows)
    success = "; triangles: attack success" if attacked else ""
    right.set_ylabel(f"{measure} (test; thin: training{success})")
    right.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    for axis in (left, right):
        axis.set_xlabel("rounds finished")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2)
    legend = figure.legend(
        loc="outside upper center", ncols=min(len(arms), 4), frameon=False
    )
    write_plainly(legend)
    figure.savefig(path, dpi=120)


def _curve(rows, name: str) -> tuple[list[int], list[float]]:
    """Lists the finished rounds, and a value after each, where there is one."""
    seen = [row for row in rows if row.get(name) is not None]
    return [row["round"] + 1 for row in seen], [row[name] for row in seen]
