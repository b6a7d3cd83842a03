"""The vision transformer: its size as published, its formula, its site."""

import jax
import numpy as np
import pytest
from by_hand import parameter_count, parameter_shapes
from toys import check_refused, quick_jit, random_images, random_weights

from kljax.core.types import Gate
from kljax.models import NETWORKS, VisionTransformer, from_nnx, site_widths, uniform

SMALL = {"image_shape": (4, 6, 2), "width": 6, "depth": 2, "heads": 2, "patch": 2}
IMAGES = random_images(2, 4, 6, 2)
RNG = jax.random.key(1, impl="unsafe_rbg")  # the kind that is quickest to compile
TOKENS = 7  # 2 x 3 patches and the class token


def build(**changes):
    return lambda rngs: VisionTransformer(3, rngs=rngs, **(SMALL | changes))


@pytest.mark.parametrize(
    ("width", "heads", "published"),
    [(192, 3, 5_717_416), (384, 6, 22_050_664), (768, 12, 86_567_656)],
)
def test_published_parameter_counts(width, heads, published):
    """timm's vit_{tiny,small,base}_patch16_224, but for the norm that is left out."""
    options = {"image_shape": (224, 224, 3), "depth": 12, "patch": 16}
    count = parameter_count(
        lambda rngs: VisionTransformer(
            1000, width=width, heads=heads, rngs=rngs, **options
        )
    )
    assert count == published - 2 * width


def standardised(x):
    mean, var = np.mean(x, -1, keepdims=True), np.var(x, -1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6)


def formula(params, images, gate):
    """One example at a time, one head at a time, one token at a time."""
    p = {path: np.asarray(leaf, np.float64) for path, leaf in params.items()}

    def norm(x, path):
        return standardised(x) * p[f"{path}/scale"] + p[f"{path}/bias"]

    def dense(x, path):
        return x @ p[f"{path}/kernel"] + p[f"{path}/bias"]

    def attention(x, path):
        out = np.zeros_like(x)
        for head in range(2):
            q, k, v = (
                x @ p[f"{path}/{name}/kernel"][:, head] + p[f"{path}/{name}/bias"][head]
                for name in ("query", "key", "value")
            )
            for i in range(len(x)):
                weights = np.exp([q[i] @ k[j] / np.sqrt(3) for j in range(len(x))])
                seen = sum(w * v[j] for j, w in enumerate(weights / weights.sum()))
                out[i] += seen @ p[f"{path}/out/kernel"][head]
        return out + p[f"{path}/out/bias"]

    def perceptron(x, path):
        x = dense(norm(x, f"{path}/norm2"), f"{path}/expand")
        cube = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
        return dense(0.5 * x * (1 + np.tanh(cube)), f"{path}/contract")

    logits = []
    for image in images:
        tokens = [p["token"]]
        for i, j in np.ndindex(2, 3):
            cut = image[2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            embedded = np.tensordot(cut, p["patch/kernel"], 3) + p["patch/bias"]
            tokens.append(gate.scale * embedded + gate.shift)
        x = np.stack(tokens) + p["positions"]
        x = attention(x, "blocks/0/attention")
        x = x + perceptron(x, "blocks/0")
        x = x + attention(norm(x, "blocks/1/norm1"), "blocks/1/attention")
        x = x + perceptron(x, "blocks/1")
        logits.append(dense(norm(x, "norm")[0], "fc"))
    return np.stack(logits)


@pytest.mark.parametrize("gated", (False, True))
def test_the_network_equals_the_formula(gated):
    model = from_nnx(build())
    params, stats = random_weights(model)
    assert params["positions"].shape == (TOKENS, 6) and not stats
    gate = Gate(*random_images(2, 6)) if gated else Gate(np.ones(6), np.zeros(6))
    gates = {"patch": jax.tree.map(np.float32, gate)} if gated else {}
    out = quick_jit(lambda p: model.apply(p, {}, IMAGES, gates=gates, train=True))
    expected = formula(params, IMAGES, gate)
    np.testing.assert_allclose(out(params).logits, expected, rtol=1e-4, atol=1e-4)
    assert np.ptp(expected) > 0.1


def test_its_site_is_the_patch_embedding():
    network = NETWORKS["vit"]
    model = from_nnx(lambda rngs: network.factory(10, rngs=rngs))
    assert network.sites == network.all_sites == ("patch",) and not network.chain
    assert site_widths(model, network.sites, (32, 32, 3)) == (128,)


def test_nothing_is_in_front_of_the_first_attention():
    norms = {path for path in parameter_shapes(build()) if path.endswith("norm1/scale")}
    assert norms == {"blocks/1/norm1/scale"}


def test_initial_weights():
    own = quick_jit(from_nnx(build(width=96)).init)(RNG)[0]
    np.testing.assert_array_equal(own["patch/bias"], 0)
    for path in ("token", "positions"):
        assert 0.015 < np.std(own[path]) < 0.025
    model = from_nnx(build(initialiser=uniform(0.5)))
    drawn = quick_jit(model.init)(RNG)[0]
    for path, leaf in drawn.items():
        if "norm" in path:
            np.testing.assert_array_equal(leaf, 1.0 if "scale" in path else 0.0)
        else:
            assert 0.2 < np.max(np.abs(leaf)) <= 0.5, path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_shape": (4, 5, 2)}, r"\(4, 5, 2\) cannot be cut .* 2 x 2.* of 2"),
        ({"image_shape": (5, 4, 2)}, r"\(5, 4, 2\) cannot be cut"),
        ({"heads": 4}, "width=6.* heads=4.* must divide width"),
        ({"depth": 0}, "depth=0.* at least 1"),
        ({"patch": 0}, "patch=0.* at least 1"),
    ],
)
def test_bad_arguments_are_refused_by_name(changes, message):
    check_refused(build(**changes), message)
