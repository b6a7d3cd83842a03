"""Defences that act before a gradient is sent: on inputs, and on single examples."""

import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_studies import scored, study, tiny
from toys import (
    CLASSES,
    IMAGE_SHAPE,
    quick_jit,
    random_images,
    random_private,
    random_weights,
    toy_model,
)

from kljax.attacks.presets import PRESETS
from kljax.core.types import Public
from kljax.defences import (
    Context,
    Defence,
    at_update,
    chain,
    example_clipping,
    gaussian_noise,
    none,
    norm_clipping,
    obscure_inputs,
)
from kljax.defences.arms import check_upload, parse_arm, unplaced_sites
from kljax.federated.clients import Batches, local_training, local_update, one_step
from kljax.models.losses import cross_entropy
from kljax.studies.builder.study import build_study
from kljax.studies.sweeps.legality import is_legal

IMAGES = random_images(3, *IMAGE_SHAPE)
TARGETS = np.eye(CLASSES, dtype=np.float32)[[1, 0, 2]]
RNG = jax.random.key(5)


def darken(factor):
    """A defence that trains on darker images."""

    def inputs(rng, context):
        return factor * context.inputs, context.targets

    return Defence(inputs=inputs)


def step(defence, images=IMAGES, targets=TARGETS):
    params, stats = random_weights(toy_model())
    run = one_step(toy_model(), cross_entropy, defence, train=False)
    private = random_private()
    return quick_jit(run)(RNG, Public(params), stats, private, images, targets)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


# --- inputs --------------------------------------------------------------------------


def test_what_is_sent_is_the_gradient_of_what_was_trained_on():
    update = step(darken(0.5))
    np.testing.assert_allclose(
        flat(update.sent), flat(step(none(), 0.5 * IMAGES).sent), rtol=1e-6
    )
    np.testing.assert_array_equal(update.inputs, IMAGES)
    np.testing.assert_allclose(update.substitute, 0.5 * IMAGES)
    assert step(none()).substitute is None
    twice = step(chain(darken(0.5), gaussian_noise(0.0), darken(0.5)))
    np.testing.assert_allclose(twice.substitute, 0.25 * IMAGES)


def test_local_steps_train_on_it_too():
    params, stats = random_weights(toy_model())
    labels = np.arange(4).reshape(2, 2) % CLASSES

    def delta(defence, images):
        training = local_training(toy_model(), cross_entropy, defence, optax.sgd(0.1))
        state = training.init(Public(params), random_private())
        batches = Batches(images, labels, np.ones(2, bool))
        given = RNG, np.int32(0), Public(params), stats, state, batches
        return flat(quick_jit(training.run)(*given)[0].delta)

    images = random_images(2, 2, *IMAGE_SHAPE)
    there = delta(darken(0.5), images)
    np.testing.assert_allclose(there, delta(none(), 0.5 * images), rtol=1e-5)
    assert np.max(np.abs(there - delta(none(), images))) > 1e-4


def test_more_may_be_trained_on_than_the_batch():
    def add_dark(rng, context):
        images = jnp.concatenate([context.inputs, 0.5 * context.inputs])
        return images, jnp.concatenate([context.targets] * 2)

    update = step(Defence(inputs=add_dark))
    both = np.concatenate([IMAGES, 0.5 * IMAGES])
    wanted = step(none(), both, np.concatenate([TARGETS] * 2))
    np.testing.assert_allclose(flat(update.sent), flat(wanted.sent), rtol=1e-6)
    assert update.substitute.shape == both.shape and update.targets.shape[0] == 3
    # The share that is right in local steps is that of the batch.
    params, stats = random_weights(toy_model())
    training = local_training(
        toy_model(), cross_entropy, Defence(inputs=add_dark), optax.sgd(0.1)
    )
    state = training.init(Public(params), random_private())
    batches = Batches(IMAGES[None], np.array([[1, 0, 2]]), np.ones(1, bool))
    given = RNG, np.int32(0), Public(params), stats, state, batches
    right = quick_jit(training.run)(*given)[2].accuracy
    logits = toy_model().apply(params, stats, both, train=True).logits[:3]
    assert right == pytest.approx(np.mean(np.argmax(logits, -1) == np.array([1, 0, 2])))


