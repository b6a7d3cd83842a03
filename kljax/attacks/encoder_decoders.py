"""Encoder-decoders whose architecture is data: one program runs every one of a space.

Written as plain functions of weights: whoever looks for an image among those that an
untrained network makes has the weights for unknowns, of each candidate its own. The
numbers of an architecture (`kljax.attacks.architectures`) may be traced; what they
switch off is then computed, and multiplied by zero. Of an architecture of NumPy numbers
it is not built.

Letters: B examples, H x W pixels of an image, c channels of an image, C channels of a
map, L scales, K the largest side of a kernel that doubles.

Reference: Ulyanov, Vedaldi, Lempitsky, "Deep Image Prior" (CVPR 2018) for the family;
GI-NAS (Yu et al., IEEE TIFS 2025), its code, for the blocks.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kljax.attacks.architectures import (
    BICUBIC,
    BILINEAR,
    DENSE,
    DEPTHWISE,
    GROUPS,
    KERNELS,
    NEAREST,
    NONE,
    SEPARABLE,
    SHUFFLED,
    STACKED,
    TRANSPOSED,
    Architecture,
    Space,
    choose,
    choose_number,
    is_fixed,
    where,
)
from kljax.core.types import Array, PyTree, Rng
from kljax.models.convolution import CHANNELS_LAST, fastest_convolution

EPSILON = 1e-5  # PyTorch's, of the batch norms
SLOPE = 0.2  # of what is negative, everywhere but in what doubles
# Of a float32: its 23 last bits are the mantissa, and 1 has this exponent.
MANTISSA_STARTS, BITS_OF_ONE = 9, 0x3F800000


# --- weights -------------------------------------------------------------------------


def draw_weights(rng: Rng, space: Space, architecture: Architecture) -> Array:
    """Draws the weights [n] of a network as PyTorch does by default.

    All are from U(-1/sqrt(m), 1/sqrt(m)), m numbers that a kernel adds up for one of
    its results: with fewer channels in use, fewer. Norms begin at scale 1 and bias 0.
    What a fixed architecture does not use has none.

    They are one vector, as each of what moves a search, compares and keeps it would be
    compiled for every array apart; `name_weights` gives them their places.
    """
    own = _Weights(space, architecture)
    flat = draw_in_memory(rng, own.kernels)
    parts, first = [], 0
    for count, size in own.runs():
        limit = jnp.asarray(count, jnp.float32) ** -0.5
        parts.append(limit * flat[first : first + size])
        first += size
    return jnp.concatenate([*parts, jnp.ones(own.norms), jnp.zeros(own.norms)])


def name_weights(space: Space, architecture: Architecture, weights: Array) -> PyTree:
    """Gives the arrays that the weights [n] of `draw_weights` are, by their places.

    What a fixed architecture does not use is None.
    """
    return _Weights(space, architecture).fill(weights)


def count_weights(space: Space, architecture: Architecture) -> int:
    """Counts the numbers of `draw_weights`."""
    return _Weights(space, architecture).size


class _Part:
    """An array among the weights: its shape, and the numbers that it adds up."""

    def __init__(self, shape: tuple[int, ...], count: Any = None):
        self.shape, self.count, self.size = shape, count, math.prod(shape)


class _Weights:
    """Where the weights of a network are in one vector.

    First all kernels, then the scales of all norms, then their biases.
    """

    def __init__(self, space: Space, architecture: Architecture):
        self.asked: dict[str, list[_Part]] = {"kernel": [], "scale": [], "bias": []}
        one = (space.channels,)

        def ask(kind: str, *array: Any) -> _Part:
            self.asked[kind].append(_Part(*array))
            return self.asked[kind][-1]

        self.tree = _parts(
            space,
            architecture,
            functools.partial(ask, "kernel"),
            lambda: {name: ask(name, one) for name in ("scale", "bias")},
        )
        self.kernels, self.norms, _ = (
            sum(array.size for array in arrays) for arrays in self.asked.values()
        )
        self.size = self.kernels + 2 * self.norms

    def runs(self) -> list[tuple[Any, int]]:
        """Lists runs of kernels' numbers that have one m: (m, how many numbers)."""
        runs = itertools.groupby(self.asked["kernel"], lambda array: id(array.count))
        lists = [list(run) for _, run in runs]
        return [(run[0].count, sum(array.size for array in run)) for run in lists]

    def fill(self, weights: Array) -> PyTree:
        arrays = [array for arrays in self.asked.values() for array in arrays]
        # Not slices: the derivative of a split is one array that is put together.
        parts = jax.lax.split(weights, [array.size for array in arrays])
        found = {
            id(array): part.reshape(array.shape)
            for array, part in zip(arrays, parts, strict=True)
        }
        return jax.tree.map(lambda array: found[id(array)], self.tree)


