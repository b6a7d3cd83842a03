"""Recipe: targets that are real numbers, and a network of several inputs."""

import functools
import io
import json
import re
import sys

import numpy as np
import pytest
from rich.console import Console
from test_add_modality import OPTIONS, TABLE
from tiny_studies import tiny

import kljax
from kljax import cli
from kljax.cli.progress import TrainProgress
from kljax.studies import figures, store
from kljax.studies.builder.run_setup import build_run_setup
from kljax.studies.reports.axes import INPUT
from kljax.studies.reports.contents import make_contents
from kljax.studies.store.merging import merge_studies

SERIAL = tiny().layout

PRICES = (
    TABLE
    + """
    from kljax.core.inputs import images_of, several_of
    from kljax.core.targets import numbers_of

    # --- a regression: rows of numbers, and a price -----------------------------------

    def prices(shape):
        generator = np.random.default_rng(1)
        rows = generator.random((40, COLUMNS))
        price = rows @ np.linspace(-1, 1, COLUMNS) + 0.1 * generator.normal(size=40)
        return data.Dataset(
            "prices", rows, price[:, None], None, groups=None, licence="drawn",
            input_spec=SPEC, target_spec=numbers_of(1),
        )

    # --- a picture beside a row -------------------------------------------------------

    BOTH = several_of({"image": images_of((8, 8, 1)), "row": SPEC}, primary="image")

    def both(shape):
        digits = data.load("digits", shape=(8, 8, 1))
        images, labels = digits.fetch(np.arange(40))
        rows = np.random.default_rng(2).random((40, COLUMNS))
        return data.Dataset(
            "both", {"image": images, "row": rows}, labels, 10, groups=None,
            licence="digits of scikit-learn", input_spec=BOTH,
        )

    class Joined(nnx.Module):
        def __init__(self, num_classes, *, image_shape, rngs):
            (size,) = image_shape["row"]
            size += int(np.prod(image_shape["image"]))
            self.hidden = nnx.Linear(size, 24, rngs=rngs)
            self.head = nnx.Linear(24, num_classes, rngs=rngs)

        def __call__(self, inputs):
            pixels = inputs["image"].reshape(len(inputs["image"]), -1)
            joined = jnp.concatenate([pixels, inputs["row"]], axis=1)
            return self.head(nnx.sigmoid(self.hidden(joined)))
"""
)
REGRESSION = (*OPTIONS, "--data", "mine:prices", "--loss", "squared_error")


@pytest.mark.slow
@pytest.mark.parametrize("labels", ("given", "joint"))
def test_rows_of_a_regression_are_recovered(mine, leak, labels):
    mine(PRICES)
    search = "--victims 2 --steps 300 --step-size 0.1".split()
    job = leak(*REGRESSION, *search, "--labels", labels)
    attacked = job.of_arms()
    assert {row["outcome"] for row in attacked} == {"recovered"}
    for row in attacked:
        assert float(row["target_error"]) < (0.05 if labels == "joint" else 1e-6)
        for column in ("label", "label_guess", "label_accuracy", "target_accuracy"):
            assert row[column] == "", column
    if labels == "joint":
        assert any(float(row["target_error"]) > 0 for row in attacked)
    assert "target error" in job.report and (job.folder / "gallery.png").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        (("--loss", "cross_entropy"), "'cross_entropy' does not fit .*: take squared"),
        (("--labels", "recovered"), "rules read classes.* take labels='given' or"),
        (
            ("--model", "mine:Wide"),
            r"outputs of shape \(1, 2\).*expected shape \(1, 1\)",
        ),
    ),
)
def test_what_does_not_fit_numbers_is_refused(mine, capsys, changes, message):
    mine(
        PRICES
        + """
    class Wide(Network):
        def __init__(self, num_classes, *, image_shape, rngs):
            super().__init__(2, image_shape=image_shape, rngs=rngs)
"""
    )
    assert cli.main(["leak", *REGRESSION, "--arms", "none", *changes]) == 2
    assert re.search(message, capsys.readouterr().err)


BOTH = {
    "data": "mine:both",
    "model": "mine:Joined",
    "classifier": "head",
    "attack": "dlg",
    "labels": "given",
    "optimiser": "lbfgs",
    "victims": 2,
    "steps": 300,
}


