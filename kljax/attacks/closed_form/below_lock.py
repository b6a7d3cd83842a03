"""Below a lock: the image, once the gates of the first layer are known.

The first layer gives ``out = scale * n + shift`` with ``n = (W x + bias - m) / d``:
mean m and deviation d of a channel are what the norm has taken away. The walk from the
classifier (`walk`) finds `out`, peeling or the private key the gates, and so n. Left
are the image x and two numbers per channel; everything is linear in them together:

    W x = d n + (m - bias)          forward, for every position of a live channel
    scale K(q) x = d g              backward, g the weight gradient of the channel

where q is what the norm makes of the signal that comes back, ``q = a - mean(a) - n
mean(a n)``. A multiple of x, d and m solves them as well: contrast is what the norm
hides (and brightness, but for the edges), so the image is given as much of it as [0, 1]
has room for. What no equation determines (a dead channel has none) is filled in as
neighbouring pixels suggest. This is kljax's own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljax.attacks.closed_form.layer_input import (
    ROUNDING,
    backward_matrix,
    forward_matrix,
    pairing,
    through,
)
from kljax.attacks.closed_form.walk import (
    Place,
    Step,
    as_rows,
    undo,
)
from kljax.core.types import Array, Gate

# Of natural images in [0, 1]: mean, deviation, correlation of neighbours and colours.
CENTRE, SPREAD, NEIGHBOURS, COLOURS = 0.5, 0.3, 0.95, 0.9
EXACT = 1e-5  # relative: no equation is believed closer, for the condition's sake
EPSILON = 1e-5  # of batch norms, as PyTorch and `kljax.models` have it


class Below(NamedTuple):
    """What was found below the first layer's norm and gates."""

    image: Array  # [h, w, C], from 0 to 1
    deviation: Array  # [F] that the norm divides by; negative: the scale's sign is off
    residual: Array  # [] share of the layer's weight gradient that is unexplained


