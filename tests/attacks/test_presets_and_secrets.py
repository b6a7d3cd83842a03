"""Every iterative preset takes every secret strategy that its threat model allows.

On gradients and on updates; what is refused is written down.
"""

import functools

import jax
import numpy as np
import optax
import pytest
from poison import differences, hidden, poisoned
from toys import (
    CLASSES,
    LOCK,
    locked_update,
    quick_jit,
    random_images,
    random_private,
    random_weights,
    setting,
    toy_model,
)

from kljax.attacks import Protocol
from kljax.attacks.presets import PRESETS
from kljax.core.inputs import images_of
from kljax.core.types import Public
from kljax.defences import keylock
from kljax.defences.lock import key_lock
from kljax.federated.clients import local_update, one_step
from kljax.models import NETWORKS, Dense, from_nnx
from kljax.models.losses import cross_entropy
from kljax.threat import (
    KEYLOCK_STRATEGIES,
    IllegalThreat,
    Strategy,
    least_knowledge,
    observe,
)

DEFENCE = keylock(LOCK)
# Presets that go through candidates have an objective; closed forms have none.
# The toy network has no position embedding: test_april.py. GGL has a generator, and
# makes whole generations: test_ggl.py; GIAS and GIFD have one: test_staged_latents.py.
# TabLeak looks for rows: test_tableak.py. SME
# takes updates alone, with any secret: see below.
GENERATIVE = ("ggl", "gias", "gifd")
ELSEWHERE = ("april-optimisation", *GENERATIVE, "likelihood", "tableak", "sme")
ITERATIVE = sorted(
    name
    for name in PRESETS
    if PRESETS[name].objective is not None
    and "image" in (PRESETS[name].inputs or ("image",))
    and name not in ELSEWHERE
)
# The chain of these tests has no norm layer, whose statistics that one reads.
ON_CHAINS = [name for name in ITERATIVE if name != "bn-updates"]
EVAL = {"victim_norm": "eval", "attacker_norm": "eval"}  # as the toy client steps
SHAPE = (8, 8, 1)  # generators make no smaller ones


def test_the_presets_are_there():
    assert {"matching", "dlg", "gate-regression"} <= set(ITERATIVE)


def shrunk():
    """Makes the toy network for images of 8x8."""
    toy = toy_model()

    def apply(params, stats, images, **options):
        blocks = images.reshape(images.shape[0], 2, 4, 2, 4, 1)
        return toy.apply(params, stats, blocks.mean(axis=(2, 4)), **options)

    return toy._replace(apply=apply)


def declare(name, strategy, **facts):
    """The least that an attacker must know who has this preset and this strategy."""
    plan = Strategy(secret=strategy, labels=PRESETS[name].labels)
    return least_knowledge(plan, **facts, **PRESETS[name].needs)


# Networks that a preset brings along are small here.
SMALL = {
    "deep-image-prior": {"channels": 8},
    "gi-nas": {"channels": 8, "candidates": 2},
}


def check_steps(name, ground, update, **sizes):
    """Builds a preset, and lets it make some steps; it sees nothing that is hidden."""
    attack = PRESETS[name].build(ground, **sizes, **SMALL.get(name, {}))
    strike = quick_jit(
        lambda seen: attack(jax.random.key(1), observe(ground.threat, seen))
    )
    found = strike(update)
    assert bool(found.finite) and np.isfinite(found.loss)
    assert found.inputs.shape == update.inputs.shape[:1] + SHAPE
    assert np.all(np.isfinite(found.inputs))
    assert found.labels.shape == update.inputs.shape[:1] and np.all(found.labels >= 0)
    assert found.numbers["evaluations"] == sizes["steps"] * sizes["restarts"]
    facts = vars(ground.threat.knowledge)
    assert len(hidden(facts)) >= 4
    assert not differences(strike(poisoned(update, facts)), found)
    return found


# Each pair compiles a program of its own: all but a few are slow together.
QUICK = ("gate-regression", "grnn", "inverting-gradients")
PAIRS = [
    pytest.param(
        name,
        strategy,
        marks=() if strategy == "regress_gates" and name in QUICK else pytest.mark.slow,
    )
    for name in ITERATIVE
    for strategy in KEYLOCK_STRATEGIES
    if strategy != "peel"  # the toy network is no chain of layers: see below
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "strategy"), PAIRS)
def test_a_legal_pair_builds_and_makes_a_step(name, strategy):
    model = declare(name, strategy, **EVAL)
    ground = setting(model, DEFENCE, model=shrunk(), inputs=images_of(SHAPE))
    # Some compare restarts.
    check_steps(name, ground, locked_update(1), steps=1, restarts=2)


@pytest.mark.parametrize(
    ("strategy", "fact"),
    [
        (name, fact)
        for name in KEYLOCK_STRATEGIES
        for fact in KEYLOCK_STRATEGIES[name].needs
    ],
)
def test_an_illegal_pair_raises(strategy, fact):
    """There is no threat model, and so no setting to build a preset on."""
    with pytest.raises(IllegalThreat, match=f"secret='{strategy}' needs {fact}="):
        less = {fact: {"examples": 2, "upload": "average"}.get(fact, "hidden")}
        least_knowledge(Strategy(secret=strategy, labels="joint"), **less)


@pytest.mark.parametrize("name", ITERATIVE)
def test_peeling_a_network_that_is_no_chain_raises(name):
    ground = setting(
        declare(name, "peel"), DEFENCE, model=shrunk(), inputs=images_of(SHAPE)
    )
    with pytest.raises(ValueError, match="'peel' walks a chain of layers"):
        PRESETS[name].build(ground, steps=1, restarts=2)


# --- peeling a network that is one -------------------------------------------------

