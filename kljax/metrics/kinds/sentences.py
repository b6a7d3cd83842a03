"""Sentences as a kind of input: scores, floors, and when one is recovered."""

import numpy as np

from kljax.core.folders import optional
from kljax.core.inputs import InputSpec
from kljax.metrics import outcomes, text
from kljax.metrics.kinds.kind import Having, Kind, Row, Scores


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


def _best_floors(
    truths: np.ndarray,
    made: list[dict[str, np.ndarray]],
    scores: dict[str, Having],
) -> Scores:
    del made
    best = np.zeros(len(truths))
    for having, its in scores.values():
        best[having] = np.maximum(best[having], its["token_accuracy"])
    return {"floor_token_accuracy": best}


def _outcome(
    row: Row, matching_loss: float | None, loss_floor: float | None, finite: bool
) -> str:
    """Names the outcome: recovered is judged by the tokens that are wrong.

    At least half of the tokens are right, and at most half as many are wrong as in the
    best floor. No sentence is recovered up to anything.
    """
    accuracy, floor = row["token_accuracy"], row["floor_token_accuracy"]
    wrong, allowed = 1 - accuracy, outcomes.SUCCESS_FLOOR_SHARE * (1 - floor)
    right = accuracy >= text.SUCCESS_TOKENS and wrong <= allowed
    return outcomes.judge(
        right=right, matching_loss=matching_loss, loss_floor=loss_floor, finite=finite
    )


READING = """\
How to read it. *recovered*: at least half of the tokens are right in their place, and
at most half as many are wrong as in the best floor. *unsolved*: the attack did not
match the gradient, which says nothing for a defence. *ambiguous*: matched but wrong;
that is evidence for a defence only where the undefended arm of the same cell is
recovered. Floors are sentences made without any gradient, but for *own_tokens*, which
shuffles the true ones: so much the gradient of the embeddings says by itself, where the
server sees it. Means hide spread: `rows.csv` has every sentence."""

MEANINGS = {
    "success": "all tokens of the sentence are right in their place",
    "floor": "what the best sentence made without any gradient reaches on the same "
    "victims; own_tokens alone, which shuffles the true tokens, knows more",
    "recovered": "at least half of the tokens are right in their place, and at most "
    "half as many are wrong as in the sentence's best floor",
    "recovered_affine": "of images alone: no sentence is recovered up to anything",
    "ambiguous": "matched but wrong: the gradient is matched and the sentence is not "
    "recovered. Evidence for a defence only where the undefended arm of the same cell "
    "is recovered; verdicts count those sentences",
}

SENTENCES = Kind(
    score=score_sentences,
    primary="token_accuracy",
    caption=lambda accuracy: f"{accuracy:.0%} of tokens",
    reference=_reference,
    floors=tuple(text.SENTENCE_FLOORS),
    make_floors=text.floor_sentences,
    best_floors=_best_floors,
    success=lambda row: bool(row["exact_match"]),
    success_words="all tokens",
    reading=READING,
    outcome=_outcome,
    noun="sentence",
    success_share="sentences with all tokens right",
    meanings=MEANINGS,
)
