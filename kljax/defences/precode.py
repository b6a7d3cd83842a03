"""PRECODE: a variational bottleneck in front of the last layer."""

import math
from collections.abc import Callable

import jax

from kljax.core.types import Array, Path, PyTree, Rng
from kljax.defences.bottleneck import bottleneck_defence, check_size, sample, uniform
from kljax.defences.defence import Defence


def dense_bottleneck(
    layer: Path,
    shape: tuple[int, ...],
    *,
    size: float = 256,
    beta: float | Array = 1e-3,
    behind: Callable[[], tuple[Path, ...]] | None = None,
) -> Defence:
    """Feeds a layer a decoded sample of what it was fed (PRECODE).

    With x flattened, ``mean, raw = x W_e + b_e``, ``z = mean + softplus(raw) noise``,
    and the layer is fed ``z W_d + b_d`` in the shape of x. The loss gains ``beta``
    times the divergence of z's distribution from N(0, 1), in bits. Whoever has no
    noise, as in evaluation, decodes the mean.

    All four weights are public, and gradients of them are sent. Both dense layers have
    biases: of one example their gradients give x and z in closed form, and so the noise
    (strategy ``read_noise``). Layers in front of the bottleneck leak as they did: a
    dense layer with a bias that is fed the image still gives it away
    (`kljax.attacks.dense_layer`).

    Args:
      layer: whose input is replaced; in the paper the last layer.
      shape: of its input, of one example (`kljax.models.value_shape` finds it).
      size: K of the sample.
      beta: weight of the divergence.
      behind: see `bottleneck_defence`.

    Raises:
      ValueError: for a size that is no whole number from 1, a beta below 0, and a shape
        without entries. A layer that the network has not is refused where the network
        is called.

    Reference: Scheliga, Mäder, Seeland, "PRECODE" (WACV 2022, arXiv 2108.04725), code
    dAI-SY-Group/PRECODE; weights start as PyTorch's Linear does. Differs from it: in
    evaluation the code draws a sample, too.
    """
    size, entries = check_size("size", size), math.prod(shape)
    if entries < 1:
        raise ValueError(f"shape must have entries, got {shape!r}")

    def draw_weights(rng: Rng) -> PyTree:
        rngs = jax.random.split(rng, 4)
        return {
            "encoder": {
                "kernel": uniform(rngs[0], (entries, 2 * size), entries),
                "bias": uniform(rngs[1], (2 * size,), entries),
            },
            "decoder": {
                "kernel": uniform(rngs[2], (size, entries), size),
                "bias": uniform(rngs[3], (entries,), size),
            },
        }

    return bottleneck_defence(
        layer,
        (size,),
        draw_weights=draw_weights,
        pass_through=pass_dense,
        beta=beta,
        strategies=(
            "mean",
            "known",
            "random_noise",
            "regress_noise",
            "read_noise",
            "omit",
        ),
        behind=behind,
    )


def pass_dense(
    beta: Array, public: PyTree, noise: Array | None, value: Array
) -> tuple[Array, Array]:
    """Passes a value [B, ...] through the bottleneck; see `dense_bottleneck`."""
    flat = value.reshape(value.shape[0], -1)
    encoder, decoder = public["encoder"], public["decoder"]
    if flat.shape[1] != encoder["kernel"].shape[0]:
        raise ValueError(
            f"a bottleneck for {encoder['kernel'].shape[0]} entries is fed "
            f"{value.shape[1:]}: give its shape"
        )
    encoded = flat @ encoder["kernel"] + encoder["bias"][None]
    size = decoder["kernel"].shape[0]
    latent, added = sample(encoded[:, :size], encoded[:, size:], noise, beta)
    decoded = latent @ decoder["kernel"] + decoder["bias"][None]
    return decoded.reshape(value.shape), added
