"""Pairs the guesses of a batch with its truths before they are scored.

A gradient of B examples does not say which example is which, so an attack returns its
guesses in any order. Letters: B examples; ... the axes of one example.

>>> import numpy as np
>>> truths = np.eye(3, dtype=np.float32)
>>> assign(truths[[2, 0, 1]], truths)
array([1, 2, 0])
"""

from collections import Counter

import numpy as np
import scipy  # its modules are imported where they are first named
from numpy.typing import ArrayLike


def assign(guesses: ArrayLike, truths: ArrayLike) -> np.ndarray:
    """Gives the order of guesses [B, ...] that fits truths [B, ...] best: int64 [B].

    `guesses[assign(guesses, truths)][i]` belongs to `truths[i]`. The total MSE over
    the batch is the least of all one-to-one pairings (Hungarian method); guesses are
    clipped to [0, 1] first, as the metrics do. Of integers, which are tokens, guess and
    truth are held against each other by the tokens that they share, wherever they stand
    (the F-measure of ROUGE-1, of tokens), as in LAMP; of pairings that are as good the
    one with the most tokens in their place is taken. Runs on the host, in float64.

    Edge cases: a guess with a NaN or infinite value is as far from every truth as any
    clipped guess could be, so it takes what the others leave.
    Raises ValueError if the shapes differ or B is 0.
    Differs from GI-NAS, whose greedy matching may use a truth twice (optimistic).

    Reference: Balunović et al., "LAMP" (NeurIPS 2022), its code, for sentences.
    """
    guesses, truths = np.asarray(guesses), np.asarray(truths)
    if guesses.shape != truths.shape or guesses.ndim == 0 or len(guesses) == 0:
        raise ValueError(
            f"assign: guesses {guesses.shape} and truths {truths.shape} must have one "
            "shape [B, ...] with B >= 1"
        )
    if np.issubdtype(truths.dtype, np.integer):
        flat = [side.reshape(len(side), -1) for side in (truths, guesses)]
        return scipy.optimize.linear_sum_assignment(_cost_of_tokens(*flat))[1]
    flat_guesses = guesses.reshape(len(guesses), -1).astype(np.float64)
    flat_truths = truths.reshape(len(truths), -1).astype(np.float64)
    finite = np.isfinite(flat_guesses).all(axis=1)
    cost = scipy.spatial.distance.cdist(
        flat_truths, np.clip(flat_guesses, 0.0, 1.0), "sqeuclidean"
    )
    # One cost for every truth: then a broken guess has no say in the pairing.
    cost[:, ~finite] = flat_truths.shape[1]
    return scipy.optimize.linear_sum_assignment(cost)[1]


def _cost_of_tokens(truths: np.ndarray, guesses: np.ndarray) -> np.ndarray:
    """Gives the cost [B, B] of each truth [B, T] (a row) with each guess (a column)."""
    real = truths >= 0
    cost = np.empty((len(truths), len(guesses)))
    for i, truth in enumerate(truths):
        # What is guessed in the place of padding is not read.
        words = Counter(truth[real[i]].tolist())
        for j, guess in enumerate(guesses):
            shared = words & Counter(guess[real[i]].tolist())
            cost[i, j] = 1 - shared.total() / max(real[i].sum(), 1)
    # Too little to outweigh one shared token in any of the B pairs.
    return cost + scipy.spatial.distance.cdist(truths, guesses, "hamming") / (
        2 * truths.size
    )


def choose(guesses: ArrayLike, truths: ArrayLike) -> np.ndarray:
    """Chooses for each guess [B, ...] a truth of its own out of [m, ...]: int64 [B].

    `truths[choose(guesses, truths)][i]` belongs to `guesses[i]`, by the least total
    MSE; see `assign`.

    Raises ValueError for fewer truths than guesses, and as `assign`.

    >>> truths = np.eye(4, dtype=np.float32)
    >>> choose(truths[[2, 0]], truths)
    array([2, 0])
    """
    guesses, truths = np.asarray(guesses), np.asarray(truths)
    if len(truths) < len(guesses):
        raise ValueError(
            f"choose: {len(guesses)} guesses and {len(truths)} truths; each guess "
            "needs a truth of its own"
        )
    missing = len(truths) - len(guesses)
    # As far from every truth as any guess: they take what the others leave.
    broken = np.full((missing, *guesses.shape[1:]), np.nan)
    order = assign(np.concatenate([guesses, broken]) if missing else guesses, truths)
    return np.argsort(order)[: len(guesses)]


def multiset_accuracy(guesses: ArrayLike, truths: ArrayLike) -> float:
    """Gives the share of labels [B] that are right in the best of all orders.

    Each guess serves one truth at most: of three guesses of a class that is there
    twice, two are right.

    Raises ValueError if the shapes differ or B is 0.

    >>> multiset_accuracy([2, 2, 2, 7], [7, 2, 5, 2])
    0.75
    """
    guesses, truths = np.asarray(guesses), np.asarray(truths)
    if guesses.shape != truths.shape or truths.ndim != 1 or len(truths) == 0:
        raise ValueError(
            f"multiset_accuracy: guesses {guesses.shape} and truths {truths.shape} "
            "must have one shape [B] with B >= 1"
        )
    common = Counter(guesses.tolist()) & Counter(truths.tolist())
    return common.total() / len(truths)
