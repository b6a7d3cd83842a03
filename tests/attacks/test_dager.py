"""DAGER: spans against slow forms, planted sentences found exactly, what is refused."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from poison import differences, hidden, poisoned
from toys import quick_jit, replace_fields, setting, threat

from kljax.attacks.closed_form.attention_inputs import (
    Probe,
    _spread,
    find_spans,
    is_causal,
    over_vocabulary,
    sample_sentences,
)
from kljax.attacks.closed_form.sentence_search import (
    Candidates,
    combine_candidates,
    extend_prefixes,
)
from kljax.attacks.closed_form.spans import deviations, draw_sketch, find_span
from kljax.attacks.presets import dager, spans_of_text
from kljax.attacks.setting import Protocol
from kljax.core.targets import classes_of, sequences_of
from kljax.core.types import Gate, Private, Public
from kljax.data.sentences import sentences_of
from kljax.defences import none
from kljax.federated.clients import local_update, one_step
from kljax.models import LeNet, adapted, bert, from_nnx, gpt, gpt_classifier
from kljax.models.losses import cross_entropy
from kljax.threat import View, observe

V, T, D = 40, 4, 32
RNG = jax.random.key(4)
SIZES = {"vocabulary": V, "width": D, "depth": 2, "heads": 2}
PIECES = [f"▁{i}" for i in range(V)]
LOCKED = "blocks/0/norm1"
KINDS = {
    "gpt": functools.partial(gpt, V, **SIZES),
    "classifier": functools.partial(gpt_classifier, 3, **SIZES),
    "bert": functools.partial(bert, 3, **SIZES),
    "lora": functools.partial(adapted(functools.partial(gpt, V, **SIZES), rank=16)),
}
TOKENWISE = ("gpt", "lora")  # trained towards the next token
# Some tokens twice at one place, some at two places, the first two alike throughout.
SENTENCES = np.array([[3, 7, 7, 12], [3, 7, 9, 30], [21, 5, 9, 3]], np.int32)


# --- spans ---------------------------------------------------------------------------


def columns(rank, width=12, count=36, noise=0.0, seed=0):
    draw = np.random.default_rng(seed)
    inputs = draw.standard_normal((rank, width)).astype(np.float32)
    strengths = np.geomspace(1, 1e-2, rank)[:, None]
    grads = strengths * draw.standard_normal((rank, count))
    added = noise * draw.standard_normal((width, count))
    return inputs, (inputs.T @ grads + added).astype(np.float32)


spans_of = quick_jit(find_span)
noisy_spans_of = quick_jit(functools.partial(find_span, noisy=True))
measured = quick_jit(deviations)


@pytest.mark.parametrize("rank", (1, 5, 11))
def test_a_span_is_that_of_least_squares(rank):
    inputs, matrix = columns(rank)
    span = spans_of(matrix)
    assert int(span.rank) == rank == np.linalg.matrix_rank(matrix, tol=1e-4)
    others = np.random.default_rng(1).standard_normal((20, 12)).astype(np.float32)
    distance, excess = measured(span, np.concatenate([inputs, others]))
    for vector, found in zip(others, distance[rank:], strict=True):
        weights = np.linalg.lstsq(inputs.T.astype(float), vector, rcond=None)[0]
        left = np.linalg.norm(inputs.T @ weights - vector) / np.linalg.norm(vector)
        np.testing.assert_allclose(found, left, rtol=1e-3, atol=1e-4)
    assert np.all(excess[:rank] <= 1) and np.all(excess[rank:] > 1)
    # Longer vectors are no farther away.
    np.testing.assert_allclose(
        measured(span, 100 * others)[0], distance[rank:], rtol=1e-4, atol=1e-6
    )


def test_of_a_full_rank_nothing_is_told():
    _, matrix = columns(12)
    span = spans_of(matrix)
    assert bool(span.full)
    distance, excess = measured(span, np.eye(12, dtype=np.float32))
    np.testing.assert_array_equal([distance, excess], 0)
    nothing = spans_of(np.zeros((12, 36), np.float32))
    assert int(nothing.rank) == 0 and not bool(nothing.full)


def test_a_span_of_all_inputs_tells_nothing():
    inputs, matrix = columns(5)
    found = jax.jit(lambda c, x: find_span(c, samples=x))
    others = np.random.default_rng(1).standard_normal((1, 12)).astype(np.float32)
    assert bool(found(matrix, inputs).full)
    span = found(matrix, np.concatenate([inputs, others]))
    assert int(span.rank) == 5 and not bool(span.full)


def test_noise_is_seen_and_the_rank_below_it_found():
    inputs, matrix = columns(3, width=40, count=120, noise=1e-3)
    assert bool(spans_of(matrix).full)  # nobody said that there is noise
    span = noisy_spans_of(matrix)
    assert int(span.rank) == 3
    # The largest of the bulk, and not of the signal.
    edge = 1e-3 * (np.sqrt(120) + np.sqrt(40))
    assert 0.7 * edge < float(span.noise) < 1.2 * edge
    others = np.random.default_rng(1).standard_normal((200, 40)).astype(np.float32)
    _, excess = measured(span, np.concatenate([inputs, others]))
    assert np.all(excess[:3] <= 1) and np.all(excess[3:] > 1)


def test_noise_on_the_columns_that_are_not_hidden_is_seen():
    """A bulk is as wide as the columns that noise was added to are many."""
    inputs, matrix = columns(3, width=40, count=80, noise=1e-3)
    part = np.concatenate([matrix, np.zeros((40, 40), np.float32)], axis=1)
    grads = {"kernel": jnp.asarray(part).at[:, 80:].set(jnp.nan)}
    sampled = {"x": np.random.default_rng(2).standard_normal((80, 1, 40))}
    probe = Probe("x", ("kernel",))
    spans = quick_jit(lambda g, s: find_spans((probe,), g, s, noisy=True))
    assert int(spans(grads, sampled)["x"].rank) == 3
    assert int(noisy_spans_of(part).rank) != 3  # of whom the zeros are not told


@pytest.mark.parametrize(
    ("count", "noise", "rank"),
    [(30, 0, 3), (30, 1e-3, 3), (40, 0, 3), (40, 1e-3, 40), (41, 0, 3)],
)
def test_noise_is_seen_on_fewer_columns_than_an_input_is_wide(count, noise, rank):
    """As of one kernel alone, or of adapters: once no direction was above any noise.

    As many columns as rows have a bulk from 0 on, and all counts as the span.
    """
    _, matrix = columns(3, width=40, count=count, noise=noise)
    padded = np.pad(matrix, ((0, 0), (0, max(0, 40 - count))))
    span = quick_jit(lambda c: find_span(c, count=count, noisy=True))(padded)
    assert int(span.rank) == rank and bool(span.full) == (rank == 40)
    if noise and rank < 40:
        edge = 1e-3 * (np.sqrt(count) + np.sqrt(40))
        assert 0.7 * edge < float(span.noise) < 1.2 * edge


def test_a_sketch_keeps_the_distance_to_a_span():
    inputs, matrix = columns(5)
    span = spans_of(matrix)
    sketch = np.asarray(quick_jit(lambda s: draw_sketch(RNG, s, 4000))(span))
    others = np.random.default_rng(1).standard_normal((20, 12)).astype(np.float32)
    found = (others / np.linalg.norm(others, axis=1, keepdims=True)) @ sketch
    distances, _ = measured(span, others)
    np.testing.assert_allclose(np.sum(found**2, axis=1), distances**2, rtol=0.15)
    np.testing.assert_allclose(inputs @ sketch, 0, atol=1e-4)
    full = spans_of(columns(12)[1])
    assert not np.any(draw_sketch(RNG, full, 3))


# --- a whole vocabulary --------------------------------------------------------------


def test_a_vocabulary_is_gone_through_in_chunks():
    shapes = []

    def seen(sentences):
        shapes.append(sentences.shape)
        return jnp.stack([sentences[:, 0], jnp.sum(sentences, axis=1)], axis=1)

    found = over_vocabulary(seen, 1100, 3)
    np.testing.assert_array_equal(found, [[n, 3 * n] for n in range(1100)])
    assert set(shapes) == {(512, 3)}


def test_of_many_tokens_some_are_sampled_at_each_place_in_turn():
    sentences = np.asarray(sample_sentences(100, 3, 5))
    np.testing.assert_array_equal(sentences, [[11 * n] * 3 for n in range(10)])
    np.testing.assert_array_equal(sample_sentences(4, 2, 5)[:, 0], [0, 1, 2, 3])
    fed = np.arange(10 * 3 * 5).reshape(10, 3, 5)
    spread = _spread(jnp.asarray(fed))
    np.testing.assert_array_equal(spread, [fed[n, n % 3] for n in range(10)])
    few = _spread(jnp.asarray(fed[:9]))
    np.testing.assert_array_equal(few, fed[:9].reshape(27, 5))


# --- searches, with a test that is a table -------------------------------------------


def table_test(sentences, causal):
    """Passes the places of these sentences whose prefix, or whole, is theirs."""

    def test(tried):
        same = tried[:, None] == sentences[None]
        if causal:
            right = jnp.cumprod(same, axis=-1).astype(bool).any(axis=1)
            distance = jnp.where(right, 0.001, 0.5)
        else:
            share = jnp.max(jnp.mean(same, axis=-1), axis=1)
            distance = jnp.broadcast_to(1 - share[:, None], tried.shape)
            right = distance == 0
        return distance, jnp.where(right, 0.5, 9.0)

    return test


def places_of(sentences, wrong=2):
    """Excess [V, T] that allows their tokens and some others."""
    excess = np.full((V, T), 9.0, np.float32)
    for sentence in sentences:
        for place, token in enumerate(sentence):
            if token >= 0:
                excess[token, place] = 0.5
    for place in range(T):
        excess[V - 1 - place - wrong : V - 1 - place, place] = 0.9
    return jnp.asarray(excess)


def choose_candidates(excess, count):
    order = np.argsort(excess, axis=0, kind="stable")[:count].T.astype(np.int32)
    allowed = np.take_along_axis(np.asarray(excess).T, order, axis=1) <= 1
    return Candidates(jnp.asarray(order), jnp.asarray(allowed))


def as_sets(found):
    return sorted(map(tuple, np.asarray(found.tokens)))


def test_one_prefix_is_kept_and_extended():
    candidates = choose_candidates(places_of(SENTENCES[2:]), 9)
    test = table_test(jnp.asarray(SENTENCES[2:]), causal=True)
    found = jax.jit(
        lambda: extend_prefixes(candidates, test, wanted=1, kept=1, padded=False)
    )()
    assert found.found.tolist() == [True] and bool(found.whole)
    np.testing.assert_array_equal(found.tokens, SENTENCES[2:])


@pytest.mark.parametrize("padded", (False, True))
def test_prefixes_are_extended_to_the_sentences(padded):
    sentences = SENTENCES.copy()
    if padded:
        sentences[2, 2:] = -1
    candidates = choose_candidates(places_of(sentences), 9)
    found = jax.jit(
        lambda: extend_prefixes(
            candidates,
            table_test(jnp.asarray(sentences), causal=True),
            wanted=4,
            kept=9,
            padded=padded,
        )
    )()
    assert as_sets(found) == sorted([*map(tuple, sentences), (-1,) * T])
    assert found.found.tolist() == [True] * 3 + [False] and bool(found.whole)
    assert np.asarray(found.distances)[-1] == 1


@pytest.mark.parametrize("budget", (2000, 32))
def test_combinations_are_tested_all_or_improved(budget):
    candidates = choose_candidates(places_of(SENTENCES), 9)
    found = jax.jit(
        lambda: combine_candidates(
            jax.random.key(0),
            candidates,
            table_test(jnp.asarray(SENTENCES), causal=False),
            wanted=3,
            kept=9,
            budget=budget,
            padded=False,
        )
    )()
    # 5 * 4 * 4 * 5 combinations.
    assert bool(found.whole) == (budget == 2000)
    right = set(as_sets(found)) & set(map(tuple, SENTENCES))
    assert len(right) == (3 if budget == 2000 else int(found.found.sum()))
    assert int(found.found.sum()) >= 1


def test_combinations_may_end_in_padding():
    """One of them after its first token; none before it."""
    sentences = np.array(
        [[8, -1, -1, -1], [3, 7, -1, -1], [3, 7, 9, 30], [21, 5, 9, -1]], np.int32
    )
    candidates = choose_candidates(places_of(sentences), 9)
    found = jax.jit(
        lambda: combine_candidates(
            jax.random.key(0),
            candidates,
            table_test(jnp.asarray(sentences), causal=False),
            wanted=5,
            kept=9,
            budget=2000,
            padded=True,
        )
    )()
    assert as_sets(found) == sorted([*map(tuple, sentences), (-1,) * T])
    assert found.found.tolist() == [True] * 4 + [False] and bool(found.whole)
    np.testing.assert_allclose(found.distances, [0, 0, 0, 0, 1], atol=1e-6)


# --- updates: parameters on the way --------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "shares"), [(None, [0]), (4, [0, 1]), (2, [0, 0.25, 1])]
)
def test_an_update_is_read_where_its_batches_were_taken(batch, shares):
    """Each at first, on the straight way; and at the end, which is how far it goes."""
    params = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([5.0])}
    change = {"a": jnp.array([4.0, jnp.nan]), "b": jnp.array([-2.0])}  # one is hidden
    here = types.SimpleNamespace(
        sees_gradient=batch is None,
        threat=threat("unit", "recovered", upload="average", clients=2, examples=8),
        protocol=Protocol(optax.sgd(0.1), steps=4, batch=batch or 4, learning_rate=0.1),
    )
    view = types.SimpleNamespace(public=Public(params), grads=Public(change))
    found = spans_of_text._points(here, view)
    assert [float(there["a"][0] - 1) / 4 for there in found] == shares
    assert [float(there["b"][0] - 5) / -2 for there in found] == shares
    assert {float(there["a"][1]) for there in found} == {2}
    assert found[0]["a"].tolist() == [1, 2]


def test_what_a_way_lost_is_an_error_up_to_a_tenth():
    _, matrix = columns(3)
    span = spans_of(matrix)
    inside, outside = (
        np.asarray(span.directions)[:, 0],
        np.asarray(span.directions)[:, 9],
    )
    along = np.asarray(span.directions)[:, 1]
    for distance, move, fits in (
        (0.05, 0.0, False),
        (0.05, 0.06, True),
        (0.05, 0.04, False),
        (0.2, 5.0, False),
    ):
        vector = (inside + distance * outside).astype(np.float32)
        # What of a way is in the span was not lost.
        moves = (move * outside + 3 * along).astype(np.float32)
        _, excess = measured(span, 7 * vector, 7 * moves)
        assert (float(excess) <= 1) == fits


@pytest.mark.slow
@pytest.mark.parametrize("kind", ("gpt", "bert"))
def test_a_causal_network_is_told_from_another(kind):
    tap = "blocks/1/attention/query:input"
    assert is_causal(model_of(kind), tap, T) == (kind == "gpt")


# --- the attack ----------------------------------------------------------------------


@functools.cache
def model_of(kind, padded=False, places=T):
    factory = KINDS[kind]
    return from_nnx(
        lambda rngs: factory(image_shape=(places,), padded=padded, rngs=rngs)
    )


def ground(kind, examples=3, padded=False, **changes):
    targets = sequences_of(T, V) if kind in TOKENWISE else classes_of(3)
    here = setting(
        threat("unit", "recovered", examples=examples),
        none(),
        model=model_of(kind, padded),
        inputs=sentences_of(T, PIECES, padded=padded),
        targets=targets,
    )
    return replace_fields(here, **changes)


def targets_of(kind, sentences):
    if kind in TOKENWISE:
        following = np.roll(sentences, -1, axis=1)
        following = np.where(sentences >= 0, following, -1)  # padding learns nothing
        return np.eye(V, dtype=np.float32)[following] * (following >= 0)[..., None]
    return np.eye(3, dtype=np.float32)[np.arange(len(sentences)) % 3]


@functools.cache
def compiled(kind, padded=False, examples=3):
    here = ground(kind, examples, padded)
    model = here.task.model
    step = one_step(model, cross_entropy, none(), train=True)
    attack = dager(here, budget=512)

    @jax.jit
    def run(params, sentences, targets, noise, rng):
        rng_step, rng_noise, rng_attack = jax.random.split(rng, 3)
        update = step(rng_step, Public(params), {}, Private(), sentences, targets)
        leaves, tree = jax.tree.flatten(update.sent)
        rngs = jax.random.split(rng_noise, len(leaves))
        sent = [
            leaf + noise * jax.random.normal(r, leaf.shape)
            for leaf, r in zip(leaves, rngs, strict=True)
        ]
        update = update._replace(sent=jax.tree.unflatten(tree, sent))
        return update, attack(rng_attack, observe(here.threat, update))

    return here, attack, run, jax.jit(model.init)(jax.random.key(0))[0]


def attacked(kind, sentences=SENTENCES, padded=False, noise=0.0):
    here, _, run, params = compiled(kind, padded, len(sentences))
    targets = targets_of(kind, sentences)
    return run(params, sentences, targets, noise, jax.random.key(5))


def distinct(sentences):
    pairs = {(p, t) for s in sentences for p, t in enumerate(s) if t >= 0}
    return len(pairs)


# Of three sentences one is found. The weakest direction of the second span is as weak
# as what float32's rounding leaves, 8e-8 of the strongest, and spread over all of that:
# inputs are up to 1.3e-4 from the 11 directions above it and 1.2e-4 from 14, where 2e-5
# counts as rounding.
BERT_MISSES = pytest.mark.xfail(reason="rounding hides a direction of the second span")


@pytest.mark.parametrize(
    "kind", ("gpt", pytest.param("bert", marks=(pytest.mark.slow, BERT_MISSES)))
)
def test_planted_sentences_are_found_exactly(kind):
    _, found = attacked(kind)
    assert as_sets_of(found.inputs) == sorted(map(tuple, SENTENCES))
    assert int(found.numbers["rank_first"]) == distinct(SENTENCES)
    if kind == "gpt":  # what the second attention is fed hangs on all tokens before
        beginnings = {tuple(s[: p + 1]) for s in SENTENCES for p in range(T)}
        assert int(found.numbers["rank_second"]) == len(beginnings)
    assert not bool(found.numbers["rank_is_full"]) and bool(found.finite)
    assert int(found.numbers["sentences_found"]) == 3
    assert bool(found.numbers["search_is_whole"]) and float(found.loss) < 1e-3
    assert np.all(np.asarray(found.labels) == -1)


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "rate"), [(2, 0.5), (2, 0.003), (1, 0.001)])
def test_sentences_are_found_in_the_update_of_two_steps(batch, rate):
    """Of a high rate and a low one, and where the second step has another sentence."""
    sentences = SENTENCES[[0, 2]]
    here = ground("gpt")
    facts = threat("unit", "recovered", upload="update", examples=2)
    here = here._replace(
        threat=facts, protocol=Protocol(optax.sgd(rate), 2, batch, rate)
    )
    training = local_update(
        here.task.model,
        cross_entropy,
        none(),
        optax.sgd(rate),
        steps=2,
        batch=batch,
        targets=here.task.targets,
    )

    @jax.jit
    def run(params):
        public = Public(params)
        state = training.init(public, Private())
        following = np.roll(sentences, -1, axis=1)
        sent = training.run(RNG, 0, public, {}, state, sentences, following)
        return dager(here)(RNG, observe(facts, sent))

    found = run(compiled("gpt")[3])
    assert as_sets_of(found.inputs) == sorted(map(tuple, sentences))
    assert not bool(found.numbers["rank_is_full"])


def as_sets_of(inputs):
    return sorted(map(tuple, np.asarray(inputs)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ("classifier", "lora"))
def test_classifiers_and_fresh_adapters_give_their_sentences_away(kind):
    _, found = attacked(kind)
    assert as_sets_of(found.inputs) == sorted(map(tuple, SENTENCES))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ("gpt", "classifier", "bert"))
def test_sentences_that_end_in_padding_are_found(kind):
    """None begins another, and a token that no loss reads is in no gradient."""
    sentences = np.array([[3, 7, -1, -1], [8, 11, 9, 30], [21, 5, 9, -1]], np.int32)
    _, found = attacked(kind, sentences, padded=True)
    read = sentences.copy()
    if kind in TOKENWISE:  # the last token of a shorter one has no next
        read[0, 1] = read[2, 2] = -1
    assert as_sets_of(found.inputs) == sorted(map(tuple, read))
    assert int(found.numbers["sentences_found"]) == 3


@pytest.mark.slow
def test_a_full_rank_is_said_and_nothing_is_guessed():
    draw = np.random.default_rng(0)
    crowd = draw.integers(0, V, (12, T)).astype(np.int32)
    assert distinct(crowd) > D
    _, found = attacked("gpt", crowd)
    assert bool(found.numbers["rank_is_full"])
    assert int(found.numbers["sentences_found"]) == 0
    assert np.all(np.asarray(found.inputs) == -1) and float(found.loss) == 1


def test_of_noise_alone_nothing_is_found():
    _, found = attacked("gpt", noise=1.0)
    assert int(found.numbers["sentences_found"]) == 0


@pytest.mark.slow
def test_wrong_gates_hide_what_right_gates_show():
    here, _, _, params = compiled("gpt")
    draw = np.random.default_rng(3)
    gate = {LOCKED: Gate(*draw.uniform(0.5, 1.5, (2, D)).astype(np.float32))}

    @jax.jit
    def grads(params):
        def loss(params):
            logits = here.task.model.apply(
                params, {}, SENTENCES, gates=gate, train=True
            ).logits
            return cross_entropy(logits, targets_of("gpt", SENTENCES))

        return jax.grad(loss)(params)

    sent = grads(params)
    for gates, count in ((gate, 3), ({}, 0)):
        defence = here.defence._replace(gates=lambda *_, gates=gates: gates)
        attack = dager(here._replace(defence=defence))
        view = View(Public(params), {}, Public(sent), None, None, None, None, None)
        found = jax.jit(lambda view, attack=attack: attack(jax.random.key(0), view))(
            view
        )
        assert int(found.numbers["sentences_found"]) == count


@pytest.mark.slow
def test_nothing_that_is_hidden_is_used():
    here, attack, _, _ = compiled("gpt")
    update, found = attacked("gpt")
    facts = vars(here.threat.knowledge)
    assert len(hidden(facts)) >= 4
    strike = jax.jit(
        lambda update: attack(jax.random.key(5), observe(here.threat, update))
    )
    again = strike(update)
    # Integers have no NaN; numbers in their place would be seen as well.
    numbers = update._replace(inputs=update.inputs.astype(jnp.float32))
    blind = strike(poisoned(numbers, facts))
    assert not differences(again.inputs, found.inputs)
    assert not differences(blind, again)
    # A hidden column of a kernel is left out; the rest tells as much.
    grads = dict(update.sent.model)
    for block in (0, 1):
        path = f"blocks/{block}/attention/query/kernel"
        grads[path] = jnp.asarray(grads[path]).at[:, 0].set(jnp.nan)
    partly = strike(update._replace(sent=Public(grads)))
    assert as_sets_of(partly.inputs) == sorted(map(tuple, SENTENCES))
    for path in list(grads):
        if "/attention/" in path:
            grads[path] = jnp.full_like(grads[path], jnp.nan)
    none_left = strike(update._replace(sent=Public(grads)))
    assert int(none_left.numbers["sentences_found"]) == 0
    assert not bool(none_left.finite)


# --- what is refused -----------------------------------------------------------------


def lenet():
    return from_nnx(lambda rngs: LeNet(3, image_shape=(8, 8, 3), rngs=rngs))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": lenet()}, "'blocks/0/attention' of a transformer .* 'gpt-tiny'"),
        (
            {"inputs": sentences_of(T + 1, PIECES)},
            "sentences of 5 tokens are longer than the network's 4 places",
        ),
        ({"inputs": sentences_of(T, PIECES[1:])}, "vocabulary does not fit"),
        (
            {"threat": threat(examples=D)},
            f"{D} examples in an upload fill the {D} directions",
        ),
        ({"features": 0.1}, "dager has no objective"),
        ({"threat": threat("regress_gates")}, "'regress_gates' optimises"),
        (
            {
                "threat": threat(
                    "fixed_mean",
                    upload="average",
                    clients=2,
                    examples=2,
                    lock_weights="known",
                )
            },
            "under secret strategy 'fixed_mean' each client has gates of its own",
        ),
    ],
)
def test_what_it_cannot_read_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dager(ground("gpt", **changes))


def test_options_are_checked():
    with pytest.raises(ValueError, match="closed form and has no optimiser"):
        dager(ground("gpt"), optimiser="adam")
    with pytest.raises(ValueError, match="budget=0"):
        dager(ground("gpt"), budget=0)


def test_a_transformer_of_one_block_has_no_second_test():
    shallow = from_nnx(
        lambda rngs: gpt(V, **SIZES | {"depth": 1}, image_shape=(T,), rngs=rngs)
    )
    with pytest.raises(ValueError, match="'blocks/1/attention'.*two blocks"):
        dager(ground("gpt", model=shallow))
