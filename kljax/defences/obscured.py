"""Inputs in place of the private ones: training on what looks like something else."""

import jax

from kljax.core.types import Array, Public
from kljax.defences.defence import Context, Defence
from kljax.defences.substitution import (
    check_from_zero,
    cosine,
    rms,
    substitute_inputs,
)


def obscure_inputs(
    steps: float | Array = 50.0,
    rate: float | Array = 0.05,
    weight: float | Array = 0.5,
) -> Defence:
    """Trains on a substitute x' of each batch x, unlike it, whose gradient is like it.

    x' starts as uniform noise and is moved by Adam, and clipped to [0, 1], towards less
    of ``1 - cos(g(x'), g(x)) - weight rms(x' - x)``, where g is the client's own
    gradient at the same labels. What is sent is the gradient of x'. An inversion that
    succeeds finds x', and what x' shows of x; it is scored against both.

    This is a version of our own, in the spirit of Wan et al.: their objective, networks
    and numbers are not published in a form that we could read. An attacker who knows
    the defence (``obscured-inputs/simulate``) makes a substitute of its candidate, from
    a start of its own, and matches the gradient of that, through all steps, of which
    there are `MOST_SIMULATED` at most (`kljax.defences.substitution`); any other does
    not know that inputs are replaced. A substitute is recorded with a gradient alone
    (`kljax.threat.Update.substitute`): local steps make one each, and a whole change is
    scored against the private inputs only.

    Args:
      steps: of Adam, rounded down; 0 trains on noise.
      rate: Adam's step size, in units of pixel values.
      weight: of the distance, which is at most 1.

    Raises:
      ValueError: for steps or a weight below 0, a rate that is not positive, and
        infinite ones; from ``inputs``, for inputs that are no real numbers.

    Reference: Wan et al., "Learning to Obscure Data" (arXiv 2206.00769), for the idea.
    """
    check_from_zero(weight=weight)

    def cost(context: Context, wanted: Public, x: Array, found: Public) -> Array:
        return 1 - cosine(found, wanted) - weight * rms(x - context.inputs)

    def begin(rng, images: Array) -> Array:
        return jax.random.uniform(rng, images.shape, images.dtype)

    return substitute_inputs("obscured", cost, begin, steps, rate)
