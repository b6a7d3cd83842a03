"""experiments/flip.py: which trainings there are, and how they are tabled."""

import json
import sys

import flip
import pytest

from kljax.studies.builder import run_setup


@pytest.mark.slow
def test_trainings_are_told_apart_and_exist():
    runs = flip.all_runs()
    keys = [flip.key_of(run, 1) for run in runs]
    assert len(set(keys)) == len(keys)
    assert {run.defence for run in runs} == {"fedboosting", *flip.FLIPS, *flip.RULES}
    for run in runs:
        config = run.config(3)
        assert config.hardening == flip.FLIPS.get(run.defence, "none")
        assert config.seed == 3
    built = run_setup.build_run_setup(
        next(run for run in runs if run.trigger == "distributed").config(1)
    )
    # Four attackers, each with a bar of its own.
    assert len({id(role) for role in built.roles.values()}) == 4
    known = [run for run in runs if run.part == "adaptive"]
    assert {run.trigger for run in known} == {*flip.ADAPTIVE}
    for run in known:
        roles = run_setup.build_run_setup(run.config(1)).roles
        hardens = "harden" in run.trigger
        assert len(roles) == 4 and roles[0].hardens == hardens
        assert run.defence != "mean" or not hardens


@pytest.fixture
def played(monkeypatch):
    """Puts a table in place of trainings."""
    calls = []

    def play(run, seed):
        calls.append((run.defence, run.attack, run.trigger, seed))
        one = {"defence": run.defence, "attack": run.attack, "trigger": run.trigger}
        share = seed / 10
        return [one | {"seed": seed, "accuracy": share, "success": 0.5, "cpu_s": 30.0}]

    monkeypatch.setattr(flip, "play", play)
    monkeypatch.setattr(flip, "use_cache", lambda: None)
    return calls


def test_what_was_made_is_not_made_again(played, monkeypatch, tmp_path, capsys):
    words = ["flip.py", "--json", str(tmp_path / "runs"), "--only", "boosting"]
    monkeypatch.setattr(sys, "argv", [*words, "--seeds", "2"])
    flip.main()
    assert len(played) == 6
    monkeypatch.setattr(sys, "argv", [*words, "--seeds", "3"])
    flip.main()
    assert len(played) == 9 and {seed for *_, seed in played[6:]} == {3}
    lines = (tmp_path / "runs").read_text().splitlines()
    assert len({json.loads(line)["run"] for line in lines}) == 9
    printed = capsys.readouterr().out
    assert "20.0 [10.0, 30.0]" in printed
    assert "9 trainings, 4.5 processor minutes" in printed


def test_fewer_seeds_are_said(played):
    made = {
        str(seed): flip.play(flip.Run("rules", "mean", "honest", "all", "", ()), seed)
        for seed in (1, 2)
    }
    made["other"] = flip.play(flip.Run("rules", "krum", "honest", "all", "", ()), 1)
    (line,) = [x for x in flip.tabled(made).splitlines() if "krum" in x]
    assert "10.0 [10.0, 10.0] (1 seeds)" in line
