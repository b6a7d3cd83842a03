"""Rankings, the consistency index and RDLV, held against what a hand works out."""

import math

import made_studies
import numpy as np
import pytest

from kljax.studies import store
from kljax.studies.reports import write_report
from kljax.studies.reports.attackers import attacker_of
from kljax.studies.reports.axes import axes_of
from kljax.studies.reports.consistency import consistency_table, recovery_consistency
from kljax.studies.reports.contenders import find_accuracies
from kljax.studies.reports.pools import make_pools
from kljax.studies.reports.rankings import make_rankings
from kljax.studies.reports.ranks import rank
from kljax.studies.reports.relative import relative_leakage
from kljax.studies.reports.tables import to_csv
from kljax.studies.reports.tradeoffs import Tradeoff

GROUPS = np.arange(12)


def ones(count):
    """The first `count` of twelve victims leak."""
    return (GROUPS < count).astype(float)[None]


# --- ranks -----------------------------------------------------------------------


def test_items_that_are_far_apart_have_ranks_of_their_own():
    items = [ones(12), ones(0), ones(6)]
    found = rank(items, items, GROUPS)
    assert [found.text(i) for i in range(3)] == ["3", "1", "2"]
    assert found.mean_low.tolist() == found.mean_high.tolist() == [1, 0, 0.5]


def test_ties_share_an_interval():
    items = [ones(6), ones(6), ones(12)]
    found = rank(items, items, GROUPS)
    assert [found.text(i) for i in range(3)] == ["1-2", "1-2", "3"]


def test_a_small_difference_is_left_open_and_pairs_count():
    """One victim of twelve more; and 0.1 more on each of the same victims."""
    found = rank([ones(6), ones(7)], [ones(6), ones(7)], GROUPS)
    assert found.text(0) == found.text(1) == "1-2"
    spread = np.linspace(0, 0.8, 12)[None]
    found = rank([spread + 0.1, spread], [spread + 0.1, spread], GROUPS)
    assert found.text(0) == "2" and found.text(1) == "1"


def test_what_is_open_is_not_ranked():
    """Nothing leaked of the first, and nobody matched it: it may be the worst."""
    least, most = [ones(0), ones(6), ones(12)], [ones(12), ones(6), ones(12)]
    found = rank(least, most, GROUPS)
    assert [found.text(i) for i in range(3)] == ["1-3", "1-2", "2-3"]
    assert found.mean_high[0] == 1 and found.mean_low[0] == 0


def test_the_strongest_attacker_counts():
    weak_and_strong = np.concatenate([ones(0), ones(12)])
    items = [weak_and_strong, ones(6)]
    found = rank(items, items, GROUPS)
    assert [found.text(i) for i in range(2)] == ["2", "1"]


def test_groups_are_drawn_whole():
    """Twelve victims of two groups say less than twelve of their own."""
    items = [ones(6), ones(12)]
    assert rank(items, items, GROUPS).text(0) == "1"
    assert rank(items, items, np.repeat([0, 1], 6)).text(0) == "1-2"


@pytest.mark.parametrize(
    ("least", "message"),
    (
        ([], "0 items on 12 victims"),
        ([np.zeros(12)], r"least of item 0 is \(12,\)"),
        ([np.full((1, 12), np.nan)], "least of item 0 is not finite"),
    ),
)
def test_what_cannot_be_ranked_is_refused(least, message):
    with pytest.raises(ValueError, match=message):
        rank(least, least, GROUPS)


# --- consistency -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("recovered", "index", "agreement"),
    (
        # Each victim at all states or at none: perfect.
        ([[1, 1, 1], [0, 0, 0], [1, 1, 1], [0, 0, 0]], 1.0, 1.0),
        # One state recovers all, another none: the least of two states.
        ([[1, 0], [1, 0], [1, 0]], -1.0, 0.0),
        # Of three states the least is -1/2.
        ([[1, 0, 0], [1, 0, 0]], None, 1 / 3),
        # By hand: agreements 1, 1/3, 1; rate 4/9, chance 41/81.
        ([[1, 1, 1], [1, 0, 0], [0, 0, 0]], (7 / 9 - 41 / 81) / (40 / 81), 7 / 9),
    ),
)
def test_the_index_by_hand(recovered, index, agreement):
    found = recovery_consistency(np.array(recovered), np.arange(len(recovered)))
    if index is None:  # agreement 1/3, rate 1/3, chance 5/9
        index = (1 / 3 - 5 / 9) / (4 / 9)
        assert index == pytest.approx(-1 / 2)
    assert found.index.estimate == pytest.approx(index)
    assert found.agreement == pytest.approx(agreement)


