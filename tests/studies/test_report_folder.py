"""Run folders of studies: whole or absent."""

import csv
import warnings

import numpy as np
import pytest
from test_report import FILES, strict_json, write
from tiny_studies import finished, pretended, tiny, wrong

from kljax import metrics
from kljax.core.folders import LeftOut
from kljax.studies import leak_report, scoring

# ---- Whole or absent -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_no_run_folder_and_loses_no_row(tmp_path, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error("out of paint")

    result, rows = finished()
    monkeypatch.setattr(leak_report, "markdown", fail)
    with pytest.raises(error, match="out of paint") as failure:
        write(tmp_path / "run", result, rows)
    (kept,) = tmp_path.iterdir()
    assert kept.name != "run" and str(kept) in failure.value.__notes__[0]
    with open(kept / "rows.csv", newline="") as file:
        assert len([*csv.DictReader(file)]) == len(rows)
    # And does not stand in the way of the next try.
    monkeypatch.undo()
    write(tmp_path / "run", result, rows)
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES


def test_a_picture_that_cannot_be_drawn_is_left_out_and_named(tmp_path, monkeypatch):
    def fail(result, rows, path):
        path.write_bytes(b"half a picture")
        raise RuntimeError("out of paint")

    result, rows = finished()
    monkeypatch.setattr(leak_report, "draw_gallery", fail)
    with pytest.warns(LeftOut, match="gallery.png is left out: out of paint"):
        write(tmp_path / "run", result, rows)
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == FILES - {"gallery.png"}
    (warning,) = strict_json(folder / "summary.json")["warnings"]
    assert "out of paint" in warning
    assert warning in (folder / "summary.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("channels", (2, 4, 13))
def test_a_metric_that_does_not_fit_the_images_costs_no_row(channels, tmp_path):
    """LPIPS knows images of one and of three channels."""
    given = tiny(data=f"outside_package:ramps_of_{channels}_channels")
    result = pretended(given, wrong)
    with pytest.warns(LeftOut, match=f"LPIPS is left out: .* not {channels}"):
        rows = scoring.score_rows(result)
    arms = [row for row in rows if row["arm"] == "none"]
    assert len(arms) == given.victims
    for row in arms:
        assert np.isfinite(row["ssim"]) and row["lpips_alex"] is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LeftOut)  # of the picture, as it may be
        write(tmp_path / "run", result, rows)
    assert FILES - {"gallery.png"} <= {p.name for p in (tmp_path / "run").iterdir()}


def test_an_optional_metric_that_fails_costs_no_row(monkeypatch):
    def fail(*_):
        raise OSError("weights are gone")

    monkeypatch.setattr(metrics, "lpips_available", lambda: True)
    monkeypatch.setattr(metrics, "lpips_distances", fail)
    result, rows = finished()
    with pytest.warns(LeftOut, match=r"lpips_\w+ is left out: weights are gone"):
        assert len(scoring.score_rows(result)) == len(rows)


def test_an_existing_folder_is_not_touched(tmp_path):
    result, rows = finished()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious.txt").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    (tmp_path / "empty").mkdir()
    for name in ("run", "file", "empty"):
        with pytest.raises(FileExistsError, match=f"{name}.*--out"):
            write(tmp_path / name, result, rows)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["precious.txt"]
    assert (tmp_path / "run" / "precious.txt").read_text() == "years of work"
    assert list((tmp_path / "empty").iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"run", "file", "empty"}
