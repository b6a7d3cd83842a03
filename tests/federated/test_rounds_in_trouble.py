"""Rounds: padded clients, what leaves a client, and clients in trouble."""

import functools

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from test_rounds import (
    CLIENTS,
    RNG,
    SGD,
    assert_close,
    client_data,
    fetch_from,
    locked,
    pixels,
    play,
    product,
    trainable,
)
from tiny_studies import quick_compilation
from toys import LOCK, Toy, toy_model

from kljax.core.types import Public
from kljax.defences import keylock, none
from kljax.federated.algorithms import fedavg
from kljax.federated.clients import Batches, Progress, local_gradient, local_training
from kljax.federated.cohorts import collect_progress
from kljax.federated.rounds import (
    NonFiniteClient,
    NonFiniteServer,
    federated_rounds,
    nbytes,
)
from kljax.models import from_nnx
from kljax.models.losses import cross_entropy, squared_error
from kljax.parallel import Layout


@pytest.fixture(autouse=True)
def quickly():
    with quick_compilation():
        yield


# --- padding ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["loop", "vmap"])
def test_a_padded_client_equals_the_unpadded_one(kind):
    (images, labels, valid), examples = client_data(clients=2)
    data = Batches(images, labels, valid), examples
    plain = play(locked(Layout(kind)), data, clients=2)

    def padded(x, fill):
        return np.concatenate([x, np.full_like(x[:, :2], fill)], axis=1)

    # What padding holds must not matter: not even NaN.
    longer = Batches(padded(images, np.nan), padded(labels, 0), padded(valid, False))
    other = play(locked(Layout(kind)), (longer, examples), clients=2)
    assert_close(trainable(plain[0]), trainable(other[0]))
    assert_close(plain[1], other[1])
    assert plain[2][1].loss == pytest.approx(other[2][1].loss, abs=1e-6)


# --- what leaves a client ---------------------------------------------------------


def test_neither_private_keys_nor_lock_weights_leave_a_client():
    """Searched byte by byte, in every upload and in the server's state."""
    model, defence = toy_model(), keylock(LOCK)
    training = local_training(model, cross_entropy, defence, SGD)
    rounds = federated_rounds(model, defence, training, layout=Layout("loop"))
    server, states, _ = play(rounds, client_data())
    batches, _ = client_data()
    one = jax.tree.map(lambda x: x[2], (states, batches))
    upload, kept, _ = jax.jit(training.run)(
        RNG, server.round, server.public, server.stats, *one
    )
    sent = [np.asarray(x) for x in jax.tree.leaves((upload, server))]
    wire = b"".join(x.tobytes() for x in sent)
    secrets = jax.device_get((states.private, kept.private))
    for leaf in jax.tree.leaves(secrets):
        for row in np.atleast_2d(leaf).astype(np.float32):
            for number in row[row != 0]:
                assert number.tobytes() not in wire
    # The search finds what is there.
    assert np.float32(server.public.model["fc/kernel"][0, 0]).tobytes() in wire
    # Everybody has a private key of its own, and has trained its own lock weights.
    assert len(np.unique(states.private.secret, axis=0)) == CLIENTS
    weights = states.private.trainable[0]["scale"]["bias"]
    assert len(np.unique(weights, axis=0)) > 1
    assert nbytes(states) == sum(x.nbytes for x in jax.tree.leaves(states))


def test_all_clients_start_from_the_lock_weights_that_the_server_drew():
    rounds = locked(Layout("loop"))
    server = rounds.init(RNG)
    states = rounds.init_clients(RNG, server, 3)
    jax.tree.map(
        # One of them is compiled, and may round otherwise.
        lambda mine, all_: [np.testing.assert_allclose(x, mine, 1e-6) for x in all_],
        jax.device_get(rounds.init_lock(RNG)),
        states.private.trainable,
    )
    assert states.private.secret.shape == (3, 5)
    more = rounds.init_clients(RNG, server, 4).private.secret
    np.testing.assert_array_equal(more[:3], states.private.secret)


# --- trouble ----------------------------------------------------------------------


def poisoned():
    batches, examples = client_data()
    batches.inputs[3, 1, 0] = np.nan
    return batches, examples


