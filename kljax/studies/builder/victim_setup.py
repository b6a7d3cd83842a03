"""The stage of a study: victims, and what each of them has when it is attacked.

Networks, private keys and lock weights are drawn afresh for each victim, or captured
from a run of `kljax train`.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljax import data, threat
from kljax.attacks import Insertion, Protocol
from kljax.core.drawing import draw_jointly
from kljax.core.memory import check_fits
from kljax.core.randomness import derive_rng
from kljax.core.registry import check_callable, resolve
from kljax.core.types import Array, Loss, Model, Params, Public, PyTree, Rng, Stats
from kljax.defences.arms import Arm, Sites
from kljax.defences.catalogue import find_kind
from kljax.defences.defence import no_parts
from kljax.federated import clients
from kljax.metrics.image import SSIM_WINDOW
from kljax.models import Network, losses
from kljax.studies.builder import from_run, run_setup, task
from kljax.studies.builder.earlier import choose_before
from kljax.studies.builder.generator import private_order, private_rows
from kljax.studies.config import LeakConfig

# What the random key of a study is for.
PURPOSES = ("weights", "defence", "step", "attack")


class Victims(NamedTuple):
    """The private data under attack, one upload's worth per victim."""

    indices: np.ndarray  # [N, B] in the dataset of the stage
    images: np.ndarray  # [N, B, H, W, C] in [0, 1]
    labels: np.ndarray  # [N, B] int32
    groups: np.ndarray  # [N] bootstrap clusters, see `data.Dataset.clusters_of`
    uploads: np.ndarray  # [N] numbers of the uploads in the study, from 0
    # Of what each client has sent before: images [N, t, B, H, W, C], labels [N, t, B]
    before: tuple[np.ndarray, ...] = ()


class Source(NamedTuple):
    """What everything random of a victim is drawn from."""

    index: Array  # [] position of its first example in the dataset
    rng_data: Array  # [2] uint32 of the random key of the study
    survey: PyTree = ()  # what a malicious server measured on public images
    options: tuple[Array, ...] = ()  # of the arm, where its defence draws by them


# What a client does: (rng, Defence, network, held, images [B, H, W, C], labels [B],
# before=()) -> Update, where network is (params, stats), held what it has beside it,
# and before the images and labels of earlier uploads, see `Victims`.
Client = Callable[..., threat.Update]


class Staged(NamedTuple):
    """An arm with everything that an attack on it needs.

    Attributes:
      arm: the defence, and what is done about its lock.
      model: the network.
      client: makes the upload of one victim.
      draws: functions that draw network and held for each `Source`, see `map_victims`.
      same: network and held, where they are the same for all victims.
      survey: what a malicious server measured on public images; () for an honest one.
    """

    arm: Arm
    model: Model
    client: Client
    draws: tuple[Callable[..., PyTree], ...] = ()
    same: tuple[PyTree, ...] = ()
    survey: PyTree = ()


class Stage(NamedTuple):
    """What all arms of a study stand on, drawn afresh or captured from a run.

    Attributes:
      dataset: where the victims come from.
      victims: the private data.
      loss: training loss of the clients.
      sites: where a lock sits.
      stage: ``(Arm, train) -> Staged``; train is the mode of the victim's norms.
      protocol: of a whole update; None for gradients.
    """

    dataset: data.Dataset
    victims: Victims
    loss: Loss
    sites: Sites
    stage: Callable[[Arm, bool], Staged]
    protocol: Protocol | None = None


def set_stage(
    config: LeakConfig, network: Network, insertion: Insertion | None = None
) -> Stage:
    """Sets the stage of a settled study (`kljax.studies.builder.from_run.settle`).

    Args:
      config: the study.
      network: of all arms.
      insertion: what a malicious server puts in front of it.

    Raises:
      ValueError: for anything in `config` that does not exist or does not fit.
    """
    stage = _drawn if config.from_run is None else _captured
    return stage(config, network, insertion)


