"""The driver of iterative attacks, on problems that can be checked by hand."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from toys import equations

from kljax import attacks
from kljax.attacks import (
    RESTARTS,
    Optimiser,
    Unknown,
    Unknowns,
    descend,
    from_optax,
    squared_l2,
)
from kljax.attacks.attack import Moves
from kljax.core.targets import likeliest

NOTHING = Unknown(lambda rng, view: ((), ()), lambda free, fixed: ())
LABEL = Unknown(
    lambda rng, view: ((), jnp.eye(3)[None, 1]),
    lambda free, fixed: fixed,
    read=lambda targets, fixed: likeliest(targets),
)
SGD = from_optax(optax.sgd(0.25))


def image(start, **project):
    """An unknown 'image' of two numbers, started where `start(rng)` says."""
    return Unknown(
        lambda rng, view: (start(rng), ()), lambda free, fixed: free, **project
    )


class Seen(NamedTuple):
    """All of a view that the driver itself looks at."""

    grads: Any
    visible: Any = None
    observations: Any = None


def matches(view, candidate):
    """Simulates a 'gradient' that is the candidate itself."""
    return candidate.inputs, view.grads


def attack(start=lambda rng: jnp.zeros(2), optimiser=SGD, project=None, **options):
    options = {"steps": 20, "points": 4} | options
    free = image(start) if project is None else image(start, project=project)
    unknowns = Unknowns(free, LABEL, NOTHING)
    strike = descend(unknowns, matches, squared_l2(), optimiser, **options)
    return lambda rng, grads: strike(rng, Seen(grads))


VIEW = jnp.array([1.0, -2.0])


def test_gradient_descent_by_hand(rng):
    """Each step of rate 1/4 on |x - v|^2 halves the distance."""
    found = attack(steps=4, points=4)(rng, VIEW)
    np.testing.assert_allclose(found.inputs, VIEW * (1 - 0.5**3))
    np.testing.assert_allclose(found.loss, 5 * 0.25**3)
    np.testing.assert_allclose(found.info["losses"], 5 * 0.25 ** np.arange(4))
    assert found.labels.tolist() == [1]
    assert found.numbers["evaluations"] == 4
    assert bool(found.finite)


def test_the_best_iterate_is_kept_not_the_last(rng):
    """A descent that runs away after its third move."""

    def step(free, state, value, grads):
        away = jax.tree.map(lambda x: x + 100.0, free)
        near, _ = SGD.step(free, SGD.init(free), value, grads)
        free = jax.tree.map(lambda n, a: jnp.where(state < 3, n, a), near, away)
        return free, state + 1

    runaway = Optimiser(lambda free: jnp.array(0), step)
    found = attack(optimiser=runaway)(rng, VIEW)
    np.testing.assert_allclose(found.loss, 5 * 0.25**3)
    assert bool(found.finite)


def test_of_iterates_that_are_as_good_the_first_is_kept(rng):
    """A descent that goes round what it looks for, at one distance."""
    places = VIEW[None] + jnp.array([[3.0, 0.0], [0.0, -3.0], [-3.0, 0.0], [0.0, 3.0]])

    def step(free, state, value, grads):
        return (places[state], *free[1:]), state + 1

    round_about = Optimiser(lambda free: jnp.array(1), step)
    found = attack(lambda rng: places[0], round_about, steps=4)(rng, VIEW)
    np.testing.assert_array_equal(found.info["losses"], [9] * 4)
    np.testing.assert_array_equal(found.inputs, places[0])


def test_each_move_draws_anew(rng):
    """Moves by random vectors: from a start that is drawn, and after each step."""

    def away(rng, view, judge, free):
        return (free[0] - jax.random.uniform(rng, (2,)), *free[1:])

    seen = set()

    def simulate(view, candidate):
        jax.debug.callback(lambda x: seen.add(tuple(x.tolist())), candidate.inputs)
        return matches(view, candidate)

    strike = descend(
        Unknowns(image(lambda rng: jax.random.uniform(rng, (2,))), LABEL, NOTHING),
        simulate,
        squared_l2(),
        Optimiser(lambda free: (), lambda free, state, value, grads: (free, state)),
        steps=6,
        points=1,
        moves=Moves(away, away, every=1, after=0.0),
    )
    jax.block_until_ready(strike(rng, Seen(VIEW)).loss)
    jax.effects_barrier()
    points = np.array(sorted(seen, reverse=True))  # they only fall
    assert len(points) == 6 and np.all(points[0] != 0)  # as far as it had come
    moved = np.diff(points, axis=0)
    assert np.all(moved < 0) and len({tuple(move) for move in moved.round(5)}) == 5


def test_a_broken_descent_is_reported_and_its_best_image_kept(rng):
    def step(free, state, value, grads):
        broken = jax.tree.map(lambda x: jnp.where(state == 2, jnp.nan, x), free)
        free, _ = SGD.step(broken, SGD.init(free), value, grads)
        return free, state + 1

    found = attack(optimiser=Optimiser(lambda free: jnp.array(0), step))(rng, VIEW)
    assert not bool(found.finite)
    np.testing.assert_allclose(found.loss, 5 * 0.25**2)
    assert np.all(np.isfinite(found.inputs))


def test_the_restart_with_the_lowest_own_loss_wins(rng):
    """Standing still, so that the starts decide."""
    still = from_optax(optax.sgd(0.0))
    far = attack(lambda rng: jax.random.normal(rng, (2,)), still, restarts=8)
    found = far(rng, VIEW)
    losses = found.info["restart_losses"]
    assert losses.shape == (8,) and len(set(losses.tolist())) == 8
    assert found.loss == losses.min()
    np.testing.assert_allclose(
        jnp.sum((found.inputs - VIEW) ** 2), losses.min(), rtol=1e-5
    )


def test_restarts_can_be_compared_without_the_prior(rng):
    """A prior that is high where the matching is good turns the choice around."""
    still = from_optax(optax.sgd(0.0))

    def prior(view, candidate, progress):
        return 10 / (0.1 + jnp.sum((candidate.inputs - view.grads) ** 2))

    def start(rng):
        return jax.random.normal(rng, (2,))

    options = {"prior": prior, "restarts": 8}
    found, matched = (
        attack(start, still, choose_by_matching=choice, **options)(rng, VIEW)
        for choice in (False, True)
    )
    losses = matched.info["restart_losses"]
    np.testing.assert_array_equal(losses, found.info["restart_losses"])
    assert matched.loss == losses.min() < found.loss


@pytest.mark.slow
def test_a_restart_does_not_depend_on_how_many_there_are(rng):
    still = from_optax(optax.sgd(0.0))
    losses = [
        attack(lambda rng: jax.random.normal(rng, (2,)), still, restarts=n)(
            rng, VIEW
        ).info["restart_losses"]
        for n in (2, 5)
    ]
    np.testing.assert_array_equal(losses[0], losses[1][:2])


def test_no_part_of_a_candidate_shares_its_draw_with_another(rng):
    seen = []

    def watched(part):
        def start(rng, view):
            seen.append(tuple(jax.random.key_data(rng).tolist()))
            return part.start(rng, view)

        return part._replace(start=start)

    unknowns = Unknowns(image(lambda rng: jnp.zeros(2)), LABEL, NOTHING)
    unknowns = Unknowns(*(watched(part) for part in unknowns))
    descend(unknowns, matches, squared_l2(), SGD, steps=1)(rng, Seen(VIEW))
    assert len(seen) == len(set(seen)) == 3
    assert tuple(jax.random.key_data(rng).tolist()) not in seen


def test_restarts_that_would_all_start_alike_are_refused(rng):
    """Whatever else is drawn, nothing of it reaches a start."""

    def dead_draw(rng):
        return jnp.full_like(jax.random.normal(rng, (2,)), 0.5)

    with pytest.raises(ValueError, match="restarts=2 would all start alike"):
        attack(dead_draw, restarts=2)(rng, VIEW)
    assert bool(attack(dead_draw, restarts=1)(rng, VIEW).finite)


def test_a_prior_moves_the_answer_and_not_the_reported_loss(rng):
    """|x - v|^2 + |x|^2 is lowest at v / 2."""

    def prior(view, candidate, progress):
        return jnp.sum(candidate.inputs**2)

    found = attack(prior=prior)(rng, VIEW)
    np.testing.assert_allclose(found.inputs, VIEW / 2, rtol=1e-4)
    np.testing.assert_allclose(found.loss, 1.25, rtol=1e-4)


def test_every_move_is_projected(rng):
    found = attack(project=lambda x: jnp.clip(x, 0, 0.5))(rng, VIEW)
    assert found.inputs.tolist() == [0.5, 0.0]


def late(weight, after):
    """A prior on the squared length of the image, which begins after so many steps."""

    def prior(view, candidate, progress):
        return weight * (progress >= after) * jnp.sum(candidate.inputs**2)

    return prior


def by_slow_descent(steps, weight, after, rate=0.25):
    """Descends with NumPy; compares iterates with the prior of the last step."""
    x, iterates = np.zeros(2), []
    for step in range(steps):
        iterates.append(x)
        begun = step / steps >= after
        x = x - rate * 2 * ((x - VIEW) + begun * weight * x)
    matching = np.array([np.sum((x - VIEW) ** 2) for x in iterates])
    total = matching + weight * np.array([np.sum(x**2) for x in iterates])
    return iterates[np.argmin(total)], matching[np.argmin(total)]


@pytest.mark.parametrize("after", [0.0, 0.5, 0.9])
def test_iterates_are_compared_with_the_prior_of_the_last_step(rng, after):
    """One that begins half-way would be lowest just before it, if compared as met."""
    found = attack(prior=late(1.0, after), steps=40, points=40)(rng, VIEW)
    image, matching = by_slow_descent(40, 1.0, after)
    np.testing.assert_allclose(found.inputs, image, rtol=1e-5)
    np.testing.assert_allclose(found.loss, matching, rtol=1e-5)


def drawn(start, rng, restarts):
    """What the restarts' images start at [R, 2]."""
    keys = [jax.random.fold_in(jax.random.fold_in(rng, i), 0) for i in range(restarts)]
    return np.stack([np.asarray(start(key)) for key in keys])


