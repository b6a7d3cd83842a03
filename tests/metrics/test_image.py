import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import metrics as skimage_metrics

from kljax.metrics import (
    affine_fit,
    mse,
    psnr,
    psnr_fedkl,
    relative_leakage,
    rmse255,
    score,
    ssim,
    stretch,
)

METRICS = {
    "mse": mse,
    "psnr": psnr,
    "ssim": ssim,
    "rmse255": rmse255,
    "psnr_fedkl": psnr_fedkl,
}
NAMES = (
    "mse",
    "psnr",
    "ssim",
    "ssim_minmax",
    "ssim_affine_oracle",
    "psnr_affine_oracle",
    "rmse255",
    "psnr_fedkl",
)
SHAPES = ((7, 7, 1), (8, 8, 1), (28, 28, 1), (32, 32, 3), (33, 45, 3), (64, 64, 3))


def scenes(shape):
    """Pairs (guess, truth), float32: noise, shapes, flat regions, inverse, white."""
    generator = np.random.default_rng(shape[0])
    noise = generator.random(shape)
    y, x = np.mgrid[: shape[0], : shape[1]] / shape[0]
    disc = np.broadcast_to(((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.1)[..., None], shape)
    ramp = np.broadcast_to((0.6 * x + 0.4 * y)[..., None], shape).clip(0, 1)
    grain = generator.standard_normal(shape)
    pairs = {
        "noise": (generator.random(shape), noise),
        "noisy ramp": ((ramp + 0.1 * grain).clip(0, 1), ramp),
        "disc on black": ((disc + 0.02 * grain).clip(0, 1), disc),
        "near white": (1 - 1e-3 * noise, np.ones(shape)),
        "same near white": (1 - 1e-3 * noise, 1 - 1e-3 * noise),
        "inverse": (1 - ramp, ramp),
        "white on black": (np.ones(shape), np.zeros(shape)),
    }
    return {k: tuple(z.astype(np.float32) for z in v) for k, v in pairs.items()}


CASES = [(shape, scene) for shape in SHAPES for scene in scenes((8, 8, 1))]


@pytest.mark.parametrize(("shape", "scene"), CASES, ids=str)
def test_ssim_and_psnr_match_skimage(shape, scene):
    guess, truth = scenes(shape)[scene]
    wide_guess, wide_truth = guess.astype(np.float64), truth.astype(np.float64)
    expected = skimage_metrics.structural_similarity(
        wide_truth, wide_guess, data_range=1.0, channel_axis=-1
    )
    assert float(ssim(guess, truth)) == pytest.approx(expected, abs=1e-5)
    if scene != "same near white":  # skimage warns where it divides by mse 0
        expected = skimage_metrics.peak_signal_noise_ratio(
            wide_truth, wide_guess, data_range=1.0
        )
        assert float(psnr(guess, truth)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("side", [33, 224])
def test_means_over_many_nearly_equal_values_do_not_drift(side):
    truth = np.random.default_rng(0).random((side, side, 3)).astype(np.float32)
    truth = 0.9 + 0.01 * truth
    guess = truth - np.float32(0.3)
    wide_guess, wide_truth = guess.astype(np.float64), truth.astype(np.float64)
    expected = ((wide_guess - wide_truth) ** 2).mean()
    assert float(mse(guess, truth)) == pytest.approx(expected, rel=3e-6)
    expected = skimage_metrics.structural_similarity(
        wide_truth, wide_guess, data_range=1.0, channel_axis=-1
    )
    assert float(ssim(guess, truth)) == pytest.approx(expected, abs=1e-5)


def test_values_by_hand():
    truth = jnp.zeros((8, 8, 1)).at[0, 0, 0].set(0.8)
    guess = jnp.zeros((8, 8, 1))
    assert float(mse(guess, truth)) == pytest.approx(0.01)
    assert float(psnr(guess, truth)) == pytest.approx(20.0, abs=1e-4)
    assert float(rmse255(guess, truth)) == pytest.approx(25.5, rel=1e-5)
    # Constant windows: only the luminance term is left, C1 / (1 + C1).
    white = jnp.ones((8, 8, 1))
    assert float(ssim(white, guess)) == pytest.approx(1e-4 / 1.0001, rel=1e-4)


def test_equal_images():
    truth = jnp.asarray(scenes((32, 32, 3))["noisy ramp"][0])
    scores = {name: float(value) for name, value in score(truth, truth).items()}
    assert scores["mse"] == 0 and scores["rmse255"] == 0
    assert scores["psnr"] == scores["psnr_fedkl"] == np.inf
    assert scores["ssim"] == 1


@pytest.mark.parametrize("name", METRICS)
def test_the_guess_is_clipped(name):
    guess, truth = scenes((16, 16, 3))["noisy ramp"]
    wild = 3 * guess - 1
    expected = METRICS[name](np.clip(wild, 0, 1), truth)
    assert float(METRICS[name](wild, truth)) == float(expected)


def test_fedkl_psnr_is_half_the_psnr_plus_a_constant():
    for guess, truth in scenes((32, 32, 3)).values():
        true_psnr = float(psnr(guess, truth))
        expected = (true_psnr + 20 * np.log10(255)) / 2
        assert float(psnr_fedkl(guess, truth)) == pytest.approx(expected, abs=1e-3)
    # The paper's own pairs and the scale's lower end.
    assert 20 * np.log10(255) == pytest.approx(48.13, abs=5e-3)
    black, white = jnp.zeros((8, 8, 1)), jnp.ones((8, 8, 1))
    assert float(psnr_fedkl(white, black)) == pytest.approx(24.07, abs=5e-3)
    published = jnp.full((8, 8, 1), 140.87 / 255)
    assert float(psnr_fedkl(published, black)) == pytest.approx(26.64, abs=5e-3)


def test_fedkl_mean_of_psnr_is_not_the_psnr_of_the_mean():
    truth = jnp.zeros((8, 8, 1))
    guesses = jnp.stack([jnp.full((8, 8, 1), level) for level in (0.01, 0.5)])
    rmse = jax.vmap(rmse255, (0, None))(guesses, truth)
    mean_psnr = jnp.mean(jax.vmap(psnr, (0, None))(guesses, truth))
    mean_fedkl = jnp.mean(jax.vmap(psnr_fedkl, (0, None))(guesses, truth))
    assert float(2 * mean_fedkl - 48.13) == pytest.approx(float(mean_psnr), abs=0.01)
    assert float(20 * jnp.log10(255 / jnp.mean(rmse))) < float(mean_psnr) - 5


def test_stretch_spans_the_range_with_one_map_for_all_channels():
    image = jnp.asarray(scenes((8, 8, 3))["noise"][0])
    hidden = 0.3 * image - 7.0
    got = stretch(hidden)
    assert float(got.min()) == 0 and float(got.max()) == 1
    np.testing.assert_allclose(got, stretch(image), atol=1e-5)
    by_hand = (np.asarray(image) - image.min()) / (image.max() - image.min())
    np.testing.assert_allclose(got, by_hand, atol=1e-5)


@pytest.mark.parametrize(("level", "expected"), [(0.3, 0.3), (-2, 0), (5, 1)])
def test_stretch_of_a_constant_is_clipped(level, expected):
    got = stretch(jnp.full((8, 8, 3), level, jnp.float32))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_affine_fit_is_the_least_squares_line_per_channel():
    generator = np.random.default_rng(0)
    truth = 0.3 + 0.4 * generator.random((9, 11, 3))
    guess = truth * [2.0, -1.0, 0.5] + 0.3 * generator.standard_normal(truth.shape)
    got = affine_fit(guess, truth)
    for c in range(3):
        line = np.polyfit(guess[..., c].ravel(), truth[..., c].ravel(), 1)
        expected = np.polyval(line, guess[..., c]).clip(0, 1)
        np.testing.assert_allclose(got[..., c], expected, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-25, 1.0, -3.0, 1e25])
def test_affine_fit_undoes_a_scale_and_a_shift(scale):
    truth = jnp.asarray(scenes((16, 16, 3))["noise"][1])
    shift = jnp.asarray([0.0, 1.0, -2.0]).reshape(1, 1, 3) * scale
    np.testing.assert_allclose(
        affine_fit(scale * truth + shift, truth), truth, atol=1e-5
    )


def test_affine_fit_of_a_constant_channel_is_the_mean_of_the_truth():
    truth = jnp.asarray(scenes((15, 15, 3))["noise"][1])
    guess = truth.at[..., 1].set(0.3)
    got = affine_fit(guess, truth)
    np.testing.assert_allclose(got[..., 1], float(truth[..., 1].mean()), atol=1e-6)
    np.testing.assert_allclose(got[..., 0], truth[..., 0], atol=1e-5)


def test_the_means_of_a_fit_are_right_to_the_last_digit():
    """Of 50,000 nearly equal pixels, which float32 sums to twice as much off."""
    truth = np.random.default_rng(0).random((224, 224, 3)).astype(np.float32)
    truth = np.float32(0.9) + np.float32(0.01) * truth
    got = affine_fit(np.full_like(truth, 0.3), truth)
    expected = truth.mean(axis=(0, 1), dtype=np.float64)
    np.testing.assert_allclose(got[0, 0], expected, rtol=7e-8)


def test_affine_fit_is_clipped():
    truth = jnp.zeros((8, 8, 1)).at[:4].set(1.0)
    guess = truth.at[0, 0, 0].set(2.0)
    got = affine_fit(guess, truth)
    assert float(got.max()) == 1


def test_score_has_the_documented_names_and_values():
    guess, truth = scenes((32, 32, 3))["noisy ramp"]
    guess = 0.3 * guess + 0.5
    scores = score(guess, truth)
    assert set(scores) == set(NAMES)
    for name, metric in METRICS.items():
        assert float(scores[name]) == pytest.approx(float(metric(guess, truth)))
    fitted, full = affine_fit(guess, truth), stretch(guess)
    for name, expected in (
        ("ssim_minmax", ssim(full, truth)),
        ("ssim_affine_oracle", ssim(fitted, truth)),
        ("psnr_affine_oracle", psnr(fitted, truth)),
    ):
        assert float(scores[name]) == pytest.approx(float(expected), rel=1e-5)


def test_minmax_brings_back_hidden_contrast_without_touching_the_truth():
    truth = jnp.asarray(scenes((32, 32, 3))["noisy ramp"][1])
    hidden = score(0.05 * truth + 0.9, truth)
    assert float(hidden["ssim"]) < 0.6 < float(hidden["ssim_minmax"])
    # A low-contrast truth stays as it is: the exact guess does not score 1 here.
    faint = 0.4 + 0.1 * truth
    exact = score(faint, faint)
    assert float(exact["ssim"]) == 1 and float(exact["ssim_minmax"]) < 0.6
    assert float(exact["ssim_affine_oracle"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_broken_guess_has_no_score(bad):
    guess, truth = scenes((32, 32, 3))["noisy ramp"]
    guess = guess.copy()
    guess[3, 4, 1] = bad
    assert all(np.isnan(float(value)) for value in score(guess, truth).values())


def test_vmap_and_jit_equal_the_loop():
    pairs = list(scenes((16, 16, 3)).values())
    guesses, truths = (jnp.stack(side) for side in zip(*pairs, strict=True))
    mapped = jax.jit(jax.vmap(score))(guesses, truths)
    for i, pair in enumerate(pairs):
        for name, value in score(*pair).items():
            # Above 100 dB (mse 1e-10) a PSNR measures the rounding of float32.
            got, expected = (min(float(x), 100.0) for x in (mapped[name][i], value))
            assert got == pytest.approx(expected, rel=1e-5, abs=1e-6), name


def test_score_compiles_once_and_promotes_no_rank():
    guess, truth = scenes((17, 19, 3))["noise"]
    before = score._cache_size()
    with jax.numpy_rank_promotion("raise"):
        for shift in (0.0, 0.1, 0.2):
            score(guess + np.float32(shift), truth)
    assert score._cache_size() == before + 1


@pytest.mark.parametrize(
    ("guess", "truth", "error", "words"),
    [
        (np.zeros((6, 9, 3)), np.zeros((6, 9, 3)), ValueError, "H is 6"),
        (np.zeros((9, 6, 3)), np.zeros((9, 6, 3)), ValueError, "W is 6"),
        (np.zeros((9, 9, 3)), np.zeros((9, 9, 1)), ValueError, r"\(9, 9, 1\)"),
        (np.zeros((9, 9)), np.zeros((9, 9)), ValueError, r"\[H, W, C\]"),
        (np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9, 3)), TypeError, "guess is u"),
        (np.zeros((9, 9, 3)), np.zeros((9, 9, 3), np.uint8), TypeError, "truth is u"),
    ],
)
def test_bad_images_are_named(guess, truth, error, words):
    with pytest.raises(error, match=words):
        score(guess, truth)
    with pytest.raises(error, match=words):
        ssim(guess, truth)


def test_relative_leakage_by_hand():
    found = relative_leakage(np.array([0.6, 0.2, 0.1]), np.array([0.2, 0.2, 0.4]))
    np.testing.assert_allclose(found, [2.0, 0.0, -0.75], rtol=1e-6)
    assert np.isnan(relative_leakage(0.5, 0.0)) and np.isnan(relative_leakage(0.5, -1))
