"""FedLeak: a part of the gradient, matched by a descent with a gradient penalty."""

from kljax.attacks.attack import Attack, Objective, Optimiser
from kljax.attacks.drivers.gradient import check_optimiser
from kljax.attacks.objectives import cosine
from kljax.attacks.optimisers import sign_adam, with_gradient_penalty
from kljax.attacks.presets.signed import CLI_VARIATION, inverting_gradients
from kljax.attacks.setting import Setting
from kljax.attacks.tensors import largest_entries
from kljax.core.types import Array

SHARE = 0.5  # of the entries: kljax's own


def fedleak(
    setting: Setting,
    optimiser: Optimiser | None = None,
    *,
    steps: int,
    restarts: int,
    share: float | Array = SHARE,
    radius: float | Array = 0.01,
    penalty: float | Array = 0.5,
    variation: float | Array = CLI_VARIATION,
    learning_rate: float | Array = 0.1,
) -> Attack:
    """Makes what is known of FedLeak: partial matching and a gradient penalty.

    Both are put on `kljax.attacks.presets.inverting_gradients`, so that what they add
    can be measured. The paper's abstract names the two techniques. Which entries it
    matches, at which strengths, and by which distance, was not found in a form that
    could be read: the entries of the largest observed magnitude and all numbers here
    are kljax's own. A local training is replayed step by step, as Inverting Gradients
    does it.

    Args:
      setting: of a gradient or an update.
      optimiser: instead of signed Adam; the penalty is put on it, too.
      steps: evaluations per restart, of which every second one is a move.
      restarts: independent starts.
      share: of each tensor's entries, those that are matched, in (0, 1].
      radius: how far ahead gradients are looked at, see `with_gradient_penalty`.
      penalty: weight of those gradients, in [0, 1]; 0 leaves no penalty.
      variation: weight of the total variation.
      learning_rate: of signed Adam.

    Raises:
      ValueError: for numbers out of range.

    Reference: Fan, Wang, Chen, Zhou, "Boosting Gradient Leakage Attacks: Data
    Reconstruction in Realistic FL Settings" (USENIX Security 2025), abstract.
    """
    moving = optimiser or sign_adam(learning_rate, steps=max(steps // 2, 1))
    check_optimiser(moving)
    return inverting_gradients(
        setting,
        with_gradient_penalty(moving, radius=radius, weight=penalty),
        steps=steps,
        restarts=restarts,
        variation=variation,
        objective=largest_entries(cosine(), share),
    )


def fedleak_objective() -> Objective:
    """Makes the distance of `fedleak`, with its own share."""
    return largest_entries(cosine(), SHARE)
