"""How users' networks hold things, are called and fail: each works, or says why not."""

import foreign_networks as foreign
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from foreign_networks import CLASSES, IMAGE_SHAPE
from toys import random_images, random_weights

from kljax.core.types import Private, Public
from kljax.defences import none
from kljax.federated.clients import Batches, local_gradient, local_training
from kljax.models import (
    CNN6,
    VGG,
    ConvNet,
    Dense,
    LeNet,
    VisionTransformer,
    from_linen,
    from_nnx,
)
from kljax.models.losses import cross_entropy

IMAGES = random_images(2, *IMAGE_SHAPE)
TARGETS = np.eye(CLASSES, dtype=np.float32)[[1, 4]]
RNG = jax.random.key(0)


def run(model, images=IMAGES, train=True):
    params, stats = random_weights(model)
    return model.apply(params, stats, images, train=train, rngs=RNG), params, stats


def shapes(model, loss=cross_entropy, targets=TARGETS):
    """Traces a gradient, which is where what does not fit is found."""
    params, stats = random_weights(model)
    gradient = local_gradient(model, loss, none(), train=True)
    return jax.eval_shape(
        gradient, RNG, Public(params), stats, Private(), IMAGES, targets
    )


# --- what networks hold ------------------------------------------------------------


@pytest.mark.parametrize("given", ("class", "instance"))
def test_plain_arrays_are_constants(given):
    build = foreign.Standardising
    model = from_nnx(build if given == "class" else build(nnx.Rngs(0)))
    out, params, _ = run(model)
    assert params.keys() == {"head/bias", "head/kernel"}
    seen = (IMAGES - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.4] * 2
    wanted = seen.reshape(2, -1) @ params["head/kernel"] + params["head/bias"]
    np.testing.assert_allclose(out.logits, wanted, rtol=1e-4, atol=1e-4)
    assert shapes(model).public.model.keys() == params.keys()


def test_weight_norm_is_applied():
    out, params, _ = run(from_nnx(foreign.WeightNormed))
    kernel, bias = (params[f"head/layer_instance/{x}"] for x in ("kernel", "bias"))
    unit = kernel / np.linalg.norm(kernel, axis=0)
    wanted = IMAGES.reshape(2, -1) @ unit + bias
    np.testing.assert_allclose(out.logits, wanted, rtol=1e-4, atol=1e-4)


def test_each_layer_of_a_stack_drops_its_own():
    model = from_nnx(foreign.Stack)
    params, stats = random_weights(model)

    def kept(seed, train=True):
        """Sums [3] what each of three layers keeps of eight ones."""
        rng = jax.random.key(seed)
        out = model.apply(params, stats, IMAGES, train=train, rngs=rng)
        return np.round(out.logits - IMAGES.reshape(2, -1)[:, :3])[0]

    np.testing.assert_array_equal(kept(0, train=False), 8)
    np.testing.assert_array_equal(kept(0), kept(0))
    masks = np.stack([kept(seed) for seed in range(4)])
    assert np.all(masks % 2 == 0)  # of ones, each is dropped or doubled
    assert np.any(masks[0] != masks[1])
    assert any(len(set(row)) > 1 for row in masks)  # one layer's is not another's


def test_a_python_list_of_layers_is_refused():
    with pytest.raises(
        ValueError, match=r"building .*Listed.*hold layers in an nnx\.L"
    ):
        from_nnx(foreign.Listed)


def test_an_integer_parameter_is_refused():
    with pytest.raises(ValueError, match="'places' is of type int32.*nnx.Variable"):
        from_nnx(foreign.Counted)


# --- how networks are told their mode ----------------------------------------------

MODED = {
    "train": from_nnx(foreign.Moded),
    "deterministic": from_nnx(foreign.Deterministic),
    "required": from_nnx(foreign.Required),
    "call": from_nnx(
        foreign.Phased,
        call=lambda net, x, train: net(x, "fit" if train else "predict"),
    ),
}


