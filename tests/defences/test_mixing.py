"""MixUp and InstaHide: how a batch is mixed, and what attackers do about it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats
from tiny_studies import scored, study, tiny
from toys import (
    CLASSES,
    IMAGE_SHAPE,
    quick_jit,
    random_images,
    random_weights,
    setting_of,
    toy_model,
)

from kljax import threat
from kljax.attacks import Task
from kljax.attacks.attack import Candidate
from kljax.attacks.secrets import secret_of
from kljax.attacks.simulation import replay
from kljax.core.inputs import images_of
from kljax.core.targets import classes_of
from kljax.core.types import Private, Public
from kljax.defences import (
    Context,
    chain,
    gaussian_noise,
    insta_hide,
    insta_hide_cross,
    mix_up,
    none,
)
from kljax.defences.arms import parse_arm, unplaced_sites
from kljax.defences.mixing import PUBLIC, Mixing
from kljax.federated.clients import Batches, local_training, one_step
from kljax.models.losses import cross_entropy
from kljax.studies.builder.study import build_study

RNG = jax.random.key(3)
IMAGES = random_images(4, *IMAGE_SHAPE)
TARGETS = np.eye(CLASSES, dtype=np.float32)[[1, 0, 2, 1]]
FLAT = random_images(4, 8, 8, 1)  # what photographs can be made of


def draw(defence, examples, rng=RNG):
    return quick_jit(lambda rng: defence.draw_private(rng, Private(), examples).secret)(
        rng
    )


def replaced(defence, mixing, images=IMAGES, targets=TARGETS):
    def inputs(images, targets, mixing):
        context = Context(None, None, images, targets, private=Private(mixing))
        return defence.inputs(RNG, context)

    return quick_jit(inputs)(images, targets, mixing)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def step(defence, images=IMAGES, rng=RNG):
    params, stats_ = random_weights(toy_model())
    run = one_step(toy_model(), cross_entropy, defence, train=False)
    return quick_jit(run)(rng, Public(params), stats_, Private(), images, TARGETS)


def slow_weights(count, upper, private, least, rows):
    generator, kept = np.random.default_rng(5), []
    while len(kept) < rows:
        sizes = [abs(generator.normal()) for _ in range(count)]
        weights = [size / sum(sizes) for size in sizes]
        if max(weights) <= upper and sum(weights[:private]) >= least:
            kept.append(weights)
    return np.array(kept)


@pytest.mark.parametrize(
    ("defence", "slow"),
    (
        (insta_hide(3, 0.5), (3, 0.5, 3, 0.0)),
        (insta_hide_cross(6, 0.4, 0.5), (6, 0.4, 2, 0.5)),
    ),
)
def test_weights_have_the_law_of_a_slow_rejection(defence, slow):
    rows = 1500
    matrix = np.asarray(draw(defence, rows).matrix)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-5)
    wanted, bare = slow_weights(*slow, rows), slow_weights(slow[0], 1, 1, 0, rows)
    # A partner may be met twice, rarely in so large a batch; public ones more often.
    found = {"largest": matrix.max(axis=1), "own": np.diag(matrix[:, :rows])}
    laws = {"largest": lambda w: w.max(axis=1), "own": lambda w: w[:, 0]}
    if slow[2] == 2:
        found = {"private": matrix[:, :rows].sum(axis=1), "own": found["own"]}
        laws["private"] = lambda w: w[:, :2].sum(axis=1)
    for name, values in found.items():
        assert stats.ks_2samp(values, laws[name](wanted)).pvalue > 0.01, name
        assert stats.ks_2samp(values, laws[name](bare)).pvalue < 1e-6, name


def test_bounds_that_are_data_and_keep_nothing_end():
    """One program: at the first bounds weights are drawn, at the second none can be."""

    @jax.jit
    def weights(upper):
        return insta_hide(3, upper).draw_private(RNG, Private(), 4).secret.matrix

    found, nothing = weights(0.6), weights(0.3)
    np.testing.assert_allclose(np.sum(found, axis=1), 1, rtol=1e-5)
    assert np.all(np.isnan(nothing).any(axis=1))


@pytest.mark.parametrize("alpha", (0.3, 2.0))
def test_two_images_are_mixed_by_a_beta_distribution_one_weight_a_batch(alpha):
    def weights(rng):
        return mix_up(2, alpha).draw_private(rng, Private(), 3).secret.matrix

    rngs = jax.random.split(RNG, 800)
    matrices = np.asarray(quick_jit(lambda: jax.lax.map(weights, rngs))())
    np.testing.assert_allclose(matrices.sum(axis=2), 1, rtol=1e-5)
    own = np.einsum("nbb->nb", matrices)
    # An image that met itself has all of it; the others share one weight.
    shared = [row[row < 1 - 1e-6] for row in own]
    assert all(np.ptp(row) < 1e-6 for row in shared if len(row))
    first = np.array([row[0] for row in shared if len(row)])
    assert stats.kstest(first, stats.beta(alpha, alpha).cdf).pvalue > 0.01
    assert stats.kstest(first, stats.beta(1, 1).cdf).pvalue < 1e-3


def test_a_batch_is_mixed_as_a_loop_does_it_and_labels_alike():
    defence = mix_up(3, 1.0)
    mixing = draw(defence, 4)
    images, targets = replaced(defence, mixing)
    for n in range(4):
        image = sum(mixing.matrix[n, m] * IMAGES[m] for m in range(4))
        target = sum(mixing.matrix[n, m] * TARGETS[m] for m in range(4))
        np.testing.assert_allclose(images[n], image, rtol=1e-5)
        np.testing.assert_allclose(targets[n], target, rtol=1e-5)
    assert images.shape == IMAGES.shape and images.dtype == IMAGES.dtype
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-5)
    halves = replaced(defence, mixing, IMAGES.astype(jnp.bfloat16))[0]
    assert halves.dtype == jnp.bfloat16
    assert np.any(np.abs(images - IMAGES) > 0.05)


def test_a_mask_keeps_the_distance_from_its_centre_and_signs_are_even():
    defence, centre = insta_hide(2, 0.65, 0.4), 0.4
    mixing = draw(defence, 4)
    images, _ = replaced(defence, mixing, FLAT)
    mixed, _ = replaced(defence, mixing._replace(mask=None), FLAT)
    signs = (np.asarray(images) - centre) / (np.asarray(mixed) - centre)
    np.testing.assert_allclose(np.abs(signs), 1, rtol=1e-3)
    assert 0.35 < np.mean(signs > 0) < 0.65
    # Another one for each example and each step.
    assert all(np.any(signs[0] * other < 0) for other in signs[1:])
    again = draw(defence, 4, jax.random.key(4)).mask
    others, _ = replaced(defence, mixing._replace(mask=again), FLAT)
    assert np.any(np.abs(others - images) > 0.01)
    # An attacker's signs take their places.
    given, _ = replaced(defence, mixing._replace(mask=jnp.asarray(signs)), FLAT)
    np.testing.assert_allclose(given, images, rtol=1e-4)


def test_public_images_are_mixed_in_and_have_no_label():
    defence = insta_hide_cross(6, centre=0.0)
    mixing = draw(defence, 4)._replace(mask=None)
    assert mixing.matrix.shape == (4, 4 + PUBLIC)
    own = np.asarray(mixing.matrix[:, :4])
    images, targets = replaced(defence, mixing, FLAT)
    np.testing.assert_allclose(targets, own @ TARGETS, rtol=1e-5)
    assert np.all(targets.sum(axis=1) >= 0.3 - 1e-6)
    assert np.all(targets.sum(axis=1) < 1)
    # What is left is of photographs, which nobody has to draw.
    others = np.asarray(images) - np.tensordot(own, FLAT, 1)
    public, _ = replaced(
        defence, Mixing(np.eye(4 + PUBLIC, dtype=np.float32)[4:]), FLAT
    )
    assert public.shape == (PUBLIC, 8, 8, 1) and np.std(public) > 0.1
    np.testing.assert_allclose(
        others, np.tensordot(mixing.matrix[:, 4:], public, 1), atol=1e-5
    )


def test_without_partners_or_strength_nothing_is_mixed():
    defence = mix_up(3, 0.0)
    for nothing in (mix_up(1), defence):
        np.testing.assert_array_equal(draw(nothing, 4).matrix, np.eye(4))
    np.testing.assert_allclose(
        flat(step(defence).sent), flat(step(none()).sent), rtol=1e-5
    )


def test_each_step_draws_anew_and_noise_may_follow():
    params, stats_ = random_weights(toy_model())
    noisy = chain(mix_up(2, 1.0), gaussian_noise(0.0))
    one, other = (step(noisy, rng=jax.random.key(n)) for n in (0, 1))
    assert np.max(np.abs(one.substitute - other.substitute)) > 0.01
    assert one.private.secret.matrix.shape == (4, 4)
    training = local_training(toy_model(), cross_entropy, noisy, optax.sgd(0.1))
    state = training.init(Public(params), Private())
    labels = np.argmax(TARGETS, -1)
    images = np.stack([IMAGES, IMAGES[::-1]])
    batches = Batches(images, np.stack([labels, labels[::-1]]), np.ones(2, bool))
    given = RNG, np.int32(0), Public(params), stats_, state, batches
    upload, kept, progress = quick_jit(training.run)(*given)
    assert progress.finite and kept.private.secret == ()
    assert np.any(flat(upload.delta) != 0)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    (
        (mix_up, {"count": 1.5}, "count must be a whole number >= 1, got 1.5"),
        (mix_up, {"alpha": float("nan")}, "alpha must be finite and >= 0, got nan"),
        (insta_hide, {"upper": 0.25}, "upper=0.25: take an upper above 0.25"),
        (insta_hide, {"upper": float("nan")}, "upper=nan"),
        (insta_hide, {"centre": float("inf")}, "centre must be finite, got inf"),
        (insta_hide_cross, {"count": 2}, "count must be above 2"),
        (insta_hide_cross, {"least": 1.1}, "upper=0.65 and least=1.1"),
    ),
)
def test_impossible_options_are_named(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_what_cannot_be_mixed_is_refused_by_name():
    defence, mixing = mix_up(2), Mixing(np.eye(4, dtype=np.float32))
    with pytest.raises(ValueError, match="mixup mixes real numbers.*int32"):
        replaced(defence, mixing, np.zeros((4, 5), np.int32))
    with pytest.raises(ValueError, match=r"mixup mixes targets \[B, Kc\]"):
        replaced(defence, mixing, targets=np.zeros((4, 5, 3)))
    with pytest.raises(ValueError, match="nothing says how instahide mixes a candid"):
        replaced(insta_hide(2), ())
    with pytest.raises(ValueError, match="instahide-cross needs images"):
        replaced(insta_hide_cross(), draw(insta_hide_cross(), 4), np.ones((4, 5)))


def test_more_images_than_a_batch_has_are_refused_before_anything_is_compiled():
    short = tiny(arms=("instahide=6/trained_on",), examples=4)
    with pytest.raises(ValueError, match="instahide mixes 6 images.*batch has 4"):
        build_study(short)


def test_a_strategy_says_whether_candidates_are_mixed():
    read = functools.partial(parse_arm, sites=unplaced_sites(), made={})
    mixes = {
        "mixup/trained_on": False,
        "mixup/known": True,
        "mixup+gaussian-noise/random_draws": True,
        "mixup/regress_mixing/unaware": False,
    }
    for text, wanted in mixes.items():
        assert read(text).simulates_inputs is wanted, text
    assert read("mixup=2,0.3/known").skeleton == read("mixup/known").skeleton
    with pytest.raises(ValueError, match="one of trained_on, known, random_draws"):
        read("mixup")


def setting(defence, secret, examples=4):
    strategy = threat.Strategy(secret=secret, labels="given")
    facts = {"victim_norm": "eval", "attacker_norm": "eval", "examples": examples}
    model = threat.least_knowledge(strategy, threat.MIXING_STRATEGIES, **facts)
    inputs, targets = images_of(IMAGE_SHAPE), classes_of(CLASSES)
    task = Task(toy_model(), cross_entropy, inputs, targets, "fc")
    made = setting_of(task, model, defence)

    def mixed(public, stats_, images, targets, gradient, private):
        context = Context(public, stats_, images, targets, gradient, private)
        return defence.simulate_inputs(RNG, context)

    def draws(rng):
        return defence.draw_private(rng, Private(), examples)

    replays = model.about_secret.replays_inputs
    assumed = made.defence._replace(
        draw_private=draws, simulate_inputs=mixed if replays else None
    )
    return made._replace(defence=assumed)


def test_what_is_optimised_is_a_mixing_of_the_same_kind():
    unknown = secret_of(setting(insta_hide_cross(4), "regress_mixing")).unknown
    free, fixed = quick_jit(lambda: unknown.start(RNG, None))()
    found = unknown.decode(free, fixed).secret
    assert found.matrix.shape == (4, 4 + PUBLIC)
    np.testing.assert_allclose(found.matrix.sum(axis=1), 1, rtol=1e-5)
    assert found.mask.shape == (4, *IMAGE_SHAPE) and np.all(np.abs(found.mask) <= 1)
    # None of it is what the fixed part drew.
    moved = unknown.decode(jax.tree.map(lambda x: x + 1.0, free), fixed).secret
    np.testing.assert_allclose(moved.matrix, found.matrix, rtol=1e-4)
    assert np.any(moved.mask != found.mask)
    plain = secret_of(setting(mix_up(2), "regress_mixing")).unknown
    started = quick_jit(lambda: plain.start(RNG, None))()
    assert plain.decode(*started).secret.mask is None


def test_restarts_draw_for_themselves():
    unknown = secret_of(setting(mix_up(2), "random_draws")).unknown
    one, other = (
        quick_jit(lambda rng: unknown.decode(*unknown.start(rng, None)).secret)(
            jax.random.key(n)
        ).matrix
        for n in (0, 1)
    )
    assert np.any(np.abs(one - other) > 0.01)


def test_who_knows_the_draws_replays_the_client_and_who_does_not_cannot():
    defence = insta_hide(2)
    update = step(defence)

    def miss(secret):
        own = setting(defence, secret)
        view = threat.observe(own.threat, update)
        attacker = secret_of(own)

        def replayed():
            guess = attacker.unknown.decode(*attacker.unknown.start(RNG, view))
            truth = Candidate(update.inputs, update.targets, guess)
            return replay(own, attacker.gates)(view, truth)

        found, seen = quick_jit(replayed)()
        return np.linalg.norm(flat(found) - flat(seen)) / np.linalg.norm(flat(seen))

    assert miss("known") < 1e-5
    assert miss("random_draws") > 0.05


@pytest.mark.slow
def test_an_arm_of_a_study_mixes_its_candidates_by_its_strategy():
    arms = ("instahide=2/known", "instahide=2/trained_on", "instahide=2/random_draws")
    result = study(arms=arms, victims=1, examples=2, steps=2)
    rows = {arm: [r for r in scored(result) if r["arm"] == arm][0] for arm in arms}
    exact = {arm: row["replay_is_exact"] for arm, row in rows.items()}
    # The truth's own draws are replayed by whoever replays inputs.
    assert list(exact.values()) == [True, False, True]
    assert rows[arms[0]]["matching_loss_at_truth"] < 1e-6
    assert rows[arms[1]]["matching_loss_at_truth"] > 1e-3
    sent = [arm.attacked.substitute for arm in result.arms]
    np.testing.assert_array_equal(sent[0], sent[1])
