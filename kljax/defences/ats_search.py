"""The search for ATS policies: what hides much, and keeps a network trainable."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kljax.core.types import Array, PyTree, Rng
from kljax.defences.ats import LONGEST, NUMBERED, Policy, apply_policy

RIDGE = 1e-5  # added to eigenvalues, as in the official code
TINY = 1e-12  # of lengths


class Scored(NamedTuple):
    """A policy with its scores."""

    policy: Policy
    privacy: float  # low: gradients say little on the way to the image
    accuracy: float  # high: a network at its start tells images apart


def privacy_score(
    gradient: Callable[[Array, Array], PyTree],
    rng: Rng,
    images: Array,
    targets: Array,
    *,
    steps: int = 20,
) -> Array:
    """Computes [] how well gradients lead from noise to an image.

    Of each image x, the area below ``cos(g(noise + t (x - noise)), g(x))`` for t from 0
    to 1, by the trapezoidal rule; the cosine is the mean over tensors, and the score
    the mean over images.

    Args:
      gradient: ``(images [1, H, W, C], targets [1, Kc]) -> gradient``, of a network
        that is somewhat trained (50 epochs on a tenth of the data in the paper).
      rng: of the noise, U(0, 1).
      images: [n, H, W, C], transformed.
      targets: [n, Kc].
      steps: of the path.

    Reference: ATSPrivacy, benchmark/search_transform_attack.py, reconstruct.
    """

    def of_one(args) -> Array:
        rng, image, target = args
        noise = jax.random.uniform(rng, image.shape, image.dtype)
        wanted = gradient(image[None], target[None])

        def cosine(share: Array) -> Array:
            point = share * image + (1 - share) * noise
            found = gradient(point[None], target[None])
            cosines = jax.tree.map(_cosine, found, wanted)
            return jnp.mean(jnp.stack(jax.tree.leaves(cosines)))

        heights = jax.lax.map(cosine, jnp.linspace(0.0, 1.0, steps + 1))
        return (jnp.sum(heights) - (heights[0] + heights[-1]) / 2) / steps

    rngs = jax.random.split(rng, len(images))
    return jnp.mean(jax.lax.map(of_one, (rngs, images, targets)))


def accuracy_score(outputs: Callable[[Array], Array], images: Array) -> Array:
    """Computes [] how differently a network answers to different images.

    With J the derivatives of each image's summed outputs, and v the eigenvalues of
    their correlations, ``-sum(log(v + 1e-5) + 1 / (v + 1e-5))``; near its highest,
    -n, where the images' derivatives are uncorrelated.

    Args:
      outputs: ``images [n, H, W, C] -> [n, Kc]``, of a network at its start, without
        batch statistics.
      images: [n, H, W, C], transformed; 100 in the official code, ten times.

    Reference: Mellor et al., "Neural Architecture Search without Training" (ICML 2021);
    ATSPrivacy, benchmark/search_transform_attack.py, eval_score.
    """
    slopes = jax.grad(lambda x: jnp.sum(outputs(x)))(images).reshape(len(images), -1)
    eigenvalues = jnp.linalg.eigvalsh(jnp.corrcoef(slopes)) + RIDGE
    # Rounding may make a zero negative.
    eigenvalues = jnp.maximum(eigenvalues, RIDGE / 2)
    return -jnp.sum(jnp.log(eigenvalues) + 1 / eigenvalues)


def search_policies(
    rng: Rng,
    privacy: Callable[[Rng, Callable[[Array], Array]], float],
    accuracy: Callable[[Rng, Callable[[Array], Array]], float],
    *,
    candidates: int = 1600,
    longest: int = LONGEST,
    threshold: float = -85.0,
    kept: int = 2,
) -> list[Scored]:
    """Draws policies, and keeps those of lowest privacy score that train well enough.

    A policy has as many operations as are left of `longest` draws, uniform over
    nothing and all that are numbered. Of those whose accuracy score is at least
    `threshold` the `kept` of lowest privacy score are given, lowest first. The paper's
    final policy is a random choice of two (`kljax.defences.transform_images`).

    Cost: `candidates` times what both scores take; 21 gradients for each image in the
    first one.

    Args:
      rng: of everything.
      privacy, accuracy: ``(rng, transform) -> score`` of ``transform``, which is
        ``images [n, H, W, C] -> images`` by the policy; see `privacy_score` and
        `accuracy_score`.
      candidates: policies that are tried.
      longest: operations of a policy, at most `LONGEST`.
      threshold: of the accuracy score; it depends on the network and on n.
      kept: policies.

    Raises:
      ValueError: for numbers below 1, and where fewer policies than `kept` reach the
        threshold, with the highest score.

    Reference: see `kljax.defences.transform_images`; searchalg/. Differs from it: the
    code's draws reach one number that it has no operation for.
    """
    sizes = {"candidates": candidates, "longest": longest, "kept": kept}
    for name, value in sizes.items():
        if not value >= 1:
            raise ValueError(f"{name} must be >= 1, got {value!r}")
    rng_policies, rng_scores = jax.random.split(rng)
    shape = (candidates, min(longest, LONGEST))
    numbers = np.asarray(jax.random.randint(rng_policies, shape, -1, len(NUMBERED)))
    found: dict[Policy, Scored] = {}
    for row in numbers:
        policy = tuple(int(number) for number in row if number >= 0)
        if not policy or policy in found:
            continue
        rngs = jax.random.split(jax.random.fold_in(rng_scores, len(found)), 3)
        transform = _transform(rngs[2], policy)
        found[policy] = Scored(
            policy,
            float(privacy(rngs[0], transform)),
            float(accuracy(rngs[1], transform)),
        )
    good = [scored for scored in found.values() if scored.accuracy >= threshold]
    if len(good) < kept:
        highest = max((scored.accuracy for scored in found.values()), default=-np.inf)
        raise ValueError(
            f"{len(good)} of {len(found)} policies reach an accuracy score of "
            f"{threshold:g}, and {kept} are wanted; the highest is {highest:g}: lower "
            "the threshold, or try more candidates"
        )
    return sorted(good, key=lambda scored: scored.privacy)[:kept]


def _transform(rng: Rng, policy: Policy) -> Callable[[Array], Array]:
    def transform(images: Array) -> Array:
        shape = (len(images), LONGEST)
        signs = jax.random.rademacher(rng, shape, images.dtype)
        return apply_policy(policy, images, signs)

    return transform


def _cosine(a: Array, b: Array) -> Array:
    lengths = optax.tree.norm(a) * optax.tree.norm(b)
    return jnp.sum(a * b) / jnp.maximum(lengths, TINY)
