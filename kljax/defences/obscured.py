"""Inputs in place of the private ones: training on what looks like something else."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kljax.core.types import Array, Public, Rng
from kljax.defences.defence import Context, Defence, is_concrete

# Steps that an attacker goes back through: so many, or fewer, whatever the number is,
# which is data.
MOST_SIMULATED = 64
EPS_ROOT = 1e-16  # of Adam, below the squares that float32 gradients here have


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
    there are `MOST_SIMULATED` at most; any other does not know that inputs are
    replaced. A substitute is recorded with a gradient alone
    (`kljax.threat.Update.substitute`): local steps make one each, and a whole change is
    scored against the private inputs only.

    Args:
      steps: of Adam, rounded down; 0 trains on noise.
      rate: Adam's step size, in units of pixel values.
      weight: of the distance, which is at most 1.

    Raises:
      ValueError: for steps or a weight below 0, and a rate that is not positive; from
        ``inputs``, for inputs that are no real numbers.

    Reference: Wan et al., "Learning to Obscure Data" (arXiv 2206.00769), for the idea.
    """
    for name, value in {"steps": steps, "weight": weight}.items():
        if is_concrete(value) and not value >= 0:
            raise ValueError(f"{name} must be >= 0, got {value!r}")
    if is_concrete(rate) and not rate > 0:
        raise ValueError(f"rate must be > 0, got {rate!r}")

    def moving(context: Context, eps_root: float) -> tuple[Any, Callable]:
        """Gives Adam, and what moves a substitute and Adam's state once."""
        images, targets = context.inputs, context.targets
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                "obscured inputs are moved by a derivative, and these are "
                f"{images.dtype}: take a defence of the gradient, such as "
                "'gaussian-noise'"
            )
        wanted = context.gradient(images, targets).public
        method = optax.adam(rate, eps_root=eps_root)

        def cost(candidate: Array) -> Array:
            found = context.gradient(candidate, targets).public
            return 1 - _cosine(found, wanted) - weight * _rms(candidate - images)

        def step(carry):
            candidate, memory = carry
            move, memory = method.update(jax.grad(cost)(candidate), memory)
            return jnp.clip(candidate + move, 0.0, 1.0), memory

        return method, step

    def start(rng: Rng, context: Context, method) -> tuple[Array, Any]:
        images = context.inputs
        drawn = jax.random.uniform(rng, images.shape, images.dtype)
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


# The 1e-12 keeps derivatives finite where a length is 0.
def _rms(x: Array) -> Array:
    return jnp.sqrt(jnp.mean(x**2) + 1e-12)


def _cosine(a: Public, b: Public) -> Array:
    lengths = [optax.tree.norm(x, squared=True) + 1e-12 for x in (a, b)]
    return optax.tree.vdot(a, b) / jnp.sqrt(lengths[0] * lengths[1])
