"""OUTPOST: when it acts, on which entries, and what an attacker tells from zeros."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

from kljax.core.types import Public
from kljax.defences import Context, at_update, chain, none, outpost

GENERATOR = np.random.default_rng(9)


def draw(*shape, scale=1.0, dtype=jnp.float32):
    return jnp.asarray(scale * GENERATOR.standard_normal(shape), dtype)


GRADS = Public(
    {
        "conv/kernel": draw(3, 3, 2, 6),
        "fc/bias": draw(30, scale=0.01),
        "fc/kernel": draw(20, 30, scale=0.3),
        "half": draw(4, 12, dtype=jnp.bfloat16),
        "one": draw(),
    }
)
# Of one tensor the variance is above 1, of one it is 0.
SCALES = {"conv/kernel": 3.0, "fc/bias": 0.0, "fc/kernel": 0.5, "half": 0.7, "one": 1.0}
WEIGHTS = Public(
    {n: draw(*x.shape, scale=SCALES[n]).astype(x.dtype) for n, x in GRADS.model.items()}
)
CONTEXT = Context(WEIGHTS, None, None, None)
RELEASE = quick_jit(
    lambda numbers, rng, step: outpost(*numbers).release(
        rng, (), GRADS, CONTEXT._replace(step=step)
    )[0]
)
SIMULATE = quick_jit(
    lambda numbers, g, sent: outpost(*numbers).simulate(g, sent, None, None)
)
ALWAYS = (0.0, 0.8, 0.6, 0.4)  # at beta 0 each step is perturbed


def sent_by(*numbers, seed=0, step=0):
    numbers = tuple(np.float32(x) for x in numbers)
    return RELEASE(numbers, jax.random.key(seed), np.int32(step)).model


def by_hand(fraction, share):
    """Prunes in NumPy, and says which rows have noise, row after row."""
    rows = {}
    for name, g in GRADS.model.items():
        g = np.asarray(g, np.float64)
        for place in np.ndindex(g.shape[:-1]):
            rows[name, place] = np.mean(np.square(g[place]))
    least = np.percentile(list(rows.values()), 100 * (1 - share))
    noisy, pruned = {}, {}
    for name, g in GRADS.model.items():
        g = np.asarray(g, np.float64)
        pruned[name] = np.where(
            np.abs(g) < np.percentile(np.abs(g), 100 * fraction), 0, g
        )
        noisy[name] = np.zeros(g.shape, bool)
        for place in np.ndindex(g.shape[:-1]):
            noisy[name][place] = rows[name, place] >= least
    return pruned, noisy


def test_it_prunes_and_adds_noise_of_a_tensors_own_size_to_the_strongest_rows():
    pruned, noisy = by_hand(0.6, 0.4)
    many = [sent_by(*ALWAYS, seed=seed) for seed in range(40)]
    for name, wanted in pruned.items():
        off = np.stack([np.asarray(x[name], np.float64) for x in many]) - wanted
        risk = min(np.var(np.asarray(WEIGHTS.model[name], np.float64)), 1)
        assert not np.any(off[:, ~noisy[name]]), name
        if not noisy[name].any() or risk == 0:
            np.testing.assert_array_equal(off, 0)
            continue
        drawn = off[:, noisy[name]]
        assert np.std(drawn) == pytest.approx(0.8 * risk, rel=0.15), name
        assert len(np.unique(np.round(drawn, 4))) > 0.8 * drawn.size or name == "half"
    # Both kinds of tensors are there, and a bound on the risk.
    assert 0 < np.mean(noisy["conv/kernel"]) <= 1 and not noisy["fc/kernel"].all()
    assert np.var(WEIGHTS.model["conv/kernel"]) > 2


def test_steps_are_perturbed_less_often_the_later_they_are():
    def share(step):
        rngs = jax.random.split(jax.random.key(1), 400)
        numbers = (2.0, *ALWAYS[1:])
        sent = jax.vmap(lambda rng: RELEASE(numbers, rng, step).model["fc/kernel"])
        return np.mean(np.any(sent(rngs) == 0, axis=(1, 2)))

    for step in (0, 4):
        assert share(step) == pytest.approx(1 / (1 + 2 * (step + 1)), abs=0.07)
    # What is not perturbed is what was computed.
    late = sent_by(1e30, *ALWAYS[1:])
    jax.tree.map(np.testing.assert_array_equal, late, GRADS.model)


def test_no_strength_is_the_identity_and_all_strengths_are_one_program():
    before = RELEASE._cache_size()
    for numbers in ((0, 0, 0, 0.4), (0, 0.8, 0, 0), ALWAYS, (1, 2, 0.1, 1)):
        sent = sent_by(*numbers)
        assert jax.eval_shape(lambda s=sent: s) == jax.eval_shape(lambda: GRADS.model)
        if numbers[1] * numbers[3] == 0:
            jax.tree.map(np.testing.assert_array_equal, sent, GRADS.model)
    assert RELEASE._cache_size() - before <= 1


def test_an_attacker_compares_what_is_exact():
    sent = Public(sent_by(*ALWAYS))
    pruned, noisy = by_hand(0.6, 0.4)
    at_truth = SIMULATE(ALWAYS, GRADS, sent).model
    jax.tree.map(np.testing.assert_array_equal, at_truth, sent.model)
    guess = jax.tree.map(lambda x: x + 1, GRADS)
    simulated = SIMULATE(ALWAYS, guess, sent).model
    kernel, exact = simulated["fc/kernel"], ~noisy["fc/kernel"]
    wanted = np.where(pruned["fc/kernel"] == 0, 0, guess.model["fc/kernel"])
    np.testing.assert_array_equal(kernel[exact], wanted[exact])
    assert np.any(wanted[exact]) and np.any(noisy["conv/kernel"])
    rows = noisy["conv/kernel"]
    np.testing.assert_array_equal(
        simulated["conv/kernel"][rows], sent.model["conv/kernel"][rows]
    )
    # A row that is hidden in part is exact as long as a zero is seen in it.
    gaps = sent.model | {"fc/kernel": sent.model["fc/kernel"].at[:, 0].set(jnp.nan)}
    part = SIMULATE(ALWAYS, guess, Public(gaps)).model
    np.testing.assert_array_equal(part["fc/kernel"][:, 1:], kernel[:, 1:])
    assert all(np.all(np.isfinite(np.asarray(x, float))) for x in part.values())


def test_what_shows_no_zeros_is_compared_as_it_is():
    guess = jax.tree.map(lambda x: x + 1, GRADS)
    few = GRADS.model["fc/kernel"].at[0].set(0)
    for numbers, sent in (
        (ALWAYS, GRADS),
        (ALWAYS, Public(GRADS.model | {"fc/kernel": few})),
        ((0.0, 0.8, 0.0, 0.4), Public(sent_by(0, 0.8, 0, 0.4))),
    ):
        simulated = SIMULATE(numbers, guess, sent)
        jax.tree.map(np.testing.assert_array_equal, simulated, guess)
    pruned = outpost(*ALWAYS).simulate(guess, None, None, None).model["fc/kernel"]
    assert np.mean(np.asarray(pruned) == 0) == pytest.approx(0.6, abs=0.01)


def test_it_acts_on_a_whole_change_too_and_on_each_client_alone():
    defence = at_update(chain(none(), outpost(*ALWAYS))).update
    rngs = jax.random.split(jax.random.key(3), 2)
    release = jax.vmap(lambda r: defence.release(r, ((), ()), GRADS, CONTEXT)[0])
    one, other = quick_jit(release)(rngs).model["conv/kernel"]
    assert np.all((one == 0) == (other == 0)) and np.any(one != other)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("beta", -1, "beta must be finite and >= 0, got -1"),
        ("noise", float("nan"), "noise must be finite and >= 0, got nan"),
        ("noise", float("inf"), "noise must be finite and >= 0, got inf"),
        ("fraction", 1, "fraction must be in .0, 1., got 1"),
        ("fraction", float("nan"), "fraction must be in .0, 1., got nan"),
        ("share", 1.5, "share must be in .0, 1., got 1.5"),
    ],
)
def test_impossible_numbers_are_named(option, value, message):
    with pytest.raises(ValueError, match=message):
        outpost(**{option: value})
