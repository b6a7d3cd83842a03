"""DCS and refined inputs: images that are searched for, and trained on."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize
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
from kljax.defences import Context, conceal_samples, none, refine_inputs
from kljax.defences.arms import parse_arm, unplaced_sites
from kljax.defences.dcs import MARGIN, RIDGE, Concealing, project
from kljax.federated.clients import one_step
from kljax.models.losses import cross_entropy

RNG = jax.random.key(11)
IMAGES = random_images(2, *IMAGE_SHAPE)
TARGETS = np.eye(CLASSES, dtype=np.float32)[[1, 0]]
KERNEL = (random_images(*IMAGE_SHAPE, CLASSES) - 0.5).reshape(-1, CLASSES)


class Computed(NamedTuple):
    public: dict
    logits: jax.Array


def gradient(images, targets):
    """Of a network of one dense layer, behind a tanh."""

    def loss(weights):
        logits = jnp.tanh(images.reshape(len(images), -1) @ weights["kernel"])
        return cross_entropy(logits, targets), logits

    return Computed(*jax.grad(loss, has_aux=True)({"kernel": jnp.asarray(KERNEL)}))


def context(secret=(), images=IMAGES, targets=TARGETS):
    public = {"kernel": jnp.asarray(KERNEL)}
    return Context(public, None, images, targets, gradient, Private(secret))


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def step(defence):
    params, stats = random_weights(toy_model())
    run = one_step(toy_model(), cross_entropy, defence, train=False)
    given = RNG, Public(params), stats, Private(), IMAGES, TARGETS
    return quick_jit(run)(*given)


def slopes(cost, at):
    """The derivative of a NumPy function, by differences in float32's reach."""
    found = np.zeros(at.size)
    for n in range(at.size):
        along = np.zeros(at.size)
        along[n] = 1e-2
        along = along.reshape(at.shape)
        found[n] = (cost(at + along) - cost(at - along)) / 2e-2
    return found.reshape(at.shape)


def check_first_move(moved, start, cost, rate):
    """Adam's first move is against the sign of the derivative."""
    slope = slopes(cost, np.asarray(start, np.float64))
    steep = np.abs(slope) > 0.05 * np.max(np.abs(slope))
    assert np.mean(steep) > 0.3
    wanted = np.asarray(start) - rate * np.sign(slope)
    np.testing.assert_allclose(moved[steep], wanted[steep], atol=1e-4)


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def draw(defence):
    return defence.draw_private(RNG, Private(), len(IMAGES)).secret


# --- DCS -----------------------------------------------------------------------------


@functools.cache
def start_of_concealing(weight_y):
    """Starts, and labels of proxies, which are read off targets that are mixed."""
    defence = conceal_samples(0, weight_y=weight_y)
    images, targets = quick_jit(lambda: defence.inputs(RNG, context(draw(defence))))()
    return np.asarray(images[2:]), np.asarray(targets[2:])


def labels_of(update):
    """Labels of a client's proxies."""
    proxies, secret = conceal_samples(0, weight_y=1.0), update.private.secret
    made = quick_jit(lambda secret: proxies.inputs(RNG, context(secret)))(secret)
    return made[1][len(IMAGES) :]


def test_concealing_images_start_between_proxies_and_the_batch():
    start, targets = start_of_concealing(0.7)
    proxies, labels = start_of_concealing(1.0)
    np.testing.assert_allclose(start, 0.7 * proxies + 0.3 * IMAGES, rtol=1e-5)
    np.testing.assert_allclose(targets, 0.7 * labels + 0.3 * TARGETS, rtol=1e-5)
    assert np.all((proxies >= 0) & (proxies <= 1)) and np.std(proxies) > 0.2
    assert np.all(labels.sum(axis=1) == 1) and set(np.unique(labels)) == {0.0, 1.0}
    assert np.any(proxies[0] != proxies[1])


def test_they_are_moved_against_the_slope_of_the_published_cost():
    start, _ = start_of_concealing(0.7)
    labels = start_of_concealing(1.0)[1]
    computed = gradient(IMAGES, TARGETS)
    true, answers = flat(computed.public), np.asarray(computed.logits)

    def cost(x):
        found = gradient(jnp.asarray(x, jnp.float32), labels)
        rows = (np.asarray(x) - IMAGES).reshape(2, -1)
        apart = np.mean([np.linalg.norm(row) for row in rows])
        off = [
            np.linalg.norm(a - b) / np.linalg.norm(b)
            for a, b in zip(np.asarray(found.logits), answers, strict=True)
        ]
        value = 1 - cosine(flat(found.public).astype(float), true.astype(float))
        return value + np.exp(-0.5 * apart) + 0.2 * np.mean(off)

    defence = conceal_samples(1, 0.05, weight_x=0.5, weight_z=0.2)
    made = quick_jit(lambda: defence.inputs(RNG, context(draw(defence))))()[0]
    np.testing.assert_array_equal(made[:2], IMAGES)
    check_first_move(np.asarray(made[2:]), start, cost, 0.05)


