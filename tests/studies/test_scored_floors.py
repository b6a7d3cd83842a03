"""Scores of floors: what is reached without any gradient, and when it is scored."""

import dataclasses

import numpy as np
import pytest
from test_scoring import rows_of
from tiny_studies import (
    close,
    finished,
    pretended,
    quick_compilation,
    scored,
    tiny,
    wrong,
)

from kljax import data, metrics
from kljax.data import Dataset
from kljax.metrics import FLOORS
from kljax.studies import input_scores, leakage, scoring


def test_the_floor_of_a_victim_is_its_best_floor_row():
    result, rows = finished()
    for victim in result.victims.indices[:, 0]:
        mine = [row for row in rows if row["victim"] == victim]
        best = min(row["mse"] for row in mine if row["arm"].startswith("floor/"))
        for row in mine:
            assert row["floor_mse"] == pytest.approx(best, rel=1e-5)
        fitted = [row for row in mine if row["arm"].startswith("floor/")]
        best = min(10 ** (-row["psnr_affine_oracle"] / 10) for row in fitted)
        for row in mine:
            assert row["floor_mse_affine"] == pytest.approx(best, rel=1e-6)
        # Floors have the fit, too, or it would flatter the guess alone.
        assert row["floor_mse_affine"] < row["floor_mse"]


def test_floors_against_values_computed_another_way():
    result, rows = finished()
    # Or the mean would be of all.
    assert len(result.dataset) > input_scores.REFERENCE_SIZE
    for n, truth in enumerate(result.victims.inputs[:, 0]):
        grey = rows_of(rows, "floor/grey")[n]
        assert grey["mse"] == pytest.approx(np.mean((truth - 0.5) ** 2), rel=1e-5)
        colour = rows_of(rows, "floor/own_mean_colour")[n]
        spread = np.mean(np.var(truth, axis=(0, 1)))
        assert colour["mse"] == pytest.approx(spread, rel=1e-4)


def lonely(shape):
    """Gives data with a class of one example, of which there is no other."""
    images = np.random.default_rng(5).random((6, *shape), np.float32)
    labels = [0, 0, 0, 0, 0, 1]
    return Dataset("lonely", images, labels, 2, groups=None, licence="none needed")


def test_a_floor_without_material_has_no_row():
    result = pretended(tiny(victims=6, data=f"{__name__}:lonely"), close)
    rows = scored(result)
    alone = result.victims.indices[:, 0][result.victims.labels[:, 0] == 1]
    assert alone == [5]
    for floor, victims in (
        ("same_class", 5),
        ("class_mean", 5),
        ("data_mean", 6),
        ("grey", 6),
    ):
        found = [row["victim"] for row in rows_of(rows, f"floor/{floor}")]
        assert len(found) == victims
        assert (5 in found) == (victims == 6)
    assert len(rows_of(rows, "none")) == 6


def test_known_floors_are_not_made_again_and_change_no_bit(monkeypatch):
    def distances(guesses, truths, network):  # the worst of bits: of the place alone
        return np.arange(len(guesses)) / 7

    first, second = (pretended(tiny(), guesses) for guesses in (close, wrong))
    monkeypatch.setattr(metrics, "lpips_available", lambda: True)
    monkeypatch.setattr(metrics, "lpips_distances", distances)
    _, floors = scoring.score(first)
    expected = scoring.score_rows(second)
    monkeypatch.setattr(metrics, "floor_images", pytest.fail)
    rows, again = scoring.score(second, floors)
    assert rows == expected
    assert again is floors


def test_floors_are_made_as_they_are_scored():
    result, rows = finished()
    victims = result.victims
    made = input_scores.floor_images(
        result.dataset,
        victims.inputs[:, 0],
        victims.labels[:, 0],
        victims.indices[:, 0],
        result.config.seed,
    )
    for name in FLOORS:
        for images, truth, row in zip(
            made, victims.inputs[:, 0], rows_of(rows, f"floor/{name}"), strict=True
        ):
            error = np.mean((images[name].astype(np.float64) - truth) ** 2)
            assert row["mse"] == pytest.approx(error, rel=1e-4)


def test_the_reference_of_floors_is_not_drawn_as_the_victims_are():
    """Else every victim would be in it, and no example of anybody else's."""
    count, seed = 2 * input_scores.REFERENCE_SIZE, 3
    images = np.random.default_rng(0).uniform(0, 0.2, (count, 8, 8, 1))
    images = images.astype(np.float32)
    blank = Dataset("d", images, np.arange(count) % 2, 2, groups=None, licence="-")
    victims = data.select(blank, input_scores.REFERENCE_SIZE, seed)
    images[victims] += 0.8
    dataset = dataclasses.replace(blank, inputs=images)
    chosen = dataset.fetch(victims[:1])
    (floors,) = input_scores.floor_images(dataset, *chosen, victims[:1], seed)
    # Half of the dataset is bright, and so is half of a reference drawn by itself.
    assert np.mean(floors["data_mean"]) == pytest.approx(0.1 + 0.8 / 2, abs=0.05)


def test_floors_are_scored_before_any_attack_and_rows_are_the_same(monkeypatch):
    monkeypatch.setattr(metrics, "lpips_available", lambda: False)
    config, order = tiny(arms=("none",), steps=2), []
    side = config.image_size
    monkeypatch.setattr(scoring, "PIXELS_PER_BLOCK", 2 * side**2)  # several parts

    def floors_of(study):
        assert study.arms == [] and len(study.victims.labels) == config.victims
        order.append("floors")
        return scoring.score_parts_floors(study)

    with quick_compilation():
        result = leakage.leak(config, on_arm=order.append, score_floors=floors_of)
        assert order == ["floors", "none"]
        assert len(result.floors) > 1
        afterwards = scoring.score_rows(result._replace(floors=None))
        # Those that were scored before are not scored again.
        monkeypatch.setattr(scoring, "_score_floors", None)
        assert scoring.score_rows(result) == afterwards


def test_floors_that_cannot_be_scored_stop_the_study_before_it_runs():
    def failing(study):
        raise ValueError("no floor")

    def begun(name):
        raise AssertionError("an arm runs")

    with quick_compilation(), pytest.raises(ValueError, match="no floor"):
        leakage.leak(tiny(arms=("none",)), on_arm=begun, score_floors=failing)
