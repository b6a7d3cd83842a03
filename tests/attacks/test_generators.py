"""GRNN's generator against torch, and what it refuses."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit, setting, threat

from kljax.attacks import Candidate
from kljax.attacks.generators import (
    generated_images,
    generated_labels,
    image_branch,
    label_branch,
)
from kljax.attacks.optimisers import rmsprop
from kljax.attacks.priors import squared_variation
from kljax.core.inputs import images_of
from kljax.defences import none

GOLDENS = np.load(Path(__file__).parents[1] / "goldens" / "grnn.npz")
INPUTS, WIDTHS = 5, (64, 32, 3)


def formula(shape, number):
    """Gives the numbers of tests/goldens/grnn_goldens.py."""
    index = np.arange(np.prod(shape), dtype=np.float64)
    return np.sin(1.7 * index + 0.9 * number + 0.001 * index**2).reshape(shape)


def weights():
    """Gives the generator's weights of the formula, in this layout."""

    def small(shape, number):
        return np.float32(0.3 * formula(shape, number))

    blocks = []
    for i, (before, after) in enumerate(zip(WIDTHS[:-1], WIDTHS[1:], strict=True)):
        kernel = small((2 * after, before, 3, 3), 2 + 3 * i)
        blocks.append(
            {
                "kernel": kernel.transpose(2, 3, 1, 0),
                "scale": 1 + small(2 * after, 3 + 3 * i),
                "bias": small(2 * after, 4 + 3 * i),
            }
        )
    first = small((INPUTS, 2 * WIDTHS[0], 4, 4), 0)
    return {
        "first": {
            "kernel": first.transpose(0, 2, 3, 1),
            "bias": small(2 * WIDTHS[0], 1),
        },
        "blocks": blocks,
    }


NOISE = np.float32(formula((2, INPUTS), 10))


def last(images):
    """Turns torch's [B, C, H, W] round."""
    return images.transpose(0, 2, 3, 1)


def test_the_image_branch_is_torchs():
    images = quick_jit(image_branch)(weights(), NOISE)
    np.testing.assert_allclose(images, last(GOLDENS["images"]), atol=2e-5)
    assert np.std(images) > 0.1


