"""Words that every report says: how to read its numbers."""

READING = (
    (
        "success",
        "SSIM at or above .6. A convention, and no limit of what an eye can read.",
    ),
    (
        "floor",
        "what the best image made without any gradient reaches on the same victims, "
        "such as the mean image of the class. A success rate that is not above its "
        "floor's proves nothing.",
    ),
    (
        "recovered",
        "success, and at most half the squared error of the victim's best floor.",
    ),
    (
        "unsolved",
        "the attack did not match the gradient: it failed, which says nothing for a "
        "defence.",
    ),
    (
        "ambiguous",
        "the gradient is matched and the image is wrong: the only evidence for a "
        "defence.",
    ),
    ("diverged", "the attack broke off in numbers that are not finite."),
    (
        "SSIM affine oracle",
        "SSIM after the best brightness and contrast per channel. It reads the truth: "
        "a bound, and no attack.",
    ),
    (
        "[a, b]",
        "the 95 % interval: Wilson's for rates over victims that stand for themselves, "
        "by bootstrap over groups otherwise. [?] where it cannot be told.",
    ),
)
COMPARING = (
    "The same victims of the same seed, all but the arm being equal. The difference of "
    "means has the 95 % interval of a bootstrap of pairs over groups, each by itself. "
    "p is exact, of McNemar's test on success (of sign flips of whole groups, where a "
    "group has several victims that differ), as it is, and adjusted by Holm's method "
    "for the number of comparisons in this table. A lower score of an arm whose attack "
    "is unsolved is a failure of the attack, and says nothing for the defence."
)
SPENDING = (
    "Evaluations are restarts x steps. What the last doubling brought is told on the "
    "same victims; while success still rises, the last rate is a lower bound."
)
CHOOSING = (
    "Best, median and worst by the attacker's own loss, never by likeness to the "
    "truth, which he does not have. Of several examples the first is shown."
)
