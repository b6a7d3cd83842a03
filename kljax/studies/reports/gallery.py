"""The gallery: reconstructions beside the truth, chosen as the attacker would.

Best, median and worst are told by the matching loss, which the attacker sees. Chosen by
likeness to the truth, the first would show what only a lucky owner of the truth knows.
"""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kljax.core.files import DamagedFile
from kljax.metrics import COLUMNS
from kljax.studies import store
from kljax.studies.gallery import displayed, write_numbers
from kljax.studies.reports.kinds import find_words, kind_of
from kljax.studies.reports.pools import Pool
from kljax.studies.reports.tables import at_words
from kljax.studies.reports.values import known
from kljax.studies.sentences import Cell, cells_of
from kljax.studies.store import Study

RANKS = ("best", "median", "worst")
LARGEST = 128  # pixels of a side in the page
MOST = 60  # pools that are shown
IMAGES = 8  # of one upload


class Shown(NamedTuple):
    """One input: an image, a sentence, or whatever a study is of.

    Attributes:
      rank: best, median or worst of its pool, by the attacker's own loss; which of how
        many images of the upload it is, if there are several.
      victim: index in the dataset.
      label: its class; None where there are none.
      loss: matching loss of the upload.
      score: the primary score of its kind, in words.
      outcome: see `kljax.metrics.outcome`.
      truth, guess: PNG of an image; a sentence itself; of others, numbers.
      cells: of a row of a table, side by side.
      written: whether it is a sentence.
    """

    rank: str
    victim: int
    label: int | None
    loss: float
    score: str
    outcome: str
    truth: bytes | str
    guess: bytes | str
    cells: tuple[Cell, ...] = ()
    written: bool = False


class Row(NamedTuple):
    """A pool in the gallery.

    Attributes:
      name: where the pool stands.
      shown: images of one to three victims.
      victims: of how many uploads they are the best, median and worst.
      left_out: victims whose loss is not finite.
    """

    name: str
    shown: tuple[Shown, ...]
    victims: int
    left_out: int


class Gallery(NamedTuple):
    """Rows of pictures.

    Attributes:
      rows: of pools.
      left_out: pools that are not shown, to keep the page small.
      damaged: what is wrong with files that could not be read; their images are
        missing.
    """

    rows: tuple[Row, ...]
    left_out: int
    damaged: tuple[str, ...]


def make_gallery(study: Study, pools: Sequence[Pool]) -> Gallery:
    """Chooses and draws victims of every pool whose reconstructions were kept."""
    rows, damaged = [], []
    left_out = 0
    for pool in pools:
        cells = [
            cell["id"]
            for cell in pool.cells
            if (study.folder / "reconstructions" / f"{cell['id']}.npz").exists()
        ]
        if not cells or not len(pool.rows):
            continue
        if len(rows) == MOST:
            left_out += 1
            continue
        images = {}
        for cell in cells:
            try:
                images[cell] = store.read_reconstructions(study, cell)
            except DamagedFile as error:  # scores are not lost for a picture
                damaged.append(str(error))
        row = _row(pool, images)
        if row is not None:
            rows.append(row)
    return Gallery(tuple(rows), left_out, tuple(damaged))


def _row(pool: Pool, images: dict[str, dict[str, np.ndarray]]) -> Row | None:
    images = of_input(pool, images)
    uploads = gather_uploads(pool, images)
    sound = [
        (*where, rows)
        for where, rows in uploads.items()
        if known(rows[0]["matching_loss"]) is not None
    ]
    if not sound:
        return None
    # Among equals the victim's number decides.
    order = ("matching_loss", "cell", "victim")
    sound.sort(key=lambda upload: [upload[-1][0][column] for column in order])
    shown = []
    for number in dict.fromkeys(_ranked(len(sound)).values()):
        rank = " and ".join(r for r, p in _ranked(len(sound)).items() if p == number)
        cell, place, rows = sound[number]
        pictures = {name: images[cell][name][place] for name in ("truths", "images")}
        shown += [show(rank, row, pictures) for row in rows[:IMAGES]]
    return Row(
        at_words(pool.point), tuple(shown), len(sound), len(uploads) - len(sound)
    )


