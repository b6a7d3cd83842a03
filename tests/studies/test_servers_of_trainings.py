"""The server's side of a training: its optimiser, its rules, and what they remember."""

import chex
import jax
import numpy as np
import optax
import pytest
from test_training import CutOff, assert_same, cut_off_at, states, tiny
from tiny_studies import quick_compilation

from kljax.federated import checkpoints
from kljax.studies.builder import run_setup
from kljax.studies.builder.server_side import (
    read_held_out,
    root_batches,
    server_optimiser,
)
from kljax.studies.training import train


@pytest.fixture(autouse=True)
def quickly():
    with quick_compilation():
        yield


def test_a_configuration_says_the_servers_optimiser():
    for changes, same in (
        ({}, optax.sgd(1.0)),
        ({"server_momentum": 0.5}, optax.sgd(1.0, 0.5)),
        ({"server_optimiser": "sgd=.5"}, optax.sgd(1.0, 0.5)),
        (
            {"server_optimiser": "adam", "server_learning_rate": 0.1},
            optax.adam(0.1, 0.9, 0.99, 1e-3),
        ),
    ):
        made = server_optimiser(tiny(**changes))
        weights, moves = np.array([1.0, 2.0], np.float32), []
        for optimiser in (made, same):
            state = optimiser.init(weights)
            _, state = optimiser.update(weights, state, weights)
            moves.append(optimiser.update(weights / 3, state, weights)[0])
        np.testing.assert_array_equal(*moves)


def test_momentum_is_of_sgd_alone():
    with pytest.raises(ValueError, match="server_momentum=0.5 is of sgd without numb"):
        tiny(server_momentum=0.5, server_optimiser="adam", server_learning_rate=0.01)


def test_adaptive_servers_need_a_rate_of_their_own():
    for name in ("adam", "yogi=.9"):
        with pytest.raises(ValueError, match="=1 moves every weight by about 1 in a"):
            tiny(server_optimiser=name)
        tiny(server_optimiser=name, server_learning_rate=0.01)


# --- rules that need more than uploads ------------------------------------------------


MORE = {"arms": ("none",), "clients": 3, "rounds": 1, "local_steps": 2}


@pytest.mark.slow
def test_a_server_with_root_examples_trains_as_a_client_does():
    """Its root examples given to a client, that client's change is the server's own."""
    config = tiny(**MORE, public_examples=40, aggregator="fltrust")
    setup = run_setup.build_run_setup(config)
    rounds = run_setup.arm_rounds(setup, "none").rounds
    server, clients = run_setup.start(setup, rounds)
    batches = root_batches(config, setup.public, 0)
    assert batches.inputs.shape == (2, 8, 8, 8, 3)
    pixels = {x.tobytes() for x in batches.inputs.reshape(16, -1)}
    ours = {x.tobytes() for x in setup.public.fetch(np.arange(40))[0].reshape(40, -1)}
    assert len(pixels) == 16 and pixels <= ours

    def fetch(ids):
        given = jax.tree.map(lambda x: np.stack([x] * len(ids)), batches)
        return given, np.ones(len(ids), np.float32)

    rng = run_setup.random_keys(config).rounds
    ids = np.arange(2)
    trusting, _ = rounds.run_round(rng, server, clients, ids, fetch)
    plain = tiny(**MORE, public_examples=40)
    plain = run_setup.arm_rounds(run_setup.build_run_setup(plain), "none").rounds
    _, clients = run_setup.start(setup, plain)  # without the momentum of that round
    averaged, _ = plain.run_round(rng, server, clients, ids, fetch)
    chex.assert_trees_all_close(trusting.public, averaged.public, rtol=1e-5, atol=1e-6)
    moved = jax.tree.map(np.subtract, averaged.public, server.public)
    assert optax.tree.norm(moved) > 0.01


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aggregator": "fltrust"}, "'fltrust' needs examples of the server's own, an"),
        (
            {"aggregator": "fltrust", "public_examples": 9, "arms": ("keylock",)},
            "the defence has a private part, such as a lock's: take another aggregator",
        ),
        (
            {"aggregator": "foolsgold=2"},
            "'foolsgold=2' tells 2 clients apart, and",
        ),
        ({"aggregator": "fedboosting", "examples": 3}, "1 example, and 1 of them held"),
        (
            {"aggregator": "fedboosting", "arms": ("keylock",)},
            "a validation by others needs networks that work without what is private",
        ),
        ({"aggregator": "bulyan"}, "'bulyan' needs 7 clients in a round, and there ar"),
    ],
)
def test_what_a_rule_cannot_work_with_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        run_setup.build_run_setup(tiny(**(MORE | changes)))


