"""Averages over clients, replayed: each client on examples and a secret of its own.

Letters: K clients, n examples of each.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kljax.attacks.attack import Candidate, Simulation, Unknown
from kljax.attacks.setting import Setting, of_one_client
from kljax.core.types import Array, PyTree, Rng
from kljax.threat import Knowledge, View


def replay_average(
    setting: Setting, replay_one: Callable[[Setting], Simulation]
) -> Simulation:
    """Makes the simulation of the average of K clients' uploads.

    The candidate has K n inputs, client after client, and a secret whose leaves have a
    leading axis [K] (`kljax.attacks.secrets.secret_of`). Each client is replayed by
    itself, under gates of its own, and with what its defence does to what it sends, of
    which nobody sees anything; the mean over clients is compared with what is seen.

    Where no client is anything special, the mean of their gradients is the gradient of
    all examples in one batch, and is replayed as that: no secret, nothing done to a
    gradient, and no statistics of a client's own batch.

    Args:
      setting: of the average.
      replay_one: makes the simulation of one client from its setting.

    Raises:
      ValueError: for examples that are no whole number for each client, where clients
        are replayed one by one.
    """
    clients = setting.threat.knowledge.clients
    one, batch = (replay_one(of_one_client(setting, n)) for n in (clients, 1))

    def simulation(view: View, candidate: Candidate) -> tuple[PyTree, PyTree]:
        if _is_one_batch(setting, view, candidate):
            return batch(view, candidate)

        def of_client(inputs: PyTree, targets: Array, secret: PyTree):
            return one(view, Candidate(inputs, targets, secret))

        inputs, targets = jax.tree.map(
            lambda x: x.reshape(clients, -1, *x.shape[1:]),
            (candidate.inputs, candidate.targets),
        )
        simulated, observed = jax.vmap(of_client, out_axes=(0, None))(
            inputs, targets, candidate.secret
        )
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), simulated), observed

    return simulation


def _is_one_batch(setting: Setting, view: View, candidate: Candidate) -> bool:
    """Tells whether the mean of the clients' gradients is that of all their examples.

    A module that a defence inserts may add to the loss what is no mean over examples.
    """
    knows, defence = setting.threat.knowledge, setting.defence
    apart = jax.tree.leaves((candidate.secret, view.public.defence))
    if knows.attacker_norm == "train":
        apart += jax.tree.leaves(view.stats)
    alone = defence.leaves_alone and defence.simulate_inputs is None
    return setting.protocol is None and alone and not apart


def of_each_client(unknown: Unknown, knows: Knowledge) -> Unknown:
    """Makes the unknown of K clients, each with a draw of its own, of that of one.

    Args:
      unknown: of one client's secret.
      knows: of the average; says what the attacker knows of each client.

    Returns:
      The same of all, with a leading axis [K] of every leaf.
    """
    clients, penalty = knows.clients, unknown.penalty

    def start(rng: Rng, view: View) -> tuple[PyTree, PyTree]:
        # What one client holds is all of the view that is not everybody's.
        own = {"private_key": view.private_key}
        if knows.lock_weights == "known":
            own["lock_weights"] = view.lock_weights

        def of_client(rng: Rng, own: dict[str, PyTree]) -> tuple[PyTree, PyTree]:
            return unknown.start(rng, view._replace(**own))

        return jax.vmap(of_client)(jax.random.split(rng, clients), own)

    def total(free: PyTree) -> Array:
        return jnp.sum(jax.vmap(penalty)(free))

    decode, project, read = (
        jax.vmap(function, axis_size=clients)
        for function in (unknown.decode, unknown.project, unknown.read)
    )
    return unknown._replace(
        start=start,
        decode=decode,
        project=project,
        read=read,
        penalty=None if penalty is None else total,
        report=unknown.report and jax.vmap(unknown.report, axis_size=clients),
    )
