"""The verdict of a network's audit: what the panel's numbers allow to be said.

| verdict                            | when                                           |
|------------------------------------|------------------------------------------------|
| recovered                          | an honest server recovers an input             |
| recovered by a malicious server    | a malicious one does, and no honest one        |
| not recovered by what was tried    | nobody of the panel does                       |
| nothing could be tried             | no attacker on inputs works on the network     |

What a panel recovers is a lower bound, and no verdict says that nothing leaks.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kljax.studies.audit.panel import (
    LABEL_RULES,
    MALICIOUS_SERVER,
    SEARCH,
    Panel,
)

if TYPE_CHECKING:
    from kljax.studies.audit.network import NetworkAuditConfig, Tried

RECOVERED = "recovered"
MALICIOUS = "recovered by a malicious server"
NOT_RECOVERED = "not recovered by what was tried"
NOTHING = "nothing could be tried"
FEW = 10  # groups below which a bootstrap's interval is known to be too narrow


def best_of(tried: "Sequence[Tried]", *, malicious: bool) -> "Tried | None":
    """Finds the attacker of one kind of server that recovers most; None for none."""
    ran = [
        one
        for one in tried
        if one.outcomes and (one.member.kind == MALICIOUS_SERVER) == malicious
    ]
    return max(ran, key=lambda one: (one.recovered, one.score or 0.0), default=None)


def judge_network(
    config: "NetworkAuditConfig",
    tried: "Sequence[Tried]",
    count: int,
    noun: str,
    label_floor: float | None,
) -> tuple[str, str]:
    """Judges what a panel recovered.

    Args:
      config: of the audit.
      tried: the panel.
      count: inputs that were attacked.
      noun: what one is called.
      label_floor: see `NetworkAudit`.

    Returns:
      The verdict and its sentences.
    """
    honest = best_of(tried, malicious=False)
    bad = best_of(tried, malicious=True)
    name = NOTHING if honest is None and bad is None else NOT_RECOVERED
    if bad is not None and bad.recovered:
        name = MALICIOUS
    if honest is not None and honest.recovered:
        name = RECOVERED
    nobody = "no attack of its kind works here"
    lacking = f"kljax has no attack of its kind on {noun}s"
    of_bad = any(one.member.kind == MALICIOUS_SERVER for one in tried)
    changing = "A malicious server, which changes the network,"
    words = [
        _of_server("An honest server", honest, count, noun, nobody),
        _of_server(changing, bad, count, noun, nobody if of_bad else lacking),
    ]
    rules = [one for one in tried if one.member.kind == LABEL_RULES and one.labels]
    if rules:
        found = rules[0].labels
        rule = max(found, key=lambda name: found[name])
        words.append(
            f"Of the labels the rule {rule!r} reads {found[rule]:.0%} right, the best "
            f"of {len(found)} by the truth, and a guess without any upload "
            f"{label_floor:.0%}."
        )
    if name in (NOT_RECOVERED, NOTHING):
        words.append(
            "That is no evidence about attackers that were not tried, or that had more "
            "evaluations."
        )
    else:
        words.append("That is a lower bound: others may recover more.")
    return name, " ".join(words)


def _of_server(
    who: str, best: "Tried | None", count: int, noun: str, nobody: str
) -> str:
    if best is None:
        return f"{who} was not tried: {nobody}."
    batch = f"{best.recovered} of {count} {noun}s"
    if not best.recovered:
        return (
            f"{who} recovered none of {count} {noun}s by what was tried{_bound(best)}."
        )
    whole = "" if best.whole is None else f", {best.whole} of them in whole"
    return (
        f"{who} recovered at least {batch}{whole}, by {best.member.name!r}"
        f"{_bound(best)}."
    )


def _bound(best: "Tried") -> str:
    """Writes the interval of the best attacker, corrected for being the best."""
    share = best.corrected
    if share is None or not share.low == share.low:
        return " (no interval: there is one upload, or all have the same share)"
    few = share.method == "cluster_bootstrap" and share.groups < FEW
    return (
        f" (in other uploads like these {share.low:.0%} to {share.high:.0%}, "
        f"{share.method}, {share.groups} independent"
        f"{', too few: it is wider than that' if few else ''})"
    )


def list_open(
    config: "NetworkAuditConfig", tried: "Sequence[Tried]", panel: Panel, noun: str
) -> list[str]:
    """Lists what an audit does not exclude, a sentence each.

    Args:
      config: of the audit.
      tried: its attackers.
      panel: of the kind of input.
      noun: what one input is called.
    """
    refused = [one for one in tried if one.refused]
    told = [
        f"`{one.member.name}` ({one.member.kind}) was not tried: {one.refused}."
        for one in refused
    ]
    failed = [one for one in tried if one.outcomes.get("unsolved")]
    searched = [one for one in failed if one.member.kind == SEARCH]
    if searched:
        names = ", ".join(f"`{one.member.name}`" for one in searched)
        told.append(
            f"{names} left some uploads unmatched: these searches failed, which says "
            f"nothing. They had {_starts(config, searched)} of {config.steps} "
            "evaluations."
        )
    weights = "as the network gives them" if config.init == 0 else "drawn for the audit"
    return [
        *told,
        f"Smaller batches than {config.batch}: the last of an epoch, or a client with "
        "few examples.",
        f"Weights other than those of this audit, which are {weights}: an untrained "
        "network and a trained one leak differently.",
        "Updates of several steps, averages over clients, and several uploads of the "
        f"same {noun}s.",
        f"Attackers with a model of such {noun}s: a trained generator, or public data "
        "of the same people.",
        *panel.open,
        f"Whether a given {noun} was there (membership), or what {noun}s have in "
        "common (properties): nothing of that kind was tried.",
    ]


def _starts(config: "NetworkAuditConfig", searched: "Sequence[Tried]") -> str:
    """Writes from how many starts the searches went."""
    counts = sorted({max(config.starts, one.member.starts) for one in searched})
    return f"{' or '.join(map(str, counts))} start{'' if counts == [1] else 's'}"
