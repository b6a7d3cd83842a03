"""Inputs that are made of parts: tokens of a sentence, cells of a row.

They are scored by the share of their parts that are right, and share what a floor and
an outcome of them are.
"""

from collections.abc import Callable, Mapping

import numpy as np

from kljax.metrics import outcomes
from kljax.metrics.kinds.kind import Having, Row, Scores

SUCCESS_PARTS = 0.5  # of an input: what more than half says is given away


def best_floors_by(score: str) -> Callable[..., Scores]:
    """Makes the ``best_floors`` of a `Kind`: the highest share that a floor has right.

    Args:
      score: its column; that of the best floor is called ``floor_`` and its name.
    """

    def best_floors(
        truths: np.ndarray,
        made: list[dict[str, np.ndarray]],
        scores: dict[str, Having],
    ) -> Scores:
        del made
        best = np.zeros(len(truths))
        for having, its in scores.values():
            best[having] = np.maximum(best[having], its[score])
        return {f"floor_{score}": best}

    return best_floors


def outcome_by(score: str, *, beyond_floor: bool) -> Callable[..., str]:
    """Makes the ``outcome`` of a `Kind`: recovered is judged by what is wrong.

    At least half of the parts are right, and at most half as many wrong as in the best
    floor. Nothing is recovered up to anything.

    Args:
      score: column of the share that is right.
      beyond_floor: whether a guess with all parts right leaks nothing where a floor has
        all of them right, too.
    """

    def outcome(
        row: Row, matching_loss: float | None, loss_floor: float | None, finite: bool
    ) -> str:
        share, floor = row[score], row[f"floor_{score}"]
        wrong, allowed = 1 - share, outcomes.SUCCESS_FLOOR_SHARE * (1 - floor)
        right = share >= SUCCESS_PARTS and wrong <= allowed
        return outcomes.judge(
            right=right and not (beyond_floor and floor == 1),
            matching_loss=matching_loss,
            loss_floor=loss_floor,
            finite=finite,
        )

    return outcome


def meanings_of(
    noun: str, right: str, *, success: str, floor: str
) -> Mapping[str, str]:
    """Writes the ``meanings`` of a `Kind`.

    Args:
      noun: what one input is called.
      right: what is to be said of half of its parts, such as "cells are right".
      success, floor: what they mean of it.
    """
    return {
        "success": success,
        "floor": floor,
        "recovered": f"at least half of the {right}, and at most half as many are "
        f"wrong as in the {noun}'s best floor",
        "recovered_affine": f"of images alone: no {noun} is recovered up to anything",
        "ambiguous": f"matched but wrong: the gradient is matched and the {noun} is "
        "not recovered. Evidence for a defence only where the undefended arm of the "
        f"same cell is recovered; verdicts count those {noun}s",
    }
