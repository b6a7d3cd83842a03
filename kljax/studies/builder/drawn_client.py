"""The client of an arm: what it and its server have, and what it uploads.

Networks, private keys and lock weights are drawn afresh for each victim, here, or are
those of a run of `kljax train` (`kljax.studies.builder.run_client`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljax import threat
from kljax.core.drawing import draw_jointly
from kljax.core.randomness import derive_rng
from kljax.core.types import Array, Model, Params, Public, PyTree, Rng, Stats
from kljax.defences import as_given, everything
from kljax.defences.arms import Arm
from kljax.defences.catalogue import find_kind
from kljax.defences.defence import no_parts
from kljax.federated import clients
from kljax.studies.builder.average import average_uploads, draw_own
from kljax.studies.builder.observing import check_memory, upload_again
from kljax.studies.builder.task import LearningTask
from kljax.studies.builder.victims import Victims
from kljax.studies.config import LeakConfig

# What the random key of a study is for.
PURPOSES = ("weights", "defence", "step", "attack", "learning")


class Source(NamedTuple):
    """What everything random of a victim is drawn from."""

    index: Array  # [] position of its first example in the dataset
    rng_data: Array  # [2] uint32 of the random key of the study
    survey: PyTree = ()  # what a malicious server measured on public images
    options: tuple[Array, ...] = ()  # of the arm, where its defence draws by them


class Client(NamedTuple):
    """The client of an arm.

    Attributes:
      upload: ``(rng, Defence, network, held, images [B, H, W, C], labels [B],
        before=()) -> Update`` of one victim, where network is (params, stats), held
        what it has beside it (of the clients of an average, its second part is each
        one's own), and before the images and labels of earlier uploads, see `Victims`.
      draws: functions that draw network and held for each `Source`, see `map_victims`;
        () where they are the same for all victims.
      same: network and held, where they are the same. Of several observations of a
        client of a run, both have a leading axis [K].
      uploads: ``(rng, Defence, network, held, images, labels) -> Update`` of several
        observations, with a leading axis [K]; None where there is one.
      draw_held: ``(Source, published, network) -> held`` of a client that somebody
        simulates: what is its own is drawn from the first source, and what is the same
        for all victims from theirs, `published`. None for a client of a run.
    """

    upload: Callable[..., threat.Update]
    draws: tuple[Callable[..., PyTree], ...] = ()
    same: tuple[PyTree, ...] = ()
    uploads: Callable[..., threat.Update] | None = None
    draw_held: Callable[..., PyTree] | None = None


def make_sources(
    config: LeakConfig,
    victims: Victims,
    survey: PyTree = (),
    options: tuple[float, ...] = (),
) -> Source:
    """Makes the sources of victims, with a leading axis [N]."""
    options = tuple(np.float32(value) for value in options)
    indices = victims.indices[:, 0]
    rng_data = np.asarray(jax.random.key_data(jax.random.key(config.seed)))
    same = jax.tree.map(
        lambda x: np.broadcast_to(x, (len(indices), *np.shape(x))),
        (rng_data, survey, options),
    )
    return Source(indices, *same)


def draw_rng(source: Source, purpose: str) -> Rng:
    """Derives a victim's random key for one of `PURPOSES`."""
    rng = derive_rng(jax.random.wrap_key_data(source.rng_data), PURPOSES, purpose)
    return jax.random.fold_in(rng, source.index)


def make_drawn_client(
    config: LeakConfig,
    task: LearningTask,
    arm: Arm,
    model: Model,
    modify: Callable[[PyTree], Model],
    share: Callable[..., Any],
    *,
    train: bool,
    same: tuple[str, ...] = (),
) -> Client:
    """Makes a client whose network and defence are drawn afresh for each victim.

    Args:
      config: of the study.
      task: what clients train.
      arm: of the client.
      model: the network that it gets.
      modify: gives that network for what a malicious server measured: data, so that
        studies of other seeds share the compilation.
      share: ``(key, make) -> what is made``, once for all arms of one key. Arms that
        share a network or a defence share its draws, and their compilation.
      train: mode of the norms.
      same: parts of a defence that are the same for all victims, as shared weights
        are: ``public``, ``lock_weights``, ``private_key``.
    """
    encode, loss = task.dataset.target_spec.encode, task.loss
    several = config.average_clients

    def upload(rng, defence, network, held, images, labels, before=()):
        (params, stats), (public, private) = network, held
        step = clients.one_step(model, loss, defence, train=train)
        if before:
            earlier, labels_before = before
            step = clients.recorded(step, earlier, encode(labels_before))
        return step(rng, Public(params, public), stats, private, images, encode(labels))

    def draw_network(source: Source) -> PyTree:
        if config.weights == "shared":
            source = of_all_victims(source)
        init = modify(source.survey).init
        return draw_jointly(init)(draw_rng(source, "weights"))

    def draw_held(
        source: Source, published: Source, network: tuple[Params, Stats]
    ) -> PyTree:
        defence = arm.make(source.options) if source.options else arm.defence
        init = draw_jointly(defence.init)
        if several:
            init = draw_own(init, several)
        public, private = init(draw_rng(source, "defence"), network[0])
        if not same:
            return public, private
        of_all = init(draw_rng(of_all_victims(published), "defence"), network[0])
        if "lock_weights" in same:
            private = private._replace(trainable=of_all[1].trainable)
        if "private_key" in same:
            private = private._replace(secret=of_all[1].secret)
        return of_all[0] if "public" in same else public, private

    def draw_defence(source: Source, network: tuple[Params, Stats]) -> PyTree:
        return draw_held(source, source, network)

    # Only the first part of a combination has parts of its own to draw.
    drawing = arm.skeleton if options_of_draws(arm) else _first_part(arm)
    draws = (
        share(("draw network", arm.norm), lambda: draw_network),
        share(("draw defence", drawing, same), lambda: draw_defence),
    )
    if several:
        upload = average_uploads(upload, several)
    uploads = None
    if config.observations > 1:
        check_memory(config, arm)
        uploads = upload_again(upload, config.observations)
    return Client(upload, draws, uploads=uploads, draw_held=draw_held)


def of_all_victims(source: Source) -> Source:
    """Gives the source of what is the same for all victims."""
    return source._replace(index=jnp.zeros_like(source.index))


def options_of_draws(arm: Arm) -> tuple[float, ...]:
    """Gives the numbers of an arm, if its own parts may be drawn by them; else ()."""
    name = _first_part(arm).partition("[")[0].partition("@")[0]
    by_options = arm.defence.init is not no_parts and find_kind(name).options
    return arm.options if by_options else ()


def _first_part(arm: Arm) -> str:
    return arm.skeleton.partition("+")[0]


def check_client(
    config: LeakConfig, kind: str, arm: Arm, client: Client, inputs: tuple[PyTree, ...]
) -> None:
    """Refuses a defence that fails on the kind of input that its client trains on.

    The client is traced, and nothing is computed. Defences that neither replace inputs
    nor hide entries look at no input, and cost nothing here.

    Args:
      config: the study.
      kind: of input.
      arm: of the client.
      client: of the arm.
      inputs: of the function of one victim, see `kljax.studies.builder.study`.

    Raises:
      ValueError: with the arm, the kind of input, and what the defence raises.
    """
    defence = arm.defence
    if defence.inputs is as_given and defence.visible is everything:
        return

    def upload(source: Source, images: Array, labels: Array, *before) -> threat.Update:
        parts = list(client.same)
        for draw in client.draws:
            parts.append(draw(source, *parts))
        rng = draw_rng(source, "step")
        run = client.uploads or client.upload
        return run(rng, defence, *parts, images, labels, *before)

    source, _, *private = inputs[len(client.same) :]
    try:
        jax.eval_shape(upload, *jax.tree.map(lambda x: x[0], (source, *private)))
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"arm {arm.name!r} fails on inputs of kind {kind}, which dataset "
            f"{config.data!r} holds: {error}"
        ) from error
