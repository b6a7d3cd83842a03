"""Seconds of the attacks on updates: the table's arithmetic, and every attack in it."""

import argparse

import pytest
import update_seconds
from begun_runs import begin

OPTIONS = argparse.Namespace(local_steps=2, batch=1, victims=2, steps=4, rounds=1)


def compare(**options):
    """Measures: rows of the table by attack."""
    rows = update_seconds.compare(argparse.Namespace(**vars(OPTIONS) | options))
    return {row[0]: dict(zip(update_seconds.HEAD, row, strict=True)) for row in rows}


def test_shares_are_of_the_same_round_and_rates_of_the_median(monkeypatch):
    # Clock and processor, of a call that warms up and of three rounds.
    turns = {"first": [(9, 9), (1, 2), (2, 4), (3, 8)]}
    turns["other"] = [(9, 9), (5, 4), (4, 4), (7, 24)]
    monkeypatch.setattr(update_seconds, "FIRST", "first")
    monkeypatch.setattr(update_seconds, "ATTACKS", dict.fromkeys(turns, {}))
    monkeypatch.setattr(
        update_seconds, "seconds", lambda name, _: iter(turns[name]).__next__
    )
    row = compare(rounds=3, victims=6, steps=20)["other"]
    assert (row["clock s"], row["range"], row["processor s"]) == (
        "5.0",
        "4.0-7.0",
        "4.0",
    )
    assert row["evaluations / processor s"] == "30"  # 6 * 20 / 4
    assert [*row.values()][-1] == "2.00"  # of 4 / 2, 4 / 4 and 24 / 8


@pytest.mark.slow
@pytest.mark.usefixtures("quickly")
def test_every_attack_runs_on_updates_of_a_run(tmp_path):
    begin(tmp_path / "run", arms=("none",))
    rows = compare(run=str(tmp_path / "run"))
    assert rows.keys() == update_seconds.ATTACKS.keys()
    assert [*rows[update_seconds.FIRST].values()][-1] == "1.00"
    assert all(row["evaluations each"] == 4 for row in rows.values())
