"""Aggregation: each rule against its slow form, alone and in whole rounds."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from slow_rules import (
    CLIENTS,
    client,
    slow_bounded,
    slow_bulyan,
    slow_denoised,
    slow_mean,
    slow_median,
    slow_multi_krum,
    slow_scores,
    slow_trimmed,
    slow_weiszfeld,
    some_uploads,
    vectors,
)
from test_rounds import (
    LAYOUTS,
    RNG,
    assert_close,
    client_data,
    fetch_from,
    pixels,
    product,
    trainable,
    weight_after,
)
from tiny_studies import quick_compilation
from toys import toy_model

from kljax.core.types import Public
from kljax.federated.aggregation import (
    AGGREGATORS,
    Aggregator,
    bulyan,
    coordinate_median,
    denoised_mean,
    find_needs,
    geometric_median,
    krum,
    make_aggregator,
    mean,
    multi_krum,
    norm_bounding,
    trimmed_mean,
)
from kljax.federated.algorithms import fedavg
from kljax.federated.clients import Upload
from kljax.federated.rounds import NonFiniteClient
from kljax.federated.server import ServerState
from kljax.models.losses import cross_entropy
from kljax.parallel import gather_clients

WEIGHTS = np.arange(1, CLIENTS + 1, dtype=np.float32)


@pytest.fixture(autouse=True)
def quickly():
    with quick_compilation():
        yield


def server_of(uploads, rule=None):
    """Makes the server that sent out weights of zero and statistics of five."""
    public = jax.tree.map(lambda x: np.zeros_like(x[0]), uploads.delta)
    stats = jax.tree.map(lambda x: np.full_like(x[0], 5), uploads.stats)
    memory = rule.init(public, stats) if rule else ()
    return ServerState(public, stats, (), np.int32(0), memory)


def aggregate(rule, uploads, weights=WEIGHTS):
    """Aggregates as rounds do it, but for devices and blocks."""
    return aggregated(rule)(server_of(uploads, rule), uploads, weights)


@functools.cache
def aggregated(rule):
    @jax.jit
    def call(server, uploads, weights):
        parts = [
            rule.add(server, client(uploads, n), weight)
            for n, weight in enumerate(weights)
        ]
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *parts)
        if rule.gathers:
            return rule.finish(server, stacked, weights)[0]
        total = jax.tree.map(lambda x: jnp.sum(x, axis=0), stacked)
        return rule.finish(server, total, jnp.sum(weights))[0]

    return call


def vector(upload):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(upload)])


RULES = {
    "mean": (mean(), slow_mean),
    "median": (coordinate_median(), slow_median),
    "trimmed-mean=1": (trimmed_mean(), slow_trimmed(1)),
    "trimmed-mean=2": (trimmed_mean(2), slow_trimmed(2)),
    "krum=1": (krum(), slow_multi_krum(1, 1)),
    "krum=2": (krum(2), slow_multi_krum(2, 1)),
    "multi-krum=1": (multi_krum(), slow_multi_krum(1)),
    "multi-krum=2,3": (multi_krum(2, 3), slow_multi_krum(2, 3)),
    "bulyan=1": (bulyan(), slow_bulyan(1)),
    "geometric-median=4": (geometric_median(4, 1e-9), slow_weiszfeld(4)),
    "norm-bounding=2": (norm_bounding(2), slow_bounded(2.0)),
    "denoised-mean=0.5,2": (denoised_mean(0.5, 2), slow_denoised(0.5, 2)),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("clients", [CLIENTS, 10])
def test_a_rule_is_its_slow_form(name, clients):
    rule, slow = RULES[name]
    for seed in range(3):
        uploads = some_uploads(clients, seed)
        weights = np.arange(1, clients + 1, dtype=np.float32)
        expected = slow(vectors(uploads), weights)
        found = aggregate(rule, uploads, weights)
        np.testing.assert_allclose(vector(found), expected, rtol=2e-5, atol=1e-6)


def test_some_uploads_are_shorter_than_the_bound_and_some_longer():
    rows = vectors(some_uploads()) - np.concatenate([np.zeros(8), np.full(2, 5.0)])
    lengths = np.linalg.norm(rows, axis=1)
    assert lengths.min() < 2 < lengths.max()


def test_who_counts_by_its_examples():
    """Stated by each rule; the weights are those of the clients, or none at all."""
    uploads = some_uploads()
    for name, (rule, _) in RULES.items():
        other = aggregate(rule, uploads, WEIGHTS[::-1])
        same = np.allclose(vector(aggregate(rule, uploads)), vector(other))
        weighted = name.startswith(
            ("mean", "norm-bounding", "geometric-median", "denoised-mean")
        )
        assert same != weighted


def with_attacker(uploads, factor):
    """Replaces client 2's upload by a very long one."""

    def replaced(x):
        x = x.copy()
        x[2] = factor
        return x

    return jax.tree.map(replaced, uploads)


