"""Recipe: targets that are real numbers, and a network of several inputs."""

import re

import numpy as np
import pytest
from test_add_modality import OPTIONS, TABLE
from tiny_studies import tiny

import kljax
from kljax import cli

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
    attacked = job.of_arms()
    assert {row["outcome"] for row in attacked} == {"recovered"}
    assert all(float(row["ssim"]) > 0.9 for row in attacked)
    assert {row["input"] for row in job.rows} == {"image"}
    assert "floor/grey" in {row["arm"] for row in job.rows}
    assert "SSIM" in job.report and (job.folder / "gallery.png").exists()
    # What is not scored was found, too.
    result = kljax.leak(kljax.LeakConfig(arms=("none",), layout=SERIAL, **BOTH))
    found = np.asarray(result.arms[0].attacked.reconstruction.inputs["row"])
    np.testing.assert_allclose(found, result.victims.inputs["row"], atol=0.05)
