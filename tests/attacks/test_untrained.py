"""Untrained networks: which is kept of many, and that all are judged in turn."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit, replace_fields, setting, threat
from victims import Case, compiled, ground, update

from kljax.attacks import Candidate, Unknowns, adam
from kljax.attacks.attack import Judge
from kljax.attacks.encoder_decoders import generate
from kljax.attacks.optimisers import sign_adam
from kljax.attacks.presets import PRESETS, deep_image_prior, gi_nas
from kljax.attacks.untrained import (
    Network,
    best_network,
    draw_network,
    judge_each,
    space_of,
    untrained_images,
)
from kljax.core.inputs import images_of
from kljax.defences import none

SPACE = space_of(ground(threat()), channels=8, scales=1)
RNG = jax.random.key(5)
NOISE = np.random.default_rng(1).normal(size=(1, 8, 8, 1)).astype(np.float32)


def brightness(free):
    """A matching loss that needs no victim: the mean of what a network makes."""
    network, offset, _ = free
    return jnp.mean(generate(SPACE, network.architecture, network.weights, NOISE)) + (
        offset
    )


JUDGE = Judge(lambda free: Candidate(free[0], None, None), brightness)


@functools.cache
def first():
    return jax.device_get(quick_jit(lambda rng: draw_network(rng, SPACE))(RNG))


@functools.cache
def searched(candidates, side_by_side=1):
    move = best_network(SPACE, candidates, side_by_side).first
    found = quick_jit(lambda rng, network: move(rng, None, JUDGE, (network, 0.5, ())))(
        RNG, first()
    )
    return jax.device_get(found)


@pytest.mark.slow
def test_the_network_of_the_lowest_loss_is_kept_with_its_weights():
    found, offset, secret = searched(7)
    assert (float(offset), secret) == (0.5, ())
    draw = quick_jit(lambda n: draw_network(jax.random.fold_in(RNG, n), SPACE))
    tried = [first(), *(jax.device_get(draw(n)) for n in range(1, 7))]
    judged = quick_jit(lambda network: brightness((network, 0.5, ())))
    values = [float(judged(network)) for network in tried]
    assert len({round(value, 5) for value in values}) == 7
    best = tried[int(np.argmin(values))]
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), found, best)
    assert np.argmin(values) != 0


def test_a_search_of_one_keeps_what_there_is():
    jax.tree.map(np.testing.assert_array_equal, searched(1)[0], first())


@pytest.mark.parametrize("side_by_side", [2, 3, 50])
def test_chunks_change_nothing(side_by_side):
    """7 is no multiple of 2 or 3, and fewer than 50."""

    def judged(index):
        return jnp.sin(index.astype(jnp.float32))

    alone = judge_each(judged, 7, 1)
    np.testing.assert_allclose(alone, np.sin(np.arange(7)), atol=1e-6)
    np.testing.assert_allclose(judge_each(judged, 7, side_by_side), alone, atol=1e-7)


@pytest.mark.slow
def test_chunks_of_networks_change_nothing():
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-6),
        searched(7, 3)[0],
        searched(7)[0],
    )


def test_memory_does_not_grow_with_candidates():
    """But for one number each."""

    def bytes_of(candidates):
        move = best_network(SPACE, candidates).first
        lowered = quick_jit(
            lambda rng, network: move(rng, None, JUDGE, (network, 0.5, ()))
        ).lower(RNG, first())
        return lowered.compile().memory_analysis().temp_size_in_bytes

    few, many = bytes_of(10), bytes_of(10_010)
    network = sum(leaf.nbytes for leaf in jax.tree.leaves(first()))
    assert network > 8_000  # of ten thousand of which nothing is kept
    assert many - few <= 12 * 10_000


@pytest.mark.parametrize(
    ("numbers", "message"),
    [((0, 1), "candidates=0: a search of no network"), ((5, 0), "side_by_side=0")],
)
def test_a_search_of_nothing_is_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        best_network(SPACE, *numbers)


# --- the unknown ----------------------------------------------------------------------


@pytest.mark.slow
def test_no_descent_changes_an_architecture():
    unknown = untrained_images(ground(threat()), SPACE)
    free, noise = unknown.start(RNG, None)
    for optimiser in (adam(0.1), sign_adam(0.1)):

        def moved(free, optimiser=optimiser):
            def value(free):
                return jnp.sum(unknown.decode(free, noise) ** 2)

            whole = (free, (), ())
            grads = (jax.grad(value)(free), (), ())
            return optimiser.step(whole, optimiser.init(whole), 0.0, grads)[0][0]

        after = quick_jit(moved)(free)
        jax.tree.map(
            np.testing.assert_array_equal, after.architecture, free.architecture
        )
        changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), after, free)
        assert changed.weights


def test_what_is_disturbed_is_rounded_back():
    unknown = untrained_images(ground(threat()), SPACE)
    free, noise = unknown.start(RNG, None)
    near = free._replace(
        architecture=free.architecture._replace(
            **{
                name: getattr(free.architecture, name) + 0.2
                for name in ("skips", "width", "doubling", "convolution", "kernel")
            }
        )
    )
    decode = quick_jit(unknown.decode)
    np.testing.assert_array_equal(decode(near, noise), decode(free, noise))


def test_noise_and_weights_are_drawn_apart_and_fixed():
    fixed = untrained_images(ground(threat(examples=2)), SPACE, SPACE.usual())
    free, noise = fixed.start(RNG, None)
    assert isinstance(free, Network) and free.architecture == ()
    assert noise.shape == (2, 8, 8, 1) and abs(np.std(noise) - 1) < 0.3
    images = quick_jit(fixed.decode)(free, noise)
    assert images.shape == (2, 8, 8, 1) and np.all((images > 0) & (images < 1))
    other, _ = fixed.start(jax.random.key(6), None)
    assert np.mean(other.weights != free.weights) > 0.9  # the rest are norms


# --- the presets ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deep-image-prior", "gi-nas"])
@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((9, 8, 1), {}, "9 x 8 pixels cannot be halved"),
        ((8, 8, 1), {"scales": 4}, "scales=4: .* can be halved 3 times"),
        ((8, 8, 1), {"channels": 6}, "channels=6 must be a multiple of 4"),
        ((8, 8, 1), {"variation": -1.0}, "variation must be >= 0, got -1"),
    ],
)
def test_images_of_other_sides_are_refused(name, shape, options, message):
    here = setting(threat(), none(), inputs=images_of(shape))
    with pytest.raises(ValueError, match=message):
        PRESETS[name].build(here, steps=1, restarts=1, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": 0}, "candidates=0"),
        ({"kernel": 2}, "kernel=2 must be one of 1, 3, 5, 7"),
        ({"narrowest": 256}, "narrowest=256 must be from 8 to channels=128"),
    ],
)
def test_a_search_that_cannot_be_is_refused_when_it_is_made(options, message):
    with pytest.raises(ValueError, match=message):
        gi_nas(ground(threat()), steps=1, restarts=1, **options)


def test_sentences_have_no_untrained_network():
    here = ground(threat())
    other = dataclasses.replace(here.task.inputs, kind="text")
    with pytest.raises(ValueError, match="looks for images, and the inputs are text"):
        deep_image_prior(replace_fields(here, inputs=other), steps=1, restarts=1)


@pytest.mark.slow
def test_a_search_reports_what_it_chose_and_begins_there():
    def build(candidates):
        return Case(
            functools.partial(
                gi_nas, steps=2, restarts=2, candidates=candidates, channels=8
            ),
            examples=2,
        )

    one, many = (compiled(build(n))(update(2)) for n in (1, 30))
    assert many.numbers["proposals"] == 60 and many.numbers["evaluations"] == 4
    assert many.info["architecture"].skips.shape == (2, 2)
    # The first network is among those that are tried.
    assert np.all(many.info["restart_losses"] < one.info["restart_losses"])


def test_unknowns_without_a_report_report_nothing():
    assert Unknowns(*(3 * [untrained_images(ground(threat()), SPACE)]))[0].report
    fixed = untrained_images(ground(threat()), SPACE, SPACE.usual())
    assert fixed.report is None
