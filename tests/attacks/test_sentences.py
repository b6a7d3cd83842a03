"""DLG for text: sentences are looked for among embeddings, and read as tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import quick_jit, setting

from kljax import threat as threats
from kljax.attacks import Candidate, replay
from kljax.attacks.optimisers import lbfgs_torch
from kljax.attacks.presets import dlg, inverting_gradients
from kljax.core.types import Private, Public
from kljax.data.sentences import sentences_of
from kljax.defences import none
from kljax.federated.clients import local_update, one_step
from kljax.models import Transformer, from_nnx

LENGTH, CLASSES, PIECES = 4, 3, tuple(f"▁{n}" for n in range(24))
SPEC = sentences_of(LENGTH, PIECES)
TABLE = "tokens/embedding"
MODEL = from_nnx(
    lambda rngs: Transformer(
        CLASSES,
        image_shape=(LENGTH,),
        vocabulary=len(PIECES),
        width=8,
        depth=1,
        heads=2,
        rngs=rngs,
    )
)
SENTENCE = np.array([[5, 17, 5, 20]], np.int32)
TARGETS = np.eye(CLASSES, dtype=np.float32)[[1]]


def ground(**changes):
    strategy = threats.Strategy(secret="unit", labels="given")
    declared = threats.least_knowledge(strategy)
    here = {"model": MODEL, "inputs": SPEC, "num_classes": CLASSES, "sites": ()}
    return setting(declared, none(), **here | changes)


@functools.cache
def update():
    """The upload of one sentence."""
    step = one_step(MODEL, ground().task.loss, none(), train=False)
    params, stats = MODEL.init(jax.random.key(3))
    run = quick_jit(functools.partial(step, private=Private()))
    return jax.device_get(
        run(
            jax.random.key(0),
            Public(params),
            stats,
            images=SENTENCE,
            targets=TARGETS,
        )
    )


@functools.cache
def attack():
    return quick_jit(dlg(ground(), lbfgs_torch(), steps=150, restarts=1))


def attacked(sent):
    here = ground()
    view = threats.observe(here.threat, update()._replace(sent=sent))
    return attack()(jax.random.key(7), view)


def with_noise(grads, deviation):
    generator = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: x + deviation * generator.standard_normal(x.shape, np.float32), grads
    )


def test_a_sentence_is_recovered_token_by_token():
    found = attacked(update().sent)
    assert found.finite and found.inputs.dtype == jnp.int32
    np.testing.assert_array_equal(found.inputs, SENTENCE)


def test_noise_hides_the_sentence():
    found = attacked(with_noise(update().sent, 0.5))
    assert np.mean(np.asarray(found.inputs) == SENTENCE) < 1
    assert np.all((found.inputs >= 0) & (found.inputs < len(PIECES)))


def test_embeddings_explain_all_but_their_own_table():
    here = ground()
    view = threats.observe(here.threat, update())
    embedded = jnp.asarray(update().public.model[TABLE])[SENTENCE]
    truth = Candidate(embedded, TARGETS, Private())
    simulated, observed = replay(here, here.defence.gates)(view, truth)
    assert update().sent.model.keys() - observed.model.keys() == {TABLE}
    for name, leaf in simulated.model.items():
        np.testing.assert_allclose(
            leaf, update().sent.model[name], rtol=1e-4, atol=1e-6, err_msg=name
        )
    assert np.any(update().sent.model[TABLE])


def test_the_rows_of_the_table_tell_the_tokens_but_not_to_this_attack():
    """What is left out of the comparison cannot have helped."""
    sent = update().sent
    rows = np.flatnonzero(np.any(sent.model[TABLE] != 0, axis=1))
    np.testing.assert_array_equal(rows, np.unique(SENTENCE))
    poisoned = sent._replace(model=sent.model | {TABLE: np.full((24, 8), np.nan)})
    np.testing.assert_array_equal(attacked(poisoned).inputs, attacked(sent).inputs)


def test_a_client_trains_on_tokens():
    """One step of gradient descent moves by the gradient, embeddings and all."""
    rate = 0.5
    run = local_update(
        MODEL, ground().task.loss, none(), optax.sgd(rate), steps=1, batch=1
    )
    received, stats = update().public, update().stats
    state = run.init(received, Private())
    sent = quick_jit(run.run)(
        jax.random.key(0),
        jnp.asarray(0),
        received,
        stats,
        state,
        SENTENCE,
        np.array([1]),
    ).sent
    for name, leaf in update().sent.model.items():
        np.testing.assert_allclose(
            sent.model[name], -rate * leaf, rtol=1e-3, atol=1e-6, err_msg=name
        )
    assert np.any(sent.model[TABLE])


def test_what_is_hidden_has_no_part_in_what_is_found():
    nothing = Private(np.full(3, np.nan))
    poisoned = update()._replace(images=0 * SENTENCE, private=nothing)
    view = threats.observe(ground().threat, poisoned)
    found = attack()(jax.random.key(7), view)
    np.testing.assert_array_equal(found.inputs, SENTENCE)


def test_what_is_made_for_images_refuses_sentences():
    with pytest.raises(ValueError, match="looks for images, and the inputs are text"):
        ground().task.image_shape  # noqa: B018
    other = ground(inputs=sentences_of(LENGTH, PIECES[:9]))
    strike = inverting_gradients(other, steps=1, restarts=1)
    with pytest.raises(ValueError, match="vocabulary does not fit"):
        strike(jax.random.key(0), threats.observe(other.threat, update()))
