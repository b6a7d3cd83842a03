"""Generators in place of pixels: GGL's has seen public images, the others' nothing."""

import jax.numpy as jnp

from kljax.attacks.attack import (
    Attack,
    Evolution,
    Moves,
    Optimiser,
    Reconstruction,
    Unknown,
    Unknowns,
)
from kljax.attacks.drivers import descend, evolve
from kljax.attacks.generators import generated_images, generated_labels
from kljax.attacks.labels import LABELS
from kljax.attacks.latents import searched_latents
from kljax.attacks.objectives import cosine, l2_norm, mean_squared_l2
from kljax.attacks.optimisers import adam, cma_es, rmsprop, sign_adam
from kljax.attacks.priors import squared_variation, total_variation, with_feature
from kljax.attacks.priors.sums import check_weight
from kljax.attacks.secrets import secret_of
from kljax.attacks.setting import Setting
from kljax.attacks.simulation import replay
from kljax.attacks.starts import normal
from kljax.attacks.untrained import best_network, space_of, untrained_images
from kljax.core.types import Array, Rng
from kljax.threat import View

SECRET_RATE = 0.05  # kljax's own, as of other attacks


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
        snapshots=setting.snapshots,
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
    classes: str = "told",
) -> Attack:
    """Makes GGL: the latents of a trained generator, by CMA-ES; 25,000 evaluations.

    These are the code's values for its generator without labels (on faces), whose
    latents are normal as ours are: the search starts at 0, and a latent whose entries
    do not look drawn from N(0, 1) pays `divergence`. For BigGAN latents are `bounded`
    by a tanh, and pay nothing. The first generation has the spread of the optimiser, 1.
    Labels are recovered as there (label rule ``ggl``, for one example ``idlg``).

    Differs from the paper: the generator is one of our own, the label is told to it,
    and images are resized bilinearly. An `Optimiser` follows gradients instead: the
    code's other variant has Adam at .1, from N(0, 1), which is `deviation` 1. `classes`
    says whether the generator is told the label, or its classes are looked for.

    Raises:
      ValueError: for a negative divergence or deviation; and see
        `kljax.attacks.latents.searched_latents`.

    Reference: Li et al., "Auditing Privacy Defenses in Federated Learning via
    Generative Gradient Leakage" (CVPR 2022), and its code, zhuohangli/GGL,
    celeba32_wgan-gp.py and reconstructor.py.
    """
    check_weight(divergence, "divergence")
    check_weight(deviation, "deviation")
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
                classes=classes,
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
        snapshots=setting.snapshots,
    )


def deep_image_prior(
    setting: Setting,
    optimiser: Optimiser | None = None,
    *,
    steps: int,
    restarts: int,
    channels: int = 128,
    scales: int = 0,
    variation: float | Array = 0.0,
    learning_rate: float = 0.01,
) -> Attack:
    """Makes an inversion through one untrained encoder-decoder: its weights, by Adam.

    The cosine distance of gradients, in the weights of a network that is fed with fixed
    noise. It has skips on each scale, and doubles bilinearly, as that of the Deep Image
    Prior, whose rate of Adam, channels and five scales these are; skips are added here,
    and not joined. Its published attack on gradients, GION, has another generator, the
    same distance, and Adam at 1e-3 on signs.

    The network can make any image in the end, and of a gradient with noise on it that
    includes the noise. What holds it back is to stop early: `steps` is the only number
    that does so here, and no attacker sees which is best. Of all iterates the one of
    the lowest loss is taken, which with noise is about the last one.

    Args:
      setting: of an attack on images.
      optimiser: in place of Adam.
      steps, restarts: of the descent.
      channels: of all maps; a multiple of 4.
      scales: how often an image is halved; 0 for as often as can be, at most five
        times, with a smallest map of 2 x 2 or more.
      variation: weight of the total variation of the images.
      learning_rate: of Adam, for weights; secrets have .05.

    Raises:
      ValueError: for sides that cannot be halved so often, too few channels, and a
        negative variation.

    Reference: Ulyanov, Vedaldi, Lempitsky, "Deep Image Prior" (CVPR 2018); Zhang et
    al., "Generative Gradient Inversion via Over-Parameterized Networks in Federated
    Learning" (ICCV 2023), czhang024/CI-Net.
    """
    space = space_of(setting, channels, scales)
    return _untrained(
        setting,
        untrained_images(setting, space, space.usual()),
        optimiser or adam(learning_rate, SECRET_RATE),
        variation=variation,
        steps=steps,
        restarts=restarts,
    )


