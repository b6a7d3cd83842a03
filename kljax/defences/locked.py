"""Defences that gate the network: the key-lock, and its public control."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kljax.core.types import Gate, Gates, Params, Path, Private, Rng
from kljax.defences.defence import Defence
from kljax.defences.lock import KeyLock
from kljax.threat import KEYLOCK_STRATEGIES, HiddenParts


def keylock(lock: KeyLock) -> Defence:
    """Defends by a key-lock: private gates, everything else is sent as it is.

    ``Private.secret`` is the private key, ``Private.trainable`` the lock weights;
    neither they nor their gradients are part of what is sent. To someone without
    them (an empty ``Private()``) the network has unit gates.

    Reference: FedKL; see `kljax.defences.lock`.
    """

    def init(rng: Rng, params: Params):
        del params
        rng_private_key, rng_weights = jax.random.split(rng)
        private = Private(lock.private_key(rng_private_key), lock.init(rng_weights))
        return (), private

    def gates(public, private: Private) -> Gates:
        del public
        if not jax.tree.leaves(private):
            return {}
        return lock.gates(private.trainable, private.secret)

    return Defence(
        init=init,
        gates=gates,
        strategies=tuple(KEYLOCK_STRATEGIES.values()),
        hidden_parts=HiddenParts("the private key", "the lock weights"),
    )


def plaintext_gates(start: Callable[[Rng, Params], Gates]) -> Defence:
    """Makes the control of the key-lock: the same gates, public and learnable.

    The gates are parameters like any other: the server knows them and receives their
    gradients. What a key-lock protects beyond this arm is what secrecy adds.

    Args:
      start: ``(rng, params) -> gates`` to start from: `unit_gates`, or
        ``gates_of(keylock(...))`` for the very values a lock gives.
    """

    def init(rng: Rng, params: Params):
        return start(rng, params), Private()

    def gates(public: Gates, private: Private) -> Gates:
        del private
        return public

    return Defence(init=init, gates=gates)


def unit_gates(sites: tuple[Path, ...], widths: tuple[int, ...]):
    """Starts plaintext gates at scale 1 and shift 0, where they change nothing."""

    def start(rng: Rng, params: Params) -> Gates:
        del rng, params
        return {
            site: Gate(jnp.ones(width), jnp.zeros(width))
            for site, width in zip(sites, widths, strict=True)
        }

    return start


def gates_of(defence: Defence):
    """Starts plaintext gates where `defence` would start, from the same rng."""

    def start(rng: Rng, params: Params) -> Gates:
        public, private = defence.init(rng, params)
        return defence.gates(public, private)

    return start
