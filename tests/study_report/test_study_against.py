"""One study against another: pairs are told by what is equal, never by a name."""

import made_studies
import pytest

from kljax.metrics import COLUMNS
from kljax.studies import store
from kljax.studies.reports import words, write_report
from kljax.studies.reports.against import Against, compare_studies
from kljax.studies.reports.axes import axes_of
from kljax.studies.reports.contents import _commands
from kljax.studies.reports.markdown import _against
from kljax.studies.reports.pools import make_pools
from kljax.studies.reports.tables import Table

SEEDS = {"0": {"seed": 0}, "1": {"seed": 1}}
SSIM = [0.9, 0.5, 0.2]


def arms(*names):
    return {name: {"arm": name} for name in names}


def make(folder, axes, less=0.0, fixed=None, **more):
    made_studies.make_folder(folder, axes, {"victims": 3} | (fixed or {}), **more)
    for number, cell in enumerate(store.read(folder).manifest["cells"]):
        found = [ssim - less for ssim in SSIM]
        rows = made_studies.attack_rows(cell, found)
        rows += made_studies.floor_rows([0.4] * 3, success=[True, False, False])
        made_studies.write_part(folder, str(number), cell, rows)
    return folder


def compare(one, other, value="ssim"):
    study, there = store.read(one), store.read(other)
    axes = axes_of(study.manifest)
    pools = make_pools(study, axes, [a for a in axes if axes[a].repeats])
    columns = COLUMNS[value], COLUMNS["success"]
    return compare_studies(study, there, pools, *columns)


def test_a_study_against_itself_has_no_difference(tmp_path):
    axes = {"arm": arms("none", "bn-control"), "seed": SEEDS}
    folder = make(tmp_path / "one", axes)
    found = compare(folder, folder)
    assert found.equal == (12, 12) and not found.apart and not found.unpaired
    for record in found.table.records:
        assert (record["pairs"], record["difference"], record["difference_p"]) == (
            6,
            0,
            1,
        )
        assert record["only_study"] == record["only_minus"] == 0
        assert record["floor"] == "class_mean"
        assert record["floor_success"] == pytest.approx(1 / 3)


def test_cells_pair_by_what_is_equal_whatever_they_are_called(tmp_path):
    left = {"arm": arms("none", "gaussian-noise=0.1"), "seed": SEEDS}
    named = {"plain": {"arm": "none"}, "none": {"arm": "gaussian-noise=.1"}}
    one = make(tmp_path / "one", left)
    other = make(tmp_path / "other", {"defence": named, "seed": SEEDS}, less=0.1)
    found = compare(one, other)
    assert not found.unpaired and found.equal == (0, 12)
    assert [r["arm"] for r in found.table.records] == ["none", "gaussian-noise=0.1"]
    for record in found.table.records:  # this one minus the other
        assert record["difference"] == pytest.approx(0.1)
        assert (record["study"], record["minus"]) == ("this", "other: other")


def test_a_study_elsewhere_is_named_and_not_where_it_lies(tmp_path):
    axes = {"arm": arms("none")}
    study = store.read(make(tmp_path / "here" / "one", axes))
    for where, named in (("there/other", "other"), ("here/old/other", "old/other")):
        other = store.read(make(tmp_path / where, axes))
        runs = [tmp_path / where]
        _, command = _commands(study, None, None, None, runs, other)
        assert command == f"kljax report one --runs {named} --against {named}"


def test_what_sets_the_studies_apart_is_said(tmp_path):
    axes = {"arm": arms("none", "bn-control")}
    one = make(tmp_path / "one", axes, fixed={"attack": "dlg"})
    other = make(tmp_path / "other", axes, versions={"kljax": "0.0.9"})
    found = compare(one, other)
    assert 'attack is "dlg" here and "matching" there' in found.apart
    assert "kljax is 0.1.0 here and 0.0.9 there" in found.apart
    assert found.equal == (6, 6)


def test_cells_without_their_like_are_listed(tmp_path):
    one = make(tmp_path / "one", {"arm": arms("none", "magnitude-pruning=0.5")})
    other = make(tmp_path / "other", {"arm": arms("none", "magnitude-pruning=0.9")})
    found = compare(one, other)
    assert [record["arm"] for record in found.table.records] == ["none"]
    here, there = found.unpaired
    assert here.startswith("arm=magnitude-pruning=0.5 (here): arms is ")
    assert there.startswith("arm=magnitude-pruning=0.9 (there): arms is ")


def test_a_markdown_report_tells_apart_what_differs_and_what_is_missing():
    table = Table("against", "Against b", ("arm",), [], [])
    found = Against("b", ("steps is 3 here",), table, (0, 1), ("x (here): y",))
    text = _against(found, ["image"])
    wholes, unlike = text.index("The studies as wholes:"), text.index(words.UNLIKE)
    assert wholes < text.index("- steps is 3 here") < unlike < text.index("- x (here)")


def test_studies_of_other_victims_are_refused(tmp_path):
    axes = {"arm": arms("none", "bn-control")}
    one = make(tmp_path / "one", axes, fixed={"seed": 1})
    other = make(tmp_path / "other", axes, fixed={"seed": 2})
    with pytest.raises(
        ValueError, match="'other' has other victims: seed is 1 here, 2"
    ):
        compare(one, other)


def test_studies_that_share_no_cell_are_refused(tmp_path):
    steps = {"few": {"steps": 3}, "many": {"steps": 5}}
    more = {"few": {"steps": 4}, "many": {"steps": 6}}
    one = make(tmp_path / "one", {"arm": arms("none"), "budget": steps})
    other = make(tmp_path / "other", {"arm": arms("none"), "budget": more})
    with pytest.raises(ValueError, match=r"no cell .* in 'other': .*steps is 3 here"):
        compare(one, other)


def test_victims_of_both_alone_are_compared(tmp_path):
    axes = {"arm": arms("none")}
    one = make(tmp_path / "one", axes)
    other = made_studies.make_folder(tmp_path / "other", axes, {"victims": 2})
    (cell,) = store.read(other).manifest["cells"]
    rows = made_studies.attack_rows(cell, [0.5, 0.5])
    rows[1]["upload"] = 2  # the same example, of another upload
    made_studies.write_part(other, "0", cell, rows)
    found = compare(one, other)
    (record,) = found.table.records
    assert record["pairs"] == 1 and record["difference"] == pytest.approx(0.4)


def test_a_report_has_the_comparison_and_its_command(tmp_path):
    axes = {"arm": arms("none", "bn-control"), "seed": SEEDS}
    one, other = (make(tmp_path / name, axes) for name in ("one", "other"))
    page = write_report(store.read(one), against=store.read(other))
    text = page.read_text()
    assert "Against other" in text and (page.parent / "against.csv").exists()
    assert "12 of 12 pairs have the very same value" in text
    # From where the study is: what lies above says where somebody's files are.
    assert "kljax report one --against other" in text
    assert str(tmp_path) not in text
    written = (page.parent / "report.md").read_text()
    assert "## Against other" in written and words.UNLIKE not in written
