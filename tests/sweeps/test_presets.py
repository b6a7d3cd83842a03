"""The sweep files that come with the experiments."""

import dataclasses
import json
from pathlib import Path

import pytest
from tiny_studies import made_up_device

from kljax import cli
from kljax.studies.sweeps import expand, groups, parse_sweep, read_sweep, sweep_to_dict

PRESETS = Path(__file__).parents[2] / "experiments" / "presets"

# cells, excluded, illegal and compilations, counted by hand: see each file.
EXPECTED = {
    "tiny": (8, 6, 2, 3),
    # 2 data x 9 arms x 5 attackers x 2 norms, less 10 without a norm, 16 of ResNet-20
    # in eval mode, and 17 of photos that the generator cannot make
    "table6": (137, 43, 0, 137),
    "table6_short": (119, 25, 0, 119),
    # 4 layers x 3 lengths x 11 of 7 x 3 x 2 (arm, knowledge, lock gradients)
    "ablation": (132, 216, 156, 132),
    # 20 of one arm, 4 of the other
    "averages": (24, 16, 0, 24),
    # 2 networks x 2 states x 2 attacks x 23 arms, 2 of one noise
    "benchmark": (184, 0, 0, 176),
    # 2 uploads x 4 states x 3 attacks x 12 arms, two of noise alike
    "benchmark_trained": (288, 0, 0, 264),
    # 4 ways to observe x 4 arms, two of noise alike
    "observations": (16, 0, 0, 12),
}
# Thousands of cells: cells alone are counted.
LARGE = {
    # 2 data x 23 arms x 2 networks x 2 batches x 2 ways to observe x 4 attacks
    "benchmark_gpu": 1472,
    # 2 data x 23 arms x 3 networks x 2 states x 3 x 2 x 2 budgets x 4
    "benchmark_cluster": 13248,
}
OF_RUNS = {"benchmark_trained"}  # need a run of `kljax train`


def test_every_preset_is_counted():
    assert {path.stem for path in PRESETS.glob("*.toml")} == {*EXPECTED, *LARGE}


@pytest.mark.parametrize("name", EXPECTED)
def test_presets_are_what_they_say(name):
    sweep = read_sweep(PRESETS / f"{name}.toml")
    found = expand(sweep)
    counts = len(found.cells), found.excluded, found.illegal, len(groups(found.cells))
    assert counts == EXPECTED[name]
    assert parse_sweep(json.loads(json.dumps(sweep_to_dict(sweep)))) == sweep


def test_the_short_table_has_the_cells_of_the_long_one_but_of_resnet20():
    cells = [
        {tuple(cell.point.values()): cell.config for cell in found.cells}
        for found in (
            expand(read_sweep(PRESETS / f"{name}.toml"))
            for name in ("table6", "table6_short")
        )
    ]
    long = {p: one for p, one in cells[0].items() if one.model == "lenet"}
    assert long.keys() == cells[1].keys()
    budget = {"victims": 4, "steps": 1000, "restarts": 1}
    for point, short in cells[1].items():
        assert dataclasses.replace(long[point], **budget) == dataclasses.replace(
            short, **budget
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_large_presets_are_what_they_say(name):
    found = expand(read_sweep(PRESETS / f"{name}.toml"))
    assert (len(found.cells), found.excluded, found.illegal) == (LARGE[name], 0, 0)


def test_the_tiers_of_the_benchmark_have_the_same_arms():
    arms = [
        list(read_sweep(PRESETS / f"{name}.toml").axes["arm"])
        for name in ("benchmark", *LARGE)
    ]
    assert arms[0] == arms[1] == arms[2]


def test_the_ablation_has_the_pairs_that_can_be():
    cells = expand(read_sweep(PRESETS / "ablation.toml")).cells
    pairs = {
        tuple(cell.point[axis] for axis in ("arm", "knowledge", "lock_grads"))
        for cell in cells
    }
    guesses = ("fixed_random", "fixed_mean", "regress_private_key")
    assert pairs == {
        ("plaintext-gates-as-lock", "nothing", "hidden"),
        ("keylock/known", "all", "hidden"),
        ("keylock/known", "all", "shared"),
        ("keylock/extract", "lock_weights", "shared"),
        ("keylock/regress_gates", "nothing", "hidden"),
        *((f"keylock/{g}", "lock_weights", "hidden") for g in guesses),
        *((f"keylock/{g}", "lock_weights", "shared") for g in guesses),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*EXPECTED} - OF_RUNS))
def test_every_preset_dry_runs(name, capsys, monkeypatch, tmp_path):
    made_up_device(monkeypatch)
    monkeypatch.chdir(tmp_path)
    file = str(PRESETS / f"{name}.toml")
    assert cli.main(["sweep", file, "--dry-run", "--probe", "0"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "from a probe of 1 of them" in said
    assert list(tmp_path.iterdir()) == []
