"""A user's network in a study: refused by name, or drawn as the study says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import outside_package
import pytest
from flax import nnx

from kljax.models import from_nnx, redrawn, uniform
from kljax.models.redrawing import drawn_parameters
from kljax.studies.builder import run_setup, task
from kljax.studies.builder.study import build_study
from kljax.studies.config import LeakConfig, TrainConfig

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
