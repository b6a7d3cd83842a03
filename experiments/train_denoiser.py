"""Trains a denoiser on the public part of a dataset, for use after any attack.

    python experiments/train_denoiser.py digits
    python experiments/train_denoiser.py fashion_mnist

A flow from noise to images (`kljax.models.flows`), by flow matching: at a time from
U(0, 1) the network is asked for the mean of image minus noise. It sees the public half
that ``train_generator.py`` draws with the same seed, and knows no labels. A tenth of
that half is not trained on, and says how well noise of known strength is taken off, in
one move and in several.

A run goes on from its last checkpoint. The file is written into the package
(``--write`` says where else).
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from training.resumable import SEGMENT, split, train_resumably

from kljax import data
from kljax.core.denoiser import Denoiser, mixed, move_to_clean
from kljax.metrics import ssim
from kljax.models.flows import FOLDER, FlowAccount, init_flow, make_velocity
from kljax.models.trained_files import write_trained


class Setting(NamedTuple):
    """What one denoiser is trained with."""

    shape: tuple[int, int, int]
    channels: tuple[int, ...]
    steps: int
    batch: int
    rate: float = 2e-3


SETTINGS = {
    "digits": Setting((8, 8, 1), (64,), 6_000, 128),
    "fashion_mnist": Setting((28, 28, 1), (16, 48), 3_000, 64),
}
STRENGTHS = (0.05, 0.1, 0.2, 0.4)
MOVES = (1, 4, 16)


def make_loss(account: FlowAccount):
    """Makes ``(params, rng, images) -> []``: mean square of the flow's error."""
    velocity = make_velocity(account)

    def loss(params, rng, images):
        rng_noise, rng_times = jax.random.split(rng)
        noise = jax.random.normal(rng_noise, images.shape)
        times = jax.random.uniform(rng_times, (len(images),))
        flow = velocity(params, mixed(images, noise, times), times)
        return jnp.mean((flow - (2 * images - 1 - noise)) ** 2)

    return loss


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", choices=SETTINGS)
    parser.add_argument("--steps", type=int, help=f"a multiple of {SEGMENT}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="runs/denoiser-DATA")
    parser.add_argument("--write", type=Path, help="file to write; in the package")
    args = parser.parse_args()

    setting = SETTINGS[args.data]
    dataset = data.load(args.data, shape=setting.shape)
    public, ours, held_out = split(len(dataset), args.seed)
    account = FlowAccount(
        dataset=args.data,
        split=None if args.data in data.EMBEDDED else "train",
        examples=len(dataset),
        shape=setting.shape,
        channels=setting.channels,
        seed=args.seed,
        steps=args.steps or setting.steps,
    )
    images, _ = dataset.fetch(np.sort(ours))
    params = train_resumably(
        lambda rng: init_flow(account, rng),
        make_loss(account),
        (images,),
        args.folder or Path("runs") / f"denoiser-{args.data}-{account.steps}",
        steps=account.steps,
        seed=account.seed,
        rate=setting.rate,
        batch=setting.batch,
    )
    path = args.write or FOLDER / f"{args.data}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_trained(path, account, params, public)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")
    truth, _ = dataset.fetch(np.sort(held_out)[:256])
    denoiser = Denoiser(make_velocity(account), params, account.shape)
    noise = np.asarray(jax.random.normal(jax.random.key(1), truth.shape))
    score = jax.jit(jax.vmap(ssim))
    for strength in STRENGTHS:
        noisy = np.clip(truth + strength * noise, 0, 1)
        line = [f"noisy {score(noisy, truth).mean():.3f}"]
        for moves in MOVES:
            clean = move_to_clean(denoiser, noisy, jnp.asarray(strength), moves)
            line.append(f"{moves} moves {score(clean, truth).mean():.3f}")
        print(f"noise {strength}: SSIM {', '.join(line)}", flush=True)


if __name__ == "__main__":
    main()