def test_chance_gives_nothing_and_certainty_is_not_claimed():
    drawn = np.random.default_rng(0).random((20000, 3)) < 0.4
    found = recovery_consistency(drawn, np.arange(20000), resamples=50)
    assert abs(found.index.estimate) < 0.02
    assert found.index.low < found.index.estimate < found.index.high
    same = recovery_consistency(np.ones((4, 2)), np.arange(4))
    assert math.isnan(same.index.estimate) and same.agreement == 1


def test_one_state_is_refused():
    with pytest.raises(ValueError, match="S >= 2 states"):
        recovery_consistency(np.ones((3, 1)), np.arange(3))


# --- of a study ------------------------------------------------------------------

NOISE, PRUNED = "gaussian-noise=0.1", "magnitude-pruning=0.2"
AXES = {
    "arm": {
        arm: {"arm": arm}
        for arm in ("none", NOISE, PRUNED, f"{PRUNED}/unaware", "keylock/known")
    },
    "attack": {name: {"attack": name} for name in ("matching", "idlg")},
    "state": {str(r): {"round": r} for r in (0, 5)},
}
# Of twelve victims: how many leak, and what became of the others.
FOUND = {
    "none": (12, "unsolved"),
    NOISE: (2, "ambiguous"),
    PRUNED: (3, "unsolved"),
    f"{PRUNED}/unaware": (0, "ambiguous"),
}