@pytest.mark.slow
def test_a_rule_that_remembers_clients_goes_on_with_them(tmp_path):
    config = tiny(
        **(MORE | {"rounds": 3, "cohort": 2}), save_every=1, aggregator="foolsgold=3"
    )
    whole = train(config, tmp_path / "whole")
    with pytest.raises(CutOff):
        train(config, tmp_path / "cut", on_round=cut_off_at("none", 1))
    assert checkpoints.saved(tmp_path / "cut" / "none") == [2]
    result = train(config, tmp_path / "cut")
    assert_same(states(result)["none"], states(whole)["none"])
    memory = whole.arms["none"].server.aggregator
    assert memory.shape[0] == 3 and np.all(np.abs(memory).max(axis=1) > 0)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["fltrust", "norm-bounding=1,0.001", "fedboosting"])
def test_what_a_rule_needs_is_found_again(rule, tmp_path):
    config = tiny(
        **(MORE | {"rounds": 3}), save_every=1, aggregator=rule, public_examples=40
    )
    whole = train(config)
    with pytest.raises(CutOff):
        train(config, tmp_path / "cut", on_round=cut_off_at("none", 1))
    result = train(config, tmp_path / "cut")
    assert_same(states(result)["none"], states(whole)["none"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adam", "yogi"])
def test_a_servers_optimiser_goes_on_with_its_moments(name, tmp_path):
    config = tiny(
        arms=("none",),
        rounds=3,
        save_every=1,
        server_optimiser=name,
        server_learning_rate=0.01,
    )
    whole = train(config, tmp_path / "whole")
    with pytest.raises(CutOff):
        train(config, tmp_path / "cut", on_round=cut_off_at("none", 1))
    assert checkpoints.saved(tmp_path / "cut" / "none") == [2]
    assert_same(states(train(config, tmp_path / "cut"))["none"], states(whole)["none"])
    assert int(optax.tree.get(whole.arms["none"].server.optimiser, "count")) == 3


def test_what_clients_hold_back_is_a_tenth_that_they_do_not_train_on():
    plain = run_setup.build_run_setup(tiny(**MORE))
    assert plain.held_out is None
    for rule in ("fedboosting", "fedboosting-accuracy=100,1"):
        setup = run_setup.build_run_setup(tiny(**MORE, aggregator=rule))
        for whole, own, held in zip(
            plain.partition, setup.partition, setup.held_out, strict=True
        ):
            assert len(held) == round(len(whole) / 10)
            np.testing.assert_array_equal(np.sort([*own, *held]), whole)
    dataset = setup.task.dataset
    held = read_held_out(dataset, setup.held_out, np.array([2, 0]))
    assert held.labels.shape == held.valid.shape == (2, max(map(len, setup.held_out)))
    for n, client in enumerate((2, 0)):
        labels = dataset.labels[setup.held_out[client]]
        np.testing.assert_array_equal(held.labels[n][held.valid[n]], labels)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["fedboosting=100", "fedboosting-accuracy=0,1"])
def test_a_training_by_fedboosting_moves_its_network(rule):
    result = train(tiny(**MORE, aggregator=rule))
    setup = result.setup
    start, _ = run_setup.start(setup, run_setup.arm_rounds(setup, "none").rounds)
    moved = jax.tree.map(
        np.subtract, result.arms["none"].server.public, jax.device_get(start.public)
    )
    assert 0.01 < optax.tree.norm(moved) < 100
