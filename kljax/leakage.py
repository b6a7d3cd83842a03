"""The main job: victims, their gradients under several arms, and the attack on each.

`leak` runs what a `kljax.config.LeakConfig` says. Networks and private keys are drawn
first; then one compiled function per arm takes a victim from its gradient through the
wall to its reconstruction. `kljax.scoring` and `kljax.report` take over from there.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljax import arms as arms_room
from kljax import clients, data, losses, threat
from kljax.arms import Arm, Sites
from kljax.attacks import Candidate, Objective, Reconstruction, Setting
from kljax.attacks.presets import OPTIMISERS, PRESETS, Preset
from kljax.attacks.simulation import one_step
from kljax.config import LeakConfig
from kljax.defences import Defence
from kljax.keylock import key_lock
from kljax.mapping import Timing, map_victims
from kljax.metrics.image import SSIM_WINDOW
from kljax.models import NETWORKS, Network, from_nnx, site_widths, uniform
from kljax.registry import resolve
from kljax.typing import Array, Model, Params, Private, Public, PyTree, Rng, Stats


class Victims(NamedTuple):
    """The private data under attack, one gradient's worth per victim."""

    indices: np.ndarray  # [N, B] positions in the dataset
    images: np.ndarray  # [N, B, H, W, C] in [0, 1]
    labels: np.ndarray  # [N, B] int32
    groups: np.ndarray  # [N] bootstrap clusters, of the first example


class Attacked(NamedTuple):
    """What the compiled function says of one victim."""

    reconstruction: Reconstruction
    loss_at_truth: Array  # [] diagnostic, never shown to the attack
    loss_scale: Array  # [] objective if the faintest tensor is missed
    live_channels: Array  # [] gated channels whose scale is not 0


class ArmResult(NamedTuple):
    """One arm, all victims."""

    arm: Arm
    threat: threat.ThreatModel
    attacked: Attacked  # with a leading axis [N]
    timing: Timing


class LeakResult(NamedTuple):
    """A finished study."""

    config: LeakConfig
    dataset: data.Dataset
    victims: Victims
    arms: list[ArmResult]


def leak(
    config: LeakConfig,
    *,
    on_arm: Callable[[str], Any] = lambda name: None,
    on_block: Callable[[int], Any] | None = None,
) -> LeakResult:
    """Attacks every victim under every arm.

    Args:
      config: the study.
      on_arm: called with each arm's name before it begins.
      on_block: called with the number of victims of this arm finished so far.

    Raises:
      ValueError: for anything in `config` that does not exist or does not fit,
        before anything is computed.
    """
    dataset = load_dataset(config)
    victims = choose_victims(config, dataset)
    network = _network(config)
    preset = resolve("attack", config.attack, PRESETS)
    if not isinstance(preset, Preset):  # a user's function
        preset = Preset(preset, "recovered", None)
    loss = resolve("loss", config.loss, losses.LOSSES)
    lock = _sites(config, network, dataset)
    classifier = _classifier(config, network, dataset)
    models = {
        norm: _model(config, network, dataset, norm=norm) for norm in (False, True)
    }
    # Arms that share a network or a defence share its draws, and their compilation.
    network_draws = functools.cache(lambda norm: _draw_network(config, models[norm]))
    defence_draws = functools.cache(lambda defence: _draw_defence(config, defence))
    # All arms are made before the first is run: a typo in the last one costs nothing.
    studied, made = [], {}
    for text in config.arms:
        arm = arms_room.parse_arm(text, lock, made)
        if arm.norm and not arm.gated and not network.accepts("norm"):
            raise ValueError(
                f"arm {text!r} needs a network with an argument norm; {config.model!r} "
                "has none and is the same in every arm: leave this one out of the arms"
            )
        declared = _threat(config, arm, preset)
        setting = Setting(
            model=models[arm.norm],
            loss=loss,
            gates=arm.defence.gates,
            simulate=arm.defence.simulate,
            image_shape=dataset.shape,
            num_classes=dataset.num_classes,
            classifier=classifier,
            sites=tuple(zip(lock.paths, lock.widths, strict=True)),
            threat=declared,
        )
        draws = network_draws(arm.norm), defence_draws(arm.defence)
        fn = one_victim(config, setting, arm, preset)
        studied.append((arm, declared, draws, fn))
    results = []
    with jax.default_matmul_precision(config.precision):
        for arm, declared, draws, fn in studied:
            on_arm(arm.name)
            run = map_victims(fn, config.layout, draws=draws, on_block=on_block)
            attacked, timing = run(
                victims.indices[:, 0], victims.images, victims.labels
            )
            results.append(ArmResult(arm, declared, attacked, timing))
    return LeakResult(config, dataset, victims, results)


