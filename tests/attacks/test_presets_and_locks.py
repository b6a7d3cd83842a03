"""Every iterative preset takes every lock strategy that its threat model allows."""

import jax
import numpy as np
import pytest
from poison import differences, hidden, poisoned
from toys import LOCK, locked_update, quick_jit, setting, toy_model

from kljax.attacks import LOCKS
from kljax.attacks.presets import PRESETS
from kljax.defences import keylock
from kljax.threat import STRATEGY, IllegalThreat, Strategy, least_knowledge, observe

DEFENCE = keylock(LOCK)
# Presets that go through candidates have an objective; closed forms have none.
# The toy network has no position embedding: test_april.py.
ITERATIVE = sorted(
    name
    for name in PRESETS
    if PRESETS[name].objective is not None and name != "april-optimisation"
)
EVAL = {"victim_norm": "eval", "attacker_norm": "eval"}  # as the toy client steps


def test_the_presets_are_there():
    assert {"matching", "dlg", "gate-regression"} <= set(ITERATIVE)


def shrunk():
    """Makes the toy network for images of 8x8: generators make no smaller ones."""
    toy = toy_model()

    def apply(params, stats, images, **options):
        blocks = images.reshape(images.shape[0], 2, 4, 2, 4, 1)
        return toy.apply(params, stats, blocks.mean(axis=(2, 4)), **options)

    return toy._replace(apply=apply)


# Each pair compiles a program of its own: all but a few are slow together.
QUICK = ("gate-regression", "grnn", "inverting-gradients")
PAIRS = [
    pytest.param(
        name,
        strategy,
        marks=() if strategy == "regress_gates" and name in QUICK else pytest.mark.slow,
    )
    for name in ITERATIVE
    for strategy in LOCKS
    if strategy != "peel"  # the toy network is no chain of layers: test_peeling.py
]


@pytest.mark.parametrize(("name", "strategy"), PAIRS)
def test_a_legal_pair_builds_and_makes_a_step(name, strategy):
    preset = PRESETS[name]
    plan = Strategy(lock=strategy, labels=preset.labels)
    model = least_knowledge(plan, **EVAL, **preset.needs)
    ground = setting(model, DEFENCE, model=shrunk(), image_shape=(8, 8, 1))
    # Some compare restarts.
    attack = preset.build(ground, steps=1, restarts=2)
    strike = quick_jit(lambda seen: attack(jax.random.key(1), observe(model, seen)))
    update = locked_update(1)
    found = strike(update)
    assert bool(found.finite) and np.isfinite(found.loss)
    assert found.images.shape == (1, 8, 8, 1) and np.all(np.isfinite(found.images))
    assert found.info["evaluations"] == 2
    # And sees nothing that is hidden from it.
    facts = vars(model.knowledge)
    assert len(hidden(facts)) >= 4
    assert not differences(strike(poisoned(update, facts)), found)


@pytest.mark.parametrize(
    ("strategy", "fact"),
    [(name, fact) for name in LOCKS for fact in STRATEGY["lock"][name]],
)
def test_an_illegal_pair_raises(strategy, fact):
    """There is no threat model, and so no setting to build a preset on."""
    with pytest.raises(IllegalThreat, match=f"lock='{strategy}' needs {fact}="):
        less = {fact: 2 if fact == "examples" else "hidden"}
        least_knowledge(Strategy(lock=strategy, labels="joint"), **less)


@pytest.mark.parametrize("name", ITERATIVE)
def test_peeling_a_network_that_is_no_chain_raises(name):
    plan = Strategy(lock="peel", labels=PRESETS[name].labels)
    model = least_knowledge(plan, **PRESETS[name].needs)
    ground = setting(model, DEFENCE, model=shrunk(), image_shape=(8, 8, 1))
    with pytest.raises(ValueError, match="'peel' walks a chain of layers"):
        PRESETS[name].build(ground, steps=1, restarts=2)
