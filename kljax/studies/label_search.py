"""Labels of an upload that are tried, where reading them does not settle them.

Each of some label sequences (`kljax.attacks.labels.candidates`) is searched for a
while, all from one start, and the attack's own loss chooses. No truth is seen.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljax.attacks import Setting
from kljax.attacks.labels.candidates import label_candidates, losses_of
from kljax.attacks.labels.catalogue import rule_holds
from kljax.attacks.labels.label_counts import estimated_counts
from kljax.attacks.presets import find_preset
from kljax.core.randomness import fixed_rng
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


def settle_labels(
    setting: Setting,
    view: View,
    attack: str,
    given: Callable[[], Setting],
    *,
    most: int,
    steps: int,
    say: Callable[[str], Any] = lambda line: None,
) -> tuple[Setting, View, Choice | None]:
    """Settles the labels that a search goes on with: tried ones, or as they are read.

    Args:
      setting: of the search.
      view: what it sees.
      attack: its preset.
      given: makes the setting of the same attack that has its labels.
      most: sequences at most; 1 to take labels as they are read.
      steps: evaluations of the search; no candidate has more.
      say: is told what is begun.

    Returns:
      Setting and view of the search, with the labels that were chosen; and the choice.
      What was given, and None, where nothing was to be tried.

    Raises:
      ValueError: as `choose_labels`.
    """
    preset = find_preset(attack)
    is_search = preset.objective is not None or ":" in attack
    if not is_search or not leaves_labels_open(setting, view, most):
        return setting, view, None
    say(f"{attack}: at most {most} label sequences")
    labelled = given()
    choice = choose_labels(setting, view, attack, labelled, most=most, steps=steps)
    targets = setting.task.targets.encode(jnp.asarray(choice.labels))
    return labelled, view._replace(targets=targets), choice


def choose_labels(
    setting: Setting,
    view: View,
    attack: str,
    given: Setting,
    *,
    most: int,
    steps: int,
) -> Choice:
    """Tries label sequences, and chooses one by the attack's own loss.

    Args:
      setting: whose labels are recovered.
      view: without labels.
      attack: preset.
      given: the setting of the attack that has its labels.
      most, steps: see `settle_labels`.

    Raises:
      ValueError: for counts that nothing tells, and a batch that does not divide the
        examples.
    """
    knows, protocol = setting.threat.knowledge, setting.protocol
    batch = knows.examples if protocol is None else protocol.batch
    counts = np.asarray(estimated_counts(setting, view))
    candidates = label_candidates(counts, knows.examples, batch, most)
    search = find_preset(attack).build(given, None, steps=min(PROBE, steps), restarts=1)
    classes = setting.task.num_classes
    # Of no search's own: one that began where its labels were chosen would end there.
    rng = fixed_rng("label candidates")
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
