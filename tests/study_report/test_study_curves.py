"""Success against budget, and against accuracy."""

import dataclasses
import json

import made_studies
import numpy as np
import pytest

from kljax.studies import store
from kljax.studies.config import LeakConfig, TrainConfig
from kljax.studies.reports import write_report
from kljax.studies.reports.axes import axes_of
from kljax.studies.reports.budgets import budgets_table, make_curves
from kljax.studies.reports.contents import make_contents
from kljax.studies.reports.pairing import (
    NEITHER,
    OF_ATTACK,
    OF_GATES,
    OF_TRAINING,
    network_differences,
)
from kljax.studies.reports.pools import make_pools
from kljax.studies.reports.tradeoffs import (
    make_tradeoffs,
    read_runs,
    tradeoffs_table,
    unpaired,
)

ARMS = {arm: {"arm": arm} for arm in ("none", "keylock/known", "keylock/fixed_mean")}
BUDGETS = {
    "last": {"steps": 100, "restarts": 4},
    "first": {"steps": 100},
    "half": {"steps": 200},
    "almost": {"steps": 300},
}


def pools_of(tmp_path, axes, succeed, fixed=None, victims=4):
    """Pools a study of which the first `succeed(config)` victims succeed."""
    fixed = {"victims": victims} | (fixed or {})
    folder = made_studies.make_folder(tmp_path / "study", axes, fixed)
    for number, cell in enumerate(store.read(folder).manifest["cells"]):
        count = succeed(cell["config"])
        if count is None:
            continue
        ssim = [0.9] * count + [0.1] * (victims - count)
        rows = made_studies.attack_rows(cell, ssim)
        rows += made_studies.floor_rows([0.7] + [0.1] * (victims - 1))
        made_studies.write_part(folder, str(number), cell, rows)
    study = store.read(folder)
    axes = axes_of(study.manifest)
    return make_pools(study, axes, []), axes


def test_a_curve_goes_from_the_smallest_budget_to_the_largest(tmp_path):
    axes = {"arm": {"none": {"arm": "none"}}, "budget": BUDGETS}
    counts = {100: 1, 200: 2, 300: 2, 400: 4}
    pools, axes = pools_of(
        tmp_path, axes, lambda config: counts[config["steps"] * config["restarts"]]
    )
    (curve,) = make_curves(pools, axes)
    assert [point.evaluations for point in curve.points] == [100, 200, 300, 400]
    assert [point.success.mean for point in curve.points] == [0.25, 0.5, 0.5, 1.0]
    # The largest budget of at most half of the last: 200, not 300.
    assert curve.doubling.label == "half"
    assert curve.gain.estimate == 0.5
    assert curve.reads().startswith("from 200 to 400 evaluations: +50 points")
    table = budgets_table([curve])
    assert [line[2].text for line in table.lines][-1] == "4 x 100 = 400"
    assert table.lines[0][3].text.startswith("25% [")
    assert table.lines[0][4].text == "25% (class_mean)"
    assert table.records[-1]["gain"] == 0.5 and table.records[-1]["gain_from"] == 200
    assert table.records[0]["gain"] is None


@pytest.mark.parametrize(
    ("last", "words"),
    (
        (20, "still rising, so the last rate is a lower bound"),
        (3, "no rise beyond chance"),
        (0, "no rise beyond chance"),
    ),
)
def test_what_the_last_doubling_brought(tmp_path, last, words):
    axes = {"arm": {"none": {"arm": "none"}}, "steps": {}}
    axes["steps"] = {str(n): {"steps": n} for n in (100, 200)}
    pools, axes = pools_of(
        tmp_path, axes, lambda c: last if c["steps"] == 200 else 0, victims=20
    )
    (curve,) = make_curves(pools, axes)
    assert curve.reads().endswith(words)


def curve_of(tmp_path, before, after):
    """Makes a curve of one arm from the SSIM of each victim at two budgets."""
    axes = {"arm": {"none": {"arm": "none"}}, "steps": {}}
    axes["steps"] = {str(n): {"steps": n} for n in (100, 200)}
    folder = made_studies.make_folder(tmp_path / "study", axes, {"victims": 12})
    cells = store.read(folder).manifest["cells"]
    for number, (cell, rows) in enumerate(zip(cells, (before, after), strict=True)):
        made_studies.write_part(folder, str(number), cell, rows(cell))
    study = store.read(folder)
    axes = axes_of(study.manifest)
    (curve,) = make_curves(make_pools(study, axes, []), axes)
    return curve


