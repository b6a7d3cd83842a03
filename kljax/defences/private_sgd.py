"""Differentially private descent: clipping and noise, of each example or a client."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from kljax.core.checks import is_concrete
from kljax.core.types import Array, Public, Rng
from kljax.defences.clipping import example_clipping, norm_clipping
from kljax.defences.combination import chain
from kljax.defences.defence import Context, Defence, Mechanism
from kljax.defences.noise import gaussian_noise


def pre_clip_noise(std: float | Array) -> Defence:
    """Adds independent noise N(0, std^2) to each example's gradient, before a clipping.

    Clipping moves the mean of gradients where their distribution is not symmetric about
    it, and descent may come to rest where it should not. Noise that is symmetric makes
    it nearly so. By itself it has no guarantee: it is drawn for each example, and what
    follows is what bounds an example's influence.

    An attacker who knows it takes the gradient without the noise. What is then clipped
    has no density that anybody has written down: the density of a shortened normal
    vector is none of independent entries.

    Args:
      std: standard deviation, in units of the gradient's entries; 0 is the identity. A
        value that is data counts as 0 where it is asked for a density, as in the noise
        of `kljax.defences.noise` it counts as above 0.

    Raises:
      ValueError: for a `std` that is negative, infinite or NaN.

    Reference: Chen, Wu and Hong, "Understanding Gradient Clipping in Private SGD: A
    Geometric Perspective" (NeurIPS 2020). In the spirit of: its scale of the noise is
    not published in a form we could read.
    """
    _check_finite("std", std)
    noise = gaussian_noise(std)

    def per_example(rng: Rng, grads: Public) -> Public:
        if is_concrete(std) and std == 0:
            return grads  # a draw for each example is most of a small network's step
        return noise.release(rng, (), grads, None)[0]

    return Defence(
        per_example=per_example,
        simulate_example=lambda grads: grads,
        deterministic=not (is_concrete(std) and std > 0),
    )


def dp_sgd(
    bound: float | Array,
    noise_multiplier: float | Array,
    pre_clip_std: float | Array = 0.0,
    *,
    batch: int,
) -> Defence:
    """Clips each example's gradient, and adds noise to their mean: DP-SGD.

    Every example's gradient gets noise N(0, pre_clip_std^2), is shortened to Euclidean
    norm `bound`, the mean is taken over the B examples of the step, and noise
    N(0, (noise_multiplier * bound / B)^2) is added. B is the size of the batch, which
    in kljax is the same in every step and known to everybody. A gradient that is not
    finite counts as 0.

    Guarantees: one gradient is a Gaussian mechanism for an example, whose noise is
    `noise_multiplier` times what the example can move (`Mechanism`), up to the rounding
    of floating-point numbers, which is not accounted for. The noise before the clipping
    adds nothing to that. How many gradients there are is what
    `kljax.defences.accounting` counts.

    Clipping and noise are kljax's own. `optax.contrib.differentially_private_aggregate`
    and `jax_privacy.clipping.clipped_grad` give the same numbers: the first wants the
    stacked gradients of all examples, and the second differentiates the loss itself.
    Here a client has each example's gradient already, under gates, draws and random
    keys of its own, and a tree that is scaled is all that is missing.

    Args:
      bound: largest norm of one example's gradient; ``inf`` without noise alone.
      noise_multiplier: as above; 0 adds none, and has no guarantee.
      pre_clip_std: see `pre_clip_noise`.
      batch: B.

    Raises:
      ValueError: for a bound that is not above 0, noise that is negative, infinite or
        NaN, an infinite bound under noise, a batch below 1, and on release for a
        gradient of another number of examples.

    Reference: Abadi et al., "Deep Learning with Differential Privacy" (CCS 2016),
    algorithm 1, which samples its batches by coin; Chen, Wu and Hong (NeurIPS 2020) for
    the noise before the clipping.
    """
    if batch < 1:
        raise ValueError(f"batch must be >= 1, got {batch!r}")
    _check_finite("pre_clip_std", pre_clip_std)
    noise = gaussian_noise(_noise_std(bound, noise_multiplier) / batch)

    def release(rng: Rng, state, grads: Public, context: Context):
        if context.targets.shape[0] != batch:
            raise ValueError(
                f"dp_sgd is made for gradients of batch={batch} examples, and this one "
                f"is of {context.targets.shape[0]}: its noise would be another"
            )
        return noise.release(rng, state, grads, context)

    parts = chain(
        _finite_examples(),
        pre_clip_noise(pre_clip_std),
        example_clipping(bound),
        noise._replace(release=release),
    )
    return parts._replace(mechanism=Mechanism(noise_multiplier, "example", "gradients"))


def dp_fedavg(bound: float | Array, noise_multiplier: float | Array) -> Defence:
    """Clips what a client sends as a whole, and adds noise to it, at the client.

    As ``dp-fedavg@update`` it acts on the change of a whole local training, as the
    paper does; by itself on each gradient that a client computes. The noise is N(0,
    (noise_multiplier * bound)^2), added by each client to its own upload before anybody
    sees it. The paper's server, which is trusted, adds it once to the sum: with n
    clients the noise of the mean is here sqrt(n) times as large for the same guarantee,
    and the guarantee holds against the server.

    Guarantees: one upload is a Gaussian mechanism for a client with all of its data,
    against a client that sends nothing but noise (`Mechanism`).

    Args:
      bound: largest norm of what a client sends; ``inf`` without noise alone.
      noise_multiplier: as above; 0 adds none, and has no guarantee.

    Raises:
      ValueError: see `dp_sgd`.

    Reference: McMahan et al., "Learning Differentially Private Recurrent Language
    Models" (ICLR 2018), with the noise at the clients.
    """
    noise = gaussian_noise(_noise_std(bound, noise_multiplier))
    parts = chain(_finite_whole(), norm_clipping(bound), noise)
    return parts._replace(mechanism=Mechanism(noise_multiplier, "client", "gradients"))


def _noise_std(bound: float | Array, noise_multiplier: float | Array) -> float | Array:
    if is_concrete(bound) and not bound > 0:
        raise ValueError(f"bound must be > 0, got {bound!r}")
    _check_finite("noise_multiplier", noise_multiplier)
    if is_concrete(noise_multiplier) and is_concrete(bound):
        if noise_multiplier == 0:
            return 0.0
        if bound == math.inf:
            raise ValueError(
                f"bound must be finite under noise, got {bound!r} with "
                f"noise_multiplier {noise_multiplier!r}"
            )
        return noise_multiplier * bound
    return jnp.where(noise_multiplier == 0, 0.0, noise_multiplier * bound)


def _check_finite(name: str, value: float | Array) -> None:
    if is_concrete(value) and not 0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and >= 0, got {value!r}")


def _finite_or_nothing(grads: Public) -> Public:
    """Gives zeros for a gradient with an entry that is not finite."""
    leaves = jax.tree.leaves(grads)
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
    return jax.tree.map(lambda g: jnp.where(finite, g, 0), grads)


def _finite_examples() -> Defence:
    return Defence(
        per_example=lambda rng, grads: _finite_or_nothing(grads),
        simulate_example=lambda grads: grads,
        deterministic=True,
    )


def _finite_whole() -> Defence:
    def release(rng: Rng, state: Any, grads: Public, context: Context):
        del rng, context
        return _finite_or_nothing(grads), state

    return Defence(release=release, deterministic=True)
