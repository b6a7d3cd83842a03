"""The driver of populations, and CMA-ES behind it."""

import builtins

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kljax.attacks import (
    RESTARTS,
    Evolution,
    Unknown,
    Unknowns,
    adam,
    cma_es,
    descend,
    evolve,
    squared_l2,
)
from kljax.attacks.optimisers import make_optimiser

RNG = jax.random.key(5)
TRUTH = np.array([[[[0.3], [-1.2]]]], np.float32)  # an "image" of 1 x 2 pixels


class Seen:
    """A view of a problem that has nothing but two numbers to match."""

    def __init__(self, value):
        self.grads = {"w": jnp.asarray(value)}
        self.observations = None


def nothing():
    return Unknown(lambda rng, view: ((), ()), lambda free, fixed: jnp.zeros((1, 2)))


def images(start=0.0, **parts):
    return Unknown(
        lambda rng, view: (jnp.full((1, 1, 2, 1), start), ()),
        lambda free, fixed: free,
        **parts,
    )


def matches(view, candidate):
    return {"w": candidate.inputs}, view.grads


def recording(values, population=3):
    """An evolution that asks for the given vectors, whatever it is told."""
    told = []

    def tell(rng, candidates, values, state):
        jax.debug.callback(lambda *x: told.append(x), candidates, values)
        return state + 1

    return told, Evolution(
        population,
        init=lambda rng, start: jnp.zeros((), jnp.int32),
        ask=lambda rng, state: (jnp.asarray(values, jnp.float32)[state], state),
        tell=tell,
    )


ASKED = [  # two generations of three vectors each
    [[1, 0], [0.3, -1.0], [np.nan, 0]],
    [[0, 0], [5, 5], [0.3, -1.1]],
]


def attack(evolution, **options):
    view = options.pop("view", Seen(TRUTH))
    unknowns = Unknowns(options.pop("images", images()), nothing(), nothing())
    strike = evolve(unknowns, matches, squared_l2(), evolution, **options)
    return strike(RNG, view)


@pytest.fixture(autouse=True)
def _visible(monkeypatch):
    monkeypatch.setattr(
        "kljax.attacks.drivers.search.says_something",
        lambda view: jnp.any(view.grads["w"] != 0),
    )


def test_values_are_told_by_hand_and_the_best_of_all_generations_is_kept():
    told, evolution = recording(ASKED)
    found = attack(evolution, steps=6)
    jax.effects_barrier()
    distance = np.sum((np.float32(ASKED) - TRUTH.ravel()) ** 2, -1)
    for (candidates, values), asked, expected in zip(
        told, ASKED, distance, strict=True
    ):
        np.testing.assert_array_equal(candidates, np.float32(asked))
        np.testing.assert_allclose(values, np.nan_to_num(expected, nan=np.inf), 1e-6)
    np.testing.assert_array_equal(np.ravel(found.inputs), np.float32(ASKED[1][2]))
    np.testing.assert_allclose(found.loss, 0.01, rtol=1e-5)
    np.testing.assert_allclose(found.info["losses"], [0.04, 0.01], rtol=1e-5)
    assert bool(found.finite) and int(found.numbers["evaluations"]) == 6


def test_a_large_generation_takes_no_more_memory_and_finds_the_same(monkeypatch):
    """The space that a compiled search needs beside its arguments."""

    def compiled(population):
        pixels = Unknown(
            lambda rng, view: (jnp.zeros(2), ()),
            # Something large of each candidate, which is then seen as two numbers.
            lambda free, fixed: jnp.sin(jnp.arange(4e4)[:, None] * free[None]),
        )

        def matches(view, candidate):
            rows = candidate.inputs
            seen = jnp.stack([jnp.mean(rows @ rows.T[:, :2]), jnp.mean(rows)])
            return {"w": seen}, view.grads

        strike = evolve(
            Unknowns(pixels, nothing(), nothing()),
            matches,
            squared_l2(),
            Evolution(
                population,
                init=lambda rng, start: start,
                ask=lambda rng, state: (
                    jax.random.normal(rng, (population, 2)),
                    state,
                ),
                tell=lambda rng, candidates, values, state: state,
            ),
            steps=2 * population,
        )
        lowered = jax.jit(lambda rng, value: strike(rng, Seen(value))).lower(
            RNG, jnp.zeros(2)
        )
        return lowered.compile()

    sizes = [
        compiled(population).memory_analysis().temp_size_in_bytes
        for population in (128, 512)
    ]
    assert sizes[1] < 1.2 * sizes[0]
    values = np.random.default_rng(0).normal(size=(1, 9, 2))
    _, evolution = recording(values, population=9)
    whole = attack(evolution, steps=9)
    monkeypatch.setattr("kljax.attacks.drivers.population.SIDE_BY_SIDE", 4)
    _, evolution = recording(values, population=9)
    parts = attack(evolution, steps=9)
    np.testing.assert_array_equal(whole.inputs, parts.inputs)
    assert float(whole.loss) == pytest.approx(float(parts.loss), rel=1e-6)


def test_what_is_not_allowed_is_brought_back_before_it_is_judged():
    told, evolution = recording([[[9, 0], [8, -1.1], [7, 7]]])
    box = images(project=lambda x: jnp.clip(x, -1.2, 0.3))
    found = attack(evolution, images=box, steps=3)
    jax.effects_barrier()
    np.testing.assert_allclose(np.ravel(found.inputs), [0.3, -1.1], rtol=1e-6)
    np.testing.assert_array_equal(told[0][0][:, 0], [9, 8, 7])  # as it was asked for


