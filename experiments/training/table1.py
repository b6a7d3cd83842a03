"""The trainings of FedKL's Table 1, and those that fit a small machine."""

import dataclasses

from kljax.parallel import use_all_cores
from kljax.studies.config import TrainConfig

# A configuration asks for the device, and JAX is awake from then on.
use_all_cores()


@dataclasses.dataclass(frozen=True)
class Preset:
    """One column of the paper's Table 1.

    Attributes:
      config: the training; its seed is replaced.
      fedavg: accuracy in % that the paper prints without the lock, None if it has none.
      fedkl: the same with it.
      words: where the configuration departs from the paper's, and why.
      column: whose numbers those are.
    """

    config: TrainConfig
    fedavg: float | None
    fedkl: float | None
    words: str
    column: str = "Table 1"


# FedKL, config.json: 3 clients, one local epoch of batch 64, SGD with Nesterov momentum
# .9 and weight decay 5e-4, 200 rounds, rate .01 x .2 at 60, 120, 160, unweighted mean.
PAPER = TrainConfig(
    rounds=200, drops=(60, 120, 160), weighting="uniform", evaluate_every=5
)
CIFAR = dataclasses.replace(PAPER, augment="crop_flip")


def cifar(model: str, classes: int, fedavg: float, fedkl: float) -> Preset:
    """Makes a CIFAR column; networks of ImageNet's kind see 224 x 224."""
    large = model in ("resnet18", "resnet34", "vgg16")
    config = dataclasses.replace(
        CIFAR,
        model=model,
        data=f"cifar{classes}",
        normalise=f"cifar{classes}",
        image_size=224 if large else 32,
    )
    return Preset(config, fedavg, fedkl, "The paper's hyper-parameters.")


# Sigmoid LeNets stay at chance for thousands of small steps: at the paper's rate and
# batch this budget would end before they leave it, in every arm. Batch and a first
# rate, .15, were chosen by the training loss of six rounds on seed 99. At .15 the lock
# arm then broke down on seed 0, a result in itself (experiments/accuracy.md has both);
# .05 was the next one tried, and chosen for the lock arm's sake.
FASHION = dataclasses.replace(
    PAPER,
    data="fashion_mnist",
    examples=15_000,
    test_examples=5_000,
    batch=16,
    rounds=60,
    drops=(40, 52),
    learning_rate=0.05,
    evaluate_every=3,
)

PRESETS: dict[str, Preset] = {
    "mnist": Preset(
        dataclasses.replace(PAPER, data="mnist"),
        98.14,
        97.45,
        "The paper's hyper-parameters.",
    ),
    "cifar10-resnet20": cifar("resnet20", 10, 91.20, 88.45),
    "cifar10-resnet32": cifar("resnet32", 10, 91.37, 89.29),
    "cifar10-resnet18": cifar("resnet18", 10, 89.50, 91.66),
    "cifar10-resnet34": cifar("resnet34", 10, 89.27, 93.27),
    "cifar10-vgg16": cifar("vgg16", 10, 88.13, 93.54),
    "cifar100-resnet20": cifar("resnet20", 100, 58.58, 61.97),
    "cifar100-resnet32": cifar("resnet32", 100, 61.91, 64.17),
    "cifar100-resnet18": cifar("resnet18", 100, 68.59, 74.19),
    "cifar100-resnet34": cifar("resnet34", 100, 68.30, 76.61),
    "cifar100-vgg16": cifar("vgg16", 100, 61.91, 73.06),
    "fashion_mnist": Preset(
        FASHION,
        98.14,
        97.45,
        "Fashion-MNIST instead of MNIST, and what two cores can do: at most 15,000 "
        "training and 5,000 test examples.",
        "Table 1, MNIST, not Fashion-MNIST",
    ),
    "tiny": Preset(
        TrainConfig(
            model="dense",
            arms=("none", "keylock"),
            image_size=8,
            rounds=6,
            batch=16,
            learning_rate=0.1,
            private_key_size=16,
            public_examples=10,
        ),
        None,
        None,
        "Digits at 8 x 8 on one dense layer: seconds.",
    ),
}
