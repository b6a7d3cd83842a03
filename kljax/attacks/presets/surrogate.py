"""SME: an update of many steps, by one gradient at a point between its ends."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from kljax.attacks.attack import (
    Attack,
    Candidate,
    Optimiser,
    Reconstruction,
    Simulation,
    Unknown,
    Unknowns,
)
from kljax.attacks.drivers import descend
from kljax.attacks.labels import LABELS
from kljax.attacks.objectives import cosine
from kljax.attacks.optimisers import from_optax
from kljax.attacks.optimisers.first_order import falling
from kljax.attacks.presets.federated import standardised
from kljax.attacks.priors import total_variation, with_feature
from kljax.attacks.secrets import Secret, secret_of
from kljax.attacks.setting import Setting
from kljax.attacks.simulation import SurrogateSimulation, surrogate_gradient
from kljax.core.types import Array, PyTree, Rng
from kljax.threat import View

SECRET_RATE = 0.05  # kljax's own: the paper knows no secrets


def sme(
    setting: Setting,
    optimiser: Optimiser | None = None,
    *,
    steps: int,
    restarts: int,
    interpolation: float = 0.5,
    interpolation_rate: float = 1e-3,
    learning_rate: float = 1.0,
    variation: float = 0.01,
    mean: float = 0.5,
    deviation: float = 0.25,
) -> Attack:
    """Makes SME on an update: one gradient, at a point of the way that is searched.

    1,000 steps in the code's configuration for CIFAR-100. The cosine distance of the
    client's change and of the gradient of all its examples at once, at the parameters
    ``w(a) = (1 - a) w0 + a wT``; a is looked for in [0, 1] along with the images, and
    comes back as ``numbers["interpolation"]``. An evaluation takes one gradient,
    however many steps the client made. Of an update of one step the right place is 0.

    What is optimised are standardised images, as there, within the box of the pixels;
    their mean and deviation are those of no dataset in particular here. Differs from
    the code: of each restart the best iterate counts, and not the last.

    Args:
      setting: of an update of one client, all of which is visible.
      optimiser: instead of Adam, for images, a and secrets alike.
      steps: evaluations per restart; all rates of Adam fall to a tenth three times.
      restarts: independent starts.
      interpolation: a at the start, in [0, 1].
      interpolation_rate: of Adam for a; 0 keeps it where it starts.
      learning_rate: of Adam for standardised images.
      variation: weight of the mean of both absolute variations, standardised.
      mean, deviation: of the pixels, by which images are standardised.

    Raises:
      ValueError: for a start outside [0, 1], a negative rate, and what
        `kljax.attacks.simulation.surrogate_gradient` raises.

    Reference: Zhu, Yao, Blaschko, "Surrogate Model Extension (SME): A Fast and Accurate
    Weight Update Attack on Federated Learning" (ICML 2023); code
    JunyiZhu-AI/surrogate_model_extension, cifar_sme.json.
    """
    if not 0 <= interpolation <= 1:
        raise ValueError(f"interpolation must be in [0, 1], got {interpolation!r}")
    if not interpolation_rate >= 0:
        raise ValueError(f"interpolation_rate must be >= 0, got {interpolation_rate!r}")
    hidden = secret_of(setting)
    secret = _with_interpolation(hidden, interpolation)
    attack = descend(
        Unknowns(
            _boxed(standardised(setting, 1, mean, deviation), mean, deviation),
            LABELS[setting.threat.strategy.labels](setting),
            secret.unknown,
        ),
        _at_interpolation(surrogate_gradient(setting, hidden.gates)),
        cosine(),
        optimiser or _adam(learning_rate, interpolation_rate, steps),
        prior=with_feature(
            setting,
            secret.gates,
            total_variation(variation / 2 / deviation, relative=False),
        ),
        steps=steps,
        restarts=restarts,
        snapshots=setting.snapshots,
    )
    return _reporting(attack)


class Interpolated(NamedTuple):
    """What a candidate has for a secret: the secret itself, and where w(a) is.

    Attributes:
      secret: as the strategy about it has it.
      share: a [], of the way from received to trained parameters.
    """

    secret: PyTree
    share: Array


def _with_interpolation(secret: Secret, first: float) -> Secret:
    """Puts an unknown share in [0, 1], which starts at `first`, beside a secret."""
    part = secret.unknown

    def start(rng: Rng, view: View):
        free, fixed = part.start(rng, view)
        return (free, jnp.float32(first)), fixed

    def decode(free, fixed) -> Interpolated:
        return Interpolated(part.decode(free[0], fixed), free[1])

    def project(free):
        return part.project(free[0]), jnp.clip(free[1], 0.0, 1.0)

    def read(value: Interpolated, fixed) -> Interpolated:
        return value._replace(secret=part.read(value.secret, fixed))

    def penalty(free) -> Array:
        return part.penalty(free[0])

    def report(free, fixed) -> dict[str, PyTree]:
        return part.report(free[0], fixed)

    unknown = part._replace(
        start=start,
        decode=decode,
        project=project,
        read=read,
        penalty=penalty if part.penalty else None,
        report=report if part.report else None,
    )
    return Secret(unknown, lambda public, found: secret.gates(public, found.secret))


def _at_interpolation(surrogate: SurrogateSimulation) -> Simulation:
    """Makes the simulation of candidates whose secret is an `Interpolated`."""

    def simulation(view: View, candidate: Candidate):
        secret, share = candidate.secret
        return surrogate(view, candidate._replace(secret=secret), share)

    return simulation


def _boxed(unknown: Unknown, mean: float, deviation: float) -> Unknown:
    """Keeps standardised images where their pixels are in [0, 1]."""
    low, high = -mean / deviation, (1 - mean) / deviation
    return unknown._replace(project=lambda free: jnp.clip(free, low, high))


def _adam(rate: float, interpolation_rate: float, steps: int) -> Optimiser:
    """Descends by Adam, at rates of their own that fall together."""

    def own(rate: float) -> optax.GradientTransformation:
        return optax.adam(falling(rate, steps))

    def groups(free: PyTree) -> PyTree:
        *images_and_labels, (secret, _) = free
        first, second = (
            jax.tree.map(lambda _, name=name: name, part)
            for name, part in (("inputs", images_and_labels), ("secret", secret))
        )
        return (*first, (second, "share"))

    rates = {"inputs": rate, "secret": SECRET_RATE, "share": interpolation_rate}
    return from_optax(
        optax.partition({name: own(rate) for name, rate in rates.items()}, groups)
    )


def _reporting(attack: Attack) -> Attack:
    """Reports the secret by itself, and the interpolation as a number."""

    def run(rng: Rng, view: View) -> Reconstruction:
        found = attack(rng, view)
        secret, share = found.info["secret"]
        return found._replace(
            info={**found.info, "secret": secret},
            numbers={**found.numbers, "interpolation": share},
        )

    return run
