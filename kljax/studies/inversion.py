"""One upload in, one reconstruction out: `kljax.invert`.

A study draws networks and victims, compares arms and scores them. Here is somebody's
upload, and the network and weights that it was computed at; nothing else is known.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kljax.attacks import (
    AssumedDefence,
    Attacker,
    Protocol,
    Reconstruction,
    Setting,
    Task,
)
from kljax.attacks.presets import find_preset
from kljax.core.checks import check_whole_number
from kljax.core.inputs import InputSpec, images_of
from kljax.core.registry import resolve
from kljax.core.targets import classes_of
from kljax.core.types import Array, Model, Params, Public
from kljax.models import NETWORKS, Network, from_nnx, losses
from kljax.models.classifier import find_classifier
from kljax.studies.builder.own_networks import Ready, as_factory
from kljax.studies.label_search import settle_labels
from kljax.threat import NOTHING_HIDDEN, Strategy, View, least_knowledge


def invert(
    model: Model | nnx.Module | str | Callable[..., nnx.Module],
    params: Mapping[str, Any] | None,
    sent: Mapping[str, Any],
    *,
    image_shape: tuple[int, int, int] = (32, 32, 3),
    examples: int = 1,
    labels: Any = None,
    stats: Mapping[str, Any] | None = None,
    attack: str = "matching",
    classifier: str | None = None,
    loss: str = "cross_entropy",
    protocol: Protocol | None = None,
    steps: int = 2000,
    restarts: int = 1,
    label_candidates: int = 64,
    seed: int = 0,
) -> Reconstruction:
    """Reconstructs what one upload was computed on.

    Args:
      model: a network of the catalogue by its name, an `nnx.Module`, a factory
        ``(num_classes, *, image_shape, rngs)``, one that leaves out what it needs not
        (`kljax.studies.builder.own_networks`), or a `Model`.
      params: ``{"conv1/kernel": array}``, the weights that the client started from, in
        Flax's layout; None for those of an `nnx.Module`.
      sent: the same of what it sent: the mean gradient of its examples, or, with a
        protocol, trained minus received weights.
      image_shape: [H, W, C] of one image.
      examples: B, how many examples the upload is of.
      labels: [B] int, if they are known; None to recover them as the attack does, or
        to try some (`label_candidates`).
      stats: of norm layers; None for those of a network just made.
      attack: a preset of `kljax.attacks.presets`, or ``package.module:function``.
      classifier: path of the last dense layer; None for the network's own, or the one
        dense layer whose width is that of the outputs.
      loss: a name in `kljax.models.losses.LOSSES`.
      protocol: how the client trained, of an update; None for one step's gradient.
      steps, restarts: evaluations of one search, and how many searches; the best by
        its own loss is given back.
      label_candidates: label sequences at most that are tried for up to 100 evaluations
        each, of which the attack's own loss chooses: where labels are hidden and their
        order matters, or the rule that reads them may be wrong, as in `kljax audit`. 1
        to take them as they are read.
      seed: of the attack's draws.

    Returns:
      The reconstruction; ``inputs`` [B, H, W, C]. Its ``loss`` is the attack's own.
      A low loss alone does not say that an image is right: `kljax audit` compares it
      with that of wrong images and of searches from other starts.

    Raises:
      ValueError: for parts that do not fit each other, tensors that are missing or
        unknown, or not finite, a `label_candidates` below 1, and whatever the attack
        cannot work on.
    """
    check_whole_number("label_candidates", label_candidates, 1)
    shape = tuple(image_shape)
    inputs = images_of(shape)
    built, named, own = build_model(model, _classes(model, sent, classifier), shape)
    params = own if params is None else params
    if params is None:
        raise ValueError("params are missing: only an nnx.Module has its own weights")
    head = classifier or named or find_classifier(built, inputs)

    def setting_of(known_labels: bool) -> Setting:
        return make_setting(
            built,
            inputs,
            head,
            examples=examples,
            known_labels=known_labels,
            attack=attack,
            loss=loss,
            protocol=protocol,
            chain=_chain_of(model),
        )

    setting = setting_of(labels is not None)
    view = make_view(setting, params, sent, stats=stats, labels=labels)
    setting, view, _ = settle_labels(
        setting,
        view,
        attack,
        functools.partial(setting_of, True),
        most=label_candidates,
        steps=steps,
    )
    preset = find_preset(attack)
    run = preset.build(setting, None, steps=steps, restarts=restarts)
    return jax.jit(run)(jax.random.key(seed), view)


def is_built(model: str) -> bool:
    """Tells whether a name stands for a network that is there already.

    Raises:
      ValueError: as `build_model`.
    """
    named = resolve("model", model, NETWORKS)
    of_user = not isinstance(named, Network)
    return of_user and isinstance(as_factory(model, named), Ready)


def build_model(
    model: Any, classes: int | None, shape: tuple[int, ...]
) -> tuple[Model, str | None, Params | None]:
    """Makes a `Model` of whatever names or is a network.

    Args:
      model: a network, or its name.
      classes: that a factory is told; None for a network that is there already.
      shape: of one input.

    Returns:
      The model; the path of its classifier, where the catalogue knows it; and its
      weights, where it is an instance.

    Raises:
      ValueError: for an unknown name.
      TypeError: for what is no network.
    """
    if isinstance(model, Model):
        return model, None, None
    if isinstance(model, nnx.Module):
        built = from_nnx(model)
        return built, None, built.init(jax.random.key(0))[0]
    named = resolve("model", model, NETWORKS) if isinstance(model, str) else model
    if not (isinstance(named, Network) or callable(named)):
        raise TypeError(f"expected a network or its name, got {model!r}")
    if not isinstance(named, Network):
        factory = as_factory(str(model), named)
        if isinstance(factory, Ready):
            if isinstance(factory.given, nnx.Module):
                return build_model(factory.given, classes, shape)
            return factory.model(images_of(shape), "auto"), None, None
        named = Network(factory, (), "")
    network = named

    def build(rngs: nnx.Rngs) -> nnx.Module:
        return network.factory(classes, image_shape=shape, rngs=rngs)

    return from_nnx(build), network.classifier or None, None


def make_setting(
    model: Model,
    inputs: InputSpec,
    classifier: str,
    *,
    examples: int,
    known_labels: bool,
    attack: str,
    loss: str,
    protocol: Protocol | None,
    chain: tuple = (),
    norm: str = "train",
) -> Setting:
    """Makes the setting of an attacker who sees one undefended upload.

    Args:
      model, inputs, classifier, chain: see `kljax.attacks.Task`.
      examples: B.
      known_labels: whether the attacker has the labels.
      attack: whose way to labels is taken, where it has not, and whose needs are met.
      loss: a name in `kljax.models.losses.LOSSES`.
      protocol: of an update; None for a gradient.
      norm: mode of the norm layers, ``train`` or ``eval``.

    Raises:
      ValueError: for a classifier that is not there, and unknown names.
    """
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    if f"{classifier}/kernel" not in params:
        raise ValueError(
            f"classifier {classifier!r} is no layer with a kernel; the network has "
            f"{', '.join(params)}"
        )
    preset = find_preset(attack)
    plan = "given" if known_labels else preset.labels
    if plan == "given" and not known_labels:
        plan = "recovered"  # those of ig-fedavg are given where somebody has them
    strategy = Strategy(secret="unit", labels=plan)
    threat = least_knowledge(
        strategy,
        NOTHING_HIDDEN,
        examples=examples,
        upload="gradient" if protocol is None else "update",
        victim_norm=norm,
        attacker_norm=norm,
    )
    task = Task(
        model,
        resolve("loss", loss, losses.LOSSES),
        inputs,
        classes_of(params[f"{classifier}/kernel"].shape[-1]),
        classifier,
        chain,
    )
    defence = AssumedDefence(gates=lambda public, private: {})
    return Setting(task, threat, defence, protocol, Attacker())


def make_view(
    setting: Setting,
    params: Mapping[str, Any],
    sent: Mapping[str, Any],
    *,
    stats: Mapping[str, Any] | None,
    labels: Any,
) -> View:
    """Makes what an attacker sees of an upload.

    Args:
      setting: of the attack.
      params, sent, stats, labels: see `invert`.

    Raises:
      ValueError: for a tensor that is missing, unknown, of another shape or not finite,
        and labels that are none.
    """
    shapes, like = setting.task.shapes()
    targets = None
    if labels is not None:
        labels = np.asarray(labels)
        examples = setting.threat.knowledge.examples
        if labels.shape != (examples,):
            raise ValueError(f"labels have shape {labels.shape}; give ({examples},)")
        rows = np.arange(examples)
        labels = setting.task.targets.check(labels, rows, "the upload")
        targets = setting.task.targets.encode(jnp.asarray(labels))
    if stats is None:
        stats = setting.task.model.init(jax.random.key(0))[1] if like else {}
    return View(
        public=Public(checked("params", params, shapes)),
        stats=checked("stats", stats, like),
        grads=Public(checked("sent", sent, shapes)),
        new_stats=None,
        targets=targets,
        private_key=None,
        lock_weights=None,
        lock_grads=None,
    )


def checked(
    what: str, tensors: Mapping[str, Any], shapes: Mapping[str, Any]
) -> dict[str, Array]:
    """Gives tensors as float32 in the network's own order, once they are sound.

    Raises:
      ValueError: for one that is missing, unknown, of another shape, or not finite.
    """
    missing = sorted(shapes.keys() - tensors.keys())
    unknown = sorted(tensors.keys() - shapes.keys())
    if missing or unknown:
        raise ValueError(
            f"{what} do not fit the network: missing {missing}, unknown {unknown}"
        )
    found = {}
    for name, like in shapes.items():
        array = np.asarray(tensors[name], np.float32)
        if array.shape != like.shape:
            raise ValueError(
                f"{what}: {name!r} has shape {array.shape}, and the network's has "
                f"{like.shape}"
            )
        bad = int(array.size - np.isfinite(array).sum())
        if bad:
            raise ValueError(
                f"{what}: {bad} of {array.size} of {name!r} are not finite"
            )
        found[name] = jnp.asarray(array)
    return found


def _known(model: Any) -> Network | None:
    return NETWORKS.get(model) if isinstance(model, str) else None


def _chain_of(model: Any) -> tuple:
    known = _known(model)
    return known.chain if known else ()


def _classes(model: Any, sent: Mapping[str, Any], classifier: str | None) -> int:
    """Reads the number of classes off the classifier's kernel.

    Of a network whose classifier nobody names it is guessed by the last kernel of two
    axes; `find_classifier` then looks whether that is it.

    Raises:
      ValueError: for a classifier of which nothing was sent.
    """
    known = _known(model)
    name = f"{classifier or (known.classifier if known else '')}/kernel"
    if name in sent:
        return np.shape(sent[name])[-1]
    if name != "/kernel":
        raise ValueError(f"sent has no {name!r}; it has {', '.join(sent)}")
    widths = [np.shape(x)[-1] for x in sent.values() if np.ndim(x) == 2]
    return widths[-1] if widths else 1