@pytest.mark.slow
def test_several_inputs_are_searched_together(mine, leak):
    mine(PRICES)
    options = [f"--{name}={value}" for name, value in BOTH.items()]
    job = leak(*options)
    assert {row["outcome"] for row in job.of_arms()} == {"recovered"}
    result = kljax.leak(kljax.LeakConfig(arms=("none",), layout=SERIAL, **BOTH))
    found = np.asarray(result.arms[0].attacked.reconstruction.inputs["row"])
    np.testing.assert_allclose(found, result.victims.inputs["row"], atol=0.05)
    images, rows = (
        [row for row in job.of_arms() if row["input"] == name]
        for name in ("image", "row")
    )
    assert all(float(row["ssim"]) > 0.9 for row in images)
    errors = np.mean((found - result.victims.inputs["row"])[:, 0] ** 2, axis=1)
    assert [float(row["mse"]) for row in rows] == pytest.approx(errors, abs=1e-4)


@pytest.mark.slow
def test_each_input_is_scored_by_its_own_kind(mine, leak):
    counted = """
    made = []

    def counted(shape):
        made.append(shape)
        return both(shape)
"""
    mine(PRICES + counted)
    changes = {"steps": 2, "examples": 2, "data": "mine:counted"}
    job = leak(*(f"--{name}={value}" for name, value in (BOTH | changes).items()))
    # However often the kind of input is asked for, the data are made once.
    assert len(sys.modules["mine"].made) == 1
    kinds = {"image": "image", "row": "mine:ROWS"}
    assert {row["input"]: row["kind"] for row in job.rows} == kinds
    # Of each example first the primary input; what is of the upload is in both rows.
    places = [(row["upload"], row["example"], row["input"]) for row in job.of_arms()]
    assert places == [(u, e, name) for u in "01" for e in "01" for name in kinds]
    for image, row in zip(job.of_arms()[::2], job.of_arms()[1::2], strict=True):
        assert image["matching_loss"] == row["matching_loss"]
        assert image["ssim"] and not row["ssim"] and row["mse"] != image["mse"]
    # Floors of each are its own.
    floors = {name: set() for name in kinds}
    for row in job.rows:
        floors[row["input"]].add(row["arm"])
    assert floors["row"] == {"floor/column_means", "none"}
    assert "floor/grey" in floors["image"]
    assert "floor/column_means" not in floors["image"]
    assert "Input `image`:" in job.report and "Input `row`:" in job.report
    assert (job.folder / "gallery.png").exists()
    summary = json.loads((job.folder / "summary.json").read_text())
    assert summary["input"] == "image" and set(summary["other_inputs"]) == {"row"}
    of_row = summary["other_inputs"]["row"]["arms"]["none"]
    rows = [float(r["mse"]) for r in job.of_arms() if r["input"] == "row"]
    assert of_row["n"] == 4 and of_row["mse"] == pytest.approx(np.mean(rows))
    frame = kljax.read_rows(job.folder)
    assert len(frame) == len(job.rows)


TRAIN = {"clients": 3, "batch": 4, "local_steps": 3, "public_examples": 0}
PRICED = TRAIN | {
    "data": "mine:prices",
    "model": "mine:Network",
    "loss": "squared_error",
    "arms": ("none",),
}


def test_a_regression_is_trained_and_measured_by_its_r2(mine, tmp_path, monkeypatch):
    mine(PRICES)
    config = kljax.TrainConfig(**PRICED, rounds=2, learning_rate=0.1)
    drawn, shown = [], io.StringIO()
    draw = figures.draw_curves
    monkeypatch.setattr(
        figures, "draw_curves", lambda *given: drawn.append(given) or draw(*given)
    )
    with TrainProgress(config, Console(file=shown, width=200)) as progress:
        watched = {"on_arm": progress.on_arm, "on_round": progress.on_round}
        result = kljax.train(config, tmp_path / "run", **watched)
    assert result.summary["measure"] == "R2" and drawn[0][2] == "R2"
    assert "R2 " in shown.getvalue() and "accuracy" not in shown.getvalue()
    (found,) = result.summary["accuracy"]["none"]["own"]["values"]
    test, server = result.setup.test, result.arms["none"].server
    inputs, prices = test.fetch(np.arange(len(test)))
    model = result.setup.task.models[False]
    apply = functools.partial(model.apply, server.public.model, server.stats)
    errors = np.sum((np.asarray(apply(inputs, train=False).logits) - prices) ** 2)
    wanted = 1 - errors / np.sum((prices - prices.mean()) ** 2)
    assert found == pytest.approx(wanted, rel=1e-3) and found < 1
    rows = kljax.read_rows(tmp_path / "run")
    assert rows["train_accuracy"].isna().all()
    assert rows["test_accuracy"].iloc[-1] == pytest.approx(wanted, rel=1e-3)
    said = (tmp_path / "run" / "summary.md").read_text()
    assert "R2" in said and "Data: drawn" in said and "Images" not in said


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"partition": "dirichlet=1"}, "deals examples out by class, .* take 'iid'"),
        ({"loss": "cross_entropy"}, "'cross_entropy' does not fit"),
        ({"roles": ("0:backdoor",)}, "is about images"),
    ),
)
def test_a_training_without_classes_refuses_what_needs_them(mine, changes, message):
    mine(PRICES)
    config = kljax.TrainConfig(**PRICED | {"rounds": 1} | changes)
    with pytest.raises(ValueError, match=message):
        build_run_setup(config)


