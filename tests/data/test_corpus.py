"""The embedded corpus, and sentences as inputs."""

import numpy as np
import pytest

from kljax.core.inputs import images_of, several_of
from kljax.core.targets import numbers_of
from kljax.data import check_batch, check_local_batches, text
from kljax.data.sentences import nearest_tokens, sentences_of, spell
from kljax.data.text import load_text

WORDS = ("▁the", "▁word", "s", ",", "▁of")


def test_the_corpus_is_the_beginning_of_verses():
    corpus = load_text(8)
    assert corpus.shape == (8,) and corpus.inputs.dtype == np.int32
    assert corpus.input_spec.kind == "text"
    assert corpus.input_spec.sizes["vocabulary"] == 4096
    first = corpus.input_spec.spell(corpus.inputs[0])
    assert first == "In the beginning God created the heaven and"
    assert corpus.class_names[corpus.labels[0]] == "law"
    assert corpus.class_names[corpus.labels[-1]] == "revelation"
    assert np.all(np.diff(corpus.labels) >= 0)  # books are in the printed order
    assert sum(text.PARTS.values()) == 66 and len(np.unique(corpus.labels)) == 8
    assert len(np.unique(corpus.groups)) > 1000  # of 1,189 chapters


def test_no_sentence_stands_beside_its_copy():
    short, long = load_text(2), load_text(16)
    for corpus in (short, long):
        assert len(np.unique(corpus.inputs, axis=0)) == len(corpus)
    assert len(short) < len(load_text(8))  # many verses begin alike
    spelled = {short.input_spec.spell(tokens) for tokens in short.inputs}
    assert "And the" in spelled


def test_a_longer_sentence_begins_as_the_shorter_one():
    short, long = ({tuple(t[:3]) for t in load_text(n).inputs} for n in (3, 9))
    assert long <= short


@pytest.mark.parametrize(
    ("length", "error", "message"),
    (
        (0, ValueError, "length of sentences is 0; give 1 or more"),
        (8.0, TypeError, "length of sentences is 8.0; give an integer"),
        (500, ValueError, r"no sentences of 500 tokens: the longest .* ask for fewer"),
    ),
)
def test_lengths_that_no_sentence_has_are_refused(length, error, message):
    with pytest.raises(error, match=message):
        load_text(length)


def test_a_missing_corpus_says_how_to_make_it(monkeypatch, tmp_path):
    monkeypatch.setattr(text, "FILE", tmp_path / "text.npz")
    text._read.cache_clear()
    with pytest.raises(FileNotFoundError, match="python experiments/text_corpus.py"):
        load_text(8)


def test_spelling():
    assert spell(WORDS, [0, 1, 2, 3, 4]) == "the words, of"


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    (
        ([[0, 1], [2, 5]], ValueError, r"sentence 1 of .*has token 5.*\[0, 5\)"),
        ([[-1, 0], [1, 1]], ValueError, "sentence 0 of .*has token -1"),
        ([[0, 1, 2], [0, 1, 2]], ValueError, r"shape \(2, 3\); give \[n, 2\]"),
        ([[0.0, 1.0], [1, 1]], TypeError, "tokens of .* are float64; give integers"),
    ),
)
def test_what_is_no_sentence_is_refused(tokens, error, message):
    with pytest.raises(error, match=message):
        check_batch(tokens, [0, 1], 2, input_spec=sentences_of(2, WORDS))


@pytest.mark.parametrize("tokens", ([[0, -1, 1]], [[-1, -1, -1]], [[-1, 0, 1]]))
def test_padding_stands_behind_a_sentence(tokens):
    padded = sentences_of(3, WORDS, padded=True)
    check_batch([[0, 1, -1], [2, -1, -1]], [0, 1], 2, input_spec=padded)
    with pytest.raises(ValueError, match="sentence 0 .*padding in front of a token"):
        check_batch(tokens, [0], 2, input_spec=padded)
    assert padded.spell(np.array([0, 1, -1])) == spell(WORDS, [0, 1])


def test_verses_are_whole_and_padded():
    corpus = load_text(12, whole=True)
    real = corpus.inputs >= 0
    lengths = real.sum(axis=1)
    assert len(np.unique(lengths)) > 3 and lengths.max() == 12
    # Each is a whole verse: the next piece of the corpus begins another one.
    long = load_text(13)
    begun = {tuple(tokens[:12]) for tokens in long.inputs}
    assert not begun & {tuple(tokens) for tokens in corpus.inputs[lengths == 12]}
    with pytest.raises(ValueError, match="no sentences of 2 tokens: the shortest"):
        load_text(2, whole=True)


@pytest.mark.parametrize("whole", (False, True))
def test_the_target_of_a_token_is_the_next(whole):
    corpus = load_text(10, whole=whole, next_token=True)
    assert corpus.target_spec.shape == (10, 4096) and corpus.num_classes is None
    tokens, following = corpus.fetch(np.arange(50))
    np.testing.assert_array_equal(following[:, :-1], tokens[:, 1:])
    assert whole == bool(np.any(following < 0)) and np.all(following[:, 0] >= 0)


