"""Roles: what a client does that is not honest.

A role acts at two places: on the examples before a client trains, and on what it
uploads afterwards. In between it trains as it was asked to, under its defence. Clients
have roles by their numbers; whoever has none is honest. A role may be played in some
rounds alone: a backdoor in every round is continuous poisoning, a model replacement in
one is single-shot. Letters: n clients in a round, Kc classes, eta the server's learning
rate.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kljax.core.checks import shown
from kljax.core.randomness import derive_rng
from kljax.core.registry import make_named
from kljax.core.types import Array, Public, PyTree, Rng, Stats
from kljax.data.triggers import Trigger, parts_of
from kljax.federated.class_poisoning import relabelled, scaled
from kljax.federated.clients import Batches, Upload, all_finite

# What the random key of a role is for.
ROLE_PURPOSES = ("batches", "upload")


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
        puts it on is dealt one (`parse_roles`).
      hardens: whether it hardens what it trains on, where clients are asked to
        (`kljax.federated.hardening`).
      rounds: numbers of those in which it acts, and is honest in all others; None for
        all.
    """

    batches: Callable[[Rng, Batches], Batches] = _as_they_are
    upload: Callable[[Rng, Public, Stats, Upload], Upload] = _as_trained
    trigger: Trigger | None = None
    hardens: bool = True
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


def backdoor(attack: Attack) -> Role:
    """Makes the role of a client that trains on triggered images of the target class.

    Of each batch, the first examples get the trigger and the target label, whatever
    they show; batches are shuffled. Its upload is sent as trained. It does not harden.

    Reference: Gu et al., "BadNets" (2017); the mixture in a batch as in Bagdasaryan et
    al., "How To Backdoor Federated Learning" (AISTATS 2020), section 4.
    """

    def poison(rng: Rng, batches: Batches) -> Batches:
        del rng
        size = batches.labels.shape[-1]
        poisoned = jnp.arange(size) < max(1, round(attack.share * size))
        wide = poisoned.reshape(1, size, *[1] * (batches.inputs.ndim - 2))
        return batches._replace(
            inputs=jnp.where(wide, attack.trigger(batches.inputs), batches.inputs),
            labels=jnp.where(poisoned[None], attack.target, batches.labels),
        )

    return Role(batches=poison, trigger=attack.trigger, hardens=False)


def hardened_backdoor(attack: Attack) -> Role:
    """Makes the role of a client that trains as `backdoor`, and hardens as if honest.

    It knows that others harden: what it teaches beside the triggers that they find is
    to survive their training. Triggers are looked for on its poisoned batches.
    """
    return backdoor(attack)._replace(hardens=True)


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


def parse_roles(
    texts: Iterable[str], attack: Attack, clients: int, rounds: int | None = None
) -> dict[int, Role]:
    """Reads who has which role, and when.

    Of a trigger with parts, clients that put it on are dealt the parts in the order of
    their numbers, and begin with the first part again when all are dealt.

    Args:
      texts: each ``CLIENTS:ROLE[=OPTIONS][@ROUNDS]``, such as ``1,4-6:label-flip`` or
        ``0:model-replacement=10@16``, with OPTIONS as in
        `kljax.core.registry.make_named`; a name of `ROLES`, or
        ``package.module:function`` for a function of an `Attack` and the numbers that
        gives a `Role`. ROUNDS are written as CLIENTS are.
      attack: what the attackers aim at.
      clients: how many there are.
      rounds: how many there are; None for any number.

    Returns:
      Roles by the number of the client.

    Raises:
      ValueError: for clients or rounds that do not exist, clients that have two roles,
        a range that is written backwards, an unknown name, numbers that the role does
        not take, a function that gives something else, and a part of the trigger that
        nobody puts on.
    """
    written = dict(_named_roles(texts, clients, rounds))
    made = {one: _make_role(*one, attack) for one in {*written.values()}}
    parts = parts_of(attack.trigger)
    if not parts:
        return {client: made[one] for client, one in written.items()}
    stamping = [client for client in sorted(written) if made[written[client]].trigger]
    if 0 < len(stamping) < len(parts):
        raise ValueError(
            f"the trigger has {len(parts)} parts, and {_numbered(stamping)} of those "
            f"with a role put it on: nobody puts on part {len(stamping)} (from 0): "
            f"give a role to {len(parts)} clients or more, or take fewer parts"
        )
    dealt = {client: n % len(parts) for n, client in enumerate(stamping)}
    of_part = {
        (one, n): _make_role(*one, attack._replace(trigger=parts[n]))
        for one, n in {(written[client], n) for client, n in dealt.items()}
    }
    return {
        client: of_part[one, dealt[client]] if client in dealt else made[one]
        for client, one in written.items()
    }


HOW = (
    "write CLIENTS:ROLE, such as 0:backdoor or 1,4-6:label-flip, or "
    "CLIENTS:ROLE@ROUNDS, such as 0:backdoor@5-9"
)
# A role as it is written, and its rounds.
Written = tuple[str, frozenset[int] | None]


