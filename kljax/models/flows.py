"""Flows: trained denoisers, small networks of convolutions on half-size maps.

Each is trained by ``experiments/train_denoiser.py`` on a public part of a dataset, by
flow matching. Its file has the weights in float16, and says which examples that part
is.

The image is folded to 2x2 pixels a position, and again for each further number of
channels; on the way back each map is joined with its like (Ronneberger et al., "U-Net",
MICCAI 2015).

Reference: Lipman et al., "Flow Matching for Generative Modeling" (ICLR 2023); Liu,
Gong, Liu, "Flow Straight and Fast" (ICLR 2023).
"""

import dataclasses
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp

from kljax.core.denoiser import Denoiser
from kljax.core.generator import Origin
from kljax.core.types import Array, Params, Rng
from kljax.models.trained_files import list_trained, read_trained
from kljax.models.upsampling import KERNEL, convolve, folded, laid_out

FOLDER = Path(__file__).parent / "weights" / "denoisers"
REMEDY = "make it anew: python experiments/train_denoiser.py"
FREQUENCIES = 4  # of the time, told by its sines and cosines


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowAccount:
    """What a file says of its flow.

    Attributes:
      dataset: what it was trained on a part of.
      split: of it; None where it has none.
      examples: of the split, the public ones and the others.
      shape: (h, w, c) of one image.
      channels: of its maps, from the half-size one on.
      seed: of the training.
      steps: of the training.
    """

    dataset: str
    split: str | None
    examples: int
    shape: tuple[int, int, int]
    channels: tuple[int, ...]
    seed: int
    steps: int

    def __post_init__(self):
        if not self.channels or min((*self.channels, *self.shape)) < 1:
            raise ValueError(
                f"channels={self.channels} and shape={self.shape}: give at least one "
                "number of channels, and all from 1 on"
            )


def kernels_of(account: FlowAccount) -> dict[str, tuple[int, int]]:
    """Lists (channels in, channels out) of each convolution, in order."""
    channels, colours = account.channels, account.shape[-1]
    wanted = {"down/0": (4 * colours, channels[0])}
    for index, (before, after) in enumerate(itertools.pairwise(channels), 1):
        wanted[f"down/{index}"] = (4 * before, after)
    wanted |= {f"middle/{index}": (channels[-1],) * 2 for index in range(2)}
    for index in reversed(range(1, len(channels))):
        wanted[f"widen/{index}"] = (channels[index], 4 * channels[index - 1])
        wanted[f"up/{index}"] = (2 * channels[index - 1], channels[index - 1])
    return wanted | {"last": (channels[0], 4 * colours)}


def init_flow(account: FlowAccount, rng: Rng) -> Params:
    """Draws weights: N(0, 1/fan_in) for kernels, 0 for biases and the last kernel."""
    weights = {}
    for index, (name, (before, after)) in enumerate(kernels_of(account).items()):
        shape = (KERNEL, KERNEL, before, after)
        scale = 0.0 if name == "last" else (KERNEL**2 * before) ** -0.5
        drawn = jax.random.normal(jax.random.fold_in(rng, index), shape)
        weights[f"{name}/kernel"] = scale * drawn
        weights[f"{name}/bias"] = jnp.zeros((2 * FREQUENCIES + 1, after))
    return weights


def told_time(times: Array) -> Array:
    """Gives 1, and sines and cosines of pi k t, [B, 2 FREQUENCIES + 1]."""
    angles = jnp.pi * times[:, None] * jnp.arange(1, FREQUENCIES + 1)[None]
    parts = jnp.ones((len(times), 1)), jnp.sin(angles), jnp.cos(angles)
    return jnp.concatenate(parts, axis=-1)


def make_velocity(account: FlowAccount):
    """Makes ``(weights, states [B, h, w, c], times [B]) -> [B, h, w, c]``."""
    levels = len(account.channels)

    def velocity(weights: Params, states: Array, times: Array) -> Array:
        told = told_time(times)

        def layer(name: str, x: Array) -> Array:
            bias = told @ weights[f"{name}/bias"]
            return convolve(x, weights[f"{name}/kernel"]) + bias[:, None, None]

        x, maps = states, []
        for index in range(levels):
            x = jax.nn.gelu(layer(f"down/{index}", folded(x)))
            maps.append(x)
        for index in range(2):
            x = x + jax.nn.gelu(layer(f"middle/{index}", x))
        for index in reversed(range(1, levels)):
            like = maps[index - 1]
            x = laid_out(layer(f"widen/{index}", x), like.shape[1:3])
            x = jnp.concatenate([jax.nn.gelu(x), like], axis=-1)
            x = jax.nn.gelu(layer(f"up/{index}", x))
        return laid_out(layer("last", x), states.shape[1:3])

    return velocity


def read_flow(path: Path) -> Denoiser:
    """Reads a file of `kljax.models.trained_files.write_trained`; weights are float32.

    Raises:
      FileNotFoundError: if it is not there.
      DamagedFile: if it holds anything else.
    """
    account, weights, public = read_trained(
        path, FlowAccount, init_flow, what="denoiser", remedy=REMEDY
    )
    origin = Origin(account.dataset, account.split, public)
    return Denoiser(make_velocity(account), weights, account.shape, origin)


def list_flows() -> tuple[str, ...]:
    """Names the denoisers that the package has."""
    return list_trained(FOLDER)
