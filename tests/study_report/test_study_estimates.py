"""Estimates and verdicts, against numbers worked out by hand."""

import math

import made_studies
import numpy as np
import pytest

from kljax.metrics import VALUES, Interval, find_value
from kljax.studies import store
from kljax.studies.reports.axes import axes_of
from kljax.studies.reports.estimates import estimate, mean_difference
from kljax.studies.reports.page import rate_marks
from kljax.studies.reports.plots import interval_lengths
from kljax.studies.reports.pools import make_pools
from kljax.studies.reports.readings import direction, read_differences
from kljax.studies.reports.tables import make_line
from kljax.studies.reports.undefended import find_undefended
from kljax.studies.reports.values import numbers
from kljax.studies.reports.verdicts import count_outcomes, verdict

SEEDS = {"0": {"seed": 0}, "1": {"seed": 1}}
NONE = {"arm": {"none": {"arm": "none"}}, "seed": SEEDS}


def pool_of(tmp_path, *parts, victims=4):
    """Pools two cells, to each of which some rows are given."""
    folder = made_studies.make_folder(tmp_path / "study", NONE, {"victims": victims})
    cells = store.read(folder).manifest["cells"]
    for number, (cell, rows) in enumerate(zip(cells, parts, strict=False)):
        made_studies.write_part(folder, str(number), cell, rows(cell))
    study = store.read(folder)
    (pool,) = make_pools(study, axes_of(study.manifest), ["seed"])
    return pool


def attacked(ssim, first=0, floor=(), **more):
    """Makes rows of victims in groups first, first + 1, ... and of a floor."""
    groups = [first + n for n in range(len(ssim))]

    def rows(cell):
        found = made_studies.attack_rows(cell, ssim, group=groups, **more)
        if len(floor):
            found += made_studies.floor_rows(floor, group=groups)
            found += made_studies.floor_rows([0.1] * len(floor), "grey", group=groups)
        return found

    return rows


@pytest.fixture
def pool(tmp_path):
    floor = [0.7, 0.5, 0.5, 0.5]
    outcome = ["recovered", "unsolved", "ambiguous", "unsolved"]
    return pool_of(
        tmp_path,
        attacked([0.8, 0.6, 0.4, 0.2], 0, floor, outcome=outcome),
        attacked([0.9, 0.7, 0.5, 0.3], 4, floor, outcome=outcome),
    )


def test_mean_and_spread(pool):
    found = estimate(pool, "ssim")
    assert found.mean == pytest.approx(0.55)
    # The means of the seeds are .5 and .6.
    assert found.spread == pytest.approx(0.1 / math.sqrt(2))
    assert found.repetitions == 2
    # Squares of .25, .05, .15, .35 twice make .42, and there are 8.
    assert found.deviation == pytest.approx(math.sqrt(0.42 / 7))
    assert (found.n, found.left_out) == (8, 0)
    assert found.interval.method == "cluster_bootstrap"
    assert found.spread_text() == "± 0.071 (2)"


def test_a_rate_has_wilsons_interval(pool):
    found = estimate(pool, "success")
    assert found.text() == "50% [22%, 78%]"  # 4 of 8
    assert found.interval.method == "wilson" and found.interval.groups == 8
    assert found.spread_text() == "± 0 points (2)"


def test_the_floor_that_leaks_most(pool):
    found = estimate(pool, "ssim").floor
    assert (found.name, found.mean) == ("class_mean", pytest.approx(0.55))
    # .1 .1 -.1 -.3 and .2 .2 0 -.2
    assert found.excess.estimate == pytest.approx(0.0)
    success = estimate(pool, "success")
    assert success.floor_text() == "25% (class_mean)"
    assert success.floor.excess.estimate == pytest.approx(0.25)


def test_less_error_leaks_more(tmp_path):
    rows = attacked([0.9, 0.9], 0, [0.1, 0.1], mse=[0.01, 0.03])

    def with_errors(cell):
        found = rows(cell)
        errors = {"floor/class_mean": 0.05, "floor/grey": 0.5}
        return [row | {"mse": errors.get(row["arm"], row.get("mse"))} for row in found]

    found = estimate(pool_of(tmp_path, with_errors), "mse")
    assert found.floor.name == "class_mean" and found.floor.mean == pytest.approx(0.05)
    assert found.floor.excess.estimate == pytest.approx(0.03)  # .05 less .02


