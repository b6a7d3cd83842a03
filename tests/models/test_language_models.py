"""BERT and GPT-2: by independent forms, from files, with dropout and adapters."""

import functools
import math

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file
from toys import quick_jit, random_weights

from kljax.models import (
    NETWORKS,
    adapted,
    bert,
    from_nnx,
    gpt,
    gpt_classifier,
    load_pretrained,
)
from kljax.models.losses import cross_entropy

D, H, V, T, LONGEST, DEPTH = 6, 2, 11, 4, 7, 2
SMALL = {"image_shape": (T,), "vocabulary": V, "width": D, "depth": DEPTH, "heads": H}
TOKENS = np.array([[3, 0, 10, 3], [7, 7, 1, 2]], np.int32)
RNG, OTHER = (jax.random.key(seed, impl="unsafe_rbg") for seed in (0, 1))


# --- files, as the library transformers names and lays out what is in them -----------


def bert_file(seed=0):
    draw = np.random.default_rng(seed)

    def dense(name, rows, columns):
        return {
            f"{name}.weight": draw.standard_normal((rows, columns)),
            f"{name}.bias": draw.standard_normal(rows),
        }

    def norm(name):
        return {
            f"{name}.weight": 1 + draw.standard_normal(D) / 4,
            f"{name}.bias": draw.standard_normal(D),
        }

    tensors = {
        "bert.embeddings.word_embeddings.weight": draw.standard_normal((V, D)),
        "bert.embeddings.position_embeddings.weight": draw.standard_normal(
            (LONGEST, D)
        ),
        "bert.embeddings.token_type_embeddings.weight": draw.standard_normal((2, D)),
        "bert.embeddings.position_ids": np.arange(LONGEST)[None],
        **norm("bert.embeddings.LayerNorm"),
        **dense("bert.pooler.dense", D, D),
        **dense("classifier", 3, D),
    }
    for i in range(DEPTH):
        layer = f"bert.encoder.layer.{i}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            tensors |= dense(f"{layer}.attention.{name}", D, D)
        tensors |= norm(f"{layer}.attention.output.LayerNorm")
        tensors |= dense(f"{layer}.intermediate.dense", 4 * D, D)
        tensors |= dense(f"{layer}.output.dense", D, 4 * D)
        tensors |= norm(f"{layer}.output.LayerNorm")
    return {name: np.asarray(t, np.float32) for name, t in tensors.items()}


def gpt_file(seed=0):
    draw = np.random.default_rng(seed)

    def conv(name, rows, columns):  # x @ weight + bias
        return {
            f"{name}.weight": draw.standard_normal((rows, columns)),
            f"{name}.bias": draw.standard_normal(columns),
        }

    def norm(name):
        return {
            f"{name}.weight": 1 + draw.standard_normal(D) / 4,
            f"{name}.bias": draw.standard_normal(D),
        }

    tensors = {
        "wte.weight": draw.standard_normal((V, D)),
        "wpe.weight": draw.standard_normal((LONGEST, D)),
        **norm("ln_f"),
    }
    for i in range(DEPTH):
        tensors |= conv(f"h.{i}.attn.c_attn", D, 3 * D)
        tensors |= conv(f"h.{i}.attn.c_proj", D, D)
        tensors |= conv(f"h.{i}.mlp.c_fc", D, 4 * D)
        tensors |= conv(f"h.{i}.mlp.c_proj", 4 * D, D)
        tensors |= norm(f"h.{i}.ln_1") | norm(f"h.{i}.ln_2")
        tensors[f"h.{i}.attn.bias"] = np.tril(np.ones((1, 1, LONGEST, LONGEST)))
    return {name: np.asarray(t, np.float32) for name, t in tensors.items()}


# --- independent forms, on the tensors of a file -------------------------------------


def normalise(x, t, name, epsilon):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + epsilon) * t[f"{name}.weight"] + t[f"{name}.bias"]


def attend(q, k, v, causal):
    """One head and one token at a time."""
    out, width = np.zeros_like(q), D // H
    for h in range(H):
        part = slice(h * width, (h + 1) * width)
        for i in range(len(q)):
            seen = range(i + 1 if causal else len(q))
            weights = [math.exp(q[i, part] @ k[j, part] / width**0.5) for j in seen]
            total = sum(w * v[j, part] for w, j in zip(weights, seen, strict=True))
            out[i, part] = total / sum(weights)
    return out