def solve_below(
    step: Step,
    place: Place,
    gate: Gate,
    grad: Array,
    kernel: Array,
    epsilon: float = 0.0,
) -> Below:
    """Solves for the image below the first layer's norm and gates.

    Args:
      step: the layer.
      place: at its activation's value, of one example.
      gate: scale and shift [F]; a channel of scale 0 is not listened to.
      grad, kernel: [..., C, F], gradient of the layer's weights, and they themselves.
      epsilon: that the norm adds to the variance, where the scale is what peeling found
        and leaves it out; 0 for a scale that is right. It disturbs the backward
        equations alone.

    Returns:
      What was found. NaN where no channel is live. Signs of scales do not matter for
      the image: a wrong one makes the channel's deviation negative instead. Only all
      of them together do: an image and its negative then have the same gradient.
      Deviations are believed to be positive, weakly: that settles the contrast, and
      left the signs of 32 of 32 victims right (experiments/study/20-peeling-signed.md).
    """
    layer, features = step.layer, kernel.shape[-1]
    where = pairing(layer, step.kernel, step.shape[:-1])
    table = jnp.asarray(where, kernel.dtype)
    live = gate.scale != 0
    scale = jnp.where(live, gate.scale, 1)
    out = as_rows(undo(layer.activation, place.value), features)
    n = (out.mean - gate.shift[None]) / scale[None]
    unsure = out.variance / scale[None] ** 2
    back = as_rows(through(layer.activation.slope, place.value, place.above), features)
    along = n * jnp.mean(back.mean * n, axis=0)[None]
    q = back.mean - jnp.mean(back.mean, axis=0)[None] - along

    # How large d is expected to be; the scale of everything here.
    precision, patch = _prior(step)
    flat = kernel.reshape(-1, features)
    depth = jnp.sqrt(jnp.einsum("af,ab,bf->f", flat, patch, flat))
    unit = depth[None] * jnp.sqrt(unsure + EXACT**2)
    weight = jnp.where(live[None], 1 / unit, 0)  # [Q, F]
    forward = forward_matrix(table, kernel) * weight[..., None, None]
    forward = forward.reshape(weight.size, -1)

    grad = grad.reshape(-1, *grad.shape[-2:])  # [M, C, F]
    power = CENTRE**2 + SPREAD**2
    noise = EXACT**2 * depth**2 * jnp.mean(grad**2, axis=(0, 1))
    # An image of a third of the expected contrast has a tenth of the variance.
    missed = (10 * epsilon / depth**2)[None] * along
    doubt = back.variance + (ROUNDING * q) ** 2 + missed**2
    noise += scale**2 * power * jnp.sum(doubt, axis=0)
    trust = jnp.where(live & (noise > 0), 1 / jnp.sqrt(noise), 0)  # [F]
    backward = backward_matrix(table, q * scale[None])  # [M, F, P]
    trusted = backward * trust[None, :, None]

    # Normal equations of (x [P C], d [F], m [F]).
    positions, channels = backward.shape[-1], kernel.shape[-2]
    square = jnp.einsum("mfp,mfr->pr", trusted, trusted)
    pixels = precision + _squared(where, kernel, weight)
    pixels += jnp.kron(square, jnp.eye(channels))
    by_row = forward.reshape(*weight.shape, -1)  # [Q, F, P C]
    with_d = -jnp.einsum("qfx,qf->xf", by_row, n * weight)
    of_grad = jnp.einsum("mfp,mcf->pcf", trusted, grad * trust[None, None])
    with_d -= of_grad.reshape(positions * channels, features)
    with_m = -jnp.einsum("qfx,qf->xf", by_row, weight)
    d_d = jnp.sum((n * weight) ** 2, axis=0)
    d_d += trust**2 * jnp.sum(grad**2, axis=(0, 1)) + 4 / depth**2
    d_m = jnp.sum(n * weight**2, axis=0)
    m_m = jnp.sum(weight**2, axis=0) + 1e-2 / depth**2
    whole = jnp.block(
        [
            [pixels, with_d, with_m],
            [with_d.T, jnp.diag(d_d), jnp.diag(d_m)],
            [with_m.T, jnp.diag(d_m), jnp.diag(m_m)],
        ]
    )
    right = jnp.concatenate(
        [
            precision @ jnp.full(positions * channels, CENTRE),
            4 / depth,
            jnp.zeros(features),
        ]
    )
    found = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(whole), right)
    x = found[: positions * channels].reshape(positions, channels)
    d = found[positions * channels :][:features]
    told = d[None, None] * grad
    untold = jnp.einsum("mfp,pc->mcf", backward, x) - told
    untold = jnp.where(live[None, None], untold, 0)
    share = jnp.sum(untold**2) / jnp.sum(jnp.where(live[None, None], told, 0) ** 2)
    x = (x - jnp.min(x)) / (jnp.max(x) - jnp.min(x))
    share = jnp.where(jnp.any(live), share, jnp.nan)
    return Below(x.reshape(step.shape), d, share)


def _squared(table: np.ndarray, kernel: Array, weight: Array) -> Array:
    """Multiplies the weighted forward matrix [Q F, P C] with itself: [P C, P C].

    It is nearly empty: an output sees one position per entry of the window, or, in the
    padding, none.
    """
    positions, channels = table.shape[-1], kernel.shape[-2]
    seen = np.where(table.any(axis=-1), table.argmax(axis=-1), positions)  # [Q, M]
    seen = jnp.asarray(seen, jnp.int32)
    flat = kernel.reshape(-1, *kernel.shape[-2:])
    windows = jnp.einsum("mcf,qf,ndf->qmncd", flat, weight**2, flat)
    whole = jnp.zeros((positions + 1, channels, positions + 1, channels), flat.dtype)
    whole = whole.at[seen[:, :, None], :, seen[:, None, :], :].add(windows)
    whole = whole[:positions, :, :positions]
    return whole.reshape(positions * channels, positions * channels)


def _prior(step: Step) -> tuple[np.ndarray, np.ndarray]:
    """Makes the precision of images [P C, P C], and the covariance of a patch."""

    def chain(count: int) -> np.ndarray:
        apart = np.abs(np.arange(count)[:, None] - np.arange(count)[None])
        return NEIGHBOURS**apart

    def covariance(height: int, width: int, channels: int) -> tuple[np.ndarray, ...]:
        colours = np.full((channels, channels), COLOURS)
        np.fill_diagonal(colours, 1)
        return chain(height), chain(width), SPREAD**2 * colours

    def kron(parts) -> np.ndarray:
        return np.kron(np.kron(parts[0], parts[1]), parts[2])

    precision = kron([np.linalg.inv(part) for part in covariance(*step.shape)])
    return precision, kron(covariance(*step.kernel[:-1]))
