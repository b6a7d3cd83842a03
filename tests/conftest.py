"""Strict settings for all tests."""

import gc
import os
from pathlib import Path

# Two host devices, before JAX wakes up: sharded layouts are tested for real.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")

import jax  # noqa: E402
import pytest  # noqa: E402

from kljax.parallel import victim_axis  # noqa: E402

MAPS = 25_000
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")


def pytest_collection_modifyitems(items):
    """Refuses names of tests that differ between the processes of one run."""
    for item in items:
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(f"an address stands in the name {item.nodeid}")


@pytest.fixture(autouse=True, scope="module")
def few_memory_maps():
    """Forgets what is compiled before Linux refuses more maps (65,530 by default).

    Each program on a CPU has hundreds; the process would end with a segmentation
    fault within the XLA of whichever test comes next.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MAPS:
        victim_axis.forget_programs()
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def rng():
    """One random key; tests fold in what they need."""
    return jax.random.key(20230503)


@pytest.fixture
def nothing_runs(monkeypatch):
    """Lets no study begin: whatever is refused is refused before."""
    from kljax.studies import leakage

    def begun(*args, **kwargs):
        raise AssertionError("the study has begun")

    monkeypatch.setattr(leakage, "compile_victims", begun)
