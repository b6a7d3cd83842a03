"""Rearranging: moves of whole tokens, which no gradient suggests.

A gradient says which tokens there are sooner than in which order: a sentence with two
tokens exchanged has nearly the gradient of the true one, and lies far away. So orders
are tried, and judged by the gradient they give and by a language model.

Letters: B sentences of T places, P proposals, V tokens of a vocabulary, d numbers of an
embedding. An order [T] says which place each place takes its token from.
"""

import jax
import jax.numpy as jnp

from kljax.attacks.attack import Candidate, Judge, Move, Prior
from kljax.attacks.objectives import root
from kljax.attacks.setting import Setting
from kljax.core.language_model import LanguageModel
from kljax.core.types import Array, PyTree, Rng
from kljax.threat import View

PROPOSALS = 200  # of a sentence, each time
STARTS = 500  # that are drawn, and as many orders of the best
SIDE_BY_SIDE = 20  # candidates whose gradients are in memory together
BERT_LENGTH = 1.4  # mean norm of BERT's word embeddings, the unit of LAMP's numbers


def mean_length(setting: Setting, weight: float | Array) -> Prior:
    """Adds ``weight (m / M - 1)^2 1.4^2``: embeddings as long as the vocabulary's.

    m is the mean norm of a sentence's embeddings, and M that of all in the table. A
    layer norm does not see how long what it is fed is. In LAMP M is BERT's 1.4; of a
    table of another scale, norms are measured in units in which it is 1.4 as well, so
    that weights mean the same.

    Reference: Balunović et al., "LAMP" (NeurIPS 2022), section 4.
    """
    table = setting.task.inputs.search.table

    def prior(view: View, candidate: Candidate, progress: Array) -> Array:
        del progress
        lengths, real = _lengths(candidate.inputs)
        mean = jnp.sum(lengths) / jnp.maximum(jnp.sum(real), 1)
        usual = _usual_length(table(view.public.model))
        return weight * (BERT_LENGTH * (mean / usual - 1)) ** 2

    return prior


def best_start(setting: Setting) -> Move:
    """Begins at the best of `STARTS` draws from N(0, 1), in the best of as many orders.

    The best matches the gradient best. It is then scaled, each embedding to the mean
    norm of the vocabulary's.

    Reference: LAMP's code, init.py. Differs: every sentence of a batch has an order of
    its own, there all have the same.
    """
    table = setting.task.inputs.search.table

    def move(rng: Rng, view: View, judge: Judge, free: PyTree) -> PyTree:
        given, *others = free
        rng_draws, rng_orders = jax.random.split(rng)
        real = _lengths(judge.decode(free).inputs)[1]

        def draw(index: Array) -> Array:
            # The first is what there is.
            drawn = jax.random.normal(jax.random.fold_in(rng_draws, index), given.shape)
            return jnp.where(index == 0, given, drawn)

        def order(index: Array) -> Array:
            rngs = jax.random.split(
                jax.random.fold_in(rng_orders, index), real.shape[0]
            )
            shuffled = jax.vmap(_shuffle)(rngs, real)
            return jnp.where(index == 0, jnp.arange(real.shape[1])[None], shuffled)

        def best_of(make) -> Array:
            def judged(index: Array) -> Array:
                return judge.matching((make(index), *others))

            indices = jnp.arange(STARTS)
            values = jax.lax.map(judged, indices, batch_size=SIDE_BY_SIDE)
            return make(jnp.argmin(values))

        chosen = best_of(draw)
        chosen = best_of(lambda index: _taken(chosen, order(index)))
        lengths, real = _lengths(judge.decode((chosen, *others)).inputs)
        usual = _usual_length(table(view.public.model))
        scale = jnp.where(real, usual / jnp.where(real, lengths, 1.0), 1.0)
        return (chosen * scale[..., None], *others)

    return move


