"""GRNN: the weights of an untrained generator in place of images and labels."""

from kljax.attacks.attack import Attack, Optimiser, Setting, Unknowns
from kljax.attacks.drivers import descend
from kljax.attacks.generators import generated_images, generated_labels
from kljax.attacks.labels import LABELS
from kljax.attacks.objectives import l2_norm
from kljax.attacks.optimisers import rmsprop
from kljax.attacks.priors import squared_variation, with_feature
from kljax.attacks.secrets import secret_of
from kljax.attacks.simulation import replay


def grnn(
    setting: Setting,
    optimiser: Optimiser | None = None,
    *,
    steps: int,
    restarts: int,
    inputs: int = 128,
    variation: float = 1e-3,
    learning_rate: float = 1e-4,
    momentum: float = 0.99,
    secret_rate: float = 1e-3,
) -> Attack:
    """Makes GRNN: 1,000 steps in its code, 20,000 in FedKL.

    `variation` is that for LeNet; it is 1e-6 for ResNet-18, and always in FedKL, which
    has 1024 inputs. Labels of the strategy ``joint`` come from the generator. Unknown
    gates have a rate of their own, ten times larger: FedKL's official attack puts the
    private key under the generator's, where it can hardly move.

    Raises:
      ValueError: for images that are not square with a side of 8, 16, 32, ...

    Reference: Ren, Deng, Xie, "GRNN: Generative Regression Neural Network" (ACM TIST
    2022), and its code, Rand2AI/GRNN.
    """
    secret, labels = secret_of(setting), setting.threat.strategy.labels
    return descend(
        Unknowns(
            generated_images(setting, inputs),
            generated_labels(setting, inputs)
            if labels == "joint"
            else LABELS[labels](setting),
            secret.unknown,
        ),
        replay(setting, secret.gates),
        l2_norm(),
        optimiser or rmsprop(learning_rate, secret_rate, momentum),
        prior=with_feature(setting, secret.gates, squared_variation(variation)),
        steps=steps,
        restarts=restarts,
    )