def _parts(
    space: Space, architecture: Architecture, kernel: Callable, norm: Callable
) -> PyTree:
    """Lays out the weights of a network.

    Args:
      space: of the network.
      architecture: parts that it does not use, being fixed, are None.
      kernel: ``(shape, m) -> kernel``; m follows with the architecture, and is the same
        object where it is the same.
      norm: ``() -> scale and bias``.
    """
    scales, channels, colours = space.scales, space.channels, space.shape[-1]
    used, width = _Used(architecture, scales), architecture.width

    @functools.cache
    def summed(side: int, first: bool) -> Any:
        return side**2 * (colours if first else width)

    def block(side: int, first: bool = False) -> dict:
        before = colours if first else channels
        shape = (side, side, before, channels)
        return {"kernel": kernel(shape, summed(side, first)), "norm": norm()}

    one, side = architecture, space.kernel
    fed = choose_number(one.doubling, {SHUFFLED: width / GROUPS}, width)
    added = jnp.maximum(
        choose_number(one.convolution, {STACKED: fed / GROUPS}, fed), 1.0
    )
    within = one.kernel**2
    in_cell = {
        "dense": ((side, side, channels, channels), within * added),
        "depth": ((side, side, channels), within),
        "point": ((channels, channels), fed),
    }

    def cell() -> dict:
        return {n: kernel(*part) for n, part in in_cell.items() if used.in_cell(n)}

    return {
        "encoder": [
            {"first": block(3, k == 0), "second": block(3)} for k in range(scales)
        ],
        "same": [block(1, k == 0) if used.same(k) else None for k in range(scales)],
        "down": [block(3, k == 0) if used.down(k) else None for k in range(scales - 1)],
        "rise": [cell() if used.rise(k) else None for k in range(scales - 1)],
        "up": [cell() for _ in range(scales)],
        "decoder": [
            {"norm": norm(), "first": block(3), "second": block(3), "third": block(1)}
            for _ in range(scales)
        ],
        "output": {
            "kernel": kernel((1, 1, channels, colours), width),
            "bias": kernel((colours,), width),
        },
    }


class _Used:
    """Tells what of a network an architecture uses; of a traced one, everything."""

    def __init__(self, architecture: Architecture, scales: int):
        fixed = isinstance(architecture.skips, np.ndarray)
        self.skips = architecture.skips if fixed else np.ones((scales, scales))
        self.convolution = architecture.convolution

    def pairs(self) -> list[tuple[int, int]]:
        return [(int(i), int(j)) for i, j in np.argwhere(self.skips != 0)]

    def same(self, level: int) -> bool:
        return (level, level) in self.pairs()

    def down(self, level: int) -> bool:
        """Whether a map goes from `level` to the next coarser one."""
        return any(j <= level < i for i, j in self.pairs())

    def rise(self, level: int) -> bool:
        """Whether a map goes from the next coarser one to `level`."""
        return any(i <= level < j for i, j in self.pairs())

    def in_cell(self, name: str) -> bool:
        if not is_fixed(self.convolution):
            return True
        users = {
            "dense": (DENSE, STACKED),
            "depth": (SEPARABLE, DEPTHWISE),
            "point": (SEPARABLE,),
        }
        return int(self.convolution) in users[name]


