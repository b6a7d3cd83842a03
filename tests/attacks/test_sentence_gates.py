"""Gates in front of an attention: slow forms, planted gates found, what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from poison import differences, hidden, poisoned
from toys import quick_jit, replace_fields, setting, threat

from kljax.attacks import sentence_peeling
from kljax.attacks.closed_form.gate_equations import (
    find_pairs,
    make_equations,
    solve_gates,
)
from kljax.attacks.closed_form.layer_input import float64
from kljax.attacks.closed_form.sentence_gates import NORM, form_error
from kljax.attacks.closed_form.token_places import find_token_places
from kljax.attacks.presets import dager
from kljax.core.inputs import images_of
from kljax.core.targets import sequences_of
from kljax.core.types import Private, Public
from kljax.data.sentences import sentences_of
from kljax.defences import keylock
from kljax.defences.lock import key_lock
from kljax.federated.clients import one_step
from kljax.models import bert, from_nnx, gpt
from kljax.models.losses import cross_entropy
from kljax.threat import observe

V, T, D = 40, 4, 32
SITE = "blocks/0/norm1"
LOCK = key_lock((SITE,), (D,), size=5)
PIECES = [f"▁{i}" for i in range(V)]
SENTENCES = np.array([[3, 7, 7, 12], [3, 7, 9, 30], [21, 5, 9, 3]], np.int32)
FEED = "blocks/0/attention"


# --- equations, by themselves --------------------------------------------------------


def test_gates_are_those_of_the_stacked_equations():
    draw = np.random.default_rng(0)
    width, x = 3, draw.normal(size=(7, 3))
    kinds = [(draw.normal(size=(m, width)), draw.normal(size=(7, m))) for m in (2, 4)]
    weights = draw.random((2, 7))
    rows, right = [], []
    for (matrix, offsets), own in zip(kinds, weights, strict=True):
        for i, weight in enumerate(own):
            both = np.concatenate([matrix * x[i], matrix], axis=1)
            rows.append(np.sqrt(weight) * both)
            right.append(-np.sqrt(weight) * offsets[i])
    expected = np.linalg.lstsq(np.concatenate(rows), np.concatenate(right))[0]
    with float64(True):
        made = tuple(make_equations(*map(jnp.asarray, kind)) for kind in kinds)
        gate, _ = solve_gates(made, jnp.asarray(x), tuple(map(jnp.asarray, weights)))
    np.testing.assert_allclose(
        np.concatenate(jax.device_get(gate)), expected, rtol=1e-6
    )


def planted_pairs(true=8, wrong=8, width=24, rank=8):
    """Pairs of which the first `true` are in one span, under a scale and a shift."""
    draw = np.random.default_rng(1)
    x = draw.normal(size=(true + wrong, width))
    scale, shift = draw.normal(size=(2, width))
    fed = np.concatenate([x[:true] * scale + shift, np.ones((true, 1))], axis=1)
    inside = np.linalg.qr(fed[:rank].T)[0]
    outside = np.eye(width + 1) - inside @ inside.T
    return x, outside[:width, :width]


pairs_of = quick_jit(find_pairs)


def test_pairs_that_have_a_scale_in_common_are_told_from_others():
    x, square = planted_pairs()
    near = np.r_[1.0, 1, 1, 1, np.zeros(4), 0.3, np.zeros(7)]
    with float64(True):
        found = pairs_of(*map(jnp.asarray, (square, x, near)))
    weights, errors = map(np.asarray, found)
    assert np.all(errors[:8] < 1e-6) and np.all(weights[:8] > 0.9)
    assert np.all(errors[8:] > 1e-2) and np.all(weights[8:] < 1e-5)


def test_no_scale_fits_pairs_at_random():
    x, square = planted_pairs()
    with float64(True):
        near = jnp.r_[jnp.zeros(8), jnp.ones(8)]
        _, errors = pairs_of(jnp.asarray(square), jnp.asarray(x[::-1].copy()), near)
        _, wrong = pairs_of(jnp.asarray(square), jnp.asarray(x[8:]), jnp.ones(8))
    errors, wrong = np.asarray(errors), np.asarray(wrong)
    assert np.sum(errors < 1e-6) == 8  # of those that are there, in another order
    assert np.sum(wrong < 1e-3) < 4


@pytest.mark.parametrize("tied", (False, True))
def test_places_are_read_off_sums(tied):
    draw = np.random.default_rng(2)
    vocabulary, places, width = 30, 3, 24
    pairs = [(5, 0), (9, 0), (11, 1), (17, 2), (2, 2), (17, 2)]
    embeddings = np.zeros((vocabulary, width))
    positions = np.zeros((places, width))
    for token, place in pairs:
        each = draw.normal(size=width)
        embeddings[token] += each
        positions[place] += each
    if tied:  # small and different of all tokens, and large of those that follow
        fed = draw.normal(size=(4, width))
        shares = 0.01 * draw.random((vocabulary, 4))
        shares[[9, 11, 17, 2], range(4)] -= 1
        embeddings += shares @ fed
    with float64(True):
        arrays = jnp.asarray(embeddings), jnp.asarray(positions)
        found = jax.jit(functools.partial(find_token_places, count=5))(*arrays)
    assert set(np.asarray(found.tokens)) == {5, 9, 11, 17, 2}
    expected = [
        [(int(token), place) in pairs for place in range(places)]
        for token in np.asarray(found.tokens)
    ]
    np.testing.assert_allclose(np.asarray(found.counts), expected, atol=1e-6)


# --- a locked network ----------------------------------------------------------------


@functools.cache
def model_of(kind="gpt", site=SITE):
    sizes = {"vocabulary": V, "width": D, "depth": 2, "heads": 2, "image_shape": (T,)}
    build, classes = {"gpt": (gpt, V), "bert": (bert, 3)}[kind]
    lockable = {"gpt": (site,), "bert": ("embedding_norm",)}[kind]
    return from_nnx(lambda rngs: build(classes, lockable=lockable, rngs=rngs, **sizes))


def ground(examples=3, **changes):
    here = setting(
        threat("peel", examples=examples),
        keylock(LOCK),
        model=model_of(),
        inputs=sentences_of(T, PIECES),
        targets=sequences_of(T, V),
        sites=((SITE, D),),
    )
    return replace_fields(here, **changes)


@functools.cache
def compiled(examples=3):
    here = ground(examples)
    step = one_step(here.task.model, cross_entropy, keylock(LOCK), train=True)
    attack = sentence_peeling(here)
    read = jax.jit(lambda update: attack(observe(here.threat, update)))
    return here, read, jax.jit(step), jax.jit(here.task.model.init)(jax.random.key(0))


def uploaded(sentences=SENTENCES):
    _, _, step, (params, stats) = compiled(len(sentences))
    private = Private(LOCK.private_key(jax.random.key(1)), LOCK.init(jax.random.key(2)))
    targets = np.eye(V, dtype=np.float32)[np.roll(sentences, -1, axis=1)]
    rng = jax.random.key(3)
    return step(rng, Public(params), stats, private, sentences, targets)


def true_gate(update):
    return LOCK.gates(update.private.trainable, update.private.secret)[SITE]


@pytest.mark.slow
def test_planted_gates_are_found_and_nothing_that_is_hidden_is_used():
    here, read, _, _ = compiled()
    update = uploaded()
    found = read(update)
    for part, true in zip(found.gates[SITE], true_gate(update), strict=True):
        np.testing.assert_allclose(part, true, atol=1e-3)
    assert float(found.residuals[FEED]) < 1e-6
    assert np.all(np.isfinite(found.deviation[SITE].scale))
    facts = vars(here.threat.knowledge)
    assert len(hidden(facts)) >= 4
    numbers = update._replace(inputs=update.inputs.astype(jnp.float32))
    assert not differences(read(poisoned(numbers, facts)), read(numbers))
    longer = update._replace(sent=jax.tree.map(lambda x: 7 * x, update.sent))
    again = read(longer)
    np.testing.assert_allclose(
        again.gates[SITE].scale, found.gates[SITE].scale, atol=1e-3
    )


def change_sent(update, **changes):
    grads = dict(update.sent.model)
    for name, change in changes.items():
        grads |= {path: change(x) for path, x in grads.items() if name in path}
    return update._replace(sent=Public(grads))


@pytest.mark.slow
@pytest.mark.parametrize("name", ("tokens", "attention", "expand"))
@pytest.mark.parametrize("kind", ("wrong", "hidden"))
def test_where_too_few_pairs_fit_it_says_so(name, kind):
    """Rows of other tokens, or a span of other inputs; or nothing to be seen."""
    _, read, _, _ = compiled()
    draw = np.random.default_rng(4)

    def change(leaf):
        if kind == "hidden":
            return jnp.full_like(leaf, jnp.nan)
        if name == "tokens":
            return leaf[::-1]
        # As many directions as there were, and others.
        turned = np.linalg.qr(draw.normal(size=(len(leaf), len(leaf))))[0]
        return jnp.tensordot(jnp.asarray(turned, jnp.float32), leaf, axes=1)

    found = read(change_sent(uploaded(), **{name: change}))
    assert float(found.residuals[FEED]) == 1
    assert np.all(found.gates[SITE].scale == 1) and np.all(found.gates[SITE].shift == 0)
    assert np.all(np.isinf(found.deviation[SITE].shift))


def test_sentences_that_begin_alike_do_not_determine_the_gates():
    alike = SENTENCES.copy()
    alike[:, 0] = 3
    _, read, _, _ = compiled()
    found = read(uploaded(alike))
    assert float(found.residuals[FEED]) == 1 and np.all(found.gates[SITE].scale == 1)


@pytest.mark.slow
def test_a_full_rank_says_nothing():
    crowd = np.random.default_rng(0).integers(0, V, (12, T)).astype(np.int32)
    _, read, _, _ = compiled(12)
    found = read(uploaded(crowd))
    assert float(found.residuals[FEED]) == 1 and np.all(found.gates[SITE].scale == 1)


@pytest.mark.slow
def test_sentences_behind_a_lock_are_found_exactly():
    update = uploaded()
    for strategy, count in (("peel", 3), ("unit", 0)):
        here = ground(threat=threat(strategy, examples=3))
        attack = dager(here, budget=64)
        found = jax.jit(
            lambda update, here=here, attack=attack: attack(
                jax.random.key(0), observe(here.threat, update)
            )
        )(update)
        assert int(found.numbers["sentences_found"]) == count
        if count:
            got = sorted(map(tuple, np.asarray(found.inputs)))
            assert got == sorted(map(tuple, SENTENCES))


# --- what is refused -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sites": ((SITE, D), ("norm", D))}, "a lock of one site, .*'norm'"),
        ({"sites": (("blocks/1/norm1", D),)}, "the site 'blocks/1/norm1' is not"),
        ({"sites": (("blocks/0/expand", 4 * D),)}, "the site 'blocks/0/expand' is not"),
        (
            {"model": model_of(site=NORM), "sites": ((NORM, D),)},
            "the site 'blocks/0/norm2' is not",
        ),
        ({"inputs": images_of((2, 2, 1))}, "that are sentences, got 'image'"),
        (
            {"model": model_of("bert"), "sites": (("embedding_norm", D),)},
            "needs a causal network",
        ),
        (
            {"threat": threat("peel", upload="update", examples=3)},
            "the gradient of one client, .*upload='update'",
        ),
    ],
)
def test_what_it_cannot_solve_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        sentence_peeling(ground(**changes))


def test_the_form_of_a_network_is_asked_of_itself():
    assert form_error(model_of(), SITE, T) < 1e-5
    assert np.isnan(form_error(model_of(), "blocks/1/norm1", T))
