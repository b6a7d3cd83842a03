"""The transformers of sentences: their formula, their mask, their site."""

import jax
import numpy as np
import pytest
from by_hand import parameter_shapes
from toys import check_refused, quick_jit, random_weights

from kljax.core.types import Gate
from kljax.models import NETWORKS, Transformer, from_nnx, uniform
from kljax.models.losses import cross_entropy

SMALL = {"image_shape": (4,), "vocabulary": 11, "width": 6, "depth": 2, "heads": 2}
RNG = jax.random.key(1, impl="unsafe_rbg")  # the kind that is quickest to compile
TOKENS = np.array([[3, 0, 10, 3], [7, 7, 1, 2]], np.int32)


def build(**changes):
    return lambda rngs: Transformer(3, rngs=rngs, **(SMALL | changes))


def formula(params, sentences, gate, *, causal, tied):
    """One sentence at a time, one head at a time, one token at a time."""
    p = {path: np.asarray(leaf, np.float64) for path, leaf in params.items()}

    def norm(x, path):
        mean, var = np.mean(x, -1, keepdims=True), np.var(x, -1, keepdims=True)
        x = (x - mean) / np.sqrt(var + 1e-5)
        x = x * p[f"{path}/scale"] + p[f"{path}/bias"]
        return gate.scale * x + gate.shift if path == "blocks/0/norm1" else x

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
                seen = range(i + 1 if causal else len(x))
                weights = np.exp([q[i] @ k[j] / np.sqrt(3) for j in seen])
                mean = sum(w * v[j] for j, w in zip(seen, weights, strict=True))
                out[i] += mean / weights.sum() @ p[f"{path}/out/kernel"][head]
        return out + p[f"{path}/out/bias"]

    def perceptron(x, path):
        x = dense(norm(x, f"{path}/norm2"), f"{path}/expand")
        cube = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
        return dense(0.5 * x * (1 + np.tanh(cube)), f"{path}/contract")

    logits = []
    for tokens in sentences:
        x = p["tokens/embedding"][tokens] + p["positions"]
        for block in ("blocks/0", "blocks/1"):
            x = x + attention(norm(x, f"{block}/norm1"), f"{block}/attention")
            x = x + perceptron(x, block)
        x = norm(x, "norm")
        x = x[-1] if causal else x.mean(axis=0)
        logits.append(p["tokens/embedding"][:3] @ x if tied else dense(x, "fc"))
    return np.stack(logits)


@pytest.mark.parametrize(
    ("causal", "tied"), [(False, False), (True, False), (False, True)]
)
def test_the_network_equals_the_formula(causal, tied):
    model = from_nnx(build(causal=causal, tied=tied))
    params, stats = random_weights(model)
    assert not stats and ("fc/kernel" in params) != tied
    gate = Gate(*np.random.default_rng(2).random((2, 6), np.float32))

    def logits(params, inputs):
        gates = {"blocks/0/norm1": gate}
        return model.apply(params, {}, inputs, gates=gates, train=True).logits

    run = quick_jit(logits)
    found = run(params, TOKENS)
    expected = formula(params, TOKENS, gate, causal=causal, tied=tied)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert np.ptp(expected) > 0.1
    # Embeddings stand for their tokens.
    embedded = params["tokens/embedding"][TOKENS]
    np.testing.assert_allclose(run(params, embedded), found, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ("encoder", "causal", "language model"))
