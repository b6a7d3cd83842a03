"""Every column of the rows of a leakage study, once.

A row is about one image in one arm; an example of several inputs has a row for each.
Rows of arms ``floor/NAME`` score what is reached without any gradient. What is known of
an upload alone is the same in the rows of all of its images.
"""

from kljax.metrics.attack_columns import FOUND
from kljax.metrics.columns import Column, by_name
from kljax.metrics.option_columns import OPTIONS, WHICH
from kljax.metrics.score_columns import SCORES

COLUMNS = by_name((*WHICH, *OPTIONS, *SCORES, *FOUND))


def _outcome(name: str, words: str, meaning: str, leaks: int = 0) -> Column:
    return Column(
        name=name,
        dtype="bool",
        meaning=meaning,
        rows="attack",
        words=words,
        form=".0%",
        leaks=leaks,
        rate=True,
    )


# Values of the column `outcome`, each as a rate of its own.
OUTCOME_RATES = by_name(
    (
        _outcome(
            "recovered",
            "recovered",
            "of an image success, and at most half the squared error of its best "
            "floor; of a sentence at least half of the tokens right in their place, "
            "and at most half as many wrong as in its best floor; of a row the same of "
            "its cells",
            1,
        ),
        _outcome(
            "recovered_affine",
            "recovered up to contrast",
            "of an image alone, recovered up to brightness and contrast: the same "
            "after the best affine map per channel, of the image and of its floors. It "
            "reads the truth, and says what the gradient gave away",
            1,
        ),
        _outcome(
            "unsolved",
            "unsolved",
            "the attack did not match the gradient: it failed, which says nothing for "
            "a defence",
        ),
        _outcome(
            "ambiguous",
            "ambiguous",
            "matched but wrong: the gradient is matched and what was found is not "
            "recovered, an image whatever its contrast. Evidence for a defence only "
            "where the undefended arm of the same cell is recovered; verdicts count "
            "those victims",
        ),
        _outcome(
            "diverged",
            "diverged",
            "the attack broke off in numbers that are not finite",
        ),
    )
)
VALUES = by_name(
    column for column in (*COLUMNS.values(), *OUTCOME_RATES.values()) if column.is_value
)
