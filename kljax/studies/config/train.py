"""The configuration of a federated training."""

import dataclasses
import functools
from typing import Literal

from kljax.core.checks import (
    check_arms,
    check_kinds,
    check_number,
    check_precision,
    check_rounds,
    check_whole,
    default,
    given,
)
from kljax.core.registry import notations as calls
from kljax.data.augmentation import AUGMENTATIONS
from kljax.data.catalogue import EMBEDDED
from kljax.data.partitioning import notations
from kljax.data.triggers import TRIGGERS
from kljax.defences.accounting import check_delta
from kljax.defences.arms import KINDS as DEFENCES
from kljax.defences.lock import ACTIVATIONS, PRIVATE_KEY_SIZE
from kljax.federated.aggregation import AGGREGATORS
from kljax.federated.encryption import ENCRYPTIONS
from kljax.federated.hardening import HARDENINGS
from kljax.federated.optimisers import (
    ADAPTIVE_SERVERS,
    CLIENT_OPTIMISERS,
    SERVER_OPTIMISERS,
)
from kljax.federated.roles import ROLES
from kljax.metrics.image import SSIM_WINDOW
from kljax.models.catalogue import NETWORKS
from kljax.models.convolution import CONVOLUTIONS
from kljax.models.losses import LOSSES
from kljax.models.normalisation import FEDKL_STATISTICS
from kljax.parallel import Layout, fastest_layout
from kljax.studies.config.freezing import freeze
from kljax.studies.config.listing import fill_lists

TRAINING_ARMS = ("none", "bn-control", "plaintext-gates", "keylock")

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
    "target_class": 0,
    "tokens": 1,
}
TRAINING_WHOLE_OR_NONE = {
    "image_width": SSIM_WINDOW,
    "local_steps": 1,
    "examples": 1,
    "test_examples": 1,
    "public_examples": 0,
}
# What makes sense only where there are attackers.
OF_ATTACKERS = ("trigger", "target_class", "poisoned")


