"""The key-lock: a private key and private weights make the gates of a network.

Site i with C_i channels gets ``scale = act(h W_s + b_s)`` and
``shift = act(h' W_b + b_b)``. For the first site, and for every site of an unchained
lock, h = h' = the private key; a chained site takes the previous site's scale as h
and its shift as h'. Nothing here sees an image: all gates follow from private key and
lock weights alone, which is why gates can be plain data for the network.

Reference: Ren, Deng, Xie, "Gradient Leakage Defense with Key-Lock Module for
Federated Learning" (arXiv 2305.04095); official code backbone/KL_layer_block.py.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kljax.core.types import Array, Gate, Gates, LockWeights, Path, PrivateKey, Rng

PRIVATE_KEY_SIZE = 1024  # the paper's K (config KEY_LENGTH)

# Of the two dense layers, by name. ReLU is the paper's default and sigmoid its option;
# signed leaves them as they are, so that no channel dies and gates may be negative.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "signed": lambda x: x,
}


class KeyLock(NamedTuple):
    """A lock as pure functions.

    Attributes:
      init: ``rng -> lock weights``, a tuple with one entry per site, in chain order:
        ``{"scale": {"kernel" [K, C], "bias" [C]}, "shift": {...}}``.
      gates: ``(lock weights, private_key [K]) -> {site: Gate}``.
      private_key: ``rng -> private_key [K]``, uniform on [0, 1) as in the paper.
    """

    init: Callable[[Rng], LockWeights]
    gates: Callable[[LockWeights, PrivateKey], Gates]
    private_key: Callable[[Rng], PrivateKey]


def key_lock(
    sites: tuple[Path, ...],
    widths: tuple[int, ...],
    *,
    size: int = PRIVATE_KEY_SIZE,
    activation: Callable[[Array], Array] = jax.nn.relu,
    chained: bool = False,
    limit: float | None = None,
) -> KeyLock:
    """Makes a lock for the layers at `sites`.

    Args:
      sites: paths of the gated layers; their order is the order of the chain.
      widths: channels C_i of each site (`kljax.models.site_widths` finds them).
      size: length K of the private key.
      activation: of both dense layers. ReLU is the paper's default: about half the
        channels start dead (scale exactly 0). `ACTIVATIONS` has others.
      chained: whether each site is fed by the gates of the one before.
      limit: weights and biases are drawn from U(-limit, limit); None is PyTorch's
        Linear default, 1/sqrt(fan_in), as in the official code; its DLG test
        redraws everything with 0.5.

    Guarantees: needs no image; leaves the tree of public parameters alone; no sites
    give no gates.

    Raises:
      TypeError: if `sites` is not a tuple (the chain needs an order).
      ValueError: for a repeated site, widths that do not match, or sizes below 1.
    """
    if not isinstance(sites, tuple):
        raise TypeError(f"sites must be a tuple of paths, got {sites!r}")
    repeated = sorted({site for site in sites if sites.count(site) > 1})
    if repeated:
        raise ValueError(f"sites {repeated} are repeated: one lock per layer")
    if len(widths) != len(sites):
        raise ValueError(f"{len(sites)} sites {sites} need as many widths: {widths}")
    if size < 1 or any(width < 1 for width in widths):
        raise ValueError(f"size and widths must be positive, got {size} and {widths}")
    inputs = (size, *widths[:-1]) if chained else (size,) * len(sites)

    def init(rng: Rng) -> LockWeights:
        def dense(rng: Rng, fan_in: int, width: int):
            bound = fan_in**-0.5 if limit is None else limit
            rng_kernel, rng_bias = jax.random.split(rng)
            return {
                "kernel": _uniform(rng_kernel, (fan_in, width), bound),
                "bias": _uniform(rng_bias, (width,), bound),
            }

        return tuple(
            {
                "scale": dense(jax.random.fold_in(rng, 2 * i), fan_in, width),
                "shift": dense(jax.random.fold_in(rng, 2 * i + 1), fan_in, width),
            }
            for i, (fan_in, width) in enumerate(zip(inputs, widths, strict=True))
        )

    def gates(weights: LockWeights, private_key: PrivateKey) -> Gates:
        made: dict[Path, Gate] = {}
        scale_input = shift_input = private_key
        for site, layer in zip(sites, weights, strict=True):
            gate = Gate(
                activation(_dense(layer["scale"], scale_input)),
                activation(_dense(layer["shift"], shift_input)),
            )
            made[site] = gate
            if chained:
                scale_input, shift_input = gate
        return made

    def private_key(rng: Rng) -> PrivateKey:
        return jax.random.uniform(rng, (size,))

    return KeyLock(init, gates, private_key)


def _uniform(rng: Rng, shape: tuple[int, ...], limit: float) -> Array:
    return jax.random.uniform(rng, shape, jnp.float32, -limit, limit)


def _dense(layer: dict[str, Array], x: Array) -> Array:
    return x @ layer["kernel"] + layer["bias"]