def bert_by_hand(tensors, tokens):
    t = {n.removeprefix("bert."): np.float64(x) for n, x in tensors.items()}

    def dense(x, name):
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    x = t["embeddings.word_embeddings.weight"][tokens]
    x = x + t["embeddings.position_embeddings.weight"][:T]
    x = x + t["embeddings.token_type_embeddings.weight"][0]
    x = normalise(x, t, "embeddings.LayerNorm", 1e-12)
    for i in range(DEPTH):
        layer = f"encoder.layer.{i}"
        q, k, v = (
            dense(x, f"{layer}.attention.self.{name}")
            for name in ("query", "key", "value")
        )
        mixed = dense(attend(q, k, v, False), f"{layer}.attention.output.dense")
        x = normalise(x + mixed, t, f"{layer}.attention.output.LayerNorm", 1e-12)
        hidden = dense(x, f"{layer}.intermediate.dense")
        hidden = hidden * (1 + np.vectorize(math.erf)(hidden / 2**0.5)) / 2
        out = dense(hidden, f"{layer}.output.dense")
        x = normalise(x + out, t, f"{layer}.output.LayerNorm", 1e-12)
    return dense(np.tanh(dense(x[0], "pooler.dense")), "classifier")


def gpt_by_hand(tensors, tokens):
    t = {name: np.float64(x) for name, x in tensors.items()}

    def conv(x, name):
        return x @ t[f"{name}.weight"] + t[f"{name}.bias"]

    x = t["wte.weight"][tokens] + t["wpe.weight"][:T]
    for i in range(DEPTH):
        joined = conv(normalise(x, t, f"h.{i}.ln_1", 1e-5), f"h.{i}.attn.c_attn")
        q, k, v = joined[:, :D], joined[:, D : 2 * D], joined[:, 2 * D :]
        x = x + conv(attend(q, k, v, True), f"h.{i}.attn.c_proj")
        y = conv(normalise(x, t, f"h.{i}.ln_2", 1e-5), f"h.{i}.mlp.c_fc")
        y = y * (1 + np.tanh((2 / np.pi) ** 0.5 * (y + 0.044715 * y**3))) / 2
        x = x + conv(y, f"h.{i}.mlp.c_proj")
    return normalise(x, t, "ln_f", 1e-5) @ t["wte.weight"].T


KINDS = {
    "bert": (functools.partial(bert, 3), bert_file, bert_by_hand),
    "gpt": (functools.partial(gpt, V), gpt_file, gpt_by_hand),
}


