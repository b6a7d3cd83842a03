"""Selective encryption: the entries that tell most about the data are sent encrypted.

The server adds up what it cannot read, so that the aggregate is exact; the rest of an
upload is sent as it is. Which entries are encrypted is known to everybody: a server
sees where there is ciphertext. Nothing is encrypted here, for what leaks does not
depend on the cipher; `kljax train --encryption` does it, over the entries that one of
the clients hides.

References: FedML-HE (Jin et al., arXiv 2303.10837) for a share of entries by a score
of their own; Gu et al. (arXiv 2508.04155) for a comparison of scores; SelectiveShield
(arXiv 2508.04265) for Fisher's.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from kljax.core.checks import is_concrete
from kljax.core.types import Array, Public, PyTree, Rng
from kljax.defences.defence import Context, Defence

# (rng, what is sent, Context) -> tree like what is sent: the largest are encrypted
Score: TypeAlias = Callable[[Rng, Public, Context], Public]

PROBES = 64  # a norm of that many directions is off by a tenth


def selective_encryption(
    share: float | Array, *, score: str | Score = "magnitude"
) -> Defence:
    """Hides from the server the entries of an upload with the largest scores.

    An adaptive attacker matches the entries that are left; what their being left says
    (under ``magnitude``: that they are smaller than all others) is not made use of.

    Args:
      share: of the entries that are encrypted, rounded to whole ones, in [0, 1]; 0 is
        the identity. Under ``layers`` at least that many: whole layers are encrypted.
      score: a name in `SCORES`, or a function like those.

    Raises:
      ValueError: for a share outside [0, 1], and an unknown score; from ``visible``,
        for a score that needs the client's gradient where there is none.
    """
    if is_concrete(share) and not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share!r}")
    if isinstance(score, str) and score not in SCORES:
        raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
    scored = SCORES[score] if isinstance(score, str) else score

    def visible(rng: Rng, sent: Public, context: Context) -> PyTree:
        hidden = largest(scored(rng, sent, context), share, tied=scored is layers)
        return jax.tree.map(jnp.logical_not, hidden)

    return Defence(visible=visible)


def largest(scores: PyTree, share: float | Array, *, tied: bool = False) -> PyTree:
    """Picks the largest of all entries of a tree.

    Args:
      scores: any numbers.
      share: of the d entries, in [0, 1]: round(share d) are picked.
      tied: whether entries of the same score are picked together, more of them if
        need be; otherwise the first of them in the tree are.

    Returns:
      A tree like `scores`, of bool.
    """
    flat, unravel = ravel_pytree(scores)
    count = jnp.round(jnp.asarray(share, jnp.float32) * flat.size)
    order = jnp.argsort(-flat)
    before = jnp.arange(flat.size)  # how many come before the n-th
    if tied:
        descending = -flat[order]
        before = jnp.searchsorted(descending, descending, side="left")
    # From 2^24 entries on float32 does not know the last of them.
    picked = jnp.zeros(flat.size, bool).at[order].set((before < count) | (share >= 1))
    # Only trees of the dtype that scores have can be unravelled.
    return jax.tree.map(lambda x: x != 0, unravel(picked.astype(flat.dtype)))


def magnitude(rng: Rng, sent: Public, context: Context) -> Public:
    """Scores an entry by its size ``|g_i|``."""
    del rng, context
    return jax.tree.map(jnp.abs, sent)


def sensitivity(
    rng: Rng, sent: Public, context: Context, *, probes: int | None = PROBES
) -> Public:
    """Scores an entry by how much it moves with the data, ``|d g_i / d x|``.

    The Euclidean norm over all numbers of all inputs, of the gradient before its
    release. (FedML-HE differentiates by the targets instead.)

    Args:
      rng: of the probes.
      sent: what is scored.
      context: with the client's gradient.
      probes: random directions that the norm is estimated from, without bias in its
        square; None for the exact norm, by as many directions as there are numbers.

    Raises:
      ValueError: without a gradient, and for inputs that are no real numbers.
    """
    del sent
    inputs, gradient = context.inputs, _gradient_of(context, "sensitivity")
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise ValueError(
            "score 'sensitivity' differentiates by the inputs, and these are "
            f"{inputs.dtype}: take 'magnitude'"
        )
    grads, along = jax.linearize(lambda x: gradient(x, context.targets).public, inputs)
    count = probes or inputs.size

    def direction(index: Array) -> Array:
        if probes is None:
            return jnp.zeros(inputs.size).at[index].set(1.0).reshape(inputs.shape)
        return jax.random.normal(jax.random.fold_in(rng, index), inputs.shape)

    def add(total: Public, index: Array):
        moved = along(direction(index).astype(inputs.dtype))
        return jax.tree.map(lambda t, m: t + m**2, total, moved), None

    start = jax.tree.map(jnp.zeros_like, grads)
    total, _ = jax.lax.scan(add, start, jnp.arange(count))
    scale = probes or 1
    return jax.tree.map(lambda t: jnp.sqrt(t / scale), total)


def product(rng: Rng, sent: Public, context: Context) -> Public:
    """Scores an entry by size times sensitivity, ``|g_i| |d g_i / d x|``."""
    return jax.tree.map(
        lambda g, s: jnp.abs(g) * s, sent, sensitivity(rng, sent, context)
    )


def fisher(rng: Rng, sent: Public, context: Context) -> Public:
    """Scores an entry by Fisher's information, ``E_y (d log p(y|x) / d w_i)^2``.

    The mean over the examples; labels y are those that the network believes in, each
    with its probability, under cross-entropy. Each example goes through the network by
    itself. (With the true labels alone it is the squared size, for one example.)

    Raises:
      ValueError: without a gradient.
    """
    del rng
    gradient = _gradient_of(context, "fisher")
    examples, classes = context.targets.shape

    def add(total: Public, index: Array):
        example, label = index // classes, index % classes
        one = jax.lax.dynamic_slice_in_dim(context.inputs, example, 1)
        target = jax.nn.one_hot(label, classes, dtype=context.targets.dtype)[None]
        found = gradient(one, target)
        weight = jax.nn.softmax(found.logits[0])[label] / examples
        return jax.tree.map(lambda t, g: t + weight * g**2, total, found.public), None

    start = jax.tree.map(jnp.zeros_like, sent)
    return jax.lax.scan(add, start, jnp.arange(examples * classes))[0]


def random(rng: Rng, sent: Public, context: Context) -> Public:
    """Scores entries at random, independently."""
    del context
    flat, unravel = ravel_pytree(sent)
    return unravel(jax.random.uniform(rng, flat.shape, flat.dtype))


def layers(rng: Rng, sent: Public, context: Context) -> Public:
    """Scores the entries of a layer alike, by their mean size.

    A layer is everything with the same name up to its last slash: kernel and bias.
    """
    del rng, context
    paths, tree = jax.tree.flatten_with_path(sent)
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/").rpartition("/")[0]
        for path, _ in paths
    ]
    mean = {}
    for name in dict.fromkeys(names):
        own = [leaf for n, (_, leaf) in zip(names, paths, strict=True) if n == name]
        mean[name] = sum(jnp.sum(jnp.abs(leaf)) for leaf in own) / sum(
            leaf.size for leaf in own
        )
    scored = [
        jnp.full_like(leaf, mean[name])
        for name, (_, leaf) in zip(names, paths, strict=True)
    ]
    return jax.tree.unflatten(tree, scored)


SCORES: dict[str, Score] = {
    "magnitude": magnitude,
    "sensitivity": sensitivity,
    "product": product,
    "fisher": fisher,
    "random": random,
    "layers": layers,
}


def _gradient_of(context: Context, score: str) -> Callable:
    if context.gradient is None:
        raise ValueError(
            f"score {score!r} needs the client's own gradient (Context.gradient), and "
            "there is none here: take 'magnitude'"
        )
    return context.gradient
