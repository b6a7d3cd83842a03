"""Decoders of convolutions: against loops, in stages, and what does not fit."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

from kljax.core.files import DamagedFile
from kljax.core.generator import decode_from
from kljax.models.decoders import (
    FOLDER,
    Account,
    init_decoder,
    list_decoders,
    make_generator,
    read_decoder,
)
from kljax.models.flows import FlowAccount, init_flow
from kljax.models.trained_files import write_trained
from kljax.models.upsampling import folded, laid_out, map_sides

ACCOUNT = Account(
    dataset="toy",
    split=None,
    examples=9,
    shape=(9, 10, 1),
    num_classes=3,
    latents=2,
    widths=(),
    channels=(3, 2),
    seed=0,
    steps=1,
)


def drawn(account=ACCOUNT, seed=1):
    shapes = jax.eval_shape(lambda rng: init_decoder(account, rng), jax.random.key(0))
    generator = np.random.default_rng(seed)
    return {
        name: generator.standard_normal(shape.shape).astype(np.float32) / 3
        for name, shape in shapes.items()
    }


def slow_convolution(image, kernel):
    height, width, _ = image.shape
    out = np.zeros((height, width, kernel.shape[-1]))
    for i in range(height):
        for j in range(width):
            for u in range(3):
                for v in range(3):
                    y, x = i + u - 1, j + v - 1
                    if 0 <= y < height and 0 <= x < width:
                        out[i, j] += image[y, x] @ kernel[u, v]
    return out


def slow_gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def slow_layout(image, height, width):
    channels = image.shape[-1] // 4
    out = np.zeros((height, width, channels))
    for i in range(height):
        for j in range(width):
            for c in range(channels):
                place = (2 * (i % 2) + j % 2) * channels + c
                out[i, j, c] = image[i // 2, j // 2, place]
    return out


def test_a_decoder_by_loops():
    """Sides 5 x 5 and 9 x 10: one side is cut, the other is not."""
    weights, label = drawn(), 2
    latent = np.array([0.3, -1.2], np.float32)
    x = latent @ weights["first/kernel"] + weights["first/bias"][label]
    x = slow_gelu(x.reshape(5, 5, 3))
    x = slow_convolution(x, weights["maps/0/kernel"]) + weights["maps/0/bias"][label]
    x = slow_gelu(slow_layout(x, 9, 10))
    x = slow_convolution(x, weights["maps/1/kernel"]) + weights["maps/1/bias"][label]
    wanted = 1 / (1 + np.exp(-x))
    generator = made(weights)
    target = np.eye(3, dtype=np.float32)[[label]]
    found = generator.decode(weights, latent[None], target)
    np.testing.assert_allclose(found[0], wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ["decoder", "flow"])
def test_weights_are_drawn_apart_and_in_units_of_what_they_sum(kind):
    """Kernels are N(0, 1 / fan_in), and what a flow adds in the end begins at 0."""
    if kind == "decoder":
        account = dataclasses.replace(ACCOUNT, latents=30, channels=(8, 12))
        draw = init_decoder
    else:
        facts = {"dataset": "toy", "split": None, "examples": 9, "seed": 0, "steps": 1}
        account = FlowAccount(shape=(8, 8, 1), channels=(12,), **facts)
        draw = init_flow
    weights = quick_jit(lambda rng: draw(account, rng))(jax.random.key(2))
    firsts = []
    for name, leaf in weights.items():
        leaf = np.asarray(leaf)
        if name.endswith("bias") or name == "last/kernel":
            assert not leaf.any()
            continue
        standard = leaf * np.sqrt(np.prod(leaf.shape[:-1]))
        assert np.std(standard) == pytest.approx(1, abs=4 / np.sqrt(leaf.size))
        assert abs(np.mean(standard)) < 4 / np.sqrt(leaf.size)
        firsts.append(round(float(standard.flat[0]), 4))
    assert len(firsts) == len(set(firsts)) >= 3


def made(weights, account=ACCOUNT):
    return make_generator(account, weights, np.ones(account.examples, bool))


@pytest.mark.parametrize(
    ("side", "sides"),
    [(28, [7, 14, 28]), (25, [7, 13, 25]), (8, [4, 8]), (7, [7]), (32, [4, 8, 16, 32])],
)
def test_sides_of_maps(side, sides):
    assert map_sides((side, side, 1)) == [(n, n) for n in sides]


@pytest.mark.parametrize("side", (8, 7))
def test_folding_is_undone_by_laying_out(side):
    x = np.random.default_rng(0).random((2, side, side + 2, 3), np.float32)
    np.testing.assert_array_equal(laid_out(folded(x), x.shape[1:3]), x)
    half = -(-side // 2), -(-(side + 2) // 2)
    whole = np.pad(x, ((0, 0), (0, side % 2), (0, side % 2), (0, 0)))
    wanted = [
        whole[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(2, 12)
        for i, j in np.ndindex(half)
    ]
    found = np.asarray(folded(x))
    assert found.shape == (2, *half, 12)
    np.testing.assert_array_equal(found.reshape(2, -1, 12).swapaxes(0, 1), wanted)


@pytest.mark.parametrize("name", list_decoders())
def test_stages_one_after_another_are_the_decoder(name):
    generator = read_decoder(FOLDER / f"{name}.npz")
    latents = np.random.default_rng(3).standard_normal((2, generator.latents))
    targets = np.eye(generator.num_classes, dtype=np.float32)[[0, 1]]
    targets = jnp.asarray(targets)

    @quick_jit
    def run(latents):
        whole = generator.decode(generator.weights, latents, targets)
        features, others = latents, []
        for place, stage in enumerate(generator.stages):
            at = generator, place, generator.weights
            others.append(decode_from(*at, features, targets))
            features = stage(generator.weights, features, targets)
        return whole, [*others, features]

    whole, others = run(latents)
    for other in others:
        np.testing.assert_allclose(other, whole, atol=1e-4)
    assert len(generator.stages) >= 3


def test_what_is_written_is_read_back_and_damage_is_named(tmp_path):
    path, weights = tmp_path / "mine.npz", drawn()
    write_trained(path, ACCOUNT, weights, np.arange(9) % 2 == 0)
    found = read_decoder(path)
    np.testing.assert_array_equal(found.origin.public, np.arange(9) % 2 == 0)
    for name, leaf in weights.items():
        np.testing.assert_allclose(found.weights[name], leaf, atol=1e-3)
    with np.load(path) as file:
        held = {name: file[name] for name in file.files}
    account = dataclasses.asdict(ACCOUNT) | {"channels": [3, 2, 2]}
    np.savez(path, **held | {"account": np.array(json.dumps(account))})
    with pytest.raises(DamagedFile, match="has 2 maps, give the channels of each"):
        read_decoder(path)
    np.savez(path, **held | {"maps/1/bias": held["maps/1/bias"][:2]})
    with pytest.raises(DamagedFile, match=r"shape \(2, 1\), expected \(3, 1\)"):
        read_decoder(path)
