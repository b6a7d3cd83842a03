import dataclasses

import numpy as np
import pytest

from kljax.metrics import (
    FLOORS,
    ORACLE_FLOORS,
    Reference,
    best_floor_mse,
    floor_images,
)

SHAPE = (8, 9, 3)
INDICES = np.array([40, 7, 13, 99, 2, 61, 5, 80])
LABELS = np.array([1, 0, 1, 0, 1, 2, 0, 0])


@pytest.fixture
def images():
    return np.random.default_rng(0).random((8, *SHAPE)).astype(np.float32)


@pytest.fixture
def reference(images):
    return Reference(images, LABELS, INDICES)


def floors_of(place, images, reference, seed=0):
    return floor_images(images[place], LABELS[place], INDICES[place], reference, seed)


def test_means_equal_plain_loops_without_the_victim(images, reference):
    for place in range(8):
        got = floors_of(place, images, reference)
        others = [images[i] for i in range(8) if i != place]
        expected = sum(image.astype(np.float64) for image in others) / len(others)
        np.testing.assert_allclose(got["data_mean"], expected, atol=1e-6)
        same = [
            images[i] for i in range(8) if i != place and LABELS[i] == LABELS[place]
        ]
        if not same:
            assert LABELS[place] == 2 and "class_mean" not in got
            continue
        expected = sum(image.astype(np.float64) for image in same) / len(same)
        np.testing.assert_allclose(got["class_mean"], expected, atol=1e-6)


def test_a_victim_outside_the_reference_leaves_it_whole(images, reference):
    victim = np.full(SHAPE, 0.25, np.float32)
    got = floor_images(victim, 1, 1000, reference, seed=0)
    np.testing.assert_allclose(got["data_mean"], images.mean(axis=0), atol=1e-6)
    expected = images[LABELS == 1].mean(axis=0)
    np.testing.assert_allclose(got["class_mean"], expected, atol=1e-6)


def test_same_class_is_another_example_of_the_class(images, reference):
    for place in range(8):
        for seed in range(5):
            got = floors_of(place, images, reference, seed).get("same_class")
            if got is None:
                assert LABELS[place] == 2
                continue
            hits = [i for i in range(8) if np.array_equal(images[i], got)]
            assert len(hits) == 1 and hits[0] != place
            assert LABELS[hits[0]] == LABELS[place]


def test_same_class_depends_on_seed_and_victim_but_not_on_the_order(images, reference):
    order = np.random.default_rng(1).permutation(8)
    shuffled = Reference(images[order], LABELS[order], INDICES[order])
    chosen = set()
    for seed in range(12):
        got = floors_of(1, images, reference, seed)
        again = floors_of(1, images, shuffled, seed)
        for name in ("same_class", "noise_affine"):
            np.testing.assert_array_equal(got[name], again[name])
        chosen.add(got["same_class"].tobytes())
    assert len(chosen) == 3  # all the others of class 0


def test_every_victim_draws_noise_of_its_own(images, reference):
    """The same image under another index, or another seed, has other noise."""
    drawn = [
        floor_images(
            images[0], 1, index, Reference(images[1:], LABELS[1:], INDICES[1:]), seed
        )
        for index, seed in ((40, 0), (41, 0), (40, 1))
    ]
    noise = [floors["noise_affine"] for floors in drawn]
    assert not np.array_equal(noise[0], noise[1])
    assert not np.array_equal(noise[0], noise[2])


def test_constant_floors(images, reference):
    got = floors_of(0, images, reference)
    np.testing.assert_array_equal(got["grey"], np.full(SHAPE, 0.5))
    for c in range(3):
        expected = images[0, ..., c].mean()
        np.testing.assert_allclose(got["own_mean_colour"][..., c], expected, atol=1e-6)


def test_fitted_noise_beats_the_mean_colour_by_one_part_in_its_pixels(reference):
    y, x = np.mgrid[:64, :64] / 64
    victim = np.stack([0.2 + 0.6 * x, 0.2 + 0.6 * y, 0.5 + 0 * x], -1)
    single = Reference(victim[None].astype(np.float32), [0], [0])
    gains = []
    for seed in range(20):
        got = floor_images(victim, 0, 0, single, seed)
        colour = ((got["own_mean_colour"] - victim) ** 2).mean()
        noise = ((got["noise_affine"] - victim) ** 2).mean()
        gains.append(1 - noise / colour)
    # One fitted slope explains 1/(pixels - 1) of the variance of unrelated noise.
    assert min(gains) > -1e-5
    assert np.mean(gains) == pytest.approx(1 / 4095, rel=0.8)


