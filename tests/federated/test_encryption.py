"""Encryption: sums of ciphertexts against plain sums, alone and in whole rounds."""

import builtins
import functools

import jax
import numpy as np
import optax
import pytest
from test_aggregation import some_uploads
from test_rounds import assert_close, client_data, pixels, play, product, trainable
from tiny_studies import quick_compilation
from toys import random_weights, toy_model

from kljax.core.types import Private, Public
from kljax.defences import none, selective_encryption
from kljax.federated.aggregation import AGGREGATORS, make_aggregator, mean
from kljax.federated.algorithms import fedavg
from kljax.federated.clients import Upload, local_training, local_update
from kljax.federated.encryption import (
    ENCRYPTIONS,
    Cost,
    Encryption,
    ckks,
    homomorphic,
    make_encryption,
    mean_of_hidden,
    pairwise_masks,
)
from kljax.federated.encryption.homomorphic import (
    LARGEST,
    SLOTS,
    add_scaled,
    adding_with,
    decrypt,
    encrypt,
    new_context,
    public_context,
)
from kljax.federated.roles import Role
from kljax.federated.rounds import NonFiniteClient
from kljax.models.losses import cross_entropy

CLIENTS = 3
SHARES = np.array([0.5, 0.3, 0.2])
SGD = optax.sgd(0.1)


@pytest.fixture(autouse=True)
def quickly():
    with quick_compilation():
        yield


@functools.cache
def of_clients():
    """The context that clients share, drawn once for all tests."""
    return new_context()


@functools.cache
def of_server():
    return public_context(of_clients())


def some_values(size, seed=0):
    return np.random.default_rng(seed).standard_normal((CLIENTS, size))


