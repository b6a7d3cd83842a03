"""OUTPOST: early local steps are pruned, and have noise where weights vary."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from kljax.core.checks import is_concrete
from kljax.core.types import Array, Public, Rng
from kljax.defences.context import Context
from kljax.defences.defence import Defence, widened
from kljax.defences.pruning import prune_by_quantile

# Of the zeros that a perturbed upload has at least, the share from which on an attacker
# takes what it sees for one: noise falls on rows, and rows of one tensor are longer
# than those of another.
ENOUGH = 0.5


def outpost(
    beta: float | Array = 0.125,
    noise: float | Array = 0.8,
    fraction: float | Array = 0.8,
    share: float | Array = 0.4,
) -> Defence:
    """Perturbs the gradient of local step t with probability ``1 / (1 + beta t)``.

    Steps are counted from t = 1 in every round, which is that of a gradient that is
    sent as it is computed, or of a whole change. Where a gradient is perturbed,

    - of every tensor the entries below its `fraction`-quantile in magnitude are 0;
    - then noise ``N(0, (noise risk)^2)`` is added to rows: a tensor's risk is the
      variance of its weights, 1 at most; a row is all entries along the last axis, and
      has noise if the mean of their squares, before pruning, is among the largest
      `share` of the rows of all tensors.

    The attacker who knows it tells a perturbed upload by its zeros. A row with a zero
    in it has no noise, and is exact: the attacker compares what is not 0 of it, and
    takes the rest for 0 in its candidate's gradient, too. In place of a row with noise
    it assumes what was sent, which makes no difference. Beside exact entries the
    likelihood of noisy ones has no weight, which is also why there is no density to
    search by. Where fewer entries are 0 than `ENOUGH` of what pruning leaves outside of
    noisy rows, the attacker takes the gradient for unperturbed, and compares all.
    Without pruning nothing tells rows apart, and all are compared. A gradient with many
    zeros of its own, as behind dead units, loses rows by this where it was not
    perturbed. Of a local step, which nobody sees, the attacker assumes that it was
    pruned.

    Args:
      beta: how fast the probability falls; 0 perturbs every step.
      noise: standard deviation over the risk.
      fraction: of entries that are pruned, in [0, 1); 0 prunes nothing.
      share: of rows that have noise, in [0, 1]; 0 adds none.

    Raises:
      ValueError: for a beta or noise below 0 or infinite, and a fraction or share out
        of its range.

    Reference: Wang et al., "More than Enough is Too Much: Adaptive Defenses against
    Gradient Leakage in Production Federated Learning" (INFOCOM 2023); code
    TL-System/plato, defense/Outpost/perturb.py and dlg_trainer.py, whose numbers are
    the defaults. Differs from the code: there t is the epoch times the batch in it; in
    the revision that we read what was perturbed is not sent; its squares are averaged
    over outputs as PyTorch has them first and JAX has them last.
    """
    for name, value in {"beta": beta, "noise": noise}.items():
        if is_concrete(value) and not 0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and >= 0, got {value!r}")
    if is_concrete(fraction) and not 0 <= fraction < 1:
        raise ValueError(f"fraction must be in [0, 1), got {fraction!r}")
    if is_concrete(share) and not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share!r}")
    prune = functools.partial(prune_by_quantile, fraction=fraction)

    def release(rng: Rng, state, grads: Public, context: Context):
        rng_chance, rng_noise = jax.random.split(rng)
        leaves, tree = jax.tree.flatten(grads)
        weights = jax.tree.leaves(context.public)
        rngs = jax.random.split(rng_noise, len(leaves))
        least = jnp.quantile(
            jnp.concatenate([_power(g).ravel() for g in leaves]),
            1 - jnp.asarray(share, jnp.float32),
        )
        perturbed = []
        for rng_leaf, g, w in zip(rngs, leaves, weights, strict=True):
            risk = jnp.minimum(jnp.var(widened(w)), 1.0)
            drawn = noise * risk * jax.random.normal(rng_leaf, g.shape)
            # At a share of 0 the largest row would have noise all the same.
            noisy = (_power(g) >= least) & (jnp.asarray(share) > 0)
            perturbed.append(prune(g) + jnp.where(noisy, drawn, 0).astype(g.dtype))
        chance = 1 / (1 + beta * (1.0 + context.step))
        acts = jax.random.uniform(rng_chance) < chance
        sent = [jnp.where(acts, p, g) for p, g in zip(perturbed, leaves, strict=True)]
        return jax.tree.unflatten(tree, sent), state

    def simulate(
        grads: Public, sent: Public | None, earlier: Public | None, private: Any
    ) -> Public:
        del earlier, private
        if sent is None:
            return jax.tree.map(prune, grads)
        leaves = jax.tree.leaves(sent)
        zeros = sum(jnp.sum(x == 0) for x in leaves)
        seen = sum(jnp.sum(~jnp.isnan(x)) for x in leaves)
        wanted = ENOUGH * jnp.asarray(fraction) * (1 - jnp.asarray(share)) * seen
        pruned = (zeros > 0) & (zeros >= wanted) & (jnp.asarray(fraction) > 0)

        def of_tensor(g: Array, x: Array) -> Array:
            zero = x == 0
            noisy = ~jnp.any(zero, axis=-1, keepdims=True) if x.ndim else ~zero
            noisy &= jnp.asarray(noise) * jnp.asarray(share) > 0
            filled = jnp.where(jnp.isnan(x), 0, x)
            known = jnp.where(noisy, filled, jnp.where(zero, 0, g))
            return jnp.where(pruned, known, g)

        return jax.tree.map(of_tensor, grads, sent)

    return Defence(release=release, simulate=simulate)


def _power(g: Array) -> Array:
    """Averages the squares of each row, whose axis stays, with length 1."""
    square = widened(g) ** 2
    return jnp.mean(square, axis=-1, keepdims=True) if g.ndim else square