def squares(points, centre=0.0):
    return np.sum((points - np.asarray(centre)) ** 2, axis=1)


def test_restarts_are_compared_with_the_prior_of_the_last_step(rng):
    """Standing still: each is where it was when the prior had not begun."""
    still = from_optax(optax.sgd(0.0))

    def start(rng):
        return VIEW * 2 * jax.random.uniform(rng, (2,))

    found = attack(start, still, prior=late(5.0, 0.5), restarts=8)(rng, VIEW)
    starts = drawn(start, rng, 8)
    matching = squares(starts, VIEW)
    chosen = np.argmin(matching + 5.0 * squares(starts))
    assert chosen != np.argmin(matching)
    np.testing.assert_allclose(found.inputs, starts[chosen], rtol=1e-5)


def test_a_prior_on_restarts_holds_the_best_candidates_against_each_other(rng):
    """Each restart is near at a step of its own, while most of the others are away."""
    restarts, steps, weight, away = 5, 4, 0.5, 3.0

    def prior(view, candidate, progress):
        mean = jax.lax.pmean(jax.lax.stop_gradient(candidate.inputs), RESTARTS)
        return weight * jnp.sum((candidate.inputs - mean) ** 2)

    def start(rng):
        return VIEW * (1 + jax.random.normal(rng, (2,)) / 2)

    def when(rng):
        return jax.random.randint(jax.random.fold_in(rng, 7), (), 0, steps)

    visiting = Unknown(
        lambda rng, view: (0.0, (start(rng), when(rng))),
        lambda step, fixed: fixed[0] * jnp.where(step == fixed[1], 1.0, away),
    )
    ticking = Optimiser(
        lambda free: (), lambda free, state, *_: ((free[0] + 1, (), ()), state)
    )
    strike = descend(
        Unknowns(visiting, LABEL, NOTHING),
        matches,
        squared_l2(),
        ticking,
        prior=prior,
        steps=steps,
        restarts=restarts,
    )
    found = strike(rng, Seen(VIEW))
    near, steps_near = drawn(start, rng, restarts), drawn(when, rng, restarts)
    np.testing.assert_allclose(found.info["restart_losses"], squares(near, VIEW), 1e-5)
    together = squares(near, VIEW) + weight * squares(near, near.mean(axis=0))
    means = [
        np.mean(np.where((steps_near == step)[:, None], near, away * near), axis=0)
        for step in steps_near
    ]
    as_met = squares(near, VIEW) + weight * squares(near, means)
    assert np.argmin(together) != np.argmin(as_met)
    np.testing.assert_allclose(found.inputs, near[np.argmin(together)], rtol=1e-6)


