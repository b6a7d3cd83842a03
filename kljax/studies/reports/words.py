"""Words that every report says: how to read its numbers."""

from kljax.metrics import COLUMNS, OUTCOME_RATES

ORACLE = COLUMNS["ssim_affine_oracle"]
READING = (
    ("success", f"{COLUMNS['success'].meaning}."),
    (
        "floor",
        "what the best of the floors reaches on the same victims: images or sentences "
        "made without any gradient, such as the mean image of the class; some know "
        "the true label, and some the image's own mean. A score that is not above its "
        "floor's proves nothing. A verdict holds SSIM and success against their floors "
        "victim by victim: where both always succeed, success tells nothing, and SSIM "
        "may.",
    ),
    *((column.name, f"{column.meaning}.") for column in OUTCOME_RATES.values()),
    (ORACLE.heading, f"{ORACLE.meaning}."),
    (
        "[a, b]",
        "the 95 % interval: Wilson's for rates over victims that stand for themselves, "
        "by bootstrap over groups otherwise. [?] where it is not known: of one group, "
        "or of groups that are all alike.",
    ),
)
COMPARING = (
    "The same victims of the same seed, all but the arm being equal. The difference of "
    "means has the 95 % interval of a bootstrap of pairs over groups, each by itself. "
    "Each p says of which score it is: of the paired differences, by sign flips of "
    "whole groups; of success the same is McNemar's exact test, and it is 1 where both "
    "arms always succeed, whatever their SSIM. They stand as they are, and adjusted by "
    "Holm's method for the number of comparisons in this table. A lower score of an "
    "arm whose attack is unsolved is a failure of the attack, and says nothing for the "
    "defence."
)
SPENDING = (
    "Evaluations are restarts x steps. What the last doubling brought is told on the "
    "same victims, of success and of SSIM; while one still rises, the last is a lower "
    "bound."
)
CHOOSING = (
    "Best, median and worst by the attacker's own loss, never by likeness to the "
    "truth, which the attacker does not have. Of an upload of several images the first "
    "are shown, each with its own score."
)