# --- ciphertexts ------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, SLOTS + 1])
def test_a_sum_of_ciphertexts_is_the_sum(size):
    values = some_values(size)
    mean, cost = adding_with(of_clients())(0, np.arange(CLIENTS), SHARES, values)
    expected = sum(share * row for share, row in zip(SHARES, values, strict=True))
    assert mean.shape == (size,)
    np.testing.assert_allclose(mean, expected, rtol=0, atol=1e-6)
    one = encrypt(of_clients(), values[0])
    # Blocks of 4096 numbers; a server sees how many there are, and no number.
    assert len(one.blocks) == -(-size // SLOTS)
    assert cost.upload_bytes == pytest.approx(one.nbytes, rel=0.01)
    assert all(
        value.astype(np.float64).tobytes() not in b"".join(one.blocks)
        for value in values[0, :4]
    )


def test_the_largest_numbers_survive_their_product():
    values = np.full((2, 3), LARGEST) * [1, -1, 0.5]
    add = adding_with(of_clients())
    mean, _ = add(0, np.arange(2), np.array([0.999, 0.001]), values)
    np.testing.assert_allclose(mean, values[0], rtol=1e-6)


def test_a_server_has_no_secret_key():
    secret = {
        "save_public_key": False,
        "save_galois_keys": False,
        "save_relin_keys": False,
    }
    whole = of_clients().tenseal.serialize(save_secret_key=True, **secret)
    without = of_clients().tenseal.serialize(save_secret_key=False, **secret)
    chunk = whole[len(whole) // 2 :][:64]
    assert len(whole) > len(without) + 10_000
    assert chunk in of_clients().tenseal.serialize(save_secret_key=True)
    assert of_server().name == of_clients().name
    assert not of_server().tenseal.has_secret_key()
    assert chunk not in of_server().tenseal.serialize(save_secret_key=True)
    sent = encrypt(of_server(), np.ones(2))  # anybody can encrypt
    with pytest.raises(ValueError, match="needs the HE secret key"):
        decrypt(of_server(), sent)


def test_the_sum_is_made_without_a_secret_key(monkeypatch):
    contexts, honest = [], homomorphic.add_scaled

    def noted(context, *arguments):
        contexts.append(context)
        return honest(context, *arguments)

    monkeypatch.setattr(homomorphic, "add_scaled", noted)
    adding_with(of_clients())(0, np.arange(CLIENTS), SHARES, some_values(1))
    assert len(contexts) == CLIENTS
    assert not any(context.tenseal.has_secret_key() for context in contexts)


def test_large_numbers_lose_no_share_of_themselves():
    """TenSEAL's own means are 1.3e-7 of themselves too large: 7e-4 here."""
    values = 5000 + some_values(3)
    mean, _ = adding_with(of_clients())(0, np.arange(CLIENTS), SHARES, values)
    np.testing.assert_allclose(mean, SHARES @ values, rtol=0, atol=2.0**-24)


def test_a_server_is_given_no_loss_of_ckks():
    """It follows from the HE secret key: with the mean it would give it away."""
    values = some_values(50)
    mean, _ = adding_with(of_clients())(0, np.arange(CLIENTS), SHARES, values)
    np.testing.assert_array_equal(mean * 2**24, np.rint(mean * 2**24))
    total = None
    for share, row in zip(SHARES, values, strict=True):
        total = add_scaled(of_server(), total, encrypt(of_clients(), row), share)
    loss = decrypt(of_clients(), total) - SHARES @ values
    # The step of the rounding is coarser.
    assert 2.0**-35 < np.max(np.abs(loss)) < 2.0**-25


def test_two_ciphertexts_of_the_same_numbers_differ():
    one, other = (encrypt(of_clients(), np.ones(3)) for _ in range(2))
    assert one.blocks != other.blocks


def test_ciphertexts_of_another_context_are_refused():
    other = new_context()
    foreign, own = (encrypt(context, np.ones(2)) for context in (other, of_clients()))
    total = add_scaled(of_server(), None, own, 0.5)
    for call in (
        lambda: add_scaled(of_server(), total, foreign, 0.5),
        lambda: add_scaled(public_context(other), None, own, 0.5),
        lambda: decrypt(of_clients(), foreign),
    ):
        with pytest.raises(ValueError, match="ciphertexts of another context"):
            call()
    # What it would be otherwise: noise, and no error.
    forged = foreign._replace(context=of_clients().name)
    assert np.max(np.abs(decrypt(of_clients(), forged) - 1)) > 1e3


def test_a_second_product_is_refused():
    fresh = encrypt(of_clients(), np.ones(2))
    once = add_scaled(of_server(), None, fresh, 0.5)
    for total, new in ((None, once), (fresh, fresh)):
        with pytest.raises(ValueError, match="depth 1 is exceeded"):
            add_scaled(of_server(), total, new, 0.5)


def test_what_cannot_be_added_up_is_refused():
    sent = encrypt(of_clients(), np.ones(2))
    total = add_scaled(of_server(), None, sent, 0.5)
    with pytest.raises(ValueError, match="of 3 and of 2 numbers cannot be added up"):
        add_scaled(of_server(), total, encrypt(of_clients(), np.ones(3)), 0.5)
    for share in (0.0, np.nan, 1.5):
        with pytest.raises(ValueError, match=r"a share of a mean is in \(0, 1\]"):
            add_scaled(of_server(), None, sent, share)
    for damaged in (sent.blocks[0][:-10], b"ciphertext"):
        with pytest.raises(ValueError, match="no ciphertext"):
            add_scaled(of_server(), None, sent._replace(blocks=(damaged,)), 0.5)
    with pytest.raises(ValueError, match="of 3 numbers decrypt to 2: they are damaged"):
        decrypt(of_clients(), sent._replace(size=3))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "only finite numbers"),
        (-np.inf, "only finite numbers"),
        (2 * LARGEST, r"the scale of 2\^40 is exceeded: a number of size 5\.76e\+17"),
    ],
)
def test_a_number_that_does_not_fit_is_refused_with_its_client(value, message):
    values = some_values(3)
    values[1, 2] = value
    with pytest.raises(ValueError, match=f"round 4, client 7: {message}"):
        adding_with(of_clients())(4, np.array([5, 7, 9]), SHARES, values)


# --- what is encrypted ------------------------------------------------------------


def recorded(seen):
    """An encryption that notes what it is given, and gives zeros for it."""

    def add(number, ids, shares, values):
        seen.append((number, ids, shares, values))
        return np.zeros(values.shape[1]), Cost(upload_bytes=100.0)

    return add


