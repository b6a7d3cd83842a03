"""Compares a guessed sentence with the true one, and with what nobody has to steal.

Letters: T tokens of a sentence, V tokens of a vocabulary, n sentences of a reference.
Tokens are integers [T]; ROUGE reads text. What is negative in the true sentence is
padding, and counts for nothing, whatever is guessed there.

A *floor* is a sentence that was guessed without the victim's gradient.

| floor           | what it uses                                              | oracle |
|-----------------|-----------------------------------------------------------|--------|
| commonest       | the reference's commonest token, at every place           | no     |
| by_place        | the commonest token of each place                         | no     |
| class_by_place  | the same of the sentences with the victim's label         | no     |
| same_class      | another sentence of that label                            | no     |
| bigrams         | a language model: the likeliest next token, again & again | no     |
| own_tokens      | the victim's own tokens, shuffled: what those rows of the | yes    |
|                 | embedding's gradient say that are not 0                   |        |

The victim is never part of what represents it: its index is left out.

>>> reference = SentenceReference([[1, 2], [1, 3], [4, 3]], [0, 0, 1], [7, 8, 9])
>>> floors = floor_sentences([1, 3], 0, 8, reference, seed=0)
>>> floors["by_place"].tolist(), floors["same_class"].tolist()
([1, 2], [1, 2])
"""

import functools
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

ROUGES = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l"}
PADDING = -1


def token_accuracy(guesses: ArrayLike, truths: ArrayLike) -> np.ndarray:
    """Gives the share of tokens [n, T] that are right in their place: [n]."""
    guesses, truths = _pair(guesses, truths)
    counted = truths >= 0
    return np.sum((guesses == truths) & counted, axis=-1) / np.sum(counted, axis=-1)


def exact_match(guesses: ArrayLike, truths: ArrayLike) -> np.ndarray:
    """Tells whether all tokens [n, T] are right in their place: [n] bool."""
    guesses, truths = _pair(guesses, truths)
    return np.all((guesses == truths) | (truths < 0), axis=-1)


def rouge(guess: str, truth: str) -> dict[str, float]:
    """Computes the F-measures of ROUGE-1, ROUGE-2 and ROUGE-L of a text, in [0, 1].

    Words, pairs of neighbours, and the longest common subsequence of words, by the
    package rouge-score, in lower case and without stemming.

    Returns:
      ``rouge_1``, ``rouge_2`` and ``rouge_l``.

    Raises:
      ImportError: where rouge-score is not installed.

    Reference: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries" (2004);
    LAMP (Balunović et al. 2022) reports the same three.
    """
    found = _scorer().score(truth, guess)
    return {name: float(found[theirs].fmeasure) for theirs, name in ROUGES.items()}


@functools.cache
def _scorer():
    # It takes a second to import, and studies of images do without.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([*ROUGES])


class SentenceReference:
    """Sentences that are known to the attacker, and that floors are made of.

    Args:
      sentences: [n, T] integers from 0.
      labels: [n] of them.
      indices: [n] distinct, where they are in the dataset.

    Raises:
      ValueError: for no sentence, other shapes, or an index that is there twice.
    """

    def __init__(self, sentences: ArrayLike, labels: ArrayLike, indices: ArrayLike):
        """Keeps the sentences; see the class."""
        self.sentences, self.labels, self.indices = map(
            np.asarray, (sentences, labels, indices)
        )
        count = len(self.sentences)
        if self.sentences.ndim != 2 or not count:
            raise ValueError(
                f"SentenceReference: sentences have shape {self.sentences.shape}; they "
                "must be [n, T] with n >= 1"
            )
        if self.labels.shape != (count,) or self.indices.shape != (count,):
            raise ValueError(
                f"SentenceReference: {count} sentences need as many labels and indices"
            )
        if len(np.unique(self.indices)) < count:
            raise ValueError("SentenceReference: an index occurs more than once")

    def without(self, index: int, label: int | None = None) -> np.ndarray:
        """Gives the sentences [m, T] but that of `index`, of one label or of all."""
        kept = self.indices != index
        if label is not None:
            kept &= self.labels == label
        return self.sentences[kept]


