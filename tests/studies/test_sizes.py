"""Sizes: what surely does not fit is refused before it is asked for, with numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_studies import TINY, tiny

from kljax import data
from kljax.attacks.presets import PRESETS
from kljax.core import memory
from kljax.core.generator import Generator
from kljax.data.catalogue import SIZES
from kljax.parallel import Layout
from kljax.studies import leakage, training
from kljax.studies.builder import run_setup, sizes
from kljax.studies.builder.study import build_study
from kljax.studies.config import LeakConfig, TrainConfig

ABSURD = {
    "image_size": ({"image_size": 100_000}, "image_size"),
    "restarts": ({"restarts": 10**6, "image_size": 32}, "restarts"),
    "observations": ({"observations": 10**9}, "observations or restarts"),
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


@pytest.fixture
def asked(monkeypatch):
    """Lists the bytes that are asked for, and by what."""
    asked = []
    monkeypatch.setattr(
        sizes,
        "check_fits",
        lambda needed, what, lower, *_: asked.append((needed, what, lower)),
    )
    return asked


NETWORK = 4 * (192 * 64 + 64 + 64 * 10 + 10)
IMAGE = 4 * 8 * 8 * 3


def checked(config, *, study=None, layout=None):
    """Checks the only arm of a study, and gives the study."""
    study = study or build_study(config)
    (attack,) = study.attacks
    sizes.check_attack(
        config,
        study.preset,
        study.attacker.generator,
        attack.arm,
        attack.setting.task.model,
        8 * 8 * 3,
        layout,
    )
    return study


def test_the_estimate_of_an_attack_is_what_must_be_there(asked):
    """Worked out by hand: 192-64-10 weights, an 8x8x3 image, a private key of 16."""
    config = tiny(arms=("keylock/known",), sites=("layers/0",), restarts=5)
    study = build_study(config)
    lock = 4 * (16 + 2 * (16 * 64 + 64))
    each = NETWORK + lock + IMAGE + 5 * (2 * IMAGE + NETWORK)
    assert asked[0][:2] == (each, "1 victim of arm 'keylock/known'")
    assert asked[1][0] == 3 * IMAGE * 2
    asked.clear()
    checked(config, study=study, layout=Layout("sharded", 8))
    block = -(-3 // jax.local_device_count()) * jax.local_device_count()
    assert asked[0][0] == block * each
    # All victims of a run are one client, and have one lock.
    asked.clear()
    checked(dataclasses.replace(config, from_run="run"), study=study)
    assert asked[0][0] == each - lock
    # A closed form has no restarts.
    asked.clear()
    checked(config, study=study._replace(preset=PRESETS["rgap"]))
    assert asked[0][0] == NETWORK + lock + IMAGE


def small_generator(latents=6):
    """A generator of one dense layer: its weights are 4 (6 + 10) 192 bytes."""
    weights = {"kernel": np.zeros((latents + 10, 192), np.float32)}

    def decode(weights, z, targets):
        images = jnp.concatenate([z, targets], axis=-1) @ weights["kernel"]
        return jax.nn.sigmoid(images).reshape(-1, 8, 8, 3)

    return Generator(decode, weights, latents, (8, 8, 3), 10)


def many_latents():
    return small_generator(50_000)


def test_a_population_and_a_generator_are_counted(asked):
    """Fifty candidates side by side, and a covariance of six numbers at least."""
    ggl = {"attack": "ggl", "generator": "test_sizes:small_generator"}
    config = tiny(**ggl, optimiser=None, steps=50, restarts=2)
    study = checked(config)
    weights = 4 * 16 * 192
    least = NETWORK + IMAGE + weights + 2 * 50 * (IMAGE + NETWORK)
    covariance = 2 * 4 * 6 * 6
    needed, _, lower = asked[0]
    assert least + covariance <= needed <= least + 20 * covariance
    assert "population" in lower
    # By gradients, there is one candidate.
    asked.clear()
    checked(dataclasses.replace(config, optimiser="adam"), study=study)
    assert asked[0][0] == NETWORK + IMAGE + weights + 2 * (2 * IMAGE + NETWORK)


def test_the_weights_of_an_inserted_module_are_counted(asked):
    """They are trained in public, and a restart has their gradient, too."""
    inserted = tiny(arms=("precode=16,layer=classifier/mean",), restarts=3)
    study = build_study(inserted)
    asked.clear()
    checked(inserted, study=study)
    public = 4 * (64 * 32 + 32 + 16 * 64 + 64)  # in front of the classifier
    parts = NETWORK + public
    assert asked[0][0] == parts + IMAGE + 3 * (2 * IMAGE + parts)


def test_the_uploads_of_inserted_modules_are_gathered(asked):
    options = TRAINING | {"arms": ("precode=16",), "clients": 3, "aggregator": "median"}
    sizes.check_training(run_setup.build_run_setup(TrainConfig(**options)))
    public = 4 * (64 * 32 + 32 + 16 * 64 + 64)
    assert 3 * (NETWORK + public) in [needed for needed, *_ in asked]


def test_a_strategy_of_too_many_latents_is_refused(nothing_runs, monkeypatch):
    monkeypatch.setattr(memory, "machine_memory", lambda: 2**33)
    monkeypatch.setattr(sizes, "machine_memory", lambda: 2**33)
    config = tiny(
        attack="ggl",
        generator="test_sizes:many_latents",
        optimiser=None,
        steps=50,
    )
    with pytest.raises(ValueError, match="GiB.*population or the generator's latents"):
        build_study(config)


@pytest.mark.parametrize("attack", ["matching", "ig-fedavg", "fedavg-inversion"])
def test_every_local_step_is_counted(asked, attack):
    """A client has its batches, and a search goes back through all parameters."""
    study = build_study(tiny(attack=attack, optimiser=None))
    update = {"from_run": "run", "upload": "update", "local_steps": 7, "batch": 2}
    update |= {"examples": 4, "attack": attack, "optimiser": None}
    asked.clear()
    checked(tiny(**update), study=study)
    each = NETWORK + 4 * IMAGE + 7 * 2 * IMAGE + (2 * 4 * IMAGE + NETWORK)
    assert asked[0][0] == each + 7 * NETWORK
    if attack == "fedavg-inversion":
        asked.clear()
        checked(tiny(**update, attack_options=("variant=none",)), study=study)
        assert asked[0][0] == each


def test_an_attack_by_one_gradient_goes_back_through_no_steps(asked):
    study = build_study(tiny(attack="ig-fedavg", optimiser=None))
    update = {"from_run": "run", "upload": "update", "local_steps": 7, "batch": 2}
    update |= {"examples": 4, "attack": "sme", "optimiser": None}
    asked.clear()
    checked(tiny(**update), study=study._replace(preset=PRESETS["sme"]))
    each = NETWORK + 4 * IMAGE + 7 * 2 * IMAGE + (2 * 4 * IMAGE + NETWORK)
    assert asked[0][0] == each


def test_a_rule_that_gathers_needs_all_uploads_at_one_time(asked):
    told = (3 * NETWORK, "the uploads of 3 clients, which median has side by side,")
    options = TRAINING | {"arms": ("none",), "clients": 5, "cohort": 3}
    for aggregator in ("median", "mean"):
        asked.clear()
        config = TrainConfig(**options, aggregator=aggregator)
        sizes.check_training(run_setup.build_run_setup(config))
        assert (told in [one[:2] for one in asked]) == (aggregator == "median")


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


def test_what_a_rule_remembers_is_counted(asked):
    options = TRAINING | {"arms": ("none",), "clients": 3}
    config = TrainConfig(**options, aggregator="foolsgold=7")
    sizes.check_training(run_setup.build_run_setup(config))
    told = (7 * NETWORK, "what foolsgold=7 remembers of 3 clients")
    assert told in [one[:2] for one in asked]