SITE = ("layers/0", 4)
CHAIN_LOCK = key_lock((SITE[0],), (SITE[1],), size=5)


@functools.cache
def chain():
    return from_nnx(
        lambda rngs: Dense(CLASSES, image_shape=SHAPE, widths=(SITE[1],), rngs=rngs)
    )


def chained(model, **changes):
    return setting(
        model,
        keylock(CHAIN_LOCK),
        model=chain(),
        inputs=images_of(SHAPE),
        sites=(SITE,),
        chain=NETWORKS["dense"].chain,
        **changes,
    )


@functools.cache
def chained_update():
    # Weights as small as networks have them: sigmoids that say something.
    params, stats = random_weights(chain(), scale=0.1)
    step = one_step(chain(), cross_entropy, keylock(CHAIN_LOCK), train=True)
    private, images = random_private(CHAIN_LOCK), random_images(1, *SHAPE)
    return quick_jit(step)(
        jax.random.key(0), Public(params), stats, private, images, np.eye(3)[[2]]
    )


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK[:1] else pytest.mark.slow)
        for name in ON_CHAINS
    ],
)
def test_peeled_gates_are_taken_by_every_preset(name):
    update = chained_update()
    found = check_steps(
        name, chained(declare(name, "peel")), update, steps=2, restarts=1
    )
    true = CHAIN_LOCK.gates(update.private.trainable, update.private.secret)
    for gate, part in zip(
        found.info["secret"].gates[SITE[0]], true[SITE[0]], strict=True
    ):
        np.testing.assert_allclose(gate, part, rtol=1e-2, atol=1e-2)


# What a chain that is locked below its classifier, without a norm, cannot be for.
UNFIT = {
    "april": "april needs a vision transformer",
    "april-optimisation": "'positions', a position embedding",
    "bn-updates": "bn-updates reads the running statistics .* this network has none",
    "cocktail-party": "cocktail-party unmixes what is .* lock .* secret='peel'",
    "imprint": "imprint reads what is in front of any lock .* secret='peel'",
    "imprint-one-shot": "imprint reads what is in front of any lock .* secret='peel'",
    "learned": "learned replays nothing .* secret='peel': write 'unit'",
    "peeling": "first layer's norm, and layers/0 is none",
    "rgap": "rgap knows no lock, the threat model says secret='peel'",
    "spear": "spear reads what is in front of any lock .* secret='peel'",
    "spear++": "spear reads what is in front of any lock .* secret='peel'",
}


def test_peeled_gates_are_taken_or_refused_by_all():
    others = ("text",), ("table",)
    elsewhere = {name for name in PRESETS if PRESETS[name].inputs in others}
    others = *GENERATIVE, "likelihood", "sme"
    assert {*ITERATIVE, *UNFIT, *others, *elsewhere} == set(PRESETS)


@pytest.mark.parametrize("name", UNFIT)
def test_peeled_gates_that_are_of_no_use_are_refused(name):
    ground = chained(declare(name, "peel"))
    with pytest.raises(ValueError, match=UNFIT[name]):
        attack = PRESETS[name].build(ground, steps=2, restarts=1)
        view = observe(ground.threat, chained_update())
        jax.eval_shape(attack, jax.random.key(1), view)


# --- updates of several local steps ------------------------------------------------

# Batches of three: of two examples a norm makes nothing but signs.
EXAMPLES, STEPS, BATCH, RATE = 6, 2, 3, 0.05
PROTOCOL = Protocol(optax.sgd(RATE), STEPS, BATCH, RATE)
# What no attack on an update can do, and what is said about it; all else is taken.
REFUSED = {"peel": "needs the gradient of at most .* upload='update'"}
QUICK_UPDATES = {("gate-regression", "regress_gates"), ("bn-updates", "extract")}
UPDATES = [
    pytest.param(
        name,
        strategy,
        marks=()
        if name == "fedavg-inversion" or (name, strategy) in QUICK_UPDATES
        else pytest.mark.slow,
    )
    for name in (*ITERATIVE, "sme")
    for strategy in KEYLOCK_STRATEGIES
    if strategy not in REFUSED
]


@functools.cache
def several_steps():
    params, stats = random_weights(shrunk())
    public, labels = Public(params), np.arange(EXAMPLES) % CLASSES
    training = local_update(
        shrunk(), cross_entropy, DEFENCE, PROTOCOL.optimiser, steps=STEPS, batch=BATCH
    )
    state = training.init(public, random_private())
    images = random_images(EXAMPLES, *SHAPE)
    return quick_jit(training.run)(
        jax.random.key(0), 0, public, stats, state, images, labels
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "strategy"), UPDATES)
def test_a_legal_pair_makes_steps_on_an_update(name, strategy):
    model = declare(name, strategy, upload="update", examples=EXAMPLES)
    ground = setting(
        model, DEFENCE, model=shrunk(), inputs=images_of(SHAPE), protocol=PROTOCOL
    )
    check_steps(name, ground, several_steps(), steps=2, restarts=1)


@pytest.mark.parametrize("strategy", REFUSED)
@pytest.mark.parametrize("name", ON_CHAINS)
def test_what_an_update_cannot_be_is_refused(name, strategy):
    """Of one example, on a chain of layers: nothing but the upload is in the way."""
    protocol = Protocol(optax.sgd(RATE), STEPS, 1, RATE)
    ground = chained(declare(name, strategy, upload="update"), protocol=protocol)
    with pytest.raises(ValueError, match=REFUSED[strategy]):
        PRESETS[name].build(ground, steps=2, restarts=1)
    gradient = chained(declare(name, strategy))
    PRESETS[name].build(gradient, steps=2, restarts=1)
