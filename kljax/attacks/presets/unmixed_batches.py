"""The Cocktail Party Attack: a batch unmixed from the gradient of a dense layer.

The weight gradient of the first dense layer is ``X^T D``: each column is a mixture of
the B images, in unknown shares. Independent component analysis takes mixtures apart
without the shares. The mixtures are whitened by their singular value decomposition, and
the B directions are looked for whose images are least Gaussian, differ and are smooth.
The directions are estimates: unlike SPEAR's (`kljax.attacks.spear`) no image is exact,
and nothing tells a good one from a bad one.

The row of the bias is a mixture of the number one in the same shares. It gives each
unmixed image its sign and its length. Where a norm in train mode follows the layer, the
gradient of the bias is zero: signs and lengths are then unknown, and images are right
up to an affine map at best (``ssim_affine_oracle``).

Letters: B examples, d numbers of an image, m units.

Reference: Kariyappa et al., "Cocktail Party Attack: Breaking Aggregation-Based Privacy
in Federated Learning using Independent Component Analysis" (ICML 2023). Differs: the
bias says sign and length; directions in which the gradient holds nothing are left out;
networks that begin with convolutions are refused, whose embedding the paper unmixes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from kljax.attacks.attack import Attack, Reconstruction
from kljax.attacks.closed_form.layer_input import float64, to_float64
from kljax.attacks.closed_form.low_rank import split
from kljax.attacks.closed_form.refusals import refuse_no_bias
from kljax.attacks.closed_form.relu_batches import check_rank, first_dense_layer
from kljax.attacks.drivers.search import check_points, on_the_way
from kljax.attacks.labels import settled_labels
from kljax.attacks.objectives import absolute, infinite_if_broken
from kljax.attacks.optimisers import refuse_optimiser
from kljax.attacks.priors import mean_variation, refuse_feature
from kljax.attacks.setting import Setting
from kljax.core.decompositions import one_at_a_time
from kljax.core.types import Array, Path, Rng
from kljax.threat import View

NAME = "cocktail-party"
MISSING = 0.5  # grey: what stands for an image of which nothing is there


class Mixtures(NamedTuple):
    """Whitened mixtures of the images of a batch, and of the one of the bias.

    Attributes:
      images: [B, d], not centred.
      ones: [B], the same mixtures of the number one.
      active: [B] bool, those of variance 1 over the pixels, and of no covariance; the
        others are zeros.
      rank: [] int32, of the gradient, see `low_rank.Factors`.
    """

    images: Array
    ones: Array
    active: Array
    rank: Array


class Weights(NamedTuple):
    """Weights of the terms of the objective; see `cocktail_party`."""

    decorrelation: float
    variation: float
    sharpness: float


def whitened(gradient: Array, examples: int) -> Mixtures:
    """Whitens the gradient [d + 1, m] of a layer, the bias last; B < min(d + 1, m).

    To be called within ``float64(True)``.
    """
    factors = split(gradient, examples)
    pixels = factors.left[:-1]
    centred = pixels - jnp.mean(pixels, axis=0)[None]
    _, sizes, turn = jnp.linalg.svd(centred, full_matrices=False)
    # A constant image is lost where its mean is taken off.
    least = 4 * jnp.finfo(jnp.float32).eps * sizes[0]
    places = jax.lax.iota(jnp.int32, examples)
    active = (places < factors.rank) & (sizes > least)
    lengths = jnp.where(active, jnp.sqrt(1.0 * len(pixels)) / sizes, 0.0)
    mixtures = lengths[:, None] * (turn @ factors.left.T)
    return Mixtures(mixtures[:, :-1], mixtures[:, -1], active, factors.rank)


def directions_of(free: Array, mixtures: Mixtures) -> Array:
    """Makes directions [B, B] of unit length within what the gradient holds."""
    rows = jnp.where(mixtures.active[None], free, 0.0)
    lengths = jnp.linalg.norm(rows, axis=1, keepdims=True)
    return rows / jnp.maximum(lengths, jnp.finfo(rows.dtype).tiny)


def unmixing_loss(
    free: Array, mixtures: Mixtures, image_shape: tuple[int, ...], weights: Weights
) -> Array:
    """Computes what the unmixing descends on.

    Args:
      free: [B, B], directions of any length.
      mixtures: the whitened ones.
      image_shape: (H, W, C), of d numbers.
      weights: of the terms.

    Returns:
      [], the mean over the images u of ``-E[log cosh u]^2``, with two weighted terms:
      ``exp(sharpness |cos|) - 1``, summed over pairs of different directions and
      divided by B^2, and the total variation. The first rewards light tails: of
      variance 1, a Gaussian has ``E[log cosh u]`` of 0.3746, two equal levels have
      0.4338, and what has heavy tails has less.
    """
    directions = directions_of(free, mixtures)
    images = directions @ mixtures.images
    centred = images - jnp.mean(images, axis=1)[:, None]
    contrast = jnp.mean(jnp.mean(_log_cosh(centred), axis=1) ** 2)
    apart = 1 - jnp.eye(len(free), dtype=free.dtype)
    cosines = absolute(directions @ directions.T) * apart
    alike = jnp.mean(jnp.expm1(weights.sharpness * cosines))
    variation = jnp.mean(mean_variation(images.reshape(-1, *image_shape)))
    return weights.decorrelation * alike + weights.variation * variation - contrast


def unmix(
    start: Array,
    mixtures: Mixtures,
    image_shape: tuple[int, ...],
    weights: Weights,
    *,
    learning_rate: float,
    steps: int,
    points: int,
) -> tuple[Array, Array]:
    """Descends by Adam from directions `start` [B, B].

    Where they are far from right angles, the decorrelation's first gradients are so
    large that Adam's steps stay short for thousands of them.

    Args:
      start: [B, B], of any length.
      mixtures: the whitened ones.
      image_shape: (H, W, C).
      weights: of the terms.
      learning_rate, steps: of Adam.
      points: P, which divides `steps`: what is found is recorded so often, evenly.

    Returns:
      Directions [P, B, B] of unit length, the last of them those after the last step,
      and their losses [P].
    """
    # Not by `descend`, which would give other results: it returns the iterate of the
    # lowest loss and never evaluates what follows the last move, where this ends at the
    # last iterate and its loss. It also matches an upload that a candidate gives with
    # the one observed, and this loss compares no two.
    optimiser = optax.adam(learning_rate)

    def loss(free: Array) -> Array:
        return unmixing_loss(free, mixtures, image_shape, weights)

    def move(_, carried):
        free, state = carried
        updates, state = optimiser.update(jax.grad(loss)(free), state, free)
        return optax.apply_updates(free, updates), state

    def segment(carried, _):
        carried = jax.lax.fori_loop(0, steps // points, move, carried)
        free = carried[0]
        return carried, (directions_of(free, mixtures), loss(free))

    start = directions_of(start, mixtures)
    carried = (start, optimiser.init(start))
    _, found = jax.lax.scan(segment, carried, length=points)
    return found


def read_images(directions: Array, mixtures: Mixtures) -> Array:
    """Gives unmixed images [B, d] their sign and their length, without the truth.

    What the ones are mixed to is what an image was multiplied by, if it is one image
    alone. An image that is longer than [0, 1] by that is not, and is shrunk into it; a
    shift, as small as will do, moves what is still outside.
    """
    images, ones = directions @ mixtures.images, directions @ mixtures.ones
    width = jnp.max(images, axis=1) - jnp.min(images, axis=1)
    length = jnp.maximum(jnp.abs(ones), width)
    sign = jnp.where(ones < 0, -1.0, 1.0)
    scaled = images * (sign / jnp.where(length > 0, length, 1.0))[:, None]
    low, high = (find(scaled, axis=1)[:, None] for find in (jnp.min, jnp.max))
    moved = scaled - jnp.minimum(low, 0.0) - jnp.maximum(high - 1.0, 0.0)
    return jnp.where((length > 0)[:, None], jnp.clip(moved, 0.0, 1.0), MISSING)


def cocktail_party(
    setting: Setting,
    optimiser=None,
    *,
    steps: int = 25_000,
    restarts: int = 1,
    decorrelation: float = 1.47,
    variation: float = 3.1,
    sharpness: float = 12.4,
    learning_rate: float = 1e-3,
    layer: Path = "",
) -> Attack:
    """Makes the attack; it is no gradient matching, and Adam belongs to it.

    The defaults are those of the paper's code for the second layer of a perceptron on
    Tiny-ImageNet at B = 128.

    Args:
      setting: of the attack.
      optimiser: must be None.
      steps: of Adam.
      restarts: independent starts, of which the lowest loss wins; none that broke.
      decorrelation, variation, sharpness: see `unmixing_loss`; 0 or more.
      learning_rate: of Adam, over directions that start at unit length.
      layer: path of the dense layer; nothing for the one that is fed the image.

    Returns:
      The attack. Its loss is that of the unmixing, which no truth is held against. Its
      ``numbers`` have ``gradient_rank``, its ``info`` the losses and the snapshots of
      the restart that is returned (`kljax.attacks.descend`): what would have been
      returned after fewer steps, be its loss lower or not. Labels are those of the
      batch; which image has which is not known.

    Raises:
      ValueError: for an optimiser, anything but the gradient of one step, a network
        without a dense layer with bias that is fed the image, a batch that the layer is
        too small for, gates that are replayed, a gradient of that layer that is hidden,
        and numbers out of range.
    """
    refuse_optimiser(optimiser, NAME)
    layer = _check(setting, layer)
    weights = _weights(decorrelation, variation, sharpness)
    _check_descent(steps, restarts, learning_rate)
    points = check_points(steps, restarts, None, setting.snapshots)
    shape, examples = setting.task.image_shape, setting.threat.knowledge.examples
    labels = settled_labels(setting, NAME)

    @one_at_a_time
    def prepare(gradient: Array) -> Mixtures:
        with float64(True):
            found = whitened(to_float64(gradient), examples)
            return jax.tree.map(
                lambda x: x.astype(jnp.float32) if x.dtype == jnp.float64 else x, found
            )

    def attack(rng: Rng, view: View) -> Reconstruction:
        kernel, bias = (view.grads.model[f"{layer}/{x}"] for x in ("kernel", "bias"))
        gradient = jnp.concatenate([kernel, bias[None]])
        mixtures = prepare(gradient)

        def search(rng: Rng) -> tuple[Array, Array]:
            start = jax.random.normal(rng, (examples, examples))
            return unmix(
                start,
                mixtures,
                shape,
                weights,
                learning_rate=learning_rate,
                steps=steps,
                points=points,
            )

        def read(directions: Array) -> Array:
            return read_images(directions, mixtures).reshape(examples, *shape)

        found, losses = jax.lax.map(search, jax.random.split(rng, restarts))
        best = jnp.argmin(infinite_if_broken(losses[:, -1]))
        found, losses = found[best], losses[best]
        snapshots = jax.lax.map(read, found) if setting.snapshots else None
        said = jnp.all(jnp.isfinite(gradient)) & (mixtures.rank > 0)
        return Reconstruction(
            inputs=read(found[-1]),
            labels=labels(rng, view),
            loss=losses[-1],
            finite=said & jnp.isfinite(losses[-1]),
            info=on_the_way(losses, steps, snapshots),
            numbers={
                "gradient_rank": mixtures.rank,
                "evaluations": jnp.asarray(steps * restarts),
            },
        )

    return attack


def _log_cosh(x: Array) -> Array:
    return jnp.logaddexp(x, -x) - jnp.log(2.0)


def _weights(*numbers: float) -> Weights:
    weights = Weights(*numbers)
    for name, number in weights._asdict().items():
        if not number >= 0:
            raise ValueError(f"{NAME}: {name} must be 0 or more, got {number}")
    return weights


def _check_descent(steps: int, restarts: int, learning_rate: float) -> None:
    if steps < 1 or restarts < 1:
        raise ValueError(
            f"{NAME} takes 1 step and 1 restart at least, got steps={steps}, "
            f"restarts={restarts}"
        )
    if not learning_rate > 0:
        raise ValueError(f"{NAME}: learning_rate must be above 0, got {learning_rate}")


def _check(setting: Setting, layer: Path) -> Path:
    """Refuses what the attack cannot be for; finds its layer."""
    refuse_feature(setting, NAME)
    knows, strategy = setting.threat.knowledge, setting.threat.strategy
    if not setting.sees_gradient:
        raise ValueError(
            f"{NAME} unmixes the gradient of one step, of one client or the mean over "
            f"several, the threat model has upload={knows.upload!r}"
        )
    if strategy.secret != "unit":
        raise ValueError(
            f"{NAME} unmixes what is in front of any lock and replays none, the threat "
            f"model says secret={strategy.secret!r}: write 'unit'"
        )
    params, _ = setting.task.shapes()
    filters = [path for path, leaf in params.items() if leaf.ndim > 2]
    if filters and not layer:
        raise ValueError(
            f"{NAME} unmixes images at a first layer that is dense, and this network "
            f"has the convolution {filters[0]!r}: there the embedding before its dense "
            "layers would be unmixed and inverted, which is not built; take 'dense' or "
            "'dense-relu'"
        )
    layer, units = first_dense_layer(setting, NAME, layer)
    refuse_no_bias(setting, NAME, layer)
    check_rank(setting, NAME, units)
    _refuse_hidden(setting, layer)
    return layer


def _refuse_hidden(setting: Setting, layer: Path) -> None:
    """Refuses a part of the upload in which the layer's gradient is not."""
    names = (f"{layer}/{name}" for name in ("kernel", "bias"))
    knows = setting.threat.knowledge
    hidden = [name for name in names if not knows.reads(name)]
    if hidden:
        raise ValueError(
            f"{NAME} unmixes the gradient of the layer {layer!r}, and {hidden[0]!r} is "
            f"no part of visible={knows.visible!r}: add {layer!r} to it"
        )
