"""Attacks on averages of clients: what they replay, and what they find."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from poison import differences, poisoned
from toys import (
    CLASSES,
    IMAGE_SHAPE,
    LOCK,
    quick_jit,
    random_images,
    random_private,
    random_weights,
    replace_fields,
    setting,
    threat,
    toy_model,
)

from kljax.attacks import (
    LABELS,
    Candidate,
    Protocol,
    Unknown,
    Unknowns,
    descend,
    from_optax,
    normal,
    replay,
    searched,
    squared_l2,
)
from kljax.attacks.secrets import secret_of
from kljax.attacks.simulation import of_each_client
from kljax.core.types import Public
from kljax.defences import keylock, none
from kljax.federated.clients import local_update, one_step
from kljax.models.losses import cross_entropy
from kljax.threat import average_updates, observe

CLIENTS, EACH = 3, 2
COUNT = CLIENTS * EACH
IMAGES = random_images(COUNT, *IMAGE_SHAPE).reshape(CLIENTS, EACH, *IMAGE_SHAPE)
LABELS_OF = np.arange(COUNT).reshape(CLIENTS, EACH) % CLASSES
TARGETS = np.eye(CLASSES, dtype=np.float32)[LABELS_OF]
RATE = 0.1
PROTOCOL = Protocol(optax.sgd(RATE), steps=2, batch=EACH, learning_rate=RATE)
OF_AVERAGE = {"examples": COUNT, "upload": "average", "clients": CLIENTS}


@functools.cache
def average(locked=True, steps=False, train=False):
    """Three clients, each behind a lock of its own private key."""
    defence = keylock(LOCK) if locked else none()
    params, stats = random_weights(toy_model())
    public = Public(params)
    # All have the same lock weights, as in round 0, and a private key each.
    weights = random_private().trainable
    own = [
        random_private(seed=seed)._replace(trainable=weights if locked else ())
        for seed in range(CLIENTS)
    ]
    own = own if locked else [one._replace(secret=()) for one in own]
    if steps:
        training = local_update(
            toy_model(), cross_entropy, defence, PROTOCOL.optimiser, steps=2, batch=EACH
        )
        run = quick_jit(training.run)
        return average_updates(
            [
                run(
                    jax.random.key(0),
                    0,
                    public,
                    stats,
                    training.init(public, own[k]),
                    IMAGES[k],
                    LABELS_OF[k],
                )
                for k in range(CLIENTS)
            ]
        )
    step = quick_jit(one_step(toy_model(), cross_entropy, defence, train=train))
    return average_updates(
        [
            step(jax.random.key(0), public, stats, own[k], IMAGES[k], TARGETS[k])
            for k in range(CLIENTS)
        ]
    )


def of_average(lock="unit", labels="given", locked=True, steps=False, **facts):
    """Makes the setting of who attacks the average."""
    known = {"labels": "known"} if labels == "given" else {}
    declared = threat(lock, labels, **OF_AVERAGE | known | facts)
    ground = setting(declared, keylock(LOCK) if locked else none())
    return replace_fields(ground, protocol=PROTOCOL if steps else None)


def distance(pair):
    """Computes how far two trees are apart, over the length of the second."""
    simulated, observed = map(jax.tree.leaves, pair)
    apart = sum(
        np.sum(np.square(a - b)) for a, b in zip(simulated, observed, strict=True)
    )
    return float(np.sqrt(apart / sum(np.sum(np.square(b)) for b in observed)))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"steps": True},
        {"locked": False},
        {"locked": False, "train": True},
    ],
    ids=str,
)
def test_at_the_truth_the_replay_is_what_was_sent(given):
    """Each client under its own gates and on its own batch; and no others."""
    # Local training has norms in train mode.
    train = given.get("train", False) or given.get("steps", False)
    truth = average(**given)
    modes = {} if not train else {"victim_norm": "train", "attacker_norm": "train"}
    ground = of_average(
        locked=given.get("locked", True), steps=given.get("steps", False), **modes
    )
    simulation = quick_jit(replay(ground, ground.defence.gates))
    view = observe(ground.threat, truth)
    at_truth = Candidate(truth.inputs, truth.targets, truth.private)
    assert distance(simulation(view, at_truth)) < 2e-5
    changed = at_truth._replace(inputs=truth.inputs.at[0].power(3))
    assert distance(simulation(view, changed)) > 1e-3
    if given.get("locked", True):  # the private keys of other clients
        secret = jnp.roll(truth.private.secret, 1, axis=0)
        others = at_truth._replace(secret=truth.private._replace(secret=secret))
        assert distance(simulation(view, others)) > 1e-3


def test_a_batch_of_all_is_replayed_where_it_is_the_same_and_nowhere_else():
    """Norms in train mode have the statistics of each client's own batch."""
    for train in (False, True):
        truth = average(locked=False, train=train)
        mode = "train" if train else "eval"
        declared = of_average(locked=False, victim_norm=mode, attacker_norm=mode)
        view = observe(declared.threat, truth)
        one_batch = replace_fields(
            declared,
            threat=threat(
                "unit",
                "given",
                labels="known",
                examples=COUNT,
                victim_norm=mode,
                attacker_norm=mode,
            ),
        )
        at_truth = Candidate(truth.inputs, truth.targets, truth.private)
        apart = distance(replay(one_batch, lambda public, own: {})(view, at_truth))
        assert (apart < 2e-5) if not train else (apart > 1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("lock", ("known", "fixed_random", "regress_gates"))
def test_each_client_has_a_secret_of_its_own(lock):
    facts = {"known": {"private_key": "known", "lock_weights": "known"}}
    facts = facts.get(lock, {"lock_weights": "initial"})
    ground, truth = of_average(lock, **facts), average()
    secret = secret_of(ground)
    view = observe(ground.threat, truth)
    free, fixed = secret.unknown.start(jax.random.key(3), view)
    value = secret.unknown.decode(free, fixed)
    leaves = jax.tree.leaves(value)
    assert leaves and all(len(leaf) == CLIENTS for leaf in leaves)
    if lock == "known":
        assert not differences(value, truth.private)
    if lock == "fixed_random":
        assert len({tuple(row) for row in np.asarray(value.secret)}) == CLIENTS
    pair = replay(ground, secret.gates)(
        view, Candidate(truth.inputs, truth.targets, value)
    )
    assert (distance(pair) < 2e-5) == (lock == "known")


def test_of_each_clients_secret_penalty_and_report_are_told():
    unknown = Unknown(
        None,
        lambda free, fixed: free,
        penalty=lambda free: free**2,
        report=lambda free, fixed: {"found": free + fixed},
    )
    knows = of_average().threat.knowledge
    every = of_each_client(unknown, knows)
    free, fixed = np.float32([1, 2, 3]), np.float32([10, 20, 30])
    assert float(every.penalty(free)) == 1 + 4 + 9
    assert every.report(free, fixed)["found"].tolist() == [11, 22, 33]
    silent = of_each_client(Unknown(None, lambda free, fixed: free), knows)
    assert silent.penalty is None and silent.report is None


@functools.cache
def attack():
    """A few steps of a search by gates, on the average: Update -> Reconstruction."""
    ground = of_average("regress_gates", "joint")
    secret = secret_of(ground)
    strike = descend(
        Unknowns(
            searched(ground, normal(0.5, 0.1)), LABELS["joint"](ground), secret.unknown
        ),
        replay(ground, secret.gates),
        squared_l2(),
        from_optax(optax.adam(0.1)),
        steps=4,
        points=2,
    )
    return quick_jit(
        lambda truth: strike(jax.random.key(1), observe(ground.threat, truth))
    )


def test_what_any_one_client_sent_cannot_change_a_reconstruction():
    """Single uploads are in no average; all else that is hidden is NaN."""
    truth = average()
    clean = attack()(truth)
    assert clean.finite and len(clean.inputs) == COUNT
    assert not differences(attack()(poisoned(truth, {})), clean)
    sent = jax.tree.map(lambda x: x.at[0].add(0.1), truth.sent)
    assert differences(attack()(truth._replace(sent=sent)), clean)


def test_examples_that_are_no_whole_number_for_each_client_are_refused():
    ground = setting(
        threat("unit", "given", labels="known", **OF_AVERAGE | {"examples": 4}), none()
    )
    with pytest.raises(ValueError, match="average of 3 clients has 4 examples"):
        replay(ground, ground.defence.gates)
