"""Sizes: what surely does not fit is refused before it is asked for, with numbers."""

import dataclasses

import jax
import numpy as np
import pytest
from studies import TINY, tiny

from kljax import data
from kljax.core import memory
from kljax.data.catalogue import SIZES
from kljax.parallel import Layout
from kljax.studies import leakage, training
from kljax.studies.builder import run_setup, sizes
from kljax.studies.config import LeakConfig, TrainConfig

ABSURD = {
    "image_size": ({"image_size": 100_000}, "image_size"),
    "restarts": ({"restarts": 10**6, "image_size": 32}, "restarts"),
    "private_key_size": (
        {"private_key_size": 10**9, "arms": ("keylock/known",), "sites": ("layers/0",)},
        "private_key_size or the number of sites",
    ),
    "examples": (
        {"examples": 10**8, "victims": 4, "data": "outside_package:endless"},
        "image_size or examples|victims, examples or image_size",
    ),
    "victims": (
        {"victims": 10**9, "data": "outside_package:endless"},
        "victims, examples or image_size",
    ),
}


@pytest.mark.parametrize("name", ABSURD)
def test_an_absurd_study_is_refused_with_the_option_to_lower(
    name, nothing_runs, monkeypatch
):
    monkeypatch.setattr(memory, "machine_memory", lambda: 2**33)
    monkeypatch.setattr(sizes, "machine_memory", lambda: 2**33)
    changes, lower = ABSURD[name]
    match = rf"would take at least .*[GTPE]iB.* there are 8.0 GiB: lower .*({lower})"
    with pytest.raises(ValueError, match=match):
        leakage.leak(LeakConfig(**TINY | changes))


TRAINING = {
    "model": "dense",
    "image_size": 8,
    "arms": ("keylock",),
    "sites": ("layers/0",),
    "clients": 2,
    "batch": 4,
    "layout": Layout("loop", 1),
}


@pytest.mark.parametrize(
    ("changes", "lower"),
    [
        ({"private_key_size": 10**9}, "clients, private_key_size"),
        ({"local_epochs": 10**7}, "local_epochs, local_steps"),
        ({"batch": 2**30}, "batch"),
    ],
)
def test_an_absurd_training_is_refused_with_the_option_to_lower(
    changes, lower, tmp_path
):
    with pytest.raises(ValueError, match=f"at least .*: lower .*{lower}"):
        training.train(TrainConfig(**TRAINING | changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_estimate_of_an_attack_is_what_must_be_there(monkeypatch):
    """Worked out by hand: 192-64-10 weights, an 8x8x3 image, a private key of 16."""
    asked = []
    monkeypatch.setattr(
        sizes, "check_fits", lambda needed, what, *_: asked.append((needed, what))
    )
    config = tiny(arms=("keylock/known",), sites=("layers/0",), restarts=5)
    (job,) = leakage.prepare(config).jobs
    network = 4 * (192 * 64 + 64 + 64 * 10 + 10)
    lock = 4 * (16 + 2 * (16 * 64 + 64))
    image = 4 * 8 * 8 * 3
    each = network + lock + image + 5 * (2 * image + network)
    assert asked[0] == (each, "1 victim of arm 'keylock/known'")
    assert asked[1][0] == 3 * image * 2
    asked.clear()
    sizes.check_attack(
        config,
        job.staged.arm,
        job.staged.model,
        (8, 8, 3),
        searched=False,
        layout=Layout("sharded", 8),
    )
    block = -(-3 // jax.local_device_count()) * jax.local_device_count()
    assert asked[0][0] == block * (network + lock + image)
    # All victims of a run are one client, and have one lock.
    asked.clear()
    captured = dataclasses.replace(config, from_run="run")
    sizes.check_attack(
        captured, job.staged.arm, job.staged.model, (8, 8, 3), searched=False
    )
    assert asked[0][0] == network + image


def test_a_rule_that_gathers_needs_all_uploads_at_one_time(monkeypatch):
    asked = []
    monkeypatch.setattr(
        sizes, "check_fits", lambda needed, what, *_: asked.append((needed, what))
    )
    network = 4 * (192 * 64 + 64 + 64 * 10 + 10)
    told = (3 * network, "the uploads of 3 clients, which median has side by side,")
    options = TRAINING | {"arms": ("none",), "clients": 5, "cohort": 3}
    for aggregator in ("median", "mean"):
        asked.clear()
        config = TrainConfig(**options, aggregator=aggregator)
        sizes.check_training(run_setup.prepare(config))
        assert (told in asked) == (aggregator == "median")


def test_a_size_is_counted_over_all_leaves():
    tree = {"a": np.zeros((2, 3), np.float32), "b": [np.zeros(5, np.uint8), ()]}
    assert sizes.nbytes(tree) == 24 + 5
    assert sizes.nbytes(jax.eval_shape(lambda: jax.numpy.zeros((4, 4)))) == 64


def test_what_fits_is_let_through():
    memory.check_fits(2**20, "a thing", "it", have=2**20)
    with pytest.raises(
        ValueError, match="a thing would take at least 1.0 MiB .* 1023.0 KiB"
    ):
        memory.check_fits(2**20, "a thing", "it", have=1023 * 2**10)
    assert memory.written(17) == "17 B" and memory.written(2**80).endswith("EiB")
    assert memory.machine_memory() > 2**28


@pytest.mark.parametrize("name", SIZES)
def test_the_sizes_of_embedded_datasets_are_theirs(name):
    assert len(data.load(name, shape=(8, 8, 3))) == SIZES[name]