def _left_out(config):
    """One attack on one arm, at the second state."""
    arm, attack = config["arms"][0], config["attack"]
    return (arm, attack, config["round"]) == (f"{PRUNED}/unaware", "idlg", 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run's client at two states; the lock was not attacked."""
    place = tmp_path_factory.mktemp("ranked") / "study"
    fixed = {"victims": 12, "from_run": "run"}
    made_studies.make_folder(place, AXES, fixed)
    for number, cell in enumerate(store.read(place).manifest["cells"]):
        arm, config = cell["config"]["arms"][0], cell["config"]
        if arm not in FOUND or _left_out(config):
            continue
        count, others = FOUND[arm]
        if config["attack"] == "idlg" and arm == "none":
            count, others = 4, "unsolved"
        if config["round"] == 5 and arm == NOISE:
            count = 0
        outcomes = ["recovered"] * count + [others] * (12 - count)
        ssim = [0.9] * count + [0.3] * (12 - count)
        rows = made_studies.attack_rows(cell, ssim, outcomes, evaluations=2000)
        rows += made_studies.floor_rows([0.4] * 12, "data_mean")
        made_studies.write_part(place, str(number), cell, rows)
    return place


@pytest.fixture(scope="module")
def rankings(folder):
    study = store.read(folder)
    axes = axes_of(study.manifest)
    return make_rankings(make_pools(study, axes, ()), axes)


def titled(rankings, *words):
    return [t for t in rankings if all(word in t.title for word in words)]


def texts(table):
    return [[entry.text for entry in line] for line in table.lines]


def test_each_kind_of_attacker_and_state_is_ranked_apart(rankings):
    for state in ("state=0", "state=5"):
        for attacker in ("unaware", "adaptive", "informed"):
            assert len(titled(rankings, "Defences", f"attacker {attacker}", state)) == 1
    (table,) = titled(rankings, "Defences", "attacker unaware", "state=0")
    assert "2000 evaluations offered" in table.title
    assert "labels=hidden" in table.title and "server=honest" in table.title


def test_unsolved_is_no_protection(rankings):
    """Of pruning 3 leaked, and the other 9 were never matched."""
    (table,) = titled(rankings, "Defences", "attacker adaptive", "state=0")
    lines = {line[1]: line for line in texts(table)}
    assert lines["none"][0] == "1-2" and lines[PRUNED][0] == "1-2"
    assert lines[PRUNED][3].startswith("25%") and lines[PRUNED][4] == "100%"
    assert lines[PRUNED][5] == "9 of 12"


def test_matched_but_wrong_counts_where_the_undefended_is_recovered(rankings):
    (table,) = titled(rankings, "Defences", "attacker unaware", "state=0")
    lines = {line[1]: line for line in texts(table)}
    # matching recovers all twelve undefended: what it has wrong is settled.
    assert lines[NOISE][0] == "1-2" and lines[NOISE][4].startswith("17%")
    assert lines[PRUNED][0] == "1-2" and lines[PRUNED][4].startswith("0%")
    assert lines["none"][0] == "3"
    assert lines["none"][2] == "none, matching"  # the strongest of two
    assert lines["none"][11] == "not run"  # no accuracy


def test_what_was_not_run_stands_there(rankings):
    (table,) = titled(rankings, "Defences", "attacker informed", "state=0")
    assert [line[0] for line in texts(table)].count("not run") == 2
    assert any("keylock/known, idlg" in line[1] for line in texts(table))


def test_who_was_attacked_by_fewer_may_leak_all(rankings):
    for state, rank_of_it, most in (
        ("state=0", "1-2", "0%"),
        ("state=5", "1-3", "100%"),
    ):
        (table,) = titled(rankings, "Defences", "attacker unaware", state)
        line = {line[1]: line for line in texts(table)}[PRUNED]
        assert (line[0], line[4]) == (rank_of_it, most)
    assert line[10] == f"1 of 2\n{PRUNED}/unaware by idlg: not run"


def test_accuracies_stand_beside_what_leaks(folder):
    study = store.read(folder)
    axes = axes_of(study.manifest)
    trained = Tradeoff(
        arm=f"{PRUNED}/unaware",
        defence=PRUNED,
        point={"attack": "idlg", "state": "0"},
        runs=("run",),
        accuracy=0.8,
        deviation=math.nan,
        success=None,
        score=None,
        outcomes=None,
    )
    accuracies = find_accuracies([trained, trained._replace(accuracy=0.9)], axes)
    found = make_rankings(make_pools(study, axes, ()), axes, accuracies)
    for state, expected in (("state=0", "85.0%"), ("state=5", "not run")):
        (table,) = titled(found, "Defences", "attacker unaware", state)
        assert {line[1]: line[11] for line in texts(table)}[PRUNED] == expected


def test_states_that_were_not_run_are_named(folder):
    study = store.read(folder)
    axes = axes_of(study.manifest)
    table = consistency_table(make_pools(study, axes, ())[::-1], axes)
    lines = {tuple(line[:2]): line for line in texts(table)}
    assert lines["keylock/known", "idlg"][2] == "not run"
    assert "state=5: not run" in lines[f"{PRUNED}/unaware", "idlg"][5]
    assert to_csv(table).count("\n") == 11  # a header, and 5 arms of 2 attacks


def test_attacks_are_ranked_on_the_same_arms(rankings):
    (table,) = titled(rankings, "Attacks", "attacker only", "state=0")
    first, second = texts(table)
    assert first[:2] == ["1", "matching"] and second[:2] == ["2", "idlg"]
    # All twelve, and yet no certainty: Wilson's interval of the one arm.
    assert first[2] == "100% [76%, 100%]"
    assert second[3] == "8 of 12" and second[5] == "0.400 (data_mean)"
    assert second[7] == "1 of 1"


def test_the_relative_leakage_is_a_ratio_of_means(folder):
    study = store.read(folder)
    axes = axes_of(study.manifest)
    pools = make_pools(study, axes, ())
    first = next(p for p in pools if p.point["attack"] == "idlg")
    # (4 * .9 + 8 * .3) / 12 = .5, over .4
    found = relative_leakage(first)
    assert found.estimate == pytest.approx(0.25)
    assert found.low < 0.25 < found.high
    waiting = next(p for p in pools if p.point["arm"] == "keylock/known")
    assert math.isnan(relative_leakage(waiting).estimate)


@pytest.mark.slow
def test_the_report_has_them(folder, tmp_path):
    page = write_report(store.read(folder), tmp_path / "report")
    text = (page.parent / "report.md").read_text()
    for words in (
        "## Rankings",
        "RDLV to data_mean",
        "## Are the same victims recovered at every state (state)?",
        "is our own",
    ):
        assert words in text
    assert (page.parent / "ranking-1.csv").exists()
    lines = (page.parent / "consistency.csv").read_text().splitlines()
    noise = next(line for line in lines if NOISE in line and "matching" in line)
    # 2 of 12 at one state, none at the other: agreement 10/12, rate 1/12
    index = (10 / 12 - 122 / 144) / (22 / 144)
    assert f"{index:.6f}"[:7] in noise
    assert 'id="ranking"' in page.read_text()


@pytest.mark.parametrize(
    ("arm", "attack", "attacker"),
    (
        ("none", "matching", "only"),
        ("gaussian-noise=0.1", "matching", "unaware"),
        ("gaussian-noise=0.1", "likelihood", "adaptive"),
        ("magnitude-pruning=0.2", "matching", "adaptive"),
        ("magnitude-pruning=0.2/unaware", "matching", "unaware"),
        ("adadefense/undo", "matching", "adaptive"),
        ("keylock/known", "matching", "informed"),
        ("keylock/regress_gates", "matching", "adaptive"),
        ("nobody:defence=3", "matching", "only"),
    ),
)
def test_attackers_by_what_they_know(arm, attack, attacker):
    assert attacker_of(arm, attack) == attacker
