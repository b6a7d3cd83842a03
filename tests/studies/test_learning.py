"""What an attacker learns before a study: from whom, and with whose draws."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from kljax.attacks.presets import PRESETS
from kljax.attacks.presets.inverters import read_entries
from kljax.studies.builder.learning import (
    draw_distinct,
    make_learning,
    require_disjoint,
)
from kljax.studies.builder.study import build_study
from kljax.studies.config import LeakConfig
from kljax.studies.leakage import leak
from kljax.studies.sweeps.estimate import predict_attack

OPTIONS = ("width=16", "hashed=64", "uploads=8", "learning_rate=1e-2")


def config(**changes):
    given = {
        "model": "dense",
        "attack": "learned",
        "arms": ("keylock/unit",),
        "weights": "shared",
        "image_size": 8,
        "channels": 1,
        "victims": 4,
        "steps": 6,
        "attack_options": OPTIONS,
    }
    return LeakConfig(**(given | changes))


@functools.cache
def study(**changes):
    return build_study(config(**changes))


def uploads_of(made, count=3, public=None):
    """Draws uploads as the attacker simulates them: entries [count, d], images."""
    (attack,) = made.attacks

    def draw_all(setting, draw, rng, **options):
        def one(rng):
            view, images = draw(rng, "training")
            return read_entries(view), images

        return jax.lax.map(one, jax.random.split(rng, count))

    preset = PRESETS["learned"]._replace(learn=draw_all)
    learn = make_learning(
        made.config, preset, attack.arm, attack.setting, attack.client
    )
    source, dials = jax.tree.map(lambda x: x[0], attack.inputs[:2])
    public = public or made.public
    return jax.jit(learn)(source, dials.options, public.inputs, public.labels)


def one_example(made):
    """Leaves the attacker one public example, so that uploads differ by draws alone."""
    public = made.public
    return public._replace(
        inputs={part: x[:1] for part, x in public.inputs.items()},
        labels={part: x[:1] for part, x in public.labels.items()},
    )


def differ(rows):
    return all(
        not np.allclose(a, b, rtol=1e-3) for a, b in itertools.combinations(rows, 2)
    )


@pytest.mark.parametrize("seed", (0, 7))
def test_no_public_example_is_a_victims_or_in_two_parts(seed):
    made = study(seed=seed, victims=20, examples=3)
    parts = made.public.indices
    everything = [made.victims.indices.ravel(), *parts.values()]
    whole = np.concatenate(everything)
    assert len(np.unique(whole)) == len(whole)
    assert len(parts["training"]) > 1200 and len(parts["validation"]) > 100
    np.testing.assert_array_equal(
        made.public.inputs["training"],
        made.task.dataset.fetch(parts["training"])[0],
    )
    # More victims change nothing of it.
    fewer = study(seed=seed, victims=5, examples=3).public.indices
    np.testing.assert_array_equal(fewer["training"], parts["training"])


def test_an_example_that_is_both_is_refused():
    with pytest.raises(ValueError, match="example 7 is public, and a victim's"):
        require_disjoint(np.array([3, 7]), np.array([[7, 1]]))
    with pytest.raises(ValueError, match="learns from 1347 public .* leave 297"):
        build_study(config(victims=1500))


def test_examples_of_a_batch_differ_and_each_pair_is_as_likely():
    rngs = jax.random.split(jax.random.key(0), 1200)
    draw = jax.jit(jax.vmap(lambda rng: draw_distinct(rng, 2, 4)))
    pairs, counts = np.unique(np.asarray(draw(rngs)), axis=0, return_counts=True)
    assert len(pairs) == 12 and (pairs[:, 0] != pairs[:, 1]).all()
    assert counts.min() > 60 and counts.max() < 140  # of 100, 4 deviations


def test_simulated_clients_have_locks_of_their_own():
    made = study()
    entries, images = uploads_of(made, public=one_example(made))
    assert (images == images[:1]).all() and differ(entries)


def test_what_is_known_of_a_lock_is_that_of_the_victims():
    facts = "lock_weights=known", "private_key=known"
    made = study(threat=facts)
    entries, _ = uploads_of(made, public=one_example(made))
    np.testing.assert_allclose(entries[1:], entries[:-1], rtol=1e-4, atol=1e-6)
    # A key alone is drawn anew for each where the weights alone are known.
    made = study(threat=facts[:1])
    assert differ(uploads_of(made, public=one_example(made))[0])


def test_noise_is_drawn_anew_and_published_gates_are_not():
    made = study(arms=("gaussian-noise=0.1",))
    assert differ(uploads_of(made, public=one_example(made))[0])
    made = study(arms=("plaintext-gates-as-lock",))
    entries, _ = uploads_of(made, public=one_example(made))
    np.testing.assert_allclose(entries[1:], entries[:-1], rtol=1e-4, atol=1e-6)


def test_another_dataset_is_learned_from_whole(tmp_path):
    images = np.random.default_rng(0).random((40, 8, 8, 1), np.float32)
    path = tmp_path / "others.npz"
    np.savez(path, images=images, labels=np.arange(40) % 10)
    public = build_study(config(public_data=str(path))).public
    chosen = np.concatenate([*public.indices.values()])
    assert sorted(chosen) == list(range(40)) and len(public.indices["validation"]) == 4
    np.testing.assert_allclose(
        public.inputs["training"], images[public.indices["training"]], atol=1e-6
    )


@functools.cache
def result(**changes):
    return leak(config(**changes))


@pytest.mark.slow
def test_it_is_learned_once_and_said_of_all_victims():
    (arm,) = result().arms
    numbers = arm.attacked.reconstruction.numbers
    for name in ("training_error", "validation_error"):
        assert len(set(numbers[name].tolist())) == 1 and 0 < numbers[name][0] < 0.3
    assert len(result().to_frame().query("arm == 'keylock/unit'")) == 4
    assert arm.attacked.reconstruction.info["validation_errors"].shape == (4, 6)


@pytest.mark.slow
def test_layouts_agree():
    layout = dataclasses.replace(config().layout, chunk=3)
    (one,), (other,) = result().arms, result(layout=layout).arms
    images = [arm.attacked.reconstruction.inputs for arm in (one, other)]
    np.testing.assert_allclose(*images, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "fresh"}, "write weights='shared'"),
        ({"earlier": 1}, "leave earlier and observations out"),
        ({"arms": ("keylock/fixed_mean",)}, "secret='fixed_mean': write 'unit'"),
        ({"arms": ("quantise=2/unaware",)}, "write 'quantise=2'"),
        ({"arms": ("quantise=2/estimate",)}, "write 'quantise=2'"),
        ({"restarts": 2}, "1 restart, got steps=6, restarts=2"),
        ({"public_data": "digits"}, "is the dataset of the victims: leave it out"),
        ({"public_data": "faces"}, "of 2 classes, and 'digits' has .* of 10"),
        (
            {"public_data": "faces", "attack": "dlg", "attack_options": ()},
            "for an attack that learns, and 'dlg' does not",
        ),
        (
            {"optimiser": "adam", "attack_options": ()},
            "by Adam: leave optimiser out",
        ),
    ],
)
def test_what_it_cannot_be_for_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build_study(config(**changes))


def test_its_time_is_not_estimated():
    (attack,) = study().attacks
    with pytest.raises(ValueError, match="what that takes is not estimated"):
        predict_attack(study().config, attack, config().layout, None)
