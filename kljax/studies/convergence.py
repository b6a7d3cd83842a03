"""Convergence: what searches recorded on their way, beside their reconstructions.

| array               | of a cell with N victims, at P points                          |
|---------------------|----------------------------------------------------------------|
| ``losses``          | [N, P] matching loss of the best candidate so far              |
| ``loss_evaluations``| [N, P] evaluations by then, of the restart that is returned    |
| ``snapshots``       | [N, P, B, ...] that candidate's inputs, in the truths' order   |
| ``snapshot_scores`` | [N, P, B] their primary score (`kljax.metrics.kinds`)          |

The first two are there for every attack that searches (`kljax.attacks.drivers`), the
others where snapshots are asked for. Of several inputs they are of the primary one.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from kljax.metrics.kinds import find_kind
from kljax.studies.input_scores import flatten, score_sets
from kljax.studies.leakage import ArmResult, LeakResult
from kljax.studies.scoring import match_orders


class Convergence(NamedTuple):
    """What the searches of a cell recorded, see the table above.

    Attributes:
      losses: [N, P].
      evaluations: [N, P].
      snapshots: [N, P, B, ...]; None where none are kept.
      scores: [N, P, B]; None where none are kept.
    """

    losses: np.ndarray
    evaluations: np.ndarray
    snapshots: np.ndarray | None
    scores: np.ndarray | None


NAMES = ("losses", "loss_evaluations", "snapshots", "snapshot_scores")


def record_convergence(arm: ArmResult, result: LeakResult) -> dict[str, np.ndarray]:
    """Collects the arrays of an arm; none of an attack without a search.

    Args:
      arm: of the study.
      result: some victims of it, or all.
    """
    info = arm.attacked.reconstruction.info
    # Whoever writes an attack may have losses of another form.
    if not {"losses", "loss_evaluations"} <= info.keys():
        return {}
    arrays = {name: np.asarray(info[name]) for name in NAMES[:2]}
    if "snapshots" not in info:
        return arrays
    inputs, orders = result.dataset.input_spec, match_orders(arm, result)
    spec = inputs.scored[inputs.primary]
    truths = flatten(inputs.primary_of(result.victims.inputs))
    found = np.asarray(inputs.primary_of(info["snapshots"]))
    pairs = zip(found, orders, strict=True)
    found = np.stack([of_victim[:, order] for of_victim, order in pairs])
    everyone, primary = list(range(len(truths))), find_kind(spec).primary
    scores = [
        score_sets([(everyone, flatten(found[:, point]))], truths, spec)[0][primary]
        for point in range(found.shape[1])
    ]
    scores = [of_point.reshape(len(found), -1) for of_point in scores]
    return arrays | {"snapshots": found, "snapshot_scores": np.stack(scores, axis=1)}


def read_convergence(arrays: Mapping[str, np.ndarray]) -> Convergence | None:
    """Takes it from a cell's arrays; None where nothing of it was kept.

    Arrays that do not belong together are no convergence either.

    Args:
      arrays: see `kljax.studies.store.read_reconstructions`.
    """
    losses, evaluations, snapshots, scores = (arrays.get(name) for name in NAMES)
    if losses is None or evaluations is None or losses.shape != evaluations.shape:
        return None
    if losses.shape[:1] != arrays["images"].shape[:1] or losses.ndim != 2:
        return None
    if snapshots is not None and scores is not None:
        examples = arrays["images"].shape[1:]
        fit = snapshots.shape == (*losses.shape, *examples)
        if fit and scores.shape == (*losses.shape, examples[0]):
            return Convergence(losses, evaluations, snapshots, scores)
    return Convergence(losses, evaluations, None, None)
