"""Gradients of single examples, replayed: what is done to each before their mean."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kljax.attacks.setting import AssumedDefence
from kljax.core.types import Array, Private, Public, PyTree


def mean_over_examples(
    defence: AssumedDefence,
    gradient: Callable[..., tuple[tuple[Public, ...], PyTree]],
    rng_index: Array | int,
    secret: PyTree,
    inputs: PyTree,
    targets: Array,
) -> tuple[tuple[Public, ...], PyTree]:
    """Computes the gradient of a batch as a client of this defence does.

    Where the defence changes the gradient of each example (`Defence.per_example`), each
    is taken alone, and the mean over what is made of their gradients is the batch's;
    norm layers in train mode have the statistics of one example, as the client's have.
    Otherwise the batch is taken whole.

    Args:
      defence: that is assumed.
      gradient: ``(index [], secret, inputs, targets) -> ((public gradient, others),
        auxiliary)`` of a batch, whose dropout masks go by the index.
      rng_index: of this batch, if it is taken whole.
      secret: of the candidate. Of what is drawn anew in each step every example has a
        row.
      inputs, targets: [B, ...].

    Returns:
      What `gradient` gives, and of single examples the mean of all of it.
    """
    change, count = defence.simulate_example, targets.shape[0]
    if change is None:
        return gradient(rng_index, secret, inputs, targets)
    if count == 1:
        (public, *others), aux = gradient(rng_index, secret, inputs, targets)
        return (change(public), *others), aux
    by_rows = defence.draw_private is not None and isinstance(secret, Private)

    def one(example) -> tuple[tuple[Public, ...], PyTree]:
        index, own_input, target = example
        own = secret
        if by_rows:
            rows = jax.tree.map(lambda x: x[index][None], secret.secret)
            own = secret._replace(secret=rows)
        batch = jax.tree.map(lambda x: x[None], (own_input, target))
        (public, *others), aux = gradient(rng_index + index, own, *batch)
        return (change(public), *others), aux

    each = jax.lax.map(one, (jnp.arange(count), inputs, targets), batch_size=count)
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), each)
