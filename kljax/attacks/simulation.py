"""Simulations: the gradient that a candidate would have given."""

from collections.abc import Callable
from typing import Any

import jax

from kljax.attacks.attack import Candidate, Setting, Simulation
from kljax.threat import View
from kljax.typing import Private, Public


def one_step(setting: Setting, gates: Callable[..., Any]) -> Simulation:
    """Replays one client step at the candidate.

    Args:
      setting: model, loss, norm mode and what the defence does to a gradient.
      gates: ``(public, Candidate.lock) -> gates`` of the lock strategy.

    Returns:
      ``(View, Candidate) -> (simulated, observed)``: two trees alike, the public
      gradient, and the lock gradients too where they are shared and the candidate
      has lock weights of its own.
    """
    train = setting.threat.knowledge.attacker_norm == "train"

    def simulation(view: View, candidate: Candidate):
        lock = candidate.lock
        # Lock gradients are compared where they are shared and can be simulated.
        compared = (
            view.lock_grads is not None
            and isinstance(lock, Private)
            and jax.tree.leaves(lock.trainable)
        )

        def objective(public: Public, trainable):
            guess = lock._replace(trainable=trainable) if compared else lock
            out = setting.model.apply(
                public.model,
                view.stats,
                candidate.images,
                gates=gates(public.defence, guess),
                train=train,
                # The victim's dropout masks are unknown: one fixed guess.
                rngs=jax.random.key(0),
            )
            return setting.loss(out.logits, candidate.targets)

        if not compared:
            grads = jax.grad(objective)(view.public, ())
            return setting.simulate(grads, view.grads), view.grads
        grads, lock_grads = jax.grad(objective, argnums=(0, 1))(
            view.public, lock.trainable
        )
        simulated = (setting.simulate(grads, view.grads), lock_grads)
        return simulated, (view.grads, view.lock_grads)

    return simulation
