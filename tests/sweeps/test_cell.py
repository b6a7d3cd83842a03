"""Cells: what their ids depend on, how they are kept, and which compile together."""

import dataclasses
import hashlib
import json
import re

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_studies import TINY

from kljax.defences.arms import KINDS
from kljax.defences.catalogue import write_strengths
from kljax.parallel import Layout
from kljax.studies.builder.study import build_study
from kljax.studies.config import LeakConfig
from kljax.studies.sweeps import (
    cell_from_json,
    cell_to_json,
    groups,
    identity,
    make_cell,
    signature,
)
from kljax.studies.sweeps.fields import FIELDS


def cell(**changes):
    point = {"seed": str(changes.get("seed", 0))}
    fields = {"arms": ("none",), "layout": Layout()} | changes
    return make_cell(point, LeakConfig(**fields))


# --- ids ---------------------------------------------------------------------------


def test_ids_do_not_change():
    """Written down once: an old study is found again under its ids."""
    assert cell().id == "d03cce0a4d0d"
    locked = cell(arms=("keylock/known",), seed=3, init=0.25, sites=("all",))
    assert locked.id == "0e4aed017318"
    # Worked out without the library.
    text = '{"arms":["keylock/known"],"init":0.25,"seed":3,"sites":["all"]}'
    assert hashlib.sha256(text.encode()).hexdigest().startswith(locked.id)


def test_an_id_says_what_changes_results_and_nothing_else():
    assert identity(cell().config) == {"arms": ["none"]}
    same = (
        cell(layout=Layout("loop", 1)),
        cell(convolution="matmul"),
        cell(data_dir="/elsewhere"),
        cell(steps=2000, init=0.5, threat=()),
    )
    assert {other.id for other in same} == {cell().id}
    assert cell(init=1).id == cell(init=1.0).id != cell().id
    of_text = cell(model="transformer", data="text")
    assert cell(model="transformer", data="text", init=0).id == of_text.id
    assert cell(model="transformer", data="text", init=0.5).id != of_text.id
    facts = ("labels=known", "stats=visible")
    assert cell(threat=facts).id == cell(threat=facts[::-1]).id
    with pytest.raises(ValueError, match="one arm"):
        cell(arms=("none", "bn-control"))


def test_weights_that_follow_from_the_data_are_in_the_id():
    """The name of a model alone once said 0.5, and text gives 0."""
    of_text = {"model": "rvnet:Net", "data": "text", "attack": "dlg"}
    drawn = cell(**of_text, init=0.5)
    assert drawn.id == "fedbc1e4b429"  # as it was when nothing was said
    assert cell(**of_text).id == cell(**of_text, init=0).id != drawn.id
    assert identity(cell(**of_text).config)["init"] == 0
    # Of data of somebody's own nobody knows without loading them.
    of_own = {"model": "rvnet:Net", "data": "mine:data"}
    ids = {cell(**of_own, **c).id for c in ({}, {"init": 0}, {"init": 0.5})}
    assert len(ids) == 3
    # A run says how its weights were drawn.
    assert "init" not in identity(cell(**of_own, from_run="runs/fl").config)
    for image in ({"model": "rvnet:Net"}, {"data": "photos"}):
        assert "init" not in identity(cell(**image).config)


# Another legal value of every field.
OTHER = {
    "model": "dense",
    "data": "photos",
    "arms": ("bn-control",),
    "attack": "dlg",
    "attack_options": ("variation=0.5",),
    "generator": "digits",
    "denoise": "digits",
    "optimiser": "adam",
    "step_size": 0.1,
    "features": 0.1,
    "labels": "given",
    "label_rule": "yin",
    "threat": ("stats=visible",),
    "victims": 3,
    "examples": 2,
    "restarts": 2,
    "steps": 7,
    "seed": 1,
    "weights": "shared",
    "init": 0.1,
    "lock_init": 0.1,
    "lock_activation": "signed",
    "private_key_size": 4,
    "sites": ("all",),
    "chained": True,
    "classifier": "fc",
    "loss": "optax:softmax_cross_entropy",
    "image_size": 8,
    "image_width": 9,
    "channels": 1,
    "tokens": 5,
    "split": "test",
    "data_dir": "/elsewhere",
    "precision": "default",
    "layout": Layout("loop", 1),
    "convolution": "lax",
    "from_run": "runs/other",
    "round": 1,
    "client": 1,
    "upload": "gradient",
    "local_steps": 5,
    "local_epochs": 5,
    "batch": 5,
    "client_optimiser": "fresh",
    "metrics": ("mine:blur",),
    "earlier": 5,
    "average_clients": 5,
    "delta": 1e-6,
    "risk": True,
    "observations": 3,
    "pooling": "median",
    "public_data": "photos",
    "snapshots": 4,
}
BASE = LeakConfig(
    arms=("none",), from_run="runs/fl", upload="update", optimiser="lbfgs_torch"
)
# What needs another field beside it.
BASES = {"pooling": dataclasses.replace(BASE, observations=2)}
NAMES = [field.name for field in dataclasses.fields(LeakConfig)]


@pytest.mark.parametrize("name", NAMES)
def test_every_field_is_judged(name):
    """A new field of the configuration needs a row above, and a decision."""
    base = BASES.get(name, BASE)
    config = dataclasses.replace(base, **{name: OTHER[name]})
    assert getattr(config, name) != getattr(base, name)
    one, other = make_cell({}, base), make_cell({}, config)
    same_result = name in {"layout", "convolution", "data_dir", "snapshots"}
    assert (one.id == other.id) == same_result
    same_program = name in {"layout", "seed", "victims", "delta"}
    assert (signature(one) == signature(other)) == same_program
    # What the file can set is every field, but for the two that it cannot.
    assert (name in FIELDS) == (name not in {"arms", "layout"})


