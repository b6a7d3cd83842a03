"""Soteria: which features it drops, and what is left to who knows it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_studies import sites_of
from toys import CLASSES, IMAGE_SHAPE, quick_jit, random_weights, toy_model

from kljax.core.types import Private, Public
from kljax.defences import Context, at_update, chain, none, soteria
from kljax.defences.arms import parse_training_arm
from kljax.defences.feature_pruning import sensitivities
from kljax.federated.clients import one_step
from kljax.models.losses import cross_entropy

RNG = np.random.default_rng(8)
EXAMPLES, PIXELS, FEATURES = 3, 4, 9
MATRIX = RNG.standard_normal((PIXELS, FEATURES))
INPUTS = RNG.standard_normal((EXAMPLES, 2, 2, 1))
GRADS = Public(
    {
        "fc/bias": jnp.ones(5),
        "fc/kernel": jnp.asarray(1 + RNG.random((FEATURES, 5)), jnp.float32),
        "other/kernel": jnp.zeros((FEATURES, 5)),
    }
)


def features(name, inputs):
    assert name == "fc:input"
    return jnp.tanh(inputs.reshape(-1, PIXELS) @ MATRIX.astype(np.float32))


CONTEXT = Context(None, None, jnp.asarray(INPUTS, jnp.float32), None, features=features)


def by_hand():
    """Works out s of each feature in 64 bits, by finite differences, pixel by pixel."""

    def value(inputs, j):
        return np.tanh(inputs.reshape(EXAMPLES, -1) @ MATRIX[:, j])

    found, step = np.zeros(FEATURES), 1e-6
    for j in range(FEATURES):
        for b in range(EXAMPLES):
            slopes = []
            for place in np.ndindex(INPUTS.shape[1:]):
                moved = [INPUTS.copy(), INPUTS.copy()]
                moved[0][(b, *place)] += step
                moved[1][(b, *place)] -= step
                up, down = (np.sum(value(x, j)) for x in moved)
                slopes.append((up - down) / (2 * step))
            found[j] += np.sqrt(np.sum(np.square(slopes))) / value(INPUTS, j)[b]
    return found


def sent_by(defence, grads=GRADS, context=CONTEXT):
    return defence.release(None, (), grads, context)[0]


def test_features_are_scored_by_their_derivatives():
    found, wanted = np.asarray(sensitivities(CONTEXT, "fc:input")), by_hand()
    np.testing.assert_allclose(found, wanted, rtol=1e-3)
    # Of both signs, which the sum over examples has before sizes are compared.
    assert wanted.min() < 0 < wanted.max()


@pytest.mark.parametrize("fraction", (0.1, 0.6))
def test_one_tensor_loses_the_columns_of_the_least_sensitive_features(fraction):
    sent = sent_by(soteria("fc", fraction=fraction))
    sizes = np.abs(by_hand())
    low = sizes < np.percentile(sizes, 100 * fraction)
    assert 0 < low.sum() < FEATURES
    wanted = np.where(low[:, None], 0, GRADS.model["fc/kernel"])
    np.testing.assert_array_equal(sent.model["fc/kernel"], wanted)
    for name in ("fc/bias", "other/kernel"):
        assert sent.model[name] is GRADS.model[name]
    assert list(sent.model) == list(GRADS.model)


def test_no_fraction_is_the_identity_and_a_silent_feature_adds_nothing():
    jax.tree.map(
        np.testing.assert_array_equal, sent_by(soteria("fc", fraction=0)), GRADS
    )
    # At inputs of 0 all are 0, with a slope.
    silent = CONTEXT._replace(inputs=jnp.zeros((1, 2, 2, 1)))
    np.testing.assert_array_equal(sensitivities(silent, "fc:input"), 0)
    both = CONTEXT._replace(
        inputs=jnp.concatenate([CONTEXT.inputs, jnp.zeros((1, 2, 2, 1))])
    )
    np.testing.assert_allclose(
        sensitivities(both, "fc:input"), sensitivities(CONTEXT, "fc:input"), rtol=1e-5
    )


def test_nothing_is_dropped_where_more_features_are_silent_than_would_be():
    def rectified(name, inputs):
        return jax.nn.relu(features(name, inputs))

    context = CONTEXT._replace(inputs=CONTEXT.inputs[:1], features=rectified)
    silent = np.asarray(rectified("fc:input", context.inputs)[0]) == 0
    assert 0.2 < silent.mean() < 0.7
    few = sent_by(soteria("fc", fraction=0.2), context=context)
    jax.tree.map(np.testing.assert_array_equal, few, GRADS)
    many = sent_by(soteria("fc", fraction=0.8), context=context)
    zero = np.all(np.asarray(many.model["fc/kernel"]) == 0, axis=1)
    assert np.all(zero[silent]) and silent.sum() < zero.sum() < FEATURES


def test_an_attacker_who_knows_it_compares_the_columns_that_are_left():
    defence = soteria("fc", fraction=0.6)
    sent = sent_by(defence)
    at_truth = defence.simulate(GRADS, sent, None, None)
    jax.tree.map(np.testing.assert_array_equal, at_truth, sent)
    guess = jax.tree.map(lambda x: x + 1, GRADS)
    simulated = defence.simulate(guess, sent, None, None).model
    zero = np.all(np.asarray(sent.model["fc/kernel"]) == 0, axis=1)
    np.testing.assert_array_equal(simulated["fc/kernel"][zero], 0)
    np.testing.assert_array_equal(
        simulated["fc/kernel"][~zero], guess.model["fc/kernel"][~zero]
    )
    # Of a column that is hidden in part the rest says it; of a hidden one nothing does.
    kernel = sent.model["fc/kernel"].at[:, 0].set(jnp.nan)
    some = sent._replace(model=sent.model | {"fc/kernel": kernel})
    every = some._replace(
        model=some.model | {"fc/kernel": jnp.full_like(kernel, np.nan)}
    )
    jax.tree.map(
        np.testing.assert_array_equal,
        defence.simulate(guess, some, None, None).model,
        simulated,
    )
    assert defence.simulate(guess, None, None, None) is guess
    unseen = defence.simulate(guess, every, None, None)
    jax.tree.map(np.testing.assert_array_equal, unseen, guess)


def test_a_client_drops_features_of_its_own_step_and_fractions_are_data():
    """Two clients of one program, whose inputs differ; at two strengths."""
    params, stats = random_weights(toy_model())
    images = np.random.default_rng(2).random((2, 2, *IMAGE_SHAPE), np.float32)
    targets = np.eye(CLASSES, dtype=np.float32)[[0, 2]]
    traced = []

    @quick_jit
    def updates(fraction):
        traced.append(1)
        defence = chain(none(), soteria("fc", fraction=fraction))
        step = one_step(toy_model(), cross_entropy, defence, train=True)
        return jax.vmap(
            lambda x: step(
                jax.random.key(0), Public(params), stats, Private(), x, targets
            )
        )(images)

    for fraction, dropped in ((0.0, 0), (0.4, 1), (0.9, 2)):
        found = updates(np.float32(fraction))
        sent, before = found.sent.model, found.before_release.model
        zero = np.all(sent["fc/kernel"] == 0, axis=2)
        np.testing.assert_array_equal(zero.sum(axis=1), dropped)
        assert np.all(before["fc/kernel"] != 0)
        for name in set(sent) - {"fc/kernel"}:
            np.testing.assert_array_equal(sent[name], before[name])
    assert len(traced) == 1


@pytest.mark.parametrize("fraction", (-0.1, 1, float("nan")))
def test_impossible_fractions_are_named(fraction):
    with pytest.raises(ValueError, match=f"fraction must be in .0, 1., got {fraction}"):
        soteria("fc", fraction=fraction)


def test_what_has_no_features_is_refused():
    with pytest.raises(ValueError, match="Context.features.*without '@update'"):
        at_update(soteria("fc"))
    with pytest.raises(ValueError, match="'soteria@update'.*Context.features"):
        parse_training_arm("soteria@update", sites_of(), {})
    tokens = CONTEXT._replace(inputs=jnp.zeros((1, 3), jnp.int32))
    with pytest.raises(ValueError, match="these are int32"):
        sent_by(soteria("fc"), context=tokens)
    with pytest.raises(ValueError, match="there is none.*tensors are a$"):
        sent_by(soteria("fc"), Public({"a": jnp.ones(3)}))
    with pytest.raises(ValueError, match="fed 9 features: name a dense layer"):
        sent_by(soteria("fc"), Public({"fc/kernel": jnp.ones((4, 3))}))
