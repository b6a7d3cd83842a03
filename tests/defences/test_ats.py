"""ATS: operations as Pillow has them, policies, their draws and their search."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from toys import CLASSES, quick_jit, random_images

from kljax.core.types import Private
from kljax.defences import (
    Context,
    accuracy_score,
    privacy_score,
    read_policies,
    search_policies,
    transform_images,
    write_policies,
)
from kljax.defences.arms import parse_arm, unplaced_sites
from kljax.defences.ats import NUMBERED, PUBLISHED, RANGES, Choice
from kljax.defences.image_operations import OPERATIONS

RNG = jax.random.key(7)
HEIGHT, WIDTH = 16, 20  # more pixels than levels: `equalise` has something to do
TARGETS = np.eye(CLASSES, dtype=np.float32)[[1, 0]]


def smooth_images(channels):
    """Images of whole levels: curves with some noise, one darker than the other."""
    down, right = np.mgrid[:HEIGHT, :WIDTH] / WIDTH
    waves = [
        np.sin(5 * down + n) * np.cos(4 * right * (n + 1)) for n in range(channels)
    ]
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (HEIGHT, WIDTH, channels))
    image = 0.5 + 0.4 * np.stack(waves, -1) + noise
    levels = np.round(255 * np.stack([image, 0.6 * image**2]))
    return (levels / 255).astype(np.float32)


def affine(image, matrix, method=Image.Resampling.NEAREST):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, method)


def rotated(image, amount):
    turned = image.convert("RGBA").rotate(amount)
    behind = Image.new("RGBA", turned.size, (128,) * 4)
    return Image.composite(turned, behind, turned).convert(image.mode)


PILLOW = {
    "shear_y": lambda i, m, s: affine(
        i, (1, 0, 0, m * s, 1, 0), Image.Resampling.BILINEAR
    ),
    "translate_x": lambda i, m, s: affine(i, (1, 0, m * WIDTH * s, 0, 1, 0)),
    "translate_y": lambda i, m, s: affine(i, (1, 0, 0, 0, 1, m * HEIGHT * s)),
    "rotate": lambda i, m, s: rotated(i, m),
    "colour": lambda i, m, s: ImageEnhance.Color(i).enhance(1 + m * s),
    "contrast": lambda i, m, s: ImageEnhance.Contrast(i).enhance(1 + m * s),
    "brightness": lambda i, m, s: ImageEnhance.Brightness(i).enhance(1 + m * s),
    "sharpness": lambda i, m, s: ImageEnhance.Sharpness(i).enhance(1 + m * s),
    "invert": lambda i, m, s: ImageOps.invert(i),
    "solarise": lambda i, m, s: ImageOps.solarize(i, m),
    "posterise": lambda i, m, s: ImageOps.posterize(i, round(m)),
    "autocontrast": lambda i, m, s: ImageOps.autocontrast(i),
    "equalise": lambda i, m, s: ImageOps.equalize(i),
}


@functools.cache
def operated(channels):
    """What each operation makes of the images, at two magnitudes."""
    signs = np.array([-1.0, 1.0], np.float32)

    def run(images):
        return {
            name: [
                OPERATIONS[name](images, signs, float(amount))
                for amount in RANGES.get(name, np.zeros(10))[[3, 9]]
            ]
            for name in OPERATIONS
        }

    return quick_jit(run)(smooth_images(channels))


@pytest.mark.parametrize("channels", (pytest.param(1, marks=pytest.mark.slow), 3))
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_that_of_pillow(name, channels):
    images = smooth_images(channels)
    signs = np.array([-1.0, 1.0], np.float32)
    amounts = RANGES.get(name, np.zeros(10))[[3, 9]]
    for amount, found in zip(amounts, operated(channels)[name], strict=True):
        assert found.shape == images.shape and found.dtype == images.dtype
        for image, sign, mine in zip(images, signs, found, strict=True):
            levels = np.round(255 * image).astype(np.uint8)
            given = Image.fromarray(levels if channels == 3 else levels[..., 0])
            theirs = np.asarray(PILLOW[name](given, float(amount), float(sign)))
            off = np.abs(255 * np.asarray(mine) - theirs.reshape(image.shape))
            # Pillow rounds each step to a level, and a tie at an edge goes either way.
            assert np.mean(off > 1.5) <= 0.02, (amount, sign, np.max(off))
    # At the largest magnitude; of a grey image the colour stays as it is.
    if channels == 3 or name != "colour":
        assert np.max(np.abs(found - images)) > 0.02


def test_the_numbering_is_that_of_the_official_code():
    assert len(NUMBERED) == 50
    assert all(name in OPERATIONS for name, _ in NUMBERED)
    named = {3: ("translate_x", 9), 18: ("contrast", 7), 43: ("translate_y", 3)}
    named |= {11: ("posterise", 5), 28: ("solarise", 0), 49: ("autocontrast", 1)}
    assert {n: NUMBERED[n] for n in named} == named
    by_operation = {}
    for n, (name, place) in enumerate(NUMBERED):
        by_operation.setdefault(name, []).append(f"{n}-{place}")
    assert {name: " ".join(places) for name, places in by_operation.items()} == {
        "shear_y": "6-2 10-5",
        "translate_x": "3-9 21-5",
        "translate_y": "7-2 24-3 42-3 43-3 48-3",
        "rotate": "2-2",
        "colour": "12-3 20-5 27-8 34-5 39-0",
        "contrast": "1-6 18-7",
        "brightness": "13-5 15-9 26-6 38-3",
        "sharpness": "4-1 5-3 14-9 19-5 25-6",
        "invert": "0-7 29-0 47-0",
        "solarise": "28-0 37-4 40-1 45-1",
        "posterise": "11-5",
        "autocontrast": "8-5 23-8 31-0 36-4 41-0 44-1 49-1",
        "equalise": "9-2 16-5 17-1 22-7 30-0 32-8 33-4 35-5 46-5",
    }


def test_magnitudes_are_ten_even_steps():
    ends = {"shear_y": (0, 0.3), "rotate": (0, 30), "solarise": (256, 0)}
    ends |= dict.fromkeys(("translate_x", "translate_y"), (0, 150 / 331))
    strengths = ("colour", "contrast", "brightness", "sharpness")
    ends |= dict.fromkeys(strengths, (0, 0.5))
    assert RANGES.keys() == {*ends, "posterise"}
    for name, (first, last) in ends.items():
        steps = [first + (last - first) * n / 9 for n in range(10)]
        np.testing.assert_allclose(RANGES[name], steps)
    assert RANGES["posterise"].tolist() == [8, 8, 7, 7, 6, 6, 5, 5, 4, 4]  # bits


def replaced(policies, choice, images):
    defence = transform_images(policies)

    def inputs(images, choice):
        context = Context(None, None, images, TARGETS, private=Private(choice))
        return defence.inputs(RNG, context)

    return quick_jit(inputs)(images, choice)


@pytest.mark.parametrize("policies", ((), ((28, 39),)))
def test_operations_that_do_nothing_leave_a_batch_as_it_is(policies):
    images = smooth_images(3)
    choice = Choice(jnp.zeros(2, int), jnp.ones((2, 3)))
    found, targets = replaced(policies, choice, images)
    np.testing.assert_allclose(found, images, atol=1e-6)
    np.testing.assert_array_equal(targets, TARGETS)


def test_each_image_passes_the_policy_and_the_signs_that_it_drew():
    images, policies = smooth_images(3), ((6, 13), (29, 0, 4))
    choice = Choice(jnp.array([0, 1]), jnp.array([[1.0, -1, 1], [1, 1, -1]]))
    found, _ = replaced(policies, choice, images)

    def one_by_one(images):
        one = images[:1]
        for number, sign in ((6, 1.0), (13, -1.0)):
            name, place = NUMBERED[number]
            one = OPERATIONS[name](one, jnp.array([sign]), float(RANGES[name][place]))
        # Inverted twice, and then less sharp.
        amount = float(RANGES["sharpness"][1])
        return one, OPERATIONS["sharpness"](images[1:], jnp.array([-1.0]), amount)

    one, other = quick_jit(one_by_one)(images)
    np.testing.assert_allclose(found[:1], one, atol=1e-6)
    np.testing.assert_allclose(found[1:], other, atol=1e-6)


def test_clients_draw_policies_and_signs_evenly():
    defence = transform_images(((0,), (1,)))
    secret = quick_jit(lambda: defence.draw_private(RNG, Private(), 1000))().secret
    assert abs(np.mean(secret.policy) - 0.5) < 0.06
    assert set(np.unique(secret.signs)) == {-1.0, 1.0}
    assert np.all(np.abs(np.mean(secret.signs, axis=0)) < 0.12)
    assert abs(np.corrcoef(secret.signs[:, 0], secret.signs[:, 1])[0, 1]) < 0.12


def test_a_search_can_follow_each_operation():
    def total(images, name):
        amount = float(RANGES.get(name, np.zeros(10))[6])
        return jnp.sum(OPERATIONS[name](images, jnp.ones(2), amount) ** 2)

    def slopes(images):
        return {name: jax.grad(total)(images, name) for name in OPERATIONS}

    for name, slope in quick_jit(slopes)(jnp.asarray(smooth_images(3))).items():
        assert np.all(np.isfinite(slope)) and np.any(slope != 0), name


def test_policies_are_read_as_they_are_written():
    for text in PUBLISHED:
        assert write_policies(read_policies(text)) == text
        arm = parse_arm(f"ats={text}/random_draws", unplaced_sites(), {})
        assert arm.simulates_inputs and arm.options == ()
        assert arm.skeleton == f"ats[policies={text}]"
    noisy = parse_arm(f"ats={PUBLISHED[2]}+gaussian-noise/known", unplaced_sites(), {})
    assert noisy.options == (0.01,)


@pytest.mark.parametrize(
    ("text", "message"),
    (
        ("ats=3-1-50/known", "has operation 50: they are numbered from 0 to 49"),
        ("ats=1-2-3-4/known", "'1-2-3-4' has 4 operations: give 1 to 3"),
        ("ats=3-/known", "policies '3-': write numbers"),
        ("ats/regress_mixing", "one of trained_on, known, random_draws"),
    ),
)
def test_policies_that_there_are_not_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_arm(text, unplaced_sites(), {})


def test_what_is_no_image_is_refused():
    choice = Choice(jnp.zeros(2, int), jnp.ones((2, 3)))
    for inputs in (np.zeros((2, 5)), np.zeros((2, 4, 4, 3), np.int32)):
        with pytest.raises(ValueError, match="ats transforms images"):
            replaced(((0,),), choice, inputs)
    with pytest.raises(ValueError, match="nothing says how ats transforms"):
        replaced(((0,),), (), smooth_images(3))


# --- the search ----------------------------------------------------------------------

KERNEL = random_images(HEIGHT * WIDTH, CLASSES).reshape(-1, CLASSES) - 0.5


def outputs(images):
    return jnp.tanh(images.reshape(len(images), -1) @ KERNEL)


def gradient(images, targets):
    def loss(weights):
        hidden = jnp.tanh(images.reshape(len(images), -1) @ weights["kernel"])
        return jnp.mean((hidden + weights["bias"] - targets) ** 2)

    weights = {"kernel": jnp.asarray(KERNEL), "bias": jnp.full((1, CLASSES), 0.1)}
    return jax.grad(loss)(weights)


quick_gradient = quick_jit(gradient)


def test_the_privacy_score_is_the_area_below_the_cosines():
    images = smooth_images(1)
    score = functools.partial(privacy_score, gradient, steps=4)
    found = quick_jit(score)(RNG, images, TARGETS)
    areas = []
    for n, rng in enumerate(jax.random.split(RNG, 2)):
        noise = np.asarray(jax.random.uniform(rng, images[n].shape))
        wanted, cosines = quick_gradient(images[n : n + 1], TARGETS[n : n + 1]), []
        for t in range(5):
            point = (t * images[n] + (4 - t) * noise) / 4
            grads = quick_gradient(point[None], TARGETS[n : n + 1])
            each = [
                np.sum(grads[k] * wanted[k])
                / np.linalg.norm(grads[k])
                / np.linalg.norm(wanted[k])
                for k in grads
            ]
            cosines.append(np.mean(each))
        assert cosines[-1] == pytest.approx(1, abs=1e-5)
        areas.append(
            sum((a + b) / 2 for a, b in zip(cosines[:-1], cosines[1:], strict=True)) / 4
        )
    assert float(found) == pytest.approx(np.mean(areas), rel=1e-4)
    assert found < 1 - 1e-3


def test_the_accuracy_score_tells_like_derivatives_from_unlike_ones():
    images = smooth_images(1)
    slopes = jax.grad(lambda x: jnp.sum(outputs(x)))(images).reshape(2, -1)
    one, other = np.linalg.eigvalsh(np.corrcoef(slopes)) + 1e-5
    wanted = -(np.log(one) + 1 / one + np.log(other) + 1 / other)
    found = quick_jit(functools.partial(accuracy_score, outputs))(images)
    assert float(found) == pytest.approx(wanted, rel=1e-3)
    same = quick_jit(functools.partial(accuracy_score, outputs))(images[[0, 0]])
    assert same < found - 100


def test_the_search_keeps_what_hides_most_of_what_trains_well_enough():
    transforms = []

    def privacy(rng, transform):
        transforms.append(transform)
        return float(jax.random.uniform(rng))

    def accuracy(rng, transform):
        return float(jax.random.uniform(rng))

    def search(threshold, kept=2):
        return search_policies(
            RNG, privacy, accuracy, candidates=20, threshold=threshold, kept=kept
        )

    everything = search(0.0, kept=15)
    assert [s.privacy for s in everything] == sorted(s.privacy for s in everything)
    good = [scored for scored in everything if scored.accuracy >= 0.5]
    assert good[:2] != everything[:2] and search(0.5) == good[:2]
    images = smooth_images(1)
    changed = quick_jit(lambda: [transform(images) for transform in transforms[:2]])()
    assert all(x.shape == images.shape for x in changed)
    assert np.any(changed[0] != changed[1])
    with pytest.raises(ValueError, match="0 of .* reach an accuracy score of 1"):
        search(1.0)
    with pytest.raises(ValueError, match="kept must be >= 1, got 0"):
        search(0.0, 0)