def judged_first(rng, view, judge, free):
    """Stays where it is, and asks what that is worth."""
    return jax.tree.map(lambda x: x + 0 * judge.matching(free), free)


def times_traced(primitive, prior):
    """Counts a primitive in the whole attack."""
    made = attack(prior=prior, steps=4)
    return str(jax.make_jaxpr(made)(jax.random.key(0), VIEW)).count(f" {primitive}")


@pytest.mark.parametrize(("moves", "times"), [(None, 1), (Moves(judged_first), 2)])
def test_a_program_has_the_objective_once_and_once_for_its_moves(moves, times):
    """However many steps, points, snapshots and restarts there are."""

    def simulate(view, candidate):
        mine, theirs = matches(view, candidate)
        return jax.tree.map(lax.lgamma, mine), theirs

    options = {"steps": 20, "points": None, "snapshots": 5, "restarts": 2}
    unknowns = Unknowns(
        image(lambda rng: jax.random.uniform(rng, (2,))), LABEL, NOTHING
    )
    strike = descend(unknowns, simulate, squared_l2(), SGD, moves=moves, **options)
    found = equations(lambda rng: strike(rng, Seen(VIEW)), jax.random.key(0))
    names = [equation.primitive.name for equation in found]
    assert names.count("lgamma") == times and names.count("digamma") == 1


