"""experiments/backdoor.py: what is rehearsed, what is counted, and how it is tabled."""

import sys

import backdoor
import pytest

from kljax import TrainConfig
from kljax.studies.builder import run_setup


@pytest.fixture
def calls(monkeypatch):
    """Puts a table in place of trainings: success by boost, but for odd seeds."""
    called = []
    success = {"0.5": 0.3, "1.0": 0.9, "2.0": 0.9}

    def run(rule, role, seed, rounds):
        called.append((rule, role, seed, rounds))
        boost = role.partition("=")[2]
        return seed / 10, success.get(boost, 0.05) if seed % 2 == 0 else 0.01

    monkeypatch.setattr(backdoor, "run", run)
    monkeypatch.setattr(backdoor, "use_cache", lambda: None)
    return called


def test_the_best_boost_of_seed_0_is_taken_and_seed_0_not_counted(
    calls, monkeypatch, capsys
):
    words = "backdoor.py --rules median --boosts 2 .5 1 --seeds 3 --rounds 7".split()
    monkeypatch.setattr(sys, "argv", words)
    backdoor.main()
    rehearsed, counted = calls[:3], calls[3:]
    assert {seed for _, _, seed, _ in rehearsed} == {0}
    assert {seed for _, _, seed, _ in counted} == {1, 2, 3}
    assert {(rule, rounds) for rule, _, _, rounds in calls} == {("median", 7)}
    roles = [role for _, role, seed, _ in counted if seed == 1]
    assert roles == [*backdoor.ATTACKS.values(), "0-2:model-replacement=1.0"]
    last = capsys.readouterr().out.splitlines()[5].split("|")
    assert [cell.strip() for cell in last[1:-1]] == [
        *("median", "adaptive 3", "1", "20.0 [10.0, 30.0]", "1.0 [1.0, 90.0]")
    ]


def test_every_row_is_a_training_that_exists():
    roles = [*backdoor.ATTACKS.values(), "0-2:model-replacement=0.25"]
    for rule in backdoor.RULES:
        for role in roles:
            fixed = backdoor.FIXED | backdoor.ROOT.get(rule, {})
            config = TrainConfig(aggregator=rule, roles=(role,), **fixed)
            if role == roles[-1]:
                run_setup.build_run_setup(config)