def test_a_rise_that_cannot_be_computed_is_not_called_chance(tmp_path):
    """Crops of one photograph are one group, from which no spread can be seen."""

    def rows(ssim):
        return lambda cell: made_studies.attack_rows(cell, ssim, group=0)

    low, high = [0.1] * 12, [0.9] * 8 + [0.2] * 4
    curve = curve_of(tmp_path, rows(low), rows(high))
    assert np.isnan(curve.gain.low) and np.isnan(curve.score_gain.low)
    assert curve.reads().endswith(
        "+67 points, SSIM +0.567; whether it rises is not known"
    )


def test_success_of_all_hides_no_rise(tmp_path):
    def rows(ssim):
        return lambda cell: made_studies.attack_rows(cell, ssim)

    low = list(np.linspace(0.62, 0.78, 12))
    curve = curve_of(tmp_path, rows(low), rows([1.0] * 12))
    assert curve.reads().endswith(
        "+0 points, SSIM +0.300; SSIM: still rising; success: no rise beyond chance; "
        "the last scores are lower bounds"
    )
    record = budgets_table([curve]).records[-1]
    assert record["ssim_gain"] == pytest.approx(0.3) and record["ssim_gain_low"] > 0.2


def test_budgets_without_a_victim_in_common_say_so(tmp_path):
    def rows(first):
        def of(cell):
            found = made_studies.attack_rows(cell, [0.5] * 4)
            return [row | {"victim": row["victim"] + first} for row in found]

        return of

    curve = curve_of(tmp_path, rows(0), rows(4))
    assert curve.reads().endswith(
        "200 evaluations: not known, no victim has spent both"
    )
    assert budgets_table([curve]).records[-1]["gain"] is None


def test_no_doubling_no_words_about_it(tmp_path):
    axes = {"arm": {"none": {"arm": "none"}}}
    axes["steps"] = {str(n): {"steps": n} for n in (100, 150)}
    (curve,) = make_curves(*pools_of(tmp_path, axes, lambda config: 1))
    assert curve.doubling is None and "it cannot be said" in curve.reads()


def test_every_arm_has_its_curve_and_one_point_is_none(tmp_path):
    axes = {"arm": ARMS, "budget": {k: BUDGETS[k] for k in ("first", "half")}}

    def succeed(config):
        lone = config["arms"][0] == "keylock/known" and config["steps"] == 200
        return None if lone else 2

    curves = make_curves(*pools_of(tmp_path, axes, succeed))
    assert [curve.arm for curve in curves] == ["none", "keylock/fixed_mean"]
    assert [curve.name for curve in curves] == ["none", "keylock/fixed_mean"]


def write_run(folder, accuracy, finished=True, more=None, measure=None, **config):
    """Writes a training of which only config and accuracies are true.

    Its network is that of the studies here, with the weights that they draw.
    """
    folder.mkdir(parents=True)
    config = {"job": "train"} | dataclasses.asdict(
        TrainConfig(**{"init": 0.5} | config)
    )
    config |= more or {}
    (folder / "config.json").write_text(json.dumps(config))
    tests = {
        arm: {"own": {"mean": mean, "std": 0.0, "values": [mean]}}
        for arm, mean in accuracy.items()
    }
    if finished:
        speed = dict.fromkeys(
            ("clients_per_s", "examples_per_s", "compile_s", "run_s"), 1.0
        )
        speed["device"] = "cpu: cpu"
        summary = {"accuracy": tests, "throughput": speed, "config": config}
        summary |= {} if measure is None else {"measure": measure}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_accuracies_of_repetitions_are_averaged(tmp_path):
    pools, axes = pools_of(tmp_path, {"arm": ARMS}, lambda config: 1)
    runs = read_runs(
        [
            write_run(tmp_path / "a", {"none": 0.9, "keylock": 0.8}, seed=0),
            write_run(tmp_path / "b", {"none": 0.8, "keylock": 0.6}, seed=1),
            write_run(tmp_path / "c", {"none": 0.99}, data="fashion_mnist"),
        ]
    )
    found = make_tradeoffs(pools, axes, runs)
    assert [(t.arm, t.defence) for t in found] == [
        ("none", "none"),
        ("keylock/known", "keylock"),
        ("keylock/fixed_mean", "keylock"),
    ]
    assert [t.accuracy for t in found] == pytest.approx([0.85, 0.7, 0.7])
    assert found[0].deviation == pytest.approx(0.1 / 2**0.5)
    assert found[0].runs == ("a", "b") and found[0].success.mean == 0.25
    line = tradeoffs_table(found).lines[0]
    assert [entry.text for entry in line[1:4]] == ["none", "a, b", "85.0% ± 7.1 points"]


