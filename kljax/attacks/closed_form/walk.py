"""Down a chain of layers: each layer's output and its back-propagated signal."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kljax.attacks.attack import Setting
from kljax.attacks.closed_form.dense import dense_input
from kljax.attacks.closed_form.layer_input import (
    ROUNDING,
    Estimate,
    Solution,
    forward_matrix,
    pairing,
    solve,
    through,
)
from kljax.chain import Activation, Layer
from kljax.typing import Array, Params


class Step(NamedTuple):
    """A layer whose kernel is public, as a walker needs it."""

    layer: Layer
    shape: tuple[int, ...]  # of its input
    kernel: tuple[int, ...]  # shape


class Place(NamedTuple):
    """Where a walker stands: on an activation's value.

    Attributes:
      value: of the activation, which is the input of the layer above.
      above: derivative of the loss by that value, the same shape.
    """

    value: Estimate
    above: Estimate


def steps_of(setting: Setting) -> tuple[Step, ...]:
    """Finds the shapes along the chain, from the images to the logits."""
    params, _ = jax.eval_shape(setting.model.init, jax.random.key(0))
    steps, shape = [], setting.image_shape
    for layer in setting.chain:
        kernel = params[f"{layer.path}/kernel"]
        if kernel.ndim == 2:
            shape = (math.prod(shape),)
        steps.append(Step(layer, shape, kernel.shape))
        shape = jax.eval_shape(
            layer.linear, kernel, jax.ShapeDtypeStruct(shape, kernel.dtype)
        ).shape
    return tuple(steps)


def below_classifier(step: Step, grads: Params, params: Params) -> Place:
    """Begins the walk at the input of a dense layer with bias."""
    kernel, bias = (grads[f"{step.layer.path}/{x}"] for x in ("kernel", "bias"))
    value = dense_input(kernel, bias)
    # The client computed with float32 numbers, and near 1 they lie so far apart that
    # the nearest one is the very one: it is exact again.
    value = value.astype(jnp.float32).astype(value.dtype)
    weights = params[f"{step.layer.path}/kernel"]
    above = weights @ bias
    rounded = ROUNDING**2 * (weights**2 @ bias**2)
    return Place(
        Estimate(value, (ROUNDING * value) ** 2), Estimate(above, rounded)
    )


def down(
    step: Step, activation: Activation, place: Place, grads: Params, params: Params
) -> tuple[Place, Solution]:
    """Walks through one layer, from its activation's value to its input."""
    layer = step.layer
    kernel = params[f"{layer.path}/kernel"]
    table = pairing(layer, step.kernel, step.shape[:-1]).astype(kernel.dtype)
    forward = forward_matrix(table, kernel)
    as_rows = lambda e: jax.tree.map(lambda x: x.reshape(-1, kernel.shape[-1]), e)
    signal = as_rows(through(activation.slope, place.value, place.above))
    out = as_rows(undo(activation, place.value))
    if f"{layer.path}/bias" in params:
        out = out._replace(mean=out.mean - params[f"{layer.path}/bias"])
    solution = solve(
        table,
        forward,
        out,
        signal,
        grads[f"{layer.path}/kernel"],
        activation.centre,
        activation.spread,
    )
    above = Estimate(
        jnp.einsum("qfpc,qf->pc", forward, signal.mean),
        jnp.einsum("qfpc,qf->pc", forward**2, signal.variance),
    )
    shaped = lambda e: jax.tree.map(lambda x: x.reshape(step.shape), e)
    return Place(shaped(solution.x), shaped(above)), solution


def undo(activation: Activation, value: Estimate) -> Estimate:
    """Finds an activation's argument; saturated units get a great variance."""
    low, high = activation.range
    margin = ROUNDING / 4
    inside = jnp.clip(value.mean, low + margin, high - margin)
    mean, slope = activation.inverse(inside), activation.slope(inside)
    deviation = value.variance + (ROUNDING * inside) ** 2
    return Estimate(
        mean, deviation / slope**2 + (4 * ROUNDING * (1 + jnp.abs(mean))) ** 2
    )
