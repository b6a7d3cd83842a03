"""The configuration of a leakage study."""

import dataclasses
import functools
from typing import Literal

from kljax.attacks.labels.catalogue import RULES
from kljax.attacks.labels.strategies import LABELS
from kljax.attacks.optimisers.catalogue import OPTIMISERS, STEPPED
from kljax.attacks.pooling import POOLINGS
from kljax.attacks.presets.catalogue import PRESETS
from kljax.core.checks import (
    check_arms,
    check_choice,
    check_kinds,
    check_number,
    check_precision,
    check_whole,
    given,
)
from kljax.data.catalogue import EMBEDDED, TABLES, TEXTS
from kljax.data.files import is_path
from kljax.defences.accounting import check_delta
from kljax.defences.arm_options import check_spelled_once
from kljax.defences.arms import KINDS as DEFENCES
from kljax.defences.lock import ACTIVATIONS, PRIVATE_KEY_SIZE
from kljax.metrics.image import SSIM_WINDOW
from kljax.models.catalogue import NETWORKS
from kljax.models.convolution import CONVOLUTIONS
from kljax.models.decoders import list_decoders
from kljax.models.flows import list_flows
from kljax.models.losses import LOSSES
from kljax.parallel import Layout, fastest_layout
from kljax.studies.config.freezing import freeze
from kljax.studies.config.listing import fill_lists
from kljax.threat import (
    BOTTLENECK_STRATEGIES,
    CONCEALING_STRATEGIES,
    KEYLOCK_STRATEGIES,
    MIXING_STRATEGIES,
    PASSPORT_STRATEGIES,
)

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
    "tokens": 1,
    "earlier": 0,
    "observations": 1,
    "snapshots": 0,
}
# What makes sense only for a state of a run, and the least values.
FROM_RUN = {
    "round": 0,
    "client": 0,
    "local_steps": 1,
    "local_epochs": 1,
    "batch": 1,
}
OPTIONAL = FROM_RUN | {"average_clients": 1}
OF_IMAGES = ("image_size", "image_width", "channels")
OF_TEXTS = ("tokens",)
OF_CAPTURED = ("round", "client")
OF_UPDATES = ("local_steps", "local_epochs", "batch", "client_optimiser")
INSERTING = [name for name, preset in PRESETS.items() if preset.inserts]


def weights_limit(model: str, data: str) -> float | None:
    """Gives the `init` of a study if nothing is said, by the names of both.

    None where that depends on the inputs of a dataset of somebody's own
    (`weights_limit_of`).
    """
    if model in NETWORKS:
        return weights_limit_of(NETWORKS[model].inputs)
    if data in TEXTS or data in TABLES:
        return weights_limit_of("text" if data in TEXTS else "table")
    return None if ":" in data and not is_path(data) else weights_limit_of("image")


def named_limit(model: str) -> float:
    """Gives the limit that a cell's id leaves out: that of the model's kind of input.

    Of a model of somebody's own it is that of images, whatever its data are.
    """
    return weights_limit_of(NETWORKS[model].inputs if model in NETWORKS else "image")


def weights_limit_of(kind: str) -> float:
    """Gives the `init` of a study of a kind of input, if nothing is said."""
    return 0.0 if kind in ("text", "table") else 0.5


