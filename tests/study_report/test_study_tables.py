"""Tables: what stands where, and that nothing unlike is averaged."""

import csv
import io

import made_studies
import pytest

from kljax.metrics import COLUMNS
from kljax.studies import store
from kljax.studies.reports.axes import arrange, axes_of
from kljax.studies.reports.contents import make_contents
from kljax.studies.reports.pools import make_pools
from kljax.studies.reports.tables import make_line, pivot_tables, points_table, to_csv

AXES = {
    "arm": {arm: {"arm": arm} for arm in ("none", "keylock/known")},
    "attack": {name: {"attack": name} for name in ("matching", "dlg")},
    "steps": {str(n): {"steps": n} for n in (10, 20, 40)},
    "seed": {str(n): {"seed": n} for n in range(2)},
}


def ssim_of(config):
    """Gives a mean that says where a cell stands: .abc, plus .05 for seed 1."""
    arm = 0.1 * (config["arms"][0] == "keylock/known")
    attack = 0.2 * (config["attack"] == "dlg")
    steps = {10: 0.0, 20: 0.02, 40: 0.04}[config["steps"]]
    return 0.3 + arm + attack + steps + 0.05 * config["seed"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study without its last cell, and without dlg at 40 steps under keylock."""
    folder = tmp_path_factory.mktemp("tables") / "study"
    cells = [
        cell
        for cell in made_studies.make_cells(AXES, {"victims": 2})
        if list(cell["point"].values())[:3] != ["keylock/known", "dlg", "40"]
    ]
    made_studies.make_folder(folder, AXES, {"victims": 2}, cells)
    for number, cell in enumerate(cells[:-1]):
        mean = ssim_of(cell["config"])
        rows = made_studies.attack_rows(cell, [mean - 0.01, mean + 0.01], psnr=20.0)
        rows += made_studies.floor_rows([0.25, 0.35], psnr=10.0)
        made_studies.write_part(folder, str(number), cell, rows)
    return store.read(folder)


def pivots_of(study, **chosen):
    axes = axes_of(study.manifest)
    found = arrange(axes, **chosen)
    lines = [make_line(pool, "ssim") for pool in make_pools(study, axes, found.pooled)]
    return pivot_tables(lines, axes, found, COLUMNS["ssim"])


def firsts(table):
    return [
        [entry.text.split("\n")[0].split(" ")[0] for entry in line]
        for line in table.lines
    ]


def test_one_table_per_slice_and_none_of_a_mixture(study):
    matching, dlg = pivots_of(study)
    assert matching.title == "SSIM by arm and steps, at attack=matching"
    assert matching.header == ("arm", "10", "20", "40")
    assert firsts(matching) == [
        ["none", "0.325", "0.345", "0.365"],
        ["keylock/known", "0.425", "0.445", "0.465"],
    ]
    # Half of the cell before last is there; the last has no cell at all.
    assert firsts(dlg) == [
        ["none", "0.525", "0.545", "0.565"],
        ["keylock/known", "0.625", "0.620", "no"],
    ]
    assert dlg.lines[1][3].text == "no cell"
    assert "2 of 4, partial" in dlg.lines[1][2].text


def test_a_place_says_floor_spread_and_outcomes(study):
    text = pivots_of(study)[0].lines[0][1].text.split("\n")
    assert text[0].startswith("0.325 [") and text[1] == "floor 0.300 (class_mean)"
    assert text[2] == "± 0.035 (2)"  # .30 and .35
    assert text[3] == "0 / 0 / 4 / 0 / 0"


def test_rows_and_columns_can_be_chosen(study):
    (table,) = pivots_of(study, rows=["attack", "arm"], columns=["steps", "seed"])
    assert table.header == (
        "attack",
        "arm",
        *(f"{s} {n}" for s in (10, 20, 40) for n in (0, 1)),
    )
    assert firsts(table)[0] == [
        "matching",
        "none",
        "0.300",
        "0.350",
        "0.320",
        "0.370",
        "0.340",
        "0.390",
    ]
    assert table.lines[3][5].text == "not run" and table.lines[3][6].text == "no cell"


def test_csv_has_all_digits_and_no_words_for_nothing(study):
    lines = list(csv.DictReader(io.StringIO(to_csv(pivots_of(study)[1]))))
    assert lines[0]["arm"] == "none"
    assert float(lines[0]["20 mean"]) == pytest.approx(0.545)
    assert float(lines[0]["20 floor_mean"]) == pytest.approx(0.3)
    assert lines[0]["20 unsolved"] == "4" and lines[0]["20 victims"] == "4"
    assert lines[1]["40 mean"] == lines[1]["40 victims"] == ""


def test_points_have_everything(study):
    axes = axes_of(study.manifest)
    pools = make_pools(study, axes, ["seed"])
    table = points_table([make_line(pool, "psnr") for pool in pools], COLUMNS["psnr"])
    assert table.header[:5] == (
        "arm",
        "attack",
        "steps",
        "victims",
        "SSIM >= .6 [95 %]",
    )
    assert table.header[5] == "PSNR dB [95 %]" and "SSIM" in table.header
    assert len(table.lines) == len(table.records) == 11
    record = table.records[0]
    assert record["psnr_mean"] == 20 and record["psnr_floor_mean"] == 10
    assert record["success_mean"] == 0 and record["success_floor"] == "class_mean"
    assert record["ssim_mean"] == pytest.approx(0.325)
    assert {len(record) for record in table.records} == {len(table.records[0])}


def test_points_say_how_many_repetitions_they_have(study):
    axes = axes_of(study.manifest)
    lines = [make_line(pool, "ssim") for pool in make_pools(study, axes, ["seed"])]
    table = points_table(lines, COLUMNS["ssim"])
    assert table.title == "Every point, over up to 2 repetitions"
    # The last cell of all, a second seed, has not been run.
    for name in ("success", "ssim"):
        found = [record[f"{name}_repetitions"] for record in table.records]
        assert found == [2] * 10 + [1]
    assert [record["cells"] for record in table.records] == [2] * 11
    spreads = [record["ssim_spread"] for record in table.records]
    assert spreads[:10] == pytest.approx([0.05 / 2**0.5] * 10) and spreads[10] is None
    column = table.header.index("SSIM [95 %]")
    assert [line[column].text.split("\n")[-1] for line in table.lines[:10]] == [
        "± 0.035 (2)"
    ] * 10
    assert "±" not in table.lines[10][column].text


def test_a_study_without_repetitions_says_so(study):
    lines = [
        make_line(pool, "ssim")
        for pool in make_pools(study, axes_of(study.manifest), [])
    ]
    table = points_table(lines, COLUMNS["ssim"])
    assert table.title == "Every point, over all its victims"
    assert {record["ssim_spread"] for record in table.records} == {None}


@pytest.mark.slow
def test_the_value_may_be_success_itself(study):
    contents = make_contents(study, value="success")
    assert contents.pivots[0].title.startswith("SSIM >= .6 by arm")
    assert contents.points.header.count("SSIM >= .6 [95 %]") == 1


@pytest.mark.slow
def test_notes_say_what_these_numbers_need(study):
    notes = " ".join(make_contents(study).notes)
    assert "Averaged over seed." in notes
    assert "only 2 groups of victims" in notes
    assert "Each victim has a network of its own" in notes
    assert "share a network" not in notes and "several devices" not in notes


def test_notes_about_one_network_and_several_devices(tmp_path):
    axes = {"arm": {"none": {"arm": "none"}}, "seed": AXES["seed"]}
    fixed = {"victims": 3, "weights": "shared"}
    folder = made_studies.make_folder(tmp_path / "study", axes, fixed)
    for number, cell in enumerate(store.read(folder).manifest["cells"]):
        rows = made_studies.attack_rows(
            cell, [0.1, float("nan"), 0.3], device=f"gpu {number}"
        )
        made_studies.write_part(folder, str(number), cell, rows)
    notes = " ".join(make_contents(store.read(folder)).notes)
    assert "Victims of one repetition share a network." in notes
    assert "network of its own" not in notes
    assert "several devices: gpu 0, gpu 1" in notes
    assert "2 images without a finite SSIM" in notes
