"""Mixed inputs: MixUp and InstaHide, which train on weighted sums of images.

What a client draws to mix a batch is a `Mixing`. It is drawn anew in each step, and is
`Private.secret` while the step is taken. Letters: B examples in a batch, P public
images, k images in one that is mixed.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljax.core.checks import is_concrete
from kljax.core.types import Array, Private, PyTree, Rng
from kljax.defences.bottleneck import check_size
from kljax.defences.context import Context, drawn_secret
from kljax.defences.defence import Defence
from kljax.defences.public_images import PUBLIC, load_public
from kljax.threat import MIXING_STRATEGIES, HiddenParts

PRIVATE = 2  # of the client's own images in one that is mixed with public ones
KEPT = 1e-3  # of the weights that are proposed, the least share that must be kept
PROPOSALS = 20_000  # to see how many are kept, and to draw weights from at most


class Mixing(NamedTuple):
    """How a batch is mixed; a row for each of its examples.

    Attributes:
      matrix: [B, B + P], the weight of each image of the batch, and of each public one,
        in each mixed one. Rows sum to 1.
      mask: [B, ...] uint32 of random keys, from which the signs of pixels are drawn; or
        the signs themselves, [B, H, W, C] floating, as an attacker takes them to be;
        None for images that are not masked.
    """

    matrix: Array
    mask: Array | None = None


def mix_up(count: float = 2, alpha: float | Array = 1.0) -> Defence:
    """Trains on mixtures of a batch's images, and of their targets alike (MixUp).

    Weights are drawn from Dirichlet(alpha, ...) once for the batch, of two images from
    Beta(alpha, alpha). The first is that of an image itself, the others are those of
    its partners in random orders of the batch, in which an image may meet itself.

    One upload of k = 2 is a linear map of the batch. An inversion that succeeds finds
    the mixtures (``mixup/trained_on``), which it is scored against, too. What an
    attacker does about the map is a strategy: it is given it (``known``), draws one
    like it (``random_draws``), or optimises it (``regress_mixing``). A map that is not
    known is not identified by one upload: x and A x explain it as well for another A.
    That takes a prior, or, in Carlini et al., many mixtures of the same images, which
    one upload has not.

    Args:
      count: k, which shapes depend on; 1 leaves the batch as it is.
      alpha: of the distribution; 0 leaves the batch as it is.

    Raises:
      ValueError: for a count that is no whole number from 1, an alpha that is not
        finite and 0 or more; where a batch has fewer than k examples, inputs are no
        real numbers, and targets are no vectors.

    Reference: Zhang et al., "mixup" (ICLR 2018), for two images.
    """
    count = check_size("count", count)
    if is_concrete(alpha) and not 0 <= alpha < math.inf:
        raise ValueError(f"alpha must be finite and >= 0, got {alpha!r}")

    def draw(rng: Rng, examples: int) -> Mixing:
        rng_weights, rng_partners = jax.random.split(rng)
        itself = jnp.arange(count) == 0
        concentration = jnp.full(count, jnp.where(alpha > 0, alpha, 1.0))
        drawn = jax.random.dirichlet(rng_weights, concentration)
        weights = jnp.where(alpha > 0, drawn, itself)
        weights = jnp.broadcast_to(weights, (examples, count))
        return Mixing(_matrix(weights, _orders(rng_partners, examples, count)))

    return _mixed("mixup", draw, count)


def insta_hide(
    count: float = 4,
    upper: float | Array = 0.65,
    centre: float | Array = 0.5,
) -> Defence:
    """Trains on masked mixtures of a batch's images (InstaHide within a batch).

    Each image draws k weights, ``|N(0, 1)|`` over their sum, anew while the largest is
    above `upper`, and k - 1 partners, each in a random order of the batch. Targets are
    mixed alike. Then each pixel keeps its distance from `centre`, and draws on which
    side it is: ``centre + sign (mixture - centre)``.

    The distance from the centre is what an inversion that finds the encoding can read
    off without any secret. As for `mix_up`, strategies are about weights and signs.

    Args:
      count: k, which shapes depend on; 1 mixes nothing, and masks.
      upper: bound of the largest weight.
      centre: of the mask, in pixel values.

    Raises:
      ValueError: for a count that is no whole number from 1, a centre that is not
        finite, bounds that keep fewer than `KEPT` of the weights that are proposed; and
        see `mix_up`.

    Reference: Huang et al., "InstaHide" (ICML 2020), code Hazelsuko07/InstaHide,
    train_inside.py. Differs from it: the code takes the data's mean off before it
    mixes, and its mask acts on what is left, so its centre is that mean; it mixes the
    whole data set once in an epoch, and here each batch is mixed.
    """
    count = check_size("count", count)
    _check_mask(centre)
    _check_kept(count, upper, count, 0.0)

    def draw(rng: Rng, examples: int) -> Mixing:
        rngs = jax.random.split(rng, 3)
        weights = _draw_weights(rngs[0], (examples, count), upper, count, 0.0)
        matrix = _matrix(weights, _orders(rngs[1], examples, count))
        return Mixing(matrix, _draw_keys(rngs[2], examples))

    return _mixed("instahide", draw, count, centre=centre)


def insta_hide_cross(
    count: float = 6,
    upper: float | Array = 0.65,
    least: float | Array = 0.3,
    centre: float | Array = 0.5,
    *,
    public: str = "photos",
) -> Defence:
    """Trains on masked mixtures with public images (InstaHide across data sets).

    As `insta_hide`, of `PRIVATE` images of the batch and k - `PRIVATE` public ones.
    Weights are drawn anew, too, while those of the private images sum to less than
    `least`. Public images have no label: targets are sums of the private ones by their
    weights, and add up to less than 1.

    Public images are `PUBLIC` of a data set that everybody has, evenly over it, in the
    shape of the private ones. Who studies this data set itself gives victims' images to
    everybody.

    Args:
      count: k, which shapes depend on.
      upper, centre: see `insta_hide`.
      least: sum of the weights of private images.
      public: name of a data set of images (`kljax.data.load`), whose images are part
        of the program.

    Raises:
      ValueError: for a count that is no whole number above `PRIVATE`; and see
        `insta_hide`; where inputs are no images, and what loading a data set raises.

    Reference: see `insta_hide`; train_cross.py with ``--pair``.
    """
    count = check_size("count", count)
    if count <= PRIVATE:
        raise ValueError(
            f"count must be above {PRIVATE}, which are private images, got {count}"
        )
    _check_mask(centre)
    _check_kept(count, upper, PRIVATE, least)

    def draw(rng: Rng, examples: int) -> Mixing:
        rngs = jax.random.split(rng, 4)
        weights = _draw_weights(rngs[0], (examples, count), upper, PRIVATE, least)
        own = _orders(rngs[1], examples, PRIVATE)
        shape = (examples, count - PRIVATE)
        others = examples + jax.random.randint(rngs[2], shape, 0, PUBLIC)
        partners = jnp.concatenate([own, others], axis=1)
        matrix = _matrix(weights, partners, examples + PUBLIC)
        return Mixing(matrix, _draw_keys(rngs[3], examples))

    return _mixed("instahide-cross", draw, PRIVATE, centre=centre, public=public)


def _mixed(
    name: str,
    draw,
    own: int,
    *,
    centre: float | Array = 0.0,
    public: str | None = None,
) -> Defence:
    """Makes the defence whose mixing is `draw`, of `own` images of a batch at least."""

    def draw_private(rng: Rng, private: Private, examples: int) -> Private:
        if examples < own:
            raise ValueError(
                f"{name} mixes {own} images of a batch, and a batch has {examples} "
                f"here: take {own} examples or more, or mix fewer"
            )
        return private._replace(secret=draw(rng, examples))

    def inputs(rng: Rng, context: Context) -> tuple[PyTree, Array]:
        del rng
        mixing = drawn_secret(context, Mixing, f"how {name} mixes")
        targets = context.targets
        if targets.ndim != 2:
            raise ValueError(
                f"{name} mixes targets [B, Kc], such as classes or numbers, and these "
                f"have shape {targets.shape}"
            )
        leaves, tree = jax.tree.flatten(context.inputs)
        mixed = [
            _mix_one(name, mixing, place, leaf, centre, public)
            for place, leaf in enumerate(leaves)
        ]
        weights = mixing.matrix[:, : targets.shape[0]]
        return jax.tree.unflatten(tree, mixed), _weigh(weights, targets)

    return Defence(
        draw_private=draw_private,
        inputs=inputs,
        simulate_inputs=inputs,
        strategies=tuple(MIXING_STRATEGIES.values()),
        hidden_parts=HiddenParts("the draws of the mixture", None),
    )


def _mix_one(
    name: str,
    mixing: Mixing,
    place: int,
    images: Array,
    centre: float | Array,
    public: str | None,
) -> Array:
    """Mixes one of the inputs of a batch."""
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"{name} mixes real numbers, and these inputs are {images.dtype}"
        )
    if public is not None:
        others = load_public(name, public, images.shape[1:])
        images = jnp.concatenate([images, jnp.asarray(others, images.dtype)])
    mixed = _weigh(mixing.matrix, images)
    if mixing.mask is None:
        return mixed
    signs = mixing.mask
    if jnp.issubdtype(signs.dtype, jnp.unsignedinteger):

        def draw(data: Array) -> Array:
            rng = jax.random.fold_in(jax.random.wrap_key_data(data), place)
            return jax.random.rademacher(rng, mixed.shape[1:], mixed.dtype)

        signs = jax.lax.map(draw, signs, batch_size=signs.shape[0])
    return (centre + signs * (mixed - centre)).astype(mixed.dtype)


def _weigh(weights: Array, values: Array) -> Array:
    """Sums values [n, ...] by weights [B, n]."""
    return jnp.tensordot(weights, values, axes=1).astype(values.dtype)


def _matrix(weights: Array, partners: Array, columns: int | None = None) -> Array:
    """Puts weights [B, k] into the columns of partners [B, k]."""
    columns = weights.shape[0] if columns is None else columns
    return jnp.einsum("bk,bkn->bn", weights, jax.nn.one_hot(partners, columns))


def _orders(rng: Rng, examples: int, count: int) -> Array:
    """Draws partners [B, k]: each image itself, then orders of the batch."""
    itself = jnp.arange(examples)
    orders = [
        jax.random.permutation(own, examples) for own in jax.random.split(rng, count)
    ]
    return jnp.stack([itself, *orders[1:]], axis=1)


def _draw_keys(rng: Rng, examples: int) -> Array:
    return jax.random.key_data(jax.random.split(rng, examples))


def _draw_weights(
    rng: Rng,
    shape: tuple[int, int],
    upper: float | Array,
    private: int,
    least: float | Array,
) -> Array:
    """Draws weights [B, k] by exact rejection, each row for itself.

    A row of which none of `PROPOSALS` is kept is NaN: bounds that are data may keep
    nothing. Of those that keep `KEPT` that is one row in 10^8.
    """
    if shape[1] == 1:
        return jnp.ones(shape)

    def is_kept(weights: Array) -> Array:
        bounded = jnp.max(weights, axis=1) <= upper
        return bounded & (jnp.sum(weights[:, :private], axis=1) >= least)

    def propose(carry: tuple[Array, Rng, Array]) -> tuple[Array, Rng, Array]:
        count, rng, weights = carry
        rng, own = jax.random.split(rng)
        sizes = jnp.abs(jax.random.normal(own, shape))
        proposed = sizes / jnp.sum(sizes, axis=1, keepdims=True)
        kept = is_kept(weights)[:, None]
        return count + 1, rng, jnp.where(kept, weights, proposed)

    def goes_on(carry: tuple[Array, Rng, Array]) -> Array:
        return ~jnp.all(is_kept(carry[2])) & (carry[0] < PROPOSALS)

    # Within no bounds.
    first = jnp.full(shape, jnp.nan)
    weights = jax.lax.while_loop(goes_on, propose, (jnp.zeros((), int), rng, first))[2]
    return jnp.where(is_kept(weights)[:, None], weights, jnp.nan)


def _check_kept(
    count: int, upper: float | Array, private: int, least: float | Array
) -> None:
    """Refuses bounds that would be waited for without an end."""
    if count == 1 or not (is_concrete(upper) and is_concrete(least)):
        return
    sizes = np.abs(np.random.default_rng(0).normal(size=(PROPOSALS, count)))
    weights = sizes / sizes.sum(axis=1, keepdims=True)
    kept = (weights.max(axis=1) <= upper) & (weights[:, :private].sum(axis=1) >= least)
    if not np.mean(kept) >= KEPT:
        bounds = f"upper={float(upper):g}"
        bounds += f" and least={float(least):g}" if private < count else ""
        raise ValueError(
            f"of {count} weights fewer than {KEPT:g} of all draws have {bounds}: take "
            f"an upper above {1 / count:.3g}, or a smaller least"
        )


def _check_mask(centre: float | Array) -> None:
    if is_concrete(centre) and not abs(centre) < math.inf:
        raise ValueError(f"centre must be finite, got {centre!r}")
