"""Generators searched in stages: latents first, then what lies behind them."""

from collections.abc import Sequence

from kljax.attacks.attack import Attack, Optimiser, Unknowns
from kljax.attacks.drivers import Stage, descend_in_stages, split_steps
from kljax.attacks.labels import LABELS
from kljax.attacks.latents import (
    feature_stage,
    latent_stage,
    require_stages,
    searched_latents,
    weight_stage,
)
from kljax.attacks.objectives import cosine
from kljax.attacks.optimisers import adam, ramped_adam
from kljax.attacks.priors import image_norm, total_variation, with_feature
from kljax.attacks.priors.sums import check_weight
from kljax.attacks.secrets import secret_of
from kljax.attacks.setting import Setting
from kljax.attacks.simulation import replay
from kljax.attacks.starts import normal


def gias(
    setting: Setting,
    optimiser: Optimiser | None = None,
    *,
    steps: int,
    restarts: int,
    latent_share: float = 1 / 9,
    learning_rate: float = 0.03,
    weight_rate: float = 1e-3,
    variation: float = 1e-4,
    size: float = 1e-6,
    classes: str = "told",
) -> Attack:
    """Makes GIAS: latents of a trained generator, then its weights for each image.

    1,000 steps on latents from N(0, 1) and 8,000 on weights, which is a `latent_share`
    of 1/9, are what it has in GIFD's code, with cosine distance, total variation and
    the norm of the image; 1,000 and 5,000, a share of 1/6 and a `variation` of 1e-6 are
    GIAS's own. Rates fall to a tenth at 3/8, 5/8 and 7/8 of either stage; `weight_rate`
    is that for StyleGAN2 (for BigGAN 1e-5).

    Differs from GIAS: all entries of the gradient count, not the largest twentieth of
    each tensor; each restart goes on with its own latents, not with the best of all;
    the generator is one of our own.

    Raises:
      ValueError: see `kljax.attacks.latents.searched_latents`; and for fewer than two
        steps, a share outside (0, 1), or a negative weight of a prior.

    Reference: Jeon et al., "Gradient Inversion with Generative Image Prior" (NeurIPS
    2021), and as a baseline in GIFD's code, ffhibnese/GIFD_Gradient_Inversion_Attack.
    """
    if not 0 < latent_share < 1:
        raise ValueError(f"latent_share must be in (0, 1), got {latent_share!r}")
    counts = split_steps(steps, (latent_share, 1 - latent_share))
    rates = zip((learning_rate, weight_rate), counts, strict=True)
    return _matched(
        setting,
        [latent_stage(setting, sphere=False), weight_stage(setting)],
        [optimiser or adam(rate, steps=count) for rate, count in rates],
        counts,
        restarts=restarts,
        variation=variation,
        size=size,
        classes=classes,
    )


def gifd(
    setting: Setting,
    optimiser: Optimiser | None = None,
    *,
    steps: int,
    restarts: int,
    depth: int = 12,
    radius: float = 0.1,
    growth: float = 0.05,
    learning_rate: float = 0.1,
    variation: float = 1e-4,
    size: float = 1e-6,
    classes: str = "told",
) -> Attack:
    """Makes GIFD: latents of a trained generator, then its features, stage by stage.

    Latents from N(0, 1) keep their norm; the features that go into each later stage
    start from where the search before ended, and stay in an l1 ball around that. The
    stage whose candidate has the lowest cosine distance is reported. 13 searches of
    1,000 steps for BigGAN, 8 for StyleGAN2; `steps` are shared out evenly.

    `depth` is how many stages of the generator may lie before the last features that
    are looked for; a generator has no more of them than stages, less one. The code's
    radii grow with depth, from 2,000 to 7,500 for BigGAN; here they are in units of the
    number of features, `radius` at the first and `growth` more at each that follows,
    and kljax's own.

    Out of distribution the paper's attack is the same one, on other images. What goes
    beyond it here: `classes` may be searched, where the generator's are others than
    the network's.

    Raises:
      ValueError: for a generator without stages, a negative depth, radius, growth or
        weight of a prior, fewer steps than searches; and see
        `kljax.attacks.latents.searched_latents`.

    Reference: Fang et al., "GIFD: A Generative Gradient Inversion Method with Feature
    Domain Optimization" (ICCV 2023, arXiv 2308.04699), and its code,
    ffhibnese/GIFD_Gradient_Inversion_Attack, reconstruction_algorithms.py.
    """
    for name, value in {"radius": radius, "growth": growth}.items():
        check_weight(value, name)
    if depth < 0:
        raise ValueError(f"depth must be 0 or more, got {depth!r}")
    searches = min(depth + 1, require_stages(setting, "GIFD"))
    counts = split_steps(steps, (1,) * searches)
    rings = range(1, searches)
    return _matched(
        setting,
        [
            latent_stage(setting, sphere=True),
            *(feature_stage(setting, i, radius + (i - 1) * growth) for i in rings),
        ],
        [optimiser or ramped_adam(learning_rate, steps=n, fall=0.75) for n in counts],
        counts,
        restarts=restarts,
        variation=variation,
        size=size,
        classes=classes,
    )


def _matched(
    setting: Setting,
    stages: Sequence[Stage],
    optimisers: Sequence[Optimiser],
    steps: Sequence[int],
    *,
    restarts: int,
    variation: float,
    size: float,
    classes: str,
) -> Attack:
    """Composes what both have in common: cosine distance, priors, a normal start."""
    for name, value in {"variation": variation, "size": size}.items():
        check_weight(value, name)
    secret = secret_of(setting)
    return descend_in_stages(
        Unknowns(
            searched_latents(setting, normal(0.0, 1.0), classes=classes),
            LABELS[setting.threat.strategy.labels](setting),
            secret.unknown,
        ),
        stages,
        replay(setting, secret.gates),
        cosine(),
        optimisers,
        prior=with_feature(
            setting,
            secret.gates,
            total_variation(variation, relative=False),
            image_norm(size, per_pixel=True),
        ),
        steps=steps,
        restarts=restarts,
        snapshots=setting.snapshots,
    )
