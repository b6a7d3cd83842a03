"""CENSOR: a random direction in place of the gradient, orthogonal to it."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from kljax.core.checks import is_concrete
from kljax.core.decompositions import one_at_a_time
from kljax.core.types import Array, Public, Rng
from kljax.defences.context import Context, part_of
from kljax.defences.defence import Defence, widened

# Between the rank of a gradient and that of a random matrix: a share of the largest
# eigenvalue of the smaller product of a matrix with itself. Rounding leaves 1e-6, and
# a random matrix of twice as many rows as columns has .03.
RANK_TOLERANCE = 1e-4


def censor(
    trials: float | Array = 20.0,
    rate: float | Array = 1e-4,
    *,
    fallback: bool = False,
    single_division: bool = False,
) -> Defence:
    """Sends the best of random directions that are orthogonal to the gradient.

    Each trial draws ``r ~ N(0, I)`` for each tensor, takes away its component along
    that tensor's g, and gives it g's length. Of all trials that is sent whose loss on
    the client's own inputs, at w - rate r, is lowest, with norms in eval mode
    (`Context.loss`). If no trial is better than w itself, the best of them is sent all
    the same. A tensor of one entry has nothing orthogonal to it, and 0 is sent.

    An attacker who knows it has two equations for each tensor, whatever its size: the
    length of g, and that g is orthogonal to what is sent. In place of the r that nobody
    knows it takes what is sent: that makes of the true gradient what was sent. Who has
    as many releases of the same inputs at the same parameters as a tensor has entries,
    less one, has its direction: the only one that is orthogonal to all; that is not
    built as an attack, for no client here sends one gradient twice. Nothing is made of
    a tensor that is hidden in part, or of a step of local training, which nobody sees.

    Args:
      trials: T, a whole number from 1; each costs a forward pass.
      rate: of the trial step, in units of the parameters over the gradient's.
      fallback: whether the true gradient is sent if no trial is better than w. The
        attacker sees that: a gradient's matrix at the classifier has no full rank,
        since softmax's sum to 0 over classes, and a random one's has. It then compares
        with the gradient itself. Matrices less than twice as long as wide do not count.
      single_division: whether r's component is divided by g's length once, as in the
        official code: r, of length 1, is then orthogonal to g where g has length 1
        only, and has nearly its direction, or the opposite one, where it is long. The
        attacker is left with lengths.

    Raises:
      ValueError: for trials that are no whole number from 1, a rate that is not
        positive and finite; from ``release``, where there is no loss to compare by,
        since a whole change is released.

    Reference: Zhang et al., "CENSOR" (NDSS 2025, arXiv 2501.15718); official code
    KaiyuanZh/censor, defense.py (`orthogonal_gradient`), which has both options.
    """
    if is_concrete(trials) and not _is_count(trials):
        raise ValueError(f"trials must be a whole number >= 1, got {trials!r}")
    if is_concrete(rate) and not 0 < rate < math.inf:
        raise ValueError(f"rate must be finite and > 0, got {rate!r}")
    across = _divided_once if single_division else _across

    def release(rng: Rng, state, grads: Public, context: Context):
        loss = part_of(context, "loss", "censor")

        def tried(index: Array | int) -> tuple[Array, Public]:
            leaves, tree = jax.tree.flatten(grads)
            rngs = jax.random.split(jax.random.fold_in(rng, index), len(leaves))
            drawn = [
                across(jax.random.normal(rng_leaf, g.shape), g).astype(g.dtype)
                for rng_leaf, g in zip(rngs, leaves, strict=True)
            ]
            direction = jax.tree.unflatten(tree, drawn)
            return loss(_moved(context.public, direction, rate)), direction

        def better(index: Array, best: tuple[Array, Public]) -> tuple[Array, Public]:
            new = tried(index)
            wins = new[0] < best[0]
            return jax.tree.map(lambda a, b: jnp.where(wins, a, b), new, best)

        count = jnp.asarray(trials).astype(jnp.int32)
        lowest, sent = jax.lax.fori_loop(1, count, better, tried(0))
        if fallback:
            wins = lowest < loss(context.public)
            sent = jax.tree.map(lambda a, b: jnp.where(wins, a, b), sent, grads)
        return sent, state

    def simulate(
        grads: Public, sent: Public | None, earlier: Public | None, private: Any
    ) -> Public:
        del earlier, private
        if sent is None:
            return grads

        def of_tensor(g: Array, seen: Array) -> Array:
            whole = ~jnp.any(jnp.isnan(seen))
            taken = jnp.where(jnp.isnan(seen), 0.0, seen).astype(g.dtype)
            made = _with_length(taken, g) if single_division else _across(taken, g)
            return jnp.where(whole, made.astype(g.dtype), taken)

        simulated = jax.tree.map(of_tensor, grads, sent)
        if not fallback:
            return simulated
        true = looks_computed(sent)
        return jax.tree.map(lambda g, s: jnp.where(true, g, s), grads, simulated)

    return Defence(release=release, simulate=simulate, needs=("loss",))


def _is_count(number: float | Array) -> bool:
    return 1 <= number < math.inf and number == round(number)


def looks_computed(sent: Public) -> Array:
    """Tells [] whether any long matrix of an upload has not full rank.

    That of a classifier never has in a gradient of cross-entropy, nor any dense layer's
    in that of fewer examples than its shorter side; a random one has.
    """
    found = jnp.zeros((), bool)
    for x in jax.tree.leaves(sent):
        if x.ndim != 2 or max(x.shape) < 2 * min(x.shape) or min(x.shape) < 2:
            continue
        x = widened(x)
        x = x / _positive(jnp.max(jnp.abs(x)))
        square = x.T @ x if x.shape[0] > x.shape[1] else x @ x.T
        values = _eigenvalues(square)
        # A tensor of zeros says nothing.
        found |= (values[0] <= RANK_TOLERANCE * values[-1]) & (values[-1] > 0)
    return found


@one_at_a_time
def _eigenvalues(square: Array) -> Array:
    return jnp.linalg.eigvalsh(square)


def _moved(public: Public, direction: Public, rate: float | Array) -> Public:
    return jax.tree.map(lambda w, r: w - (rate * r).astype(w.dtype), public, direction)


def _across(r: Array, g: Array) -> Array:
    """Gives what of r is orthogonal to g, in the length of g."""
    r, g = widened(r), widened(g)
    if g.size < 2:
        return jnp.zeros_like(g)
    unit = g / _positive(_length(g))
    # Twice: of an r that is nearly along g the first leaves little but rounding.
    for _ in range(2):
        r = r - jnp.sum(r * unit) * unit
    return _with_length(r, g)


def _divided_once(r: Array, g: Array) -> Array:
    r, g = widened(r), widened(g)
    r = r / _positive(_length(r))
    along = jnp.sum(r * g) / _positive(_length(g))
    return _with_length(r - along * g, g)


def _with_length(r: Array, g: Array) -> Array:
    r, g = widened(r), widened(g)
    return r * (_length(g) / _positive(_length(r)))


def _length(x: Array) -> Array:
    """Gives the Euclidean length, with a derivative of 0 where it is 0."""
    power = jnp.sum(x**2)
    return jnp.where(power > 0, jnp.sqrt(_positive(power)), 0.0)


def _positive(x: Array) -> Array:
    return jnp.where(x > 0, x, jnp.ones_like(x))
