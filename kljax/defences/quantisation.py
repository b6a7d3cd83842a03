"""Quantisation: each tensor is sent in whole multiples of a step of its own.

Letters: ``q = clip(round(g / s + z))`` is sent in so many bits, and ``g' = s (q - z)``
is what the server makes of it. The step s and the zero z are of a tensor, and sent
along with it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kljax.core.checks import is_concrete
from kljax.core.types import Array, Public, Rng
from kljax.defences.defence import Context, Defence, sum_visible, widened

MODES = ("symmetric", "affine", "stochastic", "float16")
MIXED_MODES = ("symmetric", "affine")
MOST_BITS = 32  # those of float32 itself
# Beyond this probability the log-density of a stochastic rounding goes on in a straight
# line: a search has to find its way from where it is minus infinity.
LEAST_PROBABILITY = 0.01
ON_GRID = 0.01  # in steps: as near to a grid as the rounding of float32 leaves it


class Grid(NamedTuple):
    """The levels of a tensor: ``s (q - z)`` for whole q from 0, or from -most."""

    step: Array  # [] s
    zero: Array  # [] z
    least: Array  # [] q
    most: Array  # [] q


def quantise(bits: float | Array, *, mode: str = "symmetric") -> Defence:
    """Sends every tensor on a grid of 2^bits levels or one fewer.

    By mode, where N = 2^(bits - 1) - 1:

    - ``symmetric``: s = max |g| / N and z = 0, to the nearest level, off by s/2 at
      most. One bit has the levels -max |g| and max |g|, and none for 0.
    - ``affine``: from the least entry to the largest, 0 included, and 0 is a level: s
      is their distance over 2^bits - 1 and z whole. Off by s/2 at most.
    - ``stochastic``: the symmetric grid; up with the probability that makes the mean
      g, down otherwise. Off by less than s.
    - ``float16``: the nearest number of IEEE's binary16, and its largest for what is
      larger; there are no steps, and bits is 16.

    The attacker does the same to its candidate's gradient, with a derivative as if
    nothing were rounded (straight through). Of a stochastic rounding the mean is the
    gradient, which is its simulation; the density is the product over entries of
    ``1 - |g' - g| / s``, with s read off the largest entry sent (what hides that entry
    hides s, and the density is then that of too small a step). Where this is less than
    `LEAST_PROBABILITY` its logarithm goes on along its tangent, and is no density.

    Args:
      bits: of an entry, a whole number from 1 to 32; 32 sends float32 itself and is
        the identity, without a density.
      mode: in `MODES`.

    Raises:
      ValueError: for bits that are no whole number from 1 to 32, an unknown mode, and
        bits beside 16 under ``float16``.

    Reference: Ovi et al., "Mixed Quantization Enabled Federated Learning to Tackle
    Gradient Inversion Attacks" (arXiv 2210.13457), for quantisation as a defence;
    Alistarh et al., "QSGD" (NeurIPS 2017), for the stochastic rounding.
    """
    _check_bits(bits)
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if mode == "float16":
        if is_concrete(bits) and bits != 16:
            raise ValueError(f"mode 'float16' has 16 bits, got bits={bits!r}")
        return _deterministic(_to_float16)
    if mode != "stochastic":
        return _deterministic(lambda x: _nearest(x, bits, mode))

    def release(rng: Rng, state, grads: Public, context: Context):
        del context
        leaves, tree = jax.tree.flatten(grads)
        rngs = jax.random.split(rng, len(leaves))
        sent = [
            _up_or_down(rng_leaf, x, bits)
            for rng_leaf, x in zip(rngs, leaves, strict=True)
        ]
        return jax.tree.unflatten(tree, sent), state

    def log_density(x: Array, mean: Array) -> Array:
        step = _grid(x, bits, "symmetric").step
        return _log_of_rest(jnp.abs(x - mean) / _positive(step))

    if is_concrete(bits) and bits == MOST_BITS:
        return Defence(release=release)
    return Defence(
        release=release, log_prob=sum_visible(log_density), log_prob_degree=1
    )


def quantise_mixed(
    bits: Sequence[float | Array] = (4.0, 8.0, 16.0),
    *,
    modes: Sequence[str] = MIXED_MODES,
    redrawn: bool = False,
) -> Defence:
    """Quantises each layer in a number of bits and a mode that are drawn for it.

    A layer is everything with the same name up to its last slash: kernel and bias. What
    is drawn is uniform among all pairs, once for a client, or anew for each release.

    A server has to know bits and modes to read what is sent. The attacker reads them
    off it: of the pairs under which a layer would be left as it is, that of the fewest
    bits; where there is none, since more was done to it, and of a step of local
    training, which nobody sees, it assumes its candidate's gradient as it is.

    Args:
      bits: that are drawn from, whole numbers from 1 to 32.
      modes: that are drawn from, in `MIXED_MODES`.
      redrawn: whether each release draws anew.

    Raises:
      ValueError: for bits that are no whole numbers from 1 to 32, an unknown mode, and
        nothing to draw from.

    Reference: Ovi et al. (arXiv 2210.13457), for the idea; which bits, modes and layers
    is not published in a form that we could read.
    """
    for value in bits:
        _check_bits(value)
    for mode in modes:
        if mode not in MIXED_MODES:
            raise ValueError(
                f"modes must be among {', '.join(MIXED_MODES)}, got {mode!r}"
            )
    pairs = [(value, mode) for value in bits for mode in modes]
    if not pairs:
        raise ValueError("bits and modes must not be empty: there is nothing to draw")

    def init_state(grads: Public) -> Array | tuple:
        """Gives the pair of each layer [layers], or -1 where none is drawn yet."""
        if redrawn:
            return ()
        return jnp.full(len(_layers(grads)[1]), -1, jnp.int32)

    def release(rng: Rng, state, grads: Public, context: Context):
        del context
        of_leaf, names = _layers(grads)
        drawn = jax.random.randint(rng, (len(names),), 0, len(pairs), jnp.int32)
        chosen = drawn if redrawn else jnp.where(state < 0, drawn, state)
        leaves, tree = jax.tree.flatten(grads)
        sent = [
            _choose(chosen[layer], [_nearest(x, *pair) for pair in pairs])
            for layer, x in zip(of_leaf, leaves, strict=True)
        ]
        return jax.tree.unflatten(tree, sent), state if redrawn else chosen

    def simulate(
        grads: Public, sent: Public | None, earlier: Public | None, private: Any
    ) -> Public:
        del earlier, private
        if sent is None:
            return grads

        of_leaf, names = _layers(grads)
        leaves, tree = jax.tree.flatten(grads)
        seen = [jnp.where(jnp.isnan(x), 0.0, x) for x in jax.tree.leaves(sent)]
        chosen = [
            read_pair([x for x, at in zip(seen, of_leaf, strict=True) if at == layer])
            for layer in range(len(names))
        ]
        simulated = []
        for x, layer in zip(leaves, of_leaf, strict=True):
            changed = [_straight(_nearest(x, *pair), x) for pair in pairs]
            simulated.append(_choose(chosen[layer], [*changed, x]))
        return jax.tree.unflatten(tree, simulated)

    def read_pair(seen: list[Array]) -> Array:
        """Finds [] which pair leaves a layer as it is; their number if none does."""
        fewest, found = jnp.inf, jnp.asarray(len(pairs))
        for i, (value, mode) in enumerate(pairs):
            fits = value < fewest
            for x in seen:
                off = jnp.max(jnp.abs(_nearest(x, value, mode) - x))
                fits &= off <= ON_GRID * _grid(x, value, mode).step
            fewest, found = jnp.where(fits, value, fewest), jnp.where(fits, i, found)
        return found

    return Defence(release=release, init_state=init_state, simulate=simulate)


def _check_bits(bits: float | Array) -> None:
    if is_concrete(bits) and not (1 <= bits <= MOST_BITS and bits == round(bits)):
        raise ValueError(
            f"bits must be a whole number from 1 to {MOST_BITS}, got {bits!r}"
        )


def _deterministic(change: Callable[[Array], Array]) -> Defence:
    def release(rng: Rng, state, grads: Public, context: Context):
        del rng, context
        return jax.tree.map(change, grads), state

    def simulate(
        grads: Public, sent: Public | None, earlier: Public | None, private: Any
    ) -> Public:
        del sent, earlier, private
        return jax.tree.map(lambda x: _straight(change(x), x), grads)

    return Defence(release=release, simulate=simulate, deterministic=True)


def _straight(changed: Array, x: Array) -> Array:
    """Gives what x was changed to, with the derivative of x itself."""
    return jax.lax.stop_gradient(changed) + (x - jax.lax.stop_gradient(x))


def _to_float16(x: Array) -> Array:
    most = float(jnp.finfo(jnp.float16).max)
    return jnp.clip(x, -most, most).astype(jnp.float16).astype(x.dtype)


def _nearest(x: Array, bits: float | Array, mode: str) -> Array:
    return _on_grid(x, bits, mode, jnp.round)


def _up_or_down(rng: Rng, x: Array, bits: float | Array) -> Array:
    def to_whole(places: Array) -> Array:
        below = jnp.floor(places)
        drawn = jax.random.uniform(rng, places.shape, places.dtype)
        return below + (drawn < places - below)

    return _on_grid(x, bits, "symmetric", to_whole)


def _on_grid(
    x: Array, bits: float | Array, mode: str, to_whole: Callable[[Array], Array]
) -> Array:
    wide = widened(x)
    grid = _grid(wide, bits, mode)
    q = to_whole(wide / _positive(grid.step) + grid.zero)
    q = jnp.clip(q, grid.least, grid.most)
    changed = (grid.step * (q - grid.zero)).astype(x.dtype)
    return jnp.where(jnp.asarray(bits) >= MOST_BITS, x, changed)


def _grid(x: Array, bits: float | Array, mode: str) -> Grid:
    x = widened(x)
    bits = jnp.asarray(bits, jnp.float32)
    # Exact, as a power of 2 by exponentiation need not be.
    power = jnp.ldexp(jnp.ones((), x.dtype), bits.astype(jnp.int32) - 1)
    if mode == "affine":
        low, high = jnp.minimum(jnp.min(x), 0.0), jnp.maximum(jnp.max(x), 0.0)
        most = 2 * power - 1
        step = (high - low) / most
        zero = jnp.round(-low / _positive(step))
        return Grid(step, zero, jnp.zeros_like(most), most)
    largest, levels = jnp.max(jnp.abs(x)), jnp.maximum(power - 1, 1.0)
    two = bits < 2
    return Grid(
        jnp.where(two, 2 * largest, largest / levels),
        jnp.where(two, 0.5, 0.0).astype(x.dtype),
        jnp.where(two, 0.0, -levels),
        levels,
    )


def _positive(step: Array) -> Array:
    return jnp.where(step > 0, step, jnp.ones_like(step))  # of a tensor of zeros


def _log_of_rest(off: Array) -> Array:
    """Computes log(1 - off), along its tangent where that is rare."""
    bend = 1 - LEAST_PROBABILITY
    inside = jnp.log1p(-jnp.minimum(off, bend))
    return inside - jnp.maximum(off - bend, 0.0) / LEAST_PROBABILITY


def _choose(index: Array, values: Sequence[Array]) -> Array:
    found = values[0]
    for i, value in enumerate(values[1:], start=1):
        found = jnp.where(index == i, value, found)
    return found


def _layers(grads: Public) -> tuple[list[int], list[str]]:
    """Gives the layer of each leaf, in order, and the names of all layers."""
    paths, _ = jax.tree.flatten_with_path(grads)
    of_leaf = [
        jax.tree_util.keystr(path, simple=True, separator="/").rpartition("/")[0]
        for path, _ in paths
    ]
    names = list(dict.fromkeys(of_leaf))
    return [names.index(name) for name in of_leaf], names