def test_the_rate_drops_and_the_distance_stops():
    def distance(steps, rate=0.1, threshold=300.0):
        defence = conceal_samples(steps, rate, threshold=threshold, weight_x=5.0)
        made = quick_jit(lambda: defence.inputs(RNG, context(draw(defence))))()[0]
        return float(np.max(np.abs(made[2:] - start_of_concealing(0.7)[0])))

    # Of eight steps three at the full rate, then two, two and one at tenths of it.
    assert distance(8) <= 0.1 * (3 + 0.2 + 0.02 + 0.001) + 0.02
    assert distance(8) > 0.15
    assert distance(8, threshold=1e-3) <= 0.1 + 1e-4


def test_what_is_sent_is_the_gradient_of_the_published_loss():
    defence = conceal_samples(3)
    update = step(defence)
    both, count = update.substitute, len(IMAGES)
    assert both.shape == (2 * count, *IMAGE_SHAPE) and update.targets.shape[0] == count
    labels = labels_of(update)
    params, stats = random_weights(toy_model())

    def loss(params):
        model = functools.partial(toy_model().apply, params, stats, train=False)
        beside, own = (model(x).logits for x in (both[count:], both[:count]))
        sums = 0.7 * cross_entropy(beside, labels) + 0.3 * cross_entropy(
            beside, TARGETS
        )
        return (sums + cross_entropy(own, TARGETS)) / 3

    wanted = flat(quick_jit(jax.grad(loss))(params))
    true = flat(step(none()).sent)
    assert wanted @ true > 0  # so that nothing is projected
    np.testing.assert_allclose(flat(update.sent), wanted, rtol=1e-4, atol=1e-7)


def test_without_proxies_and_steps_the_gradient_is_that_of_the_batch():
    sent = step(conceal_samples(0, weight_y=0.0)).sent
    np.testing.assert_allclose(flat(sent), flat(step(none()).sent), rtol=1e-4)


def test_a_gradient_that_points_away_is_turned_by_the_quadratic_programme():
    generator = np.random.default_rng(0)
    for size in (0.1, 4.0):
        true, other = (generator.normal(size=5).astype(np.float32) for _ in range(2))
        away = other - (other @ true + size * (true @ true)) / (true @ true) * true
        found = project({"w": jnp.asarray(away)}, {"w": jnp.asarray(true)})["w"]

        def programme(v, away=away, true=true):
            return 0.5 * v**2 * (true @ true + RIDGE) + v * (away @ true)

        least = optimize.minimize_scalar(
            programme, bounds=(MARGIN, 50), method="bounded", options={"xatol": 1e-8}
        ).x
        np.testing.assert_allclose(found, away + least * true, rtol=1e-3, atol=1e-4)
        if size > MARGIN:
            assert abs(found @ true) < 1e-2
        # One that does not point away stays.
        kept = project({"w": jnp.asarray(-away)}, {"w": jnp.asarray(true)})["w"]
        np.testing.assert_array_equal(kept, -away)


def setting(defence, secret):
    strategy = threat.Strategy(secret=secret, labels="given")
    facts = {"victim_norm": "eval", "attacker_norm": "eval", "examples": len(IMAGES)}
    model = threat.least_knowledge(strategy, threat.CONCEALING_STRATEGIES, **facts)
    inputs, targets = images_of(IMAGE_SHAPE), classes_of(CLASSES)
    task = Task(toy_model(), cross_entropy, inputs, targets, "fc")
    made = setting_of(task, model, defence)

    def simulated(public, stats, images, targets, gradient, private):
        own = Context(public, stats, images, targets, gradient, private)
        return defence.simulate_inputs(RNG, own)

    replays = model.about_secret.replays_inputs
    assumed = made.defence._replace(
        draw_private=lambda rng: defence.draw_private(rng, Private(), len(IMAGES)),
        simulate_inputs=simulated if replays else None,
    )
    return made._replace(defence=assumed)


