"""Sentences as a kind of input: scores, floors, and when one is recovered."""

import numpy as np

from kljax.core.folders import optional
from kljax.core.inputs import InputSpec
from kljax.metrics import text
from kljax.metrics.kinds import parts
from kljax.metrics.kinds.kind import Kind, Scores


def score_sentences(guesses: np.ndarray, truths: np.ndarray, spec: InputSpec) -> Scores:
    """Scores guesses [n, T] against truths, see `kljax.metrics.text`.

    ROUGE is left out, with a warning, where rouge-score is not installed.
    """
    table: Scores = {
        "token_accuracy": text.token_accuracy(guesses, truths),
        "exact_match": text.exact_match(guesses, truths),
    }
    # What is guessed in the place of padding is not read.
    guesses = np.where(truths < 0, text.PADDING, guesses)
    written = [[spec.spell(tokens) for tokens in side] for side in (guesses, truths)]
    table["text_guess"], table["text"] = map(np.array, written)
    with optional("ROUGE"):
        pairs = zip(*written, strict=True)
        found = [text.rouge(guess, truth) for guess, truth in pairs]
        table |= {name: np.array([f[name] for f in found]) for name in found[0]}
    return table


def _reference(sentences, labels, indices, spec: InputSpec) -> text.SentenceReference:
    del spec
    return text.SentenceReference(sentences, labels, indices)


READING = """\
How to read it. *recovered*: at least half of the tokens are right in their place, and
at most half as many are wrong as in the best floor. *unsolved*: the attack did not
match the gradient, which says nothing for a defence. *ambiguous*: matched but wrong;
that is evidence for a defence only where the undefended arm of the same cell is
recovered. Floors are sentences made without any gradient, but for *own_tokens*, which
shuffles the true ones: so much the gradient of the embeddings says by itself, where the
server sees it. Means hide spread: `rows.csv` has every sentence."""

MEANINGS = parts.meanings_of(
    "sentence",
    "tokens are right in their place",
    success="all tokens of the sentence are right in their place",
    floor="what the best sentence made without any gradient reaches on the same "
    "victims; own_tokens alone, which shuffles the true tokens, knows more",
)

SENTENCES = Kind(
    score=score_sentences,
    primary="token_accuracy",
    caption=lambda accuracy: f"{accuracy:.0%} of tokens",
    reference=_reference,
    floors=tuple(text.SENTENCE_FLOORS),
    make_floors=text.floor_sentences,
    best_floors=parts.best_floors_by("token_accuracy"),
    success=lambda row: bool(row["exact_match"]),
    success_words="all tokens",
    reading=READING,
    outcome=parts.outcome_by("token_accuracy", beyond_floor=False),
    noun="sentence",
    success_share="sentences with all tokens right",
    meanings=MEANINGS,
)
