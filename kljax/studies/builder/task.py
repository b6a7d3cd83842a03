"""The task of a study: what its configuration names, and all its arms share.

Every arm of a study has the same dataset, and the same network but for the norm layers
that a key-lock brings along.
"""

import contextlib
import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from kljax import data
from kljax.core.registry import call_named, check_callable, resolve
from kljax.core.types import Array, Loss, Model, Rng
from kljax.defences.arms import Arm, Sites
from kljax.defences.lock import ACTIVATIONS, key_lock
from kljax.models import (
    NETWORKS,
    Network,
    from_nnx,
    layers_behind,
    losses,
    redrawn,
    site_widths,
    uniform,
    value_shape,
)
from kljax.models.classifier import find_classifier as lone_classifier
from kljax.studies.builder.own_networks import LOADER, Ready, as_dataset, as_factory
from kljax.studies.config import LeakConfig, TrainConfig

Config = LeakConfig | TrainConfig

TEST_SHARE = 0.2  # held out of a dataset without splits
PUBLIC = 1000  # examples that outsiders re-fit gates on: the most that a test wants


class LearningTask(NamedTuple):
    """What clients train, the same in every arm.

    Attributes:
      dataset: that clients have examples of.
      network: as it is named, with the sites that the study locks.
      models: by whether the norm layers of a lock are there.
      loss: of training.
      sites: where a lock sits, and the lock.
    """

    dataset: data.Dataset
    network: Network
    models: dict[bool, Model]
    loss: Loss
    sites: Sites


class Split(NamedTuple):
    """The examples of a training; no two parts share any."""

    train: data.Dataset  # of all clients
    test: data.Dataset
    public: data.Dataset | None  # nobody's: for outsiders who re-fit gates


def load_dataset(config: Config, split: str | None) -> data.Dataset:
    """Loads a dataset, by its name or by a user's function ``shape -> Dataset``.

    Args:
      config: names it.
      split: for datasets which have any; None for the dataset's own choice.

    Raises:
      ValueError: an unknown name, and what `kljax.data.load` raises.
    """
    width = config.image_width or config.image_size
    shape = (config.image_size, width, config.channels)
    if ":" not in config.data or data.is_path(config.data):
        files = data.stamp(config.data, config.data_dir)
        sizes = shape, config.tokens
        return _load(config.data, *sizes, split, config.data_dir, files)
    make = resolve("dataset", config.data, data.EMBEDDED)
    try:
        dataset = call_named("dataset", config.data, make, shape)
    except ValueError as error:
        if error.__cause__ is None:
            raise
        raise ValueError(f"{error}; expected {LOADER}") from error
    return as_dataset(config.data, dataset)


