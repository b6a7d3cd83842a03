"""The table of all defences: its lines come from the catalogue, none is made up."""

import sys
from pathlib import Path

import defence_costs
import defences as driver
import numpy as np
import pandas
import pytest
from faces import write_faces
from studies.contest_figures import (
    draw_attackers,
    draw_costs,
    draw_strengths,
    fails,
)
from studies.contest_tables import (
    NOTHING,
    accuracy_table,
    cells,
    cost_table,
    leakage_table,
    write_score,
)
from studies.contests import (
    METHODS,
    all_contests,
    closed_forms,
    contests,
    learned_inverters,
)

from kljax import data, metrics
from kljax.defences.catalogue import KINDS, write_strengths
from kljax.studies.builder.learning import check_learning
from kljax.studies.builder.run_setup import build_run_setup
from kljax.studies.config import LeakConfig, TrainConfig
from kljax.studies.reports.attackers import attacker_of
from kljax.studies.store.manifest import open_study
from kljax.studies.sweeps import expand, read_sweep

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.mark.parametrize("name", KINDS)
def test_every_defence_is_there_at_each_strength_with_who_knows_it(name):
    """A row that says why nobody can know it has no more than its public attackers."""
    found = contests(name)
    assert {c.combination for c in found} == set(write_strengths(name))
    assert {c.method for c in found} <= set(METHODS)
    who = {c.attacker for c in found}
    if KINDS[name].why_not_adaptive is None:
        assert {"unaware", "adaptive"} <= who
    else:
        assert who in ({"only"}, {"unaware", "adaptive"})
    assert len({(c.arm, c.method) for c in found}) == len(found)


def test_who_knows_a_defence_is_told_from_who_does_not():
    found = {(c.arm, c.method): c.attacker for c in all_contests()}
    assert found["keylock/unit", "search"] == "unaware"
    assert found["keylock/known", "search"] == "informed"
    assert found["keylock/regress_gates", "search"] == "adaptive"
    assert found["precode=beta=0.001/read_noise", "search"] == "adaptive"
    assert found["quantise=2/unaware", "search"] == "unaware"
    assert found["gaussian-noise=0.1", "search"] == "unaware"
    assert found["gaussian-noise=0.1", "density"] == "adaptive"
    assert found["example-clipping=1", "search"] == "adaptive"
    assert found["obscured-inputs=weight=1/simulate", "inputs"] == "adaptive"
    assert found["selective-random=0.5/unaware", "search"] == "unaware"
    assert ("keylock/extract", "search") not in found
    assert ("none", "density") not in found


def test_reports_tell_attackers_apart_in_the_same_way():
    """`kljax report` reads off an arm what this table says when it makes the arm."""
    for contest in all_contests():
        found = attacker_of(contest.arm, driver.ATTACKS[contest.method])
        assert found == contest.attacker, contest


def test_closed_forms_are_tried_at_the_middle_strength():
    assert [c.arm for c in closed_forms("quantise")] == ["quantise=8"]
    assert [c.arm for c in closed_forms("gaussian-noise")] == ["gaussian-noise=0.01"]


def test_an_inverter_is_trained_under_the_middle_strength_of_what_it_can_learn():
    def arms(name):
        return [(c.arm, c.attacker) for c in learned_inverters(name)]

    assert arms("none") == [("none", "only")]
    assert arms("quantise") == [("quantise=8", "adaptive")]
    assert arms("keylock") == [("keylock/unit", "adaptive")]
    assert arms("fedpass") == [("fedpass=64/unit", "adaptive")]
    assert arms("precode") == [("precode=beta=0.001/mean", "adaptive")]
    # What takes the place of inputs is not what is asked for.
    assert not arms("mixup") and not arms("obscured-inputs")


def test_an_inverter_is_of_one_network(few, tmp_path):
    part = driver.Part("digits", "fresh", "learned")
    cells = expand(read_sweep(driver.sweep_file(part, tmp_path))).cells
    assert [cell.config.arms[0] for cell in cells] == ["none", "gaussian-noise=0.01"]
    assert {cell.config.weights for cell in cells} == {"shared"}


