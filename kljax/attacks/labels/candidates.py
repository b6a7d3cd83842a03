"""Labels that are tried: what a rule reads is a guess, and an upload can judge it.

Over several steps it matters which example went into which step, and no rule says it.
Candidates are sequences of labels, those first whose counts are nearest to what the
upload says; each is searched for a while, and the attacker's own loss chooses. Two
sequences that differ in the order within one step are one candidate: the mean over the
step's examples is the same.

Letters: n examples, B in a batch, Kc classes, C candidates.
"""

import heapq
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from kljax.attacks.attack import Attack
from kljax.attacks.labels.strategies import targets_of
from kljax.attacks.objectives import infinite_if_broken
from kljax.core.types import Array, Rng
from kljax.threat import View


class LabelCandidates(NamedTuple):
    """Some of the label sequences that an upload can have.

    Attributes:
      labels: [C, n] int32, the likeliest first.
      there: how many different sequences there are in all.
    """

    labels: np.ndarray
    there: int


def label_candidates(
    counts: ArrayLike, examples: int, batch: int, most: int
) -> LabelCandidates:
    """Lists label sequences by how near their counts are to what an upload says.

    Of each multiset of labels all assignments to the batches come before the next
    multiset. Neighbours of a multiset differ in one label.

    Args:
      counts: [Kc], how often each label is thought to be there; any numbers, of which
        multisets are compared by their squared distance.
      examples: n.
      batch: B, which divides n; n where the order says nothing.
      most: bound on C.

    Raises:
      ValueError: for a batch that does not divide n, a bound below 1, and counts that
        are not finite.
    """
    counts = np.asarray(counts, np.float64)
    if examples % batch or most < 1 or not np.isfinite(counts).all():
        raise ValueError(
            f"examples={examples} in batches of {batch}, at most {most} candidates of "
            f"counts {counts}: the batch must divide the examples, the bound be at "
            "least 1 and the counts be finite"
        )
    steps = examples // batch
    found = itertools.islice(
        (
            labels
            for multiset in _multisets(counts, examples)
            for labels in _assignments(multiset, batch, steps)
        ),
        most,
    )
    there = math.comb(len(counts) + batch - 1, batch) ** steps
    return LabelCandidates(np.array([*found], np.int32), there)


def _multisets(counts: np.ndarray, examples: int) -> Iterator[tuple[int, ...]]:
    """Gives how often each label is there, from the nearest to `counts` on."""
    first = np.zeros(len(counts), int)
    for _ in range(examples):  # the label that is most short of what is said
        first[np.argmax(counts - first)] += 1
    start = tuple(first.tolist())
    queue, seen = [(float(np.sum((first - counts) ** 2)), start)], {start}
    while queue:
        far, whole = heapq.heappop(queue)
        yield whole
        short = np.array(whole) - counts
        for less in np.flatnonzero(whole):
            for more in range(len(whole)):
                other = list(whole)
                other[less] -= 1
                other[more] += 1
                if tuple(other) not in seen:
                    seen.add(tuple(other))
                    change = 2 - 2 * short[less] + 2 * short[more]
                    heapq.heappush(queue, (far + float(change), tuple(other)))


def _assignments(
    whole: tuple[int, ...], batch: int, steps: int
) -> Iterator[tuple[int, ...]]:
    """Gives the sequences of one multiset, sorted within each batch."""
    names = np.flatnonzero(whole)
    present = tuple(whole[name] for name in names)
    for batches in _shared_out(present, batch, steps):
        labels = (np.repeat(names, taken) for taken in batches)
        yield tuple(np.concatenate([*labels]).tolist())


def _shared_out(
    present: tuple[int, ...], batch: int, steps: int
) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Gives how often each label is in each batch, in every way."""
    if steps == 0:
        yield ()
        return
    for taken in _taken(present, batch):
        left = tuple(a - b for a, b in zip(present, taken, strict=True))
        for rest in _shared_out(left, batch, steps - 1):
            yield (taken, *rest)


def _taken(whole: tuple[int, ...], count: int) -> Iterator[tuple[int, ...]]:
    """Gives every way to take `count` of a multiset."""
    if len(whole) == 1:
        if count <= whole[0]:
            yield (count,)
        return
    for first in range(min(whole[0], count), -1, -1):
        if sum(whole[1:]) >= count - first:
            for rest in _taken(whole[1:], count - first):
                yield (first, *rest)


def losses_of(
    attack: Attack, labels: Array, classes: int, rng: Rng, view: View, chunk: int
) -> Array:
    """Runs an attack under each of some label sequences, all from the same start.

    Args:
      attack: on a setting that has its labels given.
      labels: [C, n].
      classes: Kc.
      rng: of the attack.
      view: whose targets are replaced.
      chunk: sequences side by side; memory grows with it, and not with C.

    Returns:
      The attack's own loss [C]; infinite where it is not finite.
    """

    def one(row: Array) -> Array:
        loss = attack(rng, view._replace(targets=targets_of(row, classes))).loss
        return infinite_if_broken(loss)

    return jax.lax.map(one, jnp.asarray(labels), batch_size=chunk)