def of_input(
    pool: Pool, images: dict[str, dict[str, np.ndarray]]
) -> dict[str, dict[str, np.ndarray]]:
    """Takes what was kept of a pool's input: ``truths``, ``images`` and ``victim``.

    Args:
      pool: of one input.
      images: of its cells, by id, see `kljax.studies.store.read_reconstructions`.
    """
    arrays_of = _arrays_of(pool)
    return {
        cell: {name: arrays[own] for name, own in arrays_of.items()}
        for cell, arrays in images.items()
        if arrays.keys() >= set(arrays_of.values())
    }


def gather_uploads(
    pool: Pool, images: dict[str, dict[str, np.ndarray]]
) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Gathers the rows of each upload, by cell and place among its uploads.

    Args:
      pool: of one input.
      images: see `of_input`; uploads of other cells are left out.
    """
    places = {
        (cell, int(victim)): place
        for cell, arrays in images.items()
        for place, victim in enumerate(arrays["victim"])
    }
    uploads: dict[tuple[str, int], list[dict[str, Any]]] = {}
    rows = pool.rows.astype(object)
    for row in rows.where(rows.notna(), None).to_dict("records"):
        place = row["upload"]
        if row["example"] is None:  # a row of before there were uploads
            place = places.get((row["cell"], row["victim"]))
        if row["cell"] in images and place is not None:
            uploads.setdefault((row["cell"], place), []).append(row)
    return uploads


def _arrays_of(pool: Pool) -> dict[str, str]:
    """Says under which names the arrays of a pool's input are kept.

    Those of a single input, or of the primary one of several, have no name of it.
    """
    own = pool.input
    ending = "" if own == pool.first_row.get("input") else f"/{own}"
    names = {"truths": f"truths{ending}", "images": f"images{ending}"}
    return names | {"victim": "victim"}


def _ranked(count: int) -> dict[str, int]:
    """Says which place of `count` sorted ones is best, median (the lower) and worst."""
    return dict(zip(RANKS, (0, (count - 1) // 2, count - 1), strict=True))


def show(rank: str, row: dict[str, Any], pictures: dict[str, np.ndarray]) -> Shown:
    """Draws one example of an upload.

    Args:
      rank: why it is shown; may be empty.
      row: of the example.
      pictures: ``truths`` and ``images`` [B, ...] of the upload.
    """
    examples, example = len(pictures["truths"]), row["example"]
    kind = find_words(kind_of(row))
    value = known(row[kind.primary])
    heading = COLUMNS[kind.primary].heading
    score = f"no finite {heading}" if value is None else kind.caption(value)
    if examples > 1:
        # An older row has the means of all, and no score of this image.
        score = f"mean of {examples}: {score}" if example is None else score
        which = f"{kind.noun} {(example or 0) + 1} of {examples}"
        rank = f"{rank}, {which}" if rank else which
    if row.get("text") is not None:
        drawn = row["text"], row["text_guess"]
    else:
        drawn = (_draw(pictures[name][example or 0]) for name in ("truths", "images"))
    return Shown(
        rank,
        row["victim"],
        row["label"],
        row["matching_loss"],
        score,
        row["outcome"],
        *drawn,
        cells=tuple(cells_of(row)),
        written=kind_of(row) == "text",
    )


def _draw(shown: np.ndarray) -> bytes | str:
    """Draws an image [H, W, C]; of anything else, writes the first numbers."""
    if shown.ndim == 3:
        return to_png(shown)
    return write_numbers(shown)


def to_png(image: np.ndarray) -> bytes:
    """Writes an image [H, W, C] as PNG: clipped to [0, 1] as it is scored, NaN black.

    Three channels are colours; of any other number the mean is shown in grey. Large
    images are made smaller.
    """
    from PIL import Image

    picture = Image.fromarray(np.round(255 * displayed(image)).astype(np.uint8))
    picture.thumbnail((LARGEST, LARGEST))
    png = io.BytesIO()
    picture.save(png, "png", optimize=True)
    return png.getvalue()
