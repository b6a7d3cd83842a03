"""The table of columns: each says all of itself, and nothing is missing in it."""

import dataclasses

import numpy as np
import pytest

from kljax import metrics
from kljax.metrics import COLUMNS, OUTCOME_RATES, OUTCOMES, VALUES, Column, find_value
from kljax.metrics.columns import (
    by_name,
    column_from_dict,
    column_to_dict,
    guide,
)
from kljax.studies.config import LeakConfig
from kljax.studies.sweeps.cell import NO_RESULTS

MADE = {"name": "blur", "meaning": "how blurred it is"}
# Options that have no column, though they may change what is in the rows.
COUNTED = {
    "victims": "there is a row for each image of each victim",
    "metrics": "each is a column of its own",
    "risk": "each score is a column of its own",
}


def test_every_option_that_changes_results_is_a_column():
    """Whoever adds an option to `LeakConfig` adds a row to `option_columns.OPTIONS`."""
    options = {field.name for field in dataclasses.fields(LeakConfig)}
    said = [column.option for column in COLUMNS.values() if column.option]
    assert set(said) == options - {*NO_RESULTS, *COUNTED}
    assert len(said) == len(set(said))


def test_the_scores_of_an_image_are_columns_of_numbers():
    image = np.linspace(0, 1, 192, dtype=np.float32).reshape(8, 8, 3)
    for name in metrics.score(image, image):
        column = COLUMNS[name]
        assert (column.dtype, column.knows, column.rows) == ("float64", "scorer", "all")
        # Higher leaks more where the exact image scores higher than its negative.
        exact, negative = (
            float(metrics.score(guess, image)[name]) for guess in (image, 1 - image)
        )
        if column.is_value and "affine" not in name:  # the best map turns it round
            assert column.leaks == np.sign(exact - negative), name


# Of the scores of an image see above. A loss, a number of live channels and whether a
# rule holds tell nothing of what leaks.
LEAKS = {
    "ssim_affine_oracle": 1,
    "psnr_affine_oracle": 1,
    "mse_affine_oracle": -1,
    "lpips_alex": -1,
    "lpips_vgg": -1,
    "token_accuracy": 1,
    "cell_accuracy": 1,
    "discrete_accuracy": 1,
    "continuous_accuracy": 1,
    "continuous_error": -1,
    "exact_match": 1,
    "rouge_1": 1,
    "rouge_2": 1,
    "rouge_l": 1,
    "success": 1,
    "label_accuracy": 1,
    "label_multiset_accuracy": 1,
    "feature_error": -1,
    "bins_read": 1,
    "matching_loss": 0,
    "matching_loss_at_truth": 0,
    "live_channels": 0,
    "cell_entropy": 0,
    "label_rule_holds": 0,
    "recovered": 1,
    "recovered_affine": 1,
    "unsolved": 0,
    "ambiguous": 0,
    "diverged": 0,
}


def test_which_values_leak_more_if_they_are_higher():
    assert {name: VALUES[name].leaks for name in LEAKS} == LEAKS
    rates = {name for name in LEAKS if VALUES[name].rate}
    assert rates == {"success", "exact_match", *OUTCOMES}


def test_every_outcome_is_a_rate():
    assert tuple(OUTCOME_RATES) == OUTCOMES
    assert not OUTCOME_RATES.keys() & COLUMNS.keys()
    for column in (*OUTCOME_RATES.values(), COLUMNS["success"]):
        assert column.rate and column.is_share and column.written(0.5) == "50%"
    assert VALUES.keys() > OUTCOME_RATES.keys()


def test_what_an_attacker_has_not_is_known_to_the_scorer_alone():
    for name in ("ssim", "label", "victim", "seed", "outcome", "floor_mse"):
        assert COLUMNS[name].knows == "scorer"
    for name in ("matching_loss", "label_guess", "evaluations", "bins_read", "model"):
        assert COLUMNS[name].knows == "attacker"


def test_columns_are_shown_in_a_place_and_in_those_before_it():
    assert [Column(**MADE, shown="report").shown_in(p) for p in metrics.PLACES] == [
        True,
        True,
        False,
    ]
    assert not any(Column(**MADE).shown_in(place) for place in metrics.PLACES)


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"name": "Blur"}, "column 'Blur': a name has lower-case letters"),
        ({"dtype": "float"}, "dtype is 'float'; it must be one of 'string', 'int32'"),
        ({"leaks": 2}, "leaks is 2; it must be one of -1, 0, 1"),
        ({"knows": "all"}, "knows is 'all'; it must be one of 'attacker', 'scorer'"),
        ({"shown": "page"}, "shown is 'page'; it must be one of None, 'summary'"),
        ({"form": ".3q"}, "form '.3q' writes no number"),
        ({"form": ".3f", "dtype": "string"}, "text has no mean"),
    ),
)
def test_a_column_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Column(**MADE | changes)


def test_a_name_stands_for_one_column():
    with pytest.raises(ValueError, match="column 'blur' is there twice"):
        by_name((Column(**MADE), Column(**MADE)))


def test_a_column_survives_json_and_what_a_newer_one_says():
    column = Column(**MADE, form=".2f", leaks=-1, shown="terminal", unit="pixels")
    assert column_from_dict(column_to_dict(column) | {"colour": "red"}) == column


def test_a_mean_is_written_by_its_column():
    assert COLUMNS["psnr"].written(12.345) == "12.3"
    assert COLUMNS["matching_loss"].written(0.00123) == "1.2e-03"
    for nothing in (None, float("nan"), float("inf")):
        assert COLUMNS["psnr"].written(nothing) == "-"


def test_a_value_is_a_column_with_a_mean():
    assert find_value("ssim", VALUES) is COLUMNS["ssim"]
    for name in ("outcome", "victim", "floor_mse"):
        with pytest.raises(ValueError, match=f"unknown value '{name}'"):
            find_value(name, COLUMNS)


def test_the_guide_says_all_of_a_column():
    lines = dict(guide(COLUMNS.values()))
    assert len(lines) == len(COLUMNS)
    heads = {head.partition(" ")[0]: head for head in lines}
    assert heads["mse"] == "mse (float64, [0, 1], lower leaks more, scorer knows)"
    assert heads["steps"] == (
        "steps (int64, from 1, attacker knows, option steps, of searches)"
    )
    assert lines[heads["label"]] == "true class"