ROBUST = {name: rule for name, (rule, _) in RULES.items() if name != "mean"}
del ROBUST["denoised-mean=0.5,2"]
ROBUST["geometric-median"] = geometric_median()  # of four iterations it is not yet
del ROBUST["geometric-median=4"]


@pytest.mark.parametrize("name", ROBUST)
def test_one_client_cannot_move_a_robust_rule_far(name):
    """The mean goes anywhere; the others stay among what honest clients sent."""
    rule, honest = ROBUST[name], vectors(some_uploads())
    for factor in (1e4, -1e4):
        uploads = with_attacker(some_uploads(), factor)
        assert np.abs(vector(aggregate(mean(), uploads))).max() > 1e3
        moved = vector(aggregate(rule, uploads))
        others = np.delete(honest, 2, axis=0)
        if name.startswith("norm-bounding"):
            apart = moved - vector(aggregate(rule, some_uploads()))
            assert np.linalg.norm(apart) <= 2 * 2 * WEIGHTS[2] / WEIGHTS.sum() + 1e-5
        else:
            assert np.all(moved >= others.min(axis=0) - 1e-5)
            assert np.all(moved <= others.max(axis=0) + 1e-5)


def test_krum_selects_one_upload_whole_and_the_first_of_equals():
    uploads = some_uploads()
    found = vector(aggregate(krum(), uploads))
    assert np.any(np.all(vectors(uploads).astype(np.float32) == found, axis=1))
    # Three of each: the nearest three of a 0 are two zeros and a 9, and so of a 9.
    for first, second in ((0, 9), (9, 0)):
        x = np.array([100, *[first] * 3, *[second] * 3], np.float32)[:, None]
        equals = Upload(Public({"w": x}), {})
        picked, _ = krum(2).finish(empty_server(), equals, np.ones(7))
        assert picked.delta.model["w"].tolist() == [first]


def empty_server():
    return ServerState(Public({}), {}, (), np.int32(0))


def test_distances_of_near_uploads_far_from_zero_are_exact():
    """Float32 has no digits left where squares of lengths are subtracted."""
    x = 1e4 + np.array([0, 0.01, 0.02, 0.03, 0.04, 0.011], np.float32)[:, None]
    far = Upload(Public({"w": x}), {})
    picked, _ = krum().finish(empty_server(), far, np.ones(6))
    best = np.argmin(slow_scores(x.astype(np.float64), 1))
    assert picked.delta.model["w"] == x[best]


# --- in whole rounds ----------------------------------------------------------------


def rounds_of(rule, layout=LAYOUTS[0]):
    return fedavg(
        toy_model(), cross_entropy, optax.sgd(0.1), aggregator=rule, layout=layout
    )


def after(rounds, data, cohort=None, count=2, clients=CLIENTS):
    server = rounds.init(RNG)
    states = rounds.init_clients(RNG, server, clients)
    for _ in range(count):
        ids = np.arange(clients) if cohort is None else cohort
        server, info = rounds.run_round(RNG, server, states, ids, fetch_from(data))
    return jax.device_get(server), info


