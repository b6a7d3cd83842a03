"""Sentences out of tokens whose places are known, by a test of whole sentences.

Letters: B sentences that are looked for, T tokens of each, K candidates of a place,
M sentences that are kept on the way, N sentences in one test.

A test says of sentences [N, T] how far each place is from having been there:
``distance`` in [0, 1], and ``excess``, which is at most 1 where it can have been. In a
causal network a place depends on the tokens up to it alone, so prefixes are tested one
token after the other (`extend_prefixes`). In another each place depends on all, and
whole combinations are tested (`combine_candidates`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kljax.core.targets import UNKNOWN as PADDING
from kljax.core.types import Array, Rng

# sentences [N, T] -> (distance [N, T], excess [N, T])
Test = Callable[[Array], tuple[Array, Array]]
CHUNK = 64  # sentences in one test of prefixes
SWEEPS = 2  # over all places of the sentences that are kept


class Candidates(NamedTuple):
    """Tokens of each place, those that can have been there first."""

    tokens: Array  # [T, K]
    allowed: Array  # [T, K] bool


class Sentences(NamedTuple):
    """What was found.

    Attributes:
      tokens: [B, T]; `PADDING` throughout where no sentence passed.
      distances: [B] mean over the places of a sentence; 1 where there is none.
      found: [B] bool.
      whole: [] bool: no combination was left out for want of budget.
    """

    tokens: Array
    distances: Array
    found: Array
    whole: Array


def extend_prefixes(
    candidates: Candidates, test: Test, *, wanted: int, kept: int, padded: bool
) -> Sentences:
    """Finds sentences of a causal network, token by token.

    A prefix goes on with every candidate of its next place that passes the test there;
    the `kept` best of all are kept. One that nothing follows is a sentence that ended
    there, if any may end (`padded`), and no sentence else.

    Args:
      candidates: of each place.
      test: of whole sentences.
      wanted: B.
      kept: M.
      padded: whether sentences may be shorter than T.
    """
    places, count = candidates.tokens.shape
    empty = jnp.full((kept, places), PADDING, jnp.int32)
    first = jnp.arange(kept) == 0

    def step(carry, place: Array):
        prefixes, going, ended, sums = carry
        tokens, allowed = candidates.tokens[place], candidates.allowed[place]
        longer = jnp.broadcast_to(prefixes[:, None], (kept, count, places))
        longer = longer.at[:, :, place].set(tokens[None])
        worth = going[:, None] & allowed[None]
        distance, excess = _test_worthy(
            test, longer.reshape(-1, places), worth.ravel(), place
        )
        distance = distance.reshape(kept, count)
        passed = worth & (excess.reshape(kept, count) <= 1)
        stops = going & ~jnp.any(passed, axis=1) & (place > 0)
        ended |= stops & padded
        pool = jnp.concatenate([longer.reshape(-1, places), prefixes])
        goes = jnp.concatenate([passed.ravel(), jnp.zeros(kept, bool)])
        over = jnp.concatenate([jnp.zeros(kept * count, bool), ended])
        sums = jnp.concatenate([(sums[:, None] + distance).ravel(), sums])
        means = sums / jnp.maximum(jnp.sum(pool != PADDING, axis=1), 1)
        _, best = jax.lax.top_k(-jnp.where(goes | over, means, jnp.inf), kept)
        lost = jnp.sum(goes | over) > kept
        return (pool[best], goes[best], over[best], sums[best]), lost

    start = (empty, first, jnp.zeros(kept, bool), jnp.zeros(kept))
    (tokens, going, ended, sums), lost = jax.lax.scan(step, start, jnp.arange(places))
    lengths = jnp.maximum(jnp.sum(tokens != PADDING, axis=1), 1)
    all_tried = ~jnp.any(lost) & ~_is_cut(candidates)
    return _chosen(tokens, sums / lengths, going | ended, wanted, all_tried)


def _test_worthy(
    test: Test, sentences: Array, worth: Array, place: Array
) -> tuple[Array, Array]:
    """Tests one place of the sentences [N, T] that are worth it, `CHUNK` at a time.

    Those come first, and chunks of others cost nothing.
    """
    count = len(sentences)
    size = min(CHUNK, count)
    chunks = -(-count // size)
    order = jnp.argsort(~worth)
    places = jnp.pad(order, (0, chunks * size - count), constant_values=count - 1)
    places = places.reshape(chunks, size)
    nothing = jnp.ones(size), jnp.full(size, jnp.inf)

    def tested(chosen: Array) -> tuple[Array, Array]:
        distance, excess = test(sentences[chosen])
        return distance[:, place], excess[:, place]

    distance, excess = jax.lax.map(
        lambda chosen: jax.lax.cond(
            worth[chosen[0]], tested, lambda chosen: nothing, chosen
        ),
        places,
    )
    back = jnp.argsort(order)
    return distance.ravel()[:count][back], excess.ravel()[:count][back]


def combine_candidates(
    rng: Rng,
    candidates: Candidates,
    test: Test,
    *,
    wanted: int,
    kept: int,
    budget: int,
    padded: bool,
) -> Sentences:
    """Finds sentences of a network in which each place depends on all.

    If there are at most `budget` combinations of candidates, all are tested, and else
    as many random ones. The M best are then changed place by place, `SWEEPS` times: to
    the candidate that makes the mean distance least.

    Args:
      rng: of random combinations.
      candidates, test, wanted, kept, padded: see `extend_prefixes`.
      budget: of the first tests; there are M K T `SWEEPS` more.
    """
    places, count = candidates.tokens.shape
    options = jnp.sum(candidates.allowed, axis=1)
    tokens = jnp.where(candidates.allowed, candidates.tokens, PADDING)
    if padded:  # one option more, behind the others: that the sentence is over
        tokens = jnp.pad(tokens, ((0, 0), (0, 1)), constant_values=PADDING)
        options = options + (jnp.arange(places) > 0)
    total = jnp.prod(options.astype(jnp.float32))
    all_tried = total <= budget

    def measure(sentences: Array) -> tuple[Array, Array]:
        sentences = _ended(sentences)
        distance, excess = jax.lax.map(test, sentences.reshape(-1, kept, places))
        distance, excess = (x.reshape(-1, places) for x in (distance, excess))
        real = sentences != PADDING
        mean = jnp.sum(jnp.where(real, distance, 0), axis=1)
        mean = mean / jnp.maximum(jnp.sum(real, axis=1), 1)
        fits = jnp.all(~real | (excess <= 1), axis=1)
        fits &= real[:, 0] if padded else jnp.all(real, axis=1)
        impossible = ~real[:, 0] if padded else ~jnp.all(real, axis=1)
        return jnp.where(impossible, 1.0, mean), fits

    size = -(-budget // kept) * kept
    left, digits = jnp.arange(size), []
    for place in range(places):
        digits.append(left % jnp.maximum(options[place], 1))
        left = left // jnp.maximum(options[place], 1)
    drawn = jax.random.uniform(rng, (size, places)) * options.astype(jnp.float32)[None]
    chosen = jnp.where(all_tried, jnp.stack(digits, axis=1), drawn.astype(jnp.int32))
    sentences = _ended(tokens[jnp.arange(places)[None], chosen])
    means, fits = measure(sentences)
    # What passes comes first, so that none of it is lost to what is merely near.
    best = jnp.argsort(_without_twins(sentences, means - fits))[:kept]

    def improve(sentences: Array, place: Array):
        changed = (
            jnp.broadcast_to(sentences[:, None], (kept, tokens.shape[1], places))
            .at[:, :, place]
            .set(tokens[place][None])
        )
        means, fits = measure(changed.reshape(-1, places))
        nearest = jnp.argmin((means - fits).reshape(kept, -1), axis=1)
        # Tokens behind a padding are none: at a later place they would be its.
        return _ended(changed[jnp.arange(kept), nearest]), None

    order = jnp.tile(jnp.arange(places), SWEEPS)
    sentences, _ = jax.lax.scan(improve, sentences[best], order)
    means, fits = measure(sentences)
    return _chosen(sentences, means, fits, wanted, all_tried & ~_is_cut(candidates))


def _is_cut(candidates: Candidates) -> Array:
    """Tells [] whether more tokens may fit a place than are candidates of it."""
    return jnp.any(candidates.allowed[:, -1])


def _ended(sentences: Array) -> Array:
    """Gives sentences [N, T] with nothing but padding behind their first padding."""
    over = jax.lax.cummax((sentences == PADDING).astype(jnp.int32), axis=1) > 0
    return jnp.where(over, PADDING, sentences)


def _without_twins(sentences: Array, scores: Array) -> Array:
    """Gives the scores [N], infinite for a sentence that is there before."""
    order = jnp.lexsort((jnp.arange(len(sentences)), *sentences.T))
    ordered = sentences[order]
    same = jnp.all(ordered[1:] == ordered[:-1], axis=1)
    twin = jnp.zeros(len(sentences), bool).at[order[1:]].set(same)
    return jnp.where(twin, jnp.inf, scores)


def _chosen(
    sentences: Array, means: Array, passed: Array, wanted: int, whole: Array
) -> Sentences:
    """Takes the nearest of the sentences that passed, each once."""
    scores = _without_twins(sentences, jnp.where(passed, means, jnp.inf))
    best = jnp.argsort(scores)[:wanted]
    found = jnp.isfinite(scores[best])
    return Sentences(
        jnp.where(found[:, None], sentences[best], PADDING),
        jnp.where(found, scores[best], 1.0),
        found,
        whole,
    )
