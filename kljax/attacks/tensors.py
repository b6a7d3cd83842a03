"""Tensors: which of a gradient's count in an objective, and how much.

`weighted` puts a weighting on any objective. A weighting is a function ``model gradient
-> tree alike of weights []``. What belongs to a defence, and shared lock gradients,
have weight 1 under all of them: papers count the tensors of the network.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from kljax.attacks.attack import Objective
from kljax.attacks.setting import Setting
from kljax.core.checks import is_concrete
from kljax.core.types import Array, Params, Public, PyTree

Weighting: TypeAlias = Callable[[Params], PyTree]
Depths: TypeAlias = PyTree  # like the parameters: 0 for the tensor used first


def weighted(
    objective: Objective, weighting: Weighting, *, degree: int = 2
) -> Objective:
    """Weighs the tensors of an objective; a weight of 0 leaves a tensor out.

    Args:
      objective: the distance.
      weighting: of the observed gradient of the network.
      degree: in which a tensor enters the distance: 2 for squared ones and cosines, 1
        for `norm` and `l1`. Both gradients are multiplied by ``weight ** (1/degree)``.

    Reference: Geiping et al., "Inverting Gradients" (NeurIPS 2020), its code,
    reconstruction_algorithms.py (``indices`` and ``weights``).
    """

    def times(weights: PyTree, grads: PyTree) -> PyTree:
        def scale(weight: Array, leaf: Array) -> Array:
            # Left out is left out, even if it is not finite.
            return jnp.where(weight == 0, 0.0, weight ** (1 / degree) * leaf)

        if not isinstance(grads, Public):
            public, lock = grads
            return times(weights, public), lock
        return grads._replace(model=jax.tree.map(scale, weights, grads.model))

    def distance(simulated: PyTree, observed: PyTree) -> Array:
        weights = jax.tree.map(jnp.asarray, weighting(public_of(observed).model))
        return objective(times(weights, simulated), times(weights, observed))

    return distance


def largest_entries(objective: Objective, share: float | Array) -> Objective:
    """Compares the entries of each tensor whose observed magnitude is largest.

    Of a tensor of n entries those at least as large as the ``ceil(share n)``-th count;
    the others are 0 on both sides. That holds for what belongs to a defence, too, and
    for lock gradients.

    Args:
      objective: the distance.
      share: in (0, 1]; 1 leaves the objective as it is.

    Raises:
      ValueError: for a share outside.
    """
    if is_concrete(share) and not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share!r}")

    def counts(observed: Array) -> Array:
        size = jnp.abs(observed)
        # Rounding must not make n of it more, nor 0 of a share that is tiny.
        count = jnp.clip(jnp.ceil(share * size.size - 1e-4), 1, size.size)
        least = jnp.sort(size.ravel())[size.size - count.astype(jnp.int32)]
        return ~(size < least)  # NaN counts, and so is not overlooked

    def distance(simulated: PyTree, observed: PyTree) -> Array:
        kept = jax.tree.map(counts, observed)
        return objective(
            *(
                jax.tree.map(lambda here, x: jnp.where(here, x, 0.0), kept, tree)
                for tree in (simulated, observed)
            )
        )

    return distance


def public_of(compared: PyTree) -> Public:
    """Finds the network's gradient in what an objective compares.

    Where lock gradients are shared they are compared, too, and it is the first of two.
    """
    return compared if isinstance(compared, Public) else compared[0]


def depths_of(setting: Setting) -> Depths:
    """Ranks the tensors of a network by where its forward pass first uses them.

    0 is the first. Tensors that one call uses together (all layers of a scanned stack)
    keep the order of their names.
    """
    params, stats = setting.task.shapes()
    images = setting.task.inputs.zeros(1)

    def logits(params, stats, images):
        return setting.task.model.apply(params, stats, images, train=False).logits

    traced = jax.make_jaxpr(logits)(params, stats, images).jaxpr
    leaves, tree = jax.tree.flatten(params)
    names = {id(var): i for i, var in enumerate(traced.invars[: len(leaves)])}
    used = [names[id(v)] for eqn in traced.eqns for v in eqn.invars if id(v) in names]
    order = list(dict.fromkeys([*used, *range(len(leaves))]))
    return jax.tree.unflatten(tree, [order.index(i) for i in range(len(leaves))])


def first(depths: Depths, count: int) -> Weighting:
    """Keeps the first `count` tensors."""
    return mask(jax.tree.map(lambda depth: depth < count, depths))


def last(depths: Depths, count: int) -> Weighting:
    """Keeps the last `count` tensors."""
    left_out = len(jax.tree.leaves(depths)) - count
    return mask(jax.tree.map(lambda depth: depth >= left_out, depths))


def mask(kept: PyTree) -> Weighting:
    """Keeps the tensors at which a tree like the parameters says True.

    Raises:
      ValueError: if that is nowhere.
    """
    if not any(jax.tree.leaves(kept)):
        raise ValueError("no tensor is left to compare")
    return lambda grads: jax.tree.map(float, kept)


def largest(count: int) -> Weighting:
    """Keeps the `count` tensors with the largest observed norms.

    Raises:
      ValueError: if `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")

    def weighting(grads: Params) -> PyTree:
        leaves, tree = jax.tree.flatten(grads)
        powers = jnp.stack([jnp.sum(leaf**2) for leaf in leaves])
        kept = jnp.zeros(len(leaves)).at[jnp.argsort(-powers)[:count]].set(1.0)
        return jax.tree.unflatten(tree, list(kept))

    return weighting


def linear(depths: Depths) -> Weighting:
    """Weighs the first of L tensors by 1, and each after it by 1/L less."""
    count = len(jax.tree.leaves(depths))
    return lambda grads: jax.tree.map(lambda depth: 1 - depth / count, depths)


def exponential(depths: Depths, factor: float = 0.36787944) -> Weighting:
    """Weighs the first tensor by 1, and each after it `factor` times the one before.

    The default is 1/e, which is what a softmax over descending ranks gives.

    Raises:
      ValueError: if the factor is not positive.
    """
    if not factor > 0:
        raise ValueError(f"factor must be positive, got {factor!r}")
    return lambda grads: jax.tree.map(lambda depth: factor**depth, depths)
