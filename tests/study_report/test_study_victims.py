"""Pages of victims: whatever was tried on one, found by what is equal; and the way."""

import io
import re

import made_studies
import numpy as np
import pytest
from PIL import Image

from kljax.attacks.presets import PRESETS
from kljax.metrics import COLUMNS
from kljax.studies import store
from kljax.studies.convergence import read_convergence
from kljax.studies.reports import write_report
from kljax.studies.reports.axes import axes_of
from kljax.studies.reports.convergence import (
    make_convergence,
    no_curve,
    quartiles,
)
from kljax.studies.reports.pools import make_pools
from kljax.studies.reports.strips import ACROSS, draw_strip, to_gif
from kljax.studies.reports.victim_table import victims_table
from kljax.studies.reports.victims import Victim, make_victims

AXES = {
    "arm": {arm: {"arm": arm} for arm in ("none", "bn-control")},
    "seed": {"0": {"seed": 0}, "1": {"seed": 1}},
}
SSIM = {"none": [0.9, 0.8, 0.7], "bn-control": [0.3, 0.2, 0.1]}
POINTS = 4


def recorded(images, losses):
    """Makes what searches record: losses are halved, and snapshots brighten."""
    count, spent = len(images), np.arange(1, POINTS + 1)
    shares = (spent / POINTS)[:, None, None, None, None]
    return {
        "losses": np.asarray(losses)[:, None] * 2.0 ** (POINTS - spent),
        "loss_evaluations": np.tile(25 * spent, (count, 1)),
        "snapshots": images[:, None] * shares,
        "snapshot_scores": np.tile(spent / 10, (count, 1))[:, :, None],
    }


def made(tmp_path, snapshots=True, axes=AXES, attack="matching"):
    fixed = {"victims": 3, "attack": attack}
    folder = made_studies.make_folder(tmp_path / "study", axes, fixed)
    for number, cell in enumerate(store.read(folder).manifest["cells"]):
        rows = made_studies.attack_rows(
            cell,
            SSIM[cell["config"]["arms"][0]],
            ["recovered", "unsolved", "unsolved"],
            [1e-3, 2e-3, 4e-3],
            mse=0.01,
            label=[5, 6, 7],
        )
        rows += made_studies.floor_rows([0.4, 0.5, 0.6])
        made_studies.write_part(folder, str(number), cell, rows)
        made_studies.write_reconstructions(folder, cell, rows)
        path = folder / "reconstructions" / f"{cell['id']}.npz"
        arrays = dict(np.load(path))
        if snapshots:
            np.savez(path, **arrays, **recorded(arrays["images"], [1e-3, 2e-3, 4e-3]))
    return folder


def read(folder):
    study = store.read(folder)
    axes = axes_of(study.manifest)
    return study, make_pools(study, axes, ["seed"]), axes


def test_a_victim_has_all_that_was_tried_on_it(tmp_path):
    found = make_victims(*read(made(tmp_path)))
    # Seeds have victims of their own, even those of one place with one truth.
    assert len(found.shown) == 6 and found.left_out == 0
    first = found.shown[0]
    assert (first.index, first.where, first.upload) == (0, "seed=0", 0)
    assert first.labels == (5,) and first.floors == {"class_mean": 0.4}
    assert [a.name for a in first.attempts] == ["none", "bn-control"]
    assert [a.scores for a in first.attempts] == [(0.9,), (0.3,)]
    table = victims_table(found.shown)
    record = table.records[0]
    assert (record["recovered"], record["best_attempt"]) == (2, "none")
    assert (record["best_score"], record["best_floor_score"]) == (0.9, 0.4)


def test_cells_of_other_truths_share_no_victim(tmp_path):
    folder = made(tmp_path)
    cell = store.read(folder).manifest["cells"][0]
    path = folder / "reconstructions" / f"{cell['id']}.npz"
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {"truths": arrays["truths"] / 2})
    found = make_victims(*read(folder))
    assert len(found.shown) == 9
    assert [len(one.attempts) for one in found.shown].count(1) == 6