@pytest.mark.parametrize(
    ("change", "message"),
    (
        (lambda tokens, labels: (tokens - 2, labels), "a token in .* client 7 is -2"),
        (lambda tokens, labels: (tokens, labels + 1), "client 8 has label 3"),
        (lambda tokens, labels: (tokens[..., None], labels), r"\[n, T, B, L\] tokens"),
    ),
)
def test_clients_train_on_tokens_from_0_and_labels_of_the_network(change, message):
    tokens = np.arange(2 * 3 * 2 * 4).reshape(2, 3, 2, 4)
    labels, valid = np.zeros((2, 3, 2), int), np.ones((2, 3), bool)
    labels[1, 2, 1] = 2
    asked = []

    def num_classes(inputs):
        asked.append((inputs.shape, inputs.dtype))
        return 3

    check_local_batches(tokens, labels, valid, num_classes, [7, 8])
    assert asked == [((1, 4), tokens.dtype)]
    tokens, labels = change(tokens, labels)
    with pytest.raises(ValueError, match=message):
        check_local_batches(tokens, labels, valid, num_classes, [7, 8])


BOTH = several_of(
    {"words": sentences_of(4, WORDS), "image": images_of((2, 2, 1))}, primary="words"
)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    (
        (lambda b: b, None, ""),
        (
            lambda b: b["inputs"].update(words=b["inputs"]["words"][..., :3]),
            ValueError,
            r"inputs 'words' of .* client 7 have shape \(2, 3, 5, 3\); give "
            r"\[n, T, B\] = \(2, 3, 5\) of shape \(4,\)",
        ),
        (
            lambda b: b["inputs"].update(image=np.zeros((2, 3, 5, 2, 2, 1))),
            TypeError,
            "inputs 'image' .* are float64; give float32",
        ),
        (
            lambda b: b.update(targets=b["targets"][..., 0]),
            ValueError,
            r"targets in .* client 7 have shape \(2, 3, 5\); give .* \(2,\)",
        ),
        (
            lambda b: b.update(valid=np.ones((2, 4), bool)),
            ValueError,
            r"have shape .*; give \[n, T, B\] = \(2, 4, 5\)",
        ),
    ),
)
def test_batches_of_other_specs_have_their_form(change, error, message):
    batches = {
        "inputs": {
            "words": np.zeros((2, 3, 5, 4), np.int32),
            "image": np.zeros((2, 3, 5, 2, 2, 1), np.float32),
        },
        "targets": np.zeros((2, 3, 5, 2), np.float32),
        "valid": np.ones((2, 3), bool),
    }
    change(batches)
    given = (*batches.values(), pytest.fail, [7, 8], BOTH, numbers_of(2))
    if error is None:
        check_local_batches(*given)
        return
    with pytest.raises(error, match=message):
        check_local_batches(*given)


def test_a_network_of_several_inputs_says_how_many_classes_there_are():
    inputs = {
        "words": np.zeros((2, 3, 5, 4), np.int32),
        "image": np.zeros((2, 3, 5, 2, 2, 1), np.float32),
    }
    labels, valid = np.full((2, 3, 5), 2), np.ones((2, 3), bool)

    def num_classes(example):
        return sum(column.ndim for column in example.values())  # 2 + 4

    check_local_batches(inputs, labels, valid, num_classes, [7, 8], BOTH)
    with pytest.raises(ValueError, match=r"has label 6 .* must lie in \[0, 6\)"):
        check_local_batches(inputs, labels + 4, valid, num_classes, [7, 8], BOTH)


def test_the_nearest_token_is_that_of_the_largest_cosine():
    generator = np.random.default_rng(0)
    table, fed = generator.normal(size=(5, 3)), generator.normal(size=(2, 4, 3))
    table[2] = 0  # of no direction: nearest to nothing
    expected = np.zeros((2, 4), int)
    for place in np.ndindex(2, 4):
        best = -np.inf
        for token in (0, 1, 3, 4):
            cosine = fed[place] @ table[token] / np.linalg.norm(table[token])
            if cosine > best:
                best, expected[place] = cosine, token
    np.testing.assert_array_equal(nearest_tokens(table, fed), expected)
    assert len(np.unique(expected)) > 2


def test_a_search_among_embeddings_comes_back_to_tokens():
    spec = sentences_of(4, WORDS)
    table = np.random.default_rng(1).normal(size=(5, 6)).astype(np.float32)
    params = {"tokens/embedding": table}
    assert spec.search.shape(params) == (4, 6)
    assert spec.search.unexplained == ("tokens/embedding",)
    tokens = np.array([[4, 0, 2, 2]])
    latents = table[tokens] / table.std()  # in units of the table's deviation
    fed = spec.search.decode(params, latents)
    np.testing.assert_allclose(fed, table[tokens], rtol=1e-6)
    np.testing.assert_array_equal(spec.search.read(params, 0.1 * fed), tokens)


@pytest.mark.parametrize(
    ("params", "message"),
    (
        ({"embed": np.ones((5, 2))}, "no embeddings of tokens 'tokens/embedding'"),
        (
            {"tokens/embedding": np.ones((4, 2))},
            r"vocabulary does not fit: .*\(4, 2\), and the data has 5 tokens",
        ),
    ),
)
def test_networks_of_another_vocabulary_are_refused(params, message):
    with pytest.raises(ValueError, match=message):
        sentences_of(4, WORDS).search.shape(params)


def test_anybody_can_draw_sentences():
    import jax

    drawn = sentences_of(3, WORDS).draw(jax.random.key(0), 50)
    assert drawn.shape == (50, 3)
    np.testing.assert_array_equal(np.unique(drawn), range(5))
