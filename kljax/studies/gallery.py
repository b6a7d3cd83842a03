"""The gallery of a study: truths, their best floor and reconstructions in a picture."""

import textwrap
from pathlib import Path

import numpy as np

from kljax.metrics.kinds import find_kind
from kljax.studies.input_scores import floor_images
from kljax.studies.leakage import LeakResult
from kljax.studies.scoring import Row, matched_inputs
from kljax.studies.sentences import mark

PREFIX = "floor/"
NUMBERS = 12  # of what is neither a picture nor a text
WIDEST = 20  # characters below a picture
LONGEST = 120  # characters of a row of a table
PLAIN = {"parse_math": False}  # names are no formulas, whatever signs are in them


def draw_gallery(
    result: LeakResult, rows: list[Row], path: Path, most: int = 8
) -> None:
    """Draws one line per arm, and one column per private image, with its own scores.

    The first images are shown, not the best, as they are scored: clipped to [0, 1].
    Sentences are written, with brackets around what is wrong. Of the floors the one
    with the highest mean score is shown: SSIM, or the share of right tokens. Several
    inputs have lines of their own, below each other.

    Args:
      result: the study.
      rows: its scores, see `kljax.studies.scoring.score_rows`.
      path: the picture to write; its ending says the format.
      most: columns at most.
    """
    # Imported here: the library does not need a plotting stack to run an attack.
    import matplotlib.figure

    specs = result.dataset.input_spec.scored
    lines = [line for name in specs for line in _lines(result, rows, name, most)]
    shown = len(lines[0][1])
    pictures = any(spec.spell is None for spec in specs.values())
    wide, high = (1.15, 1.3) if pictures else (1.4, 0.9)
    figure = matplotlib.figure.Figure(
        figsize=(wide * shown + 2.2, high * len(lines)), layout="constrained"
    )
    axes = figure.subplots(len(lines), shown, squeeze=False)
    for line, (name, images, captions) in zip(axes, lines, strict=True):
        for axis, image, caption in zip(line, images, captions, strict=True):
            if isinstance(image, str):
                words = textwrap.fill(image, WIDEST)
                axis.text(
                    0.5, 0.5, words, ha="center", va="center", fontsize=6, **PLAIN
                )
            else:
                # Grey on the same scale for all: by itself each would be stretched.
                axis.imshow(displayed(image), cmap="gray", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_xlabel(caption, fontsize=7, labelpad=1, **PLAIN)
        line[0].set_ylabel(
            name.replace("/", "/\n"),
            rotation=0,
            ha="right",
            va="center",
            fontsize=8,
            **PLAIN,
        )
    figure.savefig(path, dpi=120)


def displayed(image: np.ndarray) -> np.ndarray:
    """Makes an image [H, W, C] fit to be shown: clipped to [0, 1], NaN black.

    Returns:
      [H, W, 3] float32 of three channels, which are colours; [H, W] of any other
      number, whose mean is shown in grey.
    """
    pixels = np.clip(np.nan_to_num(np.asarray(image, np.float32)), 0, 1)
    return pixels if pixels.shape[-1] == 3 else pixels.mean(axis=-1)


def write_numbers(values: np.ndarray) -> str:
    """Writes the first numbers of what is neither a picture nor a text."""
    numbers = values.ravel()
    more = " ..." if len(numbers) > NUMBERS else ""
    return ", ".join(f"{number:.3g}" for number in numbers[:NUMBERS]) + more


def _lines(
    result: LeakResult, rows: list[Row], input_name: str | None, most: int
) -> list[tuple[str, np.ndarray | list[str], list[str]]]:
    """Lists names, what is drawn of one input, and captions.

    Drawn are images [n, H, W, C], or texts.
    """
    inputs, targets = result.dataset.input_spec, result.dataset.target_spec
    spec, victims = inputs.scored[input_name], result.victims
    spell, kind = spec.spell, find_kind(spec)
    rows = [row for row in rows if row["input"] == input_name]
    examples = victims.labels.shape[1]
    uploads = -(-most // examples)  # no more of them than the columns need

    def first(values: np.ndarray) -> np.ndarray:
        return values[:uploads].reshape(-1, *values.shape[2:])[:most]

    truths, labels = (
        first(values)
        for values in (inputs.input_of(victims.inputs, input_name), victims.labels)
    )
    captions = [""] * len(labels)
    if targets.class_of is not None:
        names, classes = result.dataset.class_names, targets.class_of(labels)
        captions = [f"class {n}" if names is None else str(names[n]) for n in classes]
    captions = [textwrap.fill(caption, WIDEST) for caption in captions]
    places = [divmod(n, examples) for n in range(len(truths))]
    if examples > 1:
        where = [f"upload {victims.uploads[n]}, {kind.noun} {e}" for n, e in places]
        captions = ["\n".join(words) for words in zip(captions, where, strict=True)]
    at = {(row["arm"], row["upload"], row["example"]): row for row in rows}

    def scores(arm: str) -> list[str]:
        own = (at[arm, int(victims.uploads[n]), e][kind.primary] for n, e in places)
        return [kind.caption(score) for score in own]

    def legible(guesses: np.ndarray) -> np.ndarray | list[str]:
        if spell is None and guesses.ndim == 4:
            return guesses
        if spell is None:
            return [*map(write_numbers, guesses)]
        pairs = zip(guesses, truths, strict=True)
        if kind.mark is not None:
            return [_shortened(kind.mark(guess, truth, spec)) for guess, truth in pairs]
        return [mark(spell, guess, truth) for guess, truth in pairs]

    lines = [("truth", legible(truths), captions)]
    floors = floor_images(
        result.dataset,
        truths,
        labels,
        first(victims.indices),
        result.config.seed,
        input_name,
    )
    best = _best_floor(rows, kind.primary, set.intersection(*map(set, floors)))
    floor = np.stack([made[best] for made in floors])
    lines.append((PREFIX + best, legible(floor), scores(PREFIX + best)))
    for arm in result.arms:
        name = arm.arm.name
        guesses = first(matched_inputs(arm, result)[input_name])
        lines.append((name, legible(guesses), scores(name)))
    if input_name is None:
        return lines
    return [(f"{input_name}/{name}", *drawn) for name, *drawn in lines]


def _shortened(written: str) -> str:
    """Leaves out of a text what a small picture has no room for."""
    return textwrap.shorten(written, LONGEST, placeholder=" ...")


def _best_floor(rows: list[Row], score: str, names: set[str]) -> str:
    scores: dict[str, list[float]] = {}
    for row in rows:
        name = row["arm"].removeprefix(PREFIX)
        if row["arm"].startswith(PREFIX) and name in names:
            scores.setdefault(name, []).append(row[score])
    return max(scores, key=lambda name: np.mean(scores[name]))
