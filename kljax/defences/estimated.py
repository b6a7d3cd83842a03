"""What was done to an upload, read off the upload itself.

For an attacker who is not told the defence, or not its numbers (arms ``.../estimate``).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kljax.core.types import Array, Path, Public
from kljax.defences.pruning import zero_as_seen


def estimated_release(
    classifier: Path, *, zero_sum: bool = True
) -> Callable[[Public, Public | None, Public | None, Any], Public]:
    """Makes what an attacker does to a candidate's gradient, going by what it sees.

    Entries that are seen as 0 become 0: what pruning left out, and what Soteria did of
    the classifier's features. Then the whole is shortened to the norm of what is seen,
    less that of the noise in it, where it is longer: what clipping did. An upload that
    is a gradient as it was computed is what comes of that gradient.

    Args:
      classifier: path of the last dense layer, whose kernel [F, Kc] shows noise.
      zero_sum: whether it does, see `noise_scale`; noise is taken for 0 otherwise.

    Returns:
      ``(grads, sent, earlier, private) -> grads``, see `kljax.defences.Transform`. Of
      what nobody sees nothing is estimated.

    Reference: GGL (Li et al., CVPR 2022), its code, where bound, sparsity and mask are
    estimated, and nothing is done about noise.
    """

    def simulate(
        grads: Public, sent: Public | None, earlier: Public | None, private: Any
    ) -> Public:
        del earlier, private
        if sent is None:
            return grads
        grads = jax.tree.map(lambda g, s: zero_as_seen(_as_it_is, g, s), grads, sent)
        scale = noise_scale(sent, classifier) if zero_sum else jnp.zeros(())
        leaves = jax.tree.leaves(sent)
        count = sum(jnp.sum(~jnp.isnan(leaf)) for leaf in leaves)
        power = _power(sent) - count * scale**2
        # Of an upload that is nothing but noise nobody knows how long it was.
        bound = jnp.where(power > 0, jnp.sqrt(jnp.maximum(power, 1e-24)), jnp.inf)
        own = jax.tree.map(lambda g, s: jnp.where(jnp.isnan(s), 0.0, g), grads, sent)
        factor = jnp.minimum(1.0, bound / jnp.sqrt(_power(own) + 1e-24))
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)

    return simulate


def noise_scale(sent: Public, classifier: Path) -> Array:
    """Estimates the standard deviation [] of noise on an upload.

    Behind a softmax, cross entropy's derivatives by the logits sum to 0 for targets
    that sum to 1, and so does each row of the classifier's kernel. Noise of its own in
    each of Kc entries gives the row a sum of variance Kc std^2. A kernel with zeros in
    it has no noise: 0, as where it is hidden or not there.

    Args:
      sent: what is seen.
      classifier: path of the last dense layer.
    """
    kernel = sent.model.get(f"{classifier}/kernel")
    if kernel is None or kernel.ndim != 2:
        return jnp.zeros(())
    scale = jnp.sqrt(jnp.mean(jnp.sum(kernel, axis=1) ** 2) / kernel.shape[1])
    return jnp.where(jnp.any(kernel == 0) | jnp.isnan(scale), 0.0, scale)


def _as_it_is(leaf: Array) -> Array:
    return leaf


def _power(grads: Public) -> Array:
    return sum(jnp.nansum(leaf**2) for leaf in jax.tree.leaves(grads))
