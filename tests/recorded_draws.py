"""Every random draw of a program, and every random key that others are derived from.

Random keys of a kind of their own are made, which say what becomes of them while the
program runs: also inside compiled loops, and under batches. The numbers drawn are those
of JAX's own kind.
"""

import collections
import contextlib
import functools

import jax
import pytest
from jax.extend.random import define_prng_impl, threefry_prng_impl

OWN = threefry_prng_impl


class Recorded:
    """What was seen so far.

    Attributes:
      draws: how often each (random key, shape of what was drawn) was drawn from.
      parents: of each random key that was derived, the one it was derived from.
    """

    def __init__(self):
        self.draws = collections.Counter()
        self.parents = {}

    @property
    def keys(self):
        """The random keys that were drawn from."""
        return {key for key, _ in self.draws}

    def ancestors(self, key):
        """Lists the random keys that `key` was derived from, itself first."""
        found = [key]
        while found[-1] in self.parents:
            found.append(self.parents[found[-1]])
        return found

    def used_twice(self, *, but=()):
        """Lists what was drawn from more than once, or drawn from and split.

        Args:
          but: random keys; what was derived from them may be drawn more than once.

        Returns:
          Of each such random key, its ancestors.
        """
        counts = collections.Counter()
        for (key, _), count in self.draws.items():
            counts[key] += count
        allowed = {name(rng) for rng in but}
        again = {key for key, count in counts.items() if count > 1}
        again = {key for key in again if not allowed & {*self.ancestors(key)}}
        both = self.keys & {*self.parents.values()}
        return [self.ancestors(key) for key in sorted(again | both)]

    def take(self):
        """Gives what was seen since the last time, once everything has run."""
        jax.effects_barrier()
        taken = Recorded()
        taken.draws, self.draws = self.draws, taken.draws
        taken.parents, self.parents = self.parents, taken.parents
        return taken

    def __add__(self, other):
        both = Recorded()
        both.draws = self.draws + other.draws
        both.parents = self.parents | other.parents
        return both


def words(key):
    return tuple(int(word) for word in key)


def name(rng):
    """Names a random key as `Recorded` does."""
    return words(jax.random.key_data(rng))


@contextlib.contextmanager
def recorded_draws():
    """Records all draws from random keys that are made inside, as a `Recorded`."""
    seen = Recorded()

    def draw(key, shape):
        seen.draws[words(key), shape] += 1

    def random_bits(key, width, shape):
        jax.debug.callback(functools.partial(draw, shape=tuple(shape)), key)
        return OWN.random_bits(key, width, shape)

    def derive(key, children):
        for child in children.reshape(-1, *OWN.key_shape):
            seen.parents[words(child)] = words(key)

    def split(key, shape):
        children = OWN.split(key, shape)
        jax.debug.callback(derive, key, children)
        return children

    def fold_in(key, number):
        child = OWN.fold_in(key, number)
        jax.debug.callback(derive, key, child)
        return child

    kind = define_prng_impl(
        key_shape=OWN.key_shape,
        seed=OWN.seed,
        split=split,
        random_bits=random_bits,
        fold_in=fold_in,
        name="recorded",
        tag="rec",
    )
    with pytest.MonkeyPatch.context() as patch:
        for maker in ("key", "wrap_key_data"):
            made = functools.partial(getattr(jax.random, maker), impl=kind)
            patch.setattr(jax.random, maker, made)
        yield seen
        jax.effects_barrier()
