"""GIAS and GIFD: a generator's latents, what lies behind them, and their driver."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from poison import differences, poisoned
from test_ggl import EVAL, average, error, generator, made, upload
from toys import equations, quick_jit, threat
from victims import digits, drowned, ground, update

from kljax.attacks import (
    Candidate,
    Protocol,
    Unknown,
    Unknowns,
    cma_es,
    from_optax,
    squared_l2,
)
from kljax.attacks.drivers import Stage, descend_in_stages, split_steps
from kljax.attacks.latents import (
    Code,
    feature_stage,
    latent_stage,
    project_onto_l1_ball,
    weight_stage,
)
from kljax.attacks.optimisers import ramped_adam
from kljax.attacks.presets import ggl, gias, gifd
from kljax.core.generator import Generator
from kljax.threat import observe
from kljax.threat.observation import LocalSteps

STEPS = 360
# Stated before the first run, as in test_ggl.py: what the generator made comes back to
# within 1e-3, and ten times nearer than what it makes of that class on average.
NEAR, FLOOR = 1e-3, 10
ATTACKS = {"gias": functools.partial(gias, latent_share=0.5), "gifd": gifd}


def slow_projection(x, radius):
    """Projects by bisection of the threshold that every entry is shortened by."""
    if np.sum(np.abs(x)) <= radius:
        return x
    low, high = 0.0, np.max(np.abs(x))
    for _ in range(100):
        middle = (low + high) / 2
        total = sum(max(abs(entry) - middle, 0) for entry in x.ravel())
        low, high = (middle, high) if total > radius else (low, middle)
    return np.sign(x) * np.maximum(np.abs(x) - high, 0)


@pytest.mark.parametrize("radius", (0.0, 0.3, 2.0, 5.0, np.inf))
def test_the_projection_onto_the_l1_ball_is_that_of_a_slow_search(radius):
    drawn = np.random.default_rng(3).normal(size=(6, 4, 2))
    drawn[1, 0] = drawn[1, 1]  # ties
    drawn[2] = 0
    drawn[3] /= 100  # inside of all but one
    near = jax.jit(jax.vmap(project_onto_l1_ball, in_axes=(0, None)))
    found = near(np.float32(drawn), radius)
    wanted = np.stack([slow_projection(one, radius) for one in drawn])
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("steps", "shares", "counts"),
    [
        (9000, (1 / 9, 8 / 9), (1000, 8000)),
        (10, (1, 1, 1), (3, 4, 3)),
        (3, (1, 1, 1), (1, 1, 1)),
        (3, (0.001, 1), (1, 2)),
        (3, (1, 0.001), (2, 1)),
    ],
)
def test_steps_are_shared_out(steps, shares, counts):
    assert split_steps(steps, shares) == counts and sum(counts) == steps


# The driver, by hand: an "image" of two pixels, of which each stage moves what it may.


class Seen:
    def __init__(self, value):
        self.grads = {"w": jnp.asarray(value)}
        self.observations = None


def nothing():
    return Unknown(lambda rng, view: ((), ()), lambda free, fixed: jnp.zeros((1, 2)))


def first_pixel():
    """Moves the first pixel; the second is 0."""
    return Stage(
        lambda free, fixed: (free, fixed),
        lambda free, fixed: jnp.stack([free, 0 * free]).reshape(1, 1, 2, 1),
    )


def both_pixels(reach=np.inf):
    """Moves both, no further than `reach` each from where the stage began."""

    def enter(free, fixed):
        first = jnp.stack([free, 0 * free])
        return {"a": first, "b": jnp.zeros((3,))}, {"first": first, "was": fixed}

    def project(free, fixed):
        near = jnp.clip(free["a"] - fixed["first"], -reach, reach)
        return free | {"a": fixed["first"] + near}

    return Stage(enter, lambda free, fixed: free["a"].reshape(1, 1, 2, 1), project)


@pytest.fixture
def _visible(monkeypatch):
    monkeypatch.setattr(
        "kljax.attacks.drivers.search.says_something", lambda view: jnp.asarray(True)
    )


def run_by_hand(stages, steps, rates=(0.25, 0.25), start=0.0, **options):
    inputs = Unknown(lambda rng, view: (jnp.asarray(start), jnp.ones(1)), None)
    strike = descend_in_stages(
        Unknowns(inputs, nothing(), nothing()),
        stages,
        lambda view, candidate: ({"w": candidate.inputs}, view.grads),
        squared_l2(),
        [from_optax(optax.sgd(rate)) for rate in rates],
        steps=steps,
        **options,
    )
    return strike(
        jax.random.key(0), Seen(np.reshape(np.float32([1, -2]), (1, 1, 2, 1)))
    )


@pytest.mark.usefixtures("_visible")
def test_a_stage_goes_on_where_the_last_one_ended():
    found = run_by_hand([first_pixel(), both_pixels()], (2, 3))
    # Half the way is gone in each step. After two the first pixel is at .75; the best
    # of the first stage was evaluated before its last move.
    first = [(1 - x) ** 2 + 4 for x in (0, 0.5)]
    pixels, second = np.array([0.75, 0.0]), []
    for _ in range(3):
        second.append(np.sum((pixels - [1, -2]) ** 2))
        kept, pixels = pixels, (pixels + [1, -2]) / 2
    np.testing.assert_allclose(np.ravel(found.inputs), kept, rtol=1e-6)
    np.testing.assert_allclose(
        found.info["stage_losses"], [min(first), min(second)], rtol=1e-6
    )
    np.testing.assert_allclose(found.info["losses"], [*first, *second], rtol=1e-6)
    assert float(found.loss) == pytest.approx(min(second))
    assert int(found.numbers["stage"]) == 1 and bool(found.finite)
    assert int(found.numbers["evaluations"]) == 5


@pytest.mark.usefixtures("_visible")
def test_a_stage_is_kept_where_it_may_be():
    found = run_by_hand([first_pixel(), both_pixels(reach=0.1)], (2, 3))
    np.testing.assert_allclose(np.ravel(found.inputs), [0.85, -0.1], rtol=1e-6)


@pytest.mark.usefixtures("_visible")
def test_the_stage_of_the_lowest_own_loss_is_reported():
    """The second stage begins far from where the first one was, and goes further."""
    away = both_pixels()
    lost = away._replace(
        enter=lambda free, fixed: jax.tree.map(
            lambda x: x + 9.0, away.enter(free, fixed)
        )
    )
    found = run_by_hand([first_pixel(), lost], (3, 2), rates=(0.25, -0.25))
    assert int(found.numbers["stage"]) == 0
    np.testing.assert_allclose(np.ravel(found.inputs), [0.75, 0.0], rtol=1e-6)
    assert float(found.loss) == float(np.min(found.info["stage_losses"]))
    assert np.all(np.diff(found.info["losses"]) <= 0)


@pytest.mark.usefixtures("_visible")
def test_a_stage_that_breaks_leaves_what_was_found_before():
    rates = (0.25, np.inf)
    found = run_by_hand([first_pixel(), both_pixels()], (3, 30), rates=rates)
    assert int(found.numbers["stage"]) in (0, 1) and np.all(np.isfinite(found.inputs))
    broken = run_by_hand([first_pixel(), both_pixels()], (3, 3), start=np.nan)
    assert not bool(broken.finite) and not np.isfinite(broken.loss)


def test_what_is_no_search_is_refused():
    stage = first_pixel()
    with pytest.raises(ValueError, match="one stage at least"):
        run_by_hand([], (), rates=())
    with pytest.raises(ValueError, match="1 stages, 2 optimisers"):
        run_by_hand([stage], (3, 3))
    with pytest.raises(ValueError, match="steps=0"):
        run_by_hand([stage], (0,), rates=(0.1,))
    with pytest.raises(ValueError, match="restarts=0"):
        run_by_hand([stage], (3,), rates=(0.1,), restarts=0)
    with pytest.raises(ValueError, match="steps=2 are fewer than the 3 stages"):
        split_steps(2, (1, 1, 1))
    with pytest.raises(ValueError, match="must be positive"):
        split_steps(2, (1, 0))


# The stages of a generator.


def setting(**changes):
    declared = threat("unit", "recovered", **EVAL)
    return ground(declared, **({"generator": generator()} | changes))


CODE = jax.random.normal(jax.random.key(2), (2, 16))
TOLD = jax.nn.one_hot(jnp.array([3, 5]), 10)


@pytest.mark.parametrize("classes", (None, 5 * TOLD))
def test_entering_a_stage_changes_no_image(classes):
    """Nor are images of the latents others than those of the generator."""
    given = setting()
    latents = latent_stage(given, sphere=True)
    free, fixed = latents.enter(Code(CODE, classes), TOLD)
    told = TOLD if classes is None else jax.nn.softmax(classes)
    wanted = quick_jit(generator().decode)(generator().weights, CODE, told)
    np.testing.assert_allclose(latents.decode(free, fixed), wanted, atol=1e-5)
    weights = weight_stage(given)
    of_weights = weights.enter(free, fixed)
    np.testing.assert_allclose(
        quick_jit(weights.decode)(*of_weights), wanted, atol=1e-5
    )
    assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(of_weights[0]))
    for number in range(1, len(generator().stages)):
        stage = feature_stage(given, number, 0.1)
        free, fixed = stage.enter(free, fixed)
        np.testing.assert_allclose(stage.decode(free, fixed), wanted, atol=1e-5)


def test_moves_are_brought_back_to_the_sphere_and_the_ball():
    given = setting()
    latents = latent_stage(given, sphere=True)
    free, fixed = latents.enter(Code(CODE, None), TOLD)
    moved = latents.project(Code(3 * CODE + 1, None), fixed).latents
    for one, before in zip(np.asarray(moved), np.asarray(CODE), strict=True):
        assert np.linalg.norm(one) == pytest.approx(np.linalg.norm(before), rel=1e-5)
        along = np.corrcoef(one, 3 * before + 1)[0, 1]
        assert along == pytest.approx(1, abs=1e-5)
    zero = latents.project(Code(0 * CODE, None), fixed).latents
    np.testing.assert_array_equal(zero, 0)
    stage = feature_stage(given, 1, 0.1)
    first, fixed = stage.enter(free, fixed)
    far = first + jax.random.normal(jax.random.key(0), first.shape)
    near = np.asarray(stage.project(far, fixed) - first)
    for one, wish in zip(near, np.asarray(far - first), strict=True):
        assert np.abs(one).sum() == pytest.approx(0.1 * one.size, rel=1e-4)
        np.testing.assert_allclose(
            one, slow_projection(wish, 0.1 * one.size), atol=1e-5
        )
    inside = first + 0.01
    np.testing.assert_allclose(stage.project(inside, fixed), inside, rtol=1e-5)


def test_rates_rise_and_fall():
    """Adam's first move is of the size of its rate, whatever the gradient."""
    for count, fall in ((0, 0.25), (2, 0.25), (50, 0.25), (50, 0.75), (90, 0.25)):
        t = count / 100
        wanted = 0.1 * min(1, t / 0.05)
        wanted *= (1 - np.cos(np.pi * min(1, (1 - t) / fall))) / 2
        optimiser = ramped_adam(0.1, steps=100, fall=fall)
        free = (jnp.ones(1), (), ())
        state = jax.tree.map(
            lambda x, n=count: jnp.full_like(x, n) if x.dtype == jnp.int32 else x,
            optimiser.init(free),
        )
        # Moments are those of a long descent along the same gradient.
        state = jax.tree.map(
            lambda x: jnp.ones_like(x) if x.dtype == jnp.float32 else x, state
        )
        after, _ = optimiser.step(free, state, 0.0, (jnp.ones(1), (), ()))
        corrected = (1 - 0.9 ** (count + 1), 1 - 0.999 ** (count + 1))
        size = wanted / corrected[0] * corrected[1] ** 0.5
        np.testing.assert_allclose(1 - after[0], size, rtol=1e-3, atol=1e-6)


