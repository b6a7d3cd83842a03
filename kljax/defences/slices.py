"""GradDefense: noise on some slices of a gradient, which are equally sensitive."""

import math

import jax
import jax.numpy as jnp
from jax.scipy import stats

from kljax.core.checks import is_concrete
from kljax.core.types import Array, Public, PyTree, Rng
from kljax.defences.context import Context, part_of
from kljax.defences.defence import Defence, sum_visible, widened

MOST_SLICES = 1000
# The noise that an attacker reckons with where there is none, over the noise that there
# is. Of none at all the density has no bound: any candidate that explains one entry
# exactly would be infinitely likely.
NARROW = 0.1


def slice_noise(
    slices: float | Array = 10.0,
    perturbed: float | Array = 5.0,
    std: float | Array = 0.01,
) -> Defence:
    """Adds noise N(0, std^2) to some of the slices that a gradient is cut into.

    A tensor's sensitivity is the length of its gradient's derivative along a random
    direction of the inputs, whose mean square is that of the Jacobian's Frobenius norm,
    and is shared by its entries in equal parts. The entries, tensor after tensor, are
    cut into slices of equal sums. Of these some are drawn anew for each release.

    The inputs at which the sensitivity is taken are the root set. It is not the
    client's own: uniform noise on [0, 1], as many as are in its batch, at its targets,
    since a client here has no other data than its own. It costs the derivative of a
    gradient, along one direction, and more than the step that it defends. The official
    code measures once for many steps, of parameters that are by then others.

    The attacker who knows it does not know which slices have noise. Its density of an
    entry is a mixture, ``perturbed / slices`` of N(g, std^2), the rest of a narrow
    N(g, (`NARROW` std)^2): with no width at all, which would be exact, the density has
    no bound. A candidate near the truth is found by the slices without noise, since
    their entries are in the narrow part together, and those with noise then weigh
    little. That slices are in one piece is not made use of. Who does not search by
    likelihood compares all entries alike.

    Args:
      slices: that a gradient is cut into, a whole number from 1 to `MOST_SLICES`.
      perturbed: of them that have noise, a whole number from 0, which is the identity.
      std: of the noise, in units of the gradient's entries; 0 is the identity, without
        a density.

    Raises:
      ValueError: for numbers out of their range, more perturbed slices than there are;
        from ``release``, where a whole change is released, and for inputs that are no
        real numbers.

    Reference: Wang et al., "Protect Privacy from Gradient Leakage Attack in Federated
    Learning" (INFOCOM 2022); code wangjunxiao/GradDefense, perturb.py and
    sensitivity.py, whose numbers, as TL-System/plato has them, are the defaults.
    Differs from it: the root set and the direction (the code takes the derivative of
    each tensor's sum, one after another, at examples of the training set); cuts are
    between entries, and not of pieces of a common size. Its clipping of single examples
    is `example_clipping`, of whole gradients; the server's compensation is a rule of
    aggregation (`kljax.federated.aggregation.denoised_mean`): an attacker's view is
    before it.
    """
    if is_concrete(slices) and not (1 <= slices <= MOST_SLICES and _whole(slices)):
        raise ValueError(
            f"slices must be a whole number from 1 to {MOST_SLICES}, got {slices!r}"
        )
    if is_concrete(perturbed) and not (0 <= perturbed < math.inf and _whole(perturbed)):
        raise ValueError(f"perturbed must be a whole number >= 0, got {perturbed!r}")
    both = is_concrete(slices) and is_concrete(perturbed)
    if both and perturbed > slices:
        raise ValueError(f"perturbed={perturbed!r} of slices={slices!r} are too many")
    if is_concrete(std) and not 0 <= std < math.inf:
        raise ValueError(f"std must be finite and >= 0, got {std!r}")

    def release(rng: Rng, state, grads: Public, context: Context):
        rng_root, rng_slices, rng_noise = jax.random.split(rng, 3)
        leaves, tree = jax.tree.flatten(grads)
        sensitive = sensitivities(rng_root, context)
        places = slice_indices([x.size for x in leaves], sensitive, slices)
        # The smallest of as many draws as there are slices.
        drawn = jax.random.uniform(rng_slices, (MOST_SLICES,))
        drawn = jnp.where(jnp.arange(MOST_SLICES) < slices, drawn, jnp.inf)
        chosen = jnp.argsort(jnp.argsort(drawn)) < perturbed
        rngs = jax.random.split(rng_noise, len(leaves))
        sent = []
        for rng_leaf, g, place in zip(rngs, leaves, places, strict=True):
            added = std * jax.random.normal(rng_leaf, g.shape)
            noisy = chosen[place].reshape(g.shape)
            sent.append(g + jnp.where(noisy, added, 0).astype(g.dtype))
        return jax.tree.unflatten(tree, sent), state

    def log_density(x: Array, mean: Array) -> Array:
        share = jnp.asarray(perturbed, jnp.float32) / slices
        return jnp.logaddexp(
            jnp.log(share) + stats.norm.logpdf(x, mean, std),
            jnp.log1p(-share) + stats.norm.logpdf(x, mean, NARROW * std),
        )

    needs = ("gradient",)
    if any(is_concrete(number) and number == 0 for number in (perturbed, std)):
        return Defence(release=release, needs=needs)
    return Defence(
        release=release,
        log_prob=sum_visible(log_density),
        log_prob_degree=2,
        needs=needs,
    )


def sensitivities(rng: Rng, context: Context) -> Array:
    """Measures [L] the sensitivity of each tensor of a gradient, see `slice_noise`."""
    gradient = part_of(context, "gradient", "graddefense")
    leaves, tree = jax.tree.flatten(context.inputs)
    for x in leaves:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                "graddefense takes derivatives to the inputs, and these are "
                f"{x.dtype}: take a defence of the gradient alone, such as "
                "'gaussian-noise'"
            )

    def draw(draw_like, rng: Rng) -> PyTree:
        rngs = jax.random.split(rng, len(leaves))
        values = [
            draw_like(r, x.shape, x.dtype) for r, x in zip(rngs, leaves, strict=True)
        ]
        return jax.tree.unflatten(tree, values)

    rng_inputs, rng_direction = jax.random.split(rng)
    root = draw(jax.random.uniform, rng_inputs)
    along = draw(jax.random.normal, rng_direction)
    _, slopes = jax.jvp(
        lambda inputs: gradient(inputs, context.targets).public, (root,), (along,)
    )
    lengths = [jnp.linalg.norm(widened(x).ravel()) for x in jax.tree.leaves(slopes)]
    return jnp.stack(lengths)


def slice_indices(
    sizes: list[int], sensitive: Array, slices: float | Array
) -> list[Array]:
    """Tells of every entry in which slice it is.

    Args:
      sizes: entries of each tensor, in order.
      sensitive: [L] of each tensor, shared by its entries in equal parts.
      slices: of equal sums.

    Returns:
      Of each tensor [entries], int32 from 0. Where nothing is sensitive slices have
      equally many entries.
    """
    counts = jnp.asarray(sizes, jnp.float32)
    weights = jnp.where(jnp.sum(sensitive) > 0, sensitive, counts)
    ends = jnp.cumsum(weights)
    places = []
    for start, weight, count in zip(ends - weights, weights, sizes, strict=True):
        middles = (jnp.arange(count) + 0.5) / max(count, 1)
        place = (start + weight * middles) / ends[-1] * slices
        # Rounding may lead the last ones beyond the end.
        places.append(jnp.clip(place, 0, slices - 1).astype(jnp.int32))
    return places


def _whole(number: float | Array) -> bool:
    return number == round(number)