def rearranged(
    setting: Setting, model: LanguageModel, perplexity: float | Array
) -> Move:
    """Tries `PROPOSALS` orders of each sentence, one sentence after another.

    The order with the lowest ``matching + perplexity * surprise`` is taken, where the
    surprise is the mean of minus the log-probability of all tokens, as they are read
    (LAMP calls it the perplexity, of which it is the logarithm). One proposal is the
    order that there is.

    Reference: LAMP, section 4, and its code, attack.py (``swap_tokens``).
    """
    read = setting.task.inputs.search.read

    def move(rng: Rng, view: View, judge: Judge, free: PyTree) -> PyTree:
        given, *others = free
        fed = judge.decode(free).inputs
        tokens = read(view.public.model, fed)
        counts = jnp.sum(_lengths(fed)[1], axis=1)
        rngs = jax.random.split(rng, given.shape[0])

        def rearrange(carry, sentence: Array):
            latents, tokens = carry
            orders = propose(rngs[sentence], counts[sentence], tokens.shape[1])

            def moved(order: Array) -> tuple[Array, Array]:
                return (
                    latents.at[sentence].set(latents[sentence][order]),
                    tokens.at[sentence].set(tokens[sentence][order]),
                )

            def judged(order: Array) -> Array:
                latents, tokens = moved(order)
                matching = judge.matching((latents, *others))
                return matching + perplexity * model.surprise(tokens)

            values = jax.lax.map(judged, orders, batch_size=SIDE_BY_SIDE)
            return moved(orders[jnp.argmin(values)]), None

        (latents, _), _ = jax.lax.scan(
            rearrange, (given, tokens), jnp.arange(given.shape[0])
        )
        return (latents, *others)

    return move


def propose(rng: Rng, count: Array, places: int, number: int = PROPOSALS) -> Array:
    """Proposes orders [P, T] of a sentence: the one that there is, and P - 1 others.

    By turns: one token goes elsewhere, a span of tokens goes elsewhere, a beginning
    goes to the end, two tokens are exchanged. A proposal may change nothing.

    Args:
      rng: drawn from.
      count: [] tokens of the sentence, in front; the places behind are left alone.
      places: T.
      number: P.
    """

    def one(index: Array, rng: Rng) -> Array:
        rng_pair, rng_ends, rng_cut, rng_goal = jax.random.split(rng, 4)
        one, other = jax.random.randint(rng_pair, (2,), 0, jnp.maximum(count, 1))
        begin, end = jnp.sort(jax.random.randint(rng_ends, (2,), 0, count + 1))
        cut = jax.random.randint(rng_cut, (), 1, jnp.maximum(count, 2))
        goal = jax.random.randint(rng_goal, (), 0, count - (end - begin) + 1)
        kind = index % 4
        order = jnp.select(
            [kind == 1, kind == 2, kind == 3],
            [
                move_span(places, one, one + 1, other),
                move_span(places, begin, end, goal),
                move_span(places, 0, cut, count - cut),
            ],
            exchange(places, one, other),
        )
        return jnp.where((index == 0) | (count < 2), jnp.arange(places), order)

    return jax.vmap(one)(jnp.arange(number), jax.random.split(rng, number))


def exchange(places: int, one: Array, other: Array) -> Array:
    """Gives the order [T] in which two places have changed their tokens."""
    order = jnp.arange(places)
    return order.at[one].set(order[other]).at[other].set(order[one])


def move_span(places: int, begin: Array, end: Array, goal: Array) -> Array:
    """Gives the order [T] in which tokens [begin, end) begin at place `goal`.

    The others keep their order, and `goal` of them stand before.
    """
    place = jnp.arange(places)
    within = (place >= begin) & (place < end)
    among = jnp.where(place < begin, place, place - (end - begin))  # of the others
    # The span goes in front of the other that is number `goal`.
    keys = jnp.where(
        within, 2 * places * goal + place - begin, 2 * places * among + places
    )
    return jnp.argsort(keys)


def _shuffle(rng: Rng, real: Array) -> Array:
    """Gives the places [T] of tokens in any order, and those of padding behind."""
    places = jnp.arange(real.shape[0])
    drawn = jax.random.uniform(rng, real.shape)
    return jnp.argsort(jnp.where(real, drawn, 1.0 + places))


def _lengths(fed: Array) -> tuple[Array, Array]:
    """Measures embeddings [B, T, d]: norms [B, T], and where there is a token."""
    return root(jnp.sum(fed**2, axis=-1)), jnp.any(fed != 0, axis=-1)


def _usual_length(table: Array) -> Array:
    return jnp.mean(jnp.linalg.norm(table, axis=-1))


def _taken(latents: Array, orders: Array) -> Array:
    """Takes latents [B, T, ...] in orders [B, T]."""
    return jax.vmap(lambda one, order: one[order])(latents, orders)
