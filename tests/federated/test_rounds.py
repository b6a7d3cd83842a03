"""Rounds: one client is SGD, many are their weighted mean, in every layout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny_studies import quick_compilation
from toys import LOCK, random_images, toy_model

from kljax.core.randomness import derive_rng
from kljax.core.types import Private
from kljax.defences import at_update, gaussian_noise, keylock, norm_clipping
from kljax.defences.lock import key_lock
from kljax.federated.aggregation import mean
from kljax.federated.algorithms import fedavg, fedkl, fedprox, new_private_key, proximal
from kljax.federated.clients import ROUND_PURPOSES, Batches
from kljax.federated.rounds import PURPOSES
from kljax.models import from_nnx
from kljax.models.losses import cross_entropy
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


@pytest.mark.slow
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
    # By name: of the rounds, of this one, of the client, of what it releases.
    public = still.init(RNG).public
    rng_rounds = derive_rng(RNG, PURPOSES, "rounds")
    for number, noise in enumerate(first):
        rng_client = jax.random.fold_in(jax.random.fold_in(rng_rounds, number), 0)
        rng = derive_rng(rng_client, ROUND_PURPOSES, "release")
        nothing = jax.tree.map(jnp.zeros_like, public)
        wanted, _ = gaussian_noise(1.0).release(rng, (), nothing, None)
        assert noise == pytest.approx(float(wanted.model["fc/kernel"][0, 0]), abs=1e-5)


def test_a_rules_and_the_clients_draws_are_of_purposes_of_their_own():
    """By name, as those of a client in a round are."""

    def finish(server, total, weight, *, rng):
        upload, memory = mean().finish(server, total, weight)
        noise = jax.random.normal(rng)
        return jax.tree.map(lambda x: x + noise, upload), memory

    noisy = mean()._replace(finish=finish, needs=("rng",))
    still, data = product(optimiser=optax.sgd(0.0), aggregator=noisy), pixels(1.0)
    server, places = still.init(RNG), [1.0]
    states = still.init_clients(RNG, server, 1)
    for _ in range(2):
        server, _ = still.run_round(RNG, server, states, np.arange(1), fetch_from(data))
        places.append(float(server.public.model["fc/kernel"][0, 0]))
    rng_rule = derive_rng(RNG, PURPOSES, "aggregation")
    for number, noise in enumerate(np.diff(places)):
        rng = jax.random.fold_in(jax.random.fold_in(rng_rule, number), 0)  # first need
        assert noise == pytest.approx(float(jax.random.normal(rng)), abs=1e-5)
    rounds = locked(LAYOUTS[0])
    server, rng_clients = rounds.init(RNG), derive_rng(RNG, PURPOSES, "clients")
    private_keys = rounds.init_clients(RNG, server, 2).private.secret
    for client, private_key in enumerate(private_keys):
        rng = jax.random.fold_in(rng_clients, client)
        _, private = keylock(LOCK).init(rng, server.public.model)
        np.testing.assert_allclose(private_key, private.secret, atol=1e-6)
