"""Plain gradient matching: squared distance of gradients, pixels as unknowns."""

from kljax.attacks.attack import Attack, Objective, Optimiser, Prior, Unknowns, no_prior
from kljax.attacks.drivers import descend
from kljax.attacks.labels import LABELS
from kljax.attacks.objectives import squared_l2
from kljax.attacks.objectives import tag as l2_and_l1
from kljax.attacks.optimisers import adam, lbfgs, lbfgs_torch
from kljax.attacks.priors import total_variation, with_feature
from kljax.attacks.secrets import secret_of
from kljax.attacks.setting import Setting
from kljax.attacks.simulation import replay
from kljax.attacks.starts import Start, normal
from kljax.attacks.unknowns import searched


def gradient_matching(
    setting: Setting,
    *,
    optimiser: Optimiser,
    steps: int,
    restarts: int,
    start: Start,
    prior: Prior = no_prior,
    objective: Objective | None = None,
) -> Attack:
    """Composes the plainest gradient matching: pixels, `squared_l2` if not said."""
    secret = secret_of(setting)
    labels = LABELS[setting.threat.strategy.labels](setting)
    return descend(
        Unknowns(searched(setting, start), labels, secret.unknown),
        replay(setting, secret.gates),
        objective or squared_l2(),
        optimiser,
        prior=with_feature(setting, secret.gates, prior),
        steps=steps,
        restarts=restarts,
        snapshots=setting.snapshots,
    )


# Chosen on victims of their own by the attacker's own loss:
# experiments/attack_settings.py.
RELATIVE_TV = 1e-2


def matching(
    setting: Setting,
    optimiser: Optimiser | None = None,
    *,
    steps: int,
    restarts: int,
    variation: float = RELATIVE_TV,
) -> Attack:
    """Makes kljax's default: DLG's objective, a guarded L-BFGS, a grey start.

    `variation` is the weight of the total variation relative to the image's spread.
    """
    return gradient_matching(
        setting,
        optimiser=optimiser or lbfgs(),
        steps=steps,
        restarts=restarts,
        start=normal(0.5, 0.1),
        prior=total_variation(variation, relative=True),
    )


def dlg(
    setting: Setting, optimiser: Optimiser | None = None, *, steps: int, restarts: int
) -> Attack:
    """Makes DLG: torch's fixed-step L-BFGS from N(0, 1).

    The paper's 300 calls of L-BFGS are at most 6,000 steps. Labels are optimised
    jointly there (threat strategy ``joint``). Sentences are looked for among their
    embeddings, as in section 4.2 of the paper.

    Reference: Zhu, Liu, Han, "Deep Leakage from Gradients" (NeurIPS 2019); code
    mit-han-lab/dlg, main.py.
    """
    return gradient_matching(
        setting,
        optimiser=optimiser or lbfgs_torch(),
        steps=steps,
        restarts=restarts,
        start=normal(0.0, 1.0),
    )


TAG_ALPHA = 0.01


def tag(
    setting: Setting,
    optimiser: Optimiser | None = None,
    *,
    steps: int,
    restarts: int,
    alpha: float = TAG_ALPHA,
    learning_rate: float = 0.1,
) -> Attack:
    """Makes TAG: squared and absolute distance, Adam from N(0, 1).

    TAG attacks the word embeddings of a transformer, in 2,500 steps; of images this is
    its distance and its descent. `alpha` and the rate are those it has in LAMP's code.

    Reference: Deng et al., "TAG: Gradient Attack on Transformer-based Language
    Models" (EMNLP Findings 2021); Balunović et al., "LAMP" (NeurIPS 2022), its code.
    """
    return gradient_matching(
        setting,
        optimiser=optimiser or adam(learning_rate),
        steps=steps,
        restarts=restarts,
        start=normal(0.0, 1.0),
        objective=l2_and_l1(alpha),
    )
