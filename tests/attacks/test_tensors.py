"""Which tensors count, by hand; and in which order a network uses them."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from toys import setting, threat

from kljax.attacks import cosine, squared_l2
from kljax.attacks.objectives import l1, norm
from kljax.attacks.tensors import (
    depths_of,
    exponential,
    first,
    largest,
    largest_entries,
    last,
    linear,
    mask,
    weighted,
)
from kljax.core.types import Public
from kljax.defences import none
from kljax.models import from_nnx

# Squared distances 1, 4, 9 and 16; the defence's and the lock's are 100 and 10,000.
OBSERVED = Public({"a": 5.0, "b": 4.0, "c": 0.5, "d": -6.0}, {"gate": 2.0})
SIMULATED = Public({"a": 6.0, "b": 6.0, "c": 3.5, "d": -2.0}, {"gate": 12.0})
DEPTHS = {"a": 2, "b": 0, "c": 3, "d": 1}  # in forward order: b, d, a, c


def distance(objective, weighting, degree=2):
    found = weighted(objective, weighting, degree=degree)
    one = float(found(SIMULATED, OBSERVED))
    with_lock = float(found((SIMULATED, [101.0]), (OBSERVED, [1.0])))
    if objective is SQUARED:
        assert with_lock == pytest.approx(one + 10_000)
    return one


SQUARED = squared_l2()


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        (first(DEPTHS, 2), 4 + 16),
        (first(DEPTHS, 9), 1 + 4 + 9 + 16),
        (last(DEPTHS, 1), 9),
        (largest(2), 16 + 1),
        (largest(1), 16),
        (mask({"a": True, "b": False, "c": True, "d": False}), 1 + 9),
        (linear(DEPTHS), 4 + 0.75 * 16 + 0.5 * 1 + 0.25 * 9),
        (exponential(DEPTHS, 0.5), 4 + 0.5 * 16 + 0.25 * 1 + 0.125 * 9),
        (exponential(DEPTHS), 4 + 16 * np.exp(-1) + np.exp(-2) + 9 * np.exp(-3)),
    ],
)
def test_a_squared_distance_by_hand(weighting, expected):
    # The gate counts in full.
    assert distance(SQUARED, weighting) == pytest.approx(100 + expected, rel=1e-5)


@pytest.mark.parametrize("objective", (norm(), l1()))
def test_unsquared_distances_have_degree_one(objective):
    found = distance(objective, linear(DEPTHS), degree=1)
    expected = 10 + 2 + 0.75 * 4 + 0.5 * 1 + 0.25 * 3
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_cosine_of_the_kept_tensors():
    dot, lengths = 5 * 6 + 2 * 12, (25 + 4) * (36 + 144)
    kept = mask({"a": True, "b": False, "c": False, "d": False})
    expected = 1 - dot / lengths**0.5
    assert distance(cosine(), kept) == pytest.approx(expected, abs=1e-6)


ENTRIES = np.array([[0.1, -5.0, 2.0], [3.0, -0.2, 0.0]], np.float32)


@pytest.mark.parametrize("share", [0.1, 1 / 3, 0.5, 0.9, 1.0])
def test_the_largest_entries_of_each_tensor_by_hand(share):
    """Observed magnitudes choose, and a share of a tensor is rounded up."""
    observed = {"a": ENTRIES, "b": np.float32([1e-6, -2e-6, 0, 0])}
    simulated = {"a": ENTRIES[::-1] + 1, "b": np.float32([7, 1, 2, 3])}
    wanted = 0.0
    for name, tensor in observed.items():
        order = sorted(np.abs(tensor).ravel())[::-1]
        least = order[int(np.ceil(round(share * tensor.size, 3))) - 1]
        for mine, theirs in zip(simulated[name].flat, tensor.flat, strict=True):
            wanted += (mine - theirs) ** 2 if abs(theirs) >= least else 0.0
    for given in (share, jnp.float32(share)):
        found = largest_entries(SQUARED, given)(simulated, observed)
        assert float(found) == pytest.approx(float(wanted), rel=1e-5)


def test_entries_that_are_left_out_change_nothing():
    found = largest_entries(cosine(), 0.5)
    tampered = np.where(np.abs(ENTRIES) < 1, 100.0, ENTRIES)
    assert found([tampered], [ENTRIES]) == pytest.approx(0, abs=1e-6)
    assert cosine()([tampered], [ENTRIES]) > 0.5


def test_a_broken_entry_is_not_overlooked():
    broken = ENTRIES.copy()
    broken[0, 0] = np.nan
    assert np.isnan(largest_entries(SQUARED, 0.1)([ENTRIES], [broken]))


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, np.nan])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\]"):
        largest_entries(SQUARED, share)


def test_what_is_left_out_may_be_broken():
    broken = OBSERVED._replace(model=OBSERVED.model | {"c": jnp.nan})
    assert weighted(SQUARED, first(DEPTHS, 2))(SIMULATED, broken) == 120
    assert np.isnan(weighted(SQUARED, last(DEPTHS, 1))(SIMULATED, broken))


class Backwards(nnx.Module):
    """Layers whose names sort against the order in which they are used."""

    def __init__(self, rngs):
        self.z = nnx.Linear(4, 3, rngs=rngs)
        self.m = nnx.BatchNorm(3, rngs=rngs)
        self.a = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, images):
        return self.a(self.m(self.z(images.reshape(images.shape[0], -1))))


def test_depths_follow_the_forward_pass_not_the_names():
    found = depths_of(setting(threat(), none(), model=from_nnx(Backwards)))
    assert sorted(found, key=found.get) == [
        "z/kernel",
        "z/bias",
        "m/scale",
        "m/bias",
        "a/kernel",
        "a/bias",
    ]


class Idle(nnx.Module):
    """One layer is used twice, and another one never."""

    def __init__(self, rngs):
        self.b, self.a, self.idle, self.c = (
            nnx.Linear(4, 4, rngs=rngs) for _ in range(4)
        )

    def __call__(self, images):
        x = self.c(self.b(images.reshape(images.shape[0], -1)))
        return self.a(self.b(x))


def test_tensors_count_where_they_are_used_first_and_last_where_never():
    found = depths_of(setting(threat(), none(), model=from_nnx(Idle), num_classes=4))
    in_order = [f"{layer}/{part}" for layer in "bca" for part in ("kernel", "bias")]
    assert sorted(found, key=found.get) == [*in_order, "idle/bias", "idle/kernel"]
    assert sorted(found.values()) == [*range(8)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: largest(0), "count must be at least 1, got 0"),
        (lambda: first(DEPTHS, 0), "no tensor is left"),
        (lambda: mask({"a": False}), "no tensor is left"),
        (lambda: exponential(DEPTHS, 0.0), "factor must be positive"),
    ],
)
def test_bad_weightings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
