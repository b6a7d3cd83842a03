"""A vision transformer's tokens, its image, and the gates of its patch embedding.

Letters: n tokens of width d, the class token first; a patch has m pixels. Let z [n, d]
be the tokens that enter the first attention, with no norm in front of it and no
shortcut around it. The derivative by z is that by the position embedding, A [n, d]. It
comes through queries, keys and values alone, ``A = sum dQ W^T`` over the three, and the
gradients of their weights are ``dW = z^T dQ``. So ``z^T A = sum dW W^T``, which is
linear in z (Lu et al., "APRIL", CVPR 2022).

A lock on the patch embedding gives ``z = scale * (x V + b) + shift`` plus positions, of
a patch x. The embedding's own gradients are ``dV = x^T A * scale`` and
``db = sum A * scale``, and A is known: the second line is the scale, and together with
the equations for z the two give the shift, without x (`patch_gates`). That part is
kljax's own.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from kljax.attacks.closed_form.gate_peeling import Peeled
from kljax.attacks.closed_form.layer_input import ROUNDING
from kljax.attacks.closed_form.refusals import refuse_batches
from kljax.attacks.setting import Setting
from kljax.core.types import Array, Gate, Params
from kljax.threat import View

PROJECTIONS = ("query", "key", "value")
GREY = 0.5  # what no equation determines is taken from a grey image


class Transformer(NamedTuple):
    """Where in a vision transformer the attacks find what they need.

    Attributes:
      patch: convolution whose stride is its kernel, with a bias.
      token: class token [d], the first of the tokens.
      positions: position embedding [n, d], added right in front of the attention.
      attention: the first one, with layers ``query``, ``key`` and ``value``; no norm
        in front of it, and no shortcut around it.
    """

    patch: str = "patch"
    token: str = "token"
    positions: str = "positions"
    attention: str = "blocks/0/attention"

    def paths(self) -> tuple[str, ...]:
        """Lists the parameters that must be there."""
        names = [f"{self.patch}/kernel", f"{self.patch}/bias"]
        names += [f"{self.attention}/{name}/kernel" for name in PROJECTIONS]
        return (*names, self.token, self.positions)


VIT = Transformer()


class Sent(NamedTuple):
    """What a client sent, as the equations want it: divided by A's largest entry.

    Attributes:
      tokens: A [n, d], derivative of the loss by the tokens.
      products: [d, d], ``z^T A``.
      kernel: [m, d], gradient of the patch embedding's kernel.
      bias: [d], of its bias.
    """

    tokens: Array
    products: Array
    kernel: Array
    bias: Array


class Known(NamedTuple):
    """What everybody knows of the network.

    Attributes:
      kernel: [m, d], of the patch embedding.
      bias: [d], the same.
      rest: [n, d]: positions, and the class token in the first row; what is missing
        are the embedded patches.
    """

    kernel: Array
    bias: Array
    rest: Array


def missing_paths(setting: Setting, transformer: Transformer = VIT) -> list[str]:
    """Lists what the network lacks to be such a transformer."""
    params, _ = setting.task.shapes()
    return [path for path in transformer.paths() if path not in params]


def read(grads: Params, params: Params, transformer: Transformer) -> tuple[Sent, Known]:
    """Makes equations of an upload; NaN where A is zero throughout."""
    tokens = grads[transformer.positions]
    size = jnp.max(jnp.abs(tokens))  # so that no square underflows
    width = tokens.shape[-1]

    def flat(tree: Params, path: str) -> Array:
        return tree[f"{path}/kernel"].reshape(-1, width)

    products = jnp.zeros((width, width))
    for name in PROJECTIONS:
        path = f"{transformer.attention}/{name}/kernel"
        gradient, weights = (tree[path].reshape(width, -1) for tree in (grads, params))
        products += (gradient / size) @ weights.T
    bias = f"{transformer.patch}/bias"
    patch = flat(grads, transformer.patch) / size
    sent = Sent(tokens / size, products, patch, grads[bias] / size)
    rest = params[transformer.positions]
    rest = rest.at[0].add(params[transformer.token].reshape(-1))
    return sent, Known(flat(params, transformer.patch), params[bias], rest)


def find_tokens(
    sent: Sent, known: Known, gate: Gate, cutoff: float
) -> tuple[Array, Array]:
    """Solves for z [n, d].

    Args:
      sent, known: of `read`.
      gate: of the patch embedding, right or wrong: it says what a grey image's tokens
        are, and nothing else.
      cutoff: singular values of A below this share of the largest count as zero; along
        those directions z stays a grey image's.

    Returns:
      z, and [] the share of the right side, in squared norm, that it leaves.
    """
    grey = GREY * jnp.sum(known.kernel, axis=0) + known.bias
    grey = known.rest.at[1:].add((gate.scale * grey + gate.shift)[None])
    left = sent.tokens[1:].T
    right = sent.products.T - sent.tokens.T @ grey
    moved = jnp.linalg.lstsq(left, right, rcond=cutoff)[0]
    return grey.at[1:].add(moved), _share(left @ moved - right, right)


def find_patches(tokens: Array, known: Known, gate: Gate) -> tuple[Array, Array]:
    """Undoes positions, gate and patch embedding.

    Where a patch has more pixels than live channels, the solution nearest to grey is
    taken.

    Returns:
      Patches [n - 1, m], and [] the share of the embedded patches (less those of a
      grey image), in squared norm, that no pixels explain.
    """
    kernel = known.kernel * gate.scale[None]
    offset = known.bias * gate.scale + gate.shift + GREY * jnp.sum(kernel, axis=0)
    embedded = (tokens - known.rest)[1:] - offset[None]
    pixels = jnp.linalg.lstsq(kernel.T, embedded.T)[0]
    return GREY + pixels.T, _share(kernel.T @ pixels - embedded.T, embedded)


def folded(patches: Array, image_shape: tuple[int, int, int], side: int) -> Array:
    """Puts patches [n - 1, m] together to an image [H, W, C]."""
    height, width, channels = image_shape
    grid = (height // side, width // side, side, side, channels)
    return patches.reshape(grid).transpose(0, 2, 1, 3, 4).reshape(image_shape)


def patch_gates(sent: Sent, known: Known) -> tuple[Gate, Gate, Array]:
    """Finds scale and shift of the patch embedding, in closed form.

    With ``R = (z - rest)^T A``, which is ``z^T A`` less what is known of it,
    ``R * scale = (V * scale)^T dV + offset db^T`` for the offset ``scale b + shift``.

    Returns:
      The gate; the standard deviation expected of each number, of the scale from
      float32's rounding and of the shift from what the equation leaves; and [] the
      share of ``R * scale`` left. NaN where no channel is live. A channel whose bias
      has a gradient of exactly zero is dead: scale 0. Deviations are too small: the
      rounding of the network's own passes is not in them (the worst of 128 channels
      were off by 6 to 22 of them, experiments/peeling.md).
    """
    patches = sent.tokens[1:]
    total = jnp.sum(patches, axis=0)
    dead = sent.bias == 0
    scale = jnp.where(dead, 0, sent.bias / jnp.where(dead, 1, total))
    summed = jnp.sum(jnp.abs(patches), axis=0) / jnp.where(dead, 1, jnp.abs(total))
    unsure = ROUNDING * jnp.abs(scale) * summed
    right = (sent.products - known.rest.T @ sent.tokens) * scale[None]
    right_less = right - (known.kernel * scale[None]).T @ sent.kernel
    power = jnp.sum(sent.bias**2)
    offset = right_less @ sent.bias / power
    left = right_less - offset[:, None] * sent.bias[None]
    live = jnp.maximum(jnp.sum(~dead) - 1, 1)
    gate = Gate(scale, offset - known.bias * scale)
    deviation = Gate(unsure, jnp.sqrt(jnp.sum(left**2, axis=1) / live / power))
    return gate, deviation, _share(left, right)


def patch_peeling(
    setting: Setting, transformer: Transformer = VIT
) -> Callable[[View], Peeled]:
    """Makes peeling of a vision transformer locked at its patch embedding.

    Neither private key nor lock weights are needed, nor the image: no system of
    equations is solved. Indifferent to the length of the gradient. Where something
    passes by the first attention the shift is wrong, by as much as its deviation says;
    the scale is right even then.

    Raises:
      ValueError: for a lock at another place, several examples per upload, and several
        local steps.
    """
    sites = [path for path, _ in setting.defence.sites]
    if sites != [transformer.patch]:
        raise ValueError(
            "secret strategy 'peel' finds the gates of a vision transformer's patch "
            f"embedding {transformer.patch!r} alone, got the sites {sites}"
        )
    attack = "secret strategy 'peel' of a vision transformer"
    refuse_batches(setting, attack)
    check_transformer(setting, transformer, attack)

    def peel(view: View) -> Peeled:
        sent, known = read(view.grads.model, view.public.model, transformer)
        gate, deviation, residual = patch_gates(sent, known)
        path = transformer.patch
        return Peeled({path: gate}, {path: deviation}, {path: residual}, {})

    return peel


def check_transformer(setting: Setting, transformer: Transformer, attack: str) -> None:
    """Refuses a network that is no vision transformer of the kind above.

    Args:
      setting: with the network.
      transformer: paths in it.
      attack: who needs it, for the message.

    That nothing passes by its first attention cannot be seen from its parameters.

    Raises:
      ValueError: for parameters that are missing, or whose shapes do not fit.
    """
    missing = missing_paths(setting, transformer)
    if missing:
        raise ValueError(
            f"{attack} needs a vision transformer (the network 'vit'), and this "
            f"network has no {', '.join(missing)}"
        )
    params, _ = setting.task.shapes()
    height, width, channels = setting.task.image_shape
    kernel = params[f"{transformer.patch}/kernel"].shape
    positions = params[transformer.positions].shape
    rows, features = kernel[0], kernel[-1]
    fits = (
        kernel == (rows, rows, channels, features)
        and not (height % rows or width % rows)
        and positions == ((height // rows) * (width // rows) + 1, features)
    )
    if not fits:
        raise ValueError(
            f"{attack} needs patches [p, p, channels, d] that tile the image, and "
            f"positions [n, d] with one class token; images of shape "
            f"{setting.task.image_shape} have patches {kernel} and positions "
            f"{positions}"
        )


def _share(left: Array, whole: Array) -> Array:
    return jnp.sum(left**2) / jnp.sum(whole**2)
