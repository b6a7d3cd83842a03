"""The main job: victims, their gradients under several arms, and the attack on each.

`LeakConfig` holds all that is needed to repeat a run; `leak` runs it. One compiled
function per arm takes a victim from its index to its reconstruction: weights, private
key, gradient, the wall, the attack. `kljax.scoring` and `kljax.report` take over from
there.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljax import arms as arms_room
from kljax import clients, data, losses, threat
from kljax.arms import Arm, Sites
from kljax.attacks import Candidate, Objective, Reconstruction, Setting
from kljax.attacks.presets import OPTIMISERS, PRESETS, Preset
from kljax.attacks.simulation import one_step
from kljax.defences import Defence
from kljax.keylock import PRIVATE_KEY_SIZE, key_lock
from kljax.mapping import Layout, Timing, map_victims
from kljax.metrics.image import SSIM_WINDOW
from kljax.models import NETWORKS, Network, from_nnx, site_widths, uniform
from kljax.registry import resolve
from kljax.typing import Array, Model, Params, Private, Public, PyTree, Rng, Stats

ARMS = (
    "none",
    "bn-control",
    "plaintext-gates-as-lock",
    "keylock/known",
    "keylock/regress_gates",
    "keylock/fixed_random",
)

# Least values of the whole numbers of a study.
WHOLE = {
    "victims": 1,
    "examples": 1,
    "restarts": 1,
    "steps": 1,
    "seed": 0,
    "private_key_size": 1,
    "image_size": SSIM_WINDOW,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeakConfig:
    """All that is needed to repeat a leakage study.

    Wherever a model, dataset, attack or defence is named, ``package.module:function``
    names one of your own.

    Attributes:
      model: network under attack: lenet or dense.
      data: dataset the victims come from: digits, photos, or any prepared TFDS set.
      arms: defences side by side, each DEFENCE[=STRENGTH][+TRANSFORM...][/STRATEGY],
        see `kljax.arms`.
      attack: preset in `kljax.attacks.presets`: matching, dlg or idlg.
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
    weights: Literal["fresh", "shared"] = "fresh"
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
    convolution: Literal["auto", "matmul", "lax"] = "auto"

    def __post_init__(self):
        # From config.json they come as lists and a dictionary.
        for name in ("arms", "threat", "sites"):
            if isinstance(getattr(self, name), str):
                raise ValueError(
                    f"{name} must be a tuple of strings, got {getattr(self, name)!r}"
                )
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.layout, dict):
            object.__setattr__(self, "layout", Layout(**self.layout))
        for name, least in WHOLE.items():
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole or value < least:
                raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
        if self.weights not in ("fresh", "shared"):
            raise ValueError(
                f"weights must be 'fresh' or 'shared', got {self.weights!r}"
            )
        try:
            jax.default_matmul_precision(self.precision)
        except ValueError as error:
            raise ValueError(f"precision={self.precision!r}: {error}") from None
        if not self.arms:
            raise ValueError("arms is empty: name at least one, such as 'none'")
        twice = sorted({arm for arm in self.arms if self.arms.count(arm) > 1})
        if twice:
            raise ValueError(f"arms {twice} are named more than once")
        for name in ("init", "lock_init"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a number >= 0, got {value!r}")


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