def test_a_client_that_turns_nan_is_excluded_and_named():
    rounds = locked(Layout("chunked", 2))
    server, states, infos = play(rounds, poisoned(), count=1)
    assert infos[0].excluded.tolist() == [3]
    assert np.isfinite(infos[0].loss)
    others = np.array([0, 1, 2, 4])
    expected, expected_states, _ = play(rounds, client_data(), count=1, cohort=others)
    assert_close(trainable(server), trainable(expected))
    before = rounds.init_clients(RNG, rounds.init(RNG), CLIENTS)
    jax.tree.map(np.testing.assert_array_equal, states, expected_states)
    assert_close(
        jax.tree.map(lambda x: x[3], states), jax.tree.map(lambda x: x[3], before), 0
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda b: b.labels.__setitem__((3, 1, 0), 3), ValueError, "client 3 .* 3 "),
        (lambda b: b.labels.__setitem__((2, 0, 1), -1), ValueError, "client 2 .* -1 "),
        (lambda b: b.inputs.__setitem__((4, 2, 0), 255), ValueError, "4 .*value 255"),
        (lambda b: b.inputs.__setitem__((1, 0, 0), -0.5), ValueError, "1 .*value -0.5"),
        (lambda b: b._replace(inputs=np.uint8(b.inputs)), TypeError, "uint8.*by 255"),
        (lambda b: b._replace(labels=b.labels * 1.0), TypeError, "labels .*float64"),
        (lambda b: b._replace(labels=b.labels[..., None]), ValueError, "4, 1.*T, B"),
        (lambda b: b._replace(inputs=b.inputs[:, :, 0]), ValueError, "2, 1.*T, B"),
    ],
)
def test_what_no_client_may_train_on_is_refused_by_client_and_value(
    change, error, message
):
    batches, examples = client_data()
    batches = change(batches) or batches
    rounds = locked(Layout("loop"))
    server = rounds.init(RNG)
    states = rounds.init_clients(RNG, server, CLIENTS)
    before = jax.tree.map(np.copy, states)
    with pytest.raises(error, match=message):
        rounds.run_round(
            RNG, server, states, np.arange(CLIENTS), fetch_from((batches, examples))
        )
    jax.tree.map(np.testing.assert_array_equal, states, before)


def test_what_padding_holds_is_no_label():
    batches, examples = client_data()
    batches.valid[:, -1] = False
    batches.labels[:, -1] = 99
    batches.inputs[:, -1] = 255
    play(locked(Layout("loop")), (batches, examples), count=1)


def test_a_client_that_turns_nan_can_stop_the_run():
    model = toy_model()
    training = local_training(model, cross_entropy, none(), SGD)
    stop = federated_rounds(model, none(), training, on_nonfinite="stop")
    server = stop.init(RNG)
    states = stop.init_clients(RNG, server, CLIENTS)
    before = jax.tree.map(np.copy, states)
    ids = np.arange(CLIENTS)
    with pytest.raises(NonFiniteClient, match=r"round 0: 1 clients .*\[3\]"):
        stop.run_round(RNG, server, states, ids, fetch_from(poisoned()))
    jax.tree.map(np.testing.assert_array_equal, states, before)
    exclude = federated_rounds(model, none(), training)
    with pytest.raises(NonFiniteClient, match=r"\[3\]"):
        exclude.run_round(RNG, server, states, ids[3:4], fetch_from(poisoned()))


def test_a_server_that_turns_nan_stops_the_run():
    """Finite uploads, which the server's step makes infinite."""
    model = toy_model()
    training = local_training(model, cross_entropy, none(), SGD)
    far = federated_rounds(
        model, none(), training, server_optimiser=optax.sgd(float("inf"))
    )
    server = far.init(RNG)
    states = far.init_clients(RNG, server, CLIENTS)
    before = jax.tree.map(np.copy, states)
    with pytest.raises(NonFiniteServer, match="round 0: the server's parameters"):
        far.run_round(RNG, server, states, np.arange(2), fetch_from(client_data()))
    jax.tree.map(np.testing.assert_array_equal, states, before)


