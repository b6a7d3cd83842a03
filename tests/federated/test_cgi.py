"""CGI: what a client poisons, how it hides that, and what it takes out again."""

import jax
import numpy as np
import pytest

from kljax.core.types import Public
from kljax.federated.aggregation import coordinate_median
from kljax.federated.class_poisoning import (
    largest_share,
    mixed,
    others_mean,
    relabelled,
    scaled,
    seen_by_krum,
    seen_by_order,
    share_outside,
)
from kljax.federated.clients import Batches, Upload
from kljax.federated.roles import Attack, cgi

RNG = jax.random.key(0)
CLIENTS = 5
ATTACK = Attack(lambda x: x, target=2, share=0.5, num_classes=3, clients=CLIENTS)


def uploads(seed=0, count=CLIENTS):
    """Makes uploads of two tensors, around one direction."""
    draw = np.random.default_rng(seed)
    centre = {"a": draw.normal(size=(30, 2)), "b": draw.normal(size=4)}
    return {
        name: (value + 0.1 * draw.normal(size=(count, *value.shape))).astype(np.float32)
        for name, value in centre.items()
    }


def one(tree, n):
    return {name: value[n] for name, value in tree.items()}


def put(tree, n, values):
    """Puts one upload in place of the n-th."""
    made = {name: value.copy() for name, value in tree.items()}
    for name, value in values.items():
        made[name][n] = value
    return made


def test_only_the_target_class_gets_another_label():
    labels = np.array([[0, 2, 1, 2]])
    batches = Batches(np.zeros((1, 4, 2, 2, 1)), labels, np.ones(1, bool))
    assert relabelled(batches, 2, 3).labels.tolist() == [[0, 0, 1, 0]]
    role = cgi(ATTACK)
    assert role.batches(RNG, batches).labels.tolist() == [[0, 0, 1, 0]]
    upload = Upload(Public({"kernel": np.full(2, 3.0)}), {"mean": np.ones(1)})
    sent = role.upload(RNG, None, None, upload)
    assert sent.delta.model["kernel"].tolist() == [15, 15]  # n / eta
    assert sent.stats["mean"].tolist() == [1]
    half = cgi(ATTACK, 0.5).upload(RNG, None, None, upload)
    assert half.delta.model["kernel"].tolist() == [1.5, 1.5]
    with pytest.raises(ValueError, match="boost of cgi must be a number > 0, got 0"):
        cgi(ATTACK, 0)


def test_who_knows_the_others_makes_the_mean_its_own_change():
    others, mine = uploads(count=CLIENTS - 1), one(uploads(seed=1), 0)
    for known in (True, False):
        total = {name: value.sum(axis=0) for name, value in others.items()}
        sent = scaled(mine, CLIENTS, total if known else None)
        for name, value in others.items():
            mean = (value.sum(axis=0) + sent[name]) / CLIENTS
            left = 0 if known else value.sum(axis=0) / CLIENTS
            np.testing.assert_allclose(mean, mine[name] + left, rtol=1e-5)


def test_what_the_others_sent_comes_out_of_the_next_network():
    all_of_them = uploads()
    move = {name: value.mean(axis=0) for name, value in all_of_them.items()}
    found = others_mean(move, one(all_of_them, 2), CLIENTS)
    for name, value in all_of_them.items():
        wanted = np.delete(value, 2, axis=0).mean(axis=0)
        np.testing.assert_allclose(found[name], wanted, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="clients=1 has no others"):
        others_mean(move, move, 1)


def test_the_largest_share_is_the_one_that_just_passes():
    benign, poison = {"x": np.zeros(2)}, {"x": np.full(2, 8.0)}
    share = largest_share(benign, poison, lambda u: bool(u["x"][0] <= 2))
    assert 0.25 - 2**-12 <= share <= 0.25
    assert largest_share(benign, poison, lambda u: True) == 1
    assert largest_share(benign, poison, lambda u: False) == 0
    assert mixed(benign, poison, 0.25)["x"].tolist() == [2, 2]


def test_rules_see_who_is_far_off_and_not_who_is_in_the_midst():
    honest = uploads()
    far = put(honest, 1, {name: 50 * v[1] for name, v in honest.items()})
    midst = put(honest, 1, {n: np.delete(v, 1, 0).mean(0) for n, v in honest.items()})
    assert seen_by_krum(far, 1) and not seen_by_krum(midst, 1)
    assert seen_by_order(far, 1) and not seen_by_order(midst, 1)
    assert float(share_outside(midst, 1)) == 0
    # By hand, coordinate by coordinate.
    beyond = []
    for value in honest.values():
        for column in value.reshape(CLIENTS, -1).T:
            others = np.delete(column, 1)
            beyond.append(not others.min() <= column[1] <= others.max())
    np.testing.assert_allclose(float(share_outside(honest, 1)), np.mean(beyond))


def test_too_many_coordinates_are_more_than_half_way_to_all():
    """Of five clients 2/5 is usual: 7 of 10 is half way, and more is seen."""
    others = np.stack([np.arange(10.0) + n for n in range(CLIENTS - 1)])
    for beyond, seen in ((6, False), (8, True), (10, True)):
        own = np.where(np.arange(10) < beyond, 99.0, others[1])
        assert seen_by_order({"x": np.stack([*others, own])}, 4) == seen


def test_a_median_does_not_move_for_who_is_far_off():
    """What is left of the attack: the mean of the middle ones, not its own network."""
    honest = uploads()
    far = put(honest, 1, {name: 50 * v[1] for name, v in honest.items()})
    rule = coordinate_median()
    sent = Upload(Public(far), {})
    server = type("Server", (), {"aggregator": ()})
    moved = rule.finish(server, sent, np.ones(CLIENTS))[0].delta.model
    for name, value in far.items():
        others = np.delete(value, 1, axis=0)
        assert np.all(moved[name] >= others.min(axis=0))
        assert np.all(moved[name] <= others.max(axis=0))