def test_everybody_encrypts_what_one_of_them_hides():
    uploads = some_uploads(CLIENTS)  # a bias [2], a kernel [3, 2], two statistics
    visible = {"kernel": np.ones((3, 3, 2), bool), "bias": np.ones((3, 2), bool)}
    visible["kernel"][0, 2, 1] = visible["kernel"][2, 0, 0] = False
    visible["bias"][1, 1] = False
    seen, weights = [], np.array([5.0, 3.0, 2.0])
    mean, part = mean_of_hidden(
        recorded(seen), 6, np.arange(3), weights, uploads, Public(visible)
    )
    ((number, ids, shares, values),) = seen
    assert number == 6 and ids.tolist() == [0, 1, 2]
    np.testing.assert_allclose(shares, SHARES)
    model, stats = uploads.delta.model, uploads.stats["mean"]
    for client in range(CLIENTS):
        kernel = model["kernel"][client]
        hidden = [model["bias"][client, 1], kernel[0, 0], kernel[2, 1]]
        np.testing.assert_array_equal(values[client], [*hidden, *stats[client]])
    for found, name in (
        (mean.delta.model["kernel"], "kernel"),
        (mean.delta.model["bias"], "bias"),
    ):
        expected = sum(s * x for s, x in zip(SHARES, model[name], strict=True))
        everyone = visible[name].all(0)
        np.testing.assert_allclose(found, np.where(everyone, expected, 0), rtol=1e-6)
        assert found.dtype == np.float32
    np.testing.assert_array_equal(mean.stats["mean"], 0)
    assert (part.entries, part.hidden) == (10, 5)
    # Five floats in the clear, and a mask of eight bits.
    assert part.plain_bytes == 5 * 4 + 1 and part.upload_bytes == 121


def test_without_a_mask_all_is_encrypted():
    seen = []
    uploads = some_uploads(CLIENTS)
    _, part = mean_of_hidden(recorded(seen), 0, np.arange(3), np.ones(3), uploads, None)
    assert seen[0][3].shape == (3, 10)
    assert (part.entries, part.hidden, part.plain_bytes) == (10, 10, 0)


def test_narrow_numbers_have_a_mean_in_float32():
    model = {"a": np.ones((2, 3), jax.numpy.bfloat16), "b": np.ones((2, 1), np.float32)}
    mean, part = mean_of_hidden(
        recorded([]),
        0,
        np.arange(2),
        np.ones(2),
        Upload(Public(model), ()),
        Public({"a": np.ones((2, 3), bool), "b": np.ones((2, 1), bool)}),
    )
    assert mean.delta.model["a"].dtype == np.float32
    assert part.plain_bytes == 3 * 2 + 4 + 1


def test_a_round_hides_what_a_recorded_update_hides():
    """The attacked client of a run and the trained one draw the same mask."""
    model, defence = toy_model(), selective_encryption(0.4, score="random")
    training = local_training(model, cross_entropy, defence, SGD)
    update = local_update(model, cross_entropy, defence, SGD, steps=1, batch=4)
    batches, _ = client_data(clients=1, steps=1)
    batches = jax.tree.map(lambda x: x[0], batches)
    rng, number = jax.random.key(3), np.int32(0)

    @jax.jit
    def both(rng):
        params, stats = model.init(rng)
        state = training.init(Public(params), defence.init(rng, params)[1])
        one = update.run(
            rng,
            number,
            Public(params),
            stats,
            state,
            batches.inputs[0],
            batches.labels[0],
        )
        return one.visible, training.visible(
            rng, Public(params), stats, state, batches, one.sent
        )

    recorded_mask, trained_mask = both(rng)
    jax.tree.map(np.testing.assert_array_equal, recorded_mask, trained_mask)
    hidden = sum(np.sum(~x) for x in jax.tree.leaves(trained_mask))
    entries = sum(x.size for x in jax.tree.leaves(trained_mask))
    assert hidden == round(0.4 * entries)


