"""Refined inputs: their gradient agrees where it matters, and they look unlike."""

import jax
import jax.numpy as jnp

from kljax.core.checks import is_concrete
from kljax.core.types import Array, Public, Rng
from kljax.defences.defence import Context, Defence
from kljax.defences.substitution import check_from_zero, substitute_inputs


def refine_inputs(
    steps: float | Array = 50.0,
    rate: float | Array = 0.05,
    weight: float | Array = 0.5,
    share: float | Array = 0.5,
) -> Defence:
    """Trains on robust data: like x in the gradient of key parameters, unlike x to see.

    In the spirit of Refiner: its paper has two measures, of which abstracts say what
    they are for. *Utility* is here the error of the gradient with weights, ``sum w
    (g(x') - g(x))^2 / sum w g(x)^2``, where the weight ``|parameter g(x)|`` of an entry
    says how much of the loss hangs on its parameter. *Privacy* is here ``1 - r^2``,
    with r the correlation of the pixels of x' and x, the mean over a batch; the paper's
    is a network that was trained to judge pictures, not rebuilt here. x' starts at
    ``share x + (1 - share) noise`` with noise U(0, 1), and Adam lowers utility minus
    `weight` times privacy. What is sent is the gradient of x'.

    Cost: `steps` second-order gradients in each step of a client. An attacker who knows
    the defence (``refined-inputs/simulate``): see
    `kljax.defences.substitution.substitute_inputs`.

    Args:
      steps: of Adam, rounded down.
      rate: Adam's step size, in units of pixel values.
      weight: of privacy.
      share: in [0, 1], of x in the start; with 1 and no steps x' is x.

    Raises:
      ValueError: for steps or a weight below 0, a rate that is not positive, infinite
        ones, and a share outside [0, 1]; from ``inputs``, for inputs that are no real
        numbers.

    Reference: Fan et al., "Refiner: Data Refining against Gradient Leakage Attacks in
    Federated Learning" (USENIX Security 2025, arXiv 2212.02042), for the idea.
    """
    check_from_zero(weight=weight)
    if is_concrete(share) and not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share!r}")

    def cost(context: Context, wanted: Public, x: Array, found: Public) -> Array:
        weights = jax.tree.map(lambda p, g: jnp.abs(p * g), context.public, wanted)
        utility = _weighed(weights, jax.tree.map(jnp.subtract, found, wanted))
        utility /= _weighed(weights, wanted) + 1e-12
        correlations = _correlations(x, context.inputs)
        return utility - weight * (1 - jnp.mean(correlations**2))

    def begin(rng: Rng, images: Array) -> Array:
        noise = jax.random.uniform(rng, images.shape, images.dtype)
        return (share * images + (1 - share) * noise).astype(images.dtype)

    return substitute_inputs("refined", cost, begin, steps, rate)


def _weighed(weights: Public, values: Public) -> Array:
    sums = jax.tree.map(lambda w, v: jnp.sum(w * v**2), weights, values)
    return jax.tree.reduce(jnp.add, sums, jnp.zeros(()))


def _correlations(one: Array, other: Array) -> Array:
    """Computes [B] the correlation of the entries of each pair of rows."""
    rows = [x.reshape(x.shape[0], -1) for x in (one, other)]
    a, b = (x - jnp.mean(x, axis=1, keepdims=True) for x in rows)
    # The 1e-12 keeps derivatives finite where all pixels are alike.
    powers = [jnp.sum(x**2, axis=1) + 1e-12 for x in (a, b)]
    return jnp.sum(a * b, axis=1) / jnp.sqrt(powers[0] * powers[1])
