"""Objectives: distances between a simulated and an observed gradient.

Each takes two trees alike and gives a scalar, 0 where they are equal. Which tensors
count, and how much, is said by a wrapper: see `kljax.attacks.tensors`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kljax.attacks.attack import Objective
from kljax.core.types import Array, PyTree


def _sum(fn, *trees: PyTree) -> Array:
    """Adds up the numbers that `fn` makes of each tensor."""
    numbers = jax.tree.leaves(jax.tree.map(fn, *trees))
    return _keep_in_memory(jax.lax.cumsum, numbers) if numbers else jnp.zeros(())


def _keep_in_memory(cumulate: Callable[[Array], Array], numbers: list[Array]) -> Array:
    """Reduces numbers to one by a vector in memory, in 32 bits or more.

    XLA's CPU backend makes one expression of a sum of numbers, and computes that anew
    for each entry of whatever it is multiplied by, such as the gradient of a cosine.
    What has accumulated is computed once. (A number alone is no such expression.)
    """
    stacked = jnp.stack(numbers)
    stacked = stacked.astype(jnp.promote_types(stacked.dtype, jnp.float32))
    return stacked[0] if len(numbers) == 1 else cumulate(stacked)[-1]


def root(square: Array) -> Array:
    """Takes the square root of a sum of squares; at 0 its derivative is 0, not NaN."""
    positive = square > 0
    # NaN is not positive, and must stay.
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), square)


def absolute(x: Array) -> Array:
    """Takes absolute values; at 0 the derivative is 0, where `jnp.abs` has 1."""
    return x * jax.lax.stop_gradient(jnp.sign(x))


def infinite_if_broken(losses: Array) -> Array:
    """Puts infinity where a loss is not finite, so that it is never the least one."""
    return jnp.where(jnp.isfinite(losses), losses, jnp.inf)


def squared_l2() -> Objective:
    """Sums ``(g - g*)^2`` over all entries of all tensors.

    Reference: DLG (Zhu et al. 2019), equation 4.
    """

    def objective(simulated: PyTree, observed: PyTree) -> Array:
        return _sum(lambda g, o: jnp.sum((g - o) ** 2), simulated, observed)

    return objective


def mean_squared_l2() -> Objective:
    """Averages ``|g - g*|^2`` over tensors.

    Reference: GGL (Li et al. 2022), its code, ng_loss.
    """
    squared = squared_l2()

    def objective(simulated: PyTree, observed: PyTree) -> Array:
        return squared(simulated, observed) / len(jax.tree.leaves(observed))

    return objective


def l1() -> Objective:
    """Sums ``|g - g*|`` over all entries of all tensors."""

    def objective(simulated: PyTree, observed: PyTree) -> Array:
        return _sum(lambda g, o: jnp.sum(absolute(g - o)), simulated, observed)

    return objective


def norm() -> Objective:
    """Sums the Euclidean norms of ``g - g*``, not squared, over all tensors.

    Reference: Hatamizadeh et al., "Do Gradient Inversion Attacks Make Federated
    Learning Unsafe?" (IEEE TMI 2023), its code.
    """

    def objective(simulated: PyTree, observed: PyTree) -> Array:
        return _sum(lambda g, o: root(jnp.sum((g - o) ** 2)), simulated, observed)

    return objective


def l2_norm() -> Objective:
    """Adds the squared distance and the distance of the whole gradients.

    Reference: GRNN (Ren, Deng, Xie 2022), the mean squared error and what its code
    calls a Wasserstein distance: on a matrix of one row that is the Euclidean norm.
    """
    squared = squared_l2()

    def objective(simulated: PyTree, observed: PyTree) -> Array:
        square = squared(simulated, observed)
        return square + root(square)

    return objective


def tag(alpha: float = 0.01, share: Objective | None = None) -> Objective:
    """Adds the squared distance and ``alpha`` times the absolute one.

    Args:
      alpha: of the absolute distance.
      share: the absolute distance, if not plain `l1`: its tensors may be weighted.

    Raises:
      ValueError: for a negative alpha.

    Reference: TAG (Deng et al. 2021), equation 3; alpha of its form in LAMP.
    """
    if not alpha >= 0:
        raise ValueError(f"alpha must be >= 0, got {alpha!r}")
    squared, absolute = squared_l2(), share or l1()

    def objective(simulated: PyTree, observed: PyTree) -> Array:
        return squared(simulated, observed) + alpha * absolute(simulated, observed)

    return objective


def cosine() -> Objective:
    """Computes ``1 - <g, g*> / (|g| |g*|)`` over the whole gradient, in [0, 2].

    Blind to the gradient's length. A zero gradient on either side gives 1.

    Reference: Geiping et al., "Inverting Gradients" (NeurIPS 2020), equation 4.
    """

    def objective(simulated: PyTree, observed: PyTree) -> Array:
        simulated, observed = _over_largest(simulated), _over_largest(observed)
        dot = _sum(lambda g, o: jnp.sum(g * o), simulated, observed)
        lengths = _sum(lambda g: jnp.sum(g**2), simulated) * _sum(
            lambda o: jnp.sum(o**2), observed
        )
        # Zero only for a zero gradient, where the root has no derivative.
        return 1 - dot * jax.lax.rsqrt(jnp.where(lengths == 0, 1.0, lengths))

    return objective


FAINT = 1e-6  # of the whole gradient's norm: float32 rounding


def cosine_per_tensor() -> Objective:
    """Averages `cosine` over the tensors, in [0, 2].

    Every tensor counts the same, however short, and each is blind to its length.
    Tensors whose observed norm is below `FAINT` of the whole do not count: such as a
    bias in front of a norm layer, which holds rounding. 1 if none is left.

    Reference: LAMP (Balunović et al., NeurIPS 2022), section 4.
    """
    one = cosine()

    def objective(simulated: PyTree, observed: PyTree) -> Array:
        pairs = list(
            zip(jax.tree.leaves(simulated), jax.tree.leaves(observed), strict=True)
        )
        scaled = jax.tree.leaves(_over_largest(observed))
        powers = jnp.stack([jnp.sum(o**2) for o in scaled])
        # So that NaN counts.
        counts = ~(powers <= FAINT**2 * jnp.sum(powers))
        distances = jnp.stack([one(g, o) for g, o in pairs])
        total = jnp.sum(jnp.where(counts, distances, 0.0))
        broken = jnp.where(jnp.isnan(jnp.sum(distances)), jnp.nan, 0.0)
        mean = total / jnp.maximum(jnp.sum(counts), 1)
        return jnp.where(jnp.any(counts), mean, 1.0) + broken

    return objective


def balanced_l2() -> Objective:
    """Averages ``|g - g*|^2 |whole g*| / |g*|`` over tensors.

    Half way between the plain squared distance, of which the classifier's gradient
    takes nearly all, and one relative to each tensor, in which the faintest counts as
    much as the rest. Of tensors whose observed norm is below `FAINT` of the whole the
    distance is 0. This is kljax's own.
    """

    def objective(simulated: PyTree, observed: PyTree) -> Array:
        pairs = list(
            zip(jax.tree.leaves(simulated), jax.tree.leaves(observed), strict=True)
        )
        powers = [jnp.sum(o**2) for _, o in pairs]
        whole = sum(powers, jnp.zeros(()))
        total = jnp.zeros(())
        for (g, o), power in zip(pairs, powers, strict=True):
            counts = power > FAINT**2 * whole
            weight = jnp.sqrt(whole / jnp.where(counts, power, 1.0))
            # A gradient of zeros has no units to measure in.
            weight = jnp.where(counts, weight, jnp.where(whole == 0, 1.0, 0.0))
            total += weight * jnp.sum((g - o) ** 2)
        return total / len(pairs)

    return objective


def scaled(objective: Objective, factor: float) -> Objective:
    """Multiplies an objective, against which priors are weighed, by `factor`."""
    return lambda simulated, observed: factor * objective(simulated, observed)


def _over_largest(grads: PyTree) -> PyTree:
    """Divides by the largest entry, so that squares neither vanish nor overflow.

    A cosine does not see the length, so the divisor needs no derivative.
    """
    sizes = [jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(grads)]
    largest = jax.lax.stop_gradient(_keep_in_memory(jax.lax.cummax, sizes))
    largest = jnp.where(largest == 0, 1.0, largest)
    return jax.tree.map(lambda leaf: leaf / largest, grads)


OBJECTIVES = {
    "squared_l2": squared_l2,
    "mean_squared_l2": mean_squared_l2,
    "l1": l1,
    "norm": norm,
    "l2_norm": l2_norm,
    "tag": tag,
    "cosine": cosine,
    "cosine_per_tensor": cosine_per_tensor,
    "balanced_l2": balanced_l2,
}
