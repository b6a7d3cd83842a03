"""The undefended arm of the same cell, which matched but wrong images need."""

from collections.abc import Sequence

from kljax.studies.matched_but_wrong import UNDEFENDED
from kljax.studies.reports.axes import WHO, Axis, arm_axis
from kljax.studies.reports.estimates import by_image
from kljax.studies.reports.pools import Pool


def find_undefended(pools: Sequence[Pool], axes: dict[str, Axis]) -> list[Pool | None]:
    """Finds the undefended pool at the same point of all other axes, for each pool.

    An undefended pool is its own. It is None where no such arm was run, and where the
    axis of the arms says who the victims are, too.
    """
    arms = arm_axis(axes)
    if arms.fields & WHO:
        return [None] * len(pools)

    def others(pool: Pool) -> tuple[str, ...]:
        return tuple(v for axis, v in pool.point.items() if axis != arms.name)

    undefended = {others(pool): pool for pool in pools if is_undefended(pool)}
    return [undefended.get(others(pool)) for pool in pools]


def is_undefended(pool: Pool) -> bool:
    """Tells whether the cells of a pool are those of no defence."""
    return all(cell["config"]["arms"] == [UNDEFENDED] for cell in pool.cells)


def ambiguous_yet_recovered(pool: Pool, undefended: Pool) -> tuple[int, int]:
    """Counts the ambiguous images of a pool that both pools have.

    Cells of one repetition agree in all but what sets the arm: in the seed, and in the
    run that the network comes from.

    Returns:
      Those that are recovered undefended, contrast or not; and all.
    """
    ambiguous = _images(pool, "ambiguous")
    recovered = _images(undefended, "recovered")
    affine = _images(undefended, "recovered_affine")
    shared = [image for image, is_so in ambiguous.items() if is_so and image in affine]
    leaks = [recovered[image] or affine[image] for image in shared]
    return sum(map(bool, leaks)), len(leaks)


def _images(pool: Pool, outcome: str) -> dict[tuple, float]:
    """Reads whether each image has an outcome, by repetition and image."""
    repetition = {
        cell["id"]: (cell["config"].get("seed"), cell["config"].get("from_run"))
        for cell in pool.cells
    }
    has_outcome = by_image(pool, pool.rows, outcome)
    return {
        (*repetition[cell], *image): value
        for (cell, *image), value in has_outcome.items()
    }
