"""Studies of an average: several clients' uploads, of which nobody sees any alone.

Each victim is then K clients: each has examples of its own, draws of its own, and a
secret of its own, and its defence acts on what it sends. Letters: n examples of each
client.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kljax import threat
from kljax.attacks.presets import Preset
from kljax.core.randomness import rngs_of_several
from kljax.core.types import Params, Private, PyTree, Rng
from kljax.defences.arms import Arm
from kljax.studies.config import LeakConfig


def check_average(config: LeakConfig, arm: Arm, preset: Preset) -> None:
    """Refuses what has no meaning for the average of several clients.

    Args:
      config: the study.
      arm: that is attacked.
      preset: the attack.

    Raises:
      ValueError: with the arm, and what to do.
    """
    if config.average_clients is None:
        return
    where = f"arm {arm.name!r} of an average of {config.average_clients} client(s)"
    if arm.hides_entries:
        raise ValueError(
            f"{where}: its defence says which entries of one client's upload can be "
            "read, and of an average a server reads sums of all entries: take the arm "
            "without it"
        )
    if arm.release_strategy == "undo":
        raise ValueError(
            f"{where}: what each client did to its own upload cannot be undone in the "
            f"mean of all: write {arm.name.removesuffix('/undo')!r}"
        )
    if preset.density:
        raise ValueError(
            f"{where}: attack {config.attack!r} needs the density of what is sent, and "
            "that of a mean over clients is not known: take another attack"
        )


def draw_own(
    init: Callable[..., tuple[PyTree, Private]], clients: int
) -> Callable[[Rng, Params], tuple[PyTree, Private]]:
    """Makes what draws the public part of a defence, and what K clients hide.

    As in a training (`kljax.federated.rounds`), all begin with the same lock weights,
    or what else a defence trains of what it hides, and each has a secret of its own.
    The first client is the one of a study without an average.

    Args:
      init: of the defence, see `kljax.defences.Defence`.
      clients: K.

    Returns:
      ``(rng, params) -> (public, Private with a leading axis [K])``.
    """

    def draw(rng: Rng, params: Params) -> tuple[PyTree, Private]:
        def one(rng: Rng) -> tuple[PyTree, Private]:
            return init(rng, params)

        publics, privates = jax.lax.map(one, rngs_of_several(rng, clients))
        trainable = jax.tree.map(
            lambda x: jnp.broadcast_to(x[:1], x.shape), privates.trainable
        )
        public = jax.tree.map(lambda x: x[0], publics)
        return public, privates._replace(trainable=trainable)

    return draw


def average_uploads(
    upload: Callable[..., threat.Update], clients: int
) -> Callable[..., threat.Update]:
    """Makes the upload of K clients of the upload of one.

    Args:
      upload: see `kljax.studies.builder.drawn_client.Client`.
      clients: K.

    Returns:
      The same function of K n images and labels, client after client, whose ``held``
      has as its second part what is each client's own, with a leading axis [K].
    """

    def send(rng, defence, network, held, images, labels, before=()) -> threat.Update:
        del before  # of averages nobody has a record
        shared, own, *others = held
        images, labels = jax.tree.map(
            lambda x: x.reshape(clients, -1, *x.shape[1:]), (images, labels)
        )

        def one(client) -> threat.Update:
            rng, own, images, labels = client
            return upload(rng, defence, network, (shared, own, *others), images, labels)

        # One after another: side by side, each would have a network of its own.
        each = jax.lax.map(one, (rngs_of_several(rng, clients), own, images, labels))
        return threat.average_stacked(each, clients)

    return send