class Victim(NamedTuple):
    """The sentence that a floor stands for."""

    tokens: np.ndarray  # [T]
    label: int
    index: int  # in the dataset that the reference was drawn from
    rng: np.random.Generator


def commonest(victim: Victim, reference: SentenceReference) -> np.ndarray | None:
    """Repeats the commonest token; of several the lowest."""
    others = reference.without(victim.index)
    return np.full(victim.tokens.shape, _mode(others)) if len(others) else None


def by_place(victim: Victim, reference: SentenceReference) -> np.ndarray | None:
    """Takes the commonest token of each place."""
    return _modes(reference.without(victim.index))


def class_by_place(victim: Victim, reference: SentenceReference) -> np.ndarray | None:
    """Takes the commonest token of each place in sentences of the victim's label."""
    return _modes(reference.without(victim.index, victim.label))


def same_class(victim: Victim, reference: SentenceReference) -> np.ndarray | None:
    """Picks another sentence of the victim's label."""
    others = reference.without(victim.index, victim.label)
    return victim.rng.choice(others) if len(others) else None


def bigrams(victim: Victim, reference: SentenceReference) -> np.ndarray | None:
    """Writes the likeliest sentence token by token, by counts of neighbours."""
    others = reference.without(victim.index)
    if not len(others):
        return None
    before, after = others[:, :-1].ravel(), others[:, 1:].ravel()
    tokens = [_mode(others[:, 0])]
    while len(tokens) < len(victim.tokens):
        following = after[(before == tokens[-1]) & (after >= 0)]
        tokens.append(_mode(following if len(following) else others))
    return np.array(tokens)


def own_tokens(victim: Victim, reference: SentenceReference) -> np.ndarray:
    """Shuffles the victim's own tokens, and leaves padding where it is (oracle)."""
    del reference
    shuffled, real = victim.tokens.copy(), victim.tokens >= 0
    shuffled[real] = victim.rng.permutation(victim.tokens[real])
    return shuffled


SENTENCE_FLOORS: dict[str, Callable[..., np.ndarray | None]] = {
    "commonest": commonest,
    "by_place": by_place,
    "class_by_place": class_by_place,
    "same_class": same_class,
    "bigrams": bigrams,
    "own_tokens": own_tokens,
}


def floor_sentences(
    tokens: ArrayLike,
    label: int,
    index: int,
    reference: SentenceReference,
    seed: int,
) -> dict[str, np.ndarray]:
    """Makes every floor of one sentence: name -> tokens [T] int32.

    It depends on the victim, the reference and the seed only. A floor without another
    sentence to use is left out.

    Raises:
      ValueError: for a sentence of another length than the reference's, or another
        one than the reference has under its index.
    """
    tokens = np.asarray(tokens)
    if tokens.shape != reference.sentences.shape[1:]:
        raise ValueError(
            f"floors: the victim has shape {tokens.shape}, the reference's sentences "
            f"have {reference.sentences.shape[1:]}"
        )
    same = reference.sentences[reference.indices == index]
    if len(same) and np.any(same[0] != tokens):
        raise ValueError(
            f"floors: the reference holds another sentence under index {index} than "
            "the victim; number both by the same dataset"
        )
    made = {}
    for name, floor in SENTENCE_FLOORS.items():
        # Of the name, not of its place: a new floor does not change the old ones.
        rng = np.random.default_rng([seed, index, zlib.crc32(name.encode())])
        found = floor(Victim(tokens, int(label), int(index), rng), reference)
        if found is not None:
            made[name] = np.asarray(found, np.int32)
    return made


def _mode(tokens: np.ndarray) -> int:
    """Gives the commonest token; of nothing but padding, padding."""
    real = tokens[tokens >= 0]
    return int(np.argmax(np.bincount(real))) if len(real) else PADDING


def _modes(sentences: np.ndarray) -> np.ndarray | None:
    if not len(sentences):
        return None
    return np.array([_mode(column) for column in sentences.T])


def _pair(guesses: ArrayLike, truths: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    guesses, truths = np.asarray(guesses), np.asarray(truths)
    if guesses.shape != truths.shape or guesses.ndim != 2 or not guesses.shape[1]:
        raise ValueError(
            f"guesses {guesses.shape} and truths {truths.shape} must have one shape "
            "[n, T] with T >= 1"
        )
    return guesses, truths