def test_what_does_not_change_with_progress_is_computed_once_a_step():
    """The last step's prior costs no second pass through a network in it."""

    def costly(view, candidate, progress):
        return jnp.sum(jnp.floor(candidate.inputs))  # the driver itself has no floor

    def falling(view, candidate, progress):
        return 0.1**progress * costly(view, candidate, progress)

    assert times_traced("floor", costly) == times_traced("floor", falling) == 1
    # Only a prior that changes is evaluated at two progresses, stacked.
    assert times_traced("stack[", falling) == times_traced("stack[", costly) + 1


def test_a_prior_sees_the_other_restarts(rng):
    """With no gradient to match, all restarts meet in their mean."""

    def prior(view, candidate, progress):
        mean = jax.lax.pmean(jax.lax.stop_gradient(candidate.inputs), RESTARTS)
        return jnp.sum((candidate.inputs - mean) ** 2)

    def start(rng):
        return jax.random.normal(rng, (2,))

    found = attack(start, prior=prior, restarts=3)(rng, jnp.zeros(2))
    assert found.info["restart_losses"].shape == (3,)
    alone = attack(start, restarts=3)(rng, jnp.zeros(2))
    # Alone they all go to 0; together with their mean they go there more slowly.
    assert float(found.loss) > float(alone.loss)