def _rng(config: LeakConfig, index: Array, purpose: str) -> Rng:
    """Derives a victim's random key from its index in the dataset, by purpose."""
    number = ("weights", "defence", "step", "attack").index(purpose)
    rng = jax.random.fold_in(jax.random.key(config.seed), number)
    return jax.random.fold_in(rng, index)


def _draw_network(config: LeakConfig, model: Model) -> Callable[[Array], PyTree]:
    """Makes ``index -> (params, stats)``."""

    def draw(index: Array) -> PyTree:
        if config.weights == "shared":
            index = jnp.zeros_like(index)
        return model.init(_rng(config, index, "weights"))

    return draw


def _draw_defence(config: LeakConfig, defence: Defence) -> Callable[..., PyTree]:
    """Makes ``(index, (params, stats)) -> (public, Private)``."""

    def draw(index: Array, network: tuple[Params, Stats]) -> PyTree:
        return defence.init(_rng(config, index, "defence"), network[0])

    return draw


def one_victim(
    config: LeakConfig, setting: Setting, arm: Arm, preset: Preset
) -> Callable[..., Attacked]:
    """Makes the function of one victim.

    Returns:
      ``((params, stats), (public, private), index, images, labels) -> Attacked``.
    """
    optimiser = None
    if config.optimiser is not None:
        optimiser = resolve("optimiser", config.optimiser, OPTIMISERS)()
    attack = preset.build(
        setting, optimiser, steps=config.steps, restarts=config.restarts
    )
    train = setting.threat.knowledge.victim_norm == "train"
    step = clients.one_step(setting.model, setting.loss, arm.defence, train=train)
    replay = one_step(setting, setting.gates)

    def run(
        network: tuple[Params, Stats],
        defence: tuple[PyTree, Private],
        index: Array,
        images: Array,
        labels: Array,
    ) -> Attacked:
        (params, stats), (public, private) = network, defence
        rng_step = _rng(config, index, "step")
        rng_attack = _rng(config, index, "attack")
        targets = jax.nn.one_hot(labels, setting.num_classes)
        update = step(rng_step, Public(params, public), stats, private, images, targets)
        view = threat.observe(setting.threat, update)
        reconstruction = attack(rng_attack, view)

        # Diagnostics, on this side of the wall.
        truth = Candidate(update.images, update.targets, update.private)
        loss_at_truth = loss_scale = jnp.nan
        if preset.objective is not None:
            simulated, observed = replay(view, truth)
            objective = preset.objective()
            loss_at_truth = objective(simulated, observed)
            loss_scale = weakest_tensor(objective, observed)
        gates = arm.defence.gates(public, private)
        live = sum((jnp.sum(gate.scale != 0) for gate in gates.values()), jnp.array(0))
        return Attacked(
            reconstruction, jnp.asarray(loss_at_truth), jnp.asarray(loss_scale), live
        )

    return run


def weakest_tensor(objective: Objective, observed: PyTree) -> Array:
    """Computes what the objective says when the faintest tensor is missed entirely.

    The classifier's gradient is often a hundred times longer than the first layer's,
    in which the image is written: a loss that is small beside the whole gradient can
    still miss all of that. Tensors below float32 rounding (a millionth of the whole
    gradient's norm), such as a bias in front of a norm layer, do not count.
    """
    leaves, tree = jax.tree.flatten(observed)
    powers = jnp.stack([jnp.sum(leaf**2) for leaf in leaves])
    missed = jnp.stack(
        [
            objective(
                jax.tree.unflatten(
                    tree,
                    [jnp.zeros_like(x) if i == n else x for i, x in enumerate(leaves)],
                ),
                observed,
            )
            for n in range(len(leaves))
        ]
    )
    return jnp.min(jnp.where(powers > 1e-12 * jnp.sum(powers), missed, jnp.inf))