@pytest.mark.parametrize(
    "name",
    [
        "median",
        pytest.param("multi-krum=1", marks=pytest.mark.slow),
        pytest.param("norm-bounding=0.05", marks=pytest.mark.slow),
    ],
)
def test_layouts_and_orders_agree(name):
    data = client_data(CLIENTS)
    expected, _ = after(rounds_of(make_aggregator(name)), data)
    order = np.array([3, 0, 6, 1, 5, 2, 4])
    for layout in (LAYOUTS[1], LAYOUTS[-1]):
        found, info = after(rounds_of(make_aggregator(name), layout), data, order)
        assert_close(trainable(found), trainable(expected))
    assert info.clients.tolist() == order.tolist()
    plain, _ = after(rounds_of(mean()), data)
    apart = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), trainable(plain), trainable(expected)
    )
    assert max(jax.tree.leaves(apart)) > 1e-4


def test_the_mean_is_the_default():
    data = client_data(CLIENTS)
    (one, _), (other, _) = (after(rounds_of(rule), data) for rule in (None, mean()))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_the_median_by_hand():
    # w = 1; client x moves by -.5 x^2: by -.5, -.125, -.08, whatever its examples.
    data = pixels(1.0, 0.5, 0.4, examples=[9, 1, 1])
    weight, (info,) = weight_after(
        product(aggregator=coordinate_median()), data, count=1
    )
    assert weight == pytest.approx(1 - 0.125)
    # What is said of a round is weighted as ever: losses .5, .125, .08.
    assert info.loss == pytest.approx((9 * 0.5 + 0.125 + 0.08) / 11)


def test_the_bound_by_hand():
    data = pixels(1.0, 0.5, examples=[3, 1])
    weight, _ = weight_after(product(aggregator=norm_bounding(0.2)), data, count=1)
    assert weight == pytest.approx(1 - (3 * 0.2 + 0.125) / 4)


def broken():
    batches, examples = client_data(CLIENTS)
    batches.inputs[3, 1, 0] = np.nan
    return batches, examples


@pytest.mark.slow
@pytest.mark.parametrize("name", ["median", "krum=1", "norm-bounding=0.05"])
def test_a_client_that_turns_nan_is_not_aggregated(name):
    found, info = after(rounds_of(make_aggregator(name)), broken(), count=1)
    others = np.array([0, 1, 2, 4, 5, 6])
    expected, _ = after(
        rounds_of(make_aggregator(name)), client_data(CLIENTS), others, count=1
    )
    assert info.excluded.tolist() == [3]
    assert_close(trainable(found), trainable(expected))


def test_each_need_is_met_by_what_it_names_from_draws_of_its_own():
    def seen_by(name):
        return lambda rng, *given: (name, jax.random.key_data(rng).tolist(), *given)

    rng, needs = jax.random.key(2), ("root", "clients", "rng", "validation")
    gathered = SimpleNamespace(clients=[3, 1], loss=[5, 6], accuracy=[7, 8])
    evidence = {name: seen_by(name) for name in ("root", "validation", "other")}
    rule = mean()._replace(needs=needs, gathers=True)
    found = find_needs(rule, evidence, rng, "server", gathered)
    children = [jax.random.fold_in(rng, place) for place in range(4)]
    drawn = [jax.random.key_data(child).tolist() for child in children]
    assert jax.random.key_data(found.pop("rng")).tolist() == drawn[2]
    assert found == {
        "root": ("root", drawn[0], "server", gathered),
        "clients": [3, 1],
        "validation": ("validation", drawn[3], "server", gathered),
    }


def test_fewer_clients_than_a_rule_needs_are_refused_by_its_name():
    assert [RULES[n][0].least for n in ("median", "trimmed-mean=2")] == [3, 5]
    assert [RULES[n][0].least for n in ("krum=2", "multi-krum=1")] == [7, 5]
    assert multi_krum(1, 9).least == 9
    assert [bulyan(2).least, geometric_median().least] == [11, 3]
    data = client_data(CLIENTS)
    message = "krum=2 needs 7 clients in a round, the cohort has 6"
    with pytest.raises(ValueError, match=message):
        after(rounds_of(krum(2)), data, np.arange(6), count=1)
    after(rounds_of(krum(2)), data, count=1)
    # One of seven turns NaN.
    with pytest.raises(NonFiniteClient, match="6 are left, of the 7 that krum=2"):
        after(rounds_of(krum(2)), broken(), count=1)


