"""Label sequences that are tried: which, in which order, and what their losses are."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kljax.attacks import Reconstruction
from kljax.attacks.labels.candidates import label_candidates, losses_of
from kljax.threat import View


def canonical(row, batch):
    return tuple(
        tuple(sorted(row[at : at + batch])) for at in range(0, len(row), batch)
    )


@pytest.mark.parametrize(("examples", "batch"), [(4, 2), (3, 1), (3, 3), (2, 2)])
def test_without_a_bound_every_sequence_comes_once(examples, batch):
    counts = np.array([1.3, 0.2, 1.5])
    found = label_candidates(counts, examples, batch, 10**6)
    rows = [canonical(row.tolist(), batch) for row in found.labels]
    slow = {
        canonical(row, batch) for row in itertools.product(range(3), repeat=examples)
    }
    assert len(rows) == len(set(rows)) == found.there and set(rows) == slow

    def far(row):
        return np.sum((np.bincount(row, minlength=3) - counts) ** 2)

    assert far(found.labels[0]) == pytest.approx(min(map(far, found.labels)))
    together = [tuple(np.bincount(row, minlength=3)) for row in found.labels]
    assert len([*itertools.groupby(together)]) == len(set(together))


def test_a_bound_keeps_the_nearest_and_many_classes_cost_little():
    counts = np.zeros(1000)
    counts[[3, 7, 500]] = 30.1, 1.2, 0.9
    found = label_candidates(counts, 32, 8, 5)
    assert found.labels.shape == (5, 32) and found.there > 1e50
    assert (np.bincount(found.labels[0])[[3, 7, 500]] == [30, 1, 1]).all()


def test_what_cannot_be_listed_is_refused():
    for counts, batch, most in ((np.ones(3), 2, 5), (np.ones(3), 1, 0)):
        with pytest.raises(ValueError, match="must divide"):
            label_candidates(counts, 3, batch, most)
    with pytest.raises(ValueError, match="be finite"):
        label_candidates([np.nan, 1.0], 2, 1, 4)


def test_losses_are_those_of_each_sequence_alone():
    def attack(rng, view):
        first, second = jnp.argmax(view.targets, axis=-1)
        loss = jnp.where(first == 2, jnp.nan, first + 10.0 * second)
        return Reconstruction(None, None, loss, None)

    view = View(None, None, None, None, None, None, None, None)
    rows = np.array([[0, 1], [1, 0], [2, 2], [1, 1]])
    found = losses_of(attack, rows, 3, jax.random.key(0), view, 2)
    np.testing.assert_array_equal(found, [10.0, 1.0, np.inf, 11.0])