def load_dataset(config: LeakConfig) -> data.Dataset:
    """Loads the dataset, by its name or by a user's function ``shape -> Dataset``."""
    shape = (config.image_size, config.image_size, 3)
    if ":" in config.data:
        dataset = resolve("dataset", config.data, data.EMBEDDED)(shape)
        if not isinstance(dataset, data.Dataset):
            raise ValueError(
                f"dataset {config.data!r} gave {type(dataset).__name__}, expected a "
                "kljax.data.Dataset"
            )
        if min(dataset.shape[:2]) < SSIM_WINDOW:
            raise ValueError(
                f"dataset {config.data!r} has images of shape {dataset.shape}; SSIM "
                f"needs sides of at least {SSIM_WINDOW}"
            )
        return dataset
    return data.load(
        config.data, shape=shape, split=config.split, data_dir=config.data_dir
    )


def choose_victims(config: LeakConfig, dataset: data.Dataset) -> Victims:
    """Draws the victims: the first n of more victims are the n of fewer."""
    chosen = data.select(dataset, config.victims * config.examples, config.seed)
    images, labels = dataset.fetch(chosen)
    images, labels = data.check_batch(
        images, labels, dataset.num_classes, name=dataset.name, indices=chosen
    )
    indices = chosen.reshape(config.victims, config.examples)
    return Victims(
        indices,
        images.reshape(*indices.shape, *images.shape[1:]),
        labels.reshape(indices.shape),
        dataset.groups_of(indices[:, 0]),
    )


def _network(config: LeakConfig) -> Network:
    found = resolve("model", config.model, NETWORKS)
    if not isinstance(found, Network):
        found = Network(found, (), "fc")
    return found._replace(sites=config.sites or found.sites)


def _model(
    config: LeakConfig, network: Network, dataset: data.Dataset, *, norm: bool
) -> Model:
    options: dict[str, Any] = {"image_shape": dataset.shape}
    # A user's network without a switch is used as it is, in every arm alike.
    if network.accepts("norm"):
        options["norm"] = norm
    if config.init and network.accepts("initialiser"):
        options["initialiser"] = uniform(config.init)

    def build(rngs):
        return network.factory(dataset.num_classes, rngs=rngs, **options)

    return from_nnx(build, convolution=config.convolution)


def _sites(config: LeakConfig, network: Network, dataset: data.Dataset) -> Sites:
    model = _model(config, network, dataset, norm=True)
    widths = site_widths(model, network.sites, dataset.shape)
    lock = key_lock(
        network.sites,
        widths,
        size=config.private_key_size,
        chained=config.chained,
        limit=config.lock_init or None,
    )
    return Sites(network.sites, widths, lock)


def _classifier(config: LeakConfig, network: Network, dataset: data.Dataset) -> str:
    """Checks the path of the layer from which labels are read."""
    path = config.classifier or network.classifier
    model = _model(config, network, dataset, norm=False)
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    if f"{path}/kernel" not in params:
        layers = sorted(p.removesuffix("/kernel") for p in params if "/kernel" in p)
        raise ValueError(
            f"classifier {path!r} is no layer with a kernel of {config.model!r}; "
            f"those are {', '.join(layers)}"
        )
    return path


def _threat(config: LeakConfig, arm: Arm, preset: Preset) -> threat.ThreatModel:
    facts: dict[str, Any] = {"examples": config.examples}
    for fact in config.threat:
        field, equals, value = fact.partition("=")
        if not equals:
            raise ValueError(f"threat fact {fact!r}: write it as field=value")
        if field == "examples":
            raise ValueError("threat fact 'examples': set the option examples instead")
        if field == "upload" and value != "gradient":
            raise ValueError(
                f"threat fact {fact!r}: victims of this study upload one step's "
                "gradient, upload=gradient"
            )
        facts[field] = value
    strategy = threat.Strategy(
        lock=arm.lock_strategy, labels=config.labels or preset.labels
    )
    return threat.least_knowledge(strategy, **facts)
