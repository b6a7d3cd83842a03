"""The main job: victims, their uploads under several arms, and the attack on each.

`leak` runs what a `kljax.config.LeakConfig` says. Networks and private keys are drawn
first, or captured from a run of `kljax train`; then one compiled function per arm takes
a victim from its upload through the wall to its reconstruction. `kljax.scoring` and
`kljax.report` take over from there.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljax import arms as arms_room
from kljax import captured, clients, data, ground, losses, threat
from kljax.arms import Arm, Sites
from kljax.attacks import Candidate, Objective, Protocol, Reconstruction, Setting
from kljax.attacks import replay as replay_of
from kljax.attacks.presets import OPTIMISERS, PRESETS, Preset
from kljax.config import LeakConfig
from kljax.defences import Defence
from kljax.mapping import Timing, map_victims
from kljax.metrics.image import SSIM_WINDOW
from kljax.models import Network
from kljax.registry import resolve
from kljax.typing import (
    Array,
    Loss,
    Model,
    Params,
    Public,
    PyTree,
    Rng,
    Stats,
)


class Victims(NamedTuple):
    """The private data under attack, one upload's worth per victim."""

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


# What a client does: (rng, network, held, images [B, H, W, C], labels [B]) -> Update,
# where network is (params, stats) and held what it has beside it.
Client = Callable[..., threat.Update]


class Staged(NamedTuple):
    """An arm with everything that an attack on it needs.

    Attributes:
      arm: the defence, and what is done about its lock.
      model: the network.
      client: makes the upload of one victim.
      draws: functions that draw network and held for each victim, see `map_victims`.
      same: network and held, where they are the same for all victims.
    """

    arm: Arm
    model: Model
    client: Client
    draws: tuple[Callable[..., PyTree], ...] = ()
    same: tuple[PyTree, ...] = ()


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
    config = captured.settle(config)
    network = ground.find_network(config)
    stage = (_drawn if config.from_run is None else _captured)(config, network)
    dataset, victims, lock = stage.dataset, stage.victims, stage.sites
    preset = resolve("attack", config.attack, PRESETS)
    if not isinstance(preset, Preset):  # a user's function
        preset = Preset(preset, "recovered", None)
    classifier = _classifier(config, network, dataset)
    # All arms are made before the first is run: a typo in the last one costs nothing.
    studied, made = [], {}
    for text in config.arms:
        arm = arms_room.parse_arm(text, lock, made)
        ground.check_norm(config, network, arm)
        declared = _threat(config, arm, preset)
        staged = stage.stage(arm, declared.knowledge.victim_norm == "train")
        setting = Setting(
            model=staged.model,
            loss=stage.loss,
            gates=arm.defence.gates,
            simulate=arm.defence.simulate,
            image_shape=dataset.shape,
            num_classes=dataset.num_classes,
            classifier=classifier,
            sites=tuple(zip(lock.paths, lock.widths, strict=True)),
            threat=declared,
            protocol=stage.protocol,
        )
        fn = one_victim(config, setting, staged, preset)
        studied.append((staged, declared, fn))
    results = []
    with jax.default_matmul_precision(config.precision):
        for staged, declared, fn in studied:
            arm, count = staged.arm, len(victims.labels)
            on_arm(arm.name)
            run = map_victims(fn, config.layout, draws=staged.draws, on_block=on_block)
            same = jax.tree.map(
                lambda x, n=count: np.broadcast_to(x, (n, *np.shape(x))), staged.same
            )
            attacked, timing = run(
                *same, victims.indices[:, 0], victims.images, victims.labels
            )
            results.append(ArmResult(arm, declared, attacked, timing))
    return LeakResult(config, dataset, victims, results)


def _drawn(config: LeakConfig, network: Network) -> Stage:
    """Stages networks, private keys and lock weights that are drawn afresh."""
    dataset = load_dataset(config)
    victims = choose_victims(config, dataset)
    loss = resolve("loss", config.loss, losses.LOSSES)
    models = {
        norm: ground.make_model(config, network, dataset, norm=norm)
        for norm in (False, True)
    }
    # Arms that share a network or a defence share its draws, and their compilation.
    network_draws = functools.cache(lambda norm: _draw_network(config, models[norm]))
    defence_draws = functools.cache(lambda defence: _draw_defence(config, defence))

    def stage(arm: Arm, train: bool) -> Staged:
        model = models[arm.norm]

        def client(rng, network, held, images, labels) -> threat.Update:
            (params, stats), (public, private) = network, held
            targets = jax.nn.one_hot(labels, dataset.num_classes)
            step = clients.one_step(model, loss, arm.defence, train=train)
            return step(rng, Public(params, public), stats, private, images, targets)

        draws = network_draws(arm.norm), defence_draws(arm.defence)
        return Staged(arm, model, client, draws=draws)

    sites = ground.find_sites(config, network, dataset)
    return Stage(dataset, victims, loss, sites, stage)


