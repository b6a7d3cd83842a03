"""What a changed sweep file changes, and which studies can be merged."""

import dataclasses
import functools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kljax.studies.config import LeakConfig
from kljax.studies.sweeps import (
    Cell,
    cell_from_json,
    cell_to_json,
    difference,
    expand,
    make_cell,
    merge,
    parse_sweep,
)


def cells(fixed=None, **axes):
    return expand(parse_sweep({"fixed": fixed or {}, "axes": axes})).cells


def kept(found):
    """The same cells, as a manifest gives them back."""
    return [cell_from_json(json.loads(json.dumps(cell_to_json(c)))) for c in found]


OLD = cells(arm=["none", "bn-control"], seed=[0, 1])


# --- difference --------------------------------------------------------------------


def test_the_same_file_is_the_same_sweep():
    again = cells(seed=[1, 0], arm=["bn-control", "none"])  # in another order
    assert difference(kept(OLD), again) == ((), ())
    assert difference(kept(OLD), again).kind == "same"


def test_what_changes_no_result_changes_nothing():
    elsewhere = cells(
        {"convolution": "matmul", "data_dir": "/there"},
        arm=["none", "bn-control"],
        seed=[0, 1],
    )
    assert difference(kept(OLD), elsewhere).kind == "same"


def test_weights_that_were_drawn_otherwise_are_a_change():
    """An old study has the id of weights from U(-.5, .5), and does not say so."""
    names = {"model": "rvnet:Net", "data": "text", "attack": "dlg", "arms": ("none",)}
    new = [make_cell({"arm": "none"}, LeakConfig(**names))]
    old = [cell._replace(id="fedbc1e4b429") for cell in kept(new)]
    assert difference(old, new).kind == "changed"
    said = [make_cell({"arm": "none"}, LeakConfig(**names, init=0.5))]
    assert difference(old, said).changes == ("init 0.0 -> 0.5 in 1 cell",)
    with pytest.raises(ValueError, match="not the same in both"):
        merge(old, new)


def test_more_points_only_add_cells():
    new = cells(arm=["none", "bn-control", "keylock/known"], seed=[0, 1, 2])
    found = difference(kept(OLD), new)
    assert (found.kind, found.changes) == ("adds", ())
    assert [tuple(c.point.values()) for c in found.added] == [
        ("none", "2"),
        ("bn-control", "2"),
        ("keylock/known", "0"),
        ("keylock/known", "1"),
        ("keylock/known", "2"),
    ]


CHANGED = {
    "a fixed value": (
        cells({"steps": 100}, arm=["none", "bn-control"], seed=[0, 1]),
        ("steps 2000 -> 100 in 4 cells",),
    ),
    "two, and more cells": (
        cells({"steps": 9, "init": 0}, arm=["none", "bn-control"], seed=[0, 1, 2]),
        ("steps 2000 -> 9 in 4 cells", "init None -> 0.0 in 4 cells"),
    ),
    "a point less": (
        cells(arm=["none", "bn-control"], seed=[0]),
        ("cell arm=none, seed=1 is gone", "cell arm=bn-control, seed=1 is gone"),
    ),
    "all points others": (
        cells(arm=["none", "bn-control"], seed=[2, 3]),
        (
            "cell arm=none, seed=0 is gone",
            "cell arm=none, seed=1 is gone",
            "cell arm=bn-control, seed=0 is gone",
            "and 1 more gone",
        ),
    ),
    "a point renamed": (
        cells(
            arm=["none", "bn-control"], seed={"first": {"seed": 0}, "1": {"seed": 1}}
        ),
        (
            "cell arm=none, seed=0 is now cell arm=none, seed=first",
            "cell arm=bn-control, seed=0 is now cell arm=bn-control, seed=first",
        ),
    ),
    "points that swap": (
        cells(arm=["none", "bn-control"], seed={"0": {"seed": 1}, "1": {"seed": 0}}),
        (
            "cell arm=none, seed=0 is now cell arm=none, seed=1",
            "cell arm=none, seed=1 is now cell arm=none, seed=0",
            "cell arm=bn-control, seed=0 is now cell arm=bn-control, seed=1",
            "and 1 more moved",
        ),
    ),
    "a new axis": (
        cells(arm=["none", "bn-control"], seed=[0, 1], attack=["matching", "dlg"]),
        ("axis attack is new",),
    ),
    "an axis less": (
        cells({"seed": 0}, arm=["none", "bn-control"]),
        (
            "axis seed is gone",
            "cell arm=none, seed=1 is gone",
            "cell arm=bn-control, seed=1 is gone",
        ),
    ),
}