def test_floors_are_in_table_order_and_are_publishable_images(images, reference):
    got = floors_of(0, images, reference)
    assert list(got) == list(FLOORS)
    for image in got.values():
        assert image.shape == SHAPE and image.dtype == np.float32
        assert image.min() >= 0 and image.max() <= 1
    assert set(ORACLE_FLOORS) < set(FLOORS)


def test_only_oracle_floors_read_the_victim(images):
    # The same index and label, another image: nothing but the oracles may change.
    outside = Reference(images[1:], LABELS[1:], INDICES[1:])
    first = floor_images(images[0], 1, 40, outside, seed=0)
    second = floor_images(1 - images[0], 1, 40, outside, seed=0)
    changed = {name for name in first if not np.array_equal(first[name], second[name])}
    assert changed == set(ORACLE_FLOORS)


def test_absent_without_other_examples(images):
    alone = Reference(images[:1], LABELS[:1], INDICES[:1])
    got = floor_images(images[0], LABELS[0], INDICES[0], alone, seed=0)
    assert list(got) == ["grey", "own_mean_colour", "noise_affine"]


def test_leave_one_out_is_exact_over_many_examples():
    images = np.random.default_rng(2).random((3000, 2, 2, 1)).astype(np.float32)
    images[0] = 0.0
    images[1:, 0, 0, 0] = 0.0  # the mean without the victim is exactly 0 here
    images[5, 0, 0, 0] = 1.0
    reference = Reference(images, np.zeros(3000, int), np.arange(3000))
    got = floor_images(images[5], 0, 5, reference, seed=0)["class_mean"]
    assert got[0, 0, 0] == 0.0
    expected = np.delete(images, 5, axis=0).mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(got, expected, atol=1e-7)


def test_best_floor_mse_is_the_least(images, reference):
    got = floors_of(3, images, reference)
    by_hand = {
        name: sum((a - b) ** 2 for a, b in zip(x.flat, images[3].flat, strict=True))
        / images[3].size
        for name, x in got.items()
    }
    least = min(by_hand.values())
    assert best_floor_mse(images[3], got) == pytest.approx(least, rel=1e-5)
    without = {name: x for name, x in got.items() if by_hand[name] > least}
    assert best_floor_mse(images[3], without) > least
    with pytest.raises(ValueError, match="floors is empty"):
        best_floor_mse(images[3], {})


def test_an_index_of_another_data_set_is_refused(images, reference):
    with pytest.raises(ValueError, match="another example under index 40"):
        floor_images(images[1], LABELS[0], 40, reference, seed=0)
    with pytest.raises(ValueError, match="another example under index 40"):
        floor_images(images[0], LABELS[0] + 1, 40, reference, seed=0)
    with pytest.raises(ValueError, match=r"the victim has shape \(8, 9, 1\)"):
        floor_images(images[0, ..., :1], 1, 40, reference, seed=0)


@pytest.mark.parametrize(("away", "same"), [(0.8e-6, True), (1.25e-6, False)])
def test_a_victim_is_the_references_up_to_a_millionth(away, same):
    """Black, so that nothing is relative."""
    reference = Reference(np.zeros((2, *SHAPE), np.float32), [0, 0], [3, 4])
    victim = np.full(SHAPE, away, np.float32)
    if same:
        assert "class_mean" in floor_images(victim, 0, 4, reference, seed=0)
    else:
        with pytest.raises(ValueError, match="another example under index 4"):
            floor_images(victim, 0, 4, reference, seed=0)


def test_a_reference_is_what_it_was_and_short_to_show(reference):
    with pytest.raises(dataclasses.FrozenInstanceError):
        reference.labels = LABELS + 1
    shown = repr(reference)
    for name in ("class_sums", "class_counts", "positions"):
        assert name not in shown
    assert {reference: 1}[reference] == 1  # and is nobody else's equal
    assert reference != Reference(reference.images, LABELS, INDICES)


@pytest.mark.parametrize(
    ("arrays", "error", "words"),
    [
        ((np.zeros((0, 8, 8, 1)), [], []), ValueError, "N >= 1"),
        ((np.zeros((8, 8, 1)), [0] * 8, range(8)), ValueError, "N, H, W, C"),
        ((np.zeros((2, 8, 8, 1)), [0], [0, 1]), ValueError, "labels have shape"),
        ((np.zeros((2, 8, 8, 1)), [0, 0], [0]), ValueError, "indices have shape"),
        ((np.zeros((2, 8, 8, 1)), [0, 0], [4, 4]), ValueError, "index 4 occurs"),
        ((np.zeros((3, 8, 8, 1)), [0, 0, 0], [9, 2, 9]), ValueError, "index 9 occurs"),
        ((np.zeros((1, 8, 8, 1), np.uint8), [0], [0]), TypeError, "uint8"),
    ],
)
def test_bad_references_are_named(arrays, error, words):
    with pytest.raises(error, match=words):
        Reference(*arrays)
