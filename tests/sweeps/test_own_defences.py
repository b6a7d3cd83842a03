"""A defence of one's own, with two numbers and a state, from outside the package."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import small_sweeps
from tiny_studies import scored, study

from kljax import cli
from kljax.studies import store
from kljax.studies.builder.study import build_study
from kljax.studies.reports import write_report
from kljax.studies.sweeps import expand
from kljax.studies.sweeps.cell import groups

ARMS = (
    "none",
    "outside_package:blended=0.5,0.9",
    "outside_package:blended=mix=0.1,size=0.25",
)
SIZES = (1.0, 0.5, 0.25)


def test_it_is_an_arm_among_others():
    result = study(arms=ARMS, attack="outside_package:measured_reveal")
    views = [arm.attacked.reconstruction.info["view"].grads for arm in result.arms]
    plain = views[0].model["fc/kernel"]
    for arm, view, size in zip(result.arms, views, SIZES, strict=True):
        np.testing.assert_allclose(view.model["fc/kernel"], size * plain, rtol=1e-6)
        # Who knows the defence explains all that it sees.
        assert np.all(arm.attacked.loss_at_truth <= 1e-9 * arm.attacked.loss_scale)
    # Its numbers are data: those of the first compile, those of the second do not.
    assert [arm.timing.compilations > 0 for arm in result.arms] == [True, True, False]
    assert {row["arm"] for row in scored(result)} >= {*ARMS}


@pytest.mark.slow
def test_what_it_draws_follows_its_own_numbers():
    arms = ("outside_package:marked=1", "outside_package:marked=7")
    result = study(arms=arms, attack="outside_package:measured_reveal")
    for arm, scale in zip(result.arms, (1, 7), strict=True):
        public = arm.attacked.reconstruction.info["view"].public.defence
        np.testing.assert_array_equal(
            public["mark"], np.full_like(public["mark"], scale)
        )
    # So does a cell of a sweep that is run by the functions of another.
    first = build_study(dataclasses.replace(result.config, arms=arms[:1]))
    again = build_study(dataclasses.replace(first.config, arms=arms[1:]), first)
    (job,) = again.attacks
    source, *_ = job.inputs
    network = job.client.draws[0](jax.tree.map(lambda x: x[0], source))
    public, _ = job.client.draws[1](jax.tree.map(lambda x: x[0], source), network)
    np.testing.assert_array_equal(public["mark"], [7, 7])


@pytest.mark.slow
def test_it_is_named_on_the_command_line(tmp_path):
    out = tmp_path / "study"
    typed = (
        "leak --model dense --image-size 8 --victims 2 --attack outside_package:reveal"
    )
    with small_sweeps.quick():
        code = cli.main([*typed.split(), "--arms", *ARMS, "--out", str(out)])
    assert code == 0
    summary = json.loads((out / "summary.json").read_text())
    assert tuple(summary["arms"]) == ARMS
    assert summary["config"]["arms"] == list(ARMS)


@pytest.mark.slow
def test_it_is_an_axis_of_a_sweep_and_in_its_report(tmp_path):
    axes = {"arm": list(ARMS)}
    sweep = small_sweeps.sweep_of(victims=2, seed=0, step_size=0.1, axes=axes)
    assert list(map(len, groups(expand(sweep).cells).values())) == [1, 2]
    small_sweeps.run(tmp_path / "sweep", sweep)
    found = store.read(tmp_path / "sweep")
    write_report(found)
    for name in ("report.md", "report.html"):
        page = (tmp_path / "sweep" / "report" / name).read_text()
        assert all(arm in page for arm in ARMS)