def test_an_attack_without_a_label_failed_as_one_that_did_not_match():
    """Where the classifier's gradient is hidden no rule finds labels: it diverges."""
    outcomes = ["recovered", "unsolved", "diverged", "ambiguous"]
    found = fails(pandas.DataFrame({"outcome": outcomes}))
    assert list(found) == [False, True, True, False]


def test_scores_that_are_all_the_same_have_no_interval():
    same, other = (
        metrics.interval(np.array(x), np.arange(3), rate=False)
        for x in ([1.0, 1.0, 1.0], [0.0, 0.5, 1.0])
    )
    assert write_score(same) == "1.000"
    assert write_score(other).startswith("0.500 [0.")


def test_an_arm_in_which_nothing_is_found_has_no_scores():
    own = pandas.DataFrame(
        {"outcome": ["diverged"] * 3, "group": range(3), "psnr": [np.nan] * 3}
        | {score: [np.nan] * 3 for score in ("ssim", "ssim_affine_oracle")}
    )
    assert cells(own)[0] == "0/3" and cells(own)[-3:] == ["-", "-", "-"]
    some = own.assign(ssim=[0.5, 0.7, np.nan])
    assert cells(some)[-3].startswith("0.600 [0.5")


# --- the parts -------------------------------------------------------------------


def test_parts_of_what_cannot_be_trained_are_not_there():
    names = [part.name for part in driver.parts()]
    assert len(set(names)) == len(names)
    assert {"digits-fresh-search", "digits-training", "digits-trained-closed"} < {
        *names
    }
    assert "photos-fresh-search" in names
    assert not any(name.startswith("photos-train") for name in names)
    # An inverter is not trained for clients of a run: every such cell was refused.
    assert "digits-fresh-learned" in names and "digits-trained-learned" not in names
    with pytest.raises(ValueError, match="clients of a run are not simulated"):
        check_learning(LeakConfig(attack="learned", from_run="runs/any"))


@pytest.mark.parametrize("name", driver.DATASETS)
def test_every_dataset_is_one_of_studies_and_of_trainings(name):
    source = driver.DATASETS[name]
    LeakConfig(**source["both"], **source["leak"])
    if "train" in source:
        config = TrainConfig(**source["both"], **source["train"])
        assert config.rounds == 20


@pytest.fixture
def few(monkeypatch):
    """A catalogue of few defences, so that few arms are built."""
    names = ("none", "gaussian-noise", "mixup")
    few = {name: KINDS[name] for name in names}
    monkeypatch.setattr("studies.contests.KINDS", few)
    monkeypatch.setattr(driver, "KINDS", few)
    tiny = {"model": "dense", "image_size": 8, "data": "digits", "seed": 0}
    source = {"both": tiny, "leak": {"victims": 2, "steps": 2}}
    monkeypatch.setattr(
        driver, "DATASETS", {"digits": source | {"train": {"rounds": 1, "batch": 16}}}
    )


def test_an_attack_is_a_sweep_of_what_is_not_refused(few, tmp_path):
    part = driver.Part("digits", "fresh", "search")
    cells = expand(read_sweep(driver.sweep_file(part, tmp_path))).cells
    assert [cell.config.arms[0] for cell in cells] == [
        "none",
        *(f"gaussian-noise={std}" for std in (0.001, 0.01, 0.1)),
    ]
    assert {cell.config.attack for cell in cells} == {"matching"}
    # One example cannot be mixed with others.
    refused = driver.refusal("dense", contests("mixup")[0])
    assert "mixup mixes 2 images" in refused


