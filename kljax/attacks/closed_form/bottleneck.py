"""A dense variational bottleneck: its noise, read off its gradients."""

import jax

from kljax.attacks.closed_form.dense import dense_input
from kljax.core.types import Array
from kljax.threat import View


def bottleneck_noise(view: View) -> Array:
    """Finds the noise [1, K] that a client drew for one example.

    The encoder's gradient gives what the bottleneck was fed, and with it mean and
    deviation of the sample; the decoder's gradient gives the sample (`dense_input`).

    Args:
      view: whose defence has the weights ``encoder`` and ``decoder``, each with
        ``kernel`` and ``bias``, as `kljax.defences.dense_bottleneck` has.

    Returns:
      Exact for one example up to rounding; NaN where either bias gradient is zero
      throughout. This is kljax's own attack.
    """
    sent, weights = view.grads.defence, view.public.defence
    partly = view.visible is not None

    def fed(part: str) -> Array:
        return dense_input(sent[part]["kernel"], sent[part]["bias"], partly=partly)

    value, latent = fed("encoder"), fed("decoder")
    encoder, size = weights["encoder"], latent.shape[0]
    encoded = value @ encoder["kernel"] + encoder["bias"]
    deviation = jax.nn.softplus(encoded[size:])
    return ((latent - encoded[:size]) / deviation)[None]
