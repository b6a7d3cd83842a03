"""Down a chain of layers: each layer's input, and the signal sent back through it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljax.attacks.closed_form.dense import dense_input
from kljax.attacks.closed_form.features import batch_inputs
from kljax.attacks.closed_form.layer_input import (
    ROUNDING,
    Estimate,
    Solution,
    forward_matrix,
    pairing,
    solve,
    through,
)
from kljax.attacks.setting import Setting
from kljax.core.types import Array, Loss, Params, Path
from kljax.models.chain import Activation, Layer

TINY = float(np.finfo(np.float32).tiny)
IMAGES = (0.5, 0.5)  # centre and spread of pixels in [0, 1]


class Step(NamedTuple):
    """A layer whose kernel is public, as a walk down the chain needs it."""

    layer: Layer
    shape: tuple[int, ...]  # of its input
    kernel: tuple[int, ...]  # shape
    below: Activation | None  # whose values the input is; None for images


class Place(NamedTuple):
    """State of a walk at one layer: at an activation's value.

    Attributes:
      value: of the activation, which is the input of the layer above, [B, ...].
      above: derivative of the loss by that value, the same shape.
    """

    value: Estimate
    above: Estimate


def steps_of(setting: Setting) -> tuple[Step, ...]:
    """Finds the shapes along the chain, from the images to the logits."""
    params, _ = setting.task.shapes()
    steps, shape, below = [], setting.task.image_shape, None
    for layer in setting.task.chain:
        kernel = params[f"{layer.path}/kernel"]
        if kernel.ndim == 2:
            shape = (math.prod(shape),)
        steps.append(Step(layer, shape, kernel.shape, below))
        shape = jax.eval_shape(
            layer.linear, kernel, jax.ShapeDtypeStruct(shape, kernel.dtype)
        ).shape
        below = layer.activation
    return tuple(steps)


def below_classifier(step: Step, grads: Params, params: Params) -> Place:
    """Begins the walk at the input of a dense layer with bias, for one example."""
    kernel, bias = (grads[f"{step.layer.path}/{x}"] for x in ("kernel", "bias"))
    value = dense_input(kernel, bias)
    # The client computed with float32 numbers, and near 1 they lie so far apart that
    # the nearest one is the very one: it is exact again.
    value = value.astype(jnp.float32).astype(value.dtype)
    return place_at(value, params[f"{step.layer.path}/kernel"], bias)


def place_at(value: Array, weights: Array, signal: Array) -> Place:
    """Stands at a dense layer's input [F], of one example, both up to rounding.

    Args:
      value: the input.
      weights: [F, Kc], of the layer.
      signal: [Kc], derivative by its output.
    """
    above = weights @ signal
    rounded = ROUNDING**2 * (weights**2 @ signal**2)
    return Place(
        Estimate(value[None], (ROUNDING * value[None]) ** 2),
        Estimate(above[None], rounded[None]),
    )


def below_batch(
    step: Step, grads: Params, params: Params, targets: Array, loss: Loss
) -> tuple[Place, Array]:
    """Begins the walk for a batch; also gives the share left unexplained, []."""
    path = step.layer.path
    found = batch_inputs(
        *(tree[f"{path}/{x}"] for tree in (grads, params) for x in ("kernel", "bias")),
        targets,
        loss,
    )
    weights = params[f"{path}/kernel"]
    above = Estimate(
        found.signals.mean @ weights.T, found.signals.variance @ weights.T**2
    )
    return Place(found.inputs, above), found.residual


def as_rows(estimate: Estimate, features: int) -> Estimate:
    """Lists positions in rows: [B, h, w, F], or flat [B, h w F], -> [B h w, F]."""
    return jax.tree.map(lambda x: x.reshape(-1, features), estimate)


def down(
    step: Step, place: Place, grads: Params, params: Params
) -> tuple[Place, Solution]:
    """Walks through one layer, from its activation's value to its input.

    To the equations the examples of a batch are further positions, of which each meets
    its own outputs alone: the gradient is the sum over all, as it is over positions.
    """
    layer, examples = step.layer, len(place.value.mean)
    kernel = params[f"{layer.path}/kernel"]
    table = jnp.asarray(pairing(layer, step.kernel, step.shape[:-1]), kernel.dtype)
    table = side_by_side(table, examples)
    forward = forward_matrix(table, kernel)
    activation, features = layer.activation, kernel.shape[-1]
    signal = through(activation.slope, place.value, place.above)
    signal = as_rows(signal, features)
    out = as_rows(undo(activation, place.value), features)
    if f"{layer.path}/bias" in params:
        out = out._replace(mean=out.mean - params[f"{layer.path}/bias"][None])
    solution = solve(
        table,
        forward,
        out,
        signal,
        grads[f"{layer.path}/kernel"],
        *IMAGES if step.below is None else (step.below.centre, step.below.spread),
    )
    above = Estimate(
        jnp.einsum("qfpc,qf->pc", forward, signal.mean),
        jnp.einsum("qfpc,qf->pc", forward**2, signal.variance),
    )
    shape = (examples, *step.shape)
    place = jax.tree.map(lambda x: x.reshape(shape), Place(solution.x, above))
    return place, solution


class Residues(NamedTuple):
    """What a walk leaves behind, {layer: []} each.

    Attributes:
      residuals: share of the layer's weight gradient, in squared norm, that is left
        unexplained.
      ranks: share of the layer's inputs that its equations determine.
    """

    residuals: dict[Path, Array]
    ranks: dict[Path, Array]


def walk_down(
    steps: Sequence[Step], place: Place, grads: Params, params: Params
) -> tuple[Place, Residues]:
    """Walks through layers, given in forward order, from the last to the first."""
    residues = Residues({}, {})
    for step in reversed(steps):
        place, solution = down(step, place, grads, params)
        residues.residuals[step.layer.path] = solution.residual
        residues.ranks[step.layer.path] = solution.rank / solution.x.mean.size
    return place, residues


def side_by_side(table: Array, examples: int) -> Array:
    """Makes the table [B Q, M, B P] of a batch out of that of one example."""
    outputs, weights, positions = table.shape
    own = jnp.eye(examples, dtype=table.dtype)
    whole = jnp.einsum("ab,qmp->aqmbp", own, table)
    return whole.reshape(examples * outputs, weights, examples * positions)


def undo(activation: Activation, value: Estimate) -> Estimate:
    """Finds an activation's argument; saturated units get a great variance."""
    low, high = activation.range
    # Float32 ends near 1, but goes on for long on its way to 0. A value that was solved
    # for, not read, is never so near.
    read = value.variance <= (4 * ROUNDING * value.mean) ** 2
    least = jnp.where(read & (low == 0), TINY, ROUNDING / 4)
    inside = jnp.clip(value.mean, low + least, high - ROUNDING / 4)
    mean, slope = activation.inverse(inside), activation.slope(inside)
    variance = value.variance + (ROUNDING * inside) ** 2 + (value.mean - inside) ** 2
    return Estimate(
        mean, variance / slope**2 + (4 * ROUNDING * (1 + jnp.abs(mean))) ** 2
    )
