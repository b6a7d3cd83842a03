"""Labels of an upload that are tried, where reading them does not settle them.

Each of some label sequences (`kljax.attacks.labels.candidates`) is searched for a
while, all from one start, and the attack's own loss chooses. No truth is seen.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from kljax.attacks import Setting
from kljax.attacks.labels.candidates import label_candidates, losses_of
from kljax.attacks.labels.catalogue import rule_holds
from kljax.attacks.labels.label_counts import estimated_counts
from kljax.attacks.presets import find_preset
from kljax.core.types import Rng
from kljax.studies.audit.findings import Finding
from kljax.threat import View

# Evaluations of each candidate. Of an update of two steps the loss of the right labels
# was a hundredth of the next after 50 (experiments/audit.md).
PROBE = 100
CHUNK = 16  # candidates side by side


class Choice(NamedTuple):
    """Labels that an attack's own loss chose.

    Attributes:
      labels: [n].
      loss: their own, after `PROBE` evaluations.
      next: the least of all others; infinite for none.
      tried, there: how many sequences were tried, of how many.
    """

    labels: np.ndarray
    loss: float
    next: float
    tried: int
    there: int

    def finding(self, attack: str, batch: int) -> Finding:
        """Says in words what was tried and chosen."""
        read = " | ".join(
            " ".join(map(str, self.labels[at : at + batch].tolist()))
            for at in range(0, len(self.labels), batch)
        )
        return Finding(
            "labels tried",
            f"{self.tried} of {self.there} label sequences were tried by {attack}, "
            f"{PROBE} evaluations each at most: {read} (a step between bars) has the "
            f"least own loss, {self.loss:.2g}, and the next {self.next:.2g}.",
        )


def leaves_labels_open(setting: Setting, view: View, most: int) -> bool:
    """Tells whether labels are to be tried: hidden ones that reading does not settle.

    It settles those of one step whose rule's conditions hold.
    """
    if most < 2 or setting.threat.strategy.labels != "recovered":
        return False
    knows, protocol = setting.threat.knowledge, setting.protocol
    if protocol is not None and protocol.batch < knows.examples:
        return True
    try:
        return knows.examples > 1 and not bool(rule_holds(setting, view))
    except ValueError:  # no rule reads them
        return False


def choose_labels(
    setting: Setting,
    view: View,
    attack: str,
    given: Callable[[str], Setting],
    *,
    most: int,
    steps: int,
    rng: Rng,
) -> Choice:
    """Tries label sequences, and chooses one by the attack's own loss.

    Args:
      setting: whose labels are recovered.
      view: without labels.
      attack: preset.
      given: the setting of an attack that has its labels.
      most: sequences at most.
      steps: evaluations of the audit's searches; no candidate has more.
      rng: of the searches.

    Raises:
      ValueError: for counts that nothing tells, and a batch that does not divide the
        examples.
    """
    knows, protocol = setting.threat.knowledge, setting.protocol
    batch = knows.examples if protocol is None else protocol.batch
    counts = np.asarray(estimated_counts(setting, view))
    candidates = label_candidates(counts, knows.examples, batch, most)
    search = find_preset(attack).build(
        given(attack), None, steps=min(PROBE, steps), restarts=1
    )
    classes = setting.task.num_classes
    run = jax.jit(lambda rows: losses_of(search, rows, classes, rng, view, CHUNK))
    losses = np.asarray(run(candidates.labels), np.float64)
    first, *others = np.argsort(losses)
    after = losses[others[0]] if others else np.inf
    return Choice(
        candidates.labels[first],
        float(losses[first]),
        float(after),
        len(losses),
        candidates.there,
    )
