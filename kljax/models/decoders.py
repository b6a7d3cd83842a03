"""Decoders: trained generators, from latents and labels to images.

Each was trained by ``experiments/train_generator.py`` on a public part of a dataset, as
the second half of a variational autoencoder or, of ``digits-conv``, against a critic: a
`kljax.models.Dense` with a sigmoid, or one of convolutions (`kljax.models.upsampling`).
Its file has the weights in float16, and says which examples that part is.

Reference: Kingma and Welling, "Auto-Encoding Variational Bayes" (ICLR 2014);
Gulrajani et al., "Improved Training of Wasserstein GANs" (NeurIPS 2017).
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from kljax.core.generator import Generator, Origin
from kljax.core.types import Array, Model, Params, Rng
from kljax.models import upsampling
from kljax.models.dense import Dense
from kljax.models.model import from_nnx
from kljax.models.trained_files import list_trained, read_trained

FOLDER = Path(__file__).parent / "weights"
REMEDY = "make it anew: python experiments/train_generator.py"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Account:
    """What a file says of its decoder.

    Attributes:
      dataset: what it was trained on a part of.
      split: of it; None where it has none.
      examples: of the split, the public ones and the others.
      shape: (h, w, c) of one image.
      num_classes: Kc.
      latents: n.
      widths: of the hidden layers, if it is dense.
      channels: of its maps, if it is one of convolutions; () for a dense one.
      seed: of the training.
      steps: of the training.
    """

    dataset: str
    split: str | None
    examples: int
    shape: tuple[int, int, int]
    num_classes: int
    latents: int
    widths: tuple[int, ...]
    seed: int
    steps: int
    channels: tuple[int, ...] = ()

    def __post_init__(self):
        maps = len(upsampling.map_sides(self.shape))
        if self.channels and len(self.channels) != maps:
            raise ValueError(
                f"channels={self.channels}: a decoder of images {self.shape} has "
                f"{maps} maps, give the channels of each"
            )


def make_decoder(account: Account) -> Model:
    """Makes a dense decoder's network, [B, 1, 1, n + Kc] to logits [B, h w c]."""
    inputs = account.latents + account.num_classes
    return from_nnx(
        lambda rngs: Dense(
            int(np.prod(account.shape)),
            image_shape=(1, 1, inputs),
            widths=account.widths,
            activation=jax.nn.gelu,
            rngs=rngs,
        )
    )


def logits_of(model: Model, params: Params, *parts: Array) -> Array:
    """Feeds a dense network with vectors [B, ...], side by side."""
    flat = jnp.concatenate([part.reshape(len(part), -1) for part in parts], axis=-1)
    return model.apply(params, {}, flat[:, None, None], train=False).logits


def init_decoder(account: Account, rng: Rng) -> Params:
    """Draws the weights of a decoder."""
    if not account.channels:
        return make_decoder(account).init(rng)[0]
    numbers = account.latents, account.num_classes, account.channels, account.shape
    return upsampling.init_weights(rng, *numbers)


def decode_logits(
    account: Account, weights: Params, latents: Array, targets: Array
) -> Array:
    """Decodes latents [B, n] to logits of pixels [B, h, w, c]."""
    if account.channels:
        return upsampling.decode_logits(
            account.channels, account.shape, weights, latents, targets
        )
    pixels = logits_of(make_decoder(account), weights, latents, targets)
    return pixels.reshape(-1, *account.shape)


def make_generator(account: Account, weights: Params, public: np.ndarray) -> Generator:
    """Makes the generator of a decoder.

    Args:
      account: what it is.
      weights: of the network.
      public: [examples] bool, those that it was trained on.
    """

    def decode(weights: Params, latents: Array, targets: Array) -> Array:
        return jax.nn.sigmoid(decode_logits(account, weights, latents, targets))

    return Generator(
        decode,
        weights,
        account.latents,
        account.shape,
        account.num_classes,
        Origin(account.dataset, account.split, public),
        _stages_of_maps(account) if account.channels else _dense_stages(account),
    )


def _stages_of_maps(account: Account) -> tuple[Callable[..., Array], ...]:
    """Gives a decoder of convolutions in pieces: one stage per map, and the last."""
    *stages, logits = upsampling.make_stages(account.channels, account.shape)

    def images(weights: Params, features: Array, targets: Array) -> Array:
        return jax.nn.sigmoid(logits(weights, features, targets))

    return (*stages, images)


def _dense_stages(account: Account) -> tuple[Callable[..., Array], ...]:
    """Gives `make_decoder`'s network in pieces: one stage per dense layer."""

    def dense(weights: Params, layer: str, features: Array) -> Array:
        bias = weights[f"{layer}/bias"]
        return features @ weights[f"{layer}/kernel"] + bias[None]

    def hidden(layer: str, weights: Params, features: Array, targets: Array) -> Array:
        del targets
        return jax.nn.gelu(dense(weights, layer, features))

    def images(weights: Params, features: Array, targets: Array) -> Array:
        del targets
        pixels = jax.nn.sigmoid(dense(weights, "fc", features))
        return pixels.reshape(-1, *account.shape)

    layers = [f"layers/{i}" for i in range(len(account.widths))]
    stages = [*(functools.partial(hidden, layer) for layer in layers), images]

    def first(weights: Params, latents: Array, targets: Array) -> Array:
        told = jnp.concatenate([latents, targets], axis=-1)
        return stages[0](weights, told, targets)

    return (first, *stages[1:])


def read_decoder(path: Path) -> Generator:
    """Reads a file of `kljax.models.trained_files.write_trained`; weights are float32.

    Raises:
      FileNotFoundError: if it is not there.
      DamagedFile: if it holds anything else.
    """
    return make_generator(
        *read_trained(path, Account, init_decoder, what="decoder", remedy=REMEDY)
    )


def list_decoders() -> tuple[str, ...]:
    """Names the decoders that the package has."""
    return list_trained(FOLDER)