def test_a_trained_client_is_that_of_the_same_defence(few, tmp_path, monkeypatch):
    part = driver.Part("digits", "trained", "density")
    assert driver.points_of(part, tmp_path, middle=False) == {}
    assert driver.run(part, tmp_path, hours=1)  # what was not trained is not attacked
    monkeypatch.setattr(driver, "is_trained", lambda folder: True)
    cells = expand(read_sweep(driver.sweep_file(part, tmp_path))).cells
    folders = {cell.config.arms[0]: cell.config.from_run for cell in cells}
    trained = [folder for folder, _ in driver.trainings("digits", tmp_path)]
    assert len(folders) == 3 and set(folders.values()) < {str(f) for f in trained}
    assert folders["gaussian-noise=0.1"].endswith("gaussian-noise_0.1")
    assert {cell.config.round for cell in cells} == {1}


def test_the_middle_strength_is_run_alone_and_gone_on_with(few, tmp_path):
    part = driver.Part("digits", "fresh", "search")

    def arms(*, middle):
        file = driver.sweep_file(part, tmp_path, middle=middle)
        read = read_sweep(file)
        open_study(tmp_path / part.name, read, expand(read))
        return [cell.config.arms[0] for cell in expand(read).cells]

    assert arms(middle=True) == ["none", "gaussian-noise=0.01"]
    assert len(arms(middle=False)) == 4  # it only grew
    told = [c.arm for c in driver.possible(part, middle=True)]
    assert told == ["none", "gaussian-noise=0.01"]
    trained = driver.trainings("digits", tmp_path, middle=True)
    names = [folder.name for folder, _ in trained]
    assert names == ["none", "gaussian-noise_0.01", "mixup_alpha_1"]


def test_some_defences_are_run_and_gone_on_with(few, tmp_path):
    part = driver.Part("digits", "fresh", "search")
    some = {"middle": True, "names": ["gaussian-noise"]}
    assert [*driver.points_of(part, tmp_path, **some)] == ["gaussian-noise=0.01"]
    read = read_sweep(driver.sweep_file(part, tmp_path, **some))
    open_study(tmp_path / part.name, read, expand(read))
    more = read_sweep(driver.sweep_file(part, tmp_path, middle=True, names=["none"]))
    open_study(tmp_path / part.name, more, expand(more))
    assert len(expand(more).cells) == 2  # it only grew
    (trained,) = driver.trainings("digits", tmp_path, **some)
    assert trained[0].name == "gaussian-noise_0.01"


def test_what_has_a_budget_of_its_own_has_a_table_of_its_own():
    sections = {part.name: part.section for part in driver.parts()}
    assert sections["digits-fresh-search"] == sections["digits-fresh-closed"] == "fresh"
    assert sections["digits-fresh-learned"] == "fresh-learned"
    assert sections["digits-trained-inputs"] == "trained-inputs"
    assert sections["digits-training"] == "training"
    assert {*sections.values()} == {*driver.TITLES}


def test_a_study_that_was_begun_keeps_what_the_catalogue_has_no_more(
    few, tmp_path, monkeypatch
):
    part = driver.Part("digits", "fresh", "search")
    read = read_sweep(driver.sweep_file(part, tmp_path))
    open_study(tmp_path / part.name, read, expand(read))
    fewer = {"none": KINDS["none"], "norm-clipping": KINDS["norm-clipping"]}
    monkeypatch.setattr("studies.contests.KINDS", fewer)
    again = read_sweep(driver.sweep_file(part, tmp_path))
    arms = [cell.config.arms[0] for cell in expand(again).cells]
    assert "gaussian-noise=0.1" in arms and "norm-clipping=4/unaware" in arms
    open_study(tmp_path / part.name, again, expand(again))  # it only grew
    told = [contest.arm for contest in driver.possible(part)]
    assert "gaussian-noise=0.1" not in told


