"""A value along a number, and the matrix of pictures."""

import re

import made_studies
import numpy as np
import pytest
from PIL import Image

from kljax.metrics import COLUMNS
from kljax.studies import store
from kljax.studies.reports import matrix as matrix_module
from kljax.studies.reports import write_report
from kljax.studies.reports.axes import arrange, axes_of
from kljax.studies.reports.matrix import make_matrices
from kljax.studies.reports.pools import make_pools
from kljax.studies.reports.trends import STRENGTH, draw_trends, make_trends

NOISE = "gaussian-noise"


def make(tmp_path, axes, score, pictures=False):
    folder = made_studies.make_folder(tmp_path / "study", axes, {"victims": 4})
    for number, cell in enumerate(store.read(folder).manifest["cells"]):
        ssim = np.full(4, score(cell["config"])) + [0.01, -0.01, 0.02, -0.02]
        rows = made_studies.attack_rows(cell, list(ssim))
        made_studies.write_part(
            folder, str(number), cell, rows + made_studies.floor_rows([0.2] * 4)
        )
        if pictures:
            with_errors = [row | {"mse": 0.05} for row in rows]
            made_studies.write_reconstructions(folder, cell, with_errors)
    study = store.read(folder)
    axes = axes_of(study.manifest)
    return study, axes, make_pools(study, axes, [])


def arms(*names):
    return {"arm": {name: {"arm": name} for name in names}}


def test_strengths_of_a_defence_are_a_trend_smallest_first(tmp_path):
    names = (f"{NOISE}=0.1", f"{NOISE}=0.001", f"{NOISE}=0.01", "none")
    scores = {"0.1": 0.1, "0.001": 0.9, "0.01": 0.5, "none": 0.95}
    _, axes, pools = make(
        tmp_path, arms(*names), lambda c: scores[c["arms"][0].split("=")[-1]]
    )
    (trend,) = make_trends(pools, axes, "ssim")
    assert trend.along == f"strength of {NOISE}" and trend.name == NOISE
    assert trend.at == (0.001, 0.01, 0.1) and trend.point == {}
    assert [f.mean for f in trend.found] == pytest.approx([0.9, 0.5, 0.1])
    assert all(found.floor.mean == pytest.approx(0.2) for found in trend.found)


def test_an_axis_of_numbers_has_a_trend_for_each_arm(tmp_path):
    axes = arms("none", "bn-control") | {
        "examples": {str(n): {"examples": n} for n in (8, 1)},
        "steps": {str(n): {"steps": n} for n in (10, 20)},  # a budget: not a trend
        "attack": {n: {"attack": n} for n in ("matching", "dlg")},
    }
    _, axes, pools = make(tmp_path, axes, lambda c: 1 / (1 + c["examples"]))
    trends = make_trends(pools, axes, "ssim")
    assert {trend.along for trend in trends} == {"examples"}
    assert {trend.name for trend in trends} == {"none", "bn-control"}
    assert len(trends) == 2 * 2 * 2
    for trend in trends:
        assert trend.at == (1.0, 8.0) and trend.point.keys() == {"steps", "attack"}
        assert [f.mean for f in trend.found] == pytest.approx([1 / 2, 1 / 9])


@pytest.mark.parametrize(
    ("arm", "strength"),
    [
        (f"{NOISE}=1e-3+norm-clipping", ["1e-3"]),
        (f"{NOISE}=.5@update/unaware", [".5"]),
        ("mine:defence=e", []),
        ("mine:defence=-", []),
        ("mine:defence=1.2.3", []),
    ],
)
def test_a_strength_is_a_number_and_nothing_that_looks_like_one(arm, strength):
    assert STRENGTH.findall(arm) == strength


def test_a_defence_of_several_options_and_what_does_not_vary_are_no_trend(tmp_path):
    names = ("adadefense=size=0.001,b1=0.9", "adadefense=size=0.01,b1=0.9", "none")
    _, axes, pools = make(tmp_path, arms(*names), lambda c: 0.5)
    assert make_trends(pools, axes, "ssim") == []
    assert draw_trends([], COLUMNS["ssim"]) is None


def test_the_matrix_shows_one_victim_in_every_place(tmp_path):
    axes = arms("none", "bn-control") | {
        "attack": {n: {"attack": n} for n in ("matching", "dlg")}
    }
    study, axes, pools = make(tmp_path, axes, lambda c: 0.5, pictures=True)
    (matrix,) = make_matrices(study, pools, arrange(axes))
    assert matrix.columns == ("matching", "dlg")
    assert [name for name, _ in matrix.lines] == ["none", "bn-control"]
    at = {(pool.point["arm"], pool.point["attack"]): pool for pool in pools}
    for name, pairs in matrix.lines:
        for column, pair in zip(matrix.columns, pairs, strict=True):
            (cell,) = at[name, column].cells
            kept = store.read_reconstructions(study, cell["id"])
            for drawn, array in zip(pair, ("truths", "images"), strict=True):
                (tmp_path / "drawn.png").write_bytes(drawn)
                with Image.open(tmp_path / "drawn.png") as picture:
                    shown = np.asarray(picture.convert("RGB"), float) / 255
                wanted = np.clip(kept[array][0][0], 0, 1)
                np.testing.assert_allclose(shown, wanted, atol=0.01)


def test_what_a_page_has_no_room_for_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(matrix_module, "MOST", 3)
    axes = arms("none", "bn-control") | {
        "attack": {n: {"attack": n} for n in ("matching", "dlg")}
    }
    study, axes, pools = make(tmp_path, axes, lambda c: 0.5, pictures=True)
    (matrix,) = make_matrices(study, pools, arrange(axes))
    assert sum(pair is not None for _, pairs in matrix.lines for pair in pairs) == 3
    assert matrix.left_out == 1


def test_a_page_has_both(tmp_path):
    axes = arms(f"{NOISE}=0.1", f"{NOISE}=0.01") | {
        "attack": {n: {"attack": n} for n in ("matching", "dlg")}
    }
    study, _, _ = make(tmp_path, axes, lambda c: 0.5, pictures=True)
    page = write_report(study).read_text(encoding="utf-8")
    assert len(re.findall(r'<table class="matrix">', page)) == 1
    assert page.count("Reconstruction in ") == 4
    assert (study.folder / "report" / "trends.svg").stat().st_size > 1000
    assert "trends.svg" in (study.folder / "report" / "report.md").read_text()