def test_what_is_no_accuracy_is_not_called_so(tmp_path):
    _, axes = pools_of(tmp_path, {"arm": ARMS}, lambda config: 1)
    study = store.read(tmp_path / "study")
    run = write_run(tmp_path / "run", {"none": 0.4}, measure="R2")
    contents = make_contents(study, runs=[run])
    table = contents.tradeoffs
    assert "R2" in table.header and "accuracy" not in table.header
    assert [line["measure"] for line in table.records] == ["R2"]
    said = [table.title, contents.tradeoff_figure.title, contents.tradeoff_figure.alt]
    said += [contents.tradeoff_figure.light.decode(), contents.tradeoff_notes[0]]
    assert all("R2" in words and "ccuracy" not in words for words in said)
    page = write_report(study, runs=[run])
    for text in (page.read_text(), (page.parent / "report.md").read_text()):
        assert "Privacy against R2" in text and "Privacy against accuracy" not in text
    other = write_run(tmp_path / "other", {"none": 0.9}, learning_rate=0.2)
    both = make_contents(study, runs=[run, other])
    assert "R2 or accuracy" in both.tradeoffs.header
    assert [line["measure"] for line in both.tradeoffs.records] == ["R2", "accuracy"]


def test_trainings_that_differ_in_more_than_the_seed_stay_apart(tmp_path):
    axes = {"arm": {"none": {"arm": "none"}}}
    pools, axes = pools_of(tmp_path, axes, lambda config: 1)
    runs = read_runs(
        [
            write_run(tmp_path / "a", {"none": 0.9}, learning_rate=0.1),
            write_run(tmp_path / "b", {"none": 0.8}, learning_rate=0.2),
        ]
    )
    found = make_tradeoffs(pools, axes, runs)
    assert [(t.runs, t.accuracy) for t in found] == [(("a",), 0.9), (("b",), 0.8)]


# Another value of each field that both configurations have.
OTHER = {
    "model": "dense",
    "data": "photos",
    "init": 0.0,
    "lock_init": 0.5,
    "lock_activation": "sigmoid",
    "private_key_size": 9,
    "sites": ["fc1"],
    "chained": True,
    "loss": "mine:loss",
    "image_size": 16,
    "image_width": 24,
    "channels": 1,
    "tokens": 9,
    "precision": "high",
}
# Another value of a field that trainings alone have, and that changes what is trained.
OTHER_NETWORK = {"normalise": "cifar10", "augment": "crop_flip"}


def test_every_field_separates_unless_it_is_known_to_say_nothing():
    """A field that is added needs a row above, or in the lists of pairing."""
    fields = [
        {field.name for field in dataclasses.fields(kind)}
        for kind in (LeakConfig, TrainConfig)
    ]
    for names, said in zip(fields, (OF_ATTACK, OF_TRAINING), strict=True):
        assert said <= names and not said & NEITHER
    left, right = fields[0] - NEITHER - OF_ATTACK, fields[1] - NEITHER - OF_TRAINING
    assert left == OTHER.keys() and right == OTHER.keys() | OTHER_NETWORK.keys()


@pytest.mark.parametrize("name", [*OTHER, *OTHER_NETWORK])
def test_another_network_is_not_paired(tmp_path, name):
    axes = {"arm": {"lock": {"arm": "keylock/known"}}}
    pools, axes = pools_of(tmp_path, axes, lambda config: 1)
    other = {**OTHER, **OTHER_NETWORK}[name]
    runs = read_runs(
        [
            write_run(tmp_path / "same", {"keylock": 0.9}),
            write_run(tmp_path / "other", {"keylock": 0.8}, more={name: other}),
        ]
    )
    (found,) = make_tradeoffs(pools, axes, runs)
    assert found.runs == ("same",)
    assert make_tradeoffs(pools, axes, runs[1:]) == []
    (words,) = unpaired(pools, runs[1:])
    assert words.startswith(f"keylock (other: {name} is ") and repr(other) in words
    assert unpaired(pools, runs) == []


