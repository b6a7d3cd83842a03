"""Several observations: a client's uploads on the same examples, time after time.

The weights move on between them, and what a defence draws it draws anew.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kljax.attacks.presets import PRESETS, Preset
from kljax.core.randomness import rngs_of_several
from kljax.core.types import Public, PyTree, Rng
from kljax.defences import Defence
from kljax.defences.arms import Arm
from kljax.defences.defence import keep_private
from kljax.studies.config import LeakConfig, TrainConfig, default
from kljax.threat import Observations, Update, View

# Of the server, which takes a step with what a drawn client sends: that of the clients
# of `kljax train`, as FedKL trains.
SERVER_RATE = default(TrainConfig, "learning_rate")


def upload_again(upload: Callable[..., Update], count: int) -> Callable[..., Update]:
    """Makes what a drawn client uploads of the same examples, time after time.

    Between two uploads the server descends by `SERVER_RATE` along what was sent, and
    sends the client what it has, norm statistics included. What the client keeps to
    itself stays as it is. The first upload is that of a single observation.

    Args:
      upload: of one observation, see `kljax.studies.builder.drawn_client.Client`.
      count: K.

    Returns:
      ``(rng, Defence, network, held, images, labels) -> Update``, with a leading axis
      [K] on every array.
    """

    def uploads(rng, defence, network, held, images, labels) -> Update:
        def observe(at: PyTree, rng: Rng) -> tuple[PyTree, Update]:
            network, (public, private) = at
            update = upload(rng, defence, network, (public, private), images, labels)
            moved = jax.tree.map(
                lambda value, sent: value - SERVER_RATE * sent,
                Public(network[0], public),
                update.sent,
            )
            return ((moved.model, update.new_stats), (moved.defence, private)), update

        rngs = rngs_of_several(rng, count)
        _, updates = jax.lax.scan(observe, (network, held), rngs)
        return updates

    return uploads


def upload_each(upload: Callable[..., Update], count: int) -> Callable[..., Update]:
    """Makes what a client uploads at K states that are given, see `upload_again`.

    Network and held have a leading axis [K].
    """

    def uploads(rng, defence, networks, held, images, labels) -> Update:
        def observe(at: PyTree) -> Update:
            rng, network, held = at
            return upload(rng, defence, network, held, images, labels)

        return jax.lax.map(observe, (rngs_of_several(rng, count), networks, held))

    return uploads


def pool_views(config: LeakConfig, views: View, *, own_secrets: bool) -> View:
    """Gives the view of the first observation, with all K of them."""
    first = jax.tree.map(lambda leaf: leaf[0], views)
    return first._replace(observations=Observations(views, config.pooling, own_secrets))


def draws_secrets(config: LeakConfig, arm: Arm, renewed: bool) -> bool:
    """Tells whether what a client hides is another in each of its observations.

    Args:
      config: of the study.
      arm: any.
      renewed: whether the client of a run has a fresh private key in each round.
    """
    return config.observations > 1 and (
        renewed or arm.defence.draw_private is not keep_private
    )


def check_pooling(config: LeakConfig, preset: Preset) -> None:
    """Refuses several observations of an attack that reads one upload.

    A search pools them, and an attack of a user's own if it is one; but for a search
    that pools its restarts.

    Raises:
      ValueError: with the attack, and attacks that will do.
    """
    if config.observations == 1 or PRESETS.get(config.attack) is not preset:
        return
    if preset.objective is None:
        raise ValueError(
            f"observations={config.observations}: attack {config.attack!r} is a closed "
            "form, which reads one upload: take an attack that searches, such as "
            "'matching'"
        )
    if preset.pools_restarts:
        raise ValueError(
            f"observations={config.observations}: attack {config.attack!r} pools its "
            "restarts, and cannot pool observations as well: write observations=1"
        )


def check_memory(config: LeakConfig, arm: Arm) -> None:
    """Refuses several observations of a drawn client whose defence remembers.

    Raises:
      ValueError: with the arm, and what to do.
    """
    if config.observations > 1 and remembers(arm.defence):
        raise ValueError(
            f"arm {arm.name!r}: observations={config.observations}: the defence "
            "remembers what it has sent, and a client that is drawn sends each "
            "upload as its first: attack kept rounds of a run (from_run), or write "
            "observations=1"
        )


def remembers(defence: Defence) -> bool:
    """Tells whether a defence carries anything from one release to the next."""
    like = Public({"kernel": jax.ShapeDtypeStruct((1,), jnp.float32)})
    try:
        return bool(jax.tree.leaves(jax.eval_shape(defence.init_state, like)))
    except Exception:  # a user's function may look for a tensor that is not there
        return True
