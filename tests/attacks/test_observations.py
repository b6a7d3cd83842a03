"""Several uploads of the same examples, attacked together, on what a hand can check."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_attack import LABEL, NOTHING, image, matches
from toys import quick_jit

from kljax.attacks import Candidate, Unknown, Unknowns, descend, from_optax, squared_l2
from kljax.attacks.attack import Search, no_prior
from kljax.attacks.pooling import POOLINGS, _pooled_secret, pool_observations
from kljax.threat import Observations

RNG = jax.random.key(0)
TRUTH = np.array([1.0, -2.0], np.float32)

POINT = (0.3, -0.4)


class Seen(NamedTuple):
    """All of a view that is looked at here."""

    grads: Any
    private_key: Any = None
    visible: Any = None
    observations: Any = None


def seen_together(grads, keys=None, pooling="mean", own_secrets=False):
    views = Seen(jnp.asarray(grads), keys)
    first = jax.tree.map(lambda leaf: leaf[0], views)
    return first._replace(observations=Observations(views, pooling, own_secrets))


def found(view):
    unknowns = Unknowns(image(lambda rng: jnp.zeros(2)), LABEL, NOTHING)
    optimiser = from_optax(optax.adam(0.02))
    attack = descend(unknowns, matches, squared_l2(), optimiser, steps=400)
    return quick_jit(attack)(RNG, view)


@pytest.mark.parametrize(
    ("pooling", "expected"), (("mean", 4.0), ("median", 2.5), ("trimmed-mean", 2.5))
)
def test_losses_are_put_together(pooling, expected):
    assert float(POOLINGS[pooling](jnp.array([10.0, 1.0, 3.0, 2.0]))) == expected
    assert float(POOLINGS[pooling](jnp.array([7.0]))) == 7.0


@pytest.mark.parametrize("own", [False, True])
def test_what_is_reported_of_a_secret_is_that_of_the_first(own):
    def penalty(free):
        return 3 * free

    def report(free, fixed):
        return {"found": free + 10 * fixed}

    part = Unknown(None, None, penalty=penalty, report=report)
    views = Observations(None, "mean", own)
    pooled = _pooled_secret(part, views, 2)
    free = jnp.array([1.0, 2.0]) if own else jnp.float32(1)
    found = pooled.report(free, jnp.array([4.0, 5.0]))
    assert found["found"].tolist() == 41
    assert float(pooled.penalty(free)) == (4.5 if own else 3)
    silent = _pooled_secret(Unknown(None, None), views, 2)
    assert silent.report is None and silent.penalty is None


def test_noise_that_is_drawn_anew_averages_out():
    noise = np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)
    together = found(seen_together(TRUTH + noise)).inputs
    np.testing.assert_allclose(together, TRUTH + noise.mean(0), atol=1e-2)
    alone = np.mean(np.linalg.norm(noise, axis=1))
    assert np.linalg.norm(together - TRUTH) < 0.5 * alone


def test_one_upload_that_fits_nothing_else_does_not_move_the_robust_rules():
    grads = np.stack([TRUTH, TRUTH, TRUTH, TRUTH, TRUTH + 100])
    assert np.linalg.norm(found(seen_together(grads)).inputs - TRUTH) > 5
    for pooling in ("median", "trimmed-mean"):
        close = found(seen_together(grads, pooling=pooling)).inputs
        np.testing.assert_allclose(close, TRUTH, atol=2e-2)


def search():
    """A secret that is searched (`free`) beside one that each view shows (`fixed`)."""
    secret = Unknown(
        lambda rng, view: (jax.random.uniform(rng), view.private_key),
        lambda free, fixed: free + fixed,
        project=lambda free: free / 2,
    )

    def simulate(view, candidate):
        return candidate.inputs * candidate.secret, view.grads

    unknowns = Unknowns(image(lambda rng: jnp.zeros(2)), LABEL, secret)
    return Search(unknowns, simulate, squared_l2(), no_prior)


@pytest.mark.parametrize("pooling", tuple(POOLINGS))
@pytest.mark.parametrize("own", (False, True))
def test_the_pooled_loss_is_that_of_one_upload_after_the_other(pooling, own):
    keys = jnp.array([1.0, 3.0, 7.0])
    grads = np.random.default_rng(1).normal(size=(3, 2)).astype(np.float32)
    view = seen_together(grads, keys, pooling, own)
    pooled = pool_observations(search(), view)
    free, fixed = pooled.unknowns.secret.start(RNG, view)
    # One value that is looked for in all uploads, or one for each.
    assert free.shape == ((3,) if own else ())
    assert not own or len(set(np.asarray(free).tolist())) == 3
    np.testing.assert_array_equal(pooled.unknowns.secret.project(free), free / 2)
    secret = pooled.unknowns.secret.decode(free, fixed)
    np.testing.assert_allclose(secret, np.asarray(free) + np.asarray(keys), rtol=1e-6)
    assert pooled.unknowns.secret.read(secret, fixed) == secret[0]
    candidate = Candidate(jnp.array(POINT), None, secret)
    loss = pooled.objective(*pooled.simulation(view, candidate))
    losses = [
        sum(
            (float(x) * float(s) - float(g)) ** 2
            for x, g in zip(POINT, row, strict=True)
        )
        for s, row in zip(secret, grads, strict=True)
    ]
    by_hand = {"mean": np.mean(losses)}.get(pooling, sorted(losses)[1])
    np.testing.assert_allclose(loss, by_hand, rtol=1e-5)


def test_a_search_on_one_upload_stays_what_it_is():
    one = search()
    assert pool_observations(one, Seen(jnp.zeros(2))) is one