def test_who_knows_what_conceals_replays_the_client():
    defence = conceal_samples(3)
    update = step(defence)

    def miss(secret, change=lambda guess: guess):
        own = setting(defence, secret)
        view = threat.observe(own.threat, update)
        attacker = secret_of(own)

        def replayed():
            guess = attacker.unknown.decode(*attacker.unknown.start(RNG, view))
            truth = Candidate(update.inputs, update.targets, change(guess))
            return replay(own, attacker.gates)(view, truth)

        found, seen = quick_jit(replayed)()
        return np.linalg.norm(flat(found) - flat(seen)) / np.linalg.norm(flat(seen))

    assert miss("known") < 1e-4
    assert miss("random_draws") > 1e-2

    labels = labels_of(update)

    def right(guess):
        assert guess.secret.proxy.shape == IMAGES.shape
        assert guess.secret.targets.shape == TARGETS.shape
        images = update.substitute[len(IMAGES) :]
        return guess._replace(secret=Concealing(images, labels))

    # What is optimised can be right, and is not at its start.
    assert miss("regress_concealing", right) < 1e-4
    assert miss("regress_concealing") > 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"steps": float("nan")}, "steps must be finite and >= 0, got nan"),
        ({"steps": float("inf")}, "steps must be finite and >= 0, got inf"),
        ({"weight_z": float("inf")}, "weight_z must be finite and >= 0, got inf"),
        ({"rate": 0}, "rate must be finite and > 0, got 0"),
        ({"weight_x": -1}, "weight_x must be finite and >= 0, got -1"),
        ({"weight_y": 1.5}, r"weight_y must be in \[0, 1\], got 1.5"),
        ({"threshold": float("nan")}, "threshold must be finite and > 0, got nan"),
    ),
)
def test_impossible_options_of_concealing_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        conceal_samples(**options)


def test_what_cannot_be_concealed_is_refused():
    defence = conceal_samples(0)
    secret = draw(defence)
    with pytest.raises(ValueError, match="moved by a derivative, and these are int32"):
        defence.inputs(RNG, context(secret, np.zeros((2, 5), np.int32)))
    with pytest.raises(ValueError, match=r"targets \[B, Kc\] of classes"):
        defence.inputs(RNG, context(secret, targets=np.zeros((2, 3, 4))))
    with pytest.raises(ValueError, match="nothing says what dcs conceals"):
        defence.inputs(RNG, context())
    arm = parse_arm("dcs/regress_concealing", unplaced_sites(), {})
    assert arm.simulates_inputs and arm.skeleton == "dcs[proxy=noise]"


# --- refined inputs ------------------------------------------------------------------


def refined(*options):
    defence = refine_inputs(*options)
    return np.asarray(quick_jit(lambda: defence.inputs(RNG, context())[0])())


def test_refined_inputs_start_between_the_batch_and_noise():
    np.testing.assert_array_equal(refined(0, 0.05, 0.5, 1.0), IMAGES)
    noise = refined(0, 0.05, 0.5, 0.0)
    assert np.all((noise >= 0) & (noise <= 1)) and np.std(noise) > 0.2
    half = refined(0, 0.05, 0.5, 0.5)
    np.testing.assert_allclose(half, (IMAGES + noise) / 2, rtol=1e-5)


def test_refined_inputs_are_moved_against_the_slope_of_their_cost():
    start = refined(0, 0.05, 2.0, 0.5)
    wanted = flat(gradient(IMAGES, TARGETS).public).astype(float)
    weights = np.abs(KERNEL.ravel() * wanted)

    def cost(x):
        found = flat(gradient(jnp.asarray(x, jnp.float32), TARGETS).public)
        utility = np.sum(weights * (found - wanted) ** 2) / np.sum(weights * wanted**2)
        r = [
            np.corrcoef(a.ravel(), b.ravel())[0, 1]
            for a, b in zip(x, IMAGES, strict=True)
        ]
        return utility - 2.0 * (1 - np.mean(np.square(r)))

    inside = np.clip(refined(1, 0.01, 2.0, 0.5), 0, 1)
    check_first_move(inside, start, lambda x: cost(x), 0.01)


def test_more_weight_makes_refined_inputs_less_like_the_private_ones():
    def correlation(x):
        return np.corrcoef(x.ravel(), IMAGES.ravel())[0, 1] ** 2

    def error(x):
        found, wanted = (flat(gradient(i, TARGETS).public) for i in (x, IMAGES))
        return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)

    start, near, far = (
        refined(steps, 0.05, weight, 0.5)
        for steps, weight in ((0, 0), (60, 0), (60, 5))
    )
    assert error(near) < 0.3 * error(start)
    assert correlation(far) < 0.5 * correlation(near)


def test_impossible_options_of_refining_are_named():
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\], got nan"):
        refine_inputs(share=float("nan"))
    with pytest.raises(ValueError, match="weight must be finite and >= 0, got -1"):
        refine_inputs(weight=-1)
    with pytest.raises(ValueError, match="refined inputs are moved by a derivative"):
        integers = context(images=np.zeros((2, 5), np.int32))
        refine_inputs().inputs(RNG, integers)
    assert refine_inputs(65).simulate_inputs is None
    assert parse_arm("refined-inputs/simulate", unplaced_sites(), {}).simulates_inputs
