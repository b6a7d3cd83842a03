"""Networks as pure functions: what `from_nnx` splits apart, and what `apply` does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from toys import quick_jit, random_images, random_weights

from kljax.models import (
    VGG,
    Dense,
    LeNet,
    from_nnx,
    resnet20,
    site_widths,
    uniform,
)
from kljax.models.losses import cross_entropy


class Frequency(nnx.Variable):
    """A constant that its author gave a type of its own."""


class Everything(nnx.Module):
    """Has a weight of every sort: trained, running, random, constant."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(2, 3, (3, 3), strides=(2, 2), rngs=rngs)
        self.norm = nnx.BatchNorm(3, momentum=0.75, rngs=rngs)
        self.first_dropout = nnx.Dropout(0.5, rngs=rngs)
        self.second_dropout = nnx.Dropout(0.5, rngs=rngs)
        self.frequency = Frequency(jnp.array(3.0))
        self.fc = nnx.Linear(12, 4, rngs=rngs)

    def __call__(self, images):
        x = self.norm(self.conv(images))
        x = self.second_dropout(self.first_dropout(x)) * self.frequency
        return self.fc(x.reshape(x.shape[0], -1))


IMAGES = random_images(3, 4, 4, 2)
STREAM = {"default": jax.random.key(1)}  # the stream's name inside nnx.Rngs(rng)
TAPS = ("norm:input", "norm", "first_dropout", "second_dropout")
PARAMS = {
    *(f"{layer}/{name}" for layer in ("conv", "fc") for name in ("kernel", "bias")),
    "norm/scale",
    "norm/bias",
}


def build(rngs: nnx.Rngs) -> Everything:
    return Everything(rngs=rngs)


@pytest.fixture(scope="module")
def built():
    """The model of a builder, its weights, and its apply, compiled."""
    model = from_nnx(build)
    params, stats = random_weights(model)

    @quick_jit
    def evaluate(params, stats):
        return model.apply(params, stats, IMAGES, train=False)

    @quick_jit
    def train(params, stats, rngs):
        return model.apply(params, stats, IMAGES, train=True, rngs=rngs, taps=TAPS)

    return model, evaluate, train, params, stats


@pytest.fixture(scope="module")
def instance():
    # Its seeds are given as random keys of the kind that is quickest to compile.
    params, dropout = (jax.random.key(seed, impl="unsafe_rbg") for seed in (0, 1))
    return Everything(rngs=nnx.Rngs(params=params, dropout=dropout))


def test_trained_running_random_and_constant_are_told_apart(built):
    _, _, _, params, stats = built
    assert params.keys() == PARAMS
    assert stats.keys() == {"norm/mean", "norm/var"}
    assert params["conv/kernel"].shape == (3, 3, 2, 3)


def test_initialisation_follows_its_rng():
    model = from_nnx(
        lambda rngs: Dense(
            2, image_shape=(2, 2, 1), widths=(), initialiser=uniform(1.0), rngs=rngs
        )
    )
    rngs = jax.random.split(jax.random.key(7), 2)
    many, _ = quick_jit(jax.vmap(model.init))(rngs)
    init = quick_jit(model.init)
    for i in range(2):
        one, _ = init(rngs[i])
        for name in ("fc/kernel", "fc/bias"):
            np.testing.assert_array_equal(many[name][i], one[name])
    assert np.all(many["fc/kernel"][0] != many["fc/kernel"][1])


def test_an_instance_gives_its_present_values_back(instance):
    instance.norm.mean[...] = jnp.array([1.0, 2.0, 3.0])
    model = from_nnx(instance)
    for seed in range(2):
        params, stats = model.init(jax.random.key(seed))
        assert params.keys() == PARAMS
        np.testing.assert_array_equal(params["fc/kernel"], instance.fc.kernel[...])
        np.testing.assert_array_equal(stats["norm/mean"], [1.0, 2.0, 3.0])
    # Neither training the instance on nor editing the dictionary reaches the model.
    instance.norm.mean[...] = jnp.zeros(3)
    stats.clear()
    np.testing.assert_array_equal(model.init(jax.random.key(0))[1]["norm/mean"][0], 1)


