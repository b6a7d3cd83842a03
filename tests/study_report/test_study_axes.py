"""Axes: what is pooled, what becomes rows, columns and tables of their own."""

import made_studies
import pytest

from kljax.defences.arm_options import spell_numbers
from kljax.studies.reports.axes import arm_axis, arrange, axes_of, point_of

AXES = made_studies.AXES


def manifest_of(axes, **fixed):
    cells = made_studies.make_cells(axes, fixed)
    return {
        "sweep": {"fixed": fixed, "axes": axes},
        "axes": {axis: list(points) for axis, points in axes.items()},
        "cells": cells,
    }


def test_the_default_arrangement():
    axes = axes_of(manifest_of(AXES))
    found = arrange(axes)
    assert found.rows == ("arm",) and found.columns == ("budget",)
    assert found.slices == ("attack",) and found.pooled == ("seed",)


def test_a_chosen_arrangement():
    axes = axes_of(manifest_of(AXES))
    found = arrange(axes, rows=["attack", "seed"], columns=["arm"])
    assert found == (("attack", "seed"), ("arm",), ("budget",), ())
    assert arrange(axes, columns=["arm"]).rows == ()


def test_seeds_are_pooled_only_where_nothing_else_changes():
    axes = axes_of(
        manifest_of(
            {
                "arm": {"none": {"arm": "none"}},
                "network": {
                    "a": {"seed": 0, "from_run": "runs/0"},
                    "b": {"seed": 1, "from_run": "runs/1"},
                },
                "run": {"a": {"round": 0}, "b": {"round": 10}},
                "mixed": {"x": {"victims": 2}, "y": {"victims": 3}},
            }
        )
    )
    assert [name for name, axis in axes.items() if axis.repeats] == ["network"]
    only_run = axes_of(manifest_of({"from_run": {"r": {"from_run": "r"}}}, arm="none"))
    assert not only_run["from_run"].repeats  # runs may differ in anything


def test_budgets_are_axes_of_steps_and_restarts_alone():
    axes = axes_of(
        manifest_of(
            {
                "steps": {"9": {"steps": 9}},
                "more": {"a": {"restarts": 2}},
                "both": {"a": {"attack": "dlg"}},
            },
            arm="none",
        )
    )
    assert [name for name, axis in axes.items() if axis.budgets] == ["steps", "more"]


def test_an_arm_that_is_fixed_is_an_axis_of_one_point():
    manifest = manifest_of({"seed": {"0": {"seed": 0}}}, arm="keylock/known")
    axes = axes_of(manifest)
    assert arm_axis(axes).labels == ("keylock/known",)
    assert point_of(manifest["cells"][0], axes) == {"arm": "keylock/known", "seed": "0"}
    assert arrange(axes).rows == ("arm",)


def test_an_axis_of_another_name_may_set_the_arm():
    defences = {
        "nothing": {"arm": "none"},
        "lock": {"arm": "keylock/known", "threat": ("stats=visible",)},
    }
    axes = axes_of(manifest_of({"defence": defences}))
    assert arm_axis(axes).name == "defence" and list(axes) == ["defence"]
    assert arrange(axes).rows == ("defence",)


def test_lists_of_a_sweep_file_are_read_too():
    manifest = manifest_of({"seed": {"0": {"seed": 0}}}, arm="none")
    manifest["sweep"]["axes"]["seed"] = [0]
    assert axes_of(manifest)["seed"].repeats


@pytest.mark.parametrize(
    ("chosen", "message"),
    (
        ({"rows": ["atack"]}, "no axis 'atack' .did you mean 'attack'.*it has arm"),
        ({"columns": ["nothing"]}, "no axis 'nothing'; it has arm, attack"),
        ({"rows": ["arm"], "columns": ["arm"]}, "'arm' is named more than once"),
    ),
)
def test_what_does_not_exist_is_refused(chosen, message):
    with pytest.raises(ValueError, match=message):
        arrange(axes_of(manifest_of(AXES)), **chosen)


def test_a_strength_that_is_written_in_two_ways_is_one_point():
    """Joined studies may write it differently, each of an attack of its own."""
    spelled = ("gaussian-noise=.1", "gaussian-noise=0.10", "gaussian-noise=1")
    axes = {
        "arm": {arm: {"arm": arm} for arm in spelled},
        "attack": {name: {"attack": name} for name in ("matching", "dlg")},
    }
    manifest = manifest_of(axes)
    apart = {("gaussian-noise=.1", "dlg"), ("gaussian-noise=0.10", "matching")}
    cells = [c for c in manifest["cells"] if tuple(c["point"].values()) not in apart]
    found = axes_of(manifest | {"cells": cells})
    assert found["arm"].labels == ("gaussian-noise=.1", "gaussian-noise=1")
    points = [tuple(point_of(cell, found).values()) for cell in cells]
    assert points.count(("gaussian-noise=.1", "dlg")) == 1 and len(set(points)) == 4
    # Cells at one point would be taken for repetitions of each other.
    assert axes_of(manifest)["arm"].labels == spelled


@pytest.mark.parametrize(
    ("arm", "written"),
    [
        ("gaussian-noise=.1", "gaussian-noise=0.1"),
        (
            "gaussian-noise=1e-1+norm-clipping=4.0/known",
            "gaussian-noise=0.1+norm-clipping=4/known",
        ),
        ("adadefense=size=0.0010,b1=.9", "adadefense=size=0.001,b1=0.9"),
        ("dp-sgd=1.50,2@update", "dp-sgd=1.5,2@update"),
        ("mine.1:defence", "mine.1:defence"),
        ("gaussian-noise", "gaussian-noise"),
    ],
)
def test_numbers_of_an_arm_are_written_in_one_way(arm, written):
    assert spell_numbers(arm) == written
