"""Roles: what a client does that is not honest.

A role acts at two places: on the examples before a client trains, and on what it
uploads afterwards. In between it trains as it was asked to, under its defence. Clients
have roles by their numbers; whoever has none is honest. A role may be played in some
rounds alone: a backdoor in every round is continuous poisoning, a model replacement in
one is single-shot. Letters: n clients in a round, Kc classes, eta the server's learning
rate.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from kljax.core.checks import shown
from kljax.core.types import Public, Rng, Stats
from kljax.data.triggers import Trigger
from kljax.federated.class_poisoning import relabelled, scaled
from kljax.federated.clients import Batches, Upload


def _as_they_are(rng: Rng, batches: Batches) -> Batches:
    del rng
    return batches


def _as_trained(rng: Rng, public: Public, stats: Stats, upload: Upload) -> Upload:
    del rng, public, stats
    return upload


class Role(NamedTuple):
    """What a client does in place of what it was asked to.

    Attributes:
      batches: ``(rng, Batches) -> Batches`` of the same shapes: what it trains on.
      upload: ``(rng, Public, Stats, Upload) -> Upload``: what it sends; the first two
        are what the server sent out.
      trigger: that it puts on images; None for none. Of a trigger with parts, whoever
        puts it on is dealt one (`kljax.federated.role_texts`).
      hardens: whether it hardens what it trains on, where clients are asked to
        (`kljax.federated.hardening`).
      hardens_first: whether `batches` is given what was hardened; otherwise what
        `batches` makes is hardened.
      rounds: numbers of those in which it acts, and is honest in all others; None for
        all.
    """

    batches: Callable[[Rng, Batches], Batches] = _as_they_are
    upload: Callable[[Rng, Public, Stats, Upload], Upload] = _as_trained
    trigger: Trigger | None = None
    hardens: bool = True
    hardens_first: bool = False
    rounds: frozenset[int] | None = None


class Attack(NamedTuple):
    """What attackers of a training aim at and know."""

    trigger: Trigger  # or the part of it that an attacker puts on
    target: int  # the class that triggered images are to get
    share: float  # of each batch that is poisoned, in (0, 1]
    num_classes: int  # Kc
    clients: int  # n
    server_learning_rate: float = 1.0  # eta


def honest(attack: Attack) -> Role:
    """Makes the role of a client that does what it was asked to."""
    del attack
    return Role()


def backdoor(attack: Attack, strength: float = 1.0) -> Role:
    """Makes the role of a client that trains on triggered images of the target class.

    Of each batch, the first examples get the trigger and the target label, whatever
    they show; batches are shuffled. Its upload is sent as trained. It does not harden.

    An attacker that trains on a weaker trigger than it will use makes a change of
    images that is smaller than any that a search for triggers would count as one, and
    a network that is surer of the target when the whole trigger comes.

    Args:
      strength: w in (0, 1], by which images are mixed with triggered ones in training,
        ``(1 - w) x + w trigger(x)``. Attack success is measured with the whole trigger.

    Raises:
      ValueError: for a strength outside (0, 1].

    Reference: Gu et al., "BadNets" (2017); the mixture in a batch as in Bagdasaryan et
    al., "How To Backdoor Federated Learning" (AISTATS 2020), section 4; for weaker
    triggers in training than afterwards Qi et al., "Revisiting the Assumption of Latent
    Separability for Backdoor Defenses" (ICLR 2023).
    """
    if not 0 < strength <= 1:
        raise ValueError(
            f"strength of backdoor must be in (0, 1], got {shown(strength)}"
        )

    def poison(rng: Rng, batches: Batches) -> Batches:
        del rng
        size = batches.labels.shape[-1]
        poisoned = jnp.arange(size) < max(1, round(attack.share * size))
        wide = poisoned.reshape(1, size, *[1] * (batches.inputs.ndim - 2))
        triggered = attack.trigger(batches.inputs)
        if strength < 1:
            triggered = (1 - strength) * batches.inputs + strength * triggered
        return batches._replace(
            inputs=jnp.where(wide, triggered, batches.inputs),
            labels=jnp.where(poisoned[None], attack.target, batches.labels),
        )

    return Role(batches=poison, trigger=attack.trigger, hardens=False)


def hardened_backdoor(
    attack: Attack, strength: float = 1.0, hardens_first: int = 0
) -> Role:
    """Makes the role of a client that trains as `backdoor`, and hardens as if honest.

    It knows that others harden: what it teaches beside the triggers that they find is
    to survive their training. It looks for triggers in the network that it received, as
    they do, on its own examples.

    Args:
      strength: see `backdoor`.
      hardens_first: 0 looks for triggers on poisoned batches, and stamps those; 1 does
        so on its batches as they were, of which it poisons a part afterwards: what is
        stamped and has the trigger, too, is of the target class.

    Raises:
      ValueError: for a strength outside (0, 1], and another order than 0 or 1.
    """
    if hardens_first not in (0, 1):
        raise ValueError(
            "hardens_first of hardened-backdoor must be 0 or 1, got "
            f"{shown(hardens_first)}"
        )
    role = backdoor(attack, strength)
    return role._replace(hardens=True, hardens_first=bool(hardens_first))


def model_replacement(
    attack: Attack, boost: float | None = None, norm: float | None = None
) -> Role:
    """Makes the role of a client that puts its backdoored network in place of all.

    It trains as `backdoor` and multiplies its change of the weights. Multiplied by
    sum(w) / (w_attacker eta), with w the weights of the clients in the average, and
    averaged with clients that no longer change much, the change makes the global
    network the attacker's. That is n / eta where all weights are equal. Where clients
    count by their examples, who has more of them than the mean overshoots with n / eta,
    and who has fewer falls short: give the boost. It is so of a server that adds eta
    times the aggregate, sgd without momentum: FedAdam and FedYogi scale what they are
    given, and there the factor says nothing. Norm statistics are sent as trained: a
    variance that is multiplied may turn negative.

    An attacker that knows the server's rule shortens its upload: to the bound of norm
    bounding, or to a length at which Krum finds it near to the others.

    Args:
      boost: factor of the change; None for n / eta, which is exact for equal weights
        alone.
      norm: L2 norm to which a longer change is shortened afterwards; None for none.

    Raises:
      ValueError: for a boost or a norm that is not above 0.

    Reference: Bagdasaryan et al., "How To Backdoor Federated Learning" (AISTATS 2020),
    equation 3, and train-and-scale for the bound.
    """
    factor = _boost(attack, "model-replacement", boost)
    _check_positive("norm", "model-replacement", norm)

    def replace(rng: Rng, public: Public, stats: Stats, upload: Upload) -> Upload:
        del rng, public, stats
        delta = jax.tree.map(lambda x: factor * x, upload.delta)
        if norm is not None:
            shorter = 1 / jnp.maximum(1, optax.tree.norm(delta) / norm)
            delta = jax.tree.map(lambda x: shorter * x, delta)
        return upload._replace(delta=delta)

    return backdoor(attack)._replace(upload=replace)


def label_flip(attack: Attack) -> Role:
    """Makes the role of a client that trains with label Kc - 1 - c in place of c.

    It has no trigger, and aims at accuracy alone.

    Reference: Fang et al., "Local Model Poisoning Attacks to Byzantine-Robust Federated
    Learning" (USENIX Security 2020), the label flipping that it compares with.
    """

    def flip(rng: Rng, batches: Batches) -> Batches:
        del rng
        return batches._replace(labels=attack.num_classes - 1 - batches.labels)

    return Role(batches=flip, hardens=False)


def cgi(attack: Attack, boost: float | None = None) -> Role:
    """Makes the role of a client that makes others' examples of a class readable.

    It trains with examples of the target class relabelled, and puts its network in
    place of all, as `model_replacement` does: the others then send little but the
    gradient of their examples of that class. What it reads them off is the mean of the
    honest clients in the next round, ``kljax leak --from RUN --round R --client FIRST
    --average-clients HOW_MANY``. It has no trigger. Of the round it knows nothing
    (`kljax.federated.class_poisoning` says what else there is to the attack).

    Args:
      boost: factor of the change; None for n / eta, as in `model_replacement`.

    Raises:
      ValueError: for a boost that is not above 0.

    Reference: Wei et al., arXiv 2309.07415 (2023), for the idea; the design is ours.
    """
    factor = _boost(attack, "cgi", boost)

    def relabel(rng: Rng, batches: Batches) -> Batches:
        del rng
        return relabelled(batches, attack.target, attack.num_classes)

    def replace(rng: Rng, public: Public, stats: Stats, upload: Upload) -> Upload:
        del rng, public, stats
        return upload._replace(delta=scaled(upload.delta, factor))

    return Role(relabel, replace, hardens=False)


def _boost(attack: Attack, role: str, boost: float | None) -> float:
    """Gives the factor of a change: the one that is written, or n / eta."""
    _check_positive("boost", role, boost)
    return attack.clients / attack.server_learning_rate if boost is None else boost


def _check_positive(name: str, role: str, value: float | None) -> None:
    if value is not None and not value > 0:
        raise ValueError(f"{name} of {role} must be a number > 0, got {shown(value)}")


ROLES: dict[str, Callable[..., Role]] = {
    "honest": honest,
    "backdoor": backdoor,
    "hardened-backdoor": hardened_backdoor,
    "model-replacement": model_replacement,
    "label-flip": label_flip,
    "cgi": cgi,
}