def test_evaluation_is_the_network_computed_by_hand(built):
    _, evaluate, _, params, stats = built
    out = evaluate(params, stats)
    kernel = np.asarray(params["conv/kernel"])
    # SAME on even sides with stride 2: one row and column of zeros behind the image.
    padded = np.pad(IMAGES, ((0, 0), (0, 1), (0, 1), (0, 0)))
    x = np.zeros((3, 2, 2, 3))
    for i, j in np.ndindex(2, 2):
        window = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        x[:, i, j] = np.tensordot(window, kernel, 3)
    x += params["conv/bias"]
    x = (x - stats["norm/mean"]) / np.sqrt(stats["norm/var"] + 1e-5)
    x = 3.0 * (x * params["norm/scale"] + params["norm/bias"])
    expected = x.reshape(3, -1) @ np.asarray(params["fc/kernel"]) + params["fc/bias"]
    np.testing.assert_allclose(out.logits, expected, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, out.stats, stats)


def test_training_uses_the_batch_and_returns_new_statistics(built):
    _, _, train, params, stats = built
    out = train(params, stats, STREAM)
    seen, normed = np.asarray(out.taps["norm:input"]), np.asarray(out.taps["norm"])
    mean, var = seen.mean((0, 1, 2)), seen.var((0, 1, 2))
    expected = (seen - mean) / np.sqrt(var + 1e-5)
    expected = expected * params["norm/scale"] + params["norm/bias"]
    np.testing.assert_allclose(normed, expected, atol=1e-4)
    for name, value in {"norm/mean": mean, "norm/var": var}.items():
        np.testing.assert_allclose(
            out.stats[name], 0.75 * stats[name] + 0.25 * value, atol=1e-5
        )


def test_the_callers_statistics_are_never_written_to():
    network = nnx.BatchNorm(2, use_scale=False, use_bias=False, rngs=nnx.Rngs(0))
    mean, images = np.zeros(2, np.float32), np.ones((3, 2), np.float32)
    stats = {"mean": mean, "var": np.ones(2, np.float32)}
    out = from_nnx(network).apply({}, stats, images, train=True)
    np.testing.assert_array_equal(mean, np.zeros(2))
    np.testing.assert_allclose(out.stats["mean"], np.full(2, 0.01), rtol=1e-5)
    np.testing.assert_array_equal(network.mean[...], np.zeros(2))


def test_dropout_follows_rng_and_place(built):
    _, _, train, params, stats = built

    def masks(rngs):
        taps = train(params, stats, rngs).taps
        norm, first, second = (np.asarray(taps[name]) for name in TAPS[1:])
        np.testing.assert_allclose(first[first != 0], 2 * norm[first != 0])
        return first != 0, (second != 0)[first != 0]

    first, second = masks(STREAM)
    assert 0.2 < first.mean() < 0.8 and 0.1 < second.mean() < 0.9
    np.testing.assert_array_equal(first, masks(STREAM)[0])
    assert np.any(first != masks({"default": jax.random.key(2)})[0])
    # The same mask twice would drop nothing the second time.
    assert not second.all()


def test_missing_random_stream_is_named(built, instance):
    model, _, _, params, stats = built
    with pytest.raises(ValueError, match="first_dropout/.*stream 'default'"):
        model.apply(params, stats, IMAGES, train=True)
    own = from_nnx(instance)
    with pytest.raises(ValueError, match=r"pass rngs=\{'dropout': rng\}"):
        own.apply(*own.init(jax.random.key(0)), IMAGES, train=True, rngs={"noise": 0})


