"""Configurations: all that is needed to repeat a run, checked when they are made."""

import dataclasses
import math
from typing import Literal

import jax

from kljax.keylock import PRIVATE_KEY_SIZE
from kljax.mapping import Layout
from kljax.metrics.image import SSIM_WINDOW

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
