"""Notes: what has to be known to read the numbers of this very study."""

from collections.abc import Sequence

from kljax.metrics import Column
from kljax.studies import run_folder
from kljax.studies.reports.axes import Arrangement
from kljax.studies.reports.gallery import Gallery
from kljax.studies.reports.pools import Pool, with_several
from kljax.studies.reports.tables import Line
from kljax.studies.reports.tradeoffs import Run, unpaired

FEW_GROUPS = 10  # below, a bootstrap over groups is too narrow


def result_notes(
    lines: list[Line],
    arrangement: Arrangement,
    value: Column,
    noun: str = "image",
) -> list[str]:
    """Says what has to be known to read these very numbers."""
    if not any(len(line.pool.rows) for line in lines):
        return []
    notes = []
    if arrangement.pooled:
        notes.append(
            f"Averaged over {', '.join(arrangement.pooled)}. ± is the sample standard "
            "deviation of the means of repetitions, with their number."
        )
    methods = {line.success.interval.method for line in lines if line.success.n}
    if methods & {"cluster_bootstrap", "wilson_on_groups"}:
        notes.append(
            "Some victims are not independent of each other, such as crops of one "
            f"photograph, {noun}s of one upload, or one example under two seeds: they "
            "are a group, and intervals come from a bootstrap over groups."
        )
    fewest = min(
        (line.success.interval.groups for line in lines if line.success.n),
        default=FEW_GROUPS,
    )
    if fewest < FEW_GROUPS:
        notes.append(
            f"Some points have only {counted(fewest, 'group')} of victims: below "
            f"about {FEW_GROUPS}, intervals are too narrow."
        )
    configs = [cell["config"] for line in lines for cell in line.pool.cells]
    if any(c.get("weights") == "shared" or c.get("from_run") for c in configs):
        notes.append(
            "Victims of one repetition share a network. Intervals are about other "
            "victims of these networks; what another network would give, the spread "
            "over repetitions has to say."
        )
    else:
        notes.append(
            "Each victim has a network of its own: intervals over victims are over "
            "networks, too."
        )
    left_out = sum(line.value.left_out for line in lines)
    if left_out:
        notes.append(
            f"{counted(left_out, noun)} without a finite {value.heading} "
            f"left out of its means; success rates and outcomes count all {noun}s."
        )
    notes += _of_older_rows(lines)
    for column, words in (("device", "devices"), ("matmul_precision", "precisions")):
        found = {v for line in lines for v in line.pool.rows[column].dropna().unique()}
        if len(found) > 1:
            notes.append(f"Rows come from several {words}: {', '.join(sorted(found))}.")
    return notes


def _of_older_rows(lines: list[Line]) -> list[str]:
    """Says what the rows of older versions of kljax mean."""
    notes, older, means = [], 0, 0
    for line in lines:
        several = with_several(line.pool.cells)
        older_cells = line.pool.rows.loc[line.pool.rows["example"].isna(), "cell"]
        older += len(older_cells)
        means += int(older_cells.isin(several).sum())
    if older:
        notes.append(
            f"{counted(older, 'row')} of an older kljax, whose outcomes were judged "
            "without an affine fit: some that are called unsolved or ambiguous may be "
            "right but for their contrast."
        )
    if means:
        notes.append(
            f"{counted(means, 'row')} of an older kljax, each of which has the means "
            "over the examples of an upload; an image that was recovered among others "
            "that were not does not show in them. They are not paired with rows of one "
            "image."
        )
    return notes


def damaged_notes(gallery: Gallery) -> list[str]:
    """Names the files of pictures that could not be read."""
    return [f"Pictures left out: {words}." for words in gallery.damaged]


def tradeoff_notes(pools: Sequence[Pool], runs: Sequence[Run]) -> list[str]:
    """Says what has to be known to read trade-offs; nothing without runs."""
    if not runs:
        return []
    names = dict.fromkeys(run.measure for run in runs)
    measured = " or ".join(run_folder.MEASURES.get(name, name) for name in names)
    notes = [
        f"{measured} is of the trained networks, with the clients' own private keys. "
        "Where no run was attacked, success is of untrained networks of the same "
        "making: the two halves of the picture are of different weights. A low success "
        "of attacks that are unsolved is no privacy."
    ]
    lacking = unpaired(pools, runs)
    if lacking:
        notes.append(f"No training of the same network: {'; '.join(lacking)}.")
    return notes


def counted(number: int, noun: str) -> str:
    """Writes a number of things."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