# The attacks.


@functools.cache
def attack(name):
    declared = threat("unit", "recovered", **EVAL)
    strike = ATTACKS[name](setting(), steps=STEPS, restarts=1)
    return quick_jit(lambda truth: strike(jax.random.key(8), observe(declared, truth)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_an_image_that_the_generator_made_is_recovered(name):
    found = attack(name)(upload(made()))
    floor = float(np.mean((average() - made()) ** 2))
    assert error(found, made()) < min(NEAR, floor / FLOOR)
    assert bool(found.finite) and found.labels.tolist() == [3]
    assert int(found.numbers["evaluations"]) == STEPS
    own = found.info["stage_losses"]
    assert int(found.numbers["stage"]) == int(np.argmin(own))
    assert float(found.loss) == float(np.min(own))


@pytest.mark.parametrize("name", (pytest.param("gias", marks=pytest.mark.slow), "gifd"))
def test_priors_secrets_and_restarts_go_with_it(name, monkeypatch):
    """Gates are moved in all stages; of the priors the weights are those of GIFD."""
    composed = {}

    def recording(*args, **options):
        composed.update(options)
        return descend_in_stages(*args, **options)

    monkeypatch.setattr(
        "kljax.attacks.presets.staged_latents.descend_in_stages", recording
    )
    declared = threat("regress_gates", "recovered", **EVAL)
    given = setting()._replace(threat=declared)
    strike = ATTACKS[name](given, steps=9, restarts=2)
    found = quick_jit(lambda u: strike(jax.random.key(8), observe(declared, u)))(
        upload(made())
    )
    assert int(found.numbers["evaluations"]) == 18 and bool(found.finite)
    assert found.info["restart_losses"].shape == (2,)
    assert float(found.loss) == float(np.min(found.info["stage_losses"]))
    scale = np.asarray(found.info["secret"]["norm"].scale)
    assert np.all(np.isfinite(scale)) and np.std(scale) > 0  # they start alike
    x = np.asarray(found.inputs, np.float64)
    rows, columns = (np.mean(np.abs(np.diff(x, axis=axis))) for axis in (1, 2))
    wanted = 1e-4 * (rows + columns) + 1e-6 * np.linalg.norm(x) / 64
    prior = composed["prior"](None, Candidate(jnp.float32(x), None, None), 0.5)
    assert float(prior) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("name", ATTACKS)
def test_noise_that_leaves_nothing_leaves_no_image(name):
    truth = upload(made())
    found = attack(name)(drowned(truth))
    assert error(found, made()) > 10 * NEAR


@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_hidden_does_not_reach_it(name):
    truth = upload(digits(1)[0])
    found, blind = (attack(name)(u) for u in (truth, poisoned(truth, EVAL)))
    assert not differences(found, blind)
    other = truth._replace(
        sent=jax.tree.map(lambda x: x + 0.1 * jnp.abs(x).max(), truth.sent)
    )
    assert differences(found, attack(name)(other))  # and a seen one does


def test_a_program_is_as_long_for_any_steps():
    declared = threat("unit", "recovered", **EVAL)

    def size(steps):
        strike = gifd(setting(), steps=steps, restarts=1)
        return len(
            equations(
                lambda truth: strike(jax.random.key(8), observe(declared, truth)),
                upload(made()),
            )
        )

    assert size(40) == size(4000)


@pytest.mark.slow
@pytest.mark.parametrize("make", (ggl, gias, gifd))
def test_classes_of_another_order_are_looked_for(make):
    """The generator calls a three a four: told the label it makes another digit."""
    true = generator()
    other = true._replace(
        decode=lambda w, z, y: true.decode(w, z, jnp.roll(y, -1, axis=-1)),
        stages=(
            lambda w, z, y: true.stages[0](w, z, jnp.roll(y, -1, axis=-1)),
            *true.stages[1:],
        ),
    )
    declared = threat("unit", "recovered", **EVAL)

    def run(classes):
        options = {"deviation": 1.0, "optimiser": cma_es()} if make is ggl else {}
        strike = make(
            setting(generator=other), steps=3000, restarts=2, classes=classes, **options
        )
        return quick_jit(lambda u: strike(jax.random.key(8), observe(declared, u)))(
            upload(made())
        )

    told, searched = run("told"), run("searched")
    assert error(searched, made()) < 10 * NEAR
    if make is not gias:  # which can change the generator into one that is right
        assert error(told, made()) > error(searched, made())
        assert float(searched.loss) < float(told.loss)


@pytest.mark.parametrize("make", (gias, gifd))
def test_what_does_not_fit_is_refused_by_name(make):
    few = generator()._replace(num_classes=5)

    def build(threat=None, steps=50, restarts=1, options=None, **changes):
        given = setting(**changes)
        given = given if threat is None else given._replace(threat=threat)
        return make(given, steps=steps, restarts=restarts, **(options or {}))

    with pytest.raises(ValueError, match="trained generator: name one"):
        build(generator=None)
    with pytest.raises(ValueError, match="labels='joint' looks for them"):
        build(threat("unit", "joint", **EVAL))
    with pytest.raises(ValueError, match="5 classes, and the network tells 10"):
        build(generator=few)
    build(generator=few, options={"classes": "searched"})
    with pytest.raises(ValueError, match="the generator has 0 latents"):
        build(generator=generator()._replace(latents=0))
    with pytest.raises(ValueError, match="classes must be one of"):
        build(options={"classes": "guessed"})
    with pytest.raises(ValueError, match="fewer than the|steps=0"):
        build(steps=0)
    with pytest.raises(ValueError, match="restarts=0"):
        build(restarts=0)
    with pytest.raises(ValueError, match="follows gradients"):
        build(options={"optimiser": cma_es()})
    for option in ("variation", "size"):
        with pytest.raises(ValueError, match=f"{option} must be >= 0, got -1"):
            build(options={option: -1})


def test_what_gifd_cannot_work_on_is_refused_by_name():
    with pytest.raises(ValueError, match="GIFD looks among the features .* not say"):
        gifd(setting(generator=generator()._replace(stages=())), steps=9, restarts=1)
    for option in ("radius", "growth"):
        with pytest.raises(ValueError, match=f"{option} must be >= 0, got -1"):
            gifd(setting(), steps=9, restarts=1, **{option: -1})
    with pytest.raises(ValueError, match="depth must be 0 or more"):
        gifd(setting(), steps=9, restarts=1, depth=-1)
    with pytest.raises(ValueError, match="steps=2 are fewer than the 3 stages"):
        gifd(setting(), steps=2, restarts=1)
    gifd(setting(), steps=2, restarts=1, depth=1)
    with pytest.raises(ValueError, match="latent_share must be in"):
        gias(setting(), steps=9, restarts=1, latent_share=1.0)


def three_and_five(setting, view):
    """A rule of label recovery, for any upload."""
    del setting, view
    return jnp.array([3, 5])


@pytest.mark.slow
@pytest.mark.parametrize("make", (ggl, gias, gifd))
def test_the_generator_is_told_the_order_of_labels_that_the_replay_has(make):
    """Of an update in batches the order is drawn; this one's images show what it is."""

    def shown(weights, latents, targets):
        classes = targets @ jnp.arange(10.0) / 10
        return weights + classes[:, None, None, None] + jnp.zeros((1, 8, 8, 1))

    stages = (lambda w, z, y: z, shown)
    shower = Generator(shown, jnp.zeros(()), 2, (8, 8, 1), 10, stages=stages)
    declared = threat("unit", "recovered", **EVAL, upload="update", examples=2)
    here = ground(
        declared,
        generator=shower,
        label_rule=f"{__name__}:three_and_five",
        protocol=Protocol(optax.sgd(0.1), 2, 1, 0.1),
    )
    strike = make(here, steps=50 if make is ggl else 2, restarts=1)
    view = observe(declared, update(2)._replace(local=LocalSteps(2, 1)))
    found = quick_jit(jax.vmap(lambda rng: strike(rng, view)))(
        jax.random.split(jax.random.key(0), 8)
    )
    labels = np.asarray(found.labels)
    assert len(np.unique(labels, axis=0)) == 2
    told = np.round(10 * np.mean(found.inputs, axis=(2, 3, 4)))
    np.testing.assert_array_equal(told, labels)