def test_obscured_inputs_are_far_away_and_have_a_like_gradient():
    wanted = flat(step(none()).sent)

    def cosine(update):
        sent = flat(update.sent)
        return sent @ wanted / np.linalg.norm(sent) / np.linalg.norm(wanted)

    def distance(update):
        return np.sqrt(np.mean((update.substitute - IMAGES) ** 2))

    noise, near, far = (
        step(obscure_inputs(steps, 0.05, weight))
        for steps, weight in ((0, 0.0), (200, 0.0), (200, 1.0))
    )
    assert cosine(near) > 0.999 and cosine(near) > cosine(noise)
    assert distance(far) > distance(near) and distance(far) > 0.3
    for update in (noise, near, far):
        assert np.all((update.substitute >= 0) & (update.substitute <= 1))
    # From the random key of the step alone.
    again = step(obscure_inputs(200, 0.05, 1.0))
    np.testing.assert_array_equal(again.substitute, far.substitute)


@pytest.mark.slow
def test_a_reconstruction_is_held_against_both():
    arms = ("none", "obscured-inputs=20,0.1,1")
    result = study(arms=arms, steps=300, victims=2)
    rows = {a: [r for r in scored(result) if r["arm"] == a] for a in arms}
    assert all(row["ssim_substitute"] is None for row in rows["none"])
    substitutes = result.arms[1].attacked.substitute
    assert substitutes.shape == result.victims.inputs.shape
    found = result.arms[1].attacked.reconstruction.inputs
    for row, guess, there in zip(rows[arms[1]], found, substitutes, strict=True):
        error = np.mean((np.clip(guess, 0, 1) - there) ** 2)
        assert row["psnr_substitute"] == pytest.approx(-10 * np.log10(error), abs=0.01)
        # What was trained on is found; it is not the private image.
        assert row["ssim_substitute"] > 0.9 > row["ssim"]


def context_of(images):
    """A context whose client is a network of one dense layer."""
    kernel = random_images(*IMAGE_SHAPE, CLASSES).reshape(-1, CLASSES) - 0.5

    def gradient(images, targets):
        def loss(kernel):
            flattened = images.reshape(len(images), -1)
            return cross_entropy(jnp.tanh(flattened @ kernel), targets)

        return UnreleasedGradient(jax.grad(loss)(jnp.asarray(kernel)))

    return Context(None, None, images, TARGETS[:1], gradient)


class UnreleasedGradient(NamedTuple):
    public: jax.Array


@pytest.mark.parametrize("steps", (0, 3, 20))
def test_who_knows_the_defence_and_its_draws_makes_the_same_substitute(steps):
    defence, context = obscure_inputs(steps, 0.05, 0.5), context_of(IMAGES[:1])
    made, targets = quick_jit(lambda: defence.inputs(RNG, context))()
    simulated, same = quick_jit(lambda: defence.simulate_inputs(RNG, context))()
    np.testing.assert_allclose(simulated, made, atol=1e-4)
    np.testing.assert_array_equal(same, targets)
    assert made.shape == (1, *IMAGE_SHAPE)


def test_a_simulated_substitute_has_the_derivative_of_differences():
    defence = obscure_inputs(10, 0.05, 0.5)
    along = jnp.asarray(random_images(1, *IMAGE_SHAPE)) - 0.5

    def brightness(size):
        context = context_of(IMAGES[:1] + size * along)
        made, _ = defence.simulate_inputs(RNG, context)
        return jnp.sum(made * along)

    slope = quick_jit(jax.grad(brightness))(0.0)
    value, width = quick_jit(brightness), 1e-2
    wanted = (value(width) - value(-width)) / (2 * width)
    assert abs(wanted) > 1e-3
    assert float(slope) == pytest.approx(float(wanted), rel=0.05)