@pytest.mark.parametrize("model", MODED.values(), ids=MODED)
def test_the_mode_reaches_a_network_by_its_call(model):
    def by_hand(params, mean, var):
        seen = (IMAGES - mean) / np.sqrt(var + 1e-5)
        seen = seen * params["norm/scale"] + params["norm/bias"]
        return seen.reshape(2, -1) @ params["head/kernel"] + params["head/bias"]

    out, params, stats = run(model, train=True)
    mean, var = IMAGES.mean((0, 1, 2)), IMAGES.var((0, 1, 2))
    wanted = by_hand(params, mean, var)
    np.testing.assert_allclose(out.logits, wanted, rtol=1e-3, atol=1e-3)
    assert np.all(out.stats["norm/mean"] != stats["norm/mean"])
    out, *_ = run(model, train=False)
    wanted = by_hand(params, stats["norm/mean"], stats["norm/var"])
    np.testing.assert_allclose(out.logits, wanted, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(out.stats["norm/mean"], stats["norm/mean"])


def test_an_argument_that_cannot_be_guessed_is_asked_for():
    with pytest.raises(ValueError, match=r"Phased\.__call__ needs phase.*call=lambda"):
        from_nnx(foreign.Phased)
    with pytest.raises(ValueError, match=r"Configured has no __call__"):
        from_nnx(lambda rngs: foreign.Configured(5))


@pytest.mark.parametrize("name", ("phase", "is_test", "eval_mode", "enable_training"))
def test_a_mode_by_another_name_is_not_left_at_its_default(name):
    class Named(foreign.Standardising):
        exec(f"def __call__(self, images, {name}=0): return self.head(images)")

    with pytest.raises(ValueError, match=rf"Named\.__call__ needs {name}.*call=lambda"):
        from_nnx(Named)


def test_a_linen_network_is_told_its_mode_by_its_own_word():
    model = from_linen(foreign.LinenModed(), IMAGE_SHAPE)
    rngs = {"dropout": RNG}
    params, stats = random_weights(model)
    trained, whole = (
        model.apply(params, stats, IMAGES, train=train, rngs=rngs).logits
        for train in (True, False)
    )
    wanted = IMAGES.reshape(2, -1) @ params["Dense_0/kernel"] + params["Dense_0/bias"]
    np.testing.assert_allclose(whole, wanted, rtol=1e-4, atol=1e-4)
    assert np.any(abs(trained - whole) > 0.1)
    plain = from_linen(foreign.LinenNetwork(), IMAGE_SHAPE)
    assert run(plain)[0].logits.shape == (2, CLASSES)


# --- what networks give, and what is no network -------------------------------------


def test_more_than_logits_is_refused_or_taken_apart():
    with pytest.raises(ValueError, match=r"TwoHeaded gives tuple .*call=lambda"):
        run(from_nnx(foreign.TwoHeaded))
    model = from_nnx(foreign.TwoHeaded, call=lambda net, x, train: net(x)[0])
    assert run(model)[0].logits.shape == (2, CLASSES)


def test_one_number_for_a_whole_batch_is_refused():
    model = from_nnx(foreign.TwoHeaded, call=lambda net, x, train: net(x)[0].mean())
    with pytest.raises(ValueError, match=r"TwoHeaded gives shape \(\) .*\[2, Kc\]"):
        run(model)


def test_what_cannot_be_built_is_refused_by_name():
    with pytest.raises(ValueError, match=r"building .* failed: TypeError: Configured"):
        from_nnx(lambda rngs: foreign.Configured(rngs=rngs))
    for given in (foreign.LinenNetwork, foreign.LinenNetwork()):
        with pytest.raises(TypeError, match=r"LinenNetwork.*kljax\.models\.from_linen"):
            from_nnx(given)
    with pytest.raises(TypeError, match=r"kljax\.models\.from_linen"):
        from_nnx(lambda rngs: foreign.LinenNetwork())


# --- layers that are given what they cannot take -------------------------------------


@pytest.mark.parametrize("form", ("matmul", "winograd", "lax"))
@pytest.mark.parametrize("channels", (1, 3))
def test_a_convolution_names_itself_when_channels_differ(form, channels):
    def build(rngs):
        return nnx.Sequential(
            nnx.Conv(4 - channels, 2, (3, 3), rngs=rngs), lambda x: x.mean((1, 2))
        )

    model = from_nnx(build, convolution=form)
    images = random_images(3, 8, 8, channels)
    with pytest.raises(ValueError, match=r"layer 'layers/0' of Sequential .*8, 8, \d"):
        run(model, images)


def test_a_dense_layer_names_itself_when_sizes_differ():
    with pytest.raises(ValueError, match=r"layer 'head' of Standard.*\(2, 8, 4, 3\)"):
        run(from_nnx(foreign.Standardising), random_images(2, 8, 4, 3))
    linen = from_linen(foreign.LinenNetwork(), IMAGE_SHAPE)
    with pytest.raises(ValueError, match=r"layer 'Dense_0' of LinenN.*\(2, 8, 4, 3\)"):
        run(linen, random_images(2, 8, 4, 3))


def test_a_layer_that_looks_at_values_is_named_in_one_line():
    class Branching(nnx.Linear):
        def __call__(self, x):
            y = super().__call__(foreign.flat(x))
            return y if y.sum() > 0 else -y

    model = from_nnx(lambda rngs: nnx.Sequential(Branching(192, CLASSES, rngs=rngs)))
    with pytest.raises(ValueError, match="'layers/0' of .*TracerBool") as refused:
        jax.eval_shape(lambda: run(model)[0].logits)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "network", (LeNet, ConvNet, Dense, CNN6, VGG, VisionTransformer)
)
def test_a_network_that_flattens_refuses_images_of_another_shape(network):
    small = {"stages": ((1, 2),)} if network is VGG else {}
    model = from_nnx(
        lambda rngs: network(CLASSES, image_shape=(16, 32, 3), rngs=rngs, **small)
    )
    params, stats = jax.eval_shape(model.init, RNG)

    def logits(shape):
        images = jnp.zeros(shape)
        return jax.eval_shape(
            lambda p, s: model.apply(p, s, images, train=False).logits, params, stats
        ).shape

    assert logits((2, 16, 32, 3)) == (2, CLASSES)
    # As many numbers, and patches.
    with pytest.raises(ValueError, match=r"\(2, 32, 16, 3\).*\(16, 32, 3\)"):
        logits((2, 32, 16, 3))


