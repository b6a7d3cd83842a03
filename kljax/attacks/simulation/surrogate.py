"""Surrogates: an update of many steps, held against one gradient on its way."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kljax.attacks.attack import Candidate, Objective, Simulation
from kljax.attacks.objectives import infinite_if_broken
from kljax.attacks.setting import Setting
from kljax.attacks.simulation.steps import local_replay
from kljax.core.types import Array, PyTree
from kljax.threat import View

SurrogateSimulation = Callable[[View, Candidate, Array], tuple[PyTree, PyTree]]


def surrogate_gradient(
    setting: Setting, gates: Callable[..., Any]
) -> SurrogateSimulation:
    """Simulates an update by one gradient, between received and trained parameters.

    The gradient is that of all n examples of the candidate at once, at the parameters
    ``w(a) = (1 - a) w0 + a wT``; no local step is replayed. Lock weights that the
    candidate has are put between in the same way where their change is shared, and
    stay what they are elsewhere. Statistics are the received ones. The change that is
    simulated is one step of plain descent, as long as all steps of the client
    together: its direction alone says something, and of a client with another
    optimiser not even that.

    Args:
      setting: model, loss, norm mode, protocol, and what the defence does to a gradient
        and to the whole update.
      gates: ``(public, Candidate.secret) -> gates`` of the secret's strategy.

    Returns:
      ``(View, Candidate, a []) -> (simulated, observed)``: two trees alike, see
      `kljax.attacks.local_steps`.

    Raises:
      ValueError: unless one client's update is uploaded, all of which can be read, and
        from the simulation, for a view of which an entry is hidden.

    Reference: Zhu, Yao, Blaschko, "Surrogate Model Extension (SME): A Fast and Accurate
    Weight Update Attack on Federated Learning" (ICML 2023), section 4.
    """
    _refuse_others(setting)
    protocol = setting.protocol
    unit = protocol.learning_rate * protocol.steps

    def simulation(view: View, candidate: Candidate, share: Array):
        if view.visible is not None:
            raise ValueError(HIDDEN)
        replayed = local_replay(setting, gates, view, candidate, protocol.penalty, unit)
        received, lock, *others = replayed.start
        lock_change = view.lock_grads if jax.tree.leaves(lock) else None
        public = _between(received, view.grads, share)
        lock = lock if lock_change is None else _between(lock, lock_change, share)
        grads, _ = replayed.gradient(
            (public, lock, *others),
            view.stats,
            jnp.zeros((), jnp.int32),
            replayed.inputs,
            candidate.targets,
        )
        # Not by way of trained parameters, in which a small change is rounded.
        return replayed.compare_changes(jax.tree.map(lambda g: -unit * g, grads[:2]))

    return simulation


SHARES = tuple(i / 20 for i in range(21))


def closest_surrogate(
    setting: Setting, gates: Callable[..., Any], objective: Objective
) -> Simulation:
    """Simulates an update by that surrogate of `SHARES` which a candidate fits best.

    Args:
      setting, gates: see `surrogate_gradient`.
      objective: by which fits are compared.

    Returns:
      ``(View, Candidate) -> (simulated, observed)``. At the client's own inputs its
      distance is what the surrogates themselves are off by.

    Raises:
      ValueError: as `surrogate_gradient` does.
    """
    surrogate, shares = surrogate_gradient(setting, gates), jnp.asarray(SHARES)

    def simulation(view: View, candidate: Candidate):
        def distance(share: Array) -> Array:
            return infinite_if_broken(objective(*surrogate(view, candidate, share)))

        best = jnp.argmin(jax.lax.map(distance, shares))
        return surrogate(view, candidate, shares[best])

    return simulation


HIDDEN = (
    "a surrogate lies between received and trained parameters, and of the trained ones "
    "some are hidden: take ig-fedavg or fedavg-inversion, which compare what is visible"
)


def _refuse_others(setting: Setting) -> None:
    knows = setting.threat.knowledge
    if knows.upload == "gradient":
        raise ValueError(
            "the gradient of one step has no trained parameters, and nothing to put a "
            "surrogate between: take inverting-gradients or matching, or "
            "upload='update'"
        )
    if knows.upload == "average":
        raise ValueError(
            "of an average of clients nobody sees the parameters that one of them "
            "trained: take ig-fedavg or fedavg-inversion, or the upload of one client"
        )
    if setting.protocol is None:
        raise ValueError("an update needs the protocol of its steps, and there is none")
    if knows.visible != "all":
        raise ValueError(HIDDEN)


def _between(start: PyTree, change: PyTree, share: Array) -> PyTree:
    return jax.tree.map(lambda x, move: x + share * move, start, change)