@pytest.mark.slow
def test_who_simulates_inputs_looks_for_what_is_behind_them():
    arm = "obscured-inputs=3,0.1,0.5"
    arms = (arm, f"{arm}/simulate")
    result = study(arms=arms, steps=3, victims=1)
    unaware, knowing = (
        next(row for row in scored(result) if row["arm"] == name) for name in arms
    )
    assert np.isfinite(knowing["matching_loss"])
    # Another replay of the truth, and the very same upload.
    truths = [row["matching_loss_at_truth"] for row in (unaware, knowing)]
    assert truths[0] != truths[1]
    sent = [arm.attacked.substitute for arm in result.arms]
    np.testing.assert_array_equal(*sent)


@pytest.mark.parametrize(
    ("arm", "message"),
    (
        ("obscured-inputs=65/simulate", "cannot be simulated here.*drop '/simulate'"),
        ("obscured-inputs/undo", "cannot be undone"),
        ("none/simulate", "changes nothing that is sent"),
    ),
)
def test_what_nobody_can_simulate_is_refused(arm, message):
    with pytest.raises(ValueError, match=message):
        parse_arm(arm, unplaced_sites(), {})


CLOSED_FORMS = [
    name
    for name, row in PRESETS.items()
    if row.objective is None and row.learn is None and "image" in row.inputs
]


@pytest.mark.parametrize("attack", CLOSED_FORMS)
def test_a_closed_form_simulates_no_inputs(attack):
    arm = "obscured-inputs=3,0.1,0.5"
    knowing = tiny(arms=(f"{arm}/simulate",), attack=attack)
    for check in (build_study, is_legal):
        with pytest.raises(
            ValueError, match=f"/simulate': attack '{re.escape(attack)}'"
        ):
            check(knowing)
    assert is_legal(tiny(arms=(arm,), attack=attack))