@pytest.mark.slow
def test_the_driver_runs_trains_and_tables(few, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ":".join(map(str, sys.path)))
    monkeypatch.setattr(driver, "METHODS", ("search",))
    # A cost is measured of the whole catalogue, in a process of its own.
    only = [part.name for part in driver.parts() if part.job != "cost"]
    arguments = ["defences.py", "--out", tmp_path / "o", "--tables", tmp_path / "t"]
    arguments = map(str, [*arguments, "--only", *only])
    monkeypatch.setattr(sys, "argv", list(arguments))
    driver.main()
    tables = tmp_path / "t"
    for section in ("fresh", "trained"):
        text = (tables / f"digits-{section}.md").read_text(encoding="utf-8")
        assert text.count("| `gaussian-noise=") == 3 and text.count("/2") == 4
    # What defences keep was measured, of mixup, too; what they cost was not.
    kept = (tables / "digits-training.md").read_text(encoding="utf-8")
    assert "not run" not in kept and "| `mixup" in kept
    assert not (tables / "digits-cost.md").exists()


# --- the tables ------------------------------------------------------------------


def rows(arm, outcomes, ssim):
    return pandas.DataFrame(
        {
            "cell": "c",
            "arm": arm,
            "outcome": outcomes,
            "group": range(len(outcomes)),
            "ssim": ssim,
            "ssim_affine_oracle": ssim,
            "psnr": 10.0,
        }
    )


def test_a_line_has_its_interval_and_stands_above_its_floor():
    found = pandas.concat(
        [
            rows("none", ["recovered"] * 3 + ["unsolved"], [1.0, 0.9, 0.8, 0.1]),
            rows("floor/grey", [None] * 4, [0.2] * 4),
        ]
    )
    lines = leakage_table(
        contests("none") + contests("keylock"), {"density": NOTHING, "search": found}
    )
    none, unit, *_, floor = lines.splitlines()[2:]
    cells = [cell.strip() for cell in none.split("|")[1:-1]]
    assert cells[4:10] == ["3/4", "0", "75% [30%, 95%]", "1", "0", "0"]
    assert cells[10].startswith("0.700 [")
    assert cells[11] == cells[10]
    assert "not run" in unit and "0.200" in floor and "floor grey" in floor


def test_pictures_have_what_was_run_and_no_more(tmp_path):
    contests_ = contests("gaussian-noise")
    own = [
        rows(c.arm, ["recovered", "unsolved"], [0.9, 0.1])
        for c in contests_
        if c.combination.endswith("0.01")
    ]
    floor = rows("floor/grey", [None] * 2, [0.2, 0.2])
    found = {
        "search": pandas.concat([own[0], floor]),
        "density": pandas.concat([own[1], floor]),
        "inputs": NOTHING,
    }
    for draw in (draw_attackers, draw_strengths):
        file = tmp_path / f"{draw.__name__}.png"
        assert draw(contests_, found, file) and file.stat().st_size > 1000
        file.unlink()
        assert not draw(contests_, dict.fromkeys(found, NOTHING), file)
        assert not file.exists()
    cost = {"times": 1.0, "times_low": 0.9, "times_high": 1.1, "dense": 8, "coded": 0}
    file = tmp_path / "costs.png"
    assert not draw_costs({}, file) and not file.exists()
    assert draw_costs({"none": cost, "quantise=2": cost}, file) and file.exists()


def test_what_was_not_measured_is_not_run():
    cost = {"times": 2.0, "times_low": 1.5, "times_high": 3.0}
    cost |= {"dense": 4000, "coded": 1000, "hidden": 0.5}
    costs = {"b": cost, "c": {"refused": "it has no step"}}
    first, second, third, _, why = cost_table(["a", "b", "c"], costs).splitlines()[2:]
    assert "refused" in third and why == "- `c` is refused: it has no step"
    assert "not run" in first and "2.00 [1.50, 3.00]" in second
    assert "4,000" in second and "1,000" in second and "50%" in second
    first, second = accuracy_table(["a", "b"], {"a": 91.25}).splitlines()[2:]
    assert "91.2" in first and "not run" in second