def gi_nas(
    setting: Setting,
    optimiser: Optimiser | None = None,
    *,
    steps: int,
    restarts: int,
    candidates: int = 4999,
    channels: int = 128,
    scales: int = 0,
    kernel: int = 3,
    narrowest: int = 0,
    side_by_side: int = 1,
    variation: float | Array = 0.0,
    learning_rate: float = 1e-3,
) -> Attack:
    """Makes GI-NAS: an untrained network is chosen, then trained; 30,000 steps.

    `candidates` networks of other architectures are drawn, and the one whose images
    match best before any training is kept with its weights. Then these are moved by
    Adam on signs of the gradient. Distances are of cosines, throughout.

    Differs from the code: of all iterates the one of the lowest loss is taken, and not
    the last; kernels that double have sides of 1 and 3, and 5 and 7 there, which
    `kernel` allows; of small images there are fewer scales; and what
    `kljax.attacks.architectures.Space` says. Every restart searches anew.

    Returns:
      The attack. Its ``info`` has the ``architecture`` that was chosen, its ``numbers``
      have ``proposals``, how many were tried.

    Args:
      setting: of an attack on images.
      optimiser: in place of Adam on signs.
      steps, restarts: of the descent.
      candidates: networks that are drawn.
      channels: of all maps, at most; a multiple of 4.
      scales: how often an image is halved; 0 for as often as can be, at most five
        times, with a smallest map of 2 x 2 or more.
      kernel: largest side of what doubles, out of 1, 3, 5 and 7.
      narrowest: least channels in use: halves of `channels` are tried as well, down to
        this; 0 for `channels` alone, as in the code.
      side_by_side: candidates that are judged at once, which changes no result.
      variation: weight of the total variation of the images, 0 in the code.
      learning_rate: of Adam, for weights; secrets have .05.

    Raises:
      ValueError: for no candidates, sides that cannot be halved so often, numbers of
        which no network can be made, and a negative variation.

    Reference: Yu et al., "GI-NAS: Boosting Gradient Inversion Attacks through Adaptive
    Neural Architecture Search" (IEEE TIFS 2025), and its code, cswbyu/GI-NAS,
    generator.py and runcifar10.py.
    """
    space = space_of(setting, channels, scales, kernel, narrowest)
    search = _untrained(
        setting,
        untrained_images(setting, space),
        optimiser or sign_adam(learning_rate, SECRET_RATE),
        variation=variation,
        moves=best_network(space, candidates, side_by_side),
        steps=steps,
        restarts=restarts,
    )

    def attack(rng: Rng, view: View) -> Reconstruction:
        found = search(rng, view)
        tried = jnp.asarray(restarts * candidates)
        return found._replace(numbers=found.numbers | {"proposals": tried})

    return attack


def _untrained(
    setting: Setting,
    images: Unknown,
    optimiser: Optimiser,
    *,
    variation: float | Array,
    steps: int,
    restarts: int,
    moves: Moves | None = None,
) -> Attack:
    """Composes what both untrained networks have in common: cosine and variation."""
    check_weight(variation, "variation")
    secret, strategy = secret_of(setting), setting.threat.strategy
    return descend(
        Unknowns(images, LABELS[strategy.labels](setting), secret.unknown),
        replay(setting, secret.gates),
        cosine(),
        optimiser,
        prior=with_feature(
            setting, secret.gates, total_variation(variation, relative=False)
        ),
        moves=moves,
        steps=steps,
        restarts=restarts,
        snapshots=setting.snapshots,
    )
