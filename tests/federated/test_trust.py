"""Rules that need more than uploads: noise, FoolsGold, FLTrust; how they are fed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow_rules import CLIENTS, some_uploads, vectors
from test_aggregation import server_of, vector
from test_rounds import RNG, fetch_from, pixels, product, weight_after
from tiny_studies import quick_compilation

from kljax.core.types import Public
from kljax.federated.aggregation import (
    Aggregator,
    Gathered,
    fltrust,
    foolsgold,
    make_aggregator,
    mean,
    norm_bounding,
)
from kljax.federated.aggregation import trust as of_trust
from kljax.federated.clients import Upload

IDS = np.arange(CLIENTS)
trust_of_histories = jax.jit(of_trust.trust_of_histories)


@pytest.fixture(autouse=True)
def quickly():
    with quick_compilation():
        yield


def changes(uploads):
    return vectors(uploads)[:, :8]  # two statistics come after them


# --- FoolsGold -----------------------------------------------------------------------


def slow_trust(histories):
    """The paper's algorithm 1, client by client, with the code's .99."""
    count = len(histories)
    alike = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            if i != j:
                both = np.linalg.norm(histories[i]) * np.linalg.norm(histories[j])
                alike[i, j] = histories[i] @ histories[j] / both
    most = [max(row) for row in alike]
    for i in range(count):
        for j in range(count):
            if most[j] > most[i]:
                alike[i, j] *= most[i] / most[j]
    trust = [min(max(1 - max(row), 0), 1) for row in alike]
    trust = [one / max(trust) for one in trust]
    trust = [0.99 if one == 1 else one for one in trust]
    logits = [np.log(one / (1 - one)) + 0.5 if one > 0 else -1 for one in trust]
    return np.clip(logits, 0, 1)


def sybils():
    """Four clients of their own minds, and three that send nearly the same."""
    rows = np.random.default_rng(5).standard_normal((7, 30)).astype(np.float32)
    rows[4:] = rows[4] + np.float32(0.05) * rows[4:]
    return rows


def test_trust_is_its_slow_form():
    one = trust_of_histories
    for rows in (sybils(), sybils()[:5], np.abs(sybils()), changes(some_uploads())):
        expected = slow_trust(rows.astype(np.float64))
        found = one(rows.astype(np.float32))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    found = one(sybils())
    assert np.all(found[:4] > 0.5) and np.all(found[4:] == 0)
    # However long, or of no length.
    rows = sybils()
    rows[4] *= np.float32(1e25)
    np.testing.assert_allclose(one(rows), found, atol=1e-5)
    assert np.isfinite(one(rows * 0)).all()


def test_trust_by_hand():
    # Nobody is like another: 1 of 1, which counts as .99, and its logit is above 1.
    assert trust_of_histories(np.eye(3, dtype=np.float32)).tolist() == [1, 1, 1]
    # Two are alike, and the third is like nobody.
    rows = np.array([[1, 0], [2, 0], [0, 1]], np.float32)
    assert trust_of_histories(rows).tolist() == [0, 0, 1]
    # All are alike: nobody counts.
    assert trust_of_histories(np.ones((3, 2), np.float32)).tolist() == [0, 0, 0]


@functools.cache
def compiled(rule):
    return jax.jit(rule.finish)


def test_foolsgold_remembers_what_each_client_has_sent():
    rule, uploads = foolsgold(9), some_uploads()
    server = server_of(uploads, rule)
    assert server.aggregator.shape == (9, 8)
    ids = np.array([0, 1, 3, 4, 5, 7, 8], np.int32)
    finish = compiled(rule)
    given, memory = finish(server, uploads, IDS, clients=ids)
    rows = vectors(uploads)
    trust = slow_trust(rows[:, :8])
    np.testing.assert_allclose(vector(given), trust @ rows / trust.sum(), rtol=1e-4)
    np.testing.assert_allclose(memory[ids], rows[:, :8], rtol=1e-6)
    assert np.all(memory[np.array([2, 6])] == 0)
    # What was sent before counts, too.
    server = server._replace(aggregator=memory)
    other = some_uploads(seed=1)
    given, memory = finish(server, other, IDS, clients=ids)
    trust = slow_trust(rows[:, :8] + changes(other))
    expected = trust @ vectors(other) / trust.sum()
    np.testing.assert_allclose(vector(given), expected, rtol=1e-4, atol=1e-5)
    apart = slow_trust(changes(other)) - trust
    assert np.abs(apart).max() > 0.01


def test_where_nobody_is_trusted_nothing_changes():
    same = jax.tree.map(lambda x: np.repeat(x[:1], CLIENTS, 0), some_uploads())
    rule = foolsgold(CLIENTS)
    given, _ = compiled(rule)(server_of(same, rule), same, IDS, clients=IDS)
    assert vector(given).tolist() == [0] * 8 + [5, 5]
    backwards = jax.tree.map(lambda x: -x[0], same)
    given, _ = compiled(fltrust())(server_of(same), same, IDS, root=backwards)
    assert vector(given).tolist() == [0] * 8 + [5, 5]


def test_foolsgold_in_rounds():
    # Clients of one pixel move alike, and count nothing; w stays 1.
    rule = make_aggregator("foolsgold=2")
    weight, _ = weight_after(product(aggregator=rule), pixels(1.0, 1.0), count=2)
    assert weight == 1.0
    three = product(aggregator=rule)
    with pytest.raises(ValueError, match="foolsgold=2 tells 2 clients apart, .* and c"):
        weight_after(three, pixels(1.0, 1.0, 0.5), count=1)


# --- FLTrust ------------------------------------------------------------------------


def test_fltrust_is_its_slow_form():
    uploads, root = some_uploads(), some_uploads(1, seed=9)
    rows, own = vectors(uploads), vectors(root)[0, :8]
    trust, changed = [], []
    for row in rows[:, :8]:
        length = np.linalg.norm(row)
        trust.append(max(row @ own / length / np.linalg.norm(own), 0))
        changed.append(row / length * np.linalg.norm(own))
    assert 0 in trust and max(trust) > 0.1
    expected = [
        sum(t * x for t, x in zip(trust, values, strict=True)) / sum(trust)
        for values in (changed, rows[:, 8:])
    ]
    root = jax.tree.map(lambda x: x[0], root)
    found, memory = compiled(fltrust())(server_of(uploads), uploads, IDS, root=root)
    np.testing.assert_allclose(vector(found), np.concatenate(expected), rtol=1e-4)
    assert memory == ()
    # Lengths of clients are of no use to them.
    longer = uploads._replace(delta=jax.tree.map(lambda x: 1e20 * x, uploads.delta))
    same, _ = compiled(fltrust())(server_of(uploads), longer, IDS, root=root)
    np.testing.assert_allclose(vector(same), vector(found), rtol=1e-4)


def test_fltrust_by_hand_in_rounds():
    # Clients move w = 1 by -.5 and, after their sign is turned, by .125. The server
    # moves it by -.08: it trusts the first one alone, and takes its own length.
    def root(rng, server, gathered):
        del rng, gathered
        delta = jax.tree.map(lambda x: np.full_like(x, -0.08), server.public)
        return Upload(delta, server.stats)

    rounds = product(aggregator=fltrust(), evidence={"root": root})
    weight, _ = weight_after(rounds, pixels(1.0, 0.5), count=1)
    assert weight == pytest.approx(0.92)
    with pytest.raises(ValueError, match="fltrust needs 'root', and there is none: wh"):
        product(aggregator=fltrust())


# --- noise, and what rules are given -------------------------------------------------


def test_noise_is_of_its_standard_deviation_and_each_weight_has_its_own():
    delta = Public(
        {"a": np.zeros((40, 50), np.float32), "b": np.zeros(2000, np.float32)}
    )
    total = Upload(delta, {"mean": np.full(3, 10.0)})
    rule = norm_bounding(1, 0.25)
    server = server_of(jax.tree.map(lambda x: x[None], total))
    found, _ = rule.finish(server, total, 2.0, rng=RNG)
    a, b = (np.ravel(x) for x in jax.tree.leaves(found.delta))
    for values in (a, b):
        assert np.std(values) == pytest.approx(0.25, rel=0.1)
        assert abs(np.mean(values)) < 0.03
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.1
    assert found.stats["mean"].tolist() == [5.0] * 3
    assert norm_bounding(1).needs == () and norm_bounding(1, 0).needs == ()


def test_each_round_has_noise_of_its_own():
    def moves(seed):
        rounds = product(aggregator=norm_bounding(1e-9, 0.1))
        server = rounds.init(RNG)
        states, weights = rounds.init_clients(RNG, server, 1), []
        for _ in range(3):
            fetch = fetch_from(pixels(1.0))
            rng = jax.random.key(seed)
            server, _ = rounds.run_round(rng, server, states, np.arange(1), fetch)
            weights.append(float(server.public.model["fc/kernel"][0, 0]))
        return np.diff(weights)

    first, again, other = moves(3), moves(3), moves(4)
    assert first.tolist() == again.tolist()
    assert first[0] != first[1] and not np.any(first == other)


def test_a_rule_is_given_what_it_needs_in_the_order_of_the_clients():
    seen = []

    def finish(server, uploads, weights, *, clients, loss, accuracy, mine, rng):
        del weights, accuracy, rng
        first = jax.tree.map(lambda x: x[0], uploads)
        return first, jnp.stack([clients.astype(jnp.float32), loss, mine])

    def mine(rng, server, gathered):
        assert isinstance(gathered, Gathered) and int(server.round) == 0
        seen.append(gathered)
        return gathered.clients + jax.random.uniform(rng)

    needs = ("clients", "loss", "accuracy", "mine", "rng")
    rule = Aggregator(finish, gathers=True, needs=needs, name="asking")
    rounds = product(aggregator=rule, evidence={"mine": mine})
    server = rounds.init(RNG)
    states = rounds.init_clients(RNG, server, 3)
    fetch = fetch_from(pixels(1.0, 0.5, 0.4))
    order = np.array([2, 0, 1])
    server, info = rounds.run_round(RNG, server, states, order, fetch)
    clients, loss, given = np.asarray(server.aggregator)
    assert clients.tolist() == [0, 1, 2]
    np.testing.assert_allclose(loss, [0.5, 0.125, 0.08], rtol=1e-6)
    np.testing.assert_allclose(loss[order], info.progress.loss, rtol=1e-6)
    assert np.all((given > clients) & (given < clients + 1))
    assert seen[0].weights.tolist() == [1, 1, 1]


def test_a_streaming_rule_is_given_nothing_of_single_clients():
    rule = mean()._replace(needs=("clients",))
    message = "mean needs 'clients', .* a streaming rule can be given here is rng"
    with pytest.raises(ValueError, match=message):
        product(aggregator=rule)
