"""The server's side of a training: its optimiser, its rules, and what they remember."""

import numpy as np
import optax
import pytest
from test_training import CutOff, assert_same, cut_off_at, states, tiny
from tiny_studies import quick_compilation

from kljax.federated import checkpoints
from kljax.studies.builder.run_setup import server_optimiser
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
        tiny(server_momentum=0.5, server_optimiser="adam")


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