@pytest.mark.parametrize("embedded", (False, True))
def test_a_padded_sentence_is_the_shorter_one(kind, embedded):
    changes = {"causal": kind != "encoder", "per_token": kind == "language model"}
    wide = from_nnx(build(padded=True, depth=1, **changes))
    narrow = from_nnx(build(image_shape=(2,), depth=1, **changes))
    params, _ = random_weights(wide)
    # What stands at the places of padding is poisoned: nothing may depend on it.
    params["positions"] = np.array(params["positions"])
    params["positions"][2:] = 1e6
    short = {**params, "positions": params["positions"][:2]}
    sentences = np.array([[3, 10], [7, 1]], np.int32)
    longer = np.pad(sentences, ((0, 0), (0, 2)), constant_values=-1)
    if embedded:
        sentences = params["tokens/embedding"][sentences]
        longer = np.pad(sentences, ((0, 0), (0, 2), (0, 0)))
    if kind == "language model":
        targets = np.array([[2, 0], [1, 1]])
        padded_targets = np.pad(targets, ((0, 0), (0, 2)), constant_values=-1)
    else:
        targets = padded_targets = np.array([2, 0])

    def loss(params, model, inputs, labels):
        logits = model.apply(params, {}, inputs, train=True).logits
        return cross_entropy(logits, jax.nn.one_hot(labels, 3))

    run = quick_jit(jax.value_and_grad(loss), static_argnums=1)
    value, grads = run(params, wide, longer, padded_targets)
    expected, their_grads = run(short, narrow, sentences, targets)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for path, leaf in their_grads.items():
        mine = grads[path][:2] if path == "positions" else grads[path]
        np.testing.assert_allclose(mine, leaf, rtol=1e-4, atol=1e-5, err_msg=path)
    np.testing.assert_array_equal(grads["positions"][2:], 0)


def test_initial_weights():
    own = quick_jit(from_nnx(build(width=32, vocabulary=60, depth=1)).init)(RNG)[0]
    for path in ("tokens/embedding", "positions"):
        assert 0.8 < np.std(own[path]) < 1.2
    model = from_nnx(build(initialiser=uniform(0.5), depth=1))
    drawn = quick_jit(model.init)(RNG)[0]
    for path, leaf in drawn.items():
        if "norm" in path:
            np.testing.assert_array_equal(leaf, 1.0 if "scale" in path else 0.0)
        else:
            assert 0.2 < np.max(np.abs(leaf)) <= 0.5, path


@pytest.mark.parametrize(
    "name", ("transformer", "causal-transformer", "language-model")
)
def test_rows_of_the_catalogue_fit_their_network(name):
    network = NETWORKS[name]
    assert network.inputs == "text" and network.accepts("vocabulary")

    def shapes(sites):
        return parameter_shapes(
            lambda rngs: network.factory(
                5, image_shape=(4,), vocabulary=9, lockable=sites, rngs=rngs
            )
        )

    plain = shapes(())
    assert plain[f"{network.classifier}/kernel"][-1] == 5
    for sites in (network.sites, network.all_sites):
        taken = {f"{site}/{part}" for site in sites for part in ("scale", "bias")}
        assert plain.keys() - shapes(sites).keys() == taken
    norms = {path.rpartition("/")[0] for path in plain if path.endswith("scale")}
    assert norms == set(network.all_sites)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image_shape": (8, 8, 3)},
            r"shape \(T,\), got \(8, 8, 3\): for images.* vit",
        ),
        ({"heads": 4}, "width=6.* heads=4.* must divide width"),
        ({"depth": 0}, "depth=0.* at least 1"),
        ({"vocabulary": 2, "tied": True}, "3 classes cannot be tied to 2 tokens"),
        ({"lockable": ("norm1",)}, "'norm1'.* those are blocks/0/norm1, "),
    ],
)
def test_bad_arguments_are_refused_by_name(changes, message):
    check_refused(build(**changes), message)


@pytest.mark.parametrize("shape", ((2, 5), (2, 4, 7)))
def test_inputs_of_another_shape_are_refused(shape):
    model = from_nnx(build())
    dtype = np.int32 if len(shape) == 2 else np.float32
    with pytest.raises(ValueError, match=r"expected tokens \[B, 4\] or .* 4, 6\]"):
        jax.eval_shape(
            lambda: model.apply(
                *model.init(jax.random.key(0)), np.zeros(shape, dtype), train=False
            )
        )