def test_the_penalty_of_what_is_looked_for_counts():
    """The match is cheaper to miss than the penalty to pay."""
    values = [[[0.3, -1.2], [0.2, 0.0], [9, 9]]]
    heavy = images(penalty=lambda free: 2 * jnp.sum(free**2))
    for part, best in ((images(), values[0][0]), (heavy, values[0][1])):
        _, evolution = recording(values)
        found = attack(evolution, images=part, steps=3)
        np.testing.assert_allclose(np.ravel(found.inputs), best, rtol=1e-6)
    # The loss that is reported is the match alone.
    np.testing.assert_allclose(found.loss, 0.01 + 1.44, rtol=1e-5)


def test_a_descent_pays_the_penalty_too():
    unknowns = Unknowns(
        images(penalty=lambda free: jnp.sum(free**2)), nothing(), nothing()
    )
    strike = descend(unknowns, matches, squared_l2(), adam(0.05), steps=400)
    np.testing.assert_allclose(strike(RNG, Seen(TRUTH)).inputs, TRUTH / 2, atol=1e-2)


def test_a_last_generation_that_breaks_is_reported_and_the_best_kept():
    _, evolution = recording([ASKED[0], np.full((3, 2), np.nan)])
    found = attack(evolution, steps=6)
    assert not found.finite and np.isclose(found.loss, 0.04)


def test_an_upload_of_zeros_has_nothing_to_match():
    _, evolution = recording(ASKED)
    assert not attack(evolution, steps=6, view=Seen(np.zeros_like(TRUTH))).finite


def test_random_keys_are_all_different():
    seen = []

    def note(rng):
        data = jax.random.key_data(rng)
        jax.debug.callback(lambda d: seen.append(tuple(d.tolist())), data)

    def init(rng, start):
        note(rng)
        return jnp.zeros(2)

    def ask(rng, state):
        note(rng)
        return jax.random.normal(rng, (3, 2)), state

    def tell(rng, candidates, values, state):
        note(rng)
        return state

    attack(Evolution(3, init, ask, tell), steps=12)
    jax.effects_barrier()
    assert len(seen) == len(set(seen)) == 1 + 2 * 4


@pytest.mark.slow
@pytest.mark.parametrize("restarts", (1, 3))
def test_cma_es_finds_the_minimum_of_a_bent_valley(restarts):
    """In units in which one direction is fifty times as steep as the other."""
    turn = np.array([[0.6, -0.8], [0.8, 0.6]]) @ np.diag([1.0, 50.0])

    def steep(view, candidate):
        bent = candidate.inputs.ravel() - TRUTH.ravel()
        return {"w": (turn.astype(np.float32) @ bent)}, {"w": jnp.zeros(2)}

    unknowns = Unknowns(images(), nothing(), nothing())
    strike = evolve(
        unknowns,
        steep,
        squared_l2(),
        cma_es(population=10),
        steps=800,
        restarts=restarts,
    )
    found = jax.jit(lambda rng: strike(rng, Seen(TRUTH)))(RNG)
    np.testing.assert_allclose(found.inputs, TRUTH, atol=1e-3)
    assert int(found.numbers["evaluations"]) == 800 * restarts
    losses = found.info["restart_losses"]
    assert losses.shape == (restarts,) and float(found.loss) == losses.min()
    # It converges: a random search of as many would end near 1e-2.
    assert found.loss < 1e-6


@pytest.mark.slow
def test_restarts_draw_apart_though_all_start_alike():
    strike = evolve(
        Unknowns(images(), nothing(), nothing()),
        matches,
        squared_l2(),
        cma_es(population=4),
        steps=8,
        restarts=3,
    )
    losses = strike(RNG, Seen(TRUTH)).info["restart_losses"]
    assert len(set(losses.tolist())) == 3


def test_the_spread_is_that_of_the_first_generation():
    for spread in (0.1, 3.0):
        evolution = make_optimiser("cma_es", jnp.float32(spread))
        state = evolution.init(RNG, jnp.full(4, 2.0))
        asked, _ = evolution.ask(RNG, state)
        assert asked.shape == (50, 4)
        assert abs(float(jnp.mean(asked)) - 2) < 0.3 * spread
        assert abs(float(jnp.std(asked)) / spread - 1) < 0.2


def test_what_does_not_fit_is_refused():
    unknowns = Unknowns(images(), nothing(), nothing())

    def make(evolution, **options):
        return evolve(unknowns, matches, squared_l2(), evolution, **options)

    with pytest.raises(ValueError, match="steps=70 .* generations of 50: take 50"):
        make(cma_es(), steps=70)
    with pytest.raises(ValueError, match="generations of 50: take 50"):
        make(cma_es(), steps=20)
    with pytest.raises(ValueError, match="needs a kljax.attacks.Evolution.*Optimiser"):
        make(adam(), steps=100)
    with pytest.raises(ValueError, match="follows gradients.*lbfgs.*Evolution"):
        descend(unknowns, matches, squared_l2(), cma_es(), steps=100)
    with pytest.raises(ValueError, match="population of 4 or more, got 3"):
        cma_es(population=3)

    def among(view, candidate, progress):
        return jnp.sum(jax.lax.pmean(candidate.inputs, RESTARTS))

    def start(rng, view):
        return jax.random.normal(rng, (1, 1, 2, 1)), ()

    drawn = Unknowns(images()._replace(start=start), nothing(), nothing())
    strike = evolve(
        drawn, matches, squared_l2(), cma_es(), steps=50, restarts=2, prior=among
    )
    with pytest.raises(ValueError, match="compares restarts does not go"):
        strike(RNG, Seen(TRUTH))


def test_without_evosax_it_says_what_to_install(monkeypatch):
    def refuse(name, *args, **kwargs):
        if name.startswith("evosax"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    original = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install 'kljax\[evolution\]'"):
        cma_es()
