"""Trigram models against the textbook's sums, written with dictionaries."""

from collections import Counter, defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kljax.models.ngrams import count_trigrams, perplexity

V = 7
SENTENCES = np.random.default_rng(3).integers(0, V - 1, (40, 5)) ** 2 % V
SENTENCES[3, 3:] = SENTENCES[7, 1:] = -1  # token 6 is never seen
MODEL = count_trigrams(SENTENCES, V, np.arange(40))


def slow_model(sentences):
    """Kneser-Ney by dictionaries: a function (u, v, w) -> probability."""
    triples = Counter()
    for sentence in sentences:
        words = [V, V, *[int(w) for w in sentence if w >= 0]]
        triples.update(zip(words, words[1:], words[2:], strict=False))
    pairs = Counter((v, w) for _, v, w in triples)
    singles = Counter(w for _, w in pairs)

    def discount(counter):
        n1 = sum(c == 1 for c in counter.values())
        n2 = sum(c == 2 for c in counter.values())
        return n1 / (n1 + 2 * n2) if n1 and n2 else 0.75

    d3, d2, d1 = map(discount, (triples, pairs, singles))

    def interpolate(counts, word, d, shorter):
        total = sum(counts.values())
        if not total:
            return shorter
        kept = max(counts.get(word, 0) - d, 0) if word in counts else 0.0
        return kept / total + d * len(counts) / total * shorter

    behind2, behind1 = defaultdict(dict), defaultdict(dict)
    for (u, v, w), count in triples.items():
        behind2[u, v][w] = count
    for (v, w), count in pairs.items():
        behind1[v][w] = count

    def probability(u, v, w):
        one = interpolate(dict(singles), w, d1, 1 / V)
        two = interpolate(behind1[v], w, d2, one)
        return interpolate(behind2[u, v], w, d3, two)

    return probability


def test_probabilities_are_those_of_the_textbook():
    slow = slow_model(SENTENCES)
    contexts = [(a, b) for a in range(V) for b in range(V)]
    tokens = np.array([(a, b, c) for a, b in contexts for c in range(V)])
    found = np.exp(jax.jit(MODEL.log_prob)(MODEL.weights, tokens))
    wanted = [
        (slow(V, V, a), slow(V, a, b), slow(a, b, c)) for a, b, c in tokens.tolist()
    ]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    # Behind every context, seen or not, they add up to one.
    np.testing.assert_allclose(found[:, 2].reshape(-1, V).sum(1), 1, rtol=1e-5)
    assert np.all(found > 0)


def test_padding_has_no_part():
    tokens = jnp.array([[2, 4, -1, -1], [2, 4, 1, 1]])
    found = MODEL.log_prob(MODEL.weights, tokens)
    np.testing.assert_array_equal(found[0, 2:], 0)
    np.testing.assert_array_equal(found[0, :2], found[1, :2])
    surprise = MODEL.surprise(tokens)
    np.testing.assert_allclose(surprise, -np.sum(found) / 6, rtol=1e-6)


def test_perplexity_is_the_exponential_of_the_mean_surprise():
    slow = slow_model(SENTENCES)
    logs = []
    for sentence in SENTENCES:
        words = [V, V, *[int(w) for w in sentence if w >= 0]]
        logs += [
            np.log(slow(*three))
            for three in zip(words, words[1:], words[2:], strict=False)
        ]
    assert perplexity(MODEL, SENTENCES) == pytest.approx(np.exp(-np.mean(logs)), 1e-4)
    # What was counted is likelier than what was not.
    others = np.random.default_rng(9).integers(0, V, (40, 5))
    assert perplexity(MODEL, others) > 1.2 * perplexity(MODEL, SENTENCES)


def test_other_sentences_give_arrays_of_the_same_sizes():
    other = count_trigrams(SENTENCES[1:], V, np.arange(39))
    fewer = count_trigrams(SENTENCES[:39], V, np.arange(39))
    sizes = [jax.tree.map(np.shape, m.weights) for m in (MODEL, other, fewer)]
    assert sizes[0] == sizes[1] == sizes[2]
    np.testing.assert_array_equal(fewer.sentences, np.arange(39))


@pytest.mark.parametrize(
    ("sentences", "vocabulary", "message"),
    (
        (np.zeros((0, 4), int), V, "needs sentences"),
        (np.zeros(4, int), V, "needs sentences"),
        (SENTENCES, 50_000, "at most 46339 tokens, and there are 50000"),
    ),
)
def test_what_cannot_be_counted_is_refused(sentences, vocabulary, message):
    with pytest.raises(ValueError, match=message):
        count_trigrams(sentences, vocabulary, np.arange(len(sentences)))
