"""Trains a generator on a public part of a dataset, for attacks that have one.

    python experiments/train_generator.py digits
    python experiments/train_generator.py fashion_mnist
    python experiments/train_generator.py digits-conv
    python experiments/train_generator.py fashion_mnist-conv
    python experiments/train_generator.py faces

A variational autoencoder that is told the label; its decoder is the generator, dense
or of convolutions (`kljax.models.upsampling`). That of ``digits-conv`` is trained
against a critic instead (``training/wasserstein.py``). Half of the examples, drawn by
the seed, are public: the rest of the split are the victims of studies with this
generator, and are never looked at here. A tenth of the public examples is not trained
on, and says how well the rest was learned.

A run of an autoencoder goes on from its last checkpoint, and then ends where it would
have ended. The decoder is written into the package (``--write`` says where else). The
ones there were made by the commands above, each in at most twenty minutes of a busy
machine. How good they are: ``generators.md``.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from training.resumable import SEGMENT, split, train_resumably
from training.wasserstein import train_adversarially

from kljax import data
from kljax.models import Dense, from_nnx
from kljax.models.decoders import (
    FOLDER,
    Account,
    decode_logits,
    init_decoder,
    logits_of,
)
from kljax.models.trained_files import write_trained


class Setting(NamedTuple):
    """What one generator is trained with.

    Attributes:
      data: dataset.
      shape: of its images.
      latents: n.
      widths: of a dense decoder's hidden layers; those of its encoder are the reverse.
      channels: of the maps of a decoder of convolutions; its encoder has `ENCODER`.
      steps: of the training.
      rate: first learning rate; it falls by a cosine.
      batch: examples in a step.
      loss: vae or wgan-gp (`training.wasserstein`), whichever made better images.
    """

    data: str
    shape: tuple[int, int, int]
    latents: int
    steps: int
    widths: tuple[int, ...] = ()
    channels: tuple[int, ...] = ()
    rate: float = 1e-3
    batch: int = 128
    loss: str = "vae"


SETTINGS = {
    "digits": Setting("digits", (8, 8, 1), 16, 6_000, widths=(128, 128)),
    "fashion_mnist": Setting(
        "fashion_mnist", (28, 28, 1), 32, 20_000, widths=(256, 256)
    ),
    "digits-conv": Setting(
        "digits",
        (8, 8, 1),
        16,
        5_000,
        channels=(48, 24),
        rate=2e-3,
        batch=64,
        loss="wgan-gp",
    ),
    "fashion_mnist-conv": Setting(
        "fashion_mnist",
        (28, 28, 1),
        32,
        3_000,
        channels=(48, 24, 8),
        rate=2e-3,
        batch=64,
    ),
    "faces": Setting(
        "faces", (25, 25, 1), 16, 1_500, channels=(48, 24, 8), rate=2e-3, batch=32
    ),
}
ENCODER = (512, 256)  # hidden widths, before a decoder of convolutions


def make_encoder(account: Account):
    """Makes the network from images and labels to means and log variances."""
    inputs = int(np.prod(account.shape)) + account.num_classes
    return from_nnx(
        lambda rngs: Dense(
            2 * account.latents,
            image_shape=(1, 1, inputs),
            widths=account.widths[::-1] or ENCODER,
            activation=jax.nn.gelu,
            rngs=rngs,
        )
    )


def make_bound(account: Account):
    """Makes ``(params, rng, images, targets) -> []``: minus the evidence bound."""
    encoder = make_encoder(account)

    def bound(params, rng, images, targets):
        found = logits_of(encoder, params["encoder"], images, targets)
        mean, log_variance = jnp.split(found, 2, axis=-1)
        noise = jax.random.normal(rng, mean.shape)
        latents = mean + jnp.exp(log_variance / 2) * noise
        logits = decode_logits(account, params["decoder"], latents, targets)
        entropy = optax.sigmoid_binary_cross_entropy(logits, images)
        distance = jnp.sum(entropy, axis=(1, 2, 3))
        divergence = 0.5 * jnp.sum(
            jnp.exp(log_variance) + mean**2 - 1 - log_variance, -1
        )
        return jnp.mean(distance + divergence)

    def init(rng):
        rng_encoder, rng_decoder = jax.random.split(rng)
        return {
            "encoder": encoder.init(rng_encoder)[0],
            "decoder": init_decoder(account, rng_decoder),
        }

    return init, bound


def train(
    account: Account,
    images,
    labels,
    folder: Path,
    *,
    rate: float = 1e-3,
    batch: int = 128,
    until: int | None = None,
):
    """Trains from the last checkpoint in `folder`, or from the start.

    Args:
      account: of the decoder.
      images: [n, h, w, c], to train on.
      labels: [n].
      folder: of the checkpoints.
      rate: first learning rate.
      batch: examples in a step.
      until: a step to end at before the last, as an interruption does.

    Returns:
      The parameters of encoder and decoder.
    """
    init, bound = make_bound(account)
    targets = np.eye(account.num_classes, dtype=np.float32)[np.asarray(labels)]
    return train_resumably(
        init,
        bound,
        (images, targets),
        folder,
        steps=account.steps,
        seed=account.seed,
        rate=rate,
        batch=batch,
        until=until,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=SETTINGS)
    parser.add_argument("--steps", type=int, help=f"a multiple of {SEGMENT}")
    parser.add_argument(
        "--loss",
        choices=("vae", "wgan-gp"),
        help="instead of the generator's own",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, help="of checkpoints; runs/generator-NAME"
    )
    parser.add_argument("--write", type=Path, help="file to write; in the package")
    args = parser.parse_args()

    setting = SETTINGS[args.name]
    dataset = data.load(setting.data, shape=setting.shape)
    public, ours, held_out = split(len(dataset), args.seed)
    account = Account(
        dataset=setting.data,
        split=None if setting.data in data.EMBEDDED else "train",
        examples=len(dataset),
        shape=setting.shape,
        num_classes=dataset.num_classes,
        latents=setting.latents,
        widths=setting.widths,
        channels=setting.channels,
        seed=args.seed,
        steps=args.steps or setting.steps,
    )
    path = args.write or FOLDER / f"{args.name}.npz"
    if (args.loss or setting.loss) == "wgan-gp":
        of_training = dataset.fetch(np.sort(ours))
        weights = train_adversarially(account, *of_training, batch=setting.batch)
        write_trained(path, account, weights, public)
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")
        return
    folder = args.folder or Path("runs") / f"generator-{args.name}-{account.steps}"
    speed = {"rate": setting.rate, "batch": setting.batch}
    params = train(account, *dataset.fetch(np.sort(ours)), folder, **speed)
    images, labels = dataset.fetch(np.sort(held_out))
    targets = jax.nn.one_hot(labels, account.num_classes)
    _, bound = make_bound(account)
    value = jax.jit(bound)(params, jax.random.key(0), images, targets)
    write_trained(path, account, params["decoder"], public)
    print(
        f"{path}: {path.stat().st_size / 1e3:.0f} kB, {public.sum()} of {len(dataset)} "
        f"examples public; {value:.2f} nats on {len(held_out)} of them held out"
    )


if __name__ == "__main__":
    main()