@pytest.mark.slow
def test_several_inputs_are_trained_on_and_their_client_is_attacked(mine, tmp_path):
    mine(PRICES)
    config = kljax.TrainConfig(
        **TRAIN,
        data="mine:both",
        model="mine:Joined",
        arms=("none",),
        rounds=1,
        keep_rounds=(1,),
    )
    result = kljax.train(config, tmp_path / "training")
    assert "measure" not in result.summary
    assert 0 <= result.summary["accuracy"]["none"]["own"]["mean"] <= 1
    attack = kljax.LeakConfig(
        from_run=str(tmp_path / "training"),
        attack="dlg",
        classifier="head",
        round=1,
        client=0,
        victims=1,
        steps=2,
        optimiser="adam",
        labels="given",
        arms=("none",),
        layout=SERIAL,
    )
    rows = kljax.score_rows(kljax.leak(attack))
    attacked = [row for row in rows if row["arm"] == "none"]
    assert [row["input"] for row in attacked] == ["image", "row"]


@pytest.mark.slow
def test_a_language_model_is_trained_and_measured_by_its_tokens():
    small = {"data": "text-next-token", "model": "language-model", "tokens": 4}
    config = kljax.TrainConfig(
        **TRAIN | small, arms=("none",), rounds=1, examples=12, test_examples=20
    )
    result = kljax.train(config)
    assert result.summary["measure"] == "token accuracy"
    assert 0 <= result.summary["accuracy"]["none"]["own"]["mean"] <= 1
    assert np.isfinite(result.rows[0]["train_accuracy"])


SWEEP = """
[fixed]
data = "mine:both"
model = "mine:Joined"
classifier = "head"
attack = "dlg"
labels = "given"
optimiser = "adam"
victims = 3
steps = 2

[options]
reconstructions = true

[axes]
arm = ["none", "gaussian-noise=0.1"]
"""


@pytest.mark.slow
def test_a_sweep_of_several_inputs_is_reported_by_input(mine, tmp_path):
    mine(PRICES)
    (tmp_path / "sweep.toml").write_text(SWEEP)
    study = tmp_path / "study"
    assert cli.main(["sweep", str(tmp_path / "sweep.toml"), "--out", str(study)]) == 0
    read = store.read(study)
    assert set(store.finished_victims(read).values()) == {3}
    attacked = [row for row in read.rows.to_pylist() if row["arm"] == "none"]
    assert [row["input"] for row in attacked] == ["image", "row"] * 3
    contents = make_contents(read)
    (pivot,) = contents.pivots
    assert pivot.header == ("arm", "image", "row")
    means = {
        (record["arm"], record[INPUT]): record["mse_mean"]
        for record in make_contents(read, value="mse").points.records
    }
    assert len(means) == 4
    for name in ("image", "row"):
        own = [row["mse"] for row in attacked if row["input"] == name]
        assert means["none", name] == pytest.approx(np.mean(own))
    # Arms are compared on the same input.
    assert {line[INPUT]: line["pairs"] for line in contents.comparisons.records} == {
        "image": 3,
        "row": 3,
    }
    kept = store.read_reconstructions(read, read.manifest["cells"][0]["id"])
    assert kept["images/row"].shape == kept["truths/row"].shape == (3, 1, 6)
    texts = [s.truth for row in contents.gallery.rows for s in row.shown]
    assert {type(text) for text in texts} == {bytes, str}
    assert cli.main(["report", str(study)]) == 0
    # Both halves of a study are the study.
    merged = tmp_path / "merged"
    merge_studies(study, study, merged)
    assert store.read(merged).rows.to_pylist() == read.rows.to_pylist()


def test_inputs_without_scores_are_refused_before_any_work(mine, capsys):
    mine(PRICES.replace('kind="mine:ROWS"', 'kind="mine:COLS"'))
    options = [f"--{name}={value}" for name, value in BOTH.items()]
    assert cli.main(["leak", *options, "--arms", "none"]) == 2
    assert "COLS" in capsys.readouterr().err