def _captured(config: LeakConfig, network: Network) -> Stage:
    """Stages a client of a run, at a state that was kept."""
    del network  # the run's own
    found = captured.capture(config)
    prepared, protocol = found.prepared, found.protocol
    dataset, loss = prepared.train, prepared.loss
    victims = choose_victims(config, data.subset(dataset, found.own))
    indices = found.own[victims.indices]
    groups = dataset.groups_of(indices[:, 0])
    victims = victims._replace(indices=indices, groups=groups)
    # Arms that differ in strategy alone read their states once.
    states = functools.cache(lambda name: captured.capture_arm(found, name))

    def stage(arm: Arm, train: bool) -> Staged:
        state = states(captured.trained_name(arm.name))
        model = state.model

        def client(rng, network, held, images, labels) -> threat.Update:
            (params, stats), (public, mine, initial) = network, held
            received = Public(params, public)
            if protocol is None:
                step = clients.one_step(model, loss, arm.defence, train=train)
                targets = jax.nn.one_hot(labels, dataset.num_classes)
                update = step(rng, received, stats, mine.private, images, targets)
            else:
                training = clients.local_update(
                    model,
                    loss,
                    arm.defence,
                    protocol.optimiser,
                    steps=protocol.steps,
                    batch=protocol.batch,
                    penalty=protocol.penalty,
                    reset_optimiser=prepared.config.reset_optimiser,
                )
                number = jnp.asarray(config.round)
                update = training.run(
                    rng, number, received, stats, mine, images, labels
                )
            return update._replace(initial_lock_weights=initial)

        same = (
            (state.public.model, state.stats),
            (state.public.defence, state.client, state.initial_lock_weights),
        )
        return Staged(arm, model, client, same=same)

    return Stage(dataset, victims, loss, prepared.sites, stage, protocol)


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
    config: LeakConfig, setting: Setting, staged: Staged, preset: Preset
) -> Callable[..., Attacked]:
    """Makes the function of one victim.

    Returns:
      ``(network, held, index, images, labels) -> Attacked``.
    """
    optimiser = None
    if config.optimiser is not None:
        optimiser = resolve("optimiser", config.optimiser, OPTIMISERS)()
    attack = preset.build(
        setting, optimiser, steps=config.steps, restarts=config.restarts
    )
    replay = replay_of(setting, setting.gates)

    def run(
        network: tuple[Params, Stats],
        held: PyTree,
        index: Array,
        images: Array,
        labels: Array,
    ) -> Attacked:
        rng_step = _rng(config, index, "step")
        rng_attack = _rng(config, index, "attack")
        update = staged.client(rng_step, network, held, images, labels)
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
        gates = staged.arm.defence.gates(update.public.defence, update.private)
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
    """Loads the dataset that victims are drawn from; see `kljax.ground`."""
    dataset = ground.load_dataset(config, config.split)
    if min(dataset.shape[:2]) < SSIM_WINDOW:
        raise ValueError(
            f"dataset {config.data!r} has images of shape {dataset.shape}; SSIM needs "
            f"sides of at least {SSIM_WINDOW}"
        )
    return dataset


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


def _classifier(config: LeakConfig, network: Network, dataset: data.Dataset) -> str:
    """Checks the path of the layer from which labels are read."""
    path = config.classifier or network.classifier
    model = ground.make_model(config, network, dataset, norm=False)
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    if f"{path}/kernel" not in params:
        layers = sorted(p.removesuffix("/kernel") for p in params if "/kernel" in p)
        raise ValueError(
            f"classifier {path!r} is no layer with a kernel of {config.model!r}; "
            f"those are {', '.join(layers)}"
        )
    return path


def _threat(config: LeakConfig, arm: Arm, preset: Preset) -> threat.ThreatModel:
    strategy = threat.Strategy(
        lock=arm.lock_strategy, labels=config.labels or preset.labels
    )
    facts: dict[str, Any] = {"examples": config.examples, "upload": config.upload}
    needed = threat.STRATEGY["lock"][strategy.lock].get("lock_weights", ())
    if config.from_run is not None and "initial" in needed:
        # After round 0 the client has moved on, and the server has not seen it.
        facts["lock_weights"] = "initial"
    for fact in config.threat:
        field, equals, value = fact.partition("=")
        if not equals:
            raise ValueError(f"threat fact {fact!r}: write it as field=value")
        if field == "examples":
            raise ValueError("threat fact 'examples': set the option examples instead")
        if field == "upload" and value != config.upload:
            raise ValueError(
                f"threat fact {fact!r}: victims of this study upload what the option "
                f"upload says, upload={config.upload}"
            )
        if (field, value, config.upload) == ("victim_norm", "eval", "update"):
            raise ValueError(
                f"threat fact {fact!r}: local training runs norm layers in train mode"
            )
        facts[field] = value
    return threat.least_knowledge(strategy, **facts)
