"""experiments/risk_scores.py and tables.py: how what was found is summed up."""

import json
import sys

import numpy as np
import pytest
import risk_scores
import tables
from scipy import stats


def test_a_rank_is_spearmans_and_its_interval_holds_it():
    generator = np.random.default_rng(0)
    risks = generator.standard_normal(30)
    recovered = risks + generator.standard_normal(30)
    found = risk_scores.rank(np.exp(risks), recovered)  # ranks know no scale
    known = stats.spearmanr(risks, recovered).statistic
    assert found.rho == pytest.approx(known)
    assert -1 < found.low < known < found.high < 1
    assert found.low > 0 and "*" in risk_scores.written(found)
    noise = risk_scores.rank(generator.standard_normal(30), recovered)
    assert noise.low < 0 < noise.high and "*" not in risk_scores.written(noise)


@pytest.mark.parametrize(
    ("risks", "rho"),
    (
        ([1, 2, 3, 4, 5], 1.0),
        ([5, 4, 3, 2, 1], -1.0),
        ([1, np.nan, 3, 4, 5], 1.0),
        ([1, 1, 1, 1, 1], np.nan),  # ranks nobody
        ([1, 2, np.nan, np.nan, np.nan], np.nan),
    ),
)
def test_known_ranks(risks, rho):
    found = risk_scores.rank(np.array(risks, float), np.arange(5.0))
    assert found.rho == pytest.approx(rho, nan_ok=True)
    assert risk_scores.written(found) == "-" or abs(rho) == 1


@pytest.fixture
def no_cache(monkeypatch):
    for module in (risk_scores, tables):
        monkeypatch.setattr(module, "use_cache", lambda: None)


def test_what_is_there_is_not_run_again(no_cache, monkeypatch, tmp_path, capsys):
    called = []

    def study(arm):
        called.append(arm)
        row = {"outcome": "recovered", "ssim": 1.0, "mse": 0.1}
        row |= dict.fromkeys(("ssim_affine_oracle", *risk_scores.SCORES), 1.0)
        row["risk_least"] = None
        rows = [row | {"mse": 0.1 * n, "risk_largest": -n} for n in range(1, 6)]
        return rows

    monkeypatch.setattr(risk_scores, "study", study)
    words = ["risk_scores.py", "--folder", str(tmp_path), "--arms", "none"]
    monkeypatch.setattr(sys, "argv", words)
    for _ in range(2):
        risk_scores.main()
    assert called == ["none"]
    line = next(
        x for x in capsys.readouterr().out.splitlines() if x.startswith("| none")
    )
    cells = [cell.strip() for cell in line.split("|")[2:-1]]
    assert cells[0].startswith("+1.00*") and cells[1:] == ["-"] * 6


def test_lines_of_tables_are_summed_up(no_cache, monkeypatch, tmp_path, capsys):
    def row(arm, group, right):
        made = dict.fromkeys(tables.SHOWN, right) | {"exact_match": right == 1}
        made |= {"outcome": "recovered" if right == 1 else "ambiguous"}
        return made | {"arm": arm, "group": group, "floor_cell_accuracy": 0.5}

    def study(changes):
        rows = [row("none", n, 1.0 - 0.25 * (n % 2)) for n in range(4)]
        rows += [row("floor/typical", n, 0.25) for n in range(4)]
        return {"rows": rows, "halves": [1.0, 0.5]}

    monkeypatch.setattr(tables, "study", study)
    words = ["tables.py", "--folder", str(tmp_path), "--only", "arms"]
    monkeypatch.setattr(sys, "argv", words)
    tables.main()
    page = capsys.readouterr().out
    line = next(x for x in page.splitlines() if x.startswith("| none, batch 8"))
    cells = [cell.strip() for cell in line.split("|")[2:-1]]
    assert cells[0] == "4" and cells[1].startswith("88% [")
    assert cells[2] == "50%" and cells[3].startswith("50% [")
    assert cells[4:6] == ["50%", "100%"] and cells[-2:] == ["100%", "50%"]
    assert "| floor/typical |" in page and "wine" in page.split("## Other tables")[1]
    kept = json.loads((tmp_path / "arms-none-batch-8.json").read_text())
    assert len(kept["rows"]) == 8


def test_the_surest_half_is_told_by_the_guesses_own_order():
    """Guesses come in another order than the truth's: confidence has to follow."""

    class Bag:
        def __init__(self, **fields):
            self.__dict__ |= fields

    discrete, number = Bag(is_discrete=True), Bag(is_discrete=False)
    truths = np.array([[[0.0, 1, 0], [1.0, 0, 1]]], np.float32)
    found = Bag(
        inputs=truths[:, ::-1], info={"confidence": np.array([[[0, 0.9], [0, 0.1]]])}
    )
    result = Bag(
        arms=[Bag(attacked=Bag(reconstruction=found))],
        dataset=Bag(input_spec=Bag(columns=(number, discrete))),
        victims=Bag(inputs=truths),
    )
    rows = [
        {"arm": "floor/typical"},
        {"arm": "none", "cells_right": "10"},
        {"arm": "none", "cells_right": "01"},
    ]
    # The second truth is the first guess, which is sure, and right.
    assert tables.halves(result, rows) == [1.0, 0.0]
