"""The main job: victims, their gradients under several arms, and the attack on each.

`LeakConfig` holds all that is needed to repeat a run; `leak` runs it. One compiled
function per arm takes a victim from its index to its reconstruction: weights, private
key, gradient, the wall, the attack. `kljax.scoring` and `kljax.report` take over from
there.
"""

import dataclasses
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
from kljax.keylock import PRIVATE_KEY_SIZE, key_lock
from kljax.mapping import Layout, Timing, map_victims
from kljax.models import NETWORKS, Network, from_nnx, site_widths, uniform
from kljax.registry import resolve
from kljax.typing import Array, Model, Public, PyTree

ARMS = (
    "none",
    "bn-control",
    "plaintext-gates-as-lock",
    "keylock/known",
    "keylock/regress_gates",
    "keylock/fixed_random",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeakConfig:
    """All that is needed to repeat a leakage study.

    Wherever a model, dataset, attack or defence is named, ``package.module:function``
    names one of your own.

    Attributes:
      model: network under attack.
      data: dataset the victims come from.
      arms: defences side by side, see `kljax.arms`.
      attack: preset in `kljax.attacks.presets`.
      optimiser: instead of the preset's: lbfgs, lbfgs_torch or adam.
      labels: label strategy instead of the preset's: given, joint or recovered.
      threat: facts about the wire as ``field=value``, instead of the least that each
        arm's strategy needs (see `kljax.threat.least_knowledge`).
      victims: number of victims.
      examples: examples in each victim's gradient.
      restarts: independent starts of each attack; the lowest own loss wins.
      steps: evaluations per restart.
      seed: of everything random.
      weights: fresh network weights for each victim, or the same shared ones.
      init: network weights from U(-init, init), 0.5 as in DLG and FedKL's attack
        tests; 0 leaves the network its own initialiser.
      lock_init: the same for the lock weights; 0 is PyTorch's Linear default, as
        FedKL trains (its DLG test redraws them with 0.5, which saturates LeNet).
      private_key_size: length of the private key.
      sites: paths to lock instead of the network's own, in chain order.
      chained: whether each site is fed by the gates of the one before.
      classifier: path of the last dense layer instead of the network's own.
      loss: training loss of the clients.
      image_size: side of the square images.
      split: dataset split, for datasets which have any.
      data_dir: where prepared datasets lie.
      precision: matmul precision. It changes results: fast matmuls of recent
        accelerators would put a floor under the loss that looks like a defence.
      layout: how victims are laid over devices (speed only).
      convolution: auto, matmul or lax (speed only).
    """

    model: str = "lenet"
    data: str = "digits"
    arms: tuple[str, ...] = ARMS
    attack: str = "matching"
    optimiser: str | None = None
    labels: str | None = None
    threat: tuple[str, ...] = ()
    victims: int = 16
    examples: int = 1
    restarts: int = 1
    steps: int = 2000
    seed: int = 0
    weights: str = "fresh"
    init: float = 0.5
    lock_init: float = 0.0
    private_key_size: int = PRIVATE_KEY_SIZE
    sites: tuple[str, ...] = ()
    chained: bool = False
    classifier: str | None = None
    loss: str = "cross_entropy"
    image_size: int = 32
    split: str | None = None
    data_dir: str | None = None
    precision: str = "highest"
    layout: Layout = dataclasses.field(default_factory=Layout)
    convolution: str = "auto"

    def __post_init__(self):
        for name in ("victims", "examples", "restarts", "steps", "image_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
        if self.weights not in ("fresh", "shared"):
            raise ValueError(
                f"weights must be 'fresh' or 'shared', got {self.weights!r}"
            )
        if not self.arms:
            raise ValueError("arms is empty: name at least one, such as 'none'")
        for name in ("init", "lock_init"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)!r}")


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
    # All arms are made before the first is run: a typo in the last one costs nothing.
    studied = []
    for text in config.arms:
        arm = arms_room.parse_arm(text, lock)
        if text == "bn-control" and not network.accepts("norm"):
            raise ValueError(
                f"arm 'bn-control' needs a network with an argument norm; "
                f"{config.model!r} has none and is the same in every arm"
            )
        declared = _threat(config, arm, preset)
        model = _model(config, network, dataset, norm=arm.norm)
        setting = Setting(
            model=model,
            loss=loss,
            gates=arm.defence.gates,
            simulate=arm.defence.simulate,
            image_shape=dataset.shape,
            num_classes=dataset.num_classes,
            classifier=config.classifier or network.classifier,
            sites=tuple(zip(lock.paths, lock.widths, strict=True)),
            threat=declared,
        )
        studied.append((arm, declared, one_victim(config, setting, arm, preset)))
    results = []
    with jax.default_matmul_precision(config.precision):
        for arm, declared, fn in studied:
            on_arm(arm.name)
            run = map_victims(fn, config.layout, on_block=on_block)
            attacked, timing = run(
                victims.indices[:, 0], victims.images, victims.labels
            )
            results.append(ArmResult(arm, declared, attacked, timing))
    return LeakResult(config, dataset, victims, results)


def one_victim(
    config: LeakConfig, setting: Setting, arm: Arm, preset: Preset
) -> Callable[[Array, Array, Array], Attacked]:
    """Makes the function of one victim: ``(index, images, labels) -> Attacked``."""
    optimiser = None
    if config.optimiser is not None:
        optimiser = resolve("optimiser", config.optimiser, OPTIMISERS)()
    attack = preset.build(
        setting, optimiser, steps=config.steps, restarts=config.restarts
    )
    train = setting.threat.knowledge.victim_norm == "train"
    step = clients.one_step(setting.model, setting.loss, arm.defence, train=train)
    replay = one_step(setting, setting.gates)

    def run(index: Array, images: Array, labels: Array) -> Attacked:
        root = jax.random.key(config.seed)
        rng = jax.random.fold_in(root, index)
        rng_weights, rng_defence, rng_step, rng_attack = jax.random.split(rng, 4)
        if config.weights == "shared":
            rng_weights = root
        params, stats = setting.model.init(rng_weights)
        public, private = arm.defence.init(rng_defence, params)
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


def _threat(config: LeakConfig, arm: Arm, preset: Preset) -> threat.ThreatModel:
    facts: dict[str, Any] = {"examples": config.examples}
    for fact in config.threat:
        field, equals, value = fact.partition("=")
        if not equals:
            raise ValueError(f"threat fact {fact!r}: write it as field=value")
        if field == "examples":
            raise ValueError("threat fact 'examples': set the option examples instead")
        facts[field] = value
    strategy = threat.Strategy(
        lock=arm.lock_strategy, labels=config.labels or preset.labels
    )
    return threat.least_knowledge(strategy, **facts)
