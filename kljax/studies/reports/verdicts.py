"""Verdicts: how a pool reads, in words that claim no more than its rows show."""

from typing import NamedTuple

from kljax.studies.reports.estimates import Estimate
from kljax.studies.reports.kinds import find_words
from kljax.studies.reports.pools import Pool
from kljax.studies.reports.readings import read_differences
from kljax.studies.reports.undefended import ambiguous_yet_recovered, is_undefended
from kljax.studies.reports.values import capitalised

BESIDE_FLOOR = {
    1: "above its floor",
    -1: "below its floor",
    0: "not told apart from its floor",
    None: "difference from its floor not known",
}


class Outcomes(NamedTuple):
    """How many images came out how; see `kljax.metrics.outcome`."""

    recovered: int
    recovered_affine: int
    unsolved: int
    ambiguous: int
    diverged: int

    def text(self) -> str:
        """Writes the counts, in that order."""
        return " / ".join(map(str, self))


def count_outcomes(pool: Pool) -> Outcomes:
    """Counts the outcomes of a pool."""
    counts = pool.rows["outcome"].value_counts()
    return Outcomes(*(int(counts[name]) for name in Outcomes._fields))


def verdict(pool: Pool, *scores: Estimate, undefended: Pool | None = None) -> str:
    """Says how to read a pool.

    Whether a score is above its floor is told by the interval of the paired difference
    on the same victims; where that is not known, it is said. An attack that did not
    match the gradient is never counted for a defence, and an image that is wrong
    although the gradient is matched only where it is recovered undefended.

    Args:
      pool: the rows.
      undefended: the pool without a defence, all else being equal, see
        `kljax.studies.reports.undefended`; None where there is none.
      scores: estimates of scores of this pool, such as ``ssim`` and ``success``. A rate
        alone hides what is above the floor where both always succeed, or never.
    """
    n = len(pool.rows)
    if not n:
        return f"{capitalised(pool.state)}."
    outcomes = count_outcomes(pool)
    beside = {
        score.value.heading: score.floor.excess for score in scores if score.floor
    }
    sentence = read_differences(beside, BESIDE_FLOOR) if beside else ""
    parts = [f"{capitalised(sentence)}."] if sentence else []
    sentence = _counted(
        n,
        {
            "recovered": outcomes.recovered,
            "recovered up to contrast": outcomes.recovered_affine,
        },
    )
    if sentence:
        parts.append(f"{sentence}.")
    if outcomes.ambiguous:
        parts.append(_of_ambiguous(pool, outcomes.ambiguous, undefended))
    sentence = _counted(
        n, {"unsolved": outcomes.unsolved, "diverged": outcomes.diverged}
    )
    if sentence:
        parts.append(f"{sentence}: no sign of protection.")
    if n > pool.attacked:
        parts.append(_of_uploads(pool))
    if pool.state != "finished":
        parts.append(f"Only {pool.attacked} of {pool.expected} victims so far.")
    return " ".join(parts)


def _of_ambiguous(pool: Pool, count: int, undefended: Pool | None) -> str:
    """Says what images that are wrong although the gradient is matched show."""
    counted = _counted(len(pool.rows), {"ambiguous (matched but wrong)": count})
    if is_undefended(pool):
        return f"{counted}: without any defence."
    if undefended is None or not len(undefended.rows):
        return f"{counted}: no evidence for this arm, no undefended one was run here."
    recovered, shared = ambiguous_yet_recovered(pool, undefended)
    some = "" if shared == count else f" of the {shared} that were attacked undefended"
    if not recovered:
        reads = f"no evidence for this arm, none{some} is recovered undefended"
    else:
        reads = f"evidence for this arm in the {recovered}{some} recovered undefended"
    return f"{counted}: {reads}."


def _of_uploads(pool: Pool) -> str:
    """Says how many images of each upload are recovered, contrast or not."""
    leaked = pool.rows["outcome"].isin(("recovered", "recovered_affine"))
    uploads = leaked.groupby(
        [pool.rows["cell"], pool.rows["upload"]], observed=True, dropna=False
    )
    low, high = uploads.sum().min(), uploads.sum().max()
    span = str(low) if low == high else f"{low} to {high}"
    of = " or ".join(map(str, sorted(uploads.size().unique())))
    noun = find_words(pool.kind).noun
    return f"Of each upload's {of} {noun}s at least {span} leaked."


def _counted(n: int, counts: dict[str, int]) -> str:
    return " and ".join(
        f"All {n} {name}" if count == n else f"{count} of {n} {name}"
        for name, count in counts.items()
        if count
    )