def fetch_examples(
    dataset: data.Dataset, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Reads examples [n] of a dataset, and checks them."""
    inputs, labels = dataset.fetch(chosen)
    return data.check_batch(
        inputs,
        labels,
        dataset.num_classes,
        name=dataset.name,
        indices=chosen,
        input_spec=dataset.input_spec,
        target_spec=dataset.target_spec,
    )


@functools.lru_cache(maxsize=8)
def _load(
    name: str, shape, length: int, split: str | None, data_dir: str | None, files
) -> data.Dataset:
    """Loads a dataset; a sweep asks for the same one in every cell.

    A user's function is called anew each time: what it gives may have changed.
    """
    del files  # part of the cache's index: other files under the same name are others
    return data.load(name, shape=shape, length=length, split=split, data_dir=data_dir)


def load_split(config: TrainConfig) -> Split:
    """Loads what clients train on, what models are tested on, and what is public.

    Raises:
      ValueError: an unknown name or split, labels not worth training on, too few
        examples, and what `kljax.data.load` raises.
    """
    if not data.has_splits(config.data):
        if (config.train_split, config.test_split) != ("train", "test"):
            raise ValueError(
                f"dataset {config.data!r} has no splits: leave train_split and "
                "test_split out"
            )
        whole = tested = load_dataset(config, None)
        if whole.untrained_only:
            raise ValueError(
                f"the labels of dataset {config.data!r} mean too little to train on: "
                "take another"
            )
        ours, test = data.holdout(whole, config.seed, TEST_SHARE)
    else:
        whole = load_dataset(config, config.train_split)
        tested = load_dataset(config, config.test_split)
        ours, test = np.arange(len(whole)), np.arange(len(tested))
    count = config.public_examples
    if count is None:
        count = min(PUBLIC, len(ours) // 10)
    left = max(len(ours) - count, 0)
    if left < config.clients:
        raise ValueError(
            f"dataset {config.data!r} has {len(ours)} training examples; {count} "
            f"public ones leave {left} for {config.clients} clients"
        )
    ours = _shuffled(whole, ours, config.seed)
    test = _shuffled(tested, test, config.seed)[: config.test_examples]
    public = data.subset(whole, np.sort(ours[:count])) if count else None
    train = data.subset(whole, np.sort(ours[count:][: config.examples]))
    return Split(train, data.subset(tested, np.sort(test)), public)


def _shuffled(dataset: data.Dataset, indices: np.ndarray, seed: int) -> np.ndarray:
    order = data.select(dataset, len(dataset), seed)
    return order[np.isin(order, indices)]


def build_task(config: Config, dataset: data.Dataset) -> LearningTask:
    """Builds what clients train on a dataset.

    Raises:
      ValueError: for a model, sites or a loss that do not exist or do not fit.
    """
    network = find_network(config)
    _check_inputs(config, network, dataset)
    models = {
        norm: make_model(config, network, dataset, norm=norm) for norm in (False, True)
    }
    _check_outputs(config, models[False], dataset)
    network = _with_classifier(network, models[False], dataset)
    loss = resolve("loss", config.loss, losses.LOSSES)
    check_callable("loss", config.loss, loss)
    sites = _find_sites(config, network, models, dataset)
    return LearningTask(dataset, network, models, loss, sites)


def _with_classifier(network: Network, model: Model, dataset: data.Dataset) -> Network:
    """Finds the classifier of a user's network where there is one of one kind."""
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    if network.inputs is not None or f"{network.classifier}/kernel" in params:
        return network
    with contextlib.suppress(ValueError):  # whoever reads labels has to name it
        return network._replace(classifier=lone_classifier(model, dataset.input_spec))
    return network


def find_network(config: Config) -> Network:
    """Finds the network, with the sites that the study locks.

    Raises:
      ValueError: an unknown name, and for what cannot be called as a factory is.
    """
    network = resolve("model", config.model, NETWORKS)
    if not isinstance(network, Network):  # a user's factory
        factory = as_factory(config.model, network)
        network = Network(factory, (), "fc", inputs=None)
    single, every = network.sites, network.all_sites
    named = {(): single, ("single",): single, ("all",): every}
    return network._replace(sites=named.get(config.sites, config.sites))


def make_model(
    config: Config, network: Network, dataset: data.Dataset, *, norm: bool
) -> Model:
    """Makes the network of an arm, with or without the norm layers of a lock.

    Raises:
      ValueError: for a user's network that cannot be built, is none, or is not told of
        padding that there is.
    """
    options: dict[str, Any] = {"image_shape": dataset.shape}
    sizes = dataset.input_spec.sizes
    if sizes.get("padded") and not network.accepts("padded"):
        raise ValueError(
            f"dataset {config.data!r} pads its sentences with the token -1, and model "
            f"{config.model!r} has no argument padded: give it one, and leave out "
            "tokens below 0 and embeddings of zeros, or take sentences of one length"
        )
    options |= {name: sizes[name] for name in sizes if network.accepts(name)}
    # A user's network without a switch is used as it is, in every arm alike.
    if network.accepts("lockable"):
        options["lockable"] = network.sites if norm else ()
    draws = network.accepts("initialiser")
    if config.init and draws:
        options["initialiser"] = uniform(config.init)

    def build(rngs):
        return network.factory(dataset.target_spec.outputs, rngs=rngs, **options)

    try:
        if isinstance(network.factory, Ready):
            spec = dataset.input_spec
            model = network.factory.model(spec, config.convolution)
        else:
            model = from_nnx(build, convolution=config.convolution)
    except (TypeError, ValueError) as error:
        raise ValueError(f"model {config.model!r}: {error}") from error
    if config.init and not draws:
        model = redrawn(model, uniform(config.init))
    return model


def _check_inputs(config: Config, network: Network, dataset: data.Dataset) -> None:
    """Refuses a network on inputs of a kind that it does not take."""
    kind = dataset.input_spec.kind
    if network.inputs not in (None, kind):
        fitting = [name for name, row in NETWORKS.items() if row.inputs == kind]
        takes = f": take {' or '.join(fitting)}" if fitting else ""
        raise ValueError(
            f"model {config.model!r} takes inputs of kind {network.inputs!r}, and "
            f"dataset {config.data!r} holds {kind!r}{takes}"
        )


def _check_outputs(config: Config, model: Model, dataset: data.Dataset) -> None:
    """Compares what a network gives with the targets, without computing anything.

    Raises:
      ValueError: for outputs of another shape than the targets, such as another number
        of logits than one per class; and for a loss that does not fit them.
    """
    targets = dataset.target_spec
    losses.check_fits(config.loss, targets.kind)

    def outputs(rng: Rng) -> Array:
        inputs = dataset.input_spec.zeros(1)
        return model.apply(*model.init(rng), inputs, train=False).logits

    wanted = (1, *targets.shape)
    shape = jax.eval_shape(outputs, jax.random.key(0)).shape
    if shape == wanted:
        return
    one = "image" if dataset.input_spec.kind == "image" else "example"
    if targets.kind == "classes":
        raise ValueError(
            f"model {config.model!r} gives logits of shape {shape} for one {one}, and "
            f"dataset {config.data!r} has {targets.classes} classes: expected one "
            f"logit per class, shape {wanted}"
        )
    raise ValueError(
        f"model {config.model!r} gives outputs of shape {shape} for one {one}, and "
        f"targets of dataset {config.data!r} are {targets.kind}: expected shape "
        f"{wanted}"
    )


def _find_sites(
    config: Config,
    network: Network,
    models: dict[bool, Model],
    dataset: data.Dataset,
) -> Sites:
    """Finds the layers to lock, makes their lock, and says where modules can be put.

    Raises:
      ValueError: for a site that the network has not.
    """
    widths = site_widths(models[True], network.sites, dataset.input_spec)
    lock = key_lock(
        network.sites,
        widths,
        size=config.private_key_size,
        chained=config.chained,
        limit=config.lock_init or None,
        activation=ACTIVATIONS[config.lock_activation],
    )
    plain, inputs = models[False], dataset.input_spec
    return Sites(
        network.sites,
        widths,
        lock,
        getattr(config, "classifier", None) or network.classifier,
        functools.cache(lambda name: value_shape(plain, name, inputs)),
        functools.cache(lambda name: layers_behind(plain, name, inputs)),
    )


def find_classifier(config: LeakConfig, task: LearningTask) -> str:
    """Finds the layer from which labels are read.

    There need be none, and is "", where targets are no classes.

    Raises:
      ValueError: for a layer that the network has not, or that has no kernel.
    """
    path = config.classifier or task.network.classifier
    params, _ = jax.eval_shape(task.models[False].init, jax.random.key(0))
    if f"{path}/kernel" not in params:
        if config.classifier is None and task.dataset.target_spec.class_of is None:
            return ""
        layers = sorted(p.removesuffix("/kernel") for p in params if "/kernel" in p)
        raise ValueError(
            f"classifier {path!r} is no layer with a kernel of {config.model!r}; "
            f"those are {', '.join(layers)}"
        )
    return path


def check_norm(config: Config, network: Network, arm: Arm) -> None:
    """Refuses a control of the norm alone on a network without a switch for it."""
    if arm.norm and not arm.gated and not network.accepts("lockable"):
        raise ValueError(
            f"arm {arm.name!r} needs a network with an argument lockable; "
            f"{config.model!r} has none and is the same in every arm: leave this one "
            "out of the arms"
        )
