"""Rounds: one client is SGD, many are their weighted mean, in every layout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny_studies import quick_compilation
from toys import LOCK, Toy, random_images, toy_model

from kljax.core.types import Private, Public
from kljax.defences import (
    at_update,
    gaussian_noise,
    keylock,
    none,
    norm_clipping,
)
from kljax.defences.lock import key_lock
from kljax.federated.algorithms import fedavg, fedkl, fedprox, new_private_key, proximal
from kljax.federated.clients import Batches, Progress, local_gradient, local_training
from kljax.federated.rounds import NonFiniteClient, _collected, federated_rounds, nbytes
from kljax.models import from_nnx
from kljax.models.losses import cross_entropy, squared_error
from kljax.parallel import Layout

RNG = jax.random.key(11)
CLIENTS, STEPS, BATCH = 5, 3, 4
SGD = optax.chain(
    optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9, nesterov=True)
)


@pytest.fixture(autouse=True)
def quickly():
    with quick_compilation():
        yield


def client_data(clients=CLIENTS, steps=STEPS, seed=3):
    """Batches with a client axis, and unequal numbers of examples."""
    images = random_images(clients, steps, BATCH, 2, 2, 1, seed=seed)
    labels = np.random.default_rng(seed).integers(0, 3, (clients, steps, BATCH))
    valid = np.ones((clients, steps), bool)
    examples = np.arange(1, clients + 1, dtype=np.float32)
    return Batches(images, labels.astype(np.int32), valid), examples


def fetch_from(data):
    batches, examples = data
    return lambda ids: (jax.tree.map(lambda x: x[ids], batches), examples[ids])


def play(rounds, data, *, count=2, clients=CLIENTS, cohort=None):
    """Runs some rounds; gives the server, the clients' states, and every info.

    `cohort` holds the ids of every round, or is a list of them, one per round.
    """
    server = rounds.init(RNG)
    states = rounds.init_clients(RNG, server, clients)
    infos = []
    for number in range(count):
        ids = np.arange(clients) if cohort is None else cohort
        ids = ids[number] if isinstance(ids, list) else ids
        server, info = rounds.run_round(RNG, server, states, ids, fetch_from(data))
        infos.append(info)
    return jax.device_get(server), states, infos


def assert_close(one, other, atol=1e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol), one, other
    )


def trainable(server):
    return server.public, server.stats


LAYOUTS = (
    Layout("loop"),
    Layout("chunked", 2),
    Layout("vmap"),
    Layout("sharded", 2),
    Layout("sharded_loop", 2),
)


# Clients change their places from round to round; 3 comes twice.
SAMPLED = {"count": 3, "cohort": [np.array(c) for c in ([1, 3, 4], [3, 0], [4, 2, 3])]}


@functools.cache
def reference(sampled=False):
    with quick_compilation():
        options = SAMPLED if sampled else {}
        return play(locked(LAYOUTS[0]), client_data(), **options)


def locked(layout):
    return fedkl(toy_model(), cross_entropy, SGD, lock=LOCK, layout=layout)


@pytest.mark.parametrize("layout", LAYOUTS[1:], ids=lambda layout: layout.kind)
def test_layouts_agree(layout):
    server, states, infos = play(locked(layout), client_data())
    expected, expected_states, expected_infos = reference()
    assert_close(trainable(server), trainable(expected))
    assert_close(states, expected_states)
    for info, other in zip(infos, expected_infos, strict=True):
        assert info.loss == pytest.approx(other.loss, abs=1e-6)
        assert info.accuracy == pytest.approx(other.accuracy, abs=1e-6)
        assert info.clients.tolist() == list(range(CLIENTS))
        np.testing.assert_allclose(info.progress.loss, other.progress.loss, atol=1e-6)
    # Five clients in blocks of two or four, and one compilation for all rounds.
    assert [info.timing.compilations for info in infos] == [1, 0]
    assert int(server.round) == 2


def test_permuting_the_cohort_changes_nothing():
    data = client_data()
    server, states, infos = play(
        locked(Layout("chunked", 2)), data, cohort=np.array([3, 0, 4, 2, 1])
    )
    expected, expected_states, expected_infos = reference()
    assert_close(trainable(server), trainable(expected))
    assert_close(states, expected_states)
    np.testing.assert_allclose(
        infos[1].progress.loss[[1, 4, 3, 0, 2]], expected_infos[1].progress.loss, 1e-5
    )


def test_one_client_is_central_sgd_step_for_step():
    """Momentum, weight decay and statistics over two rounds, gates trained too."""
    batches, examples = data = client_data(clients=1)
    server, states, _ = play(locked(Layout("loop")), data, clients=1)

    rounds, model, defence = locked(Layout("loop")), toy_model(), keylock(LOCK)
    start = rounds.init(RNG)
    private = jax.tree.map(lambda x: x[0], rounds.init_clients(RNG, start, 1).private)
    trained, stats = (start.public, private.trainable), start.stats
    memory = SGD.init(trained)

    @jax.jit
    def step(trained, stats, memory, images, labels):
        def loss(trained):
            public, weights = trained
            gates = defence.gates((), Private(private.secret, weights))
            out = model.apply(public.model, stats, images, gates=gates, train=True)
            return cross_entropy(out.logits, jax.nn.one_hot(labels, 3)), out.stats

        grads, stats = jax.grad(loss, has_aux=True)(trained)
        moves, memory = SGD.update(grads, memory, trained)
        return optax.apply_updates(trained, moves), stats, memory

    for _ in range(2):
        for t in range(STEPS):
            trained, stats, memory = step(
                trained, stats, memory, batches.inputs[0, t], batches.labels[0, t]
            )
    assert_close((server.public, server.stats), (trained[0], stats))
    assert_close(states.private.trainable, jax.tree.map(lambda x: x[None], trained[1]))
    assert_close(states.optimiser, jax.tree.map(lambda x: x[None], memory))


# --- by hand: a network of one number ---------------------------------------------


class Product(nnx.Module):
    """Multiplies an image of one pixel by one weight: logits [B, 1]."""

    def __init__(self, rngs):
        self.fc = nnx.Linear(
            1, 1, use_bias=False, kernel_init=nnx.initializers.ones, rngs=rngs
        )

    def __call__(self, images):
        return self.fc(images.reshape(-1, 1))


def pixels(*values, steps=1, examples=None):
    """One client per value, each with `steps` batches of that one pixel."""
    images = np.repeat(np.array(values, np.float32)[:, None], steps, 1)
    images = images.reshape(len(values), steps, 1, 1, 1, 1)
    batches = Batches(
        images,
        np.zeros((len(values), steps, 1), np.int32),
        np.ones((len(values), steps), bool),
    )
    return batches, np.array(examples or [1.0] * len(values), np.float32)


def half_square(logits, targets):
    """Gives x w a loss whose gradient in w is x^2 w."""
    del targets
    return 0.5 * jnp.sum(logits**2)


def weight_after(rounds, data, **options):
    server, _, infos = play(rounds, data, clients=len(data[1]), **options)
    return float(server.public.model["fc/kernel"][0, 0]), infos


def product(make=fedavg, optimiser=None, **options):
    return make(
        from_nnx(Product),
        half_square,
        optimiser or optax.sgd(0.5),
        layout=Layout("loop"),
        **options,
    )


def test_fedavg_by_hand():
    # w = 1; client x moves by -.5 x^2 per step: 1 -> .5 and 1 -> .875.
    weight, _ = weight_after(product(), pixels(1.0, 0.5, examples=[3, 1]), count=1)
    assert weight == pytest.approx((3 * 0.5 + 0.875) / 4)
    uniform = product(weighting="uniform")
    weight, _ = weight_after(uniform, pixels(1.0, 0.5, examples=[3, 1]), count=1)
    assert weight == pytest.approx((0.5 + 0.875) / 2)


def test_measures_are_weighted_as_clients_are():
    """Losses at the start: .5 for the pixel 1, .125 for .5; one class, so all right."""
    data = pixels(1.0, 0.5, examples=[3, 1])
    _, (info,) = weight_after(product(), data, count=1)
    assert info.loss == pytest.approx((3 * 0.5 + 0.125) / 4)
    assert info.accuracy == pytest.approx(1.0)
    _, (info,) = weight_after(product(weighting="uniform"), data, count=1)
    assert info.loss == pytest.approx((0.5 + 0.125) / 2)
    np.testing.assert_allclose(info.progress.loss, [0.5, 0.125])


def test_what_servers_keep_is_theirs_from_round_to_round():
    # Round 1: the aggregate is -.5: 1 -> .5. Round 2: -.25, and half of the first
    # one again: .5 -> 0.
    kept = product(server_optimiser=optax.sgd(1.0, momentum=0.5))
    assert weight_after(kept, pixels(1.0), count=2)[0] == pytest.approx(0.0)


def test_statistics_are_averaged_as_weights_are():
    rounds = locked(Layout("loop"))
    data, ids = client_data(clients=2), np.arange(2)
    server = rounds.init(RNG)
    alone = []
    for n in ids:
        states = rounds.init_clients(RNG, server, 2)
        one, _ = rounds.run_round(RNG, server, states, ids[n : n + 1], fetch_from(data))
        alone.append(jax.device_get(trainable(one)))
    states = rounds.init_clients(RNG, server, 2)
    both, _ = rounds.run_round(RNG, server, states, ids, fetch_from(data))
    # One and two examples.
    expected = jax.tree.map(lambda a, b: (a + 2 * b) / 3, *alone)
    assert_close(jax.device_get(trainable(both)), expected)


def test_server_optimiser_by_hand():
    # The aggregate is -.5 (1 -> .5), halved by the server: 1 -> .75 -> .5625.
    half = product(server_optimiser=optax.sgd(0.5))
    assert weight_after(half, pixels(1.0), count=2)[0] == pytest.approx(0.5625)


def test_fedprox_by_hand():
    # Two steps from 1: the first is plain, 1 -> .5; in the second the pull 2 (.5 - 1)
    # cancels it partly: .5 - .5 (.5 - 1) = .75.
    prox = product(fedprox, strength=2.0)
    weight, _ = weight_after(prox, pixels(1.0, steps=2), count=1)
    assert weight == pytest.approx(0.75)
    prox = product(fedprox, strength=2.0, local=None)  # as `fedavg` takes it
    assert weight_after(prox, pixels(1.0, steps=2), count=1)[0] == pytest.approx(0.75)
    free = product(fedprox, strength=0.0)
    weight, _ = weight_after(free, pixels(1.0, steps=2), count=1)
    assert weight == pytest.approx(0.25)
    with pytest.raises(ValueError, match="strength must be >= 0, got -1"):
        proximal(-1.0)


def test_fedkl_by_hand():
    """Two clients, one weight w = 1, one gate: scale relu(a k + b), dead shift."""
    lock = key_lock(("fc",), (1,), size=1)
    rounds = product(fedkl, lock=lock)
    server = rounds.init(RNG)
    states = rounds.init_clients(RNG, server, 2)
    states.private.secret[:] = [[1.0], [2.0]]
    weights = states.private.trainable[0]
    for part, kernel, bias in (("scale", 0.5, 0.0), ("shift", 0.0, -1.0)):
        weights[part]["kernel"][:], weights[part]["bias"][:] = kernel, bias
    data = pixels(1.0, 1.0)
    server, _ = rounds.run_round(RNG, server, states, np.arange(2), fetch_from(data))
    # k = 1: scale .5, y = .5; w falls by .5 y scale = .125, a and b by .5 y w k and
    # .5 y w, .25 each. k = 2: scale 1, y = 1; w falls by .5, a by 1, b by .5.
    assert server.public.model["fc/kernel"][0, 0] == pytest.approx((0.875 + 0.5) / 2)
    np.testing.assert_allclose(weights["scale"]["kernel"].ravel(), [0.25, -0.5])
    np.testing.assert_allclose(weights["scale"]["bias"].ravel(), [-0.25, -0.5])
    np.testing.assert_array_equal(weights["shift"]["bias"].ravel(), [-1, -1])
    np.testing.assert_array_equal(states.private.secret.ravel(), [1, 2])


def test_momentum_is_kept_or_reset():
    momentum = optax.sgd(0.5, momentum=0.5)
    # Round 1: 1 -> .5, trace 1. Round 2 kept: trace .5 + .5 = 1 -> 0; reset: .25.
    kept, _ = weight_after(product(optimiser=momentum), pixels(1.0), count=2)
    reset = product(optimiser=momentum, local={"reset_optimiser": True})
    assert kept == pytest.approx(0.0)
    assert weight_after(reset, pixels(1.0), count=2)[0] == pytest.approx(0.25)


def test_private_keys_may_be_drawn_anew_in_every_round():
    """At rate 0 nothing else of a client changes; without a lock nothing does."""
    still, data = optax.sgd(0.0), client_data(clients=2)
    lock = {"lock": LOCK, "fresh_private_keys": True}
    fresh = fedkl(toy_model(), cross_entropy, still, **lock)
    seen = [play(fresh, data, count=n, clients=2)[1].private for n in (0, 1, 2)]
    keys = np.concatenate([private.secret for private in seen])
    assert len(np.unique(keys, axis=0)) == 6  # two clients, three draws
    assert np.all((keys >= 0) & (keys < 1))
    jax.tree.map(np.testing.assert_array_equal, seen[0].trainable, seen[2].trainable)
    local = {"renew": new_private_key(LOCK)}
    plain = play(fedavg(toy_model(), cross_entropy, SGD), data, clients=2)[0]
    other = fedavg(toy_model(), cross_entropy, SGD, local=local)
    assert_close(trainable(plain), trainable(play(other, data, clients=2)[0]))


def test_a_schedule_may_count_rounds():
    def by_round(number):
        return optax.sgd(jnp.where(number == 0, 0.5, 0.0))

    weight, _ = weight_after(product(optimiser=by_round), pixels(1.0), count=3)
    assert weight == pytest.approx(0.5)


def test_what_is_released_is_what_is_averaged():
    clipped = product(defence=at_update(norm_clipping(0.1)))
    weight, _ = weight_after(clipped, pixels(1.0, 0.8), count=1)
    assert weight == pytest.approx(0.9)
    noisy = product(defence=at_update(gaussian_noise(1.0)))
    first, _ = weight_after(noisy, pixels(1.0), count=1)
    assert abs(first - 0.5) > 1e-3


def test_every_client_and_every_round_has_noise_of_its_own():
    """At rate 0 what moves the weight is noise; another seed draws otherwise."""
    still = product(optimiser=optax.sgd(0.0), defence=at_update(gaussian_noise(1.0)))
    data = pixels(1.0, 1.0)

    def drawn(rng, clients):
        server = still.init(RNG)
        states = still.init_clients(RNG, server, 2)
        places = [1.0]
        for client in clients:
            ids = np.array([client])
            server, _ = still.run_round(rng, server, states, ids, fetch_from(data))
            places.append(float(server.public.model["fc/kernel"][0, 0]))
        return np.diff(places).tolist()

    first, second = drawn(RNG, [0, 0]), drawn(RNG, [1, 1])
    other = drawn(jax.random.key(12), [0, 0])
    assert len({round(noise, 4) for noise in first + second + other}) == 6
    assert drawn(RNG, [0]) == first[:1]


# --- padding ----------------------------------------------------------------------


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
    found = _collected(np.array([9, 7, 2, 4]), seen)
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
