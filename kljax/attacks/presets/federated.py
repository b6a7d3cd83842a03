"""Updates of several local steps: exact and cheaper replays, shuffled epochs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from kljax.attacks.attack import (
    Attack,
    Candidate,
    Objective,
    Optimiser,
    Prior,
    Unknown,
    Unknowns,
)
from kljax.attacks.drivers import descend
from kljax.attacks.epochs import merged, repeated
from kljax.attacks.labels import LABELS
from kljax.attacks.objectives import squared_l2
from kljax.attacks.optimisers import from_optax
from kljax.attacks.presets.signed import inverting_gradients
from kljax.attacks.priors import (
    box_violation,
    cyclic_variation,
    order_invariance,
    random_convolution,
    with_feature,
)
from kljax.attacks.secrets import secret_of
from kljax.attacks.setting import Setting
from kljax.attacks.simulation import epochs_of, fedavg
from kljax.attacks.tensors import Depths, depths_of, exponential, weighted
from kljax.core.trees import named
from kljax.core.types import Array
from kljax.threat import View

FEDAVG_VARIATION = 1e-6  # notebook "Recovery from Weight Updates", as its 8,000 steps


def ig_fedavg(
    setting: Setting,
    optimiser: Optimiser | None = None,
    *,
    steps: int,
    restarts: int,
    variation: float = FEDAVG_VARIATION,
) -> Attack:
    """Makes Inverting Gradients on an update: the cosine of the replayed change.

    8,000 steps at rate 0.1 in the code's notebook, for one image and 5 local steps.

    Reference: Geiping et al., "Inverting Gradients" (NeurIPS 2020), section 6, and its
    code, JonasGeiping/invertinggradients (FedAvgReconstructor).
    """
    return inverting_gradients(
        setting, optimiser, steps=steps, restarts=restarts, variation=variation
    )


class Numbers(NamedTuple):
    """Hyper-parameters of Dimitrov et al., per dataset.

    Attributes:
      learning_rate: of Adam, on standardised images.
      decay: of that rate, every `decay_every` steps (continuously in between).
      decay_every: steps.
      variation: weight of the squared variation, of standardised images.
      box: weight of the box violation, of images in [0, 1].
      factor: of the matching term at the start, and from half of the steps on;
        geometric in between.
      order: kind of the order-invariant prior, of ``full_many``.
      order_weight: its weight, on standardised images.
      order_features: channels of a random convolution before it; 0 for none.
    """

    learning_rate: float
    decay: float
    decay_every: int
    variation: float
    box: float
    factor: tuple[float, float]
    order: str
    order_weight: float
    order_features: int


FEMNIST = Numbers(0.4, 0.995, 10, 1e-3, 2.0, (1.0, 2.0), "l2_mean", 1000.0, 0)
CIFAR100 = Numbers(0.1, 0.997, 20, 2e-4, 10.0, (4.0, 2.0), "l2_max", 6.075, 96)


def fedavg_inversion(
    setting: Setting,
    optimiser: Optimiser | None = None,
    *,
    steps: int,
    restarts: int,
    variant: str = "full",
    numbers: Numbers = CIFAR100,
    mean: float = 0.5,
    deviation: float = 0.25,
) -> Attack:
    """Makes the attack of "Data Leakage in Federated Averaging"; 400 steps there.

    What is optimised are standardised images, as there; their mean and deviation are
    those of no dataset in particular here. The factor of the matching term divides the
    priors instead of multiplying it: the same descent for Adam, and a matching loss
    that means the same at every step.

    Reference: Dimitrov et al. (TMLR 2022); code eth-sri/fedavg_leakage.
    """
    secret = secret_of(setting)
    epochs = epochs_of(setting) if variant == "full_many" else 1
    labels = LABELS[setting.threat.strategy.labels](setting)
    attack = descend(
        Unknowns(
            standardised(setting, epochs, mean, deviation),
            repeated(labels, epochs),
            secret.unknown,
        ),
        fedavg(setting, secret.gates, variant),
        layered_l2(setting, epochs),
        optimiser or _decaying_adam(numbers),
        prior=with_feature(
            setting,
            secret.gates,
            _over_factor(
                (
                    cyclic_variation(numbers.variation / deviation**2),
                    box_violation(numbers.box),
                    *_order(setting, numbers, epochs, deviation),
                ),
                numbers.factor,
                steps,
            ),
        ),
        steps=steps,
        restarts=restarts,
        snapshots=setting.snapshots,
    )
    return merged(attack, epochs) if epochs > 1 else attack


def standardised(
    setting: Setting, epochs: int, mean: float, deviation: float
) -> Unknown:
    """Looks for standardised images, n for each epoch, from N(0, 1)."""
    count = epochs * setting.threat.knowledge.examples
    shape = (count, *setting.task.image_shape)
    return Unknown(
        start=lambda rng, view: (jax.random.normal(rng, shape), ()),
        decode=lambda free, fixed: mean + deviation * free,
    )


def layered_l2(setting: Setting, epochs: int = 1) -> Objective:
    """Sums squared differences, each layer counting 1/e of the one before.

    In the reference's unit: of changes divided by the learning rate alone, and over
    the number of batches in the candidate.
    """
    protocol, scale, knows = setting.protocol, 1.0, setting.threat.knowledge
    if protocol is not None:
        batches = epochs * knows.examples // knows.clients // protocol.batch
        # The replay has divided both changes by the number of steps, too.
        scale = protocol.steps**2 / batches
    distance = weighted(squared_l2(), exponential(_layers(depths_of(setting))))

    def objective(simulated, observed) -> Array:
        return scale * distance(simulated, observed)

    return objective


def _layers(depths: Depths) -> Depths:
    """Ranks layers by their first tensor: kernel and bias have one rank."""
    found = named(depths)
    in_order = sorted(found, key=found.get)
    layers = dict.fromkeys(name.rpartition("/")[0] for name in in_order)
    rank = {layer: i for i, layer in enumerate(layers)}
    ranks = [rank[name.rpartition("/")[0]] for name in found]
    return jax.tree.unflatten(jax.tree.structure(depths), ranks)


def _decaying_adam(numbers: Numbers) -> Optimiser:
    def decaying(rate: float) -> optax.GradientTransformation:
        return optax.adam(
            optax.exponential_decay(rate, numbers.decay_every, numbers.decay)
        )

    return from_optax(decaying(numbers.learning_rate), secret=decaying(0.05))


def _order(
    setting: Setting, numbers: Numbers, epochs: int, deviation: float
) -> tuple[Prior, ...]:
    if epochs == 1:
        return ()
    weight, more = numbers.order_weight / deviation**2, {}
    if numbers.order_features:
        channels = setting.task.image_shape[-1]
        more["features"] = random_convolution(channels, features=numbers.order_features)
    return (order_invariance(weight, epochs, numbers.order, **more),)


def _over_factor(
    priors: tuple[Prior, ...], factor: tuple[float, float], steps: int
) -> Prior:
    """Adds priors up, over the factor that the matching term has there."""
    start, end = factor

    def prior(view: View, candidate: Candidate, progress: Array) -> Array:
        share = jnp.minimum(2 * (progress + 1 / steps), 1.0)
        total = sum(each(view, candidate, progress) for each in priors)
        return total / (start * (end / start) ** share)

    return prior