# --- losses and optimisers ------------------------------------------------------------


def integer_labels(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


LOSSES = {
    "integer labels": (
        integer_labels,
        "'integer_labels' fails on .*not integer labels",
    ),
    "one per example": (
        optax.softmax_cross_entropy,
        r"'softmax_cross_entropy' gives shape \(2,\).*mean over",
    ),
    "more than the loss": (lambda a, b: (a.sum(), a), "gives tuple, expected one nu"),
}


@pytest.mark.parametrize(("loss", "message"), LOSSES.values(), ids=LOSSES)
def test_a_loss_that_does_not_fit_is_refused(loss, message):
    with pytest.raises(ValueError, match=message):
        shapes(from_nnx(foreign.Standardising), loss)


def test_one_output_does_not_stand_for_every_class():
    class One(nnx.Module):
        def __init__(self, rngs):
            self.head = nnx.Linear(192, 1, rngs=rngs)

        def __call__(self, x):
            return self.head(foreign.flat(x))

    with pytest.raises(ValueError, match=r"logits \(2, 1\) and targets \(2, 5\)"):
        shapes(from_nnx(One))
    squeezed = from_nnx(One, call=lambda net, x, train: net(x)[:, 0])
    with pytest.raises(ValueError, match=r"logits \(2,\).*one logit per example and"):
        shapes(squeezed, targets=np.ones(2, np.float32))


METHODS = {
    "lbfgs": optax.lbfgs(),
    "polyak": optax.polyak_sgd(),
    "plateau": optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_an_optimiser_that_needs_the_loss_is_refused(method):
    model = from_nnx(foreign.Standardising)
    params, stats = random_weights(model)
    public, private = Public(params), Private()
    batches = Batches(IMAGES[None], np.array([[1, 4]]), np.ones(1, bool))

    def run(optimiser):
        training = local_training(model, cross_entropy, none(), optimiser)
        state = training.init(public, private)
        return training.run(RNG, 0, public, stats, state, batches)

    jax.eval_shape(lambda: run(optax.adamw(0.1)))
    with pytest.raises(ValueError, match=r"a gradient alone \(TypeError.*optax\.sgd"):
        jax.eval_shape(lambda: run(method))
