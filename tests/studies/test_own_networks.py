"""A user's network in a study: refused by name, or drawn as the study says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import outside_package
import pytest
from flax import linen, nnx

from kljax.models import from_nnx, redrawn, uniform
from kljax.models.redrawing import drawn_parameters
from kljax.studies.builder import run_setup, task
from kljax.studies.builder.study import build_study
from kljax.studies.config import LeakConfig, TrainConfig
from kljax.studies.inversion import build_model

LEAK = functools.partial(
    LeakConfig,
    data="outside_package:ramps",
    arms=("none",),
    attack="dlg",
    classifier="head",
    victims=1,
    steps=1,
    image_size=8,
)
TRAIN = functools.partial(
    TrainConfig, data="digits", arms=("none",), clients=2, rounds=1, image_size=8
)
JOBS = {
    "leak": lambda model: build_study(LEAK(model=model)),
    "train": lambda model: run_setup.build_run_setup(TRAIN(model=model)),
}
IN_EACH_JOB = pytest.mark.parametrize("prepare", JOBS.values(), ids=JOBS)

# name of a model: what is said of it
REFUSED = {
    "json:loads": "'json:loads': building .* failed: TypeError",
    "math:pi": r"'math:pi' is 3\.14.*expected a function or class \(num_classes",
    "math:hypot": r"'math:hypot' cannot be called as .*signature",
    "outside_package:ramps": "'outside_package:ramps' cannot be called as .*num_cl",
    "outside_package:linen_network": r"Linen module Dense.*kljax\.models\.from_linen",
    "outside_package:too_few_logits": r"shape \(1, 1\) .* has \d+ classes.*per class",
    "outside_package:too_many_logits": r"shape \(1, \d+\) .* has \d+ classes",
}


@IN_EACH_JOB
@pytest.mark.parametrize(("model", "message"), REFUSED.items(), ids=REFUSED)
def test_what_is_no_network_for_the_data_is_refused(prepare, model, message):
    with pytest.raises(ValueError, match=message):
        prepare(model)


# --- weights -----------------------------------------------------------------------


def weights(model, rng=0):
    return jax.tree.map(np.asarray, model.init(jax.random.key(rng))[0])


def made(**options):
    config = LEAK(model="outside_package:Trained", **options)
    dataset = task.load_dataset(config, None)
    network = task.find_network(config)
    return task.make_model(config, network, dataset, norm=False)


def test_a_users_data_are_made_once(monkeypatch):
    calls, make = [], outside_package.ramps

    def counted(shape):
        calls.append(shape)
        return make(shape)

    monkeypatch.setattr(outside_package, "ramps", counted)
    study = build_study(LEAK(model="outside_package:Tiny"))
    assert study.config.init == 0.5 and len(calls) == 1


def test_init_draws_the_weights_of_a_users_network():
    own, drawn = weights(made(init=0)), weights(made(init=0.25))
    for name, values in drawn.items():
        if name.startswith(("head", "stretch")):
            assert np.any(values != own[name]), name
            assert np.all(abs(values) <= 0.25), name
        elif name != "body/bias":  # norm layers, and what was trained
            np.testing.assert_array_equal(values, own[name], err_msg=name)
    np.testing.assert_array_equal(drawn["body/kernel"], outside_package.Trained.BODY)
    assert np.std(drawn["head/kernel"]) > 0.1  # U(-.25, .25) has .144
    assert np.any(drawn["head/bias"] != 0)
    # Every parameter has a draw of its own, and every random key.
    assert len(set(drawn["head/bias"]) & set(drawn["head/kernel"][0])) == 0
    again = weights(made(init=0.25), rng=1)
    assert np.all(again["head/kernel"] != drawn["head/kernel"])


def test_an_instance_keeps_its_trained_values():
    network = outside_package.Tiny(2, image_shape=(2, 2, 1), rngs=nnx.Rngs(3))
    model = from_nnx(network)
    assert drawn_parameters(model) == ()
    np.testing.assert_array_equal(
        weights(redrawn(model, uniform(0.5)))["head/kernel"], network.head.kernel[...]
    )


def test_what_is_drawn_is_seen_through_calls():
    class Compiled(nnx.Module):
        def __init__(self, rngs):
            @jax.jit
            def draw(rng):
                return jax.random.normal(rng, (3,)), jnp.ones(3)

            self.first, self.second = nnx.Linear(1, 2, rngs=rngs), nnx.Dict()
            values = draw(rngs.params())
            self.second["drawn"], self.constant = map(nnx.Param, values)

        def __call__(self, images):
            return images

    assert drawn_parameters(from_nnx(Compiled)) == (
        "first/bias",
        "first/kernel",
        "second/drawn",
    )


def test_built_in_networks_are_drawn_as_they_were():
    config = LEAK(model="dense", init=0.25)
    dataset = task.load_dataset(config, None)
    network = task.find_network(config)
    model = task.make_model(config, network, dataset, norm=False)
    by_hand = from_nnx(
        lambda rngs: network.factory(
            2, image_shape=(8, 8, 3), initialiser=uniform(0.25), rngs=rngs
        )
    )
    jax.tree.map(np.testing.assert_array_equal, weights(model), weights(by_hand))


# --- simpler forms -----------------------------------------------------------------

SHAPE = (8, 8, 3)


def tiny(num_classes=2, rngs=None):
    rngs = rngs or nnx.Rngs(0)
    return outside_package.Tiny(num_classes, image_shape=SHAPE, rngs=rngs)


class TinyLinen(linen.Module):
    @linen.compact
    def __call__(self, images):
        x = linen.sigmoid(linen.Dense(5, name="body")(images.reshape(len(images), -1)))
        return linen.Dense(2, name="head")(x)


class Shapeless(outside_package.Tiny):
    def __init__(self, num_classes, *, rngs):
        super().__init__(num_classes, image_shape=SHAPE, rngs=rngs)


class Ready(outside_package.Tiny):
    def __init__(self, *, rngs):
        super().__init__(2, image_shape=SHAPE, rngs=rngs)


FACTORIES = {
    "without a shape": lambda num_classes, *, rngs: tiny(num_classes, rngs),
    "a builder": lambda rngs: tiny(2, rngs),
    "a class without a shape": Shapeless,
    "a class of nothing but rngs": Ready,
    "a class that was told its classes": functools.partial(Shapeless, 2),
}
SIMPLER = {name: lambda made=made: made for name, made in FACTORIES.items()} | {
    "a function without arguments": lambda: lambda: tiny(),
    "an instance": tiny,
    "a Model": lambda: from_nnx(tiny()),
    "of Linen": TinyLinen,
}


@pytest.mark.parametrize("make", SIMPLER.values(), ids=SIMPLER)
def test_simpler_forms_are_networks_and_their_classifier_is_found(make, monkeypatch):
    monkeypatch.setattr(outside_package, "simple", make(), raising=False)
    study = build_study(LEAK(model="outside_package:simple", classifier=None))
    assert study.classifier == "head"


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
def test_an_inversion_takes_the_same_forms(factory):
    model, classifier, own = build_model(factory, 2, SHAPE)
    params = jax.eval_shape(model.init, jax.random.key(0))[0]
    assert params["head/kernel"].shape[1] == 2 and classifier is own is None


@pytest.mark.parametrize("made", (TinyLinen(), TinyLinen), ids=("there", "a class"))
def test_an_inversion_takes_a_network_of_linen(made):
    model, _, _ = build_model(made, None, SHAPE)
    params = jax.eval_shape(model.init, jax.random.key(0))[0]
    assert params["head/kernel"].shape == (5, 2)


def test_a_function_that_gives_no_network_is_refused(monkeypatch):
    for made, message in (
        (lambda: 3, "gave int, expected a network of Flax or PyTorch"),
        (lambda: 1 / 0, "building it failed: division by zero"),
    ):
        monkeypatch.setattr(outside_package, "simple", made, raising=False)
        with pytest.raises(ValueError, match=f"'outside_package:simple'.*{message}"):
            build_study(LEAK(model="outside_package:simple"))


def test_weights_of_an_instance_stay(monkeypatch):
    network = tiny()
    monkeypatch.setattr(outside_package, "simple", network, raising=False)
    config = LEAK(model="outside_package:simple")
    found = task.find_network(config)
    model = task.make_model(config, found, outside_package.ramps(SHAPE), norm=False)
    kernel = np.asarray(network.head.kernel[...])
    np.testing.assert_array_equal(weights(model)["head/kernel"], kernel)


def test_a_loader_may_give_images_and_labels(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (4, *SHAPE), np.uint8)
    given = {"pair": lambda shape: (images, [0, 1, 2, 1])}
    given["wrong"] = lambda shape: images
    given["floats"] = lambda shape: (images, [0.5] * 4)
    given["other"] = lambda: (images, [0, 1, 2, 1])
    for name, load in given.items():
        monkeypatch.setattr(outside_package, name, load, raising=False)

    def loaded(name):
        return task.load_dataset(LeakConfig(data=f"outside_package:{name}"), None)

    dataset = loaded("pair")
    assert dataset.num_classes == 3 and dataset.shape == SHAPE
    np.testing.assert_allclose(dataset.inputs, images / 255, atol=1e-6)
    with pytest.raises(ValueError, match=r"gave ndarray.*\(images, labels\)"):
        loaded("wrong")
    with pytest.raises(ValueError, match="float64; give .N. integers"):
        loaded("floats")
    with pytest.raises(ValueError, match=r"expected \(shape\) -> kljax.data.Dataset"):
        loaded("other")