def test_values_without_a_floor(pool):
    assert estimate(pool, "matching_loss").floor is None
    assert estimate(pool, "recovered").floor is None
    assert estimate(pool, "recovered").mean == 0.25


def test_what_is_not_finite_is_left_out_and_counted(tmp_path):
    pool = pool_of(tmp_path, attacked([0.2, math.nan, 0.8, math.inf]))
    found = estimate(pool, "ssim")
    assert (found.n, found.left_out) == (2, 2)
    assert found.mean == pytest.approx(0.5)
    # Two groups: a resample is .2, .5 or .8, the outer ones a quarter each.
    assert found.text() == "0.500 [0.200, 0.800]"
    assert estimate(pool, "success").n == 4
    assert math.isnan(found.spread) and found.spread_text() == "-"


def test_nothing_to_average(tmp_path):
    pool = pool_of(tmp_path)
    found = estimate(pool, "ssim")
    assert found.text() == found.floor_text() == found.spread_text() == "-"
    assert pool.state == "not run" and pool.expected == 8
    assert verdict(pool, estimate(pool, "success")) == "Not run."


def test_a_group_counts_once(tmp_path):
    def rows(cell):
        return made_studies.attack_rows(cell, [0.9, 0.9, 0.1, 0.1], group=[0, 0, 1, 1])

    found = estimate(pool_of(tmp_path, rows), "success")
    assert found.interval.groups == 2
    assert found.text() == "50% [0%, 100%]"


def test_floors_of_victims_to_come_are_not_compared(tmp_path):
    def rows(cell):
        found = made_studies.attack_rows(cell, [0.9, 0.9])
        return found + made_studies.floor_rows([0.2, 0.4, 0.9, 0.9])

    pool = pool_of(tmp_path, rows)
    assert estimate(pool, "ssim").floor.mean == pytest.approx(0.3)
    assert pool.state == "partial"


@pytest.mark.parametrize(
    ("differences", "low", "high"),
    (
        # Wilson's for 10 of 10: [.7225, 1].
        (np.ones(10), 0.7225, 1.0),
        (-np.ones(10), -1.0, -0.7225),
        (np.zeros(10), -0.2775, 0.2775),
    ),
)
def test_equal_differences_claim_no_certainty(differences, low, high):
    found = mean_difference(VALUES["success"], differences, np.arange(10))
    assert found.low == pytest.approx(low, abs=1e-4)
    assert found.high == pytest.approx(high, abs=1e-4)
    unknown = mean_difference(VALUES["ssim"], differences, np.arange(10))
    assert math.isnan(unknown.low) and unknown.estimate == differences[0]


@pytest.mark.parametrize("value", ["label_accuracy", "ssim", "label_multiset_accuracy"])
@pytest.mark.parametrize("difference", [0.5, 1.0, 0.0, -1.0])
def test_equal_differences_of_what_is_no_rate_are_not_known(value, difference):
    """A share of labels that is .5 higher in all victims is not [0, .278] higher."""
    found = mean_difference(VALUES[value], np.full(10, difference), np.arange(10))
    assert found.estimate == difference and found.method == "none"
    assert math.isnan(found.low) and math.isnan(found.high) and found.groups == 10


def test_half_is_no_difference_of_a_rate():
    found = mean_difference(VALUES["success"], np.full(10, 0.5), np.arange(10))
    assert found.estimate == 0.5 and math.isnan(found.low) and math.isnan(found.high)


def test_the_mean_of_no_difference_is_not_known():
    for differences in (np.zeros(0), np.array([math.nan, math.inf])):
        found = mean_difference(
            VALUES["ssim"], differences, np.arange(len(differences))
        )
        assert all(map(math.isnan, found[:3])) and found.method == "none"


def test_an_ssim_of_one_is_no_rate(tmp_path):
    pool = pool_of(tmp_path, attacked([1.0] * 4), attacked([1.0] * 4, 4))
    assert estimate(pool, "ssim").text() == "1.000 [?]"
    assert estimate(pool, "success").text() == "100% [68%, 100%]"