@pytest.mark.parametrize(("new", "changes"), CHANGED.values(), ids=CHANGED)
def test_changes_are_named(new, changes):
    found = difference(kept(OLD), new)
    assert (found.kind, found.changes) == ("changed", changes)


def test_cells_with_other_settings_are_not_added_ones():
    new, _ = CHANGED["two, and more cells"]
    added = difference(kept(OLD), new).added
    assert [c.point["seed"] for c in added] == ["2", "2"]


def test_a_default_that_was_changed_is_found():
    """The file and the ids are the same, and the results would not be."""
    old = kept(OLD)
    old[0] = old[0]._replace(config=dataclasses.replace(old[0].config, steps=1500))
    found = difference(old, OLD)
    assert found == ((), ("steps 1500 -> 2000 in 1 cell",))


def test_ids_that_are_made_differently_are_no_match():
    old = [cell._replace(id=cell.id[::-1]) for cell in kept(OLD)]
    assert difference(old, OLD).changes == ("ids are made differently in 4 cells",)


# --- merging -----------------------------------------------------------------------


def test_two_studies_are_merged():
    first = cells(arm=["none", "bn-control"], seed=[0])
    second = cells(arm=["bn-control", "keylock/known"], seed=[0, 1])
    merged = merge(kept(first), kept(second))
    assert merged == (*first, second[1], *second[2:])
    assert merge(first, ()) == merge((), first) == first


CONTRADICTIONS = {
    "a fixed value": (
        cells({"steps": 100}, arm=["none"], seed=[0, 5]),
        "cell arm=none, seed=0 is not the same in both studies: steps 2000 -> 100",
    ),
    "an axis": (
        cells(arm=["none"], seed=[5], attack=["dlg"]),
        "the first study has no axis attack: what differs between two studies must",
    ),
    "an axis less": (
        cells({"seed": 5}, arm=["none"]),
        "the second study has no axis seed",
    ),
    "a name": (
        cells(arm=["none"], seed={"first": {"seed": 0}}),
        "cell arm=none, seed=0 of the first study is cell arm=none, seed=first of the "
        "second",
    ),
    "an id": (
        [OLD[0]._replace(id="0" * 12)],
        "cell arm=none, seed=0 is not the same in both studies: ids are made",
    ),
    "a default": (
        [OLD[0]._replace(config=dataclasses.replace(OLD[0].config, restarts=2))],
        "cell arm=none, seed=0 is not the same in both studies: restarts 1 -> 2",
    ),
}


@pytest.mark.parametrize(
    ("second", "words"), CONTRADICTIONS.values(), ids=CONTRADICTIONS
)
def test_contradictions_are_not_merged(second, words):
    with pytest.raises(ValueError) as refused:
        merge(OLD, second)
    assert str(refused.value).startswith(words)


@functools.cache
def made(arm: str, seed: int) -> Cell:
    return make_cell(
        {"arm": arm, "seed": str(seed)}, LeakConfig(arms=(arm,), seed=seed)
    )


STUDIES = st.lists(
    st.builds(made, st.sampled_from(["none", "bn-control"]), st.integers(0, 4)),
    unique_by=lambda cell: cell.id,
)


@settings(max_examples=100, deadline=None)
@given(STUDIES, STUDIES, STUDIES)
def test_merging_joins_sets(first, second, third):
    def ids(found):
        return {cell.id for cell in found}

    merged = merge(first, second)
    assert ids(merged) == ids(first) | ids(second) and len(merged) == len(ids(merged))
    assert list(merged[: len(first)]) == first
    assert merge(merged, second) == merged
    assert merge(merged, third) == merge(first, merge(second, third))
    # A merged study is an extension of either.
    for part in (first, second):
        if part:
            found = difference(part, merged)
            assert ids(found.added) == ids(merged) - ids(part) and not found.changes
    # And either is a merged study with cells missing, unless there were no others.
    if second:
        assert difference(merged, second).kind == (
            "same" if ids(merged) == ids(second) else "changed"
        )
