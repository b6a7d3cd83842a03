"""Generators in place of pixels: GRNN's is untrained, GGL's has seen public images."""

from kljax.attacks.attack import Attack, Evolution, Optimiser, Unknowns
from kljax.attacks.drivers import descend, evolve
from kljax.attacks.generators import generated_images, generated_labels
from kljax.attacks.labels import LABELS
from kljax.attacks.latents import searched_latents
from kljax.attacks.objectives import l2_norm, mean_squared_l2
from kljax.attacks.optimisers import cma_es, rmsprop
from kljax.attacks.priors import squared_variation, with_feature
from kljax.attacks.secrets import secret_of
from kljax.attacks.setting import Setting
from kljax.attacks.simulation import replay
from kljax.attacks.starts import normal


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


def ggl(
    setting: Setting,
    optimiser: Evolution | Optimiser | None = None,
    *,
    steps: int,
    restarts: int,
    divergence: float = 0.1,
    bounded: bool = False,
    deviation: float = 0.0,
) -> Attack:
    """Makes GGL: the latents of a trained generator, by CMA-ES; 25,000 evaluations.

    These are the code's values for its generator without labels (on faces), whose
    latents are normal as ours are: the search starts at 0, and a latent whose entries
    do not look drawn from N(0, 1) pays `divergence`. For BigGAN latents are `bounded`
    by a tanh, and pay nothing. The first generation has the spread of the optimiser, 1.
    Labels are recovered as there (label rule ``ggl``, for one example ``idlg``).

    Differs from the paper: the generator is one of our own, the label is told to it,
    and images are resized bilinearly. An `Optimiser` follows gradients instead: the
    code's other variant has Adam at .1, from N(0, 1), which is `deviation` 1.

    Raises:
      ValueError: see `kljax.attacks.latents.searched_latents`.

    Reference: Li et al., "Auditing Privacy Defenses in Federated Learning via
    Generative Gradient Leakage" (CVPR 2022), and its code, zhuohangli/GGL,
    celeba32_wgan-gp.py and reconstructor.py.
    """
    secret, strategy = secret_of(setting), setting.threat.strategy
    optimiser = optimiser or cma_es()
    search = evolve if isinstance(optimiser, Evolution) else descend
    return search(
        Unknowns(
            searched_latents(
                setting,
                normal(0.0, deviation),
                bounded=bounded,
                divergence=divergence,
            ),
            LABELS[strategy.labels](setting),
            secret.unknown,
        ),
        replay(setting, secret.gates),
        mean_squared_l2(),
        optimiser,
        prior=with_feature(setting, secret.gates),
        steps=steps,
        restarts=restarts,
    )