@pytest.mark.parametrize(
    ("change", "complaint"),
    {
        "missing": (lambda p: p.pop("fc/bias"), r"missing \['fc/bias'\], unknown \[\]"),
        "unknown": (lambda p: p.update(extra=0), r"missing \[\], unknown \['extra'\]"),
    }.values(),
    ids=("missing", "unknown"),
)
@pytest.mark.parametrize("which", (0, 1), ids=("params", "stats"))
def test_a_tree_that_does_not_fit_names_what_does_not(built, change, complaint, which):
    model, _, _, params, stats = built
    trees = [dict(params), dict(stats)]
    if which == 1 and "fc/bias" in complaint:
        trees[1] = {}
        complaint = r"missing \['norm/mean', 'norm/var'\], unknown \[\]"
    else:
        change(trees[which])
    with pytest.raises(ValueError, match=complaint):
        model.apply(*trees, IMAGES, train=False)


@pytest.mark.parametrize("network", (3, None, lambda rngs: "LeNet"))
def test_what_is_not_a_module_is_refused(network):
    with pytest.raises(TypeError, match=r"nnx\.Module"):
        from_nnx(network)


def test_transformations_agree_with_each_other(built):
    model, evaluate, _, params, stats = built
    many = jax.tree.map(lambda a: np.stack([a, 2 * a]), params)
    batched = quick_jit(
        jax.vmap(lambda p: model.apply(p, stats, IMAGES, train=False).logits)
    )(many)
    plain = evaluate(params, stats).logits
    np.testing.assert_allclose(batched[0], plain, atol=1e-5)
    assert np.max(np.abs(batched[1] - plain)) > 0.1

    def loss(params):
        # A bare random key serves every stream.
        out = model.apply(params, stats, IMAGES, train=True, rngs=jax.random.key(1))
        return jnp.sum(out.logits**2)

    @quick_jit
    def slopes(params):
        grads = jax.grad(loss)(params)
        along = jax.tree.map(jnp.ones_like, params)
        return grads, jax.jvp(loss, (params,), (along,))[1]

    grads, slope = slopes(params)
    assert grads.keys() == PARAMS
    total = sum(np.sum(g) for g in grads.values())
    assert abs(slope) > 1 and total == pytest.approx(float(slope), rel=1e-4)


def test_site_widths(built):
    model, *_ = built
    assert site_widths(model, ("norm", "fc", "conv"), (4, 4, 2)) == (3, 4, 3)
    with pytest.raises(ValueError, match=r"'conv2' \(did you mean 'conv'\?\)"):
        site_widths(model, ("conv2",), (4, 4, 2))


# --- the library's own networks --------------------------------------------------


LENET_NORMS = ((), ("norm1",), ("norm1", "norm2", "norm3"))


@pytest.mark.parametrize("lockable", LENET_NORMS)
def test_lenet_is_that_of_the_paper(lockable):
    model = from_nnx(lambda rngs: LeNet(lockable=lockable, rngs=rngs))
    params, found = jax.eval_shape(model.init, jax.random.key(0))
    assert {name: leaf.shape for name, leaf in params.items()} == {
        "conv1/kernel": (5, 5, 3, 12),
        "conv2/kernel": (5, 5, 12, 12),
        "conv3/kernel": (5, 5, 12, 12),
        **{f"conv{i}/bias": (12,) for i in (1, 2, 3)},
        "fc/kernel": (768, 10),
        "fc/bias": (10,),
    }
    assert found.keys() == {f"{path}/{s}" for path in lockable for s in ("mean", "var")}
    assert site_widths(model, lockable, (32, 32, 3)) == (12,) * len(lockable)


