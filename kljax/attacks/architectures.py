"""Architectures of encoder-decoders, as numbers that a program may have for data.

An encoder halves an image L times; a decoder doubles it back. Before each of its blocks
the decoder adds up what comes from below, and any of L things from the encoder's way:
the input itself or a map behind an encoder, brought to the decoder's resolution. Which
ones is a matrix of L x L zeros and ones. How maps are doubled, by which kernels, with
which activation, and how many channels are in use are numbers as well (`Architecture`).

Letters: H x W pixels of an image, c channels of an image, C channels of a map, L
scales, K the largest side of a kernel that doubles.

Reference: Chen et al., "NAS-DIP" (ECCV 2020), and the code of GI-NAS (Yu et al., IEEE
TIFS 2025), cswbyu/GI-NAS, cross_skip.py and gen_upsample_layer.py. Differs from the
code: see `Space`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljax.core.types import Rng

MOST_SCALES = 5
SMALLEST = 2  # side of the smallest map, where the number of scales is not said
KERNELS = (1, 3, 5, 7)
SLOPES = (1.0, 0.0, 0.2)  # no activation, ReLU, LeakyReLU
# How a map is doubled, and which convolution follows.
BILINEAR, BICUBIC, NEAREST, SHUFFLED, TRANSPOSED = range(5)
DENSE, STACKED, SEPARABLE, DEPTHWISE, NONE = range(5)
GROUPS = 4  # of channels, that a stacked convolution adds up; of a shuffle: 2 x 2


class Architecture(NamedTuple):
    """One network of a `Space`.

    Attributes:
      skips: [L, L] 0 or 1. Entry (i, j): whether the decoder whose map has 1 / 2^i of
        the image's sides is given what has 1 / 2^j of them: the input for j = 0, the
        output of encoder j otherwise.
      width: [] channels in use, of C.
      doubling: [] how maps are doubled: `BILINEAR`, ..., `TRANSPOSED`.
      convolution: [] which convolution follows: `DENSE`, ..., `NONE`.
      kernel: [] its side, out of `KERNELS`.
      slope: [] of what is negative, before and after it, out of `SLOPES`.
    """

    skips: Any
    width: Any
    doubling: Any
    convolution: Any
    kernel: Any
    slope: Any


class Space(NamedTuple):
    """The networks among which one is looked for.

    Differs from the code of GI-NAS. What doubles there is drawn by its place in a list
    of 300, one after another, here at random. Of those 300 the last sixteenth part
    shuffles after a convolution of 4 C channels, which is left out; a convolution that
    is the transpose of one with stride 1 is as good as that one, and is not listed
    twice; a pair that the code cannot build is not listed either. Transposed
    convolutions with stride 2, which it has and never reaches, are listed. Biases in
    front of a norm, which do nothing, are left out. All maps have 128 channels there,
    and widths are ours.

    Attributes:
      shape: [H, W, c] of an image.
      channels: C.
      scales: L.
      kernel: K; kernels that double have this side, or less.
      narrowest: least channels in use; C for all of them. Each halving of C down to it
        is as likely.
    """

    shape: tuple[int, int, int]
    channels: int = 128
    scales: int = MOST_SCALES
    kernel: int = 3
    narrowest: int = 128

    def draw(self, rng: Rng) -> Architecture:
        """Draws an architecture of traced numbers, each as likely."""
        rng_skips, rng_width, rng_cell = jax.random.split(rng, 3)
        cells, widths = jnp.asarray(self.cells()), jnp.asarray(self.widths())
        square = (self.scales, self.scales)
        skips = jax.random.bernoulli(rng_skips, 0.5, square).astype(jnp.float32)
        width = widths[jax.random.randint(rng_width, (), 0, len(widths))]
        cell = cells[jax.random.randint(rng_cell, (), 0, len(cells))]
        return Architecture(skips, width, *cell)

    def widths(self) -> np.ndarray:
        """Lists how many channels may be in use."""
        widths = [self.channels]
        while widths[-1] % 2 == 0 and widths[-1] // 2 >= self.narrowest:
            widths.append(widths[-1] // 2)
        return np.array(widths, np.float32)

    def cells(self) -> np.ndarray:
        """Lists [n, 4] what may double: doubling, convolution, kernel, slope."""
        fitting = {
            SHUFFLED: (DENSE, STACKED, SEPARABLE),
            TRANSPOSED: (DENSE,),
        }
        every = (DENSE, STACKED, SEPARABLE, DEPTHWISE, NONE)
        rows = [
            (doubling, convolution, kernel, slope)
            for doubling in (BILINEAR, BICUBIC, NEAREST, SHUFFLED, TRANSPOSED)
            for convolution in fitting.get(doubling, every)
            for kernel in (KERNELS if convolution != NONE else (1,))
            if kernel <= self.kernel
            for slope in SLOPES
        ]
        return np.array(rows, np.float32)

    def usual(self) -> Architecture:
        """Gives the architecture that is fixed: skips on one scale, bilinear, plain."""
        fixed = (self.channels, BILINEAR, NONE, 1, 1.0)
        return Architecture(
            np.eye(self.scales, dtype=np.float32), *map(np.float32, fixed)
        )


def check_space(space: Space) -> Space:
    """Checks that a space has networks.

    Raises:
      ValueError: with the number that is wrong, and what would be right.
    """
    height, width, _ = space.shape
    most = _halvings(space.shape)
    if space.scales < 1 or height % 2**space.scales or width % 2**space.scales:
        raise ValueError(
            f"scales={space.scales}: both sides of an image are halved as often, and "
            f"those of {height} x {width} pixels can be halved {most} times"
        )
    if space.channels < 2 * GROUPS or space.channels % GROUPS:
        raise ValueError(
            f"channels={space.channels} must be a multiple of {GROUPS}, and at least "
            f"{2 * GROUPS}: some convolutions add up {GROUPS} groups of them"
        )
    if not 2 * GROUPS <= space.narrowest <= space.channels:
        raise ValueError(
            f"narrowest={space.narrowest} must be from {2 * GROUPS} to channels="
            f"{space.channels}, which is for one width alone"
        )
    if any(width % GROUPS for width in space.widths()):
        raise ValueError(
            f"narrowest={space.narrowest}: halves of channels={space.channels} down to "
            f"it must be multiples of {GROUPS}"
        )
    if space.kernel not in KERNELS:
        raise ValueError(
            f"kernel={space.kernel} must be one of {', '.join(map(str, KERNELS))}"
        )
    return space


def fitting_scales(shape: tuple[int, int, int]) -> int:
    """Counts the scales of an image [H, W, c]: at most 5, the last map at least 2 x 2.

    Raises:
      ValueError: for an image of which no half has whole sides of 2 or more.
    """
    height, width, _ = shape
    scales = min(_halvings(shape), MOST_SCALES)
    while scales and min(height, width) >> scales < SMALLEST:
        scales -= 1
    if not scales:
        raise ValueError(
            f"an encoder halves both sides of an image, down to {SMALLEST} or more: "
            f"those of {height} x {width} pixels cannot be halved"
        )
    return scales


def _halvings(shape: tuple[int, int, int]) -> int:
    """Counts how often both sides can be halved."""
    common = int(np.gcd(shape[0], shape[1]))
    return (common & -common).bit_length() - 1


# --- numbers that may be traced ------------------------------------------------------


def is_fixed(value: Any) -> bool:
    """Tells whether a number is part of the program."""
    return isinstance(value, (int, float, np.ndarray, np.generic))


def where(condition: Any, yes: Any, no: Any) -> Any:
    """Takes one of two numbers."""
    if is_fixed(condition):
        return yes if condition else no
    return jnp.where(condition, yes, no)


def choose_number(index: Any, special: dict[int, Any], usual: Any) -> Any:
    """Takes the number that is for `index`, or the usual one."""
    return choose(
        index, {n: (lambda v=v: v) for n, v in special.items()}, lambda: usual
    )


def choose(
    index: Any, special: dict[int, Callable[[], Any]], usual: Callable[[], Any]
) -> Any:
    """Makes what is for `index`; if that is traced, everything, and chooses."""
    if is_fixed(index):
        return special.get(int(index), usual)()
    found = usual()
    for number, make in special.items():
        found = jnp.where(index == number, make(), found)
    return found


def fixed(architecture: Architecture) -> Architecture:
    """Makes the numbers of an architecture part of the program."""
    return Architecture(*(np.asarray(x, np.float32) for x in architecture))


def describe(architecture: Architecture) -> str:
    """Writes an architecture in one line."""
    one = fixed(architecture)
    doubling = ("bilinear", "bicubic", "nearest", "shuffled", "transposed")
    convolution = ("dense", "stacked", "separable", "depthwise", "none")
    rows: Sequence[str] = ["".join(str(int(x)) for x in row) for row in one.skips]
    return (
        f"skips {'/'.join(rows)}, width {int(one.width)}, "
        f"{doubling[int(one.doubling)]}, {convolution[int(one.convolution)]} "
        f"{int(one.kernel)}x{int(one.kernel)}, slope {float(one.slope):g}"
    )