def loaded(kind, tmp_path, change=lambda tensors: None):
    factory, make, _ = KINDS[kind]
    tensors = make()
    change(tensors)
    save_file(tensors, tmp_path / "weights.safetensors")

    def build(rngs):
        return load_pretrained(
            factory(**SMALL, rngs=rngs), tmp_path / "weights.safetensors"
        )

    return from_nnx(build), tensors


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_a_file_give_the_network_written_by_hand(kind, tmp_path):
    model, tensors = loaded(kind, tmp_path)
    params, _ = quick_jit(model.init)(RNG)
    run = quick_jit(lambda params: model.apply(params, {}, TOKENS, train=True).logits)
    expected = np.stack([KINDS[kind][2](tensors, s) for s in TOKENS])
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(run(params), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (
            "gpt",
            lambda t: t.update({"h.1.ln_9": t.pop("h.1.ln_1.bias")}),
            "missing h.1.ln_1.bias; unexpected h.1.ln_9",
        ),
        (
            "bert",
            lambda t: t.pop("bert.encoder.layer.0.output.dense.weight"),
            "missing encoder.layer.0.output.dense.weight; unexpected none",
        ),
        (
            "gpt",
            lambda t: t.update({"wte.weight": np.zeros((V + 1, D), np.float32)}),
            r"'wte.weight' of shape \(12, 6\) does not fit 'tokens/embedding' of shape",
        ),
        (
            "gpt",
            lambda t: t.update({"wpe.weight": np.zeros((T - 1, D), np.float32)}),
            r"'wpe.weight' of shape \(3, 6\) does not fit 'positions' of shape \(4, 6",
        ),
        (
            "gpt",
            lambda t: t.update({"h.0.attn.c_attn.weight": np.zeros((D, 6), "f")}),
            r"'h.0.attn.c_attn.weight' of shape \(6, 6\) does not fit",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(kind, change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        loaded(kind, tmp_path, change)


def test_a_head_that_is_not_in_the_file_is_drawn(tmp_path):
    def headless(tensors):
        for name in ("classifier.weight", "classifier.bias"):
            tensors.pop(name)

    model, tensors = loaded("bert", tmp_path, headless)
    one, other = (quick_jit(model.init)(rng)[0] for rng in (RNG, OTHER))
    assert np.all(one["fc/kernel"] != other["fc/kernel"])
    np.testing.assert_array_equal(
        one["pooler/kernel"], tensors["bert.pooler.dense.weight"].T
    )
    np.testing.assert_array_equal(one["pooler/kernel"], other["pooler/kernel"])


def test_another_network_takes_no_such_weights(tmp_path):
    save_file(gpt_file(), tmp_path / "weights.safetensors")
    untied = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="GPT-2 has no parameter '(kernel|bias)'"):
        load_pretrained(untied, tmp_path / "weights.safetensors")


# --- dropout, draws, the catalogue ---------------------------------------------------


def test_dropout_acts_in_train_mode_alone():
    share = 0.25
    model = from_nnx(lambda rngs: bert(3, **SMALL, dropout=share, rngs=rngs))
    plain = from_nnx(lambda rngs: bert(3, **SMALL, rngs=rngs))
    params, _ = random_weights(model)
    taps = ("blocks/0/dropout:input", "blocks/0/attention:input", "embedding_norm")

    @quick_jit
    def run(rng):
        return model.apply(params, {}, TOKENS, train=True, rngs=rng, taps=taps[1:])

    one, same, other = (run(jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.logits, same.logits)
    assert np.all(one.logits != other.logits)
    fed, normed = one.taps[taps[1]], one.taps[taps[2]]
    kept = fed != 0
    assert 0.5 < np.mean(kept) < 0.95
    np.testing.assert_allclose(fed[kept], normed[kept] / (1 - share), rtol=1e-5)
    still = quick_jit(
        lambda: [
            m.apply(params, {}, TOKENS, train=train).logits
            for m, train in ((model, False), (plain, True))
        ]
    )()
    np.testing.assert_allclose(*still, rtol=1e-4, atol=1e-5)


def test_weights_are_drawn_as_theirs():
    wide = {"width": 64, "heads": 2, "vocabulary": 50, "depth": 2, "image_shape": (9,)}
    for factory, shrink in ((bert, 1), (gpt, 2)):
        model = from_nnx(lambda rngs, f=factory: f(3, **wide, rngs=rngs))
        params, _ = quick_jit(model.init)(jax.random.key(0, impl="unsafe_rbg"))
        for path, leaf in params.items():
            if path.endswith("bias"):
                np.testing.assert_array_equal(leaf, 0)
            elif path.endswith("scale"):
                np.testing.assert_array_equal(leaf, 1)
            elif leaf.size > 1000:
                under = path.endswith(("out/kernel", "contract/kernel"))
                std = 0.02 / (shrink if under else 1)
                assert 0.9 * std < np.std(leaf) < 1.1 * std, path


SIZED = {"tiny": (2, 64), "small": (4, 256), "base": (12, 768)}
NAMES = [f"{n}" for n in NETWORKS if n.startswith(("bert-", "gpt-"))]


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_the_catalogue_have_the_stated_sizes(name):
    network, (depth, width) = NETWORKS[name], SIZED[name.split("-")[1]]
    count = 3 if "bert" in name or "classifier" in name else 9

    def shapes(sites):
        built = nnx.eval_shape(
            lambda: network.factory(
                count,
                image_shape=(4,),
                vocabulary=9,
                lockable=sites,
                rngs=nnx.Rngs(0),
            )
        )
        flat = nnx.to_flat_state(nnx.state(built, nnx.Param))
        return {"/".join(map(str, parts)): leaf.shape for parts, leaf in flat}

    plain = shapes(())
    assert plain["tokens/embedding"] == (9, width)
    assert f"blocks/{depth - 1}/norm1/scale" in plain
    assert f"blocks/{depth}/norm1/scale" not in plain
    taken = {f"{s}/{part}" for s in network.all_sites for part in ("scale", "bias")}
    assert plain.keys() - shapes(network.all_sites).keys() == taken
    assert network.sites == network.all_sites[:1]
    assert (network.classifier == "fc") == ("fc/kernel" in plain)


def test_every_size_is_in_the_catalogue():
    assert len(NAMES) == 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dropout": 1.0}, r"dropout=1.0 must be in \[0, 1\)"),
        ({"causal": True}, "pooled=True classifies a sentence by its first token"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        bert(3, **SMALL, **changes, rngs=nnx.Rngs(0))


# --- adapters ------------------------------------------------------------------------


def with_adapters(**options):
    factory = adapted(gpt_classifier, **{"rank": 2} | options)
    return from_nnx(lambda rngs: factory(3, **SMALL, rngs=rngs))


@pytest.mark.slow
def test_adapters_alone_are_parameters_and_start_as_nothing():
    model = with_adapters(projections=("query", "expand", "out"), trained=("fc",))
    one, other = (quick_jit(model.init)(rng)[0] for rng in (RNG, OTHER))
    expected = {
        f"blocks/{i}/{layer}/{part}/kernel"
        for i in range(DEPTH)
        for layer in ("attention/query", "attention/out", "expand")
        for part in ("down", "up")
    } | {"fc/kernel", "fc/bias"}
    assert one.keys() == expected
    assert one["blocks/0/attention/query/down/kernel"].shape == (D, 2)
    assert one["blocks/0/expand/up/kernel"].shape == (2, 4 * D)
    # The rest is the same for all, and is the network that key(0) draws.
    plain = from_nnx(lambda rngs: gpt_classifier(3, **SMALL, rngs=rngs))
    run = quick_jit(lambda p: model.apply(p, {}, TOKENS, train=True).logits)
    base, _ = quick_jit(plain.init)(jax.random.key(0))
    head = {name: other[name] for name in ("fc/kernel", "fc/bias")}
    expected = plain.apply(base | head, {}, TOKENS, train=True).logits
    np.testing.assert_allclose(run(other), expected, rtol=1e-5, atol=1e-6)


def test_an_adapter_adds_the_product_of_its_matrices():
    model = with_adapters(alpha=6.0, projections=("query", "out"))
    params, _ = random_weights(model)
    layers = ("blocks/0/attention/query", "blocks/0/attention/out")
    for path in layers:
        names = (f"{path}:input", path, f"{path}/layer")
        taps = model.apply(params, {}, TOKENS, train=True, taps=names).taps
        fed, given, base = (np.asarray(taps[name], np.float64) for name in names)
        down, up = (params[f"{path}/{part}/kernel"] for part in ("down", "up"))
        expected = 3.0 * fed.reshape(2, T, D) @ (down @ up)
        np.testing.assert_allclose(
            (given - base).reshape(2, T, D), expected, rtol=1e-3, atol=1e-4
        )


def test_gradients_reach_adapters():
    model = with_adapters()
    params, _ = random_weights(model)

    def loss(params):
        logits = model.apply(params, {}, TOKENS, train=True).logits
        return cross_entropy(logits, np.eye(3, dtype=np.float32)[[0, 2]])

    grads = quick_jit(jax.grad(loss))(params)
    assert set(grads) == set(params)
    assert all(np.any(leaf != 0) for leaf in grads.values())


def test_studies_know_what_a_factory_with_adapters_takes():
    factory = adapted(functools.partial(gpt, width=8), rank=1)
    network = NETWORKS["gpt-tiny"]._replace(factory=factory)
    assert network.accepts("vocabulary") and network.accepts("lockable")
    assert not network.accepts("rank")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank of adapters is 0"),
        ({"projections": ("querry",)}, "no dense layers 'querry'.*attention/query, "),
        ({"trained": ("classifier",)}, "no dense layers 'classifier' .* fc"),
    ],
)
def test_adapters_of_what_is_not_there_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        with_adapters(**options)
