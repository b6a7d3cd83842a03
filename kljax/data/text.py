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

from kljax.core.targets import sequences_of
from kljax.data.checks import check_whole
from kljax.data.dataset import Dataset
from kljax.data.sentences import PADDING, sentences_of

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


def load_text(
    length: int = 8, *, whole: bool = False, next_token: bool = False
) -> Dataset:
    """Loads the first `length` pieces of verses, with the part of the Bible as label.

    Args:
      length: T, at least 1.
      whole: takes whole verses of at most T pieces instead, with padding behind them.
      next_token: has as targets, in place of the label, the piece that follows each:
        what a language model learns. The T targets say all of the sentence but its
        first piece, so who is given them is given that. The last piece of a whole
        verse has none.

    Raises:
      ValueError: for a length that no two verses have.
    """
    length = check_whole(length, "the length of sentences")
    if length < 1:
        raise ValueError(f"the length of sentences is {length}; give 1 or more")
    corpus = _read()
    lengths = corpus["lengths"].astype(int)
    starts = np.cumsum(lengths) - lengths
    needed = length + (next_token and not whole)
    fitting = lengths <= length if whole else lengths >= needed
    chosen = np.flatnonzero(fitting)
    if len(chosen) < 2:
        most, more = ("shortest", "more") if whole else ("longest", "fewer")
        bound = lengths.min() if whole else lengths.max()
        raise ValueError(
            f"no sentences of {needed} tokens: the {most} verses of dataset 'text' "
            f"have {bound}; ask for {more} (tokens)"
        )
    places = np.arange(length + 1)
    inside = places < lengths[chosen, None]
    at = np.where(inside, starts[chosen, None] + places, 0)
    pieces = np.where(inside, corpus["tokens"][at].astype(np.int32), PADDING)
    tokens, following = pieces[:, :length], pieces[:, 1:]
    _, first = np.unique(tokens, axis=0, return_index=True)
    kept = np.sort(first)
    parts = np.repeat(np.arange(len(PARTS)), list(PARTS.values()))
    vocabulary = corpus["pieces"].tolist()
    labels = parts[corpus["books"][chosen[kept]]]
    targets = sequences_of(length, len(vocabulary)) if next_token else None
    variant = "-verses" * whole + "-next-token" * next_token
    return Dataset(
        name=f"text{variant}",
        inputs=tokens[kept],
        labels=following[kept] if next_token else labels,
        num_classes=None if next_token else len(PARTS),
        groups=corpus["chapters"][chosen[kept]].astype(np.int32),
        licence=LICENCE,
        class_names=None if next_token else tuple(PARTS),
        input_spec=sentences_of(length, vocabulary, padded=whole),
        target_spec=targets,
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
