"""Dense layers: their input, read off their gradient.

A dense layer ``y = x W + b`` has, for one example, the weight gradient ``x delta^T``
and the bias gradient ``delta``.
"""

import jax.numpy as jnp

from kljax.attacks.attack import Attack, Reconstruction
from kljax.attacks.closed_form.refusals import refuse_batches, refuse_no_bias
from kljax.attacks.labels import idlg
from kljax.attacks.setting import Setting
from kljax.core.types import Array, LockWeights, PrivateKey, Rng
from kljax.threat import View

MISSING = 0.5  # grey: what stands for a pixel that was not found


def dense_input(kernel_grad: Array, bias_grad: Array, *, partly: bool = False) -> Array:
    """Finds the input of a dense layer from its gradient, by least squares.

    Args:
      kernel_grad: [F, C], gradient of the weights in Flax's layout.
      bias_grad: [C], gradient of the bias.
      partly: whether an entry that is NaN is hidden, and left out; each input is then
        read off the entries of its own row.

    Returns:
      x [F], the minimiser of ``|kernel_grad - x bias_grad^T|``. Exact for one
      example; for several, or several steps, the mean of the inputs weighted by
      their back-propagated signals. NaN where `bias_grad` is zero throughout, and for
      an input of which nothing is visible.
    """
    if partly:
        return _from_visible(kernel_grad, bias_grad)
    # Relative to its largest entry, so that the squares cannot underflow.
    largest = jnp.max(jnp.abs(bias_grad))
    signal = bias_grad / largest
    return (kernel_grad / largest) @ signal / jnp.sum(signal**2)


def _from_visible(kernel_grad: Array, bias_grad: Array) -> Array:
    seen = ~jnp.isnan(kernel_grad) & ~jnp.isnan(bias_grad)[None]
    largest = jnp.max(jnp.where(jnp.isnan(bias_grad), 0.0, jnp.abs(bias_grad)))
    signal = jnp.where(seen, bias_grad[None] / largest, 0.0)
    products = jnp.where(seen, kernel_grad / largest, 0.0) * signal
    return jnp.sum(products, axis=1) / jnp.sum(signal**2, axis=1)


def private_key_from_lock_grads(lock_grads: LockWeights) -> PrivateKey:
    """Reads the private key [K] off shared gradients of the lock weights.

    The first site's two dense layers have the private key as their input. Dead
    channels carry nothing; one live channel is enough.
    """
    first = lock_grads[0]
    kernels = [first[name]["kernel"] for name in ("scale", "shift")]
    biases = [first[name]["bias"] for name in ("scale", "shift")]
    return dense_input(jnp.concatenate(kernels, axis=1), jnp.concatenate(biases))


def dense_layer(setting: Setting, layer: str) -> Attack:
    """Inverts one example from the first dense layer of a network.

    Args:
      setting: of the attack; its threat model must say ``examples=1`` and
        ``upload="gradient"``.
      layer: path of a dense layer with bias that is fed the flattened image, or a row
        of a table.

    Returns:
      The attack. Its loss is the share of the layer's weight gradient, in squared
      norm, that one example cannot explain: 0 for one example, up to rounding. Of a
      gradient that is hidden in part the visible entries are read; a pixel of which
      none tells is grey. What is found is read as an input: of a row, the likeliest
      category of each column.

    Raises:
      ValueError: if the threat model has something else, and for a layer that is not
        there, has no bias or is not fed an input.

    Reference: Zhu and Blaschko, "R-GAP" (ICLR 2021), the fully connected case.
    """
    refuse_batches(setting, "dense_layer")
    params, _ = setting.task.shapes()
    inputs = setting.task.inputs
    count = inputs.entries
    kernel = params.get(f"{layer}/kernel")
    if kernel is None or kernel.ndim != 2 or len(kernel) != count:
        found = "is not there" if kernel is None else f"has a kernel {kernel.shape}"
        raise ValueError(
            f"dense_layer needs a dense layer that is fed the {count} numbers of an "
            f"input of shape {inputs.shape}, and {layer!r} {found}; the network has "
            f"{', '.join(params)}"
        )
    refuse_no_bias(setting, "dense_layer", layer)

    def attack(rng: Rng, view: View) -> Reconstruction:
        del rng
        kernel = view.grads.model[f"{layer}/kernel"]
        bias = view.grads.model[f"{layer}/bias"]
        x = dense_input(kernel, bias, partly=view.visible is not None)
        left, power = (kernel - x[:, None] * bias[None, :]) ** 2, kernel**2
        if view.visible is not None:
            hidden = jnp.isnan(left)
            left, power = (jnp.where(hidden, 0.0, a) for a in (left, power))
            x = jnp.where(jnp.isnan(x), MISSING, x)
        share = jnp.sum(left) / jnp.sum(power)
        return Reconstruction(
            inputs=inputs.search.read(view.public.model, x.reshape(1, *inputs.shape)),
            labels=idlg(setting, view),
            loss=share,
            finite=jnp.isfinite(share),
            numbers={"evaluations": jnp.asarray(0)},
        )

    return attack
