import math

import pytest

from kljax.metrics import OUTCOMES, loss_floor, outcome, success

RIGHT = {
    "ssim": 0.9,
    "mse": 0.001,
    "best_floor_mse": 0.04,
    "ssim_affine": 0.1,
    "mse_affine": 0.03,
    "best_floor_mse_affine": 0.02,
    "matching_loss": 1e-8,
    "loss_floor": 1e-6,
    "finite": True,
}
AFFINE = {"ssim": 0.3, "mse": 0.3, "ssim_affine": 0.6, "mse_affine": 0.01}
TABLE = [
    ({}, "recovered"),
    ({"matching_loss": 5.0}, "recovered"),
    ({"ssim": 0.6, "mse": 0.02}, "recovered"),  # both limits are included
    ({"ssim": 0.599}, "ambiguous"),
    ({"mse": 0.0201}, "ambiguous"),
    ({"ssim": 0.599, "matching_loss": 1e-6}, "ambiguous"),
    ({"ssim": 0.599, "matching_loss": 2e-6}, "unsolved"),
    ({"mse": 0.0201, "matching_loss": 2e-6}, "unsolved"),
    ({"ssim": 0.1, "mse": 0.3, "matching_loss": 2e-6}, "unsolved"),
    # The search broke off, but what it had found before is the image.
    ({"finite": False}, "recovered"),
    ({"ssim": 0.1, "finite": False}, "diverged"),
    ({"ssim": math.nan}, "diverged"),
    ({"mse": math.nan}, "diverged"),
    ({"matching_loss": math.nan}, "diverged"),
    ({"matching_loss": math.inf}, "diverged"),
    ({"matching_loss": None, "loss_floor": None}, "recovered"),
    ({"ssim": 0.1, "matching_loss": None, "loss_floor": None}, "unsolved"),
    ({"ssim": 0.1, "matching_loss": None, "finite": False}, "diverged"),
    # Right but for brightness and contrast: matched or not, broken off or not.
    (AFFINE, "recovered_affine"),
    (AFFINE | {"matching_loss": 5.0}, "recovered_affine"),
    (AFFINE | {"matching_loss": None, "loss_floor": None}, "recovered_affine"),
    (AFFINE | {"finite": False}, "recovered_affine"),
    (AFFINE | {"ssim": 0.9}, "recovered_affine"),
    (AFFINE | {"ssim": 0.9, "mse": 0.001}, "recovered"),
    (AFFINE | {"ssim_affine": 0.599}, "ambiguous"),
    # The floors have the fit, too: half of theirs, not of what they are without it.
    (AFFINE | {"mse_affine": 0.0101}, "ambiguous"),
    (AFFINE | {"mse_affine": 0.0101, "matching_loss": 2e-6}, "unsolved"),
    (AFFINE | {"mse": math.nan}, "diverged"),
    (AFFINE | {"matching_loss": math.nan}, "diverged"),
]


@pytest.mark.parametrize(("change", "expected"), TABLE, ids=str)
def test_truth_table(change, expected):
    assert outcome(**(RIGHT | change)) == expected


def test_the_table_reaches_every_outcome():
    assert {expected for _, expected in TABLE} == set(OUTCOMES)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"best_floor_mse": math.nan}, "best_floor_mse is nan"),
        ({"best_floor_mse_affine": math.inf}, "best_floor_mse_affine is inf"),
        ({"loss_floor": math.inf}, "loss_floor is inf"),
        ({"loss_floor": None}, "needs a loss_floor"),
    ],
)
def test_a_missing_yardstick_is_named(change, words):
    with pytest.raises(ValueError, match=words):
        outcome(**(RIGHT | change))


def test_loss_floor_is_the_larger_of_truth_and_resolution():
    assert loss_floor(0.0, 4.0) == pytest.approx(4e-6)
    assert loss_floor(0.5, 4.0) == 0.5
    assert loss_floor(-1e-8, 1.0) == pytest.approx(1e-6)
    assert loss_floor(0.0, 4.0, degree=1) == pytest.approx(4e-3)
    # A gradient may be faint, or nothing; a degree may be below 1.
    assert loss_floor(0.0, 0.25) == pytest.approx(2.5e-7)
    assert loss_floor(0.0, 0.0) == 0
    assert loss_floor(0.5, 1e9, degree=None) == 0.5
    assert loss_floor(0.0, 4.0, degree=0.5) == pytest.approx(4 * 1e-3**0.5)


@pytest.mark.parametrize("degree", [1, 2])
def test_loss_floor_is_a_thousandth_of_the_norm(degree):
    """On a norm, and on its square."""
    gradient = [3.0, -4.0, 12.0]

    def distance(share):
        return sum((share * g) ** 2 for g in gradient) ** (degree / 2)

    floor = loss_floor(0.0, distance(1.0), degree)
    assert distance(0.9e-3) < floor < distance(1.1e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((math.nan, 1.0), "loss_at_truth is nan"),
        ((0.0, math.inf), "loss_scale is inf"),
        ((0.0, -1.0), "loss_scale is -1"),
        ((0.0, 1.0, 0), "degree is 0"),
    ],
)
def test_bad_losses_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        loss_floor(*arguments)


@pytest.mark.parametrize(
    ("ssim", "expected"),
    [(0.6, True), (0.59999, False), (1.0, True), (math.nan, False)],
)
def test_success_is_ssim_of_point_six(ssim, expected):
    assert success(ssim) is expected