def test_what_is_hidden_may_follow_from_the_gradient_that_a_client_trains_by():
    """Of norms in train mode, at what was received; here the entries below 0 are."""

    def visible(rng, sent, context):
        del rng, sent
        found = context.gradient(context.inputs, context.targets)
        return jax.tree.map(lambda g: g > 0, found.public)

    model, defence = toy_model(), none()._replace(visible=visible)
    training = local_training(model, cross_entropy, defence, SGD)
    update = local_update(model, cross_entropy, defence, SGD, steps=1, batch=4)
    batches, _ = client_data(clients=1, steps=1)
    batches = jax.tree.map(lambda x: x[0], batches)
    params, stats = random_weights(model)
    images, labels = batches.inputs[0], batches.labels[0]

    def loss(params):
        out = model.apply(params, stats, images, train=True)
        return cross_entropy(out.logits, np.eye(3, dtype=np.float32)[labels])

    @jax.jit
    def all_three():
        rng, received = jax.random.key(3), Public(params)
        state = training.init(received, Private())
        one = update.run(rng, np.int32(0), received, stats, state, images, labels)
        given = rng, received, stats, state, batches, one.sent
        return one.visible.model, training.visible(*given).model, jax.grad(loss)(params)

    recorded, trained, slopes = all_three()
    del slopes["first/bias"]  # which the norm takes out: 0 but for rounding
    for name, slope in slopes.items():
        np.testing.assert_array_equal(recorded[name], slope > 0)
        np.testing.assert_array_equal(trained[name], slope > 0)


# --- rounds -----------------------------------------------------------------------

SHARE = 0.3


@functools.cache
def played(encryption=None, selective=False):
    """Two rounds of three clients, and what all that is sent has [d], stats [s]."""
    with quick_compilation():
        defence = selective_encryption(SHARE) if selective else none()
        rounds = fedavg(
            toy_model(),
            cross_entropy,
            SGD,
            defence=defence,
            encryption=make_encryption(encryption) if encryption else None,
        )
        server, states, infos = play(rounds, client_data(CLIENTS), clients=CLIENTS)
    sizes = [sum(x.size for x in jax.tree.leaves(t)) for t in trainable(server)]
    return server, infos, sizes


@pytest.mark.parametrize("selective", [False, True])
@pytest.mark.parametrize("name", [name for name in ENCRYPTIONS if name != "none"])
def test_encrypted_rounds_are_plain_rounds(name, selective):
    server, infos, (params, stats) = played(name, selective)
    plain, plain_infos, _ = played()
    assert_close(trainable(server), trainable(plain), atol=1e-5)
    for info, other in zip(infos, plain_infos, strict=True):
        assert info.loss == pytest.approx(other.loss, abs=1e-5)
        part = info.hidden
        assert part.entries == params + stats and other.hidden is None
        assert stats > 0 and part.cost.encrypt_s > 0
        if selective:
            own = round(SHARE * params)
            assert own + stats <= part.hidden <= min(params, CLIENTS * own) + stats
            assert part.hidden < part.entries
        else:
            assert part.hidden == part.entries and part.plain_bytes == 0
    if name == "ckks":
        # Noise, so that the test above compares two things: CKKS is no plain sum.
        far = jax.tree.map(
            lambda a, b: np.max(np.abs(a - b)), server.public, plain.public
        )
        assert max(jax.tree.leaves(far)) > 0


def test_a_client_that_is_not_finite_takes_no_part():
    spoilt = Role(
        upload=lambda rng, public, stats, upload: jax.tree.map(
            lambda x: x * np.nan, upload
        )
    )

    def rounds(**options):
        return product(encryption=ckks(), **options)

    data = pixels(1.0, 0.5, 0.25)
    server, _, (info,) = play(rounds(roles={1: spoilt}), data, count=1, clients=3)
    assert info.excluded.tolist() == [1]
    # 1 -> .5 and 1 -> 1 - .5/16, see `test_rounds`.
    found = float(server.public.model["fc/kernel"][0, 0])
    assert found == pytest.approx((0.5 + 1 - 0.5 / 16) / 2, abs=1e-6)
    alone = rounds(roles={0: spoilt, 1: spoilt})
    with pytest.raises(
        NonFiniteClient, match=r"1 are left, of the 2 that encryption 'ckks' needs"
    ):
        play(alone, data, count=1, clients=3)


