"""The gallery: chosen by the attacker's loss, drawn as it is scored."""

import io

import made_studies
import numpy as np
import pytest
from PIL import Image

from kljax.studies import store
from kljax.studies.reports import write_report
from kljax.studies.reports.axes import axes_of
from kljax.studies.reports.contents import make_contents
from kljax.studies.reports.gallery import LARGEST, make_gallery, to_png
from kljax.studies.reports.pools import make_pools

AXES = {
    "arm": {"none": {"arm": "none"}},
    "seed": {str(n): {"seed": n} for n in range(2)},
}


def gallery_of(folder):
    study = store.read(folder)
    return make_gallery(study, make_pools(study, axes_of(study.manifest), ["seed"]))


def made(tmp_path, losses, ssim, keep=(0, 1)):
    folder = made_studies.make_folder(tmp_path / "study", AXES, {"victims": 3})
    cells = store.read(folder).manifest["cells"]
    for number, cell in enumerate(cells):
        rows = made_studies.attack_rows(
            cell, ssim[number], loss=losses[number], mse=0.01, label=5
        )
        made_studies.write_part(folder, str(number), cell, rows)
        if number in keep:
            made_studies.write_reconstructions(folder, cell, rows)
    return folder


def test_best_median_and_worst_are_told_by_the_loss(tmp_path):
    folder = made(
        tmp_path,
        [[3e-3, 1e-4, 2e-2], [5e-3, 4e-4, float("inf")]],
        # The best image is not the one with the lowest loss.
        [[0.9, 0.1, 0.2], [0.3, 0.4, float("nan")]],
    )
    gallery = gallery_of(folder)
    (row,) = gallery.rows
    assert (row.name, row.victims, row.left_out) == ("arm=none", 5, 1)
    assert [shown.rank for shown in row.shown] == ["best", "median", "worst"]
    assert [shown.loss for shown in row.shown] == [1e-4, 3e-3, 2e-2]
    assert [shown.score for shown in row.shown] == [
        "SSIM 0.10",
        "SSIM 0.90",
        "SSIM 0.20",
    ]


def test_a_damaged_file_costs_its_own_pictures_alone(tmp_path):
    folder = made(tmp_path, [[1.0, 2.0, 3.0]] * 2, [[0.1, 0.2, 0.3]] * 2)
    first, second = (c["id"] for c in store.read(folder).manifest["cells"])
    path = folder / "reconstructions" / f"{first}.npz"
    path.write_bytes(path.read_bytes()[:500])
    gallery = gallery_of(folder)
    (row,) = gallery.rows
    assert row.victims == 3  # those of the second cell
    (words,) = gallery.damaged
    assert words.startswith(f"{path} is damaged: it holds no arrays")
    contents = make_contents(store.read(folder))
    assert contents.points.records[0]["victims"] == 6
    assert f"Pictures left out: {words}." in contents.notes
    (folder / "reconstructions" / f"{second}.npz").write_bytes(b"nothing")
    assert gallery_of(folder).rows == () and len(gallery_of(folder).damaged) == 2


def test_sentences_are_written(tmp_path):
    folder = made_studies.make_folder(tmp_path / "study", AXES, {"victims": 3})
    for number, cell in enumerate(store.read(folder).manifest["cells"]):
        rows = made_studies.attack_rows(
            cell, [np.nan] * 3, loss=[1.0, 2.0, 3.0], mse=0.01, label=5
        )
        for row in rows:
            row |= {"text": "of <Moses>", "text_guess": "of him"}
            row["token_accuracy"] = 0.5
        made_studies.write_part(folder, str(number), cell, rows)
        made_studies.write_reconstructions(folder, cell, rows)
    (row,) = gallery_of(folder).rows
    best = row.shown[0]
    assert (best.truth, best.guess) == ("of <Moses>", "of him")
    assert best.score == "50% of tokens"
    shown = write_report(store.read(folder))
    page = shown.read_text()
    assert '<p class="sentence">of &lt;Moses&gt;</p>' in page
    assert '<p class="sentence"><mark>of</mark> him </p>' in page
    written = " ".join((shown.parent / "report.md").read_text().split())
    assert "| of &lt;Moses&gt; | **of** him |" in written