@pytest.mark.slow
def test_pages_are_whole_and_lead_to_each_other(tmp_path, monkeypatch):
    folder = made(tmp_path, axes=AXES | {"seed": {"0": {"seed": 0}}})
    out = write_report(store.read(folder), gif=True).parent
    assert re.search(
        'href="victims/victim-000.html">victim 0</a>',
        out.joinpath("report.html").read_text(),
    )
    pages = sorted((out / "victims").glob("*.html"))
    assert len(pages) == 3 and (out / "convergence.svg").exists()
    text = pages[1].read_text()
    links = set(re.findall('href="([^"#]*)', text))
    assert {"../report.html", "victim-000.html", "victim-002.html"} < links
    assert all((out / "victims" / link).is_file() for link in links)
    assert len(re.findall('src="data:image/png', text)) == 3 + 2 * (POINTS + 1)
    assert not re.search(r'src="(?!data:)', text) and "url(" not in text
    # Moving pictures are made where they are asked for, and go where they are not.
    assert len(list((out / "victims").glob("*.gif"))) == 6
    monkeypatch.setattr(Victim, "draw_convergence", lambda victim: None)  # it is slow
    write_report(store.read(folder))
    assert not list((out / "victims").glob("*.gif"))


def test_moving_pictures_have_every_snapshot_and_end_with_what_was_found(tmp_path):
    study, pools, axes = read(made(tmp_path))
    attempt = make_victims(study, pools, axes).shown[0].attempts[0]
    cell = study.manifest["cells"][0]["id"]
    images = store.read_reconstructions(study, cell)["images"]
    np.testing.assert_array_equal(attempt.frames[-1], images[0])
    assert attempt.strip[-1].pictures == (attempt.shown[0].guess,)
    assert [s.evaluations for s in attempt.strip] == [25, 50, 75, 100]
    with Image.open(io.BytesIO(to_gif(attempt.frames))) as moving:
        assert moving.n_frames == POINTS and moving.size == (128, 128)


def test_a_strip_is_of_evenly_chosen_snapshots_and_the_last():
    frames = np.zeros((25, 1, 4, 4, 1))
    strip = draw_strip(np.arange(25), frames, np.full(25, np.nan), COLUMNS["ssim"])
    spent = [snapshot.evaluations for snapshot in strip]
    assert len(spent) == ACROSS and spent[0] == 0 and spent[-1] == 24
    assert set(np.diff(spent)) == {2, 3} and strip[0].caption == "-"


def test_curves_are_the_middle_of_the_victims(tmp_path):
    curves, notes = make_convergence(*read(made(tmp_path)))
    assert not notes and [curve.arm for curve in curves] == ["none", "bn-control"]
    np.testing.assert_allclose(curves[0].loss[0], 2e-3 * 2.0 ** np.arange(3, -1, -1))
    np.testing.assert_allclose(curves[0].score[0], np.arange(1, 5) / 10)
    np.testing.assert_array_equal(curves[0].evaluations, [25, 50, 75, 100])
    assert [curve.floor for curve in curves] == [0.5, 0.5]
    broken = np.array([[1.0, np.inf], [3.0, np.nan], [np.inf, np.inf]])
    np.testing.assert_array_equal(quartiles(broken)[:, 0], [2.0, 1.5, 2.5])
    assert np.isnan(quartiles(broken)[:, 1]).all()


def test_a_study_without_a_record_has_no_curves_and_says_why(tmp_path):
    folder = made(tmp_path, snapshots=False, attack="rgap")
    curves, notes = make_convergence(*read(folder))
    why = "rgap has no curve: it is a closed form, which has no candidate before"
    assert not curves and [note[: len(why)] for note in notes] == [why]
    victim = make_victims(*read(folder)).shown[0]
    assert victim.draw_convergence() is None and not victim.attempts[0].strip
    out = write_report(store.read(folder), gif=True).parent
    assert not list((out / "victims").glob("*.gif"))
    for page in ("report.html", "report.md", "victims/victim-000.html"):
        assert (out / page).read_text().count(why) == 1


def test_an_attack_without_an_objective_says_why_it_has_no_curve():
    """But for the one that descends on a loss of its own, and records it."""
    silent = {name for name, one in PRESETS.items() if one.no_curve}
    closed = {name for name, one in PRESETS.items() if one.objective is None}
    assert silent == closed - {"cocktail-party"}
    assert "trained before it sees an upload" in no_curve("learned")
    assert no_curve("mine:attack").endswith("as the drivers of kljax do.")


@pytest.mark.parametrize("name", ["losses", "snapshots"])
def test_arrays_that_do_not_belong_together_are_none(name):
    images = np.zeros((3, 1, 4, 4, 1))
    arrays = {"images": images} | recorded(images, [1, 2, 3])
    assert read_convergence(arrays).snapshots.shape == (3, POINTS, 1, 4, 4, 1)
    found = read_convergence(arrays | {name: arrays[name][:, :2]})
    assert found is None if name == "losses" else found.snapshots is None