@pytest.mark.parametrize(
    ("version", "text"), ((3, "100% [?]"), (4, "100% [51%, 100%]"))
)
def test_labels_are_a_rate_since_rows_are_of_one_image(tmp_path, version, text):
    rows = attacked([0.5] * 4, label_accuracy=1.0, schema_version=version)
    assert estimate(pool_of(tmp_path, rows), "label_accuracy").text() == text


def test_one_group_says_nothing_of_differences():
    found = mean_difference(VALUES["success"], np.array([0.0, 1.0]), np.array([3, 3]))
    assert found.estimate == 0.5 and math.isnan(found.low)


def test_outcomes_and_verdict(pool):
    assert count_outcomes(pool) == (2, 0, 4, 2, 0)
    assert verdict(pool, estimate(pool, "success")) == (
        "Not told apart from its floor. 2 of 8 recovered. 2 of 8 ambiguous (matched "
        "but wrong): without any defence. 4 of 8 unsolved: no sign of protection."
    )


def test_verdicts_beside_the_floor(tmp_path):
    many = [0.9] * 8
    above = pool_of(
        tmp_path / "a", attacked(many, 0, [0.1] * 8, outcome="recovered"), victims=8
    )
    assert verdict(above, estimate(above, "success")) == (
        "Above its floor. All 8 recovered. Only 8 of 16 victims so far."
    )
    below = pool_of(
        tmp_path / "b",
        attacked([0.1] * 8, 0, many, outcome="unsolved"),
        attacked([0.1] * 8, 8, many, outcome="unsolved"),
        victims=8,
    )
    assert verdict(below, estimate(below, "success")) == (
        "Below its floor. All 16 unsolved: no sign of protection."
    )


def test_a_verdict_follows_the_scores_of_each_victim(tmp_path):
    """SSIM 1.000 against .756 succeeds no more often than its floor does."""
    floor = 0.756 + np.linspace(-0.1, 0.1, 16)
    halves = (slice(0, 8), slice(8, 16))
    pool = pool_of(
        tmp_path,
        *(
            attacked([1.0] * 8, half.start, list(floor[half]), outcome="recovered")
            for half in halves
        ),
        victims=8,
    )
    success, ssim = estimate(pool, "success"), estimate(pool, "ssim")
    assert (ssim.mean, ssim.floor.mean) == pytest.approx((1.0, 0.756))
    assert success.mean == success.floor.mean == 1
    words = (
        "SSIM: above its floor; SSIM >= .6: not told apart from its floor. "
        "All 16 recovered."
    )
    assert verdict(pool, ssim, success) == words
    assert make_line(pool, "psnr").reads == words


def test_a_difference_that_is_not_known_is_not_called_chance(tmp_path):
    rows = [[0.9] * 4, [0.5] * 4, [0.1] * 4]
    pool = pool_of(tmp_path, attacked(rows[0], 0, rows[1]))
    ssim = estimate(pool, "ssim")
    assert math.isnan(ssim.floor.excess.low)
    assert verdict(pool, ssim).startswith("Difference from its floor not known.")
    # Four of four against none of four.
    assert verdict(pool, ssim, estimate(pool, "success")).startswith("Above its floor.")


def test_an_interval_that_is_not_known_is_not_drawn(tmp_path):
    rows = made_studies.attack_rows
    lone = pool_of(tmp_path, lambda cell: rows(cell, [0.9, 0.1], group=3))
    success = estimate(lone, "success")
    assert success.text() == "50% [?]" and rate_marks(success)["interval"] is None
    assert all(map(math.isnan, interval_lengths(success)))
    pair = pool_of(tmp_path / "b", lambda cell: rows(cell, [0.9, 0.1]))
    success = estimate(pair, "success")
    low, high = rate_marks(success)["interval"]
    assert 0 < low < 50 < high < 100
    assert interval_lengths(success) == pytest.approx(((50 - low) / 100,) * 2, abs=1e-4)


