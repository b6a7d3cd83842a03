"""Locks: what the attacker does about the gates he cannot see.

One factory per strategy of `kljax.threat.STRATEGY`. Each takes the `Setting` and
gives the unknown part of the candidate and the function that makes gates of it. None
touches more of the view than its strategy needs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kljax.attacks.attack import Setting, Unknown
from kljax.attacks.closed_form import peeling, private_key_from_lock_grads
from kljax.threat import View
from kljax.typing import Gate, Private, Rng


class Lock(NamedTuple):
    """A strategy against a lock.

    Attributes:
      unknown: the lock part of a `Candidate`.
      gates: ``(public, that part) -> gates``.
    """

    unknown: Unknown
    gates: Callable[..., Any]


def _settled(setting: Setting, private: Callable[[Rng, View], Private]) -> Lock:
    """Settles the private part at the start; nothing is optimised."""
    unknown = Unknown(
        start=lambda rng, view: ((), private(rng, view)),
        decode=lambda free, fixed: fixed,
    )
    return Lock(unknown, setting.gates)


def unit(setting: Setting) -> Lock:
    """Runs the network without the lock's gates."""
    return _settled(setting, lambda rng, view: Private())


def known(setting: Setting) -> Lock:
    """Uses the true private key and lock weights."""
    return _settled(
        setting, lambda rng, view: Private(view.private_key, view.lock_weights)
    )


def extract(setting: Setting) -> Lock:
    """Reads the private key off the shared lock gradients, in closed form."""
    return _settled(
        setting,
        lambda rng, view: Private(
            private_key_from_lock_grads(view.lock_grads), view.lock_weights
        ),
    )


def _draw_private_key(rng: Rng, view: View):
    # The first site's kernel [K, C] says how long the private key is.
    return jax.random.uniform(rng, view.lock_weights[0]["scale"]["kernel"].shape[:1])


def fixed_random(setting: Setting) -> Lock:
    """Guesses a private key at random, U(0, 1) as the client draws it."""
    return _settled(
        setting,
        lambda rng, view: Private(_draw_private_key(rng, view), view.lock_weights),
    )


def fixed_mean(setting: Setting) -> Lock:
    """Guesses the mean private key: 0.5 throughout."""

    def private(rng: Rng, view: View) -> Private:
        guess = jnp.full_like(_draw_private_key(rng, view), 0.5)
        return Private(guess, view.lock_weights)

    return _settled(setting, private)


def regress_private_key(setting: Setting) -> Lock:
    """Optimises the private key with the image, from a random one, unconstrained.

    Reference: FedKL, DLG_test.py, flag gen_key.
    """
    unknown = Unknown(
        start=lambda rng, view: (_draw_private_key(rng, view), view.lock_weights),
        decode=Private,
    )
    return Lock(unknown, setting.gates)


def regress_gates(setting: Setting) -> Lock:
    """Optimises scale and shift per channel: neither private key nor lock weights.

    Softplus keeps both positive, as the paper's ReLU does; they start at |N(0, 1)|.
    This is kljax's own attack.
    """

    def start(rng: Rng, view: View):
        del view
        draws = {}
        for i, (site, width) in enumerate(setting.sites):
            normal = jax.random.normal(jax.random.fold_in(rng, i), (2, width))
            # Inverse softplus of |N(0, 1)|, kept off zero.
            value = jnp.abs(normal) + 1e-2
            draws[site] = Gate(*(value + jnp.log(-jnp.expm1(-value))))
        return draws, ()

    def decode(free, fixed):
        del fixed
        return jax.tree.map(jax.nn.softplus, free)

    return Lock(Unknown(start, decode), lambda public, guess: guess)


def peel(setting: Setting) -> Lock:
    """Reads the gates off the layers above the lock, in closed form, and keeps them.

    This is kljax's own attack. The lock part of the candidate is a
    `kljax.attacks.Peeled`, which says how far its gates can be trusted.

    Raises:
      ValueError: where the network, its lock or the upload cannot be peeled.
    """
    attack = peeling(setting)
    unknown = Unknown(
        start=lambda rng, view: ((), attack(view)),
        decode=lambda free, fixed: fixed,
    )
    return Lock(unknown, lambda public, peeled: peeled.gates)


LOCKS: dict[str, Callable[[Setting], Lock]] = {
    "unit": unit,
    "known": known,
    "extract": extract,
    "fixed_random": fixed_random,
    "fixed_mean": fixed_mean,
    "regress_private_key": regress_private_key,
    "regress_gates": regress_gates,
    "peel": peel,
}


def lock_of(setting: Setting) -> Lock:
    """Makes what the threat model's lock strategy says.

    Raises:
      ValueError: where the setting is not one that the strategy can work on.
    """
    return LOCKS[setting.threat.strategy.lock](setting)