@fill_lists(
    models=NETWORKS,
    datasets=EMBEDDED,
    defences=DEFENCES,
    secret_strategies=KEYLOCK_STRATEGIES,
    passport_strategies=PASSPORT_STRATEGIES,
    bottleneck_strategies=BOTTLENECK_STRATEGIES,
    mixing_strategies=MIXING_STRATEGIES,
    concealing_strategies=CONCEALING_STRATEGIES,
    attacks=(name for name in PRESETS if name not in INSERTING),
    of_a_malicious_server=INSERTING,
    generators=list_decoders(),
    denoisers=list_flows(),
    optimisers=OPTIMISERS,
    stepped=STEPPED,
    labels=LABELS,
    rules=RULES,
    losses=LOSSES,
    poolings=POOLINGS,
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class LeakConfig:
    """All that is needed to repeat a leakage study.

    Wherever a model, dataset, attack, optimiser, label rule, loss or defence is named,
    ``package.module:function`` names one of your own.

    Attributes:
      model: network under attack: {models}.
      data: dataset the victims come from: {datasets}; any prepared TFDS set;
        or a path to an .npz file or a folder of pictures, see `kljax.data.files`.
      arms: defences side by side, each DEFENCE[=OPTIONS][+TRANSFORM...][/STRATEGY],
        see `kljax.defences.arms`. A transform acts on each gradient, as
        TRANSFORM@update once on the whole update.
        DEFENCE and TRANSFORM: {defences}.
        STRATEGY, what the attacker does about what DEFENCE hides; of a key-lock:
        {secret_strategies};
        of passports: {passport_strategies};
        of a bottleneck: {bottleneck_strategies};
        of mixed inputs, and those of
        them that fit of transformed ones: {mixing_strategies};
        of concealed ones: {concealing_strategies}.
      attack: preset in `kljax.attacks.presets`: {attacks};
        of a malicious server: {of_a_malicious_server}.
      attack_options: of the attack, instead of its own: ``name=value``, see the
        arguments of the preset.
      generator: that the attacker has: {generators}, made by
        ``experiments/train_generator.py``; a path to an .npz file of that script; or a
        function of your own, without arguments, which gives a
        `kljax.core.generator.Generator`. What it was trained on can be no victim,
        whatever the attack.
      public_data: dataset that an attack which learns (``learned``) learns from, named
        as `data` is, with images of the same shape and as many classes; None for
        examples of `data` that are no victim's. It is another dataset than `data`.
      denoise: what takes noise off whatever the attack has found, NAME[=STRENGTH]:
        {denoisers}, made by ``experiments/train_denoiser.py``; a path to an .npz file
        of that script; or a function of your own, without arguments, which gives a
        `kljax.core.denoiser.Denoiser`. STRENGTH is the noise's deviation on images in
        [0, 1]; or estimated from the image, which is the default; or matching, of a
        few the one that the attack's own loss likes best. What it was trained on can
        be no victim. See `kljax.attacks.denoising`.
      optimiser: instead of the preset's: {optimisers}.
      step_size: of the optimiser, which must be named, and be {stepped};
        None for its default.
      labels: label strategy instead of the preset's: {labels}.
      label_rule: how labels are recovered: auto, {rules};
        auto is idlg for one example, and
        opposite_sign where the classifier has no bias; for several bias_corrected, or
        counts of an update; and yin for more examples than classes.
      features: weight of the classifier's input as a term of the attack's objective:
        one example's is in the classifier's gradient, lock or none; 0.1 in breaching.
      threat: facts about the wire as ``field=value``, instead of the least that each
        arm's strategy needs (see `kljax.threat.least_knowledge`).
      victims: number of victims.
      examples: examples in each victim's gradient; of an average, in each client's.
      restarts: independent starts of each attack; the lowest own loss wins.
      steps: evaluations per restart.
      seed: of everything random.
      weights: fresh network weights for each victim, or the same shared ones.
      init: network weights from U(-init, init); 0 leaves the network its own
        initialiser. What a network of your own does not draw (norm layers, trained
        weights) stays. None for 0.5, as in DLG and FedKL's attack tests, and for 0
        where inputs are sentences or rows of a table.
      lock_init: the same for the lock weights; 0 is PyTorch's Linear default, as
        FedKL trains (its DLG test redraws them with 0.5, which saturates LeNet).
      lock_activation: of the lock's dense layers: relu (the paper's default), sigmoid,
        or signed, which is none and lets gates be negative.
      private_key_size: length of the private key.
      sites: paths to lock, in chain order; nothing or ``single`` for the network's
        own, ``all`` for every norm that the paper's chained lock gates.
      chained: whether each site is fed by the gates of the one before.
      classifier: path of the last dense layer instead of the network's own.
      loss: training loss of the clients: {losses}.
      image_size: height of the images, and their width if that is not said.
      image_width: width of the images; None for as wide as high.
      channels: of the images: 3 of colour, or 1.
      tokens: of a sentence, where the data is text.
      split: dataset split, for datasets which have any.
      data_dir: where prepared datasets lie.
      precision: matmul precision. It changes results: fast matmuls of recent
        accelerators would put a floor under the loss that looks like a defence.
      layout: how victims are laid over devices (speed only).
      convolution: how convolutions are computed (speed only).
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
      average_clients: clients whose uploads are averaged before anybody sees them, as
        under secure aggregation: each victim is then as many clients, with `examples`
        of each, whose defences act before the mean; of a run the client under attack
        and those that follow it. The threat model says ``upload=average``. None for
        the upload of one client, which is seen.
      earlier: gradients that each victim has sent before the one under attack, of other
        examples and at the same weights; the server has a record of them.
      observations: uploads of the same examples, which the attacker pools; the first is
        the one that a study of one attacks. Between those of a client that is drawn,
        the server takes a step of `kljax.studies.builder.observing.SERVER_RATE` with
        what was sent; a client of a run is observed before `round` and before the
        rounds that were kept after it. The attacker knows which uploads belong
        together.
      pooling: how the matching losses of observations become one: {poolings}, see
        `kljax.attacks.pooling`.
      client_optimiser: what the client's optimiser starts an update from: ``kept``
        from earlier rounds as in the run, of which the attacker knows nothing, or
        ``fresh``, which favours the attacker.
      delta: of differential privacy, at which epsilon is said of arms that have a
        guarantee, see `kljax.defences.accounting`.
      metrics: your own, each ``package.module:function`` made by
        `kljax.metrics.metric`; each is a column of the rows more.
      risk: whether to compute risk scores of each upload, too, from derivatives at the
        truth (`kljax.studies.risk`); no attack is shown any.
      snapshots: of each reconstruction, kept at most on the way to it, for pictures of
        how it comes about; as many as divide the steps. No result depends on them.
    """

    model: str = "lenet"
    data: str = "digits"
    arms: tuple[str, ...] = ARMS
    attack: str = "matching"
    attack_options: tuple[str, ...] = ()
    generator: str | None = None
    optimiser: str | None = None
    step_size: float | None = None
    labels: str | None = None
    label_rule: str = "auto"
    features: float = 0.0
    threat: tuple[str, ...] = ()
    victims: int = 16
    examples: int = 1
    restarts: int = 1
    steps: int = 2000
    seed: int = 0
    weights: Literal["fresh", "shared"] = "fresh"
    init: float | None = None
    lock_init: float = 0.0
    lock_activation: Literal[tuple(ACTIVATIONS)] = "relu"
    private_key_size: int = PRIVATE_KEY_SIZE
    sites: tuple[str, ...] = ()
    chained: bool = False
    classifier: str | None = None
    loss: str = "cross_entropy"
    image_size: int = 32
    image_width: int | None = None
    channels: Literal[1, 3] = 3
    tokens: int = 8
    split: str | None = None
    data_dir: str | None = None
    precision: str = "highest"
    layout: Layout = dataclasses.field(
        default_factory=functools.partial(fastest_layout, "victims")
    )
    convolution: Literal["auto", *CONVOLUTIONS] = "auto"
    from_run: str | None = None
    round: int = 0
    client: int = 0
    upload: Literal["gradient", "update"] = "gradient"
    local_steps: int | None = None
    local_epochs: int | None = None
    batch: int | None = None
    client_optimiser: Literal["kept", "fresh"] = "kept"
    delta: float = 1e-5
    metrics: tuple[str, ...] = ()
    earlier: int = 0
    risk: bool = False
    average_clients: int | None = None
    observations: int = 1
    pooling: Literal[tuple(POOLINGS)] = "mean"
    denoise: str | None = None
    public_data: str | None = None
    snapshots: int = 0

    def __post_init__(self):
        freeze(self, ("arms", "attack_options", "threat", "sites", "metrics"))
        check_kinds(self)
        check_whole(self, WHOLE)
        check_whole(self, {n: v for n, v in OPTIONAL.items() if given(self, n)})
        _check_needs(self)
        check_precision(self.precision)
        check_delta(self.delta)
        check_arms(self.arms)
        check_spelled_once(self.arms)
        if ":" not in self.label_rule:
            check_choice(self, "label_rule", ("auto", *RULES))
        if self.image_width is not None:
            check_whole(self, {"image_width": SSIM_WINDOW})
        for name in ("init", "lock_init", "features"):
            if getattr(self, name) is not None:
                check_number(self, name)
        if self.step_size is not None:
            check_number(self, "step_size", positive=True)
            if self.optimiser is None:
                raise ValueError(
                    f"step_size={self.step_size!r} needs an optimiser: name the one "
                    "whose step size it is"
                )

    @property
    def victim_examples(self) -> int:
        """Counts the examples of one victim, which may be several clients."""
        return self.examples * (self.average_clients or 1)

    def unused(self) -> frozenset[str]:
        """Names the options that say nothing here: of no run, update, or image."""
        names = () if self.upload == "update" else OF_UPDATES
        names = names if self.from_run else (*OF_CAPTURED, *OF_UPDATES)
        images = () if self.data not in (*TEXTS, *TABLES) else OF_IMAGES
        texts = () if self.data in TEXTS else OF_TEXTS
        return frozenset((*names, *images, *texts))


def _check_needs(config: LeakConfig) -> None:
    """Refuses options that say nothing without a run, or without an update."""
    for name in (*OF_CAPTURED, "upload", *OF_UPDATES):
        if config.from_run is None and given(config, name):
            raise ValueError(
                f"{name}={getattr(config, name)!r} needs from_run, the run whose "
                "client is attacked"
            )
    if config.earlier and config.average_clients is not None:
        raise ValueError(
            f"earlier={config.earlier}: of an average nobody has a record of what each "
            "client has sent before; leave it out, or leave average_clients out"
        )
    if config.observations == 1 and config.pooling != "mean":
        raise ValueError(
            f"pooling={config.pooling!r} needs observations of 2 or more: it says how "
            "their losses are put together"
        )
    if config.observations > 1 and config.average_clients is not None:
        raise ValueError(
            f"observations={config.observations} are of one client, and "
            f"average_clients={config.average_clients} of several: leave one out"
        )
    if config.denoise is not None and config.observations > 1:
        raise ValueError(
            f"denoise={config.denoise!r} holds what it makes against one upload, and "
            f"observations={config.observations} are several: leave one out"
        )
    if config.observations > 1 and config.earlier:
        raise ValueError(
            f"observations={config.observations} are of the same examples, and "
            f"earlier={config.earlier} of others: leave one of the two out"
        )
    for name in OF_UPDATES:
        if config.upload != "update" and given(config, name):
            raise ValueError(
                f"{name}={getattr(config, name)!r} needs upload='update': a gradient "
                "is that of one step"
            )
