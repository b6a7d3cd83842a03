"""Comparisons: pairs are pairs, and p-values are those of the textbooks."""

import itertools

import made_studies
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kljax.metrics import COLUMNS
from kljax.studies import store
from kljax.studies.reports.axes import axes_of
from kljax.studies.reports.comparisons import compare_arms, comparisons_table
from kljax.studies.reports.p_values import holm, mcnemar, p_text, sign_flips
from kljax.studies.reports.pools import make_pools

ARMS = {arm: {"arm": arm} for arm in ("none", "bn-control", "keylock/known")}
AXES = {"arm": ARMS, "seed": {"0": {"seed": 0}, "1": {"seed": 1}}}


def compared(tmp_path, ssim, axes=AXES, value="ssim", victims=4, **more):
    """Compares arms; `ssim` gives the rows of each cell by (arm, seed)."""
    folder = made_studies.make_folder(tmp_path / "study", axes, {"victims": victims})
    cells = store.read(folder).manifest["cells"]
    for number, cell in enumerate(cells):
        config = cell["config"]
        found = ssim(config["arms"][0], config["seed"])
        if found is not None:
            groups = [10 * config["seed"] + n for n in range(len(found))]
            rows = made_studies.attack_rows(cell, found, group=groups, **more)
            rows += made_studies.floor_rows([0.7, *[0.1] * len(found)][: len(found)])
            made_studies.write_part(folder, str(number), cell, rows)
    study = store.read(folder)
    axes = axes_of(study.manifest)
    pooled = [axis.name for axis in axes.values() if axis.repeats]
    return compare_arms(make_pools(study, axes, pooled), axes, value)


SSIM = {
    ("none", 0): [0.9, 0.8, 0.7, 0.5],
    ("none", 1): [0.9, 0.8, 0.7, 0.5],
    ("bn-control", 0): [0.8, 0.7, 0.6, 0.4],
    ("bn-control", 1): [0.7, 0.5, 0.6, 0.2],
    ("keylock/known", 0): [0.5, 0.4, 0.7, 0.5],
    ("keylock/known", 1): [0.5, 0.4, 0.7, 0.5],
}


def test_every_two_arms_on_the_same_victims(tmp_path):
    found = compared(tmp_path, lambda arm, seed: SSIM[arm, seed])
    assert [(c.second, c.first) for c in found] == [
        ("bn-control", "none"),
        ("keylock/known", "none"),
        ("keylock/known", "bn-control"),
    ]
    norm, lock, _ = found
    # -.1 four times; then -.2, -.3, -.1, -.3
    assert norm.difference.estimate == pytest.approx(-1.3 / 8)
    assert norm.difference.low < -1.3 / 8 < norm.difference.high < 0
    assert norm.successes == (6, 5) and norm.only == (1, 0) and norm.success_p == 1.0
    assert (lock.pairs, lock.groups) == (8, 8)
    assert lock.successes == (6, 2) and lock.only == (4, 0)
    assert lock.success_p == pytest.approx(2 / 2**4)  # four of four, either way
    assert lock.floor == ("class_mean", 0.25)
    assert lock.unsolved == (8, 8)
    # Of the last two, three victims succeed under the control alone: p = 2 / 8.
    assert [c.success_p_holm for c in found] == pytest.approx(
        [1.0, 3 * 0.125, 2 * 0.25]
    )


def test_only_victims_of_both_are_pairs(tmp_path):
    def partial(arm, seed):
        if arm == "bn-control" or (arm, seed) == ("keylock/known", 1):
            return None
        return SSIM[arm, seed][:2] if arm == "keylock/known" else SSIM[arm, seed]

    (found,) = compared(tmp_path, partial)
    assert (found.second, found.pairs) == ("keylock/known", 2)
    assert found.difference.estimate == pytest.approx(-0.4)
    assert found.floor == ("class_mean", 0.5)  # on these two


def test_values_that_are_not_finite_are_left_out(tmp_path):
    def broken(arm, seed):
        return [np.nan, 0.8, 0.7, 0.5] if arm == "none" else SSIM[arm, seed]

    found = compared(tmp_path, broken)[0]
    assert found.left_out == 2 and found.pairs == 8
    # The first victim of either seed fails in none, and succeeds under the control.
    assert found.only == (1, 2)
    entry = comparisons_table([found], COLUMNS["ssim"]).lines[0][2]
    assert entry.text == "8\n2 left out"


def test_other_axes_are_not_mixed(tmp_path):
    axes = AXES | {"attack": {a: {"attack": a} for a in ("matching", "dlg")}}
    found = compared(tmp_path, lambda arm, seed: SSIM[arm, seed], axes)
    assert len(found) == 6
    assert [c.point["attack"] for c in found] == ["matching"] * 3 + ["dlg"] * 3
    assert found[1].success_p_holm == pytest.approx(6 * 0.125)


def test_arms_with_victims_of_their_own_are_not_compared(tmp_path):
    axes = {
        "defence": {"a": {"arm": "none", "seed": 0}, "b": {"arm": "none", "seed": 1}}
    }
    assert compared(tmp_path, lambda arm, seed: SSIM[arm, seed], axes) == []


