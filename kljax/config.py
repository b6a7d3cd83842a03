"""Configurations: all that is needed to repeat a run, checked when they are made."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax

from kljax.keylock import PRIVATE_KEY_SIZE
from kljax.mapping import Layout, fastest_layout
from kljax.metrics.image import SSIM_WINDOW

ARMS = (
    "none",
    "bn-control",
    "plaintext-gates-as-lock",
    "keylock/known",
    "keylock/regress_gates",
    "keylock/fixed_random",
)
TRAINING_ARMS = ("none", "bn-control", "plaintext-gates", "keylock")

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
# What makes sense only for a state of a run, and the least values.
FROM_RUN = {
    "round": 0,
    "client": 0,
    "local_steps": 1,
    "local_epochs": 1,
    "batch": 1,
}
# The same of training; every state of it can be attacked, so images are as large.
TRAINING_WHOLE = {
    "clients": 1,
    "cohort": 0,
    "rounds": 1,
    "batch": 1,
    "local_epochs": 1,
    "evaluate_every": 1,
    "save_every": 1,
    "seed": 0,
    "private_key_size": 1,
    "image_size": SSIM_WINDOW,
}
TRAINING_WHOLE_OR_NONE = {
    "local_steps": 1,
    "examples": 1,
    "test_examples": 1,
    "public_examples": 0,
}
# Options of training that change speed and no results: a resumed run may differ.
SPEED_OPTIONS = ("layout", "convolution")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeakConfig:
    """All that is needed to repeat a leakage study.

    Wherever a model, dataset, attack or defence is named, ``package.module:function``
    names one of your own.

    Attributes:
      model: network under attack: lenet, dense, resnet20, resnet32, resnet18, resnet34
        or vgg16.
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
      sites: paths to lock, in chain order; nothing or ``single`` for the network's
        own, ``all`` for every norm that the paper's chained lock gates.
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
      from_run: folder of a run of ``kljax train`` to attack a client of, or None for
        networks that are drawn afresh. Model, data, sites, lock, initialisers and
        loss are then the run's, and the arms are, if left out, all of its arms.
      round: attack at the state that was kept before this round.
      client: attack this client, on examples of its own.
      upload: ``gradient`` of one step, or the ``update`` of a whole local training,
        where each victim is one update.
      local_steps: of each update; None for as many as the client makes in the run.
      local_epochs: how often each update goes through its examples, in the same order;
        None for once, or more where the client would run out of examples.
      batch: examples in each local step; None for the run's.
      client_optimiser: what the client's optimiser starts an update from: ``kept``
        from earlier rounds as in the run, of which the attacker knows nothing, or
        ``fresh``, which favours the attacker.
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
    from_run: str | None = None
    round: int = 0
    client: int = 0
    upload: Literal["gradient", "update"] = "gradient"
    local_steps: int | None = None
    local_epochs: int | None = None
    batch: int | None = None
    client_optimiser: Literal["kept", "fresh"] = "kept"

    def __post_init__(self):
        _freeze(self, ("arms", "threat", "sites"))
        _check_whole(self, WHOLE)
        _check_choice(self, "upload", ("gradient", "update"))
        _check_choice(self, "client_optimiser", ("kept", "fresh"))
        _check_whole(self, {n: v for n, v in FROM_RUN.items() if _given(self, n)})
        _check_needs(self)
        _check_choice(self, "weights", ("fresh", "shared"))
        _check_precision(self.precision)
        _check_arms(self.arms)
        for name in ("init", "lock_init"):
            _check_number(self, name)

    @property
    def replay_is_exact(self) -> bool:
        """Tells whether an attacker with the true images would get the upload itself.

        He would not where a client goes on with momentum of earlier rounds.
        """
        fresh = self.client_optimiser == "fresh" or not self.round
        return self.upload == "gradient" or fresh


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All that is needed to repeat a federated training.

    Wherever a model, dataset, defence, optimiser, augmentation or loss is named,
    ``package.module:function`` names one of your own. Defaults are the paper's where
    it has them (FedKL, config.json), but for the number of rounds (200 there) and the
    weighting.

    Attributes:
      model: network to train: lenet, dense, resnet20, resnet32, resnet18, resnet34 or
        vgg16.
      data: dataset: digits, or any prepared TFDS set.
      arms: defences side by side, each DEFENCE[=STRENGTH][+TRANSFORM...], see
        `kljax.arms`; trained one after another from the same weights.
      clients: number of clients (the paper's is 3).
      cohort: clients drawn for each round; 0 for all.
      rounds: rounds to train.
      batch: examples in a batch.
      local_epochs: how often a client goes through its examples in one round.
      local_steps: at most so many local steps in one round; None for whole epochs.
      partition: who holds which example: iid (the paper's), dirichlet=ALPHA,
        shards[=PER_CLIENT] or by-size=SIZES.
      optimiser: of the clients: sgd, adam, or your own function of the learning rate.
      learning_rate: of the clients.
      momentum: of sgd.
      nesterov: whether sgd's momentum is Nesterov's.
      weight_decay: added to the gradient, of sgd and adam, lock weights included.
      drops: rounds from which on the learning rate is multiplied by drop_factor once
        more; 60 120 160 in the paper's 200 rounds.
      drop_factor: see drops.
      server_learning_rate: of the server's sgd; 1 adds the aggregate (FedAvg).
      server_momentum: of the server's sgd.
      proximal: FedProx's mu, which holds clients near what they received; 0 is FedAvg.
      weighting: a client counts by its examples, or is one of many, uniform, as in the
        official code.
      reset_optimiser: whether clients forget their momentum after each round; kept in
        the official code.
      on_nonfinite: whether a client that turns NaN or infinite is left out of the
        round's aggregate and named, or stops the run.
      augment: none, or crop_flip (pad 4, crop, flip), the paper's for CIFAR.
      normalise: none, or cifar10 or cifar100: the statistics that the official code
        gives each of them.
      loss: training loss of the clients.
      examples: at most so many training examples, of all clients together; None for
        all.
      test_examples: at most so many test examples; None for all.
      public_examples: training examples that no client gets, on which an outsider
        re-fits gates; None for 1000, or a tenth of the training examples where that is
        less.
      train_split: split to train on, for datasets which have any.
      test_split: split to test on; imagenet2012 needs validation. A dataset without
        splits has a fifth of its examples held out.
      data_dir: where prepared datasets lie.
      image_size: side of the square images.
      sites: paths to lock, in chain order; nothing or ``single`` for the network's
        own, ``all`` for every norm that the paper's chained lock gates.
      chained: whether each site is fed by the gates of the one before.
      private_key_size: length of the private key.
      init: network weights from U(-init, init); 0 leaves the network its own
        initialiser.
      lock_init: the same for the lock weights; 0 is PyTorch's Linear default, as
        FedKL trains.
      evaluate_every: rounds between two measurements of test accuracy.
      save_every: rounds between two checkpoints.
      keep_rounds: rounds whose starting states are kept, to attack them later: R is
        the state before round R, 0 the start, and the number of rounds the end.
      seed: of everything random.
      precision: matmul precision; it changes results.
      layout: how clients are laid over devices (speed only).
      convolution: auto, matmul or lax (speed only).
    """

    model: str = "lenet"
    data: str = "digits"
    arms: tuple[str, ...] = TRAINING_ARMS
    clients: int = 3
    cohort: int = 0
    rounds: int = 20
    batch: int = 64
    local_epochs: int = 1
    local_steps: int | None = None
    partition: str = "iid"
    optimiser: str = "sgd"
    learning_rate: float = 0.01
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    drops: tuple[int, ...] = ()
    drop_factor: float = 0.2
    server_learning_rate: float = 1.0
    server_momentum: float = 0.0
    proximal: float = 0.0
    weighting: Literal["examples", "uniform"] = "examples"
    reset_optimiser: bool = False
    on_nonfinite: Literal["exclude", "stop"] = "exclude"
    augment: str = "none"
    normalise: str = "none"
    loss: str = "cross_entropy"
    examples: int | None = None
    test_examples: int | None = None
    public_examples: int | None = None
    train_split: str = "train"
    test_split: str = "test"
    data_dir: str | None = None
    image_size: int = 32
    sites: tuple[str, ...] = ()
    chained: bool = False
    private_key_size: int = PRIVATE_KEY_SIZE
    init: float = 0.0
    lock_init: float = 0.0
    evaluate_every: int = 1
    save_every: int = 10
    keep_rounds: tuple[int, ...] = ()
    seed: int = 0
    precision: str = "highest"
    layout: Layout = dataclasses.field(
        default_factory=functools.partial(fastest_layout, "clients")
    )
    convolution: Literal["auto", "matmul", "lax"] = "auto"

    def __post_init__(self):
        _freeze(self, ("arms", "sites", "drops", "keep_rounds"))
        _check_whole(self, TRAINING_WHOLE)
        given = {
            name: least
            for name, least in TRAINING_WHOLE_OR_NONE.items()
            if getattr(self, name) is not None
        }
        _check_whole(self, given)
        if self.cohort > self.clients:
            raise ValueError(
                f"cohort is {self.cohort}, and there are {self.clients} clients: draw "
                "at most as many, or 0 for all"
            )
        _check_choice(self, "weighting", ("examples", "uniform"))
        _check_choice(self, "on_nonfinite", ("exclude", "stop"))
        _check_choice(self, "convolution", ("auto", "matmul", "lax"))
        _check_precision(self.precision)
        _check_arms(self.arms)
        for name in ("weight_decay", "proximal", "init", "lock_init"):
            _check_number(self, name)
        for name in ("learning_rate", "drop_factor", "server_learning_rate"):
            _check_number(self, name, positive=True)
        for name in ("momentum", "server_momentum"):
            _check_number(self, name, below=1)
        for name, most in (("drops", None), ("keep_rounds", self.rounds)):
            _check_rounds(name, getattr(self, name), most)


def _freeze(config: Any, names: tuple[str, ...]) -> None:
    # From config.json they come as lists and a dictionary.
    for name in names:
        value = getattr(config, name)
        if isinstance(value, str):
            raise ValueError(f"{name} must be a tuple, got {value!r}")
        object.__setattr__(config, name, tuple(value))
    if isinstance(config.layout, dict):
        object.__setattr__(config, "layout", Layout(**config.layout))


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_whole(config: Any, limits: Mapping[str, int]) -> None:
    for name, least in limits.items():
        value = getattr(config, name)
        if not _whole(value) or value < least:
            raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")


def _given(config: Any, name: str) -> bool:
    return getattr(config, name) != default(type(config), name)


def default(kind: type, name: str) -> Any:
    """Looks up the default of a field."""
    return next(f.default for f in dataclasses.fields(kind) if f.name == name)


def _check_needs(config: "LeakConfig") -> None:
    """Refuses options that say nothing without a run, or without an update."""
    of_updates = ("local_steps", "local_epochs", "batch", "client_optimiser")
    for name in ("round", "client", "upload", *of_updates):
        if config.from_run is None and _given(config, name):
            raise ValueError(
                f"{name}={getattr(config, name)!r} needs from_run, the run whose "
                "client is attacked"
            )
    for name in of_updates:
        if config.upload != "update" and _given(config, name):
            raise ValueError(
                f"{name}={getattr(config, name)!r} needs upload='update': a gradient "
                "is that of one step"
            )


def _check_choice(config: Any, name: str, legal: tuple[str, ...]) -> None:
    if getattr(config, name) not in legal:
        raise ValueError(
            f"{name} must be {' or '.join(map(repr, legal))}, got "
            f"{getattr(config, name)!r}"
        )


def _check_precision(precision: str) -> None:
    try:
        jax.default_matmul_precision(precision)
    except ValueError as error:
        raise ValueError(f"precision={precision!r}: {error}") from None


def _check_arms(arms: tuple[str, ...]) -> None:
    if not arms:
        raise ValueError("arms is empty: name at least one, such as 'none'")
    twice = sorted({arm for arm in arms if arms.count(arm) > 1})
    if twice:
        raise ValueError(f"arms {twice} are named more than once")


def _check_number(
    config: Any, name: str, *, positive: bool = False, below: float = math.inf
) -> None:
    value = getattr(config, name)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value < below or (positive and not value):
        least = "> 0" if positive else ">= 0"
        most = "" if below == math.inf else f" and < {below}"
        raise ValueError(f"{name} must be a number {least}{most}, got {value!r}")


def _check_rounds(name: str, numbers: tuple[int, ...], most: int | None) -> None:
    for number in numbers:
        if not _whole(number) or number < 0 or (most is not None and number > most):
            end = "" if most is None else f" to {most}"
            raise ValueError(f"{name} holds {number!r}: give rounds from 0{end}")
    if list(numbers) != sorted(set(numbers)):
        raise ValueError(f"{name} must ascend without repetition, got {numbers}")