@pytest.mark.parametrize(
    ("arm", "gated"),
    [
        ("none", False),
        ("bn-control+gaussian-noise=0.1", False),
        ("gaussian-noise@update=0.1", False),
        ("plaintext-gates", True),
        ("keylock+gaussian-noise=0.1/known", True),
        ("mine:defence", True),
    ],
)
def test_a_lock_separates_no_networks_without_gates(tmp_path, arm, gated):
    """Where a private key is shorter, the arm without one is what it was."""
    axes = {"arm": {"one": {"arm": arm}}}
    pools, axes = pools_of(tmp_path, axes, lambda config: 1)
    trained = {arm.partition("/")[0]: 0.9}
    for name in OF_GATES:
        more = {name: OTHER[name]}
        run = write_run(tmp_path / name, trained, more=more)
        found = make_tradeoffs(pools, axes, read_runs([run]))
        assert len(found) == (not gated), name


def test_a_field_of_another_version_separates(tmp_path):
    axes = {"arm": {"none": {"arm": "none"}}}
    pools, axes = pools_of(tmp_path, axes, lambda config: 1)
    runs = [write_run(tmp_path / "new", {"none": 0.9}, more={"flux": 3})]
    assert make_tradeoffs(pools, axes, read_runs(runs)) == []
    attacked = pools[0].cells[0]["config"]
    trained = read_runs(runs)[0].config
    assert network_differences(attacked | {"flux": 3}, trained) == []
    old = {name: value for name, value in trained.items() if name != "flux"}
    del old["chained"]  # as by default
    assert network_differences(attacked, old) == []
    assert len(network_differences(attacked | {"chained": True}, old)) == 1


@pytest.mark.parametrize("kind", ("image", "text", None))
def test_weights_that_follow_from_the_data_pair_by_the_kind_of_inputs(kind):
    attacked = {"model": "mine:Net", "data": "mine:data", "init": None}
    for limit in (0.0, 0.5):
        trained = attacked | {"init": limit}
        same = kind is None or (kind == "image") == (limit == 0.5)
        found = network_differences(attacked, trained, kind=kind)
        assert (found == []) == same, (limit, found)


def test_how_it_was_trained_or_attacked_separates_nothing(tmp_path):
    axes = {"arm": {"none": {"arm": "none"}}}
    fixed = {"steps": 7, "examples": 2, "weights": "shared", "victims": 4}
    pools, axes = pools_of(tmp_path, axes, lambda config: 1, fixed)
    options = {"rounds": 3, "batch": 8, "learning_rate": 0.1, "examples": 100}
    run = write_run(tmp_path / "run", {"none": 0.9}, **options)
    assert len(make_tradeoffs(pools, axes, read_runs([run]))) == 1


def test_arms_are_paired_as_they_are_written(tmp_path):
    arms = {arm: {"arm": arm} for arm in ("gaussian-noise=0.01", "gaussian-noise=0.1")}
    pools, axes = pools_of(tmp_path, {"arm": arms}, lambda config: 1)
    runs = read_runs([write_run(tmp_path / "run", {"gaussian-noise=0.1": 0.7})])
    (found,) = make_tradeoffs(pools, axes, runs)
    assert found.arm == found.defence == "gaussian-noise=0.1"
    assert unpaired(pools, runs) == [
        "gaussian-noise=0.01 (run: it did not train this arm)"
    ]


def test_a_run_that_was_attacked_has_its_own_accuracy(tmp_path):
    runs = [
        write_run(tmp_path / name, {"none": mean})
        for name, mean in (("a", 0.9), ("b", 0.8))
    ]
    pools, axes = pools_of(
        tmp_path,
        {"arm": {"none": {"arm": "none"}}},
        lambda config: 1,
        {"from_run": str(runs[1])},
    )
    (found,) = make_tradeoffs(pools, axes, read_runs(runs))
    assert found.runs == ("b",) and found.accuracy == 0.8


def test_runs_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="it has no config.json"):
        read_runs([tmp_path])
    begun = write_run(tmp_path / "begun", {}, finished=False)
    with pytest.raises(ValueError, match="begun' is not finished"):
        read_runs([begun])
    (begun / "config.json").write_text('{"job": "sweep"}')
    with pytest.raises(ValueError, match="is no run of kljax train"):
        read_runs([begun])