def test_a_table_says_how_many_there_are(tmp_path):
    found = compared(tmp_path, lambda arm, seed: SSIM[arm, seed])
    table = comparisons_table(found, COLUMNS["ssim"])
    assert "SSIM >= .6: p, Holm of 3" in table.header and "3 comparisons" in table.title
    line = dict(zip(table.header, table.lines[1], strict=True))
    assert line["arm"].text == "keylock/known" and line["minus"].text == "none"
    assert line["SSIM >= .6: arm / minus"].text == "25% / 75%\nfloor 25% (class_mean)"
    assert line["only arm / only minus"].text == "0 / 4"
    assert line["SSIM >= .6: p"].text == ".125"
    assert line["SSIM >= .6: p, Holm of 3"].text == ".375"
    # -.4 and -.3, 0 and 0, twice: four signs that must all agree.
    assert line["SSIM: p"].text == ".125"
    record = table.records[1]
    assert record["comparisons"] == 3 and record["success_p_holm"] == pytest.approx(
        0.375
    )


def test_differences_of_a_rate_are_points(tmp_path):
    found = compared(tmp_path, lambda arm, seed: SSIM[arm, seed], value="success")
    table = comparisons_table(found, COLUMNS["success"])
    assert table.lines[1][3].text.startswith("-50 [")
    assert table.header.count("SSIM >= .6: p") == 1
    assert {len(line) for line in table.lines} == {len(table.header)}


def test_success_of_both_hides_no_difference(tmp_path):
    """Every victim of both arms succeeds, and SSIM differs by .286."""
    arms = {arm: {"arm": arm} for arm in ("none", "keylock/known")}
    lower = 1 - 0.286 + 0.043 * stats.norm.ppf((np.arange(16) + 0.5) / 16)
    assert lower.min() > 0.6

    def ssim(arm, seed):
        half = slice(8 * seed, 8 * seed + 8)
        return [1.0] * 8 if arm == "none" else list(lower[half])

    found = compared(tmp_path, ssim, AXES | {"arm": arms}, victims=8)
    table = comparisons_table(found, COLUMNS["ssim"])
    line = dict(zip(table.header, table.lines[0], strict=True))
    assert line["SSIM, difference [95 %]"].text == "-0.286 [-0.306, -0.267]"
    assert line["SSIM >= .6: p"].text == "1"
    assert line["SSIM: p"].text == line["SSIM: p, Holm of 1"].text == "< .001"
    assert table.records[0]["difference_p"] == pytest.approx(1e-4, abs=2e-4)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_mcnemar_of_lone_victims_is_the_sign_test(pairs):
    first, second = np.array(pairs).T
    only = int((second & ~first).sum())
    unlike = int((first != second).sum())
    expected = stats.binomtest(only, unlike).pvalue if unlike else 1.0
    assert mcnemar(first, second, np.arange(len(pairs))) == pytest.approx(expected)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.booleans(), st.integers(0, 5)),
        min_size=1,
        max_size=24,
    )
)
def test_mcnemar_of_groups_is_what_all_signs_give(rows):
    first, second, groups = np.array(rows).T
    differences = second.astype(int) - first
    sums = [differences[groups == g].sum() for g in np.unique(groups)]
    seen = abs(sum(sums))
    signs = list(itertools.product((-1, 1), repeat=len(sums)))
    extreme = [abs(np.dot(sign, sums)) >= seen for sign in signs]
    found = mcnemar(first.astype(bool), second.astype(bool), groups)
    assert found == pytest.approx(np.mean(extreme))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(st.floats(-1, 1, width=16), st.integers(0, 6)),
        min_size=1,
        max_size=12,
    )
)
def test_sign_flips_are_what_all_signs_give(rows):
    differences, groups = np.array(rows).T
    sums = [sum(d for d, g in rows if g == group) for group in np.unique(groups)]
    extreme = [
        abs(np.dot(signs, sums)) >= abs(sum(sums)) - 1e-12
        for signs in itertools.product((-1, 1), repeat=len(sums))
    ]
    assert sign_flips(differences, groups) == pytest.approx(np.mean(extreme))


def test_sign_flips_of_many_groups_are_drawn_and_nearly_exact():
    differences = np.array([0.31, -0.12, 0.24, 0.17, -0.26] * 4)[:18]
    signs = np.array(list(itertools.product((-1, 1), repeat=18)))
    exact = (np.abs(signs @ differences) >= differences.sum() - 1e-12).mean()
    found = sign_flips(differences, np.arange(18))
    assert exact > 0.05 and found == pytest.approx(exact, abs=0.01)
    assert sign_flips(differences, np.arange(18)) == found


def test_differences_that_are_not_finite_have_no_p():
    assert np.isnan(sign_flips(np.array([np.nan, np.inf]), np.arange(2)))
    assert sign_flips(np.array([0.5, np.nan, 0.25]), np.arange(3)) == 0.5
    assert sign_flips(np.zeros(3), np.arange(3)) == 1.0


def test_mcnemar_of_a_group_is_less_sure():
    first, second = np.zeros(6, bool), np.ones(6, bool)
    assert mcnemar(first, second, np.arange(6)) == pytest.approx(2 / 64)
    assert mcnemar(first, second, np.array([0, 0, 0, 1, 1, 1])) == 0.5


def test_holm_by_hand():
    # Sorted .01 .02 .03 .04, times 4 3 2 1, and never falling.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    unknown = holm([0.01, np.nan, 0.02])
    assert unknown[::2] == pytest.approx([0.03, 0.04]) and np.isnan(unknown[1])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_keeps_the_order_and_never_lowers(ps):
    adjusted = holm(ps)
    assert all(
        p <= a <= min(1.0, len(ps) * p) for p, a in zip(ps, adjusted, strict=True)
    )
    order = np.argsort(ps, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def test_p_values_are_written_short():
    assert [p_text(p) for p in (1.0, 0.0312, 1e-5, np.nan)] == [
        "1",
        ".031",
        "< .001",
        "-",
    ]
