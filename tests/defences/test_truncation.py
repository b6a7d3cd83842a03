"""SVDefense: what rank is left, and what its row and column spaces still say."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

from kljax.core.types import Public
from kljax.defences import (
    Context,
    at_update,
    chain,
    gaussian_noise,
    none,
    svd_truncation,
)
from kljax.defences.truncation import project

CONTEXT = Context(None, None, None, None)
GENERATOR = np.random.default_rng(5)


def draw(*shape, dtype=jnp.float32):
    return jnp.asarray(GENERATOR.standard_normal(shape), dtype)


GRADS = Public(
    {
        "bias": draw(7),
        "conv/kernel": draw(2, 2, 3, 5),
        "fc/kernel": draw(6, 1) @ draw(1, 4),
        "half": draw(6, 5, dtype=jnp.bfloat16),
        "row": draw(1, 4),
        "zeros": jnp.zeros((3, 4)),
    }
)
SIMULATE = quick_jit(lambda g, sent: svd_truncation(0.6).simulate(g, sent, None, None))


def sent_by(energy, grads=GRADS):
    return svd_truncation(energy).release(None, (), grads, CONTEXT)[0]


def by_hand(x, energy):
    """Adds products of singular vectors, one after another, until it is enough."""
    x = np.asarray(x, np.float64)
    u, s, v = np.linalg.svd(x.reshape(-1, x.shape[-1]), full_matrices=False)
    found, got = np.zeros((u.shape[0], v.shape[1])), 0.0
    for k in range(len(s)):
        if got >= energy * np.sum(s**2):
            break
        found += s[k] * np.outer(u[:, k], v[k])
        got += s[k] ** 2
    return found.reshape(x.shape), np.linalg.matrix_rank(found)


SENT = sent_by(0.6)


def close(a, b, name):
    exact = 2e-2 if name == "half" else 1e-5
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    assert np.linalg.norm(a - b) <= exact * np.linalg.norm(b), name


@pytest.mark.parametrize("energy", (0.3, 0.6, 0.85))
def test_the_fewest_singular_values_with_enough_energy_are_sent(energy):
    sent = sent_by(energy)
    assert jax.eval_shape(lambda: sent) == jax.eval_shape(lambda: GRADS)
    for name in ("conv/kernel", "half"):
        close(sent.model[name], by_hand(GRADS.model[name], energy)[0], name)
    for name in ("bias", "row", "zeros"):
        np.testing.assert_array_equal(sent.model[name], GRADS.model[name])
    # The dense layer of one example is what it was.
    close(sent.model["fc/kernel"], GRADS.model["fc/kernel"], "fc/kernel")
    ranks = [by_hand(GRADS.model["conv/kernel"], e)[1] for e in (0.3, 0.6, 0.85)]
    assert ranks == sorted(set(ranks)) and ranks[-1] < 5


def test_all_energy_is_the_identity_and_strengths_are_data():
    traced = []

    @quick_jit
    def send(energy):
        traced.append(1)
        return chain(none(), svd_truncation(energy)).release(
            jax.random.key(0), ((), ()), GRADS, CONTEXT
        )[0]

    jax.tree.map(np.testing.assert_array_equal, send(jnp.float32(1)), GRADS)
    for name, x in send(jnp.float32(0.6)).model.items():
        close(x, SENT.model[name], name)
    assert len(traced) == 1


def test_an_attacker_reads_the_rank_and_both_spaces_off_what_is_sent():
    for name in ("conv/kernel", "fc/kernel"):
        rank = project(GRADS.model[name], SENT.model[name])[1]
        assert rank == by_hand(GRADS.model[name], 0.6)[1]
    for name, x in SIMULATE(GRADS, SENT).model.items():
        close(x, SENT.model[name], name)
    # By hand: what has neither a kept row nor a kept column in it is left out.
    guess = jax.tree.map(lambda x: x[::-1] + 1, GRADS)
    name = "conv/kernel"
    seen = np.asarray(SENT.model[name], np.float64).reshape(-1, 5)
    mine = np.asarray(guess.model[name], np.float64).reshape(-1, 5)
    u, s, v = np.linalg.svd(seen, full_matrices=False)
    rank = np.sum(s > 1e-4)
    rows = np.eye(12) - u[:, :rank] @ u[:, :rank].T
    columns = np.eye(5) - v[:rank].T @ v[:rank]
    simulated = np.asarray(SIMULATE(guess, SENT).model[name]).reshape(-1, 5)
    np.testing.assert_allclose(simulated, mine - rows @ mine @ columns, atol=1e-5)
    # Who differs from the truth there alone explains what is sent as well as it does.
    other = np.asarray(GRADS.model[name]).reshape(-1, 5) + rows @ mine @ columns
    assert np.linalg.norm(rows @ mine @ columns) > 1
    model = GRADS.model | {name: jnp.asarray(other.reshape(2, 2, 3, 5), jnp.float32)}
    found = SIMULATE(Public(model), SENT).model[name]
    np.testing.assert_allclose(found, SENT.model[name], atol=1e-5)


def test_where_no_rank_is_seen_a_candidate_is_truncated_by_its_own_energy():
    own = SENT.model["conv/kernel"]
    noisy = jax.tree.map(lambda x: x + 0.1 * jnp.ones(x.shape, x.dtype), SENT)
    noisy.model["conv/kernel"] += 0.1 * draw(2, 2, 3, 5)
    hidden = SENT._replace(model=SENT.model | {"conv/kernel": own.at[0].set(jnp.nan)})
    for sent in (noisy, hidden):
        close(SIMULATE(GRADS, sent).model["conv/kernel"], own, "conv/kernel")
    for name, x in svd_truncation(0.6).simulate(GRADS, None, None, None).model.items():
        close(x, SENT.model[name], name)
    both = chain(none(), svd_truncation(0.6), gaussian_noise(0.1))
    assert both.log_prob is not None


def test_slopes_are_finite_where_singular_values_are_equal():
    grads = Public({"same": jnp.eye(4), "zeros": jnp.zeros((4, 4))})

    def distance(grads, sent):
        made = svd_truncation(0.6).simulate(grads, sent, None, None)
        return sum(jnp.sum((a - 1) ** 2) for a in jax.tree.leaves(made))

    for sent in (sent_by(0.6, grads), None):
        slopes = jax.grad(distance)(grads, sent).model
        assert np.all(np.isfinite(slopes["same"])) and np.any(slopes["same"])
        assert np.all(np.isfinite(slopes["zeros"]))


def test_clients_are_decomposed_one_after_another():
    """A batch of decompositions can wait for ever, see `one_at_a_time`."""
    both = jax.tree.map(lambda x: jnp.stack([x, x]), GRADS)
    simulate = jax.vmap(lambda g, s: svd_truncation(0.6).simulate(g, s, None, None))
    nested = jax.tree.map(lambda x: x[None], both)
    text = str(jax.make_jaxpr(jax.vmap(simulate))(nested, nested))
    lines = [line for line in text.splitlines() if "= svd[" in line]
    shapes = [shape for line in lines for shape in re.findall(r"f32\[([\d,]+)\]", line)]
    assert len(lines) >= 4 and max(shape.count(",") for shape in shapes) == 1


@pytest.mark.parametrize("energy", (0, -0.1, 1.1, float("nan")))
def test_impossible_energies_are_named(energy):
    with pytest.raises(ValueError, match=f"energy must be in .0, 1., got {energy}"):
        svd_truncation(energy)


def test_it_acts_on_a_whole_change_too_and_on_each_client_alone():
    grads = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), GRADS)
    defence = at_update(svd_truncation(0.6)).update
    release = jax.vmap(lambda g: defence.release(None, (), g, CONTEXT)[0])
    sent = quick_jit(release)(grads)
    for name, x in sent.model.items():
        close(x[0], SENT.model[name], name)
        close(x[1], 2 * SENT.model[name], name)
