"""LAMP: whole tokens are moved between steps, judged by gradient and language."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_sentences import LENGTH, PIECES, SENTENCE, SPEC, TABLE, ground, update
from toys import quick_jit, replace_fields

from kljax import threat as threats
from kljax.attacks import Attacker, Candidate
from kljax.attacks.attack import Judge, Moves
from kljax.attacks.presets import lamp
from kljax.attacks.rearranging import (
    STARTS,
    best_start,
    exchange,
    mean_length,
    move_span,
    propose,
    rearranged,
)
from kljax.core.language_model import LanguageModel
from kljax.models.ngrams import count_trigrams

V = len(PIECES)


def moved(order, words):
    return [words[place] for place in order]


def test_spans_are_moved_as_lists_are_cut():
    words = list("abcdef")
    for begin in range(6):
        for end in range(begin, 7):
            span, others = words[begin:end], words[:begin] + words[end:]
            for goal in range(len(others) + 1):
                order = np.asarray(move_span(6, begin, end, goal))
                wanted = others[:goal] + span + others[goal:]
                assert moved(order, words) == wanted, (begin, end, goal)


def test_two_tokens_are_exchanged():
    words = list("abcd")
    assert moved(np.asarray(exchange(4, 1, 3)), words) == list("adcb")
    assert moved(np.asarray(exchange(4, 2, 2)), words) == words


@pytest.mark.parametrize("count", (0, 1, 2, 3, 6))
def test_proposals_are_orders_that_leave_padding_alone(count):
    number = 1600
    orders = np.asarray(propose(jax.random.key(1), jnp.asarray(count), 6, number))
    assert orders.shape == (number, 6)
    np.testing.assert_array_equal(np.sort(orders, axis=1), [list(range(6))] * number)
    np.testing.assert_array_equal(orders[:, count:], [list(range(count, 6))] * number)
    np.testing.assert_array_equal(orders[0], range(6))
    changed = np.any(orders != np.arange(6), axis=1)
    assert changed.any() == (count > 1)
    if count == 6:
        kinds = [{tuple(o) for o in orders[k::4]} for k in range(4)]
        # All 15 exchanges and 5 rotations are met, and each order that one token's
        # move can make.
        assert len(kinds[0] - {tuple(range(6))}) == 15
        assert len(kinds[3]) == 5
        assert len(kinds[1] - {tuple(range(6))}) == 25
        assert len(kinds[2] - kinds[1]) > 5


# --- moves, on a judge that counts ---------------------------------------------------


def view_of():
    return threats.observe(ground().threat, update())


def first_token_model():
    """Likes sentences that begin with token 5."""

    def log_prob(weights, tokens):
        del weights
        first = jnp.where(tokens[..., :1] == 5, 0.0, -9.0)
        return jnp.concatenate([first, 0.0 * tokens[..., 1:]], axis=-1)

    return LanguageModel(log_prob, (), np.arange(3))


def judge_of(value):
    def decode(free):
        return Candidate(free[0], None, None)

    return Judge(decode, value)


def test_the_order_with_the_lowest_sum_is_taken():
    table = jnp.asarray(update().public.model[TABLE])
    tokens = jnp.array([[17, 5, 20, 2], [3, 5, 8, 17]])
    free = (table[tokens], (), ())
    # The gradient wants token 20 (or 8) in the second place, and says no more.
    wanted = table[jnp.array([20, 8])]

    def matching(free):
        return jnp.sum((free[0][:, 1] - wanted) ** 2) / 100

    setting = ground()

    @quick_jit
    def run(weight):
        move = rearranged(setting, first_token_model(), weight)
        return move(jax.random.key(2), view_of(), judge_of(matching), free)[0]

    for weight, first in ((10.0, 5), (0.0, None)):
        found = run(weight)
        read = np.asarray(SPEC.search.read({TABLE: table}, found))
        np.testing.assert_array_equal(read[:, 1], [20, 8])
        for row, before in zip(read, tokens, strict=True):
            assert sorted(row) == sorted(np.asarray(before))
        if first is not None:
            np.testing.assert_array_equal(read[:, 0], first)


@pytest.mark.slow
def test_a_start_is_the_best_of_many_and_as_long_as_embeddings_are():
    table = jnp.asarray(update().public.model[TABLE])
    usual = float(jnp.mean(jnp.linalg.norm(table, axis=1)))
    given = jax.random.normal(jax.random.key(0), (2, LENGTH, 8))
    tried = []

    def matching(free):
        # The best has its largest numbers in front.
        value = -jnp.sum(free[0][:, 0] - free[0][:, -1])
        jax.debug.callback(lambda v: tried.append(float(v)), value)
        return value

    move = best_start(ground())
    (found, *others) = jax.jit(
        lambda rng: move(rng, view_of(), judge_of(matching), (given, 1.0, ()))
    )(jax.random.key(4))
    jax.effects_barrier()
    assert others == [1.0, ()] and len(tried) == 2 * STARTS
    np.testing.assert_allclose(jnp.linalg.norm(found, axis=-1), usual, rtol=1e-5)
    front = float(jnp.sum(found[:, 0] - found[:, -1]))
    assert front > 0 and min(tried) < -8  # 16 numbers of N(0, 2), the best of 1,000


def test_the_norm_is_that_of_the_vocabulary():
    table = np.asarray(update().public.model[TABLE])
    usual = np.mean(np.linalg.norm(table, axis=1))
    view, prior = view_of(), mean_length(ground(), 3.0)
    embedded = np.random.default_rng(1).normal(size=(2, LENGTH, 8)).astype(np.float32)
    embedded[1, 2:] = 0  # padding
    real = np.concatenate([embedded[0], embedded[1, :2]])
    mean = np.mean(np.linalg.norm(real, axis=1))
    wanted = 3 * (1.4 * mean / usual - 1.4) ** 2
    found = prior(view, Candidate(jnp.asarray(embedded), None, None), 0.0)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_moves_come_when_they_are_due():
    moves = Moves(None, None, every=3, after=0.3)
    due = [bool(moves.due(number, 12)) for number in range(12)]
    # From 3.6 on; after the sixth and the ninth step, not after the last.
    assert [n for n, now in enumerate(due) if now] == [5, 8]


# --- the whole attack ----------------------------------------------------------------


def language():
    """Sentences like the victim's, without the victim's."""
    rows = np.random.default_rng(0).integers(0, V, (60, LENGTH))
    return count_trigrams(rows, V, np.arange(60))


def with_language(**changes):
    return replace_fields(
        ground(**changes), attacker=Attacker(language_model=language())
    )


@functools.cache
def attack(steps=60):
    strike = lamp(with_language(), steps=steps, restarts=1, every=20)
    return quick_jit(strike)


@pytest.mark.slow
def test_a_sentence_is_found():
    found = attack(300)(jax.random.key(7), view_of())
    np.testing.assert_array_equal(found.inputs, SENTENCE)
    assert found.finite and found.loss < 1e-2


@pytest.mark.slow
def test_what_is_hidden_has_no_part_in_what_is_found():
    clean = attack()(jax.random.key(7), view_of())
    # Starts, and orders after the 20th and the 40th of 60 steps.
    assert clean.numbers["proposals"] == 2 * STARTS + 2 * 200
    assert clean.numbers["evaluations"] == 60
    blind = update()._replace(inputs=0 * SENTENCE, before_release=None)
    again = attack()(jax.random.key(7), threats.observe(ground().threat, blind))
    np.testing.assert_array_equal(again.inputs, clean.inputs)
    np.testing.assert_array_equal(again.loss, clean.loss)


@pytest.mark.slow
def test_victims_side_by_side_try_orders_only_when_it_is_time():
    """Mapped over victims, a round of proposals is still a branch, and no select."""
    strike = lamp(with_language(), steps=60, restarts=1, every=20)
    view = view_of()

    def several(rngs):
        return jax.vmap(lambda rng: strike(rng, view))(rngs).loss

    program = str(jax.make_jaxpr(several)(jax.random.split(jax.random.key(0), 2)))
    assert program.count(" cond[") == 1


def test_memory_does_not_grow_with_the_orders_tried(monkeypatch):
    from kljax.attacks import rearranging

    def bytes_of(number):
        monkeypatch.setattr(rearranging, "PROPOSALS", number)
        free = (jnp.zeros((1, LENGTH, 8)), (), ())
        weights = jnp.ones((20000, LENGTH * 8))  # what one gradient takes

        def matching(free):
            return jnp.sum(jnp.tanh(weights * free[0].reshape(1, -1)) ** 2)

        move = rearranged(ground(), first_token_model(), 0.1)
        run = jax.jit(
            lambda rng: move(rng, view_of(), judge_of(matching), free)[0]
        ).lower(jax.random.key(0))
        return run.compile().memory_analysis().temp_size_in_bytes

    small, large = bytes_of(40), bytes_of(400)
    assert large < 1.5 * small


@pytest.mark.parametrize(
    ("setting", "message"),
    (
        (lambda: ground(), "the attacker has none: give Attacker.language_model"),
        (
            lambda: replace_fields(
                with_language(),
                inputs=dataclasses.replace(
                    SPEC, search=dataclasses.replace(SPEC.search, table=None)
                ),
            ),
            "of these no token can be moved",
        ),
    ),
)
def test_what_lamp_needs_is_asked_for(setting, message):
    with pytest.raises(ValueError, match=message):
        lamp(setting(), steps=1, restarts=1)


def test_moves_that_never_come_are_refused():
    with pytest.raises(ValueError, match="every must be at least 1"):
        lamp(with_language(), steps=10, restarts=1, every=0)