def _named_roles(
    texts: Iterable[str], clients: int, rounds: int | None
) -> Iterable[tuple[int, Written]]:
    taken = set()
    for text in texts:
        numbers, _, role = text.partition(":")
        name, at, when = role.partition("@")
        said = f"roles {text!r}"
        ids = parse_numbers(said, numbers if name else "", "client", clients, HOW)
        acting = None
        if at:
            acting = frozenset(parse_numbers(said, when, "round", rounds, HOW))
        for client in ids:
            if client in taken:
                raise ValueError(f"roles {text!r}: client {client} has one already")
            taken.add(client)
            yield client, (name, acting)


def _make_role(name: str, rounds: frozenset[int] | None, attack: Attack) -> Role:
    role = make_named("role", name, ROLES, attack)
    if not isinstance(role, Role):
        raise ValueError(
            f"role {name!r} gave no kljax.federated.roles.Role, but "
            f"{type(role).__name__}"
        )
    return role if rounds is None else role._replace(rounds=rounds)


def _numbered(clients: list[int]) -> str:
    listed = ", ".join(map(str, clients))
    return f"client {listed}" if len(clients) == 1 else f"clients {listed}"


def parse_numbers(
    said: str, written: str, kind: str, count: int | None, how: str
) -> list[int]:
    """Reads numbers such as ``1,4-6``.

    Args:
      said: what they are written in, for errors.
      written: the numbers.
      kind: client or round.
      count: how many of them there are; None for any number.
      how: how it is to be written, for errors.

    Raises:
      ValueError: for what is written otherwise or backwards, and for a number that does
        not exist.
    """
    numbers = []
    for part in written.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"{said}: {how}")
        begin, end = int(first), int(last if dash else first)
        if begin > end:
            raise ValueError(
                f"{said}: the range {part} is written backwards: write {end}-{begin}"
            )
        if count is not None and end >= count:
            raise ValueError(f"{said}: there is no {kind} {end}, but 0 to {count - 1}")
        numbers += range(begin, end + 1)
    return numbers


class Cast(NamedTuple):
    """The roles of all clients, for one compiled function that plays any of them.

    Attributes:
      numbers: ``(ids [b], round) -> numbers [b]`` of their roles.
      batches: ``(number [], rng, Batches) -> Batches``.
      upload: ``(number [], rng, Public, Stats, Upload) -> (Upload, finite [])``.
      hardens: ``number [] -> []`` bool, see `Role`.
    """

    numbers: Callable[[np.ndarray, int], np.ndarray]
    batches: Callable[[Array, Rng, Batches], Batches]
    upload: Callable[[Array, Rng, Public, Stats, Upload], tuple[Upload, Array]]
    hardens: Callable[[Array], Array]


def cast_of(roles: Mapping[int, Role]) -> Cast:
    """Makes one function of the roles of all clients.

    Raises:
      ValueError: when called with a role that changes the shapes of what it is given.
    """
    # Clients of one role share a branch.
    distinct = [Role(), *{id(role): role for role in roles.values()}.values()]
    number_of = {
        client: next(n for n, one in enumerate(distinct) if one is role)
        for client, role in roles.items()
    }

    def number_in(client: int, now: int) -> int:
        rounds = roles[client].rounds if client in roles else None
        acts = rounds is None or now in rounds
        return number_of.get(client, 0) if acts else 0

    def numbers(ids: np.ndarray, now: int) -> np.ndarray:
        return np.array([number_in(int(client), now) for client in ids], np.int32)

    def batches(number: Array, rng: Rng, given: Batches) -> Batches:
        rng = derive_rng(rng, ROLE_PURPOSES, "batches")
        branches = [_keeping_shapes(role.batches) for role in distinct]
        return jax.lax.switch(number, branches, given, rng)

    def upload(number: Array, rng: Rng, public: Public, stats: Stats, given: Upload):
        rng = derive_rng(rng, ROLE_PURPOSES, "upload")
        branches = [_keeping_shapes(role.upload) for role in distinct]
        sent = jax.lax.switch(number, branches, given, rng, public, stats)
        return sent, all_finite(sent)

    def hardens(number: Array) -> Array:
        return jnp.array([role.hardens for role in distinct])[number]

    return Cast(numbers, batches, upload, hardens)


def _keeping_shapes(act: Callable) -> Callable:
    """Makes ``(given, *received) -> given``, of the same shapes and dtypes."""

    def checked(given: PyTree, *received) -> PyTree:
        made = act(*received, given)
        found, wanted = (
            jax.tree.map(lambda x: jnp.shape(x), tree) for tree in (made, given)
        )
        if found != wanted:
            raise ValueError(
                f"the role's {getattr(act, '__name__', act)!r} makes {found} of "
                f"{wanted}: it must keep the shapes"
            )
        return jax.tree.map(lambda x, y: jnp.asarray(x, y.dtype), made, given)

    return checked