# --- a rule of one's own -------------------------------------------------------------


def centred_clipping(radius: float = 1.0) -> Aggregator:
    """Clips each change around the aggregate of the round before (Karimireddy 2021)."""

    def add(server, upload, weight):
        apart = jax.tree.map(jnp.subtract, upload.delta, server.aggregator)
        factor = jnp.minimum(1, radius / optax.tree.norm(apart))
        return Upload(
            jax.tree.map(lambda x: weight * factor * x, apart),
            jax.tree.map(lambda x: weight * x, upload.stats),
        )

    def finish(server, total, weight):
        moved = jax.tree.map(lambda x: x / weight, total)
        delta = jax.tree.map(jnp.add, server.aggregator, moved.delta)
        return Upload(delta, moved.stats), delta

    def init(public, stats):
        del stats
        return jax.tree.map(jnp.zeros_like, public)

    return Aggregator(finish, add, init, name="centred-clipping")


def test_a_rule_of_ones_own_remembers_from_round_to_round():
    # Radius .3; round 1: -.5 is clipped to -.3, w = .7. Round 2: -.35 lies .05 from
    # there: -.35, w = .35. Round 3: -.175 lies .175 from -.35: w = .175.
    rule = make_aggregator("test_aggregation:centred_clipping=0.3")
    for count, expected in ((1, 0.7), (2, 0.35), (3, 0.175)):
        weight, _ = weight_after(product(aggregator=rule), pixels(1.0), count=count)
        assert weight == pytest.approx(expected)


# --- names, and what is refused ------------------------------------------------------


def test_every_name_makes_its_rule():
    for name, factory in AGGREGATORS.items():
        numbers = {"norm-bounding": "=1", "denoised-mean": "=1", "foolsgold": "=2"}
        rule = make_aggregator(name + numbers.get(name, ""))
        assert isinstance(rule, Aggregator) and rule.name.startswith(name)
        assert factory.__doc__.startswith("Makes")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("krumm", "unknown aggregator 'krumm' .did you mean 'krum'"),
        ("krum=0", "krum withstands a whole number of attackers >= 1, got 0"),
        ("krum=1.5", "whole number of attackers >= 1, got 1.5"),
        ("trimmed-mean=-1", "trimmed-mean withstands .* got -1"),
        ("multi-krum=1,0", "selects a whole number of uploads >= 1, got 0"),
        ("norm-bounding=1,-1", "norm-bounding needs a finite noise > 0, got -1"),
        ("foolsgold", "'foolsgold' cannot be called with nothing"),
        ("foolsgold=1", "foolsgold remembers a whole number of clients >= 2, got 1"),
        ("bulyan=0", "bulyan withstands a whole number of attackers >= 1, got 0"),
        ("geometric-median=0", "a whole number of iterations >= 1, got 0"),
        ("geometric-median=3,0", "needs a finite tolerance > 0, got 0"),
        ("geometric-median=smoothing=-1", "needs a finite smoothing > 0, got -1"),
        ("norm-bounding", "'norm-bounding' cannot be called with nothing"),
        ("norm-bounding=0", "norm-bounding needs a finite bound > 0, got 0"),
        ("norm-bounding=inf", "'inf' is no finite number"),
        ("krum=", "'krum=': '' is no finite number"),
        ("krum=1,2", "'krum' cannot be called with int, int"),
        ("mean=1", "'mean' cannot be called with int"),
        ("builtins:abs=1", "'builtins:abs=1' gave no .*Aggregator, but int"),
    ],
)
def test_what_is_no_rule_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        make_aggregator(text)


def test_what_is_gathered_is_in_the_order_of_the_clients():
    ids, rows = gather_clients(np.array([4, 0, 2]), {"x": np.array([[4.0], [0], [2]])})
    assert ids.tolist() == [0, 2, 4]
    assert rows["x"].ravel().tolist() == [0, 2, 4]