def test_rows_of_a_table_stand_side_by_side(tmp_path):
    folder = made_studies.make_folder(tmp_path / "study", AXES, {"victims": 3})
    for number, cell in enumerate(store.read(folder).manifest["cells"]):
        rows = made_studies.attack_rows(
            cell, [np.nan] * 3, loss=[1.0, 2.0, 3.0], mse=0.01, label=5
        )
        for row in rows:
            row |= {"kind": "table", "text": "age=<b>41; sex=1"}
            row |= {"text_guess": "age=<40; sex=1", "cells_right": "01"}
            row["cell_accuracy"] = 0.5
        made_studies.write_part(folder, str(number), cell, rows)
        made_studies.write_reconstructions(folder, cell, rows)
    best = gallery_of(folder).rows[0].shown[0]
    assert best.cells == (("age", "<b>41", "<40", False), ("sex", "1", "1", True))
    assert best.score == "50% of cells"
    page = write_report(store.read(folder)).read_text()
    wrong = "<td>age</td><td>&lt;b&gt;41</td><td><s>&lt;40</s></td>"
    assert f'<tr class="wrong">{wrong}</tr>' in page
    assert '<tr class="right"><td>sex</td><td>1</td><td>1</td></tr>' in page
    assert "<b>41" not in page


def test_pictures_are_those_of_the_victim(tmp_path):
    folder = made(tmp_path, [[1.0, 2.0, 3.0]] * 2, [[0.1, 0.2, 0.3]] * 2, keep=(1,))
    (row,) = gallery_of(folder).rows
    cell = store.read(folder).manifest["cells"][1]["id"]
    kept = np.load(folder / "reconstructions" / f"{cell}.npz")
    for shown, place in zip(row.shown, (0, 1, 2), strict=True):
        assert shown.victim == kept["victim"][place] and shown.label == 5
        picture = np.asarray(Image.open(io.BytesIO(shown.guess)))
        scored = np.clip(kept["images"][place, 0], 0, 1)
        np.testing.assert_array_equal(picture, np.round(255 * scored))
        truth = np.asarray(Image.open(io.BytesIO(shown.truth)))
        np.testing.assert_array_equal(truth, np.round(255 * kept["truths"][place, 0]))


@pytest.mark.parametrize(
    ("count", "ranks"),
    ((1, ["best and median and worst"]), (2, ["best and median", "worst"])),
)
def test_few_victims_are_shown_once(tmp_path, count, ranks):
    losses = [[1.0] + [float("nan")] * (3 - 1), [2.0, float("nan"), float("nan")]]
    if count == 1:
        losses[1][0] = float("nan")
    folder = made(tmp_path, losses, [[0.1, 0.2, 0.3]] * 2)
    (row,) = gallery_of(folder).rows
    assert [shown.rank for shown in row.shown] == ranks


def test_nothing_kept_nothing_shown(tmp_path):
    folder = made(tmp_path, [[1.0] * 3] * 2, [[0.1] * 3] * 2, keep=())
    assert gallery_of(folder) == ((), 0, ())


@pytest.mark.parametrize(
    ("shape", "mode", "size"),
    (
        ((8, 8, 3), "RGB", (8, 8)),
        ((8, 6, 1), "L", (6, 8)),
        ((8, 8, 2), "L", (8, 8)),
        ((300, 150, 3), "RGB", (LARGEST // 2, LARGEST)),
    ),
)
def test_images_of_all_kinds(shape, mode, size):
    image = np.full(shape, 7.0)
    image[0, 0] = np.nan
    picture = Image.open(io.BytesIO(to_png(image)))
    assert (picture.mode, picture.size) == (mode, size)
    assert picture.getpixel((size[0] - 1, size[1] - 1)) in (255, (255, 255, 255))
