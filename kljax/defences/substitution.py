"""Substitutes: inputs that are searched for in each step, and trained on in place."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kljax.core.checks import is_concrete
from kljax.core.types import Array, Public, Rng
from kljax.defences.defence import Context, Defence

# Steps that an attacker goes back through: so many, or fewer, whatever the number is,
# which is data.
MOST_SIMULATED = 64
EPS_ROOT = 1e-16  # of Adam, below the squares that float32 gradients here have

# (Context, gradient wanted, candidate, its gradient) -> []
Cost = Callable[[Context, Public, Array, Public], Array]
Begin = Callable[[Rng, Array], Array]  # of a candidate, from images


def substitute_inputs(
    name: str, cost: Cost, begin: Begin, steps: float | Array, rate: float | Array
) -> Defence:
    """Makes the defence that trains on what lowers a cost, made anew in each step.

    A candidate x' is moved by Adam, and clipped to [0, 1]. Its labels are those of the
    batch. An attacker who knows the defence makes a substitute of its candidate, from
    a start of its own, and matches the gradient of that, through all steps.

    Args:
      name: of the defence, for errors.
      cost: ``(context, g(x), x', g(x')) -> []``, where g is the client's gradient.
      begin: ``(rng, x) -> x'``.
      steps: of Adam, rounded down; above `MOST_SIMULATED` nobody simulates them.
      rate: Adam's step size, in units of pixel values.

    Raises:
      ValueError: for steps below 0, a rate that is not positive, and infinite ones;
        from ``inputs``, for inputs that are no real numbers.
    """
    check_from_zero(steps=steps)
    if is_concrete(rate) and not 0 < rate < math.inf:
        raise ValueError(f"rate must be finite and > 0, got {rate!r}")

    def moving(context: Context, eps_root: float) -> tuple[Any, Callable]:
        """Gives Adam, and what moves a substitute and Adam's state once."""
        images, targets = context.inputs, context.targets
        check_moved(name, images)
        wanted = context.gradient(images, targets).public
        method = optax.adam(rate, eps_root=eps_root)

        def of(candidate: Array) -> Array:
            found = context.gradient(candidate, targets).public
            return cost(context, wanted, candidate, found)

        def step(carry):
            candidate, memory = carry
            move, memory = method.update(jax.grad(of)(candidate), memory)
            return jnp.clip(candidate + move, 0.0, 1.0), memory

        return method, step

    def start(rng: Rng, context: Context, method) -> tuple[Array, Any]:
        drawn = begin(rng, context.inputs)
        return drawn, method.init(drawn)

    def inputs(rng: Rng, context: Context) -> tuple[Array, Array]:
        method, step = moving(context, 0.0)
        candidate, _ = jax.lax.fori_loop(
            0, count, lambda _, carry: step(carry), start(rng, context, method)
        )
        return candidate, context.targets

    def simulate_inputs(rng: Rng, context: Context) -> tuple[Array, Array]:
        # The root of 0 has no derivative.
        method, step = moving(context, EPS_ROOT)

        def maybe(carry, index):
            moved = step(carry)
            keep = index < count
            return jax.tree.map(
                lambda new, old: jnp.where(keep, new, old), moved, carry
            ), None

        maybe = jax.checkpoint(maybe, prevent_cse=False)
        (candidate, _), _ = jax.lax.scan(
            maybe, start(rng, context, method), jnp.arange(MOST_SIMULATED)
        )
        return candidate, context.targets

    count = jnp.asarray(steps).astype(jnp.int32)
    long = is_concrete(steps) and steps >= MOST_SIMULATED + 1
    return Defence(inputs=inputs, simulate_inputs=None if long else simulate_inputs)


def check_from_zero(**values: float | Array) -> None:
    """Refuses numbers below 0, infinite ones and NaN, by their names."""
    for name, value in values.items():
        if is_concrete(value) and not 0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and >= 0, got {value!r}")


def check_moved(name: str, images: Any) -> None:
    """Refuses inputs that cannot be moved by a derivative."""
    dtype = getattr(images, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"{name} inputs are moved by a derivative, and these are "
            f"{dtype or 'several'}: take a defence of the gradient, such as "
            "'gaussian-noise'"
        )


# The 1e-12 keeps derivatives finite where a length is 0.
def rms(x: Array) -> Array:
    """Computes the root of the mean square."""
    return jnp.sqrt(jnp.mean(x**2) + 1e-12)


def cosine(a: Public, b: Public) -> Array:
    """Computes the cosine of the angle between two trees."""
    lengths = [optax.tree.norm(x, squared=True) + 1e-12 for x in (a, b)]
    return optax.tree.vdot(a, b) / jnp.sqrt(lengths[0] * lengths[1])
