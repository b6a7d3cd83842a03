"""Quantisation: its error, its levels, and what an attacker makes of them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kljax.core.types import Public
from kljax.defences import Context, chain, none, quantise, quantise_mixed
from kljax.defences.quantisation import LEAST_PROBABILITY

CONTEXT = Context(None, None, None, None)
DRAWN = np.random.default_rng(3).standard_normal((40, 25)).astype(np.float32)
TENSORS = {
    "around zero": DRAWN,
    "above zero": DRAWN**2 + 3,
    "with zeros": np.where(DRAWN > 0.5, DRAWN, 0),
    "one entry": DRAWN[:1, 0],
    "tiny": 1e-12 * DRAWN,
    "zeros": np.zeros(5, np.float32),
}


def sent_of(defence, grads, rng=0, state=None):
    if state is None:
        state = defence.init_state(grads)
    return defence.release(jax.random.key(rng), state, grads, CONTEXT)[0]


def step_by_hand(x, bits, mode):
    """Works out s in 64 bits."""
    x = np.asarray(x, np.float64)
    if mode == "affine":
        return (max(x.max(), 0) - min(x.min(), 0)) / (2**bits - 1)
    if bits == 1:
        return 2 * np.abs(x).max()
    return np.abs(x).max() / (2 ** (bits - 1) - 1)


def by_hand(x, bits, mode):
    """Quantises an array in NumPy, entry by entry."""
    s = step_by_hand(x, bits, mode)
    if s == 0:
        return np.zeros_like(x)
    levels = range(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1))
    if mode == "affine":
        z = round(-min(float(x.min()), 0) / s)
        levels = [q - z for q in range(2**bits)]
    elif bits == 1:
        levels = (-0.5, 0.5)
    grid = s * np.array(list(levels))
    nearest = np.abs(np.asarray(x, np.float64)[..., None] - grid).argmin(axis=-1)
    return grid[nearest]


@pytest.mark.parametrize("mode", ("symmetric", "affine"))
@pytest.mark.parametrize("bits", (1, 2, 3, 4, 8))
def test_it_is_the_nearest_level(bits, mode):
    for name, x in TENSORS.items():
        found = np.asarray(sent_of(quantise(bits, mode=mode), {"a": jnp.array(x)})["a"])
        wanted, s = by_hand(x, bits, mode), step_by_hand(x, bits, mode)
        # Between two levels rounding decides.
        gap = np.abs(found - x) - np.abs(wanted - x)
        assert np.all(np.abs(gap) <= 1e-5 * s + 1e-6 * np.abs(x).max()), name
        assert np.all(np.abs(found - x) <= s / 2 + 1e-6 * np.abs(x).max()), name
        assert len(np.unique(found)) <= 2**bits


@pytest.mark.parametrize("bits", (12, 16, 24, 31))
def test_many_bits_are_off_by_half_a_step(bits):
    for mode in ("symmetric", "affine"):
        for x in TENSORS.values():
            found = sent_of(quantise(bits, mode=mode), {"a": jnp.array(x)})["a"]
            most = step_by_hand(x, bits, mode) / 2 + 3e-7 * np.abs(x).max()
            assert np.abs(np.asarray(found, np.float64) - x).max() <= most


def test_what_is_zero_stays_zero():
    for mode, bits in itertools.product(("symmetric", "affine", "stochastic"), (2, 8)):
        for name in ("with zeros", "zeros"):
            x = TENSORS[name]
            found = sent_of(quantise(bits, mode=mode), {"a": jnp.array(x)})["a"]
            assert np.all(np.asarray(found)[x == 0] == 0)


@pytest.mark.parametrize("bits", (1, 2, 4))
def test_stochastic_rounding_is_right_on_average(bits):
    x = TENSORS["around zero"][:10]
    defence, draws = quantise(bits, mode="stochastic"), 4000

    def one(rng):
        return defence.release(rng, (), {"a": x}, CONTEXT)[0]["a"]

    many = np.asarray(jax.vmap(one)(jax.random.split(jax.random.key(1), draws)))
    s = step_by_hand(x, bits, "stochastic")
    assert np.abs(many - x).max() < s * (1 + 1e-5)
    # The variance of one rounding is at most s^2 / 4.
    assert np.abs(many.mean(axis=0) - x).max() < 5 * s / 2 / np.sqrt(draws)
    # The nearest level alone is not.
    near = np.asarray(sent_of(quantise(bits), {"a": x})["a"])
    assert np.abs(near - x).max() > 0.4 * s


def test_the_density_of_stochastic_rounding_is_its_frequency():
    x = jnp.array([1.0, 0.3, -0.62, 0.0])  # 7 levels: a step of 1/3
    defence = quantise(3, mode="stochastic")
    seen = jax.vmap(lambda rng: defence.release(rng, (), {"a": x}, CONTEXT)[0]["a"])(
        jax.random.split(jax.random.key(2), 20000)
    )
    places, counts = np.unique(np.round(3 * np.asarray(seen)), axis=0, return_counts=1)
    said = np.exp(jax.vmap(lambda p: defence.log_prob({"a": p / 3}, {"a": x}))(places))
    assert len(places) == 4 and sum(said) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(counts / 20000, said, atol=0.012)


def test_a_density_falls_ever_faster_and_has_a_slope_everywhere():
    defence, seen = quantise(3, mode="stochastic"), {"a": jnp.array([1.0, 1 / 3])}

    def log_prob(off):
        return defence.log_prob(seen, {"a": jnp.array([1.0, (1 + off) / 3])})

    away = np.linspace(0, 5, 101)
    values, slopes = jax.vmap(jax.value_and_grad(log_prob))(away)
    inside = away < 1 - LEAST_PROBABILITY
    np.testing.assert_allclose(values[inside], np.log(1 - away[inside]), atol=1e-5)
    assert np.all(np.isfinite(values)) and np.all(np.diff(slopes[1:]) <= 1e-3)
    assert np.all(slopes[1:] < 0)


def test_what_is_hidden_has_no_part_in_the_density():
    defence = quantise(3, mode="stochastic")
    mean = {"a": jnp.array([1.0, 0.4, 0.1]), "b": jnp.ones(2)}
    seen = {"a": jnp.array([1.0, jnp.nan, 0.0]), "b": None}
    value, slope = jax.value_and_grad(lambda g: defence.log_prob(seen, g))(mean)
    assert value == pytest.approx(np.log(1 - 0.3), abs=1e-5)
    assert slope["a"][1] == 0 and not np.any(slope["b"]) and slope["a"][2] != 0
    assert quantise(32, mode="stochastic").log_prob is None


def test_float16_is_that_of_numpy_and_finite():
    x = jnp.array([1 / 3, 1e-9, -70000.0, 5e4, 0.0])
    found = np.asarray(sent_of(quantise(16, mode="float16"), {"a": x})["a"])
    with np.errstate(over="ignore"):
        wanted = np.asarray(x).astype(np.float16).astype(np.float32)
    wanted[2] = -65504
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("mode", ("symmetric", "affine", "float16"))
def test_an_attacker_looks_through_the_steps(mode):
    defence, grads = quantise(16 if mode == "float16" else 3, mode=mode), {"a": DRAWN}
    sent = sent_of(defence, grads)

    def simulated(x):
        return defence.simulate({"a": x}, sent, None, None)["a"]

    np.testing.assert_array_equal(simulated(DRAWN), sent["a"])
    slopes = jax.grad(lambda x: jnp.sum(DRAWN * simulated(x)))(jnp.array(DRAWN))
    np.testing.assert_array_equal(slopes, DRAWN)


# --- mixed precision -----------------------------------------------------------------

LAYERS = Public(
    {
        f"{layer}/{part}": jnp.asarray(
            np.random.default_rng(i).standard_normal((30, 4) if part == "kernel" else 4)
        ).astype(jnp.float32)
        for i, layer in enumerate("abcdefgh")
        for part in ("kernel", "bias")
    }
)
PAIRS = tuple(itertools.product((2, 3, 5), ("symmetric", "affine")))


def pairs_of(sent, grads):
    """Finds how each tensor was quantised."""
    found = {}
    for name, x in grads.model.items():
        fits = [
            pair
            for pair in PAIRS
            if np.allclose(by_hand(x, *pair), sent.model[name], atol=1e-5)
        ]
        assert len(fits) == 1, name
        found[name] = fits[0]
    return found


def test_layers_are_quantised_as_they_are_drawn_once_or_anew():
    for redrawn in (False, True):
        defence = quantise_mixed((2, 3, 5), redrawn=redrawn)
        state, rounds = defence.init_state(LAYERS), []
        for number in range(2):
            sent, state = defence.release(
                jax.random.key(number), state, LAYERS, CONTEXT
            )
            rounds.append(pairs_of(sent, LAYERS))
        assert (rounds[0] == rounds[1]) != redrawn
        for pairs in rounds:
            assert len(set(pairs.values())) > 2
            for layer in "abcdefgh":
                assert pairs[f"{layer}/kernel"] == pairs[f"{layer}/bias"]


def test_an_attacker_reads_bits_and_modes_off_what_is_sent():
    defence = quantise_mixed((2, 3, 5))
    sent = sent_of(defence, LAYERS)
    simulate = jax.jit(lambda grads, sent: defence.simulate(grads, sent, None, None))
    simulated = simulate(LAYERS, sent)
    for name, x in sent.model.items():
        np.testing.assert_allclose(simulated.model[name], x, atol=1e-5)
    # Another candidate is quantised in the same way, and has a slope.
    half = jax.tree.map(lambda x: 0.7 * x[::-1], LAYERS)
    pairs = pairs_of(sent, LAYERS)
    for name, x in simulate(half, sent).model.items():
        wanted = by_hand(np.asarray(half.model[name]), *pairs[name])
        np.testing.assert_allclose(x, wanted, atol=1e-5)
    # Nothing is seen of a local step, and noise hides the levels.
    assert defence.simulate(half, None, None, None) is half
    noisy = jax.tree.map(lambda x, g: x + 0.1 * g, sent, LAYERS)
    unread = simulate(half, noisy)
    jax.tree.map(np.testing.assert_array_equal, unread, half)


# --- what is refused -----------------------------------------------------------------


@pytest.mark.parametrize("bits", (0, -4, 33, 4.5, float("nan"), float("inf")))
def test_impossible_bits_are_named(bits):
    message = f"bits must be a whole number from 1 to 32, got {bits}"
    with pytest.raises(ValueError, match=message):
        quantise(bits)
    with pytest.raises(ValueError, match=message):
        quantise_mixed((4, bits))


def test_impossible_modes_are_named():
    with pytest.raises(ValueError, match="one of symmetric, affine.*got 'linear'"):
        quantise(8, mode="linear")
    with pytest.raises(ValueError, match="'float16' has 16 bits, got bits=8"):
        quantise(8, mode="float16")
    with pytest.raises(ValueError, match="among symmetric, affine, got 'float16'"):
        quantise_mixed((4, 8), modes=("float16",))
    with pytest.raises(ValueError, match="must not be empty"):
        quantise_mixed(())


def test_five_numbers_of_bits_are_one_program():
    traced = 0

    @jax.jit
    def send(bits):
        nonlocal traced
        traced += 1
        return sent_of(chain(none(), quantise(bits)), {"a": DRAWN})["a"]

    for bits in (1, 2, 4, 8, 32):
        direct = sent_of(quantise(bits), {"a": DRAWN})["a"]
        np.testing.assert_allclose(send(jnp.float32(bits)), direct, rtol=1e-6)
    assert traced == 1
