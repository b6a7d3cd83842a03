"""The boundary: which threat models exist, and that nothing hidden gets through."""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import numpy as np
import optax
import pytest
from poison import differences, hidden, is_granted, poison, poisoned
from toys import LOCK, locked_update, quick_jit, random_private, setting, threat

from kljax.attacks import (
    LABELS,
    SECRETS,
    Protocol,
    Unknowns,
    descend,
    from_optax,
    lbfgs,
    normal,
    replay,
    searched,
    squared_l2,
)
from kljax.defences import keylock
from kljax.threat import (
    KEYLOCK_STRATEGIES,
    KNOWLEDGE,
    LABEL_STRATEGIES,
    Average,
    IllegalThreat,
    Knowledge,
    LocalSteps,
    Strategy,
    ThreatModel,
    least_knowledge,
    observe,
)

# --- which threat models exist ---------------------------------------------------

# Written from the specification's prose, not from the library's table.
LEGAL = {
    "unit": lambda k: True,
    "known": lambda k: k.private_key == "known" and k.lock_weights == "known",
    "extract": lambda k: (
        k.lock_grads == "shared"
        and k.lock_weights != "hidden"
        and k.upload != "average"
    ),
    "fixed_random": lambda k: k.lock_weights != "hidden",
    "fixed_mean": lambda k: k.lock_weights != "hidden",
    "regress_private_key": lambda k: k.lock_weights != "hidden",
    "regress_gates": lambda k: True,
    "peel": lambda k: k.upload != "average",
}
LEGAL_LABELS = {
    "given": lambda k: k.labels == "known",
    "joint": lambda k: True,
    "recovered": lambda k: True,
}
VALUES = {
    "private_key": {"known", "hidden"},
    "lock_weights": {"known", "initial", "hidden"},
    "lock_grads": {"shared", "hidden"},
    "labels": {"known", "hidden"},
    "stats": {"visible", "hidden"},
    "victim_norm": {"train", "eval"},
    "attacker_norm": {"train", "eval"},
    "upload": {"gradient", "update", "average"},
    "server": {"honest", "malicious"},
}
BASE = threat().knowledge


def test_fields_and_values_are_those_of_the_specification():
    assert {name: set(values) for name, values in KNOWLEDGE.items()} == VALUES
    fields = {field.name for field in dataclasses.fields(Knowledge)}
    assert fields == {*VALUES, "examples", "visible", "clients"}
    assert set(KEYLOCK_STRATEGIES) == set(LEGAL)
    assert set(LABEL_STRATEGIES) == set(LEGAL_LABELS)


@pytest.mark.parametrize("lock", LEGAL)
def test_every_pair_of_knowledge_and_strategy_is_judged_as_specified(lock):
    names = ("private_key", "lock_weights", "lock_grads", "labels")
    judged = {True: 0, False: 0}
    for values in itertools.product(*(sorted(VALUES[name]) for name in names)):
        for examples, labels in itertools.product((1, 2), LEGAL_LABELS):
            facts = dict(zip(names, values, strict=True), examples=examples)
            knowledge = dataclasses.replace(BASE, **facts)
            strategy = Strategy(secret=lock, labels=labels)
            legal = LEGAL[lock](knowledge) and LEGAL_LABELS[labels](knowledge)
            judged[bool(legal)] += 1
            if legal:
                assert ThreatModel(knowledge, strategy).strategy is strategy
            else:
                with pytest.raises(IllegalThreat, match="needs"):
                    ThreatModel(knowledge, strategy)
    assert judged[True] and judged[False]


CONTRADICTIONS = {
    "private key": (
        ("known", "joint", {"lock_weights": "known"}),
        "secret='known' needs private_key='known'.*private_key='hidden'",
    ),
    "drifted weights": (
        ("known", "joint", {"private_key": "known", "lock_weights": "initial"}),
        "secret='known' needs lock_weights='known'.*lock_weights='initial'",
    ),
    "useless private key": (
        ("extract", "joint", {"lock_grads": "shared"}),
        "'extract' needs lock_weights='known' or 'initial'.*lock_weights='hidden'",
    ),
    "nothing to extract": (
        ("extract", "joint", {"lock_weights": "known"}),
        "'extract' needs lock_grads='shared'.*lock_grads='hidden'",
    ),
    "labels": (("unit", "given", {}), "labels='given' needs labels='known'"),
}


