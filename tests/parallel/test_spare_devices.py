"""Devices without a victim of their own: they share another's work, not its results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kljax.attacks.untrained import judge_each
from kljax.core.spare_devices import ROUND, deal_out
from kljax.parallel import Layout, compile_victims, hold_programs, map_victims

COUNT = 7  # which two devices do not divide


def dealt(counts):
    """Makes a victim's function; notes how many values a device is asked for."""

    def fn(offset):
        def compute(indices):
            counts.append(len(indices))
            return jnp.sin(offset + indices.astype(jnp.float32))

        values = deal_out(compute, COUNT)
        # What depends on them is the same on all devices of a victim.
        return {"values": values, "least": jnp.argmin(values)}

    return fn


@pytest.mark.parametrize("kind", ["sharded", "sharded_loop"])
@pytest.mark.parametrize(("victims", "share"), [(1, 4), (2, 7), (3, 7)])
def test_what_is_dealt_out_comes_back_in_order(kind, victims, share):
    assert jax.local_device_count() == 2
    counts, offsets = [], np.arange(victims, dtype=np.float32)
    found, _ = map_victims(dealt(counts), Layout(kind, 2))(offsets)
    assert set(counts) == {share}
    expected = np.sin(offsets[:, None] + np.arange(COUNT))
    np.testing.assert_allclose(found["values"], expected, atol=1e-6)
    np.testing.assert_array_equal(found["least"], expected.argmin(axis=1))


def test_one_device_computes_everything_in_one_call():
    counts = []
    found = dealt(counts)(np.float32(0.5))
    assert counts == [COUNT] and found["values"].shape == (COUNT,)


def test_a_lone_victim_is_computed_once_for_all_its_devices():
    """A block of one row: its input is on both devices, its result is one row."""
    shapes = []

    def fn(x, factor):
        shapes.append(x.shape)
        return factor * x

    mapped = map_victims(fn, Layout("sharded", 4), shared=np.float32(3.0))
    found, timing = mapped(np.ones((1, 5), np.float32))
    np.testing.assert_array_equal(found, np.full((1, 5), 3.0))
    assert timing.compilations == 1 and set(shapes) == {(5,)}


@pytest.mark.parametrize("count", [1, 2, ROUND, 2 * ROUND + 1, 5 * ROUND])
def test_devices_meet_after_a_few_values(count):
    """One that is slow is waited for after `ROUND` of them, and not after its share."""
    asked = []

    def fn(offset):
        def compute(indices):
            asked.append(len(indices))
            return jnp.stack([offset + indices, offset - indices], axis=1)

        return deal_out(compute, count)

    found, _ = map_victims(fn, Layout("sharded", 2))(np.ones(1, np.float32))
    expected = np.stack([1.0 + np.arange(count), 1.0 - np.arange(count)], axis=1)
    np.testing.assert_array_equal(found[0], expected)
    assert max(asked) <= ROUND


@pytest.mark.slow
@pytest.mark.parametrize("side_by_side", [1, 3])
def test_a_lone_victim_has_the_results_that_it_has_among_others(side_by_side):
    """Dealt to devices or not, compiled before or not, and under restarts."""
    candidates = ROUND + 3

    def fn(number, offset):
        def one_restart(rng):
            def judged(index):
                drawn = jax.random.normal(jax.random.fold_in(rng, index), (3,))
                return jnp.sum((drawn - offset) ** 2)

            values = judge_each(judged, candidates, side_by_side)
            return values, jnp.argmin(values)

        rngs = jax.random.split(jax.random.key(number.astype(jnp.int32)), 2)
        return jax.vmap(one_restart)(rngs)

    def draw(number):
        return 2.0 * number

    def run(victims, **options):
        numbers = np.arange(victims, dtype=np.float32)
        take = map_victims(
            lambda offset, number: fn(number, offset),
            Layout("sharded_loop", 2),
            draws=[draw],
            **options,
        )
        return take(numbers)[0]

    lone, several, full = run(1), run(3), run(1, full=True)
    for a, b, c in zip(*map(jax.tree.leaves, (lone, several, full)), strict=True):
        np.testing.assert_allclose(a[0], b[0], rtol=1e-6)
        np.testing.assert_allclose(a[0], c[0], rtol=1e-6)


def test_what_a_lone_victim_needs_is_compiled_before():
    call = dealt([]), (), (np.zeros(1, np.float32),)
    with hold_programs():
        (before,) = compile_victims([call], Layout("sharded", 2))
        _, timing = map_victims(call[0], Layout("sharded", 2))(*call[2])
    assert before.compilations == 1 and timing.compilations == 0
