"""Strips: how a reconstruction comes about, as a row of pictures or a moving one."""

import io
from typing import NamedTuple

import numpy as np

from kljax.metrics import Column
from kljax.studies.gallery import displayed
from kljax.studies.reports.gallery import IMAGES, to_png

ACROSS = 10  # pictures of a strip
SIDE = 128  # pixels that a side of a moving picture has at least, or nearly
FRAME, LAST = 200, 1500  # milliseconds for which a frame, and the last, is seen


class Snapshot(NamedTuple):
    """What a search had found after so many evaluations.

    Attributes:
      evaluations: of the restart that is returned.
      pictures: PNG of each image.
      caption: mean score of them, in words.
    """

    evaluations: int
    pictures: tuple[bytes, ...]
    caption: str


def draw_strip(
    spent: np.ndarray, frames: np.ndarray, scores: np.ndarray, scored: Column
) -> tuple[Snapshot, ...]:
    """Draws snapshots, evenly chosen; the last one is always there.

    Args:
      spent: [P] evaluations.
      frames: [P, B, H, W, C].
      scores: [P] of the frames.
      scored: which score that is.
    """
    count = len(spent)
    chosen = np.unique(np.linspace(0, count - 1, min(count, ACROSS)).round())
    return tuple(
        Snapshot(
            int(spent[n]),
            tuple(to_png(image) for image in frames[n][:IMAGES]),
            scored.written(scores[n]) if np.isfinite(scores[n]) else "-",
        )
        for n in chosen.astype(int)
    )


def to_gif(frames: np.ndarray) -> bytes:
    """Writes snapshots [P, B, H, W, C] as a moving picture, images side by side.

    Pixels are repeated where there are few; it begins again without end.
    """
    from PIL import Image

    pictures = []
    for images in frames:
        row = np.concatenate([displayed(image) for image in images[:IMAGES]], axis=1)
        times = max(1, round(SIDE / len(row)))
        row = np.round(255 * row).astype(np.uint8).repeat(times, 0).repeat(times, 1)
        pictures.append(Image.fromarray(row).convert("RGB"))
    first, *others = pictures
    gif = io.BytesIO()
    times = [FRAME] * len(others) + [LAST]
    first.save(gif, "gif", save_all=True, append_images=others, duration=times, loop=0)
    return gif.getvalue()
