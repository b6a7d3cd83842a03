"""The embedded corpus: beginnings of verses of the King James Bible.

The package carries every fourth of its 31,102 verses (298 KiB), cut into 4,096 pieces
of words that were learnt from all of them; experiments/text_corpus.py makes both from
Debian's copy of the text. An example is the first T pieces of a verse. Verses that are
shorter are left out, and of those that begin alike the first is kept, so that no
sentence stands beside its own copy.

The label is the part of the Bible that the verse's book belongs to, as tables of
contents have them. Chapters are clusters of a bootstrap: their verses speak of one
thing.
"""

import functools
from pathlib import Path

import numpy as np

from kljax.data.checks import check_whole
from kljax.data.dataset import Dataset
from kljax.data.sentences import sentences_of

FILE = Path(__file__).with_name("text.npz")
# How many books each part has, in the order in which the books are printed.
PARTS = {
    "law": 5,
    "history": 12,
    "wisdom": 5,
    "prophets": 17,
    "gospels": 4,
    "acts": 1,
    "letters": 21,
    "revelation": 1,
}
LICENCE = (
    "King James Version of the Bible (1611), in the public domain but for the United "
    "Kingdom, where the Crown holds a patent; text of Debian's package bible-kjv-text "
    "4.38, free to use, copy, modify and distribute (Chip Chapin, 1989)"
)


def load_text(length: int = 8) -> Dataset:
    """Loads the first `length` pieces of verses, with the part of the Bible as label.

    Args:
      length: T, at least 1.

    Raises:
      ValueError: for a length that no two verses have.
    """
    length = check_whole(length, "the length of sentences")
    if length < 1:
        raise ValueError(f"the length of sentences is {length}; give 1 or more")
    corpus = _read()
    lengths = corpus["lengths"].astype(int)
    starts = np.cumsum(lengths) - lengths
    long = np.flatnonzero(lengths >= length)
    if len(long) < 2:
        raise ValueError(
            f"no sentences of {length} tokens: the longest verses of dataset 'text' "
            f"have {lengths.max()}; ask for fewer (tokens)"
        )
    tokens = corpus["tokens"][starts[long, None] + np.arange(length)]
    _, first = np.unique(tokens, axis=0, return_index=True)
    kept = np.sort(first)
    parts = np.repeat(np.arange(len(PARTS)), list(PARTS.values()))
    return Dataset(
        name="text",
        images=tokens[kept].astype(np.int32),
        labels=parts[corpus["books"][long[kept]]],
        num_classes=len(PARTS),
        groups=corpus["chapters"][long[kept]].astype(np.int32),
        licence=LICENCE,
        class_names=tuple(PARTS),
        inputs=sentences_of(length, corpus["pieces"].tolist()),
    )


@functools.cache
def _read() -> dict[str, np.ndarray]:
    if not FILE.is_file():
        raise FileNotFoundError(
            f"{FILE} is missing: make it with python experiments/text_corpus.py, from "
            "a checkout"
        )
    with np.load(FILE) as corpus:
        return dict(corpus)