@pytest.mark.parametrize("make", [ckks, pairwise_masks])
def test_the_mean_of_one_client_is_refused(make):
    rounds = product(encryption=make())
    with pytest.raises(ValueError, match="needs 2 clients in a round, the cohort has"):
        play(rounds, pixels(1.0), count=1, clients=1)


@pytest.mark.parametrize("rule", [name for name in AGGREGATORS if name != "mean"])
def test_a_rule_that_looks_at_uploads_is_refused(rule):
    options = {"norm-bounding": "=1", "denoised-mean": "=1", "foolsgold": "=2"}
    aggregator = make_aggregator(rule + options.get(rule, ""))
    with pytest.raises(ValueError, match=f"'ckks' .* {rule}.* take the aggregator"):
        product(encryption=ckks(), aggregator=aggregator)


def test_a_gathering_rule_is_refused_whatever_it_says_of_itself():
    rule = make_aggregator("median")._replace(weighted_sum=True)
    with pytest.raises(ValueError, match="'ckks' .* median looks at each of them"):
        product(encryption=ckks(), aggregator=rule)


def test_a_rule_has_its_random_key_under_encryption():
    """One adds noise to the mean: the same, from the same key, as in the clear."""

    def finish(server, total, weight, *, rng):
        upload, memory = mean().finish(server, total, weight)
        noise = jax.random.normal(rng)
        return jax.tree.map(lambda x: x + noise, upload), memory

    noisy = mean()._replace(finish=finish, needs=("rng",))

    def weight(**options):
        data = pixels(1.0, 0.5)
        server, *_ = play(product(**options), data, count=1, clients=2)
        return float(server.public.model["fc/kernel"][0, 0])

    plain = weight(aggregator=noisy)
    encrypted = weight(aggregator=noisy, encryption=pairwise_masks())
    assert encrypted == pytest.approx(plain, abs=1e-6)
    assert abs(plain - weight()) > 1e-2


def test_a_mask_that_does_not_fit_is_refused_by_its_tensor():
    def flat(rng, sent, context):
        return jax.tree.map(lambda x: jax.numpy.ones(x.size, bool), sent)

    rounds = product(defence=none()._replace(visible=flat), encryption=pairwise_masks())
    with pytest.raises(ValueError, match="'model/fc/kernel' needs bool .*, got bool"):
        play(rounds, pixels(1.0, 0.5), count=1, clients=2)


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="'ckks' needs one process, and there are 2"):
        product(encryption=ckks())


def test_an_error_of_the_encryption_leaves_the_clients_as_they_were():
    def broken():
        def add(number, ids, shares, values):
            raise ValueError("no sum")

        return add

    def rounds(encryption=None):
        momentum = optax.sgd(0.5, momentum=0.5)
        return product(optimiser=momentum, encryption=encryption)

    fails = rounds(Encryption("broken", broken))
    server = fails.init(jax.random.key(0))
    states = fails.init_clients(jax.random.key(0), server, 2)
    before = jax.tree.map(np.copy, states)
    batches, examples = pixels(1.0, 0.5)
    with pytest.raises(ValueError, match="no sum"):
        fails.run_round(
            jax.random.key(0),
            server,
            states,
            np.arange(2),
            lambda ids: (jax.tree.map(lambda x: x[ids], batches), examples[ids]),
        )
    jax.tree.map(np.testing.assert_array_equal, states, before)


# --- names ------------------------------------------------------------------------


def test_without_tenseal_it_says_what_to_install(monkeypatch):
    def refuse(name, *args, **kwargs):
        if name.startswith("tenseal"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    original = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install 'kljax\[he\]'"):
        make_encryption("ckks")
    assert make_encryption("pairwise-masks").name == "pairwise-masks"


def test_names_make_encryptions():
    assert make_encryption("none") is None
    assert make_encryption("ckks").name == "ckks"
    with pytest.raises(ValueError, match="unknown encryption 'cks'.*mean 'ckks'"):
        make_encryption("cks")
    with pytest.raises(ValueError, match="gave no .*Encryption, but"):
        make_encryption("kljax.defences:none")
