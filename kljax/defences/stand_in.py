"""A stand-in for the gradient: the step that Adam would make of it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kljax.core.checks import is_concrete
from kljax.core.types import Array, Public, PyTree, Rng
from kljax.defences.defence import Context, Defence


class Moments(NamedTuple):
    """What Adam remembers of the gradients before."""

    count: Array  # [] of releases, float32
    mean: PyTree  # like the gradient: decayed sum of gradients
    power: PyTree  # like the gradient: decayed sum of squares


def adam_stand_in(
    size: float | Array = 1e-3,
    b1: float | Array = 0.9,
    b2: float | Array = 0.999,
    eps: float | Array = 1e-8,
    *,
    sharers: float | Array = 0.0,
) -> Defence:
    """Sends Adam's step in place of the gradient g (AdaDefense).

    With ``m = b1 m + (1 - b1) g`` and ``v = b2 v + (1 - b2) g^2``, both from 0, release
    t sends ``size sqrt(1 - b2^(t+1)) / (1 - b1^(t+1)) m / (sqrt(v) + eps)``. The first
    release is ``size g / (|g| + eps / sqrt(1 - b2))``: little but the sign of g.

    The attacker does the same to its candidate's gradient. Of later releases it works
    the moments out from what the client has sent before (`recover_moments`); without a
    record of that it assumes a first release. It can also undo the release
    (`recover_gradient`), entry by entry.

    An entry that is NaN, hidden or broken, anywhere in the record has moments that
    nobody knows. There the attacker assumes what was sent, which makes no difference,
    and tells it nothing; who undoes the release assumes a first one.

    Args:
      size: of a step, in units of what is sent.
      b1, b2: decays of the two moments.
      eps: added to the root of the second moment.
      sharers: 0 for a state of each client's own, in which t counts its releases. In
        the official code N clients share one state and change it one after another,
        and t is the number of the round before this one (0 in the first): N gives that
        count. Whoever lets clients share hands the state on.

    Raises:
      ValueError: for a size or eps that is not positive, a decay outside [0, 1), and
        sharers that are not a whole number from 0.

    Reference: Ren et al., "Gradients Stand-in for Defending Deep Leakage in Federated
    Learning" (arXiv 2410.08734); official code Rand2AI/AdaDefense. Differs from it: by
    default no client sees what another one sends. `optax.scale_by_adam` is the same
    where eps is 0.
    """
    for name, value in {"size": size, "eps": eps}.items():
        if is_concrete(value) and not value > 0:
            raise ValueError(f"{name} must be > 0, got {value!r}")
    for name, value in {"b1": b1, "b2": b2}.items():
        if is_concrete(value) and not 0 <= value < 1:
            raise ValueError(f"{name} must be in [0, 1), got {value!r}")
    if is_concrete(sharers) and not (sharers >= 0 and sharers == round(sharers)):
        raise ValueError(f"sharers must be a whole number >= 0, got {sharers!r}")

    def scale_at(count: Array) -> Array:
        """Gives the factor in front of m / (sqrt(v) + eps) of a release."""
        rounds = count // jnp.maximum(sharers, 1) - 1
        made = jnp.where(sharers > 0, jnp.maximum(rounds, 0), count) + 1
        return size * jnp.sqrt(_unlike(b2, made)) / _unlike(b1, made)

    def init_state(grads: Public) -> Moments:
        zeros = jax.tree.map(jnp.zeros_like, grads)
        return Moments(jnp.zeros(()), zeros, zeros)

    def after(moments: Moments, grads: Public) -> Moments:
        mean = jax.tree.map(
            lambda m, g: (b1 * m + (1 - b1) * g).astype(g.dtype), moments.mean, grads
        )
        power = jax.tree.map(
            lambda v, g: (b2 * v + (1 - b2) * g**2).astype(g.dtype),
            moments.power,
            grads,
        )
        return Moments(moments.count + 1, mean, power)

    def step(moments: Moments, grads: Public) -> tuple[Public, Moments]:
        new, scale = after(moments, grads), scale_at(moments.count)
        sent = jax.tree.map(
            lambda m, v: (scale * m / (_root(v) + eps)).astype(m.dtype),
            new.mean,
            new.power,
        )
        return sent, new

    def release(rng: Rng, moments: Moments, grads: Public, context: Context):
        del rng, context
        return step(moments, grads)

    def recover_gradient(moments: Moments, sent: Public) -> Public:
        """Solves one release for its gradient.

        With ``u = m / (sqrt(v) + eps)`` known, g solves the quadratic equation
        ``(b1 m' + (1 - b1) g - u eps)^2 = u^2 (b2 v' + (1 - b2) g^2)`` of the moments
        m', v' before. Of two roots of the right sign the smaller is taken. Of the
        first release there is one: ``u eps / (1 - b1 - |u| sqrt(1 - b2))``, which
        rounding spoils where |g| is not small beside ``eps 2^23 / sqrt(1 - b2)``.
        """
        scale = scale_at(moments.count)

        def solve(m: Array, v: Array, x: Array) -> Array:
            u = x / scale
            known, rest = b1 * m - u * eps, u**2 * b2 * v
            slope = 1 - b1
            # In the form that loses no digits where u sqrt(1 - b2) is close to slope.
            reach = jnp.abs(u) * jnp.sqrt(1 - b2)
            short, long = slope - reach, slope + reach
            least = slope * jnp.finfo(x.dtype).eps / 2
            short = jnp.where(jnp.abs(short) < least, least, short)
            half, product = slope * known, short * long
            root = _root(half**2 - product * (known**2 - rest))
            one, other = (-half - root) / product, (-half + root) / product

            def cost(g: Array) -> Array:
                return jnp.where((known + slope * g) * u >= 0, jnp.abs(g), jnp.inf)

            return jnp.where(cost(one) <= cost(other), one, other).astype(x.dtype)

        return jax.tree.map(solve, moments.mean, moments.power, sent)

    def recover_moments(like: Public, earlier: Public | None) -> Moments:
        """Follows the moments through what has been sent; from 0 without a record.

        Those of an entry with a gap in its record are finite, and of no use.
        """
        start = init_state(like)
        if earlier is None:
            return start

        def follow(moments: Moments, sent: Public) -> tuple[Moments, None]:
            # A NaN would spoil the derivative even where nobody reads the result.
            filled = jax.tree.map(lambda x: jnp.where(jnp.isnan(x), 0.0, x), sent)
            return after(moments, recover_gradient(moments, filled)), None

        return jax.lax.scan(follow, start, earlier)[0]

    def simulate(
        grads: Public, sent: Public | None, earlier: Public | None, private: Any
    ) -> Public:
        del private
        first = step(init_state(grads), grads)[0]
        if earlier is None:
            return first
        moments = jax.lax.stop_gradient(recover_moments(grads, earlier))
        if sent is not None:
            first = jax.tree.map(
                lambda x, seen: jnp.where(jnp.isnan(seen), x, seen), first, sent
            )
        return _where_gaps(earlier, first, step(moments, grads)[0])

    def undo(sent: Public, earlier: Public | None) -> Public:
        first = recover_gradient(init_state(sent), sent)
        if earlier is None:
            return first
        later = recover_gradient(recover_moments(sent, earlier), sent)
        return _where_gaps(earlier, first, later)

    return Defence(release=release, init_state=init_state, simulate=simulate, undo=undo)


def _where_gaps(earlier: Public, there: Public, elsewhere: Public) -> Public:
    """Takes one tree where a record [t, ...] has a NaN, the other elsewhere."""
    return jax.tree.map(
        lambda record, one, other: jnp.where(
            jnp.any(jnp.isnan(record), axis=0), one, other
        ),
        earlier,
        there,
        elsewhere,
    )


def _unlike(decay: float | Array, count: Array) -> Array:
    """Computes ``1 - decay ** count`` to its last digits, where count is at least 1."""
    power = jnp.expm1(count * jnp.log1p(decay - 1.0))
    return jnp.where(count == 1, 1.0 - decay, -power)


def _root(x: Array) -> Array:
    """Takes the root, with a derivative of 0 where that of the root is infinite."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)
