"""Peeling: a lock's gates, found by walking a network backwards from its classifier.

The classifier's input follows from its gradient, and the derivative by it from its
weights. Then layer by layer the input is solved for (`layer_input`), down to the
output of the layer that is locked, y = scale * norm + shift. At one example a batch
norm in train mode is standardised in every channel: the mean of y is the shift and its
standard deviation the scale. Neither private key nor lock weights are needed. This is
kljax's own attack.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kljax.attacks.attack import Setting
from kljax.attacks.closed_form.layer_input import (
    ROUNDING,
    Estimate,
    Solution,
    float64,
    forward_matrix,
    pairing,
    solve,
    through,
    to_float64,
)
from kljax.chain import Activation, Layer
from kljax.threat import View
from kljax.typing import Array, Gate, Gates, Params, Path


class Peeled(NamedTuple):
    """What peeling found.

    Attributes:
      gates: of the site.
      deviation: the same tree: the standard deviation that the attack itself expects
        of each number.
      residuals: {layer: []}, share of the layer's weight gradient, in squared norm,
        that what was found leaves unexplained: about 1e-12 where the gradient is
        exact, of the order of 1 where nothing was found.
      ranks: {layer: []}, share of the layer's inputs that the equations determine.
      value: [h, w, C] of the activation after the lock, as it was found.
    """

    gates: Gates
    deviation: Gates
    residuals: dict[Path, Array]
    ranks: dict[Path, Array]
    value: Array


def peeling(setting: Setting) -> Callable[[View], Peeled]:
    """Makes the attack on the gates of the one site of a lock."""
    layers, bottom = _above_the_lock(setting)
    sizes = _sizes(setting)
    with float64(False):
        tables = {
            layer.path: pairing(layer, *sizes[layer.path]) for layer in layers[:-1]
        }

    def peel(view: View) -> Peeled:
        with float64(True):
            grads, params = to_float64((view.grads.model, view.public.model))
            value, above = _classifier_input(layers[-1], grads, params)
            solved: dict[Path, Solution] = {}
            upper = layers[-1]
            for layer in reversed(layers[:-1]):
                ...
        return None

    return peel