@pytest.mark.parametrize(
    ("signs", "words"),
    (
        ((1, 1), "up"),
        ((None, -1), "down"),
        ((None, None), "unknown"),
        ((0, 0), "same"),
        ((None, 0), "a: unknown; b: same"),
        ((1, 0), "a: up; b: same"),
        ((1, -1), "a: up; b: down"),
    ),
)
def test_no_score_hides_another(signs, words):
    bounds = {1: (0.1, 0.3), -1: (-0.3, -0.1), 0: (-0.1, 0.3)}
    unknown = (math.nan, math.nan)
    found = {
        name: Interval(0.1, *bounds.get(sign, unknown), "none", 4)
        for name, sign in zip("ab", signs, strict=True)
    }
    said = {1: "up", -1: "down", 0: "same", None: "unknown"}
    assert [direction(interval) for interval in found.values()] == list(signs)
    assert read_differences(found, said) == words


def test_every_value_can_be_read_and_written(pool):
    for name in VALUES:
        assert numbers(pool.rows, name).shape == (8,)
        assert pool.values[name].written(0.25) != pool.values[name].written(math.nan)


def test_an_unknown_value_is_refused():
    with pytest.raises(ValueError, match="unknown value 'sim' .did you mean 'ssim'"):
        find_value("sim", VALUES)


def with_undefended(tmp_path, outcome, undefended, *, arms=("none", "keylock/known")):
    """Reads a cell of each arm, of the same four victims, as each pool reads."""
    axes = {"arm": {arm: {"arm": arm} for arm in arms}}
    folder = made_studies.make_folder(tmp_path / "study", axes, {"victims": 4})
    outcomes = dict(zip(arms, (undefended, outcome), strict=False))
    for number, cell in enumerate(store.read(folder).manifest["cells"]):
        found = outcomes[cell["point"]["arm"]]
        rows = attacked([0.3] * len(found), outcome=found)
        made_studies.write_part(folder, str(number), cell, rows(cell))
    study = store.read(folder)
    axes = axes_of(study.manifest)
    pools = make_pools(study, axes, [])
    return [
        verdict(pool, undefended=undefended)
        for pool, undefended in zip(pools, find_undefended(pools, axes), strict=True)
    ]


AMBIGUOUS = "ambiguous (matched but wrong)"


def test_matched_but_wrong_is_evidence_where_it_is_recovered_undefended(tmp_path):
    outcome = ["ambiguous", "ambiguous", "ambiguous", "unsolved"]
    undefended = ["recovered", "unsolved", "recovered_affine", "recovered"]
    assert with_undefended(tmp_path, outcome, undefended)[1].startswith(
        f"3 of 4 {AMBIGUOUS}: evidence for this arm in the 2 recovered undefended."
    )


def test_matched_but_wrong_undefended_too_is_no_evidence(tmp_path):
    undefended, locked = with_undefended(tmp_path, *(["ambiguous"] * 4,) * 2)
    assert undefended == f"All 4 {AMBIGUOUS}: without any defence."
    assert locked == (
        f"All 4 {AMBIGUOUS}: no evidence for this arm, none is recovered undefended."
    )


def test_victims_that_were_not_attacked_undefended_are_not_counted(tmp_path):
    locked = with_undefended(tmp_path, ["ambiguous"] * 4, ["recovered"] * 2)[1]
    assert locked == (
        f"All 4 {AMBIGUOUS}: evidence for this arm in the 2 of the 2 that were "
        "attacked undefended recovered undefended."
    )


def test_without_an_undefended_arm_matched_but_wrong_is_no_evidence(tmp_path):
    arms = ("gaussian-noise=0.1", "keylock/known")
    locked = with_undefended(tmp_path, ["ambiguous"] * 4, ["recovered"] * 4, arms=arms)[
        1
    ]
    assert locked == (
        f"All 4 {AMBIGUOUS}: no evidence for this arm, no undefended one was run here."
    )


def test_arms_of_other_victims_are_no_undefended_ones(tmp_path):
    points = {"none": {"arm": "none", "seed": 0}, "other": {"arm": "bn-control"}}
    axes = {"arm": points}
    folder = made_studies.make_folder(tmp_path / "study", axes, {"victims": 4})
    study = store.read(folder)
    axes = axes_of(study.manifest)
    assert find_undefended(make_pools(study, axes, []), axes) == [None, None]
