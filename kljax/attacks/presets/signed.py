"""Inverting Gradients: cosine distance, total variation, signed descent in a box."""

from kljax.attacks.attack import Attack, Objective, Optimiser, Unknowns
from kljax.attacks.drivers import descend
from kljax.attacks.labels import LABELS
from kljax.attacks.objectives import cosine
from kljax.attacks.optimisers import sign_adam
from kljax.attacks.priors import total_variation, with_feature
from kljax.attacks.secrets import secret_of
from kljax.attacks.setting import Setting
from kljax.attacks.simulation import replay
from kljax.attacks.starts import normal
from kljax.attacks.unknowns import boxed, searched

CLI_VARIATION = 1e-4  # 1e-6 in the code's notebooks on ConvNet64


def inverting_gradients(
    setting: Setting,
    optimiser: Optimiser | None = None,
    *,
    steps: int,
    restarts: int,
    variation: float = CLI_VARIATION,
    learning_rate: float = 0.1,
    objective: Objective | None = None,
) -> Attack:
    """Makes Inverting Gradients: 24,000 steps in the paper's code, 4,800 for batches.

    Restarts are compared by their cosine alone. There, images are standardised by the
    dataset's mean and deviation, about 0.45 and 0.25; here they are in [0, 1], and
    start at the same place. Rate and weight of the variation are the paper's numbers,
    so that a step is four times as long, and the variation counts a quarter of what it
    does there. Another `objective` than the cosine is for attacks that are this one
    but for it.

    Reference: Geiping et al., "Inverting Gradients" (NeurIPS 2020), and its code,
    JonasGeiping/invertinggradients, reconstruct_image.py.
    """
    secret = secret_of(setting)
    return descend(
        Unknowns(
            boxed(setting, searched(setting, normal(0.5, 0.25))),
            LABELS[setting.threat.strategy.labels](setting),
            secret.unknown,
        ),
        replay(setting, secret.gates),
        objective or cosine(),
        optimiser or sign_adam(learning_rate, steps=steps),
        prior=with_feature(
            setting, secret.gates, total_variation(variation, relative=False)
        ),
        steps=steps,
        restarts=restarts,
        snapshots=setting.snapshots,
        choose_by_matching=True,
    )