def test_inputs_of_local_steps_are_not_simulated():
    arm = parse_arm("obscured-inputs/simulate", unplaced_sites(), {})
    with pytest.raises(ValueError, match="obscured-inputs/simulate'.*'gradient'"):
        check_upload(arm, "update")
    check_upload(arm, "gradient")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps must be finite and >= 0, got -1"),
        ({"steps": float("inf")}, "steps must be finite and >= 0, got inf"),
        ({"rate": float("inf")}, "rate must be finite and > 0, got inf"),
        ({"rate": 0}, "rate must be finite and > 0, got 0"),
        ({"weight": float("nan")}, "weight must be finite and >= 0, got nan"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        obscure_inputs(**options)


# --- each example --------------------------------------------------------------------


def test_examples_are_clipped_one_by_one_before_the_mean():
    each = [step(none(), IMAGES[n : n + 1], TARGETS[n : n + 1]).sent for n in range(3)]
    lengths = np.array([np.linalg.norm(flat(grads)) for grads in each])
    bound = float(np.median(lengths))  # shortens one, and leaves one alone
    factors = np.minimum(1, bound / lengths)
    wanted = sum(f * flat(grads) for f, grads in zip(factors, each, strict=True)) / 3
    update = step(example_clipping(bound))
    np.testing.assert_allclose(flat(update.sent), wanted, rtol=1e-4, atol=1e-6)
    # The mean shortened as a whole is another.
    whole = flat(step(norm_clipping(float(np.linalg.norm(wanted)))).sent)
    assert np.max(np.abs(whole - wanted)) > 1e-3
    # And with a wide bound it is the plain mean, lock gradients and all.
    wide, plain = step(example_clipping(1e6)), step(none())
    for a, b in ((wide.sent, plain.sent), (wide.lock_grads, plain.lock_grads)):
        np.testing.assert_allclose(flat(a), flat(b), rtol=1e-4, atol=1e-6)
    # Before release nothing is clipped.
    before = flat(update.before_release)
    np.testing.assert_allclose(before, flat(plain.sent), rtol=1e-4, atol=1e-6)


def test_before_release_no_example_of_a_local_step_is_clipped():
    params, stats = random_weights(toy_model())
    labels = np.argmax(TARGETS, axis=-1)

    def run(defence):
        training = local_update(
            toy_model(), cross_entropy, defence, optax.sgd(0.1), steps=2, batch=3
        )
        received = Public(params)
        state = training.init(received, random_private())
        return quick_jit(training.run)(
            RNG, jnp.zeros((), int), received, stats, state, IMAGES, labels
        )

    # A change of single examples that shortens none has the same norm statistics.
    clipped, plain = run(example_clipping(0.01)), run(example_clipping(np.inf))
    before, whole = flat(clipped.before_release), flat(plain.sent)
    np.testing.assert_allclose(before, whole, rtol=1e-4, atol=1e-6)
    assert np.linalg.norm(flat(clipped.sent)) < np.linalg.norm(whole) / 2


@pytest.mark.slow
def test_of_one_example_both_clippings_have_the_same_floor():
    arms = [
        f"{kind}-clipping=0.01+gaussian-noise=0.001" for kind in ("norm", "example")
    ]
    rows = scored(study(victims=1, arms=tuple(arms)))
    whole, each = ([row for row in rows if row["arm"] == arm][0] for arm in arms)
    assert whole["replay_is_exact"] is each["replay_is_exact"] is True
    floors = [row["matching_loss_floor"] for row in (whole, each)]
    assert floors[1] == pytest.approx(floors[0], rel=1e-4) and floors[0] > 1e-3


def test_changes_of_single_examples_follow_in_order():
    halve = functools.partial(jax.tree.map, lambda g: g / 2)
    half = Defence(per_example=lambda rng, grads: halve(grads))
    grads = Public({"w": jnp.array([3.0, 4.0])})
    clipped_last = chain(half, gaussian_noise(0.0), example_clipping(2.0))
    clipped_first = chain(example_clipping(2.0), half)
    for defence, length in ((clipped_last, 2.0), (clipped_first, 1.0)):
        sent = defence.per_example(RNG, grads).model["w"]
        assert np.linalg.norm(sent) == pytest.approx(length, rel=1e-6)
        # Nobody simulates the half.
        assert defence.simulate_example is None
    with pytest.raises(ValueError, match="only what changes each gradient"):
        at_update(example_clipping(1.0))


def test_every_example_has_a_random_key_of_its_own():
    def per_example(rng, grads):
        leaves, tree = jax.tree.flatten(grads)
        rngs = jax.random.split(rng, len(leaves))
        drawn = [
            jax.random.normal(own, g.shape) for own, g in zip(rngs, leaves, strict=True)
        ]
        return jax.tree.unflatten(tree, drawn)

    first, second = Defence(per_example=per_example), Defence(per_example=per_example)
    many = 64
    images = jnp.repeat(IMAGES[:1], many, axis=0)
    targets = jnp.repeat(TARGETS[:1], many, axis=0)
    # The mean of draws that differ; were they one, it would have the spread of one.
    for defence in (first, chain(second, first)):
        sent = flat(step(defence, images, targets).sent)
        assert np.std(sent) == pytest.approx(many**-0.5, rel=0.3)
    # Two members of a chain draw apart.
    alone = second.per_example(RNG, Public({"w": jnp.zeros(9)}))
    chained = chain(second, Defence(per_example=lambda rng, grads: grads), first)
    both = chained.per_example(RNG, Public({"w": jnp.zeros(9)}))
    assert np.all(flat(alone) != flat(both))


def test_a_context_says_what_is_trained_on():
    seen = {}

    def release(rng, state, grads, context: Context):
        seen["images"] = context.inputs
        return grads, state

    run = one_step(
        toy_model(),
        cross_entropy,
        chain(darken(0.5), Defence(release=release)),
        train=False,
    )
    params, stats = random_weights(toy_model())
    run(RNG, Public(params), stats, random_private(), IMAGES, TARGETS)
    np.testing.assert_allclose(seen["images"], 0.5 * IMAGES)