@pytest.mark.parametrize("lockable", LENET_NORMS[1:])
@pytest.mark.parametrize("norm", ("batch", "group"))
def test_lenet_equals_the_formula(norm, lockable):
    options = {"image_shape": (6, 5, 1), "norm": norm, "lockable": lockable}
    model = from_nnx(lambda rngs: LeNet(3, **options, rngs=rngs))
    params, stats = random_weights(model)

    def formula(params, x):
        for i, stride in enumerate((2, 2, 1), start=1):
            x = lax.conv_general_dilated(
                x,
                params[f"conv{i}/kernel"],
                (stride, stride),
                ((2, 2), (2, 2)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            x += params[f"conv{i}/bias"].reshape(1, 1, 1, -1)
            if f"norm{i}" in lockable:
                # LeNet's 12 channels are one group.
                axes = (0, 1, 2) if norm == "batch" else (1, 2, 3)
                mean, var = (f(x, axes, keepdims=True) for f in (jnp.mean, jnp.var))
                x = (x - mean) / jnp.sqrt(var + 1e-5)
            x = 1 / (1 + jnp.exp(-x))
        assert x.shape == (2, 2, 2, 12)
        return x.reshape(2, -1) @ params["fc/kernel"] + params["fc/bias"].reshape(1, -1)

    @quick_jit
    def both(params, images):
        out = model.apply(params, stats, images, train=True)
        return out.logits, formula(params, images)

    np.testing.assert_allclose(*both(params, random_images(2, 6, 5, 1)), atol=2e-5)


def test_uniform_fills_its_interval():
    draws = np.asarray(uniform(0.5)(jax.random.key(0), (4000,)))
    assert -0.5 <= draws.min() < -0.49 and 0.49 < draws.max() < 0.5
    assert abs(draws.mean()) < 0.02


@pytest.mark.parametrize("widths", ((), (5,), (5, 4)))
def test_dense_equals_the_formula(widths):
    options = {"image_shape": (2, 3, 1), "widths": widths, "activation": jnp.tanh}
    model = from_nnx(lambda rngs: Dense(3, rngs=rngs, **options))
    params, stats = random_weights(model)
    layers = [f"layers/{i}" for i in range(len(widths))] + ["fc"]
    assert params.keys() == {f"{n}/{p}" for n in layers for p in ("kernel", "bias")}
    images = random_images(2, 2, 3, 1)
    x = np.asarray(images).reshape(2, -1)
    for name in layers:
        kernel, bias = (np.asarray(params[f"{name}/{p}"]) for p in ("kernel", "bias"))
        x = x @ kernel + bias
        x = np.tanh(x) if name != "fc" else x
    out = quick_jit(lambda p: model.apply(p, stats, images, train=False))(params)
    np.testing.assert_allclose(out.logits, x, atol=1e-6)


NETWORKS = {
    "lenet with norm": lambda rngs: LeNet(
        3, image_shape=(4, 4, 1), lockable=("norm1",), rngs=rngs
    ),
    "dense": lambda rngs: Dense(3, image_shape=(4, 4, 1), widths=(6,), rngs=rngs),
    "resnet": lambda rngs: resnet20(
        3,
        image_shape=(4, 4, 1),
        depths=(1, 1),
        widths=(2, 4),
        norm="group",
        max_pool=True,
        activation=jax.nn.sigmoid,
        rngs=rngs,
    ),
    "vgg": lambda rngs: VGG(
        3,
        image_shape=(4, 4, 1),
        stages=((1, 2), (1, 3)),
        activation=jax.nn.sigmoid,
        rngs=rngs,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_gradient_of_the_attackers_objective_equals_finite_differences(network):
    """DLG differentiates a gradient; in float64 the difference quotient can tell."""
    model = from_nnx(network)
    weights = random_weights(model), random_weights(model, seed=1)[0]
    with jax.enable_x64(True):
        (params, stats), observed = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, jnp.float64), weights
        )
        generator = np.random.default_rng(3)
        guess, along = (jnp.asarray(generator.random((2, 4, 4, 1))) for _ in range(2))
        targets = jnp.asarray(np.eye(3)[[0, 2]])

        def objective(images):
            def loss(params):
                out = model.apply(params, stats, images, train=True)
                return cross_entropy(out.logits, targets)

            grads = jax.grad(loss)(params)
            return sum(jnp.sum((grads[n] - observed[n]) ** 2) for n in grads)

        evaluate = quick_jit(jax.value_and_grad(objective))
        slope = np.vdot(evaluate(guess)[1], along)
        step = 1e-5
        ahead, behind = (evaluate(guess + s * step * along)[0] for s in (1, -1))
        assert ahead.dtype == jnp.float64
        assert abs(slope) > 1e-4  # else 0 = 0 would pass
        assert (ahead - behind) / (2 * step) == pytest.approx(slope, rel=1e-6)