@pytest.mark.parametrize(
    ("steps", "points"), [(40, 20), (7, 7), (22, 11), (23, 1), (1, 1)]
)
def test_losses_are_recorded_at_as_many_points_as_divide_the_steps(rng, steps, points):
    found = jax.eval_shape(attack(steps=steps, points=None), rng, VIEW)
    assert found.info["losses"].shape == (points,)


@pytest.mark.parametrize("steps", (20, 1))
def test_an_all_nan_view_is_a_reported_failure(rng, steps):
    found = attack(steps=steps, points=1)(rng, VIEW * jnp.nan)
    assert not bool(found.finite)
    assert not np.isfinite(found.loss)


@pytest.mark.parametrize(
    "bad", ({"steps": 0}, {"restarts": 0}, {"points": 3}, {"points": 0}), ids=str
)
def test_bad_sizes_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        attack(**bad)


def test_an_all_zero_upload_is_a_reported_failure(rng):
    """The candidate matches it perfectly, and that is no success."""
    found = attack()(rng, VIEW * 0)
    assert found.loss == 0
    assert not bool(found.finite)


def broken_at(first, end):
    """Gives iterates that are 0, and infinite from the first to before the end."""

    def step(free, count, value, grads):
        count += 1
        far = jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), free)
        near = jax.tree.map(jnp.zeros_like, free)
        bad = (count >= first) & (count < end)
        return jax.tree.map(lambda a, b: jnp.where(bad, a, b), far, near), count

    return Optimiser(lambda free: jnp.array(0), step)


def test_a_trial_that_overflows_does_not_break_a_search(rng):
    """A line search may step too far once, and come back; what ends broken is broken.

    A third of the steps before the end, and at the end.
    """
    for points in (1, 4):
        once = attack(optimiser=broken_at(8, 12), points=points)
        assert bool(once(rng, VIEW).finite)
        broken = attack(optimiser=broken_at(12, 99), points=points)
        assert not bool(broken(rng, VIEW).finite)


@pytest.mark.parametrize(
    ("steps", "first", "sound"),
    [(60, 58, True), (60, 57, False), (10, 10, True), (10, 9, False)],
)
def test_the_end_of_a_search_is_its_last_twentieth(rng, steps, first, sound):
    """Of 60 steps the last three, of which one is enough; of ten the last."""
    found = attack(optimiser=broken_at(first, 99), steps=steps, points=1)(rng, VIEW)
    assert bool(found.finite) == sound


@pytest.mark.parametrize("shape", [(1,), (2, 2), (3,)])
def test_an_upload_of_another_shape_is_named(rng, shape):
    """The first two would broadcast."""
    with pytest.raises(ValueError, match=r"tensor '' is \(.*own gradient it is \(2,"):
        attack()(rng, jnp.ones(shape))


def test_a_missing_tensor_is_named(rng):
    def halves(view, candidate):
        first, second = candidate.inputs
        return {"a": first, "b": second}, view.grads

    unknowns = Unknowns(image(lambda rng: jnp.zeros(2)), LABEL, NOTHING)
    broken = descend(unknowns, halves, squared_l2(), SGD, steps=2)
    with pytest.raises(ValueError, match=r"tensor 'b' is missing, .* it is \(\)"):
        broken(rng, Seen({"a": jnp.ones(())}))


def test_names_of_before_say_where_they_went():
    with pytest.raises(AttributeError, match="attacks.LOCKS is kljax.attacks.SECRETS"):
        attacks.LOCKS  # noqa: B018
    with pytest.raises(AttributeError, match="'kljax.attacks' has no attribute 'LOKS'"):
        attacks.LOKS  # noqa: B018
    nothing = attacks.Reconstruction((), (), 0.0, True)
    with pytest.raises(AttributeError, match="Reconstruction.images is .*inputs"):
        nothing.images  # noqa: B018
    for name in attacks._MOVED.values():
        assert hasattr(attacks, name)