@pytest.mark.parametrize(
    "changes",
    [{}, {"threat": ("labels=known",), "sites": ("all",)}, {"from_run": "runs/fl"}],
)
def test_cells_survive_json(changes):
    written = cell(**changes)
    entry = json.loads(json.dumps(cell_to_json(written)))
    assert cell_from_json(entry) == written
    assert entry["config"].keys() == {*NAMES} - {"layout"}
    # An older kljax had fewer fields; another one may have others.
    del entry["config"]["upload"]
    assert cell_from_json(entry) == written
    entry["config"]["stps"] = 3
    with pytest.raises(ValueError, match=r"no field 'stps' \(did you mean 'steps'"):
        cell_from_json(entry)


# --- grouping ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ("gaussian-noise=0.1", "gaussian-noise=2", True),
        ("gaussian-noise", "gaussian-noise=2", True),
        ("gaussian-noise=1e+3", "gaussian-noise=2", True),
        ("keylock+norm-clipping=4/known", "keylock+norm-clipping=2/known", True),
        ("keylock+norm-clipping=4/known", "keylock+norm-clipping=4/unit", False),
        ("keylock+norm-clipping=4/known", "keylock/known", False),
        ("gaussian-noise@update=1", "gaussian-noise@update=2", True),
        ("gaussian-noise@update=1", "gaussian-noise=1", False),
        ("gaussian-noise=1+norm-clipping=1", "norm-clipping=1+gaussian-noise=1", False),
        ("none", "bn-control", False),
    ],
)
def test_strengths_are_no_part_of_a_program(one, other, together):
    cells = [cell(arms=(one,)), cell(arms=(other,))]
    assert len(groups(cells)) == (1 if together else 2)


@pytest.mark.parametrize("name", KINDS)
def test_a_row_at_all_its_strengths_is_one_program(name):
    """But for numbers that shapes depend on."""
    found = groups(cell(arms=(arm,)) for arm in write_strengths(name))
    varied, fixed = set(KINDS[name].strengths), set(KINDS[name].fixed)
    assert len(found) == (3 if varied & fixed else 1)


def test_a_step_size_is_data_and_having_one_is_not():
    own, small, large = (
        cell(optimiser="adam", step_size=size) for size in (None, 0.1, 1.0)
    )
    assert len({c.id for c in (own, small, large)}) == 3
    assert list(map(len, groups([own, small, large]).values())) == [1, 2]


def program(cell):
    """Writes what is compiled for a cell, from its draws to its reconstruction."""
    study = build_study(cell.config)
    (job,) = study.attacks

    def whole(source, dials, images, labels):
        network = job.client.draws[0](source)
        held = job.client.draws[1](source, network)
        return job.attack_one(network, held, source, dials, images, labels)

    inputs = job.inputs
    one = jax.tree.map(lambda x: x[0], inputs)
    # Functions inside are printed with their address.
    return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(whole)(*one)))


@pytest.mark.parametrize(
    ("changes", "other"),
    [
        ({"seed": 0}, {"seed": 5, "victims": 2}),
        ({"arms": ("norm-clipping=4",)}, {"arms": ("norm-clipping",), "seed": 1}),
        (
            {"arms": ("keylock+gaussian-noise=1/regress_gates",)},
            {"arms": ("keylock+gaussian-noise=0.1/regress_gates",)},
        ),
        ({"arms": ("magnitude-pruning=0.5",)}, {"arms": ("magnitude-pruning",)}),
        ({"step_size": 0.1}, {"step_size": 0.2}),
    ],
)
def test_cells_of_one_signature_are_one_program(changes, other):
    one, two = (cell(**(TINY | given)) for given in (changes, other))
    assert one.id != two.id and signature(one) == signature(two)
    assert program(one) == program(two)
    # And the comparison sees other programs.
    three = cell(**(TINY | changes | {"steps": 5}))
    assert signature(three) != signature(one) and program(three) != program(one)


# Those of which any share of 1 is a strength; bits are whole numbers.
STRENGTHS = [
    name
    for name, kind in KINDS.items()
    if len(kind.options) == 1 and not kind.fixed and "bits" not in kind.options
]
CELLS_OF_ANY_KIND = st.builds(
    lambda kind, strength, **changes: cell(
        arms=(f"{kind}={strength}" if kind in STRENGTHS else kind,), **changes
    ),
    kind=st.sampled_from(["none", "bn-control", *STRENGTHS]),
    strength=st.sampled_from([0.1, 0.5, 0.9]),
    seed=st.integers(0, 2),
    victims=st.integers(1, 3),
    steps=st.integers(1, 2),
    threat=st.sampled_from([(), ("labels=known",)]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(CELLS_OF_ANY_KIND, max_size=12))
def test_groups_part_cells_by_what_compiles(cells):
    def compiled(cell):
        config = cell.config
        return config.arms[0].partition("=")[0], config.steps, config.threat

    found = groups(cells)
    grouped = [cell.id for members in found.values() for cell in members]
    assert sorted(grouped) == sorted(cell.id for cell in cells)
    for members in found.values():
        assert len({compiled(member) for member in members}) == 1
        # In the order in which they came.
        assert list(members) == [
            c for c in cells if compiled(c) == compiled(members[0])
        ]
    assert len(found) == len({compiled(cell) for cell in cells})


def test_what_a_server_measured_before_is_data():
    imprint = TINY | {"attack": "imprint", "examples": 2, "optimiser": None}
    one, two = cell(**imprint), cell(**(imprint | {"seed": 5}))
    assert signature(one) == signature(two) and program(one) == program(two)
    plain = cell(**(imprint | {"attack": "matching"}))
    assert signature(plain) != signature(one) and program(plain) != program(one)
