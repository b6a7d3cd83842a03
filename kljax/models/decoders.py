"""Decoders: trained generators, from latents and labels to images.

Each is a `kljax.models.Dense` with a sigmoid, the second half of a variational
autoencoder (Kingma and Welling, ICLR 2014) that ``experiments/train_generator.py``
trains on a public part of a dataset. Its file has the weights in float16, and says
which examples that part is.
"""

import dataclasses
import errno
import functools
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from kljax.core.files import DamagedFile, brief, converted, read_arrays, write_bytes
from kljax.core.generator import Generator, Origin
from kljax.core.types import Array, Model, Params, Rng
from kljax.models import upsampling
from kljax.models.dense import Dense
from kljax.models.model import from_nnx

FOLDER = Path(__file__).parent / "weights"
ACCOUNT = "account"  # what a file says of itself, beside the weights
PUBLIC = "public"
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


def make_decoder(account: Account) -> Model:
    """Makes the network, from [B, 1, 1, n + Kc] to logits of pixels [B, h w c]."""
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
    """Draws the weights of a decoder.

    Raises:
      ValueError: for another number of channels than there are maps.
    """
    if not account.channels:
        return make_decoder(account).init(rng)[0]
    maps = len(upsampling.map_sides(account.shape))
    if len(account.channels) != maps:
        raise ValueError(
            f"channels={account.channels}: a decoder of images {account.shape} has "
            f"{maps} maps, give the channels of each"
        )
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
        _dense_stages(account),
    )


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


def write_decoder(
    path: Path, account: Account, weights: Params, public: np.ndarray
) -> None:
    """Writes a decoder's file, whole or not at all; weights become float16."""
    halves = {name: np.asarray(leaf, np.float16) for name, leaf in weights.items()}
    text = json.dumps(dataclasses.asdict(account))
    content = io.BytesIO()
    np.savez_compressed(
        content, **halves, **{ACCOUNT: np.array(text), PUBLIC: np.packbits(public)}
    )
    write_bytes(path, content.getvalue())


def read_decoder(path: Path) -> Generator:
    """Reads what `write_decoder` wrote; weights are float32.

    Raises:
      FileNotFoundError: if it is not there.
      DamagedFile: if it holds anything else.
    """
    held = read_arrays(path, remedy=REMEDY)
    if held is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    try:
        account = json.loads(str(held.pop(ACCOUNT)))
        bits = held.pop(PUBLIC)
    except (ValueError, KeyError) as error:
        what = f"it is no decoder ({brief(error)})"
        raise DamagedFile(path, what, remedy=REMEDY) from None
    account = converted(account, Account, path, remedy=REMEDY)
    wanted = jax.eval_shape(
        functools.partial(init_decoder, account), jax.random.key(0)
    )
    for name in sorted(wanted.keys() | held.keys()):
        shapes = [
            np.shape(tree[name]) if name in tree else None for tree in (held, wanted)
        ]
        if shapes[0] != shapes[1]:
            what = f"weights of shape {shapes[0]}, expected {shapes[1]}"
            raise DamagedFile(path, what, remedy=REMEDY, place=name)
    if bits.dtype != np.uint8 or bits.shape != (-(-account.examples // 8),):
        what = f"no bit for each of {account.examples} examples"
        raise DamagedFile(path, what, remedy=REMEDY, place=PUBLIC)
    weights = {name: leaf.astype(np.float32) for name, leaf in held.items()}
    public = np.unpackbits(bits, count=account.examples).astype(bool)
    return make_generator(account, weights, public)


def list_decoders() -> tuple[str, ...]:
    """Names the decoders that the package has."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.npz")))