def sources(
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


def survey_public(
    config: LeakConfig, dataset: data.Dataset, insertion: Insertion | None
) -> PyTree:
    """Measures what a malicious server knows of images before it sees a client's.

    It has public ones: at most `task.PUBLIC` of the same dataset, and no more than half
    of it, none of which is a victim's.

    Raises:
      ValueError: for more victims than leave enough of the dataset.
    """
    if insertion is None:
        return ()
    order = private_order(config, dataset)
    count = min(task.PUBLIC, len(order) // 2)
    before = config.victims * config.earlier * config.examples
    private = config.victims * config.examples + before
    if private + count > len(order):
        raise ValueError(
            f"attack {config.attack!r} needs {count} public images of dataset "
            f"{dataset.name!r}, and {config.victims} victims of {config.examples} "
            f"examples leave {len(order) - private} of {len(order)}"
        )
    # Victims are the first of this order, and what they sent before the last.
    order = order[: len(order) - before]
    return insertion.survey(dataset.fetch(order[-count:])[0])


def _with(
    model: Model,
    insertion: Insertion | None,
    image_shape: tuple[int, int, int],
    survey: PyTree,
) -> Model:
    return model if insertion is None else insertion.insert(model, image_shape, survey)


def _drawn(config: LeakConfig, network: Network, insertion: Insertion | None) -> Stage:
    """Stages networks, private keys and lock weights that are drawn afresh."""
    dataset = load_dataset(config)
    victims = choose_victims(config, dataset)
    loss = resolve("loss", config.loss, losses.LOSSES)
    check_callable("loss", config.loss, loss)
    survey = survey_public(config, dataset, insertion)
    plain = {
        norm: task.make_model(config, network, dataset, norm=norm)
        for norm in (False, True)
    }
    models = {
        norm: _with(model, insertion, dataset.shape, survey)
        for norm, model in plain.items()
    }
    # Arms that share a network or a defence share its draws, and their compilation.
    network_draws = functools.cache(
        lambda norm: _draw_network(config, plain[norm], insertion, dataset.shape)
    )
    defence_draws: dict[str, Callable] = {}

    def stage(arm: Arm, train: bool) -> Staged:
        model = models[arm.norm]

        def client(
            rng, defence, network, held, images, labels, before=()
        ) -> threat.Update:
            (params, stats), (public, private) = network, held
            step = clients.one_step(model, loss, defence, train=train)
            if before:
                step = clients.recorded(
                    step, before[0], jax.nn.one_hot(before[1], dataset.num_classes)
                )
            targets = jax.nn.one_hot(labels, dataset.num_classes)
            return step(rng, Public(params, public), stats, private, images, targets)

        # Only the first part of a combination has parts of its own to draw.
        whole = arm.skeleton if options_of_draws(arm) else first_part(arm)
        held = defence_draws.setdefault(whole, _draw_defence(arm))
        draws = (network_draws(arm.norm), held)
        return Staged(arm, model, client, draws=draws, survey=survey)

    sites = task.find_sites(config, network, dataset)
    return Stage(dataset, victims, loss, sites, stage)


def _captured(
    config: LeakConfig, network: Network, insertion: Insertion | None
) -> Stage:
    """Stages a client of a run, at a state that was kept."""
    del network  # the run's own
    found = from_run.capture(config)
    prepared, protocol = found.prepared, found.protocol
    dataset, loss = prepared.train, prepared.loss
    survey = _survey_run(config, prepared.public, insertion)
    victims = choose_victims(config, data.subset(dataset, found.own))
    indices = found.own[victims.indices]
    groups = dataset.clusters_of(indices)
    victims = victims._replace(indices=indices, groups=groups)
    options = run_setup.local_options(prepared)
    # Arms that differ in strategy alone read their states once.
    states = functools.cache(lambda name: from_run.capture_arm(found, name))

    def stage(arm: Arm, train: bool) -> Staged:
        state = states(from_run.trained_name(arm.name))
        model = _with(state.model, insertion, dataset.shape, survey)
        params = state.public.model
        if insertion is not None:
            params = _added(model, params)

        def client(
            rng, defence, network, held, images, labels, before=()
        ) -> threat.Update:
            del before  # a client of a run has sent what it has sent
            (params, stats), (public, mine, initial) = network, held
            received = Public(params, public)
            if protocol is None:
                step = clients.one_step(model, loss, defence, train=train, **options)
                targets = jax.nn.one_hot(labels, dataset.num_classes)
                update = step(
                    rng,
                    received,
                    stats,
                    mine.private,
                    images,
                    targets,
                    mine.release.steps,
                )
            else:
                training = clients.local_update(
                    model,
                    loss,
                    defence,
                    run_setup.local_optimiser(prepared.config),
                    steps=protocol.steps,
                    batch=protocol.batch,
                    **options,
                )
                number = jnp.asarray(config.round)
                update = training.run(
                    rng, number, received, stats, mine, images, labels
                )
            return update._replace(initial_lock_weights=initial)

        same = (
            (params, state.stats),
            (state.public.defence, state.client, state.initial_lock_weights),
        )
        return Staged(arm, model, client, same=same, survey=survey)

    return Stage(dataset, victims, loss, prepared.sites, stage, protocol)


def _survey_run(
    config: LeakConfig, public: data.Dataset | None, insertion: Insertion | None
) -> PyTree:
    """Measures the public images of a run, see `survey_public`."""
    if insertion is None:
        return ()
    if config.upload != "gradient":
        raise ValueError(
            f"attack {config.attack!r} modifies the network, and what the client of a "
            "run remembers of its training does not fit: attack upload='gradient'"
        )
    if public is None:
        raise ValueError(
            f"attack {config.attack!r} needs public images, and run "
            f"{config.from_run!r} has none (public_examples of kljax train)"
        )
    return insertion.survey(public.fetch(np.arange(len(public)))[0])


def _added(model: Model, params: Params) -> Params:
    """Adds to trained parameters those that an insertion has on its own."""

    def own() -> Params:
        drawn, _ = model.init(jax.random.key(0))
        return {name: drawn[name] for name in drawn.keys() - params.keys()}

    return {**params, **jax.device_get(jax.jit(own)())}


def draw_rng(source: Source, purpose: str) -> Rng:
    """Derives a victim's random key for one of `PURPOSES`."""
    rng = derive_rng(jax.random.wrap_key_data(source.rng_data), PURPOSES, purpose)
    return jax.random.fold_in(rng, source.index)


def _draw_network(
    config: LeakConfig,
    model: Model,
    insertion: Insertion | None,
    image_shape: tuple[int, int, int],
) -> Callable[[Source], PyTree]:
    """Makes ``Source -> (params, stats)``."""

    def draw(source: Source) -> PyTree:
        if config.weights == "shared":
            source = source._replace(index=jnp.zeros_like(source.index))
        # What was measured is data: studies of other seeds share the compilation.
        modified = _with(model, insertion, image_shape, source.survey)
        return draw_jointly(modified.init)(draw_rng(source, "weights"))

    return draw


def first_part(arm: Arm) -> str:
    """Gives the name of the only part of an arm that can draw anything."""
    return arm.skeleton.partition("+")[0]


def options_of_draws(arm: Arm) -> tuple[float, ...]:
    """Gives the numbers of an arm, if its own parts may be drawn by them; else ()."""
    name = first_part(arm).partition("@")[0]
    by_options = arm.defence.init is not no_parts and find_kind(name).options
    return arm.options if by_options else ()


def _draw_defence(arm: Arm) -> Callable[..., PyTree]:
    """Makes ``(Source, (params, stats)) -> (public, Private)``."""

    def draw(source: Source, network: tuple[Params, Stats]) -> PyTree:
        defence = arm.make(source.options) if source.options else arm.defence
        return draw_jointly(defence.init)(draw_rng(source, "defence"), network[0])

    return draw


def load_dataset(config: LeakConfig) -> data.Dataset:
    """Loads the dataset that victims are drawn from; see `task.load_dataset`."""
    dataset = task.load_dataset(config, config.split)
    if dataset.inputs.kind == "image" and min(dataset.shape[:2]) < SSIM_WINDOW:
        raise ValueError(
            f"dataset {config.data!r} has images of shape {dataset.shape}; SSIM needs "
            f"sides of at least {SSIM_WINDOW}"
        )
    return dataset


def choose_victims(config: LeakConfig, dataset: data.Dataset) -> Victims:
    """Draws the victims: the first n of more victims are the n of fewer."""
    wanted, private = config.victims * config.examples, private_rows(config, dataset)
    there = len(dataset) if private is None else int(private.sum())
    if wanted > there:
        unseen = "" if private is None else " that its generator has not seen"
        raise ValueError(
            f"victims={config.victims} of examples={config.examples} are {wanted} "
            f"images, and dataset {dataset.name!r} has {there}{unseen}: ask for fewer"
        )
    image = 4 * math.prod(dataset.shape)
    check_fits(wanted * image, f"{wanted} images", "victims, examples or image_size")
    chosen = private_order(config, dataset, wanted)
    images, labels = task.fetch_examples(dataset, chosen)
    indices = chosen.reshape(config.victims, config.examples)
    return Victims(
        indices,
        images.reshape(*indices.shape, *images.shape[1:]),
        labels.reshape(indices.shape),
        dataset.clusters_of(indices),
        np.arange(config.victims),
        choose_before(config, dataset),
    )