def draw_in_memory(rng: Rng, count: int) -> Array:
    """Draws [count] numbers of U(-1, 1), the very ones of `jax.random.uniform`.

    Made of random bits by a loop of two turns. What goes into a loop and comes out of
    it is kept in memory; without one XLA makes each number anew inside of whatever
    reads it, a program for every kernel: on a CPU these took most of the time to
    compile a search, and five times as long to run.
    """
    half = -(-count // 2)
    bits = jax.random.bits(rng, (2 * half,), jnp.uint32)

    def between(bits: Array) -> Array:
        # The mantissa of a number in [1, 2).
        bits = bits >> MANTISSA_STARTS | jnp.uint32(BITS_OF_ONE)
        unit = jax.lax.bitcast_convert_type(bits, jnp.float32) - 1.0
        return jnp.maximum(2.0 * unit - 1.0, -1.0)

    return jax.lax.map(between, bits.reshape(2, half)).reshape(-1)[:count]


# --- the network ---------------------------------------------------------------------


def generate(
    space: Space, architecture: Architecture, weights: Array, noise: Array
) -> Array:
    """Maps noise [B, H, W, c] to images [B, H, W, c] in (0, 1).

    Args:
      space: of the network.
      architecture: traced or fixed.
      weights: [n] of `draw_weights`.
      noise: norms are in train mode: they see the B examples.
    """
    named = name_weights(space, architecture, weights)
    return run_network(space, architecture, named, noise)


def run_network(
    space: Space, architecture: Architecture, weights: PyTree, noise: Array
) -> Array:
    """Does what `generate` does with weights of `name_weights`."""
    scales = space.scales
    used = _Used(architecture, scales)
    skips, on = architecture.skips, _channels_on(space, architecture)
    sources = [noise]  # at 1 / 2^j of the sides
    for encoder in weights["encoder"]:
        x = _block(encoder["first"], sources[-1], on, stride=2)
        sources.append(_block(encoder["second"], x, on))
    below = sources.pop()
    lowered = _lowered(weights, used, sources, on)
    risen = _risen(space, architecture, weights, used, sources, on)
    for i in reversed(range(scales)):
        x = _doubler(space, architecture, weights["up"][i], on)(below)
        for j, source in enumerate(sources):
            if (i, j) not in used.pairs():
                continue
            if i == j:
                # Cheap: a branch would take longer to compile than it saves.
                brought = _block(weights["same"][i], source, on)
            else:
                brought = lowered[i, j] if j < i else risen[i, j]
            x = x + skips[i, j] * brought
        decoder = weights["decoder"][i]
        x = _norm(decoder["norm"], x, on)
        for part in ("first", "second", "third"):
            x = _block(decoder[part], x, on)
        below = x
    output = weights["output"]
    y = _convolve(below, output["kernel"])
    return jax.nn.sigmoid(y + _wide(output["bias"], y))


def _lowered(weights, used, sources, on) -> dict[tuple[int, int], Array]:
    """Brings what is finer to a coarser decoder i, from source j."""
    found: dict[tuple[int, int], Array] = {}
    for i in range(1, len(sources)):
        wanted = [
            j
            for j in range(i)
            if any((k, j) in used.pairs() for k in range(i, len(sources)))
        ]
        if not wanted:
            continue
        before = [sources[j] if j == i - 1 else found[i - 1, j] for j in wanted]
        # [J, B, h, w, C]: each has statistics of its own.
        parts = _block(weights["down"][i - 1], jnp.stack(before), on, stride=2)
        found |= {(i, j): part for j, part in zip(wanted, parts, strict=True)}
    return found


def _risen(
    space, architecture, weights, used, sources, on
) -> dict[tuple[int, int], Array]:
    """Brings what is coarser to a finer decoder i, from source j."""
    found: dict[tuple[int, int], Array] = {}
    for i in reversed(range(len(sources) - 1)):
        wanted = [
            j
            for j in range(i + 1, len(sources))
            if any((k, j) in used.pairs() for k in range(i + 1))
        ]
        if not wanted:
            continue
        before = [sources[j] if j == i + 1 else found[i + 1, j] for j in wanted]
        double = _doubler(space, architecture, weights["rise"][i], on)
        needed = [architecture.skips[: i + 1, j].max() for j in wanted]
        parts = _where_used(double, before, needed)
        found |= {(i, j): part for j, part in zip(wanted, parts, strict=True)}
    return found


def _where_used(
    make: Callable[[Array], Array], sources: list[Array], used: list[Any]
) -> list[Array]:
    """Makes of each source [B, h, w, C] what is used of it, and zeros elsewhere.

    What is decided by data is decided at run time, and takes no time where it is not
    used; side by side with others (`jax.vmap`) it is computed for all.

    Args:
      make: is compiled once; it computes each example alone if there are several.
      sources: of equal shapes.
      used: [] of each, 0 or 1; if it is fixed, 1.
    """
    if is_fixed(used[0]):
        if len(sources) == 1:
            return [make(sources[0])]
        return jnp.split(make(jnp.concatenate(sources)), len(sources))
    nothing = jax.eval_shape(make, sources[0])

    def one(pair: tuple[Array, Array]) -> Array:
        source, used = pair
        zeros = jnp.zeros(nothing.shape, nothing.dtype)
        return jax.lax.cond(used > 0, make, lambda source: zeros, source)

    if len(sources) == 1:
        return [one((sources[0], used[0]))]
    return list(jax.lax.map(one, (jnp.stack(sources), jnp.stack(used))))


def _doubler(
    space: Space, one: Architecture, cell: dict, on: Array
) -> Callable[[Array], Array]:
    """Makes what doubles maps [B, h, w, C], convolves, and activates."""
    transposed = one.doubling == TRANSPOSED  # activated afterwards alone
    plain = is_fixed(one.convolution) and int(one.convolution) == NONE
    kernel = None if plain else _cell_kernel(space, one, cell)

    def double(x: Array) -> Array:
        x = choose(
            one.doubling,
            {SHUFFLED: lambda: _shuffle(x)},
            lambda: _interpolate(one.doubling, x),
        )
        x = _activate(x, where(transposed, 1.0, one.slope))
        if plain:
            return x * _wide(on, x)
        x = _convolve_within(x, kernel, one.kernel)
        slope = where(one.convolution == NONE, 1.0, one.slope)
        return _activate(x, slope) * _wide(on, x)

    return double


def _convolve_within(x: Array, kernel: Array, side: Any) -> Array:
    """Convolves by the middle of a kernel [K, K, C, C], and leaves its zeros out.

    Side by side with others (`jax.vmap`) all sides are computed, for K = 3 a ninth more
    than the largest alone, for K = 7 seven tenths more.

    Args:
      x: maps.
      kernel: zero beyond `side`.
      side: [] out of `KERNELS`, K at most.
    """
    largest = kernel.shape[0]

    def convolve(side: int, x: Array) -> Array:
        edge = (largest - side) // 2
        middle = slice(edge, largest - edge)
        return _convolve(x, kernel[middle, middle])

    if is_fixed(side):
        return convolve(int(side), x)
    sides = [n for n in KERNELS if n <= largest]
    branches = [functools.partial(convolve, n) for n in sides]
    if len(sides) == 1:
        return branches[0](x)
    index = (side.astype(jnp.int32) - sides[0]) // 2
    return jax.lax.switch(index, branches, x)


def _interpolate(doubling: Any, x: Array) -> Array:
    """Doubles both sides of maps [B, h, w, C] by a matrix for each."""
    down, across = (
        jnp.asarray(_choose_matrix(doubling, side)) for side in x.shape[1:3]
    )
    x = jnp.einsum("Hh,bhwc->bHwc", down, x)
    return jnp.einsum("Ww,bhwc->bhWc", across, x)


def _choose_matrix(doubling: Any, side: int) -> Any:
    matrices = np.stack([doubling_matrix(n, side) for n in range(5)])
    return (
        matrices[int(doubling)]
        if is_fixed(doubling)
        else jnp.asarray(matrices)[doubling.astype(jnp.int32)]
    )


def doubling_matrix(doubling: int, side: int) -> np.ndarray:
    """Gives the matrix [2 side, side] that doubles one axis, as PyTorch does.

    Corners are not aligned; beyond an end there is what is at the end. `TRANSPOSED`
    puts zeros between, and a convolution behind it does the rest. For `SHUFFLED`,
    which is not done axis by axis, it is zero.
    """
    matrix = np.zeros((2 * side, side), np.float32)
    for out in range(2 * side):
        place = (out + 0.5) / 2 - 0.5
        base = int(np.floor(place))
        share = place - base
        taps = {
            BILINEAR: {0: 1 - share, 1: share},
            BICUBIC: {n: _cubic(share - n) for n in (-1, 0, 1, 2)},
            NEAREST: {out // 2 - base: 1.0},
            TRANSPOSED: {out // 2 - base: 1.0 - out % 2},
            SHUFFLED: {},
        }[doubling]
        for offset, weight in taps.items():
            matrix[out, np.clip(base + offset, 0, side - 1)] += weight
    return matrix


def _cubic(distance: float, a: float = -0.75) -> float:
    """Weighs a neighbour at a distance, as PyTorch's bicubic interpolation does."""
    x = abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def _shuffle(x: Array) -> Array:
    """Makes squares of 2 x 2 pixels of four channels each; the last channels are 0."""
    count, height, width, channels = x.shape
    x = x.reshape(count, height, width, channels // GROUPS, 2, 2)
    x = x.transpose(0, 1, 4, 2, 5, 3).reshape(count, 2 * height, 2 * width, -1)
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, channels - channels // GROUPS)))


def _cell_kernel(space: Space, one: Architecture, cell: dict) -> Array:
    """Makes the kernel [K, K, C, C] of the convolution behind a doubling."""
    side, channels = space.kernel, space.channels
    eye = np.eye(channels, dtype=np.float32)
    distance = np.abs(np.arange(side) - side // 2)
    near = np.maximum(distance[:, None], distance[None])
    within = jnp.asarray(near <= one.kernel // 2, jnp.float32)
    fed = choose_number(one.doubling, {SHUFFLED: one.width / GROUPS}, one.width)

    def stacked() -> Array:
        group = jnp.maximum(jnp.asarray(fed // GROUPS).astype(jnp.int32), 1)
        place = jnp.arange(channels)
        kernel = jnp.take(cell["dense"], place % group, axis=2)
        # What does not fill a group is left out.
        return kernel * (place < GROUPS * group)[None, None, :, None]

    return choose(
        one.convolution,
        {
            STACKED: lambda: stacked() * within[..., None, None],
            SEPARABLE: lambda: (
                (cell["depth"] * within[..., None])[..., None]
                * cell["point"][None, None]
            ),
            DEPTHWISE: lambda: (
                (cell["depth"] * within[..., None])[..., None] * eye[None, None]
            ),
            NONE: lambda: jnp.asarray((near == 0)[..., None, None] * eye),
        },
        lambda: cell["dense"] * within[..., None, None],
    )


def _block(block: dict, x: Array, on: Array, *, stride: int = 1) -> Array:
    """Convolves, normalises and activates maps [..., B, h, w, C]."""
    x = _convolve(x, block["kernel"], stride)
    return _activate(_norm(block["norm"], x, on), SLOPE)


def _norm(norm: dict, x: Array, on: Array) -> Array:
    axes = (-4, -3, -2)  # examples and pixels
    mean = jnp.mean(x, axes, keepdims=True)
    variance = jnp.mean((x - mean) ** 2, axes, keepdims=True)
    # Whatever is of channels alone is put together first.
    scale = jax.lax.rsqrt(variance + EPSILON) * _wide(norm["scale"] * on, x)
    return x * scale + (_wide(norm["bias"] * on, x) - mean * scale)


def _convolve(x: Array, kernel: Array, stride: int = 1) -> Array:
    pad = kernel.shape[0] // 2
    y = fastest_convolution()(
        x.reshape(-1, *x.shape[-3:]),
        kernel,
        (stride, stride),
        ((pad, pad), (pad, pad)),
        dimension_numbers=CHANNELS_LAST,
    )
    return y.reshape(*x.shape[:-3], *y.shape[1:])


def _activate(x: Array, slope: Any) -> Array:
    if is_fixed(slope) and float(slope) == 1:
        return x
    return jnp.where(x >= 0, x, slope * x)


def _channels_on(space: Space, architecture: Architecture) -> Array:
    """Tells which channels [C] are in use, by 0 and 1."""
    return jnp.asarray(np.arange(space.channels) < architecture.width, jnp.float32)


def _wide(values: Array, x: Array) -> Array:
    """Gives values [C] the axes of maps [..., C]."""
    return values.reshape((1,) * (x.ndim - 1) + values.shape)
