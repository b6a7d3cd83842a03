"""DLG for text: sentences are looked for among embeddings, and read as tokens."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import quick_jit, replace_fields, setting

from kljax import threat as threats
from kljax.attacks import Candidate, Protocol, replay
from kljax.attacks.optimisers import lbfgs, lbfgs_torch
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
            inputs=SENTENCE,
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


@pytest.mark.slow
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


APART = np.array([[5, 17, 2, 20], [1, 9, 3, 22]], np.int32)  # no token twice


@functools.cache
def change(sentences):
    """The change of four steps of momentum on two sentences, and its setting."""
    optimiser, rate = optax.sgd(0.2, momentum=0.9), 0.2
    strategy = threats.Strategy(secret="unit", labels="given")
    declared = threats.least_knowledge(strategy, upload="update", examples=2)
    here = setting(
        declared,
        none(),
        model=MODEL,
        inputs=SPEC,
        num_classes=CLASSES,
        sites=(),
        protocol=Protocol(optimiser, 4, 1, rate),
    )
    run = local_update(MODEL, here.task.loss, none(), optimiser, steps=4, batch=1)
    received, stats = update().public, update().stats
    sent = quick_jit(run.run)(
        jax.random.key(0),
        jnp.asarray(0),
        received,
        stats,
        run.init(received, Private()),
        np.reshape(sentences, (2, LENGTH)).astype(np.int32),
        np.array([1, 2]),
    )
    return here, jax.device_get(sent)


def replayed(here, sent, fed):
    view = threats.observe(here.threat, sent)
    truth = Candidate(fed, sent.targets, Private())
    return replay(here, here.defence.gates)(view, truth)


@pytest.mark.slow
def test_embeddings_move_as_the_rows_of_the_table_that_a_client_trains():
    here, sent = change(tuple(APART.ravel().tolist()))
    embedded = jnp.asarray(sent.public.model[TABLE])[APART]
    simulated, observed = replayed(here, sent, embedded)
    assert sent.sent.model.keys() - observed.model.keys() == {TABLE}
    largest = 0.0
    for name, leaf in observed.model.items():
        np.testing.assert_allclose(
            simulated.model[name], leaf, rtol=1e-3, atol=1e-5, err_msg=name
        )
        # The client's own tokens, looked up in the table, do the same.
        exact = replayed(here, sent, jnp.asarray(APART))[0].model[name]
        np.testing.assert_allclose(exact, leaf, rtol=1e-3, atol=1e-5, err_msg=name)
        still = here.task.inputs.search
        still = dataclasses.replace(SPEC, search=dataclasses.replace(still, trained=0))
        fixed = replayed(replace_fields(here, inputs=still), sent, embedded)[0]
        apart = np.linalg.norm(fixed.model[name] - leaf)
        largest = max(largest, apart / np.linalg.norm(leaf))
    assert largest > 0.01  # to leave the table where it was would be wrong


@pytest.mark.slow
def test_sentences_are_read_off_a_whole_update():
    here, sent = change(tuple(APART.ravel().tolist()))
    view = threats.observe(here.threat, sent)
    strike = quick_jit(dlg(here, lbfgs(), steps=300, restarts=1))
    found = strike(jax.random.key(7), view)
    # One start of many: that it matches all is not certain, that it reads most is.
    np.testing.assert_array_equal(found.inputs[0], APART[0])
    assert np.mean(np.asarray(found.inputs) == APART) >= 0.75


def test_what_is_hidden_has_no_part_in_what_is_found():
    nothing = Private(np.full(3, np.nan))
    poisoned = update()._replace(inputs=0 * SENTENCE, private=nothing)
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
