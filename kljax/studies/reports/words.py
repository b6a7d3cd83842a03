"""Words that every report says: how to read its numbers."""

from collections.abc import Iterator, Sequence

from kljax.metrics import COLUMNS, OUTCOME_RATES
from kljax.studies.reports.kinds import find_words, noun, primaries

ORACLE = COLUMNS["ssim_affine_oracle"]
GENERAL = {
    "success": COLUMNS["success"].meaning,
    "floor": "what is reached without any gradient on the same victims",
    **{column.name: column.meaning for column in OUTCOME_RATES.values()},
}


RANKED = (
    "A rank is an interval: 1 and the number of others that surely leak less, to their "
    "number less those that surely leak more; surely means in 97.5 % of the resamples "
    "of a paired bootstrap over groups of victims, not adjusted for the number of "
    "pairs, and too narrow below 10 groups. Attackers who know a defence, and those "
    "who do not, are ranked apart, and so is whatever differs in what is known of the "
    "protocol, or in the evaluations that were offered. Of a defence stands the "
    "attacker that found most, chosen anew in each resample. An attack that failed to "
    "optimise is no protection: *at most* is what leaks if every victim does whose "
    "gradient nobody has matched, or is matched but wrong by attacks that do not "
    "recover it undefended, or if an attack was not run on it and on others was. What "
    "was not run stands below."
)
CONSISTENCY = (
    "The recovery consistency index is our own; the one of FEDLAD (arXiv 2411.03019) "
    "is not published in a form we could read. It is Fleiss' kappa of recovered or not "
    "over states: 1 where each victim is recovered at all states or at none, 0 where "
    "they agree as by chance, down to -1 / (states - 1) where the state alone decides. "
    "It has no value where everything or nothing is recovered. A search that is "
    "unsolved has recovered nothing, and says nothing of the defence."
)
CONVERGING = (
    "The attacker's own loss of the best candidate so far, of the restart that is "
    "returned: what the attacker sees. A score is known to the scorer alone, and only "
    "where snapshots were kept. A curve that still falls is of an attack that was cut "
    "off; one that is flat above its loss at the truth is of one that is stuck."
)

UNLIKE = (
    "Cells without their like in the other study, and what the nearest one has instead:"
)


def against(kinds: Sequence[str]) -> str:
    """Says how a study is read that is held against another."""
    return (
        "The same examples of the same uploads, in cells that agree in all that "
        "changes results, but for what sets the studies apart as wholes. Differences "
        f"of {_scores(kinds)} or another value are this study minus the other; their "
        "intervals and p-values are read as those of arms that are compared. What sets "
        "the studies apart is not told apart by them."
    )


def ranking(kinds: Sequence[str]) -> str:
    """Says how rankings are read."""
    if "image" not in kinds:
        return RANKED
    return f"{RANKED} RDLV is the mean SSIM over that of the prior, less 1."


def reading(kinds: Sequence[str]) -> list[tuple[str, str]]:
    """Says how tables are read: what each name means of the kinds of a study."""
    items = [item for name in GENERAL for item in _meanings(name, kinds)]
    if "image" in kinds:
        items.append((ORACLE.heading, f"{ORACLE.meaning}."))
    interval = (
        "the 95 % interval: Wilson's for rates over victims that stand for themselves, "
        "by bootstrap over groups otherwise. [?] where it is not known: of one group, "
        "or of groups that are all alike."
    )
    return [*items, ("[a, b]", interval)]


def _meanings(name: str, kinds: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Says what a name means: once where kinds agree, or of each kind."""
    meanings = {
        kind: find_words(kind).meanings.get(name, GENERAL[name]) for kind in kinds
    }
    alike = len(set(meanings.values())) == 1
    for kind, meaning in meanings.items():
        more = _beside_floors([kind]) if name == "floor" else ""
        yield name if alike else f"{name} ({kind})", f"{meaning}.{more}"
        if alike:
            return


def _beside_floors(kinds: Sequence[str]) -> str:
    scores = _scores(kinds)
    return (
        " A score that is not above its floor's proves nothing. A verdict holds "
        f"{scores} and success against their floors victim by victim: where both "
        f"always succeed, success tells nothing, and {scores} may."
    )


def _scores(kinds: Sequence[str]) -> str:
    return " or ".join(column.heading for column in primaries(kinds))


def comparing(kinds: Sequence[str]) -> str:
    """Says how comparisons are read."""
    return (
        "The same victims of the same seed, all but the arm being equal. The "
        "difference of means has the 95 % interval of a bootstrap of pairs over "
        "groups, each by itself. Each p says of which score it is: of the paired "
        "differences, by sign flips of whole groups; of success the same is McNemar's "
        "exact test, and it is 1 where both arms always succeed, whatever their "
        f"{_scores(kinds)}. They stand as they are, and adjusted by Holm's method for "
        "the number of comparisons in this table. A lower score of an arm whose attack "
        "is unsolved is a failure of the attack, and says nothing for the defence."
    )


def spending(kinds: Sequence[str]) -> str:
    """Says how success against evaluations is read."""
    return (
        "Evaluations are restarts x steps. What the last doubling brought is told on "
        f"the same victims, of success and of {_scores(kinds)}; while one still rises, "
        "the last is a lower bound."
    )


def choosing(kinds: Sequence[str]) -> str:
    """Says which reconstructions are shown."""
    return (
        "Best, median and worst by the attacker's own loss, never by likeness to the "
        f"truth, which the attacker does not have. Of an upload of several "
        f"{noun(kinds)}s the first are shown, each with its own score."
    )
