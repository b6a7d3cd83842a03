"""Attacks that know the norm statistics of the private batch."""

from jax.typing import ArrayLike

from kljax.attacks.attack import Attack, Objective, Optimiser, Unknowns
from kljax.attacks.drivers import descend
from kljax.attacks.labels import LABELS
from kljax.attacks.objectives import norm, scaled, squared_l2
from kljax.attacks.optimisers import cosine_adam
from kljax.attacks.priors import (
    batch_statistics,
    diagonal_variation,
    group_consistency,
    image_norm,
    total_variation,
    with_feature,
)
from kljax.attacks.secrets import secret_of
from kljax.attacks.setting import Setting
from kljax.attacks.simulation import replay
from kljax.attacks.starts import around, normal
from kljax.attacks.unknowns import boxed, searched

# Weights of the distance. Half of the squared one in breaching; the paper's own are not
# published in numbers.
GRADINVERSION_MATCHING = 1e-4 / 2
BN_UPDATES_MATCHING = 1e-3
# Secret strategies that start from something drawn.
DRAWN_SECRETS = ("fixed_random", "regress_private_key", "regress_gates")


def gradinversion_objective() -> Objective:
    """Makes the distance of `gradinversion`, weighed as in there."""
    return scaled(squared_l2(), GRADINVERSION_MATCHING)


def bn_updates_objective() -> Objective:
    """Makes the distance of `bn_updates`, weighed as in there."""
    return scaled(norm(), BN_UPDATES_MATCHING)


def gradinversion(
    setting: Setting,
    optimiser: Optimiser | None = None,
    *,
    steps: int,
    restarts: int,
    matching: float = GRADINVERSION_MATCHING,
    variation: float = 1e-4,
    size: float = 1e-6,
    statistics: float = 0.1,
    first_statistics: float = 10.0,
    group: float = 0.01,
    group_after: float = 500 / 15_000,
    learning_rate: float = 0.1,
    warm_up: int = 50,
    noise: float = 0.01,
) -> Attack:
    """Makes GradInversion: batch statistics, and restarts that draw together.

    20,000 steps in breaching, whose weights these are, and 15,000 in GIFD, whose are
    those of the group. The first norm, which counts ten times, is the setting's first
    site. One restart is a group of one, at no distance from its mean. Differs from the
    paper: the group is not registered, and labels are recovered by the setting's rule,
    which is the paper's if that is ``yin``.

    The weights are for gradients as long as those of ResNet-50 at 224x224; of a small
    network's they leave little.

    Raises:
      ValueError: if the threat model hides statistics.

    Reference: Yin et al., "See through Gradients: Image Batch Recovery via
    GradInversion" (CVPR 2021); JonasGeiping/breaching, seethroughgradients.yaml;
    GIFD's code, its ``yin``.
    """
    secret = secret_of(setting)
    first = {path: first_statistics for path, _ in setting.defence.sites[:1]}
    priors = [
        total_variation(variation, relative=False),
        image_norm(size, per_pixel=True),
        batch_statistics(setting, secret.gates, statistics, emphasis=first),
    ]
    if restarts > 1:
        priors.append(group_consistency(group, after=group_after))
    return descend(
        Unknowns(
            boxed(setting, searched(setting, normal(0.5, 0.25))),
            LABELS[setting.threat.strategy.labels](setting),
            secret.unknown,
        ),
        replay(setting, secret.gates),
        scaled(squared_l2(), matching),
        optimiser
        or cosine_adam(learning_rate, steps=steps, warm_up=warm_up, noise=noise),
        prior=with_feature(setting, secret.gates, *priors),
        steps=steps,
        restarts=restarts,
        snapshots=setting.snapshots,
    )


def bn_updates(
    setting: Setting,
    optimiser: Optimiser | None = None,
    *,
    steps: int,
    restarts: int,
    prior_image: ArrayLike = 0.5,
    deviation: float = 0.0,
    matching: float = BN_UPDATES_MATCHING,
    statistics: float = 0.1,
    variation: float = 1e-4,
    size: float = 1e-5,
    learning_rate: float = 0.1,
    warm_up: int = 100,
    betas: tuple[float, float] = (0.9, 0.9),
) -> Attack:
    """Makes the attack from an update and its norm statistics; 40,000 steps.

    The search starts at a prior image [H, W, C], in the paper a mean radiograph; grey
    if there is none. `kljax.metrics.relative_leakage` says what it gained on it.
    `deviation` is that of noise on the start. Without it every restart starts at the
    same image, so several are refused, unless labels are optimised from a random start.

    Differs from the code, where the simulated update is detached and its distance
    does not reach the image: here it does, through all local steps. For that, its
    weight there says nothing. Images are as colourful as the setting's, and targets are
    class probabilities under its loss, where the paper has two classes under binary
    cross-entropy. Statistics are compared in the updated network only where an update
    is uploaded.

    Raises:
      ValueError: if the threat model hides statistics, for a network without any, and
        for several restarts that start alike.

    Reference: Hatamizadeh et al., "Do Gradient Inversion Attacks Make Federated
    Learning Unsafe?" (IEEE TMI 2023); its code, NVFlare, quantifying-data-leakage.
    """
    _, stats = setting.task.shapes()
    if not stats:
        raise ValueError(
            "bn-updates reads the running statistics of norm layers, and this network "
            "has none: take a network or an arm with a norm, such as bn-control, or "
            "another attack"
        )
    if restarts > 1 and not deviation and not _draws_apart_from_images(setting):
        raise ValueError(
            f"bn-updates starts at one prior image: restarts={restarts} would all "
            f"start alike with labels={setting.threat.strategy.labels!r}; take "
            "restarts=1, labels='joint', or a deviation above 0"
        )
    secret = secret_of(setting)
    updated = setting.threat.knowledge.upload == "update"
    return descend(
        Unknowns(
            boxed(setting, searched(setting, around(prior_image, deviation))),
            LABELS[setting.threat.strategy.labels](setting),
            secret.unknown,
        ),
        replay(setting, secret.gates),
        scaled(norm(), matching),
        optimiser
        or cosine_adam(learning_rate, steps=steps, warm_up=warm_up, betas=betas),
        prior=with_feature(
            setting,
            secret.gates,
            batch_statistics(setting, secret.gates, statistics, updated=updated),
            diagonal_variation(variation),
            image_norm(size),
        ),
        steps=steps,
        restarts=restarts,
        snapshots=setting.snapshots,
    )


def _draws_apart_from_images(setting: Setting) -> bool:
    """Tells whether restarts differ in their labels, those labels' order, or lock."""
    strategy, protocol = setting.threat.strategy, setting.protocol
    examples = setting.threat.knowledge.examples
    ordered = protocol is not None and protocol.batch < examples
    return (
        strategy.labels == "joint"
        or (strategy.labels == "recovered" and ordered)
        or strategy.secret in DRAWN_SECRETS
        # Nobody can tell what a defence's own strategy draws.
        or setting.threat.about_secret.unknown is not None
    )
