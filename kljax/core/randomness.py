"""Random keys: one way to derive from each.

``fold_in(rng, i)`` is ``split(rng, n)[i]`` in JAX, whatever n. A random key that is
split in one place and folded in another gives the same child twice, and a random key
that is drawn from gives away its children's bits. So a key is either drawn from once,
or it has children, and these have one kind of name each: purposes, by `derive_rng`; or
indices (of clients, steps, victims, layers), by ``fold_in`` or one ``split``.

That holds within a training and within a study. Both begin at the random key of their
seed, so a training and a study that are to be independent take two seeds.
"""

import secrets

import jax
import jax.numpy as jnp
import numpy as np

from kljax.core.types import Rng

# Of what attacks draw alike in every study, whatever its seed.
FIXED = (
    "dropout",
    "label rule",
    "lock signs",
    "diagnosis",
    "feature signs",
    "slopes of the loss",
    "metrics",
    "label counts",
    "langevin",
    "substitute",
    "risk",
    "curvature",
    "feature hashing",
    "label candidates",
)
LAST = 2**32 - 1  # a child of key(0) that no study of seed 0 has


def derive_rng(rng: Rng, purposes: tuple[str, ...], purpose: str) -> Rng:
    """Derives the random key of one purpose.

    Args:
      rng: used for nothing but these purposes.
      purposes: all of them, in an order that is kept: a new one goes to the end, and
        changes no draw of the others.
      purpose: one of them.
    """
    return jax.random.fold_in(rng, purposes.index(purpose))


def draw_system_rng() -> Rng:
    """Draws a random key by the system's randomness, of all bits that a key has.

    ``jax.random.key`` keeps the last 32 bits of a seed alone, where JAX computes in 32
    bits, and so few can be tried one by one.
    """
    words = np.frombuffer(secrets.token_bytes(8), np.uint32)
    # Threefry's two words, whatever JAX was told to take for other keys.
    return jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32")


def rngs_of_several(rng: Rng, count: int) -> Rng:
    """Derives the random keys [n] of several who do what one does with `rng`.

    The first has `rng` itself, so that it draws what the one would, and `rng` has its
    purposes there. The others descend from a child that no purpose has.

    Args:
      rng: of the first.
      count: n, of clients or of observations.
    """
    others = jax.random.split(jax.random.fold_in(rng, LAST), count)[1:]
    return jnp.concatenate([rng[None], others])


def fixed_rng(purpose: str) -> Rng:
    """Makes the random key of a draw that is the same in every study.

    An attacker's guesses at dropout masks, say: they are no unknowns, and replays of
    one step share them. No random key that a seed gives is among them.

    Args:
      purpose: one of `FIXED`.
    """
    return derive_rng(jax.random.fold_in(jax.random.key(0), LAST), FIXED, purpose)