def test_progress_is_in_the_order_of_the_cohort_and_nan_for_others():
    """Client 7 is another process's."""
    seen = [
        (
            np.array([4]),
            (),
            Progress(np.array([0.4]), np.array([4]), np.array([False])),
            (),
        ),
        (
            np.array([2, 9]),
            (),
            Progress(np.array([0.2, 0.9]), np.array([2, 9]), np.array([True, False])),
            (),
        ),
    ]
    found = collect_progress(np.array([9, 7, 2, 4]), seen)
    np.testing.assert_array_equal(found.loss, [0.9, np.nan, 0.2, 0.4])
    np.testing.assert_array_equal(found.accuracy, [9, np.nan, 2, 4])
    np.testing.assert_array_equal(found.finite, [False, True, True, False])


def test_clients_without_a_state_are_as_many_as_you_like():
    data = pixels(1.0, 0.5)
    rounds = product()
    server = rounds.init(RNG)
    states = rounds.init_clients(RNG, server, 1)
    assert not jax.tree.leaves(states)
    server, info = rounds.run_round(RNG, server, states, np.arange(2), fetch_from(data))
    assert info.clients.tolist() == [0, 1]


def test_bad_cohorts_are_refused():
    rounds = locked(Layout("loop"))
    server = rounds.init(RNG)
    states = rounds.init_clients(RNG, server, CLIENTS)
    run = functools.partial(rounds.run_round, RNG, server, states)
    fetch = fetch_from(client_data())
    for cohort, error, words in (
        ([], ValueError, "empty"),
        ([5], IndexError, "client 5 .* there are 5"),
        ([2, -1], IndexError, "client -1 .* there are 5"),
        ([[0, 1]], TypeError, "whole numbers"),
        ([1, 1], ValueError, r"repeated .*\[1, 1\]"),
        ([0.5], TypeError, "whole numbers"),
    ):
        cohort = np.array(cohort, int) if not cohort else np.array(cohort)
        with pytest.raises(error, match=words):
            run(cohort, fetch)
    batches, examples = client_data()
    examples[2] = 0
    with pytest.raises(ValueError, match="client 2 has no examples"):
        run(np.arange(CLIENTS), fetch_from((batches, examples)))
    batches, examples = client_data()
    batches.valid[3] = False
    with pytest.raises(ValueError, match="client 3 has no examples"):
        run(np.arange(CLIENTS), fetch_from((batches, examples)))
    batches.valid[3, 1] = True  # one step is enough
    run(np.arange(CLIENTS), fetch_from((batches, examples)))
    with pytest.raises(ValueError, match="at least 1 client, got 0"):
        rounds.init_clients(RNG, server, 0)
    for options, words in (
        ({"weighting": "sizes"}, "'examples' or 'uniform', got 'sizes'"),
        ({"on_nonfinite": "hope"}, "'exclude' or 'stop', got 'hope'"),
    ):
        with pytest.raises(ValueError, match=words):
            fedavg(toy_model(), cross_entropy, SGD, **options)


def test_dropout_and_losses_of_ones_own():
    class Dropped(Toy):
        def __init__(self, rngs):
            super().__init__(rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, images):
            x = self.norm(self.first(images.reshape(images.shape[0], -1)))
            return self.fc(self.dropout(nnx.sigmoid(x)))

    rounds = fedavg(from_nnx(Dropped), squared_error, SGD, layout=Layout("loop"))
    _, _, infos = play(rounds, client_data(), count=3)
    assert infos[2].loss < infos[0].loss


def test_the_gradient_of_a_step_is_the_one_that_attacks_see():
    """One step of plain SGD uploads minus the learning rate times local_gradient."""
    model, defence = toy_model(), keylock(LOCK)
    training = local_training(model, cross_entropy, defence, optax.sgd(0.25))
    rounds = federated_rounds(model, defence, training, layout=Layout("loop"))
    server = rounds.init(RNG)
    states = rounds.init_clients(RNG, server, 1)
    batches, _ = client_data(clients=1, steps=1)
    one, batch = jax.tree.map(lambda x: x[0], (states, batches))
    upload, _, _ = jax.jit(training.run)(
        RNG, server.round, server.public, server.stats, one, batch
    )
    gradient = local_gradient(model, cross_entropy, defence, train=True)
    grads = jax.jit(gradient)(
        RNG,
        server.public,
        server.stats,
        one.private,
        batch.inputs[0],
        jax.nn.one_hot(batch.labels[0], 3),
    )
    assert isinstance(upload.delta, Public)
    assert_close(upload.delta, jax.tree.map(lambda g: -0.25 * g, grads.public))
    assert_close(upload.stats, grads.stats)