def test_tables_of_which_nothing_was_begun_are_not_written(tmp_path):
    assert driver.write_pages("digits", tmp_path) == {}
    (tmp_path / "digits-cost.json").write_text('{"none": {"refused": "no step"}}')
    pages = driver.write_pages("digits", tmp_path)
    assert list(pages) == ["cost"] and "`none` is refused: no step" in pages["cost"]


def test_a_table_at_the_middle_strength_keeps_what_was_computed_at_others(
    few, tmp_path, monkeypatch
):
    part = driver.Part("digits", "fresh", "search")
    read = read_sweep(driver.sweep_file(part, tmp_path))
    open_study(tmp_path / part.name, read, expand(read))
    strong = rows("gaussian-noise=0.1", ["unsolved"] * 2, [0.1, 0.2])
    monkeypatch.setattr(driver, "rows_of", lambda study: strong)
    trained = {"none": 98.0, "gaussian-noise=0.1": 95.0}
    monkeypatch.setattr(driver, "accuracies", lambda data, out: trained)
    pages = driver.write_pages("digits", tmp_path, middle=True)
    for name, words in (("fresh", "0/2"), ("training", "95.0")):
        (line,) = [row for row in pages[name].splitlines() if "noise=0.1`" in row]
        assert words in line
        # What is neither asked for nor there takes no line.
        assert "noise=0.01`" in pages[name] and "noise=0.001`" not in pages[name]
        assert driver.AND_MORE in pages[name] and driver.MIDDLE not in pages[name]


def test_a_table_of_the_middle_strength_says_so(few, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "accuracies", lambda data, out: {"none": 98.0})
    (page,) = driver.write_pages("digits", tmp_path, middle=True).values()
    assert driver.MIDDLE in page and driver.AND_MORE not in page


# --- cost ------------------------------------------------------------------------


@pytest.mark.parametrize("bits", (2, 4, 8, 12, 16))
def test_what_lies_on_a_grid_is_sent_by_its_levels(bits):
    draws = np.random.default_rng(bits).normal(size=2000).astype(np.float32)
    step = np.abs(draws).max() / (2 ** (bits - 1) - 1)
    sent = (np.round(draws / step) * step).astype(np.float32)
    assert 250 * (bits - 1) <= defence_costs.coded_bytes(sent) <= 250 * bits + 8


def test_codes_of_what_lies_on_no_grid():
    dense = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    assert defence_costs.coded_bytes(dense) == 4000
    assert (
        defence_costs.coded_bytes(dense.astype(np.float16).astype(np.float32)) == 2000
    )
    sparse = np.where(np.arange(1000) % 100 == 0, dense, 0).astype(np.float32)
    assert defence_costs.coded_bytes(sparse) == 80
    assert defence_costs.coded_bytes(np.zeros(80, np.float32)) == 0


@pytest.mark.slow
def test_a_step_is_measured_and_one_that_cannot_be_says_why():
    tiny = {"model": "dense", "image_size": 8, "arms": ("none",), "batch": 4}
    setup = build_run_setup(TrainConfig(**tiny))
    arms = {
        name: defence_costs.read_arm(setup, name)
        for name in ("dp-sgd", "top-k@update", "selective-random=0.5")
    }
    none = defence_costs.read_arm(setup, "none")
    plain = defence_costs.make_step(setup, none)
    found = {
        name: defence_costs.measure_arm(setup, arm, plain, 1)
        for name, arm in arms.items()
    }
    assert "whole change" in found["top-k@update"]["refused"]
    assert found["dp-sgd"]["seconds"] > 0  # it is told the batch
    encrypted = found["selective-random=0.5"]
    assert encrypted["coded"] == encrypted["dense"] == 4 * 13_002
    assert type(encrypted["hidden"]) is float and 0.49 < encrypted["hidden"] < 0.51


def test_faces_are_a_dataset(tmp_path):
    write_faces(tmp_path / "faces.npz")
    faces = data.load(str(tmp_path / "faces.npz"), shape=(16, 16, 3))
    assert len(faces) == 200 and faces.num_classes == 2
