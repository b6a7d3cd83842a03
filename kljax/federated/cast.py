"""The cast of a round: one compiled function that plays the role of any client."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljax.core.randomness import derive_rng
from kljax.core.types import Array, Public, PyTree, Rng, Stats
from kljax.federated.clients import Batches, Upload, all_finite
from kljax.federated.roles import Role

# What the random key of a role is for.
ROLE_PURPOSES = ("batches", "upload")


class Cast(NamedTuple):
    """The roles of all clients, for one compiled function that plays any of them.

    Attributes:
      numbers: ``(ids [b], round) -> numbers [b]`` of their roles.
      batches: ``(number [], rng, Batches, hardened) -> Batches``: called before and
        after the hardening, of which a role acts at one, see `Role`.
      upload: ``(number [], rng, Public, Stats, Upload) -> (Upload, finite [])``.
      hardens: ``number [] -> []`` bool, see `Role`.
    """

    numbers: Callable[[np.ndarray, int], np.ndarray]
    batches: Callable[[Array, Rng, Batches, bool], Batches]
    upload: Callable[[Array, Rng, Public, Stats, Upload], tuple[Upload, Array]]
    hardens: Callable[[Array], Array]


def cast_of(roles: Mapping[int, Role]) -> Cast:
    """Makes one function of the roles of all clients.

    Raises:
      ValueError: when called with a role that changes the shapes of what it is given.
    """
    # Clients of one role share a branch.
    distinct = [Role(), *{id(role): role for role in roles.values()}.values()]
    number_of = {
        client: next(n for n, one in enumerate(distinct) if one is role)
        for client, role in roles.items()
    }

    def number_in(client: int, now: int) -> int:
        rounds = roles[client].rounds if client in roles else None
        acts = rounds is None or now in rounds
        return number_of.get(client, 0) if acts else 0

    def numbers(ids: np.ndarray, now: int) -> np.ndarray:
        return np.array([number_in(int(client), now) for client in ids], np.int32)

    def batches(number: Array, rng: Rng, given: Batches, hardened: bool) -> Batches:
        acting = [role.hardens_first is hardened for role in distinct]
        if not any(acting):
            return given
        rng = derive_rng(rng, ROLE_PURPOSES, "batches")
        branches = [
            _keeping_shapes(role.batches if acts else Role().batches)
            for role, acts in zip(distinct, acting, strict=True)
        ]
        return jax.lax.switch(number, branches, given, rng)

    def upload(number: Array, rng: Rng, public: Public, stats: Stats, given: Upload):
        rng = derive_rng(rng, ROLE_PURPOSES, "upload")
        branches = [_keeping_shapes(role.upload) for role in distinct]
        sent = jax.lax.switch(number, branches, given, rng, public, stats)
        return sent, all_finite(sent)

    def hardens(number: Array) -> Array:
        return jnp.array([role.hardens for role in distinct])[number]

    return Cast(numbers, batches, upload, hardens)


def _keeping_shapes(act: Callable) -> Callable:
    """Makes ``(given, *received) -> given``, of the same shapes and dtypes."""

    def checked(given: PyTree, *received) -> PyTree:
        made = act(*received, given)
        found, wanted = (
            jax.tree.map(lambda x: jnp.shape(x), tree) for tree in (made, given)
        )
        if found != wanted:
            raise ValueError(
                f"the role's {getattr(act, '__name__', act)!r} makes {found} of "
                f"{wanted}: it must keep the shapes"
            )
        return jax.tree.map(lambda x, y: jnp.asarray(x, y.dtype), made, given)

    return checked