@fill_lists(
    models=NETWORKS,
    datasets=EMBEDDED,
    defences=DEFENCES,
    partitions=notations(),
    optimisers=CLIENT_OPTIMISERS,
    server_optimisers=calls(SERVER_OPTIMISERS, given=1),
    augmentations=AUGMENTATIONS,
    statistics=FEDKL_STATISTICS,
    losses=LOSSES,
    aggregators=calls(AGGREGATORS),
    encryptions=calls(ENCRYPTIONS),
    roles=calls(ROLES, given=1),
    triggers=calls(TRIGGERS),
    hardenings=calls(HARDENINGS),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All that is needed to repeat a federated training.

    Wherever a model, dataset, defence, optimiser, augmentation, loss, aggregator,
    encryption, role, trigger or hardening is named, ``package.module:function`` names
    one of your own. Defaults are the paper's where it has them (FedKL, config.json),
    but for the number of rounds (200 there) and the weighting.

    Attributes:
      model: network to train: {models}.
      data: dataset: {datasets}; any prepared TFDS set;
        or a path to an .npz file or a folder of pictures, see `kljax.data.files`.
        Photos are refused, whose labels mean too little to train on.
      arms: defences side by side, each DEFENCE[=OPTIONS][+TRANSFORM...], see
        `kljax.defences.arms`; trained one after another from the same weights. A
        transform acts on the gradient of each local step, as TRANSFORM@update once on
        the whole update.
        DEFENCE and TRANSFORM: {defences}.
      clients: number of clients (the paper's is 3).
      cohort: clients drawn for each round; 0 for all.
      rounds: rounds to train.
      batch: examples in a batch.
      local_epochs: how often a client goes through its examples in one round.
      local_steps: at most so many local steps in one round; None for whole epochs.
      partition: who holds which example: {partitions}.
      optimiser: of the clients: {optimisers}, or a function of the learning rate.
      learning_rate: of the clients.
      momentum: of sgd.
      nesterov: whether sgd's momentum is Nesterov's.
      weight_decay: added to the gradient, of sgd and adam, lock weights included.
      drops: rounds from which on the learning rate is multiplied by drop_factor once
        more; 60 120 160 in the paper's 200 rounds.
      drop_factor: see drops.
      server_optimiser: what the server makes of a round's aggregate:
        {server_optimisers}, or a function of the learning rate and the numbers.
        sgd adds it (FedAvg, and FedAvgM with momentum); adam and yogi are FedAdam and
        FedYogi, whose steps are of about the learning rate in each weight.
      server_learning_rate: of the server; 1 adds the aggregate under sgd. Under adam
        and yogi it has to be chosen, and is less than 1.
      server_momentum: of the server's sgd; the same as sgd=MOMENTUM.
      aggregator: what the server makes of the uploads of a round: {aggregators}.
        ATTACKERS are those that it is to withstand, see `kljax.federated.aggregation`.
        fltrust trains on public_examples; under fedboosting clients hold back a tenth
        of their examples, on which others try their networks.
      encryption: how uploads are added up by a server that cannot read them:
        {encryptions}. Of an arm such as selective-magnitude=0.1 what it hides is
        encrypted, and of others everything; norm statistics always are. ckks needs the
        extra kljax[he]; both need the aggregator mean, and keep their keys in memory
        alone, see `kljax.federated.encryption`.
      roles: who is not honest, each CLIENTS:ROLE, such as 0:model-replacement or
        1,4-6:label-flip, or CLIENTS:ROLE@ROUNDS, such as 0:model-replacement@16, who
        is honest in other rounds; ROLE: {roles}, see `kljax.federated.roles`.
      trigger: what attackers put on images: {triggers}.
        Of distributed, each attacker puts on a part, and attack success is that of the
        whole. This and the next two need roles.
      target_class: of the attackers, for images with the trigger.
      poisoned: share of each batch of an attacker's that has the trigger.
      hardening: what honest clients do against backdoors before they train in a round:
        {hardenings}, or with @ROUNDS behind it, such as flip@10-19; see
        `kljax.federated.hardening`.
      reject_below: confidence below which the network does not answer when accuracy and
        attack success are measured; 0 for none.
      floor: whether a run with attackers is followed by the same run with honest
        clients, whose answer to the trigger is the floor of attack success.
      proximal: FedProx's mu, which holds clients near what they received; 0 is FedAvg.
      weighting: a client counts by its examples, or is one of many, uniform, as in the
        official code.
      reset_optimiser: whether clients forget their momentum after each round; kept in
        the official code.
      on_nonfinite: whether a client that turns NaN or infinite is left out of the
        round's aggregate and named, or stops the run.
      augment: of each batch: {augmentations}; crop_flip (pad 4, crop, flip) is
        the paper's for CIFAR.
      normalise: none, or the statistics that the official code gives a dataset:
        {statistics}.
      loss: training loss of the clients: {losses}.
      examples: at most so many training examples, of all clients together; None for
        all.
      test_examples: at most so many test examples; None for all.
      public_examples: training examples that no client gets, on which an outsider
        re-fits gates; None for 1000, or a tenth of the training examples where that is
        less. Of up to 18 re-fits of 300 steps each the last measurement of an arm may
        take longer than its training: 0 leaves them out.
      train_split: split to train on, for datasets which have any.
      test_split: split to test on; imagenet2012 needs validation. A dataset without
        splits has a fifth of its examples held out.
      data_dir: where prepared datasets lie.
      image_size: height of the images, and their width if that is not said.
      image_width: width of the images; None for as wide as high.
      channels: of the images: 3 of colour, or 1.
      tokens: of a sentence, where the data is text.
      sites: paths to lock, in chain order; nothing or ``single`` for the network's
        own, ``all`` for every norm that the paper's chained lock gates.
      chained: whether each site is fed by the gates of the one before.
      private_key_size: length of the private key.
      init: network weights from U(-init, init); 0 leaves the network its own
        initialiser. What a network of your own does not draw (norm layers, trained
        weights) stays.
      lock_init: the same for the lock weights; 0 is PyTorch's Linear default, as
        FedKL trains.
      lock_activation: of the lock's dense layers: relu (the paper's default), sigmoid,
        or signed, which is none and lets gates be negative.
      fresh_private_keys: whether clients draw their private key anew in every round;
        one for all rounds otherwise, as in the paper.
      delta: of differential privacy, at which epsilon is said of arms that have a
        guarantee, see `kljax.defences.accounting`.
      evaluate_every: rounds between two measurements of test accuracy.
      save_every: rounds between two checkpoints.
      keep_rounds: rounds whose starting states are kept, to attack them later: R is
        the state before round R, 0 the start, and the number of rounds the end.
      seed: of everything random.
      precision: matmul precision; it changes results.
      layout: how clients are laid over devices (speed only).
      convolution: how convolutions are computed (speed only).
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
    server_optimiser: str = "sgd"
    server_learning_rate: float = 1.0
    server_momentum: float = 0.0
    aggregator: str = "mean"
    encryption: str = "none"
    roles: tuple[str, ...] = ()
    trigger: str = "patch"
    target_class: int = 0
    poisoned: float = 0.5
    hardening: str = "none"
    reject_below: float = 0.0
    floor: bool = True
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
    image_width: int | None = None
    channels: Literal[1, 3] = 3
    tokens: int = 8
    sites: tuple[str, ...] = ()
    chained: bool = False
    private_key_size: int = PRIVATE_KEY_SIZE
    init: float = 0.0
    lock_init: float = 0.0
    lock_activation: Literal[tuple(ACTIVATIONS)] = "relu"
    fresh_private_keys: bool = False
    delta: float = 1e-5
    evaluate_every: int = 1
    save_every: int = 10
    keep_rounds: tuple[int, ...] = ()
    seed: int = 0
    precision: str = "highest"
    layout: Layout = dataclasses.field(
        default_factory=functools.partial(fastest_layout, "clients")
    )
    convolution: Literal["auto", *CONVOLUTIONS] = "auto"

    def __post_init__(self):
        freeze(self, ("arms", "sites", "drops", "keep_rounds", "roles"))
        check_kinds(self)
        check_whole(self, TRAINING_WHOLE)
        there = {
            name: least
            for name, least in TRAINING_WHOLE_OR_NONE.items()
            if getattr(self, name) is not None
        }
        check_whole(self, there)
        if self.cohort > self.clients:
            raise ValueError(
                f"cohort is {self.cohort}, and there are {self.clients} clients: draw "
                "at most as many, or 0 for all"
            )
        check_precision(self.precision)
        check_delta(self.delta)
        check_arms(self.arms)
        for name in ("weight_decay", "proximal", "init", "lock_init"):
            check_number(self, name)
        for name in ("learning_rate", "drop_factor", "server_learning_rate"):
            check_number(self, name, positive=True)
        for name in ("momentum", "server_momentum", "reject_below"):
            check_number(self, name, below=1)
        if self.server_momentum and self.server_optimiser != "sgd":
            raise ValueError(
                f"server_momentum={self.server_momentum!r} is of sgd without numbers, "
                f"and server_optimiser is {self.server_optimiser!r}: leave one out"
            )
        adaptive = self.server_optimiser.partition("=")[0] in ADAPTIVE_SERVERS
        if adaptive and self.server_learning_rate == 1:
            raise ValueError(
                "server_learning_rate=1 moves every weight by about 1 in a round "
                f"under server_optimiser={self.server_optimiser!r}: take a smaller "
                "one, such as 0.01"
            )
        check_number(self, "poisoned", positive=True)
        if self.poisoned > 1:
            raise ValueError(
                f"poisoned is a share of a batch, at most 1, got {self.poisoned!r}"
            )
        for name in OF_ATTACKERS:
            if not self.roles and given(self, name):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} needs roles: it is about clients "
                    "that are not honest, such as 0:backdoor"
                )
        for name, most in (("drops", None), ("keep_rounds", self.rounds)):
            check_rounds(name, getattr(self, name), most)

    @property
    def honest_twin(self) -> "TrainConfig | None":
        """The same run without attackers, if it is to be made; None otherwise."""
        if not (self.roles and self.floor):
            return None
        unsaid = {name: default(TrainConfig, name) for name in OF_ATTACKERS}
        return dataclasses.replace(self, roles=(), **unsaid)