def test_faint_maps_are_held_back_by_the_epsilon():
    """One block by loops, of maps whose variance is of the order of 1e-5."""
    generator = np.random.default_rng(1)
    drawn = generator.normal(size=(2, 3)), generator.normal(size=(3, 4, 4, 4))
    noise, first = (x.astype(np.float32) for x in drawn)
    first *= 3e-3
    kernel = generator.normal(size=(3, 3, 2, 2)).astype(np.float32)
    block = {
        "kernel": kernel,
        "scale": np.float32([2, 3]),
        "bias": np.float32([0.5, 1]),
    }
    images = image_branch(
        {
            "first": {"kernel": first, "bias": np.zeros(4, np.float32)},
            "blocks": [block],
        },
        noise,
    )

    def gated(x):
        half = x.shape[-1] // 2
        return x[..., :half] / (1 + np.exp(-x[..., half:]))

    x = gated(np.einsum("bi,ihwc->bhwc", noise, first).astype(np.float64))
    x = np.pad(x.repeat(2, axis=1).repeat(2, axis=2), ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = np.zeros((2, 8, 8, 2))
    for i, j in np.ndindex(3, 3):
        out += x[:, i : i + 8, j : j + 8] @ kernel[i, j]
    for c in range(2):
        variance = np.var(out[..., c])
        assert 1e-6 < variance < 1e-3
        out[..., c] = (out[..., c] - np.mean(out[..., c])) / (variance + 1e-5) ** 0.5
    expected = 1 / (1 + np.exp(-gated(out * block["scale"] + block["bias"])))
    np.testing.assert_allclose(images, expected, atol=1e-5)


def test_the_label_branch_is_torchs():
    dense = {
        "kernel": np.float32(0.3 * formula((4, INPUTS), 8).T),
        "bias": np.float32(0.3 * formula(4, 9)),
    }
    np.testing.assert_allclose(label_branch(dense, NOISE), GOLDENS["labels"], atol=1e-6)


def test_variation_is_that_of_the_code():
    images = jnp.asarray(last(GOLDENS["images"]), jnp.float32)
    found = squared_variation(0.5)(None, Candidate(images, None, None), 0.0)
    assert found == pytest.approx(0.5 * float(GOLDENS["variation"]), rel=1e-5)


def test_rmsprop_is_torchs():
    def step(carry, _):
        free, state = carry
        grads = (GOLDENS["a"] * (free[0] ** 3 - 1), (), ())
        free, state = OPTIMISER.step(free, state, 0.0, grads)
        return (free, state), free[0]

    start = (jnp.asarray(GOLDENS["x0"], jnp.float32), (), ())
    _, iterates = jax.lax.scan(step, (start, OPTIMISER.init(start)), length=40)
    np.testing.assert_allclose(iterates, GOLDENS["iterates"], rtol=2e-4, atol=2e-4)


OPTIMISER = rmsprop(0.01, momentum=0.99)


def test_training_the_generator_follows_torch():
    optimiser = rmsprop(1e-3, momentum=0.9)
    target = last(np.float32(formula((2, 3, 16, 16), 11)))

    def loss(free):
        return jnp.mean((image_branch(free[0], NOISE) - target) ** 2)

    def step(carry, _):
        free, state = carry
        value, grads = jax.value_and_grad(loss)(free)
        return optimiser.step(free, state, value, grads), value

    start = (jax.tree.map(jnp.asarray, weights()), (), ())
    run = quick_jit(lambda carry: jax.lax.scan(step, carry, length=15)[1])
    losses = run((start, optimiser.init(start)))
    assert losses[-1] < 0.95 * losses[0]
    np.testing.assert_allclose(losses, GOLDENS["losses"], rtol=1e-3)


def ground(side=8, width=None):
    shape = (side, side if width is None else width, 3)
    return setting(threat(examples=2), none(), inputs=images_of(shape))


@pytest.mark.parametrize("side", (8, 32))
def test_what_is_free_are_weights_of_torchs_size(side):
    unknown = generated_images(ground(side), inputs=7)
    free, noise = jax.eval_shape(lambda rng: unknown.start(rng, None), RNG)
    images = jax.eval_shape(unknown.decode, free, noise)
    assert images.shape == (2, side, side, 3) and noise.shape == (2, 7)
    expected = {
        8: 7 * 64 * 16 + 64 + 32 * 6 * 9 + 12,
        # 128 -> 64 -> 32 -> 3
        32: 7 * 256 * 16
        + 256
        + 9 * (128 * 128 + 64 * 64 + 32 * 6)
        + 2 * (128 + 64 + 6),
    }
    assert sum(leaf.size for leaf in jax.tree.leaves(free)) == expected[side]


RNG = jax.random.key(3)


def test_weights_are_drawn_as_in_torch():
    free, labels = quick_jit(
        lambda rng: (
            generated_images(ground(16)).start(rng, None)[0],
            generated_labels(ground(16)).start(rng, None)[0],
        )
    )(RNG)
    for leaf, fan in (
        (free["first"]["kernel"], 128 * 16),
        (free["first"]["bias"], 128 * 16),
        (free["blocks"][0]["kernel"], 9 * 64),
        (labels["kernel"], 128),
    ):
        assert 0.9 * fan**-0.5 < np.max(np.abs(leaf)) <= fan**-0.5
    np.testing.assert_array_equal(free["blocks"][1]["scale"], 1)
    np.testing.assert_array_equal(free["blocks"][1]["bias"], 0)


def test_noise_weights_and_layers_are_drawn_apart():
    """Nothing that is drawn is what something else begins with."""
    free, noise = quick_jit(lambda rng: generated_images(ground(32)).start(rng, None))(
        RNG
    )
    drawn = [free["first"]["kernel"], free["first"]["bias"], noise]
    drawn += [block["kernel"] for block in free["blocks"]]
    starts = [np.ravel(leaf)[:6] / np.std(leaf) for leaf in drawn]
    for n, one in enumerate(starts):
        for other in starts[:n]:
            assert np.min(np.abs(one - other)) > 1e-4
    assert noise.shape == (2, 128)
    assert abs(np.mean(noise)) < 0.3 and abs(np.std(noise) - 1) < 0.2
    assert np.min(free["first"]["kernel"]) < 0 < np.max(free["first"]["kernel"])


def test_generated_labels_are_shares():
    free, noise = generated_labels(ground(16)).start(RNG, None)
    assert noise.shape == (2, 128)  # GRNN's code
    labels = generated_labels(ground(16)).decode(free, noise)
    assert labels.shape == (2, 3)
    np.testing.assert_allclose(np.sum(labels, axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize("sides", ((12, 12), (4, 4), (2, 2), (1, 1), (0, 0), (16, 32)))
def test_images_that_no_doubling_reaches_are_refused(sides):
    with pytest.raises(ValueError, match=f"is {sides[0]} x {sides[1]}"):
        generated_images(ground(*sides))
