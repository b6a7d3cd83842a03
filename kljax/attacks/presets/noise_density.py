"""Maximum likelihood: the candidate under which what is seen was likeliest sent."""

import jax

from kljax.attacks.attack import Attack, Objective, Optimiser
from kljax.attacks.optimisers import lbfgs
from kljax.attacks.presets.plain import gradient_matching
from kljax.attacks.priors import total_variation
from kljax.attacks.setting import Setting
from kljax.attacks.starts import normal
from kljax.core.types import Array, PyTree


def negative_log_likelihood(setting: Setting) -> Objective:
    """Makes ``log p(seen | seen) - log p(seen | simulated)`` of the defence's noise.

    In nats. It is 0 where the two are equal, so that what does not depend on a
    candidate drops out. Under independent Gaussian noise it is the squared distance
    over twice the variance, under Laplace noise the absolute one over the scale; where
    the noise is larger than what is seen of it elsewhere, it weighs tensors by that.

    Raises:
      ValueError: for a defence without a density of what is sent, and where lock
        gradients are shared, which carry no noise.

    Reference: Balunović et al., "Bayesian Framework for Gradient Leakage" (ICLR 2022),
    for the density of the noise as the objective.
    """
    log_prob, protocol = setting.defence.log_prob, setting.protocol
    if log_prob is None:
        raise ValueError(
            "likelihood needs the density of what is sent (AssumedDefence.log_prob), "
            "and there is none"
        )
    if setting.threat.knowledge.lock_grads == "shared":
        raise ValueError(
            "gradients of the lock weights are shared as they are, without noise, and "
            "have no density: take lock_grads='hidden', or another attack"
        )
    unit = 1.0 if protocol is None else protocol.learning_rate * protocol.steps

    def objective(simulated: PyTree, observed: PyTree) -> Array:
        simulated, observed = (
            jax.tree.map(lambda x: unit * x, tree) for tree in (simulated, observed)
        )
        return log_prob(observed, observed) - log_prob(observed, simulated)

    return objective


def likelihood(
    setting: Setting,
    optimiser: Optimiser | None = None,
    *,
    steps: int,
    restarts: int,
    variation: float = 0.0,
) -> Attack:
    """Makes the attacker who knows the noise: `matching`, by `negative_log_likelihood`.

    `variation` is the weight of the relative total variation, in nats; without one the
    likeliest candidate is looked for.

    Raises:
      ValueError: see `negative_log_likelihood`.
    """
    return gradient_matching(
        setting,
        optimiser=optimiser or lbfgs(),
        steps=steps,
        restarts=restarts,
        start=normal(0.5, 0.1),
        prior=total_variation(variation, relative=True),
        objective=negative_log_likelihood(setting),
    )
