"""Adam's stand-in for the gradient, against independent forms, and its undoing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kljax.core.types import Public
from kljax.defences import adam_stand_in

SIZE, B1, B2, EPS = 1e-3, 0.9, 0.999, 1e-8


def draw(scale=1e-3, seed=0):
    """A gradient with tensors of two ranks, and a zero in each."""
    generator = np.random.default_rng(seed)
    model = {
        "kernel": scale * generator.standard_normal((30, 20)),
        "bias": scale * generator.standard_normal(40),
    }
    for leaf in model.values():
        leaf.flat[0] = 0.0
    return Public({k: jnp.asarray(v, jnp.float32) for k, v in model.items()})


def released(defence, gradients):
    """What is sent, one upload after another [t]."""
    state, sent = defence.init_state(gradients[0]), []
    for grads in gradients:
        one, state = defence.release(None, state, grads, None)
        sent.append(one)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *sent)


def by_hand(gradients, *, sharers=0):
    """The same in float64, entry by entry, as the official code has it."""
    rows = []
    m = v = 0.0
    for k, g in enumerate(gradients):
        t = max(k // sharers - 1, 0) if sharers else k
        m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g**2
        correction = np.sqrt(1 - B2 ** (t + 1)) / (1 - B1 ** (t + 1))
        rows.append(SIZE * correction * m / (np.sqrt(v) + EPS))
    return np.stack(rows)


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def exact(tree):
    return np.asarray(flat(tree), np.float64)


@pytest.mark.parametrize("scale", (1e-6, 1e-3, 1.0))
def test_the_first_release_is_little_but_the_sign(scale):
    grads = draw(scale)
    sent = exact(jax.tree.map(lambda x: x[0], released(adam_stand_in(), [grads])))
    g = exact(grads)
    closed = SIZE * g / (np.abs(g) + EPS / np.sqrt(1 - B2))
    np.testing.assert_allclose(sent, closed, rtol=1e-5, atol=0)
    large = np.abs(g) > 1
    if scale == 1.0:
        np.testing.assert_allclose(sent[large], SIZE * np.sign(g[large]), rtol=1e-6)
    np.testing.assert_array_equal(np.sign(sent), np.sign(g))


@pytest.mark.parametrize("sharers", (0, 3))
def test_later_releases_are_those_of_the_official_code(sharers):
    """Of one client, or of three that share a state, one after another."""
    gradients = [draw(seed=seed) for seed in range(8)]
    sent = released(adam_stand_in(sharers=sharers), gradients)
    wanted = by_hand([exact(g) for g in gradients], sharers=sharers)
    got = np.stack([exact(jax.tree.map(lambda x, k=k: x[k], sent)) for k in range(8)])
    np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=1e-6 * SIZE)


def test_without_eps_it_is_optax():
    gradients = [draw(seed=seed) for seed in range(4)]
    method = optax.chain(optax.scale_by_adam(B1, B2, 0.0), optax.scale(SIZE))
    state = method.init(gradients[0])
    sent = released(adam_stand_in(eps=1e-30), gradients)
    for k, grads in enumerate(gradients):
        wanted, state = method.update(grads, state)
        mine = flat(jax.tree.map(lambda x, k=k: x[k], sent))
        there = flat(grads) != 0
        # Of optax's own rounding of 1 - b2^t.
        np.testing.assert_allclose(mine[there], flat(wanted)[there], rtol=1e-4)


def test_an_attacker_follows_the_moments_of_earlier_uploads():
    first, second = draw(seed=1), draw(seed=2)
    sent = released(adam_stand_in(), [first, second])
    earlier, last = (jax.tree.map(lambda x, s=s: x[s], sent) for s in (slice(1), 1))
    simulated = adam_stand_in().simulate(second, last, earlier, None)
    np.testing.assert_allclose(flat(simulated), flat(last), rtol=0.01, atol=1e-6)
    # Who has no record of them believes in a first release.
    forgetful = flat(adam_stand_in().simulate(second, last, None, None))
    np.testing.assert_array_equal(np.sign(forgetful), np.sign(flat(second)))
    apart = np.linalg.norm(forgetful - flat(last)) / np.linalg.norm(flat(last))
    assert apart > 0.3


@pytest.mark.slow
def test_an_entry_with_a_gap_in_its_record_makes_no_difference():
    """Neither its own past nor that of others is made up."""
    defence, (first, second, third) = adam_stand_in(), (draw(seed=s) for s in (1, 2, 3))
    sent = released(defence, [first, second, third])
    earlier, last = (jax.tree.map(lambda x, s=s: x[s], sent) for s in (slice(2), 2))
    gaps = jax.tree.map(
        lambda x: np.random.default_rng(4).uniform(size=x.shape) < 0.2, earlier
    )
    record = jax.tree.map(lambda x, gap: jnp.where(gap, jnp.nan, x), earlier, gaps)
    gap = flat(jax.tree.map(lambda x: x.any(axis=0), gaps))

    other = draw(seed=5)  # a candidate that is not the truth
    found, whole = (
        flat(defence.simulate(other, last, past, None)) for past in (record, earlier)
    )
    np.testing.assert_array_equal(found[gap], flat(last)[gap])
    np.testing.assert_array_equal(found[~gap], whole[~gap])
    assert np.any(whole[gap] != flat(last)[gap])
    undone, whole, none = (
        flat(defence.undo(last, past)) for past in (record, earlier, None)
    )
    np.testing.assert_array_equal(undone[gap], none[gap])
    np.testing.assert_array_equal(undone[~gap], whole[~gap])

    # What is hidden now, too, is finite: what follows may measure the whole.
    hidden = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), last)

    def total(scale):
        candidate = jax.tree.map(lambda x: scale * x, third)
        simulated = defence.simulate(candidate, hidden, record, None)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(simulated))

    assert np.isfinite(total(1.0)) and np.isfinite(jax.grad(total)(1.0))


@pytest.mark.parametrize("scale", (1e-5, 1e-3, 1e-2))
def test_the_first_release_can_be_undone(scale):
    grads = draw(scale)
    sent = jax.tree.map(lambda x: x[0], released(adam_stand_in(), [grads]))
    found = adam_stand_in().undo(sent, None)
    # Rounding is 2^-24 of what is sent, and |g| / 3e-7 of what is found.
    np.testing.assert_allclose(flat(found), flat(grads), rtol=2 * scale + 1e-4)


def test_a_second_release_is_undone_up_to_a_branch():
    first, second = draw(seed=1), draw(seed=2)
    sent = released(adam_stand_in(), [first, second])
    earlier, last = (jax.tree.map(lambda x, s=s: x[s], sent) for s in (slice(1), 1))
    found, g = flat(adam_stand_in().undo(last, earlier)), flat(second)
    right = np.isclose(found, g, rtol=0.02, atol=1e-7)
    assert 0.6 < np.mean(right) < 1
    # The other root is as good an explanation of what was sent.
    again = adam_stand_in().undo(last, earlier)
    simulated = adam_stand_in().simulate(again, last, earlier, None)
    np.testing.assert_allclose(flat(simulated), flat(last), rtol=0.02, atol=1e-6)


@pytest.mark.parametrize("earlier", (0, 1), ids=("first", "later"))
def test_what_an_attacker_assumes_has_a_finite_derivative(earlier):
    grads, defence = draw(), adam_stand_in()
    zeros = jax.tree.map(jnp.zeros_like, grads)
    record = jax.tree.map(lambda x: x[None], grads) if earlier else None

    def total(scale):
        candidate = jax.tree.map(lambda x: scale * x, grads)
        simulated = defence.simulate(candidate, grads, record, None)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(simulated))

    for scale in (0.0, 1.0):  # where the root of the second moment has none
        assert np.isfinite(jax.grad(total)(scale))
    assert np.all(np.isfinite(flat(defence.undo(zeros, record))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be > 0, got 0"),
        ({"eps": 0.0}, "eps must be > 0, got 0.0"),
        ({"eps": float("nan")}, "eps must be > 0, got nan"),
        ({"b1": 1}, "b1 must be in .0, 1., got 1"),
        ({"b2": -0.1}, "b2 must be in .0, 1., got -0.1"),
        ({"sharers": 1.5}, "sharers must be a whole number >= 0, got 1.5"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        adam_stand_in(**options)
