"""Roles as they are written, such as ``0:backdoor@5-9``: who has which, and when."""

from collections.abc import Iterable

from kljax.core.registry import make_named
from kljax.data.triggers import parts_of
from kljax.federated.roles import ROLES, Attack, Role

HOW = (
    "write CLIENTS:ROLE, such as 0:backdoor or 1,4-6:label-flip, or "
    "CLIENTS:ROLE@ROUNDS, such as 0:backdoor@5-9"
)
# A role as it is written, and its rounds.
Written = tuple[str, frozenset[int] | None]


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
