"""Who is attacked by whom in the table of all defences; made from the catalogue alone.

A defence of `kljax.defences.catalogue.KINDS` is there at each of its strengths
(`write_strengths`), and at each with every attacker that there is for it:

- ``unaware`` does not use what it knows of the defence: it takes what it sees for the
  gradient, and candidates for what was trained on; behind a defence that hides
  something it replays the network without it.
- ``adaptive`` knows the defence, and none of its secrets: it simulates or undoes a
  release, replaces inputs, matches by the density of a noise, leaves noisy tensors out,
  or looks for what is hidden.
- ``informed`` is given all that is hidden: what is not recovered then is difficulty,
  and not secrecy.
- ``only``: there is nothing to know, and one attacker.
"""

from collections.abc import Iterator
from typing import NamedTuple

from kljax.attacks.secrets import SECRETS, unit
from kljax.defences import Defence, as_given, as_sent, everything, without_release
from kljax.defences.arms import last_transform, parse_training_arm, unplaced_sites
from kljax.defences.catalogue import KINDS, Sites, write_strengths

Attackers = Iterator[tuple[str, str, str]]  # attacker, strategy in the arm, method
HIDDEN = ("private_key", "lock_weights", "lock_grads")
SITES = unplaced_sites()._replace(value_shape=lambda name: (4, 4, 4))


class Contest(NamedTuple):
    """A defence at a strength, and an attacker.

    Attributes:
      defence: its name in the catalogue.
      combination: with its options, as it is trained.
      arm: the same with what the attacker does.
      attacker: see above.
      method: ``search``, by the gradients' distance; ``density``, the same search by
        the density of what is sent; ``inputs``, the same search through the making of
        what is trained on in place of inputs; ``closed``, a closed form; ``learned``,
        an inverter that was trained under the defence.
    """

    defence: str
    combination: str
    arm: str
    attacker: str
    method: str = "search"


METHODS = ("search", "density", "closed", "learned", "inputs")


def at_strengths(name: str, *, middle: bool = False) -> tuple[str, ...]:
    """Writes a defence of the catalogue at its strengths, or at the middle one."""
    found = write_strengths(name)
    return found[len(found) // 2 :][:1] if middle else found


def contests(name: str, sites: Sites = SITES) -> list[Contest]:
    """Lists who attacks a defence of the catalogue, from weak to strong."""
    found = []
    for combination in write_strengths(name):
        defence = parse_training_arm(combination, sites, {}).defence
        about = _about_secret if defence.strategies else _about_release
        for attacker, suffix, method in about(defence):
            arm = combination + suffix
            found.append(Contest(name, combination, arm, attacker, method))
    return found


def closed_forms(name: str, sites: Sites = SITES) -> list[Contest]:
    """Lists who may try a closed form on a defence, at its middle strength.

    A closed form reads what is sent, and simulates nothing: who is unaware of a release
    tries the same as who knows it, and is there alone where nobody else searches.
    """
    (combination,) = at_strengths(name, middle=True)
    middle = [c for c in contests(name, sites) if c.combination == combination]
    searching = [c for c in middle if c.method == "search"]
    aware = [c for c in searching if c.attacker != "unaware"]
    return [contest._replace(method="closed") for contest in aware or searching]


def learned_inverters(name: str, sites: Sites = SITES) -> list[Contest]:
    """Lists who may learn to invert a defence, at its middle strength.

    Whoever learns simulates a client, whatever the defence; nobody who does is unaware.
    Of what is hidden it draws its own, and no strategy takes part: the one that says
    least stands for it. Where something else than the inputs is trained on, nothing is
    learned that leads to them.
    """
    (combination,) = at_strengths(name, middle=True)
    defence = parse_training_arm(combination, sites, {}).defence
    if defence.inputs is not as_given:
        return []
    plain = [
        f"/{strategy.name}"
        for strategy in defence.strategies
        if SECRETS.get(strategy.name) is unit and strategy.omits is None
    ]
    (first, *_) = contests(name, sites)
    attacker = "only" if first.attacker == "only" else "adaptive"
    return [
        Contest(name, combination, combination + suffix, attacker, "learned")
        for suffix in plain or [""]
    ]


def all_contests(*, middle: bool = False) -> list[Contest]:
    """Lists who attacks which defence how, of all in the catalogue.

    Args:
      middle: at the middle strength of each alone.
    """
    return [
        contest
        for make in (contests, closed_forms, learned_inverters)
        for name in KINDS
        for contest in make(name)
        if contest.combination in at_strengths(name, middle=middle)
    ]


def _about_secret(defence: Defence) -> Attackers:
    """Lists attackers by what they do about what a defence hides."""
    for strategy in defence.strategies:
        hidden = any(field in HIDDEN for field in strategy.needs)
        method = "inputs" if strategy.replays_inputs else "search"
        if not hidden:
            plain = SECRETS.get(strategy.name) is unit and strategy.omits is None
            yield "unaware" if plain else "adaptive", f"/{strategy.name}", method
        # Those who are given a part of the secret are in the study of the lock.
        elif strategy.name == "known":
            yield "informed", f"/{strategy.name}", method


def _about_release(defence: Defence) -> Attackers:
    """Lists attackers by what they do about what is sent, and trained on."""
    if defence.inputs is not as_given:
        yield "unaware", "", "search"
        if defence.simulate_inputs is not None:
            yield "adaptive", "/simulate", "inputs"
        return
    transform, hides = last_transform(defence), defence.visible is not everything
    by_example = defence.per_example is not None
    if defence == without_release(defence) and not (hides or by_example):
        yield "only", "", "search"
        return
    # Where nothing is simulated, all take what is sent for the gradient.
    known = transform.simulate is not as_sent or hides
    known |= defence.simulate_example is not None
    yield "unaware", "/unaware" if known else "", "search"
    if known:
        yield "adaptive", "", "search"
    if transform.log_prob is not None:
        yield "adaptive", "", "density"
    if transform.undo is not None:
        yield "adaptive", "/undo", "search"
