"""Devices without a victim of their own: they share another's work, not its results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kljax.core.spare_devices import deal_out
from kljax.parallel import Layout, map_victims

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
