"""Soteria: the gradient of one dense layer, without its columns of chosen features."""

from typing import Any

import jax
import jax.numpy as jnp

from kljax.core.checks import is_concrete
from kljax.core.types import Array, Path, Public, PyTree, Rng
from kljax.defences.context import Context, part_of
from kljax.defences.defence import Defence, widened

# Features whose derivatives are computed together: speed and memory only.
TOGETHER = 64


def soteria(layer: Path, *, fraction: float | Array = 0.1) -> Defence:
    """Zeroes what the gradient of a dense layer says about some of its features.

    The features r [B, F] are what the layer is fed. With x the inputs of the client,

        s_j = sum over examples of ||d(sum of r_j over the batch) / dx||_2 / r_j,

    divided with its sign, and all weights of feature j are sent as 0 where ``|s_j|`` is
    below the `fraction`-quantile of all (linear interpolation). A feature that is 0 in
    an example, which has no part in that example's gradient, adds nothing to its sum.
    Where more features than `fraction` are 0 in all examples, as behind ReLU, the
    quantile is 0, and nothing is dropped. Features are those of the step, under its
    norm statistics and dropout (`Context.features`). Nothing but the layer's kernel is
    changed; other tensors, its bias among them, are sent as they are.

    For one example the largest ``||r_j (dr_j / dx)^-1||``, which the theory drops, are
    the smallest ``|s_j|``, so that the theory's reading is no other option. For many
    examples of different signs the sum is the code's own.

    It takes a derivative per feature, each like a backward pass up to the layer, and so
    much more than the step that it defends: the method is defined by all of them.

    An attacker who knows it sees which features have nothing but zeros, and compares
    the others. Nobody sees the kernel of a local step, and noise leaves no zeros:
    there the attacker compares what it has as it is. The known alternative is to leave
    the kernel out altogether, which the Bayes-optimal attack does.

    Args:
      layer: path of a dense layer, with a kernel [F, K].
      fraction: share of features to drop, in [0, 1); 0 is the identity.

    Raises:
      ValueError: for a fraction outside [0, 1); from ``release``, where a whole change
        is released, for inputs that are no real numbers, a layer without a kernel, and
        a kernel that is not [F, K].

    Reference: Sun et al., "Soteria" (CVPR 2021, arXiv 2012.06043); official code
    jeremy313/Soteria, where the fraction is .01 to .8 from one script to another; .1 in
    CENSOR and GGL. The attack: Balunović et al., "Bayesian Framework for Gradient
    Leakage" (ICLR 2022, arXiv 2111.04706). Differs from the code: there the quantile is
    that of s with its sign, where features may be negative; what is 0 / 0 spoils it,
    and nothing is dropped; and its script of the attack by cosine divides by r_j + .1.
    """
    if is_concrete(fraction) and not 0 <= fraction < 1:
        raise ValueError(f"fraction must be in [0, 1), got {fraction!r}")
    name = f"{layer}/kernel"

    def release(rng: Rng, state, grads: Public, context: Context):
        del rng
        kernel = _kernel_of(grads, name)
        size = jnp.abs(sensitivities(context, f"{layer}:input"))
        if size.shape[0] != kernel.shape[0]:
            raise ValueError(
                f"soteria: kernel {name!r} has {kernel.shape} entries, and the layer "
                f"is fed {size.shape[0]} features: name a dense layer"
            )
        low = size < jnp.quantile(size, jnp.asarray(fraction, size.dtype))
        return _with_kernel(grads, name, jnp.where(low[:, None], 0, kernel)), state

    def simulate(
        grads: Public, sent: Public | None, earlier: Public | None, private: Any
    ) -> Public:
        del earlier, private
        if sent is None:
            return grads
        seen = _kernel_of(sent, name)
        zero = jnp.all((seen == 0) | jnp.isnan(seen), axis=1, keepdims=True)
        # What is hidden as a whole is nothing that was seen to be 0.
        zero &= jnp.any(seen == 0, axis=1, keepdims=True)
        return _with_kernel(grads, name, jnp.where(zero, 0, _kernel_of(grads, name)))

    return Defence(release=release, simulate=simulate, needs=("features",))


def sensitivities(context: Context, name: str) -> Array:
    """Computes s [F] of the features by a name, see `soteria`."""
    features = part_of(context, "features", "soteria")
    inputs = context.inputs
    for x in jax.tree.leaves(inputs):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                "soteria takes derivatives to the inputs, and these are "
                f"{x.dtype}: take a defence of the gradient alone, such as "
                "'magnitude-pruning'"
            )

    def flat(inputs: PyTree) -> Array:
        value = features(name, inputs)
        return widened(value.reshape(value.shape[0], -1))

    value, pull = jax.vjp(flat, inputs)

    def of_feature(row: tuple[Array, Array]) -> Array:
        index, r = row
        (slope,) = pull(jnp.zeros_like(value).at[:, index].set(1))
        power = sum(
            jnp.sum(widened(x) ** 2, axis=tuple(range(1, x.ndim)))
            for x in jax.tree.leaves(slope)
        )
        there = r != 0
        return jnp.sum(jnp.where(there, jnp.sqrt(power) / jnp.where(there, r, 1), 0))

    count = value.shape[1]
    rows = jnp.arange(count), value.T
    return jax.lax.map(of_feature, rows, batch_size=min(count, TOGETHER))


def _kernel_of(grads: Public, name: str) -> Array:
    kernel = grads.model.get(name)
    if kernel is None or kernel.ndim != 2:
        found = "there is none" if kernel is None else f"it is {kernel.shape}"
        raise ValueError(
            f"soteria changes the kernel [features, outputs] of a dense layer, "
            f"{name!r}, and {found}: the tensors are {', '.join(grads.model)}"
        )
    return kernel


def _with_kernel(grads: Public, name: str, kernel: Array) -> Public:
    # In the order in which the tensors are.
    model = {n: kernel if n == name else x for n, x in grads.model.items()}
    return grads._replace(model=model)
