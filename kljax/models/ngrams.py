"""Language models by counting: trigrams, smoothed as Kneser and Ney do.

A neural language model would have to be trained on the corpus less the victims of each
study. Counting takes a second, so every study has its own, and no victim is in it.

Letters: n sentences of T tokens, V tokens of a vocabulary. A sentence begins behind two
marks, token V, so that its first token has a context, too.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljax.core.language_model import LanguageModel
from kljax.core.types import Array

MOST_TOKENS = 46_339  # V at most: two tokens and the mark are one int32
SENTENCES = 10_000  # that are counted at most


class _Table(NamedTuple):
    """What follows each context, and how likely.

    Contexts are numbered. ``words[starts[c] : starts[c + 1]]`` are the tokens that were
    seen behind context c, ascending, and `shares` what is left of each one's frequency
    once it is discounted. `rest[c]` is what was taken off: the weight of the shorter
    context.
    """

    starts: np.ndarray  # [C + 1]
    words: np.ndarray  # [entries]
    shares: np.ndarray  # [entries] float32
    rest: np.ndarray  # [C] float32


class _Weights(NamedTuple):
    """A trigram model: of contexts of two tokens, of one, and of none."""

    pairs: Array  # [C] int32 ascending: u (V + 1) + v of contexts (u, v)
    trigrams: _Table
    bigrams: _Table  # context v is number v
    unigrams: Array  # [V] float32, adds up to 1


def count_trigrams(
    sentences: np.ndarray, vocabulary: int, indices: np.ndarray
) -> LanguageModel:
    """Counts the trigrams of sentences.

    Interpolated Kneser-Ney smoothing: a trigram's discounted frequency, plus what was
    taken off times how likely the token is behind the last one; and so on, to a uniform
    share at last, so that no token is impossible. Shorter contexts count in how many
    different contexts a token was seen, not how often. Each order's discount is
    ``n1 / (n1 + 2 n2)``, of the entries that were seen once and twice.

    Args:
      sentences: [n, T] tokens; what is below 0 is padding, at the end. The first
        `SENTENCES` are counted.
      vocabulary: V.
      indices: [n] of the sentences in their dataset.

    Raises:
      ValueError: without a sentence, for another shape, and for a vocabulary that is
        too large.

    Reference: Kneser and Ney (ICASSP 1995); Chen and Goodman, "An Empirical Study of
    Smoothing Techniques for Language Modeling" (1999), equations of the interpolated
    form; Ney, Essen, Kneser (1994) for the discount.
    """
    sentences = np.asarray(sentences)[:SENTENCES]
    if sentences.ndim != 2 or not sentences.size:
        raise ValueError(
            f"a language model needs sentences [n, T], got shape {sentences.shape}"
        )
    if vocabulary > MOST_TOKENS:
        raise ValueError(
            f"trigrams are counted of at most {MOST_TOKENS} tokens, and there are "
            f"{vocabulary}"
        )
    mark, base = vocabulary, vocabulary + 1
    marked = np.pad(sentences, ((0, 0), (2, 0)), constant_values=mark)
    real = (sentences >= 0).ravel()
    first, second, third = (
        marked[:, i : i + sentences.shape[1]].ravel()[real].astype(np.int64)
        for i in range(3)
    )
    triples, counts = np.unique(
        np.stack([first * base + second, third]), axis=1, return_counts=True
    )
    pairs, context = np.unique(triples[0], return_inverse=True)
    trigrams = _discounted(context, triples[1], counts, len(pairs))
    # From here on each different trigram, and then each bigram, counts once.
    doubles, kinds = np.unique(
        np.stack([triples[0] % base, triples[1]]), axis=1, return_counts=True
    )
    bigrams = _discounted(doubles[0], doubles[1], kinds, base)
    words, kinds = np.unique(doubles[1], return_counts=True)
    alone = _discounted(np.zeros(len(words), int), words, kinds, 1)
    unigrams = np.full(vocabulary, alone.rest[0] / vocabulary)
    unigrams[words] += alone.shares[: len(words)]
    weights = _Weights(
        _padded(pairs.astype(np.int32), np.iinfo(np.int32).max),
        trigrams._replace(
            starts=_padded(trigrams.starts, trigrams.starts[-1], more=1),
            rest=_padded(trigrams.rest, 1.0),
        ),
        bigrams,
        unigrams.astype(np.float32),
    )
    return LanguageModel(_log_prob, weights, np.asarray(indices)[: len(sentences)])


def perplexity(model: LanguageModel, sentences: np.ndarray) -> float:
    """Computes exp of the mean of minus the log-probability of all tokens [n, T]."""
    return float(jnp.exp(jax.jit(model.surprise)(jnp.asarray(sentences))))


def _log_prob(weights: _Weights, tokens: Array) -> Array:
    """Gives the log-probability of each of tokens [..., T], see `LanguageModel`."""
    weights = jax.tree.map(jnp.asarray, weights)
    vocabulary = weights.unigrams.shape[0]
    real = tokens >= 0
    words = jnp.maximum(tokens, 0)
    shape = (*tokens.shape[:-1], 2)
    marks = jnp.full(shape, vocabulary, words.dtype)
    marked = jnp.concatenate([marks, words], axis=-1)
    first, second = marked[..., :-2], marked[..., 1:-1]
    pair = first * (vocabulary + 1) + second
    number = jnp.searchsorted(weights.pairs, pair)
    number = jnp.minimum(number, weights.pairs.shape[0] - 1)
    known = weights.pairs[number] == pair
    likely = weights.unigrams[words]
    likely = (
        _share(weights.bigrams, second, words) + likely * weights.bigrams.rest[second]
    )
    longer = _share(weights.trigrams, number, words)
    longer += likely * weights.trigrams.rest[number]
    return jnp.where(real, jnp.log(jnp.where(known, longer, likely)), 0.0)


def _share(table: _Table, context: Array, words: Array) -> Array:
    """Looks discounted frequencies up; 0 where a word was not seen behind a context."""
    low, end = table.starts[context], table.starts[context + 1]
    last, high = table.words.shape[0] - 1, end
    for _ in range(last.bit_length() + 1):  # halving, all lookups in step
        middle, searching = (low + high) // 2, low < high
        below = table.words[jnp.minimum(middle, last)] < words
        low = jnp.where(searching & below, middle + 1, low)
        high = jnp.where(searching & ~below, middle, high)
    at = jnp.minimum(low, last)
    found = (low < end) & (table.words[at] == words)
    return jnp.where(found, table.shares[at], 0.0)


def _discounted(
    context: np.ndarray, words: np.ndarray, counts: np.ndarray, contexts: int
) -> _Table:
    """Makes a table of entries that are sorted by context, and then by word."""
    once, twice = np.sum(counts == 1), np.sum(counts == 2)
    # A corpus without a pair of entries says nothing: a common value.
    discount = once / (once + 2 * twice) if once and twice else 0.75
    kinds = np.bincount(context, minlength=contexts)
    totals = np.bincount(context, weights=counts, minlength=contexts)
    shares = (counts - discount) / totals[context]
    rest = np.where(kinds > 0, discount * kinds / np.maximum(totals, 1), 1.0)
    starts = np.concatenate([[0], np.cumsum(kinds)]).astype(np.int32)
    return _Table(
        starts,
        _padded(words.astype(np.int32), np.iinfo(np.int32).max),
        _padded(shares.astype(np.float32), 0.0),
        rest.astype(np.float32),
    )


def _padded(values: np.ndarray, filling: float, more: int = 0) -> np.ndarray:
    """Fills an array up to a power of two: other sentences then have the same sizes."""
    size = (1 << (len(values) - more - 1).bit_length()) + more
    filled = np.full(max(size, 1 + more), filling, values.dtype)
    filled[: len(values)] = values
    return filled
