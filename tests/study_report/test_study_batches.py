"""Uploads of several images: rows, tables, verdicts and galleries go by image."""

import io

import made_studies
import numpy as np
import pytest
from PIL import Image

from kljax.studies import store
from kljax.studies.reports.contents import make_contents

AXES = {
    "arm": {arm: {"arm": arm} for arm in ("none", "bn-control")},
    "seed": {"0": {"seed": 0}},
}
FIXED = {"victims": 2, "examples": 4}
SSIM = [[0.99, 0.1, 0.99, 0.1], [0.99, 0.98, 0.97, 0.1]]
LOSS = [2e-3, 1e-3]


def upload_rows(cell, ssim, loss=LOSS, **more):
    """Makes rows of uploads: one for each image."""
    rows = []
    for upload, (scores, own) in enumerate(zip(ssim, loss, strict=True)):
        for example, score in enumerate(scores):
            place = {"upload": upload, "example": example, "group": 4 * upload}
            rows.append(
                {
                    "arm": cell["config"]["arms"][0],
                    "victim": 4 * upload + example,
                    "label": example,
                    "ssim": score,
                    "mse": 0.01,
                    "matching_loss": own,
                    "outcome": "recovered" if score > 0.6 else "unsolved",
                }
                | place
                | more
            )
    return rows


@pytest.fixture
def folder(tmp_path):
    folder = made_studies.make_folder(tmp_path / "study", AXES, FIXED)
    for number, cell in enumerate(store.read(folder).manifest["cells"]):
        rows = upload_rows(cell, SSIM)
        floors = [
            row | {"arm": "floor/class_mean", "ssim": 0.7, "outcome": None}
            for row in rows
        ]
        made_studies.write_part(folder, str(number), cell, [*rows, *floors])
    return folder


def test_shares_are_of_images_and_victims_are_uploads(folder):
    study = store.read(folder)
    assert set(store.finished_victims(study).values()) == {2}
    assert store.missing_cells(study) == []
    contents = make_contents(study)
    assert "2 of 2 cells finished, 4 victims attacked." in contents.progress.text()
    for line, record in zip(
        contents.points.lines, contents.points.records, strict=True
    ):
        texts = [entry.text for entry in line]
        assert texts[1] == "2\n8 images" and "5 / 0 / 3 / 0 / 0" in texts
        assert (record["victims"], record["images"]) == (2, 8)
        assert record["state"] == "finished"
        assert record["success_mean"] == 5 / 8 and record["success_groups"] == 2
        # Two uploads are two clusters: eight images would claim more.
        assert record["success_interval"] == "cluster_bootstrap"
        assert record["success_low"] == 0.5 and record["success_high"] == 0.75
        assert "5 of 8 recovered." in record["reads_as"]
        leaked = "Of each upload's 4 images at least 2 to 3 leaked."
        assert leaked in record["reads_as"]


def test_arms_are_compared_image_by_image_within_their_uploads(folder):
    (record,) = make_contents(store.read(folder)).comparisons.records
    assert (record["pairs"], record["groups"]) == (8, 2)
    assert record["arm_success"] == record["minus_success"] == 5 / 8


def test_a_picture_has_its_own_score_below_it(folder):
    study = store.read(folder)
    cell = study.manifest["cells"][0]
    generator = np.random.default_rng(0)
    images, truths = (generator.random((2, 4, 8, 8, 3)) for _ in range(2))
    (folder / "reconstructions").mkdir()
    np.savez(
        folder / "reconstructions" / f"{cell['id']}.npz",
        images=images,
        truths=truths,
        victim=np.array([0, 4]),
    )
    (row,) = make_contents(study).gallery.rows
    assert row.victims == 2 and len(row.shown) == 8
    # The second upload has the lower loss.
    order = [(1, n) for n in range(4)] + [(0, n) for n in range(4)]
    for shown, (upload, example) in zip(row.shown, order, strict=True):
        rank = "best and median" if upload else "worst"
        assert shown.rank == f"{rank}, image {example + 1} of 4"
        assert shown.score == f"SSIM {SSIM[upload][example]:.2f}"
        assert shown.loss == LOSS[upload]
        assert (shown.victim, shown.label) == (4 * upload + example, example)
        for png, arrays in ((shown.guess, images), (shown.truth, truths)):
            pixels = np.asarray(Image.open(io.BytesIO(png)))
            expected = np.round(255 * arrays[upload, example])
            np.testing.assert_array_equal(pixels, expected)


def test_rows_of_older_versions_are_read_as_means_and_said_to_be(tmp_path):
    folder = made_studies.make_folder(tmp_path / "study", AXES, FIXED)
    cells = store.read(folder).manifest["cells"]
    old = {"example": None, "upload": None, "schema_version": 3}
    for number, cell in enumerate(cells):
        rows = made_studies.attack_rows(cell, [0.5, 0.9], loss=LOSS, mse=0.01, **old)
        made_studies.write_part(folder, str(number), cell, rows[: 2 - number])
    made_studies.write_reconstructions(folder, cells[0], rows)
    study = store.read(folder)
    assert list(store.finished_victims(study).values()) == [2, 1]
    assert [cell["id"] for cell in store.missing_cells(study)] == [cells[1]["id"]]
    contents = make_contents(study)
    assert [record["victims"] for record in contents.points.records] == [2, 1]
    assert "leaked" not in contents.points.records[0]["reads_as"]
    notes = " ".join(contents.notes)
    assert "3 rows of an older kljax, whose outcomes were judged without" in notes
    assert "3 rows of an older kljax, each of which has the means" in notes
    assert len(contents.gallery.rows) == 1
    # What is missing comes in rows of today, beside those of then.
    rest = [row for row in upload_rows(cells[1], SSIM) if row["upload"] == 1]
    made_studies.write_part(folder, "rest", cells[1], rest)
    study = store.read(folder)
    assert store.missing_cells(study) == []
    assert make_contents(study).points.records[1]["images"] == 5


def test_the_means_of_an_upload_are_not_paired_with_one_image(tmp_path):
    """An older row has the number of the first image, and the scores of all."""
    folder = made_studies.make_folder(tmp_path / "study", AXES, FIXED)
    first, second = store.read(folder).manifest["cells"]
    old = {"example": None, "upload": None, "schema_version": 3}
    rows = made_studies.attack_rows(first, [0.5, 0.9], **old)
    made_studies.write_part(folder, "old", first, rows)
    made_studies.write_part(folder, "new", second, upload_rows(second, SSIM))
    contents = make_contents(store.read(folder))
    assert contents.comparisons is None
    assert "not paired with rows of one image" in " ".join(contents.notes)
    # Of one example both are of the same image.
    folder = made_studies.make_folder(tmp_path / "lone", AXES, {"victims": 2})
    first, second = store.read(folder).manifest["cells"]
    rows = made_studies.attack_rows(first, [0.5, 0.9], **old)
    made_studies.write_part(folder, "old", first, rows)
    rows = made_studies.attack_rows(second, [0.5, 0.9])
    made_studies.write_part(folder, "new", second, rows)
    (record,) = make_contents(store.read(folder)).comparisons.records
    assert record["pairs"] == 2