@pytest.mark.parametrize(
    ("model", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS
)
def test_contradictions_name_both_sides(model, message):
    *strategies, facts = model
    with pytest.raises(IllegalThreat, match=message):
        threat(*strategies, **facts)


@pytest.mark.parametrize("name", VALUES)
def test_unknown_facts_are_named_with_the_legal_ones(name):
    with pytest.raises(ValueError, match=rf"{name}='maybe'.*expected one of"):
        threat(**{name: "maybe"})


@pytest.mark.parametrize(
    ("strategies", "name"),
    [(("maybe", "joint"), "secret"), (("unit", "maybe"), "labels")],
)
def test_unknown_strategies_are_named_with_the_legal_ones(strategies, name):
    with pytest.raises(ValueError, match=rf"{name}='maybe'.*expected one of"):
        threat(*strategies)


@pytest.mark.parametrize("examples", (0, -1, 1.0, "1", None))
def test_examples_is_a_positive_integer(examples):
    with pytest.raises(ValueError, match=r"examples=.*integer >= 1"):
        threat(examples=examples)


def test_a_name_that_does_not_exist_is_no_contradiction():
    for facts in ({"lock_weights": "maybe"}, {"weather": "fine"}, {"examples": 0}):
        with pytest.raises(ValueError) as refused:
            least_knowledge(Strategy(secret="known", labels="joint"), **facts)
        assert not isinstance(refused.value, IllegalThreat)
    assert issubclass(IllegalThreat, ValueError)


def test_no_fact_has_a_default():
    with pytest.raises(TypeError, match="stats"):
        facts = dataclasses.asdict(BASE)
        del facts["stats"]
        Knowledge(**facts)
    with pytest.raises(TypeError, match="labels"):
        Strategy(secret="unit")


def test_a_threat_model_prints_every_field_and_cannot_be_changed():
    model = threat("regress_gates", "joint", examples=3, stats="visible")
    facts = dataclasses.asdict(model.knowledge) | dataclasses.asdict(model.strategy)
    fields = dataclasses.fields(model.knowledge) + dataclasses.fields(model.strategy)
    for field in fields:
        assert f"{field.name}=" in str(model)
    for name, value in facts.items():
        assert f"{name}={value}" in str(model)
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.knowledge.examples = 1


# --- what the server sees --------------------------------------------------------

# fact -> value -> (field of the view, field of the update that it must be)
GRANTS = {
    "private_key": {"known": ("private_key", lambda u: u.private.secret)},
    "lock_weights": {
        "known": ("lock_weights", lambda u: u.private.trainable),
        "initial": ("lock_weights", lambda u: u.initial_lock_weights),
    },
    "lock_grads": {"shared": ("lock_grads", lambda u: u.lock_grads)},
    "labels": {"known": ("targets", lambda u: u.targets)},
    "stats": {"visible": ("new_stats", lambda u: u.new_stats)},
}


def drifted_update(examples):
    """An update whose lock weights are no longer those of round 0."""
    return locked_update(examples)._replace(
        initial_lock_weights=random_private(seed=9).trainable
    )


@pytest.mark.parametrize(
    "facts",
    [
        dict(zip(GRANTS, values, strict=True))
        for values in itertools.product(*(sorted(VALUES[name]) for name in GRANTS))
    ],
    ids=lambda facts: "-".join(facts.values()),
)
def test_a_view_holds_what_is_granted_and_nothing_else(facts):
    update = drifted_update(2)
    view = observe(threat(**facts, examples=2), update)
    granted = {"public": update.public, "stats": update.stats, "grads": update.sent}
    for name, value in facts.items():
        if value in GRANTS[name]:
            field, leaf = GRANTS[name][value]
            granted[field] = leaf(update)
    for field, value in view._asdict().items():
        assert value is granted.get(field), field


def test_uploads_that_an_update_does_not_record_are_refused():
    gradient = locked_update(1)
    several = gradient._replace(local=LocalSteps(steps=2, batch=1))
    for upload, update in (("update", gradient), ("gradient", several)):
        with pytest.raises(ValueError, match=f"declares upload='{upload}'.*records"):
            observe(threat(upload=upload), update)
    averaged = gradient._replace(average=Average(2))
    with pytest.raises(ValueError, match="upload='gradient'.*records.*'average'"):
        observe(threat(), averaged)
    for clients in (1, 3):
        declared = threat(upload="average", clients=clients)
        with pytest.raises(ValueError, match=f"clients={clients}, .*average of 2"):
            observe(declared, averaged)
    assert observe(threat(upload="update"), several).grads is several.sent


def test_a_batch_of_another_size_is_refused():
    with pytest.raises(ValueError, match="examples=2.*made from 1"):
        observe(threat(examples=2), locked_update(1))


def halves(update):
    """Masks every second entry of everything that is sent."""

    def every_second(leaf):
        return (np.arange(leaf.size) % 2 == 0).reshape(leaf.shape)

    return jax.tree.map(every_second, update.sent)


def test_a_hidden_entry_is_nan_and_a_visible_one_is_what_was_sent():
    update = locked_update(1)
    masked = update._replace(visible=halves(update))
    view = observe(threat(), masked)
    assert view.visible is masked.visible
    for seen, sent, mask in zip(
        *map(jax.tree.leaves, (view.grads, update.sent, view.visible)), strict=True
    ):
        np.testing.assert_array_equal(np.isnan(seen), ~mask)
        np.testing.assert_array_equal(seen[mask], np.asarray(sent)[mask])


def test_a_mask_that_does_not_fit_is_named():
    update = locked_update(1)
    masks = halves(update)
    bias = masks.model["fc/bias"]
    for wrong, needs, got in (
        (bias[:1], r"bool \(3,\)", r"bool \(1,\)"),
        (bias.astype(np.float32), r"bool \(3,\)", r"float32 \(3,\)"),
    ):
        other = masks._replace(model={**masks.model, "fc/bias": wrong})
        with pytest.raises(
            ValueError, match=f"model/fc/bias.*needs {needs}, got {got}"
        ):
            observe(threat(), update._replace(visible=other))
    more = masks._replace(model={**masks.model, "other": bias})
    with pytest.raises(ValueError, match="model/other.*needs no mask, got bool"):
        observe(threat(), update._replace(visible=more))
    less = masks._replace(model={k: masks.model[k] for k in ("fc/bias",)})
    with pytest.raises(ValueError, match="model/fc/kernel.*needs bool.*got none"):
        observe(threat(), update._replace(visible=less))


# --- the boundary itself ---------------------------------------------------------


class Case(NamedTuple):
    """One threat model and the leaves that its attack cannot do without."""

    lock: str
    labels: str
    optimiser: str
    facts: dict[str, str]
    needs: tuple[str, ...]


CASES = {
    "unit": Case("unit", "recovered", "lbfgs", {}, ()),
    "known": Case(
        "known",
        "given",
        "adam",
        {"private_key": "known", "lock_weights": "known", "labels": "known"},
        ("secret", "trainable", "targets"),
    ),
    "extract": Case(
        "extract",
        "recovered",
        "adam",
        {"lock_grads": "shared", "lock_weights": "initial"},
        ("lock_grads", "initial_lock_weights"),
    ),
    "fixed_random": Case(
        "fixed_random", "joint", "adam", {"lock_weights": "known"}, ("trainable",)
    ),
    "regress_private_key": Case(
        "regress_private_key",
        "joint",
        "lbfgs",
        {"lock_weights": "initial", "stats": "visible"},
        ("initial_lock_weights",),
    ),
    "regress_gates": Case("regress_gates", "joint", "adam", {}, ()),
    "update": Case(
        "fixed_random",
        "given",
        "adam",
        {"lock_weights": "initial", "labels": "known", "upload": "update"},
        ("initial_lock_weights", "targets"),
    ),
}
OPTIMISERS = {
    "adam": from_optax(optax.adam(0.1)),
    "lbfgs": lbfgs(memory=2, window=2),
}


@functools.cache
def attack(name):
    """Observes and attacks, compiled: Update -> Reconstruction."""
    case = CASES[name]
    model = threat(case.lock, case.labels, **case.facts)
    ground = setting(model, keylock(LOCK))
    if model.knowledge.upload == "update":
        protocol = Protocol(optax.sgd(0.1, 0.9), steps=2, batch=1, learning_rate=0.1)
        ground = ground._replace(protocol=protocol)
    secret = SECRETS[case.lock](ground)
    strike = descend(
        Unknowns(
            searched(ground, normal(0.5, 0.1)),
            LABELS[case.labels](ground),
            secret.unknown,
        ),
        replay(ground, secret.gates),
        squared_l2(),
        OPTIMISERS[case.optimiser],
        steps=4,
        points=2,
    )
    return quick_jit(lambda update: strike(jax.random.key(1), observe(model, update)))


def seen_in(name):
    """The update of a case; one of two steps on the same example, where it says so."""
    update = drifted_update(1)
    if CASES[name].facts.get("upload") == "update":
        update = update._replace(local=LocalSteps(steps=2, batch=1))
    return update


@pytest.mark.parametrize("name", CASES)
def test_what_is_hidden_cannot_change_a_reconstruction(name):
    update = seen_in(name)
    clean = attack(name)(update)
    assert clean.finite and np.all(np.isfinite(clean.inputs))
    facts = CASES[name].facts
    assert "inputs" in hidden(facts) and len(hidden(facts)) >= 4
    assert not differences(attack(name)(poisoned(update, facts)), clean)


@pytest.mark.parametrize("name", CASES)
def test_the_wall_test_can_fail(name):
    """What is granted, and needed, does change the reconstruction."""
    update = seen_in(name)
    clean = attack(name)(update)
    for leaf in ("public", "stats", "sent", *CASES[name].needs):
        assert is_granted(leaf, CASES[name].facts)
        assert differences(attack(name)(poison(update, leaf)), clean), leaf
