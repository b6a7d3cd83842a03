"""The recovery consistency index: are the same victims recovered at every state?

FEDLAD (Baglin, Zhu and Hadfield, arXiv 2411.03019) names an index of this kind; its
formula is not published in a form we could read, and this one is our own: Fleiss'
kappa of *recovered* or *not*, with the states of a training in the place of raters and
victims in that of subjects (Fleiss, Psychological Bulletin 1971). Letters: N victims, S
states.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kljax.metrics import Interval
from kljax.studies.reports.axes import WHO, Axis
from kljax.studies.reports.pools import Pool
from kljax.studies.reports.tables import Entry, Table, at_words
from kljax.studies.reports.values import known

# Fields whose values are states at which a client is observed.
STATES = frozenset({"round", "observations", "pooling"})
LEAKED = ("recovered", "recovered_affine")
NUMBERS = ("index", "index_low", "index_high", "agreement", "victims", "states")
NOTHING = float("nan")


class Consistency(NamedTuple):
    """How far states agree in which victims are recovered.

    Attributes:
      index: the agreement above chance over the most that there could be, with the 95 %
        interval of a bootstrap over groups. 1: each victim is recovered at all states
        or at none. 0: as often as chance would have it that draws every state of every
        victim by the overall rate. Least: -1/(S - 1), where the rate is the same for
        every victim, such as that one state recovers all and another none. NaN where
        everything or nothing is recovered: there is nothing to agree in.
      agreement: share of the pairs of states that agree, over victims.
      rates: [S] recovered at each state.
      victims: N.
    """

    index: Interval
    agreement: float
    rates: np.ndarray
    victims: int


def recovery_consistency(
    recovered: np.ndarray, groups: np.ndarray, *, resamples: int = 2000, seed: int = 0
) -> Consistency:
    """Computes the index of the same victims at several states.

    Args:
      recovered: [N, S] booleans; a search that is unsolved has recovered nothing.
      groups: [N] of the victims; they are drawn whole.
      resamples, seed: of the bootstrap. Resamples in which everything or nothing is
        recovered are left out.

    Raises:
      ValueError: for fewer than two states, no victims, or groups of others.
    """
    recovered, groups = np.asarray(recovered, float), np.asarray(groups)
    if recovered.ndim != 2 or recovered.shape[1] < 2 or not len(recovered):
        raise ValueError(
            f"recovered has shape {recovered.shape}; it must be [N, S] with N >= 1 "
            "victims and S >= 2 states"
        )
    if groups.shape != recovered.shape[:1]:
        raise ValueError(
            f"groups have shape {groups.shape}; {len(recovered)} victims need "
            f"({len(recovered)},)"
        )
    names, members = np.unique(groups, return_inverse=True)
    drawn = np.random.default_rng(seed).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=resamples
    )
    found = kappa(recovered, drawn[:, members])
    found = found[np.isfinite(found)]
    index = float(kappa(recovered, np.ones((1, len(recovered))))[0])
    low, high, method = NOTHING, NOTHING, "none"
    if len(found) and np.ptp(found) > 0 and np.isfinite(index):
        low, high = np.quantile(found, (0.025, 0.975))
        method = "cluster_bootstrap"
    return Consistency(
        Interval(index, float(low), float(high), method, len(names)),
        float(np.mean(_agreement(recovered))),
        recovered.mean(axis=0),
        len(recovered),
    )


def kappa(recovered: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Computes Fleiss' kappa [R] of victims [N, S] that are weighted [R, N]."""
    total = weights.sum(axis=1)
    rate = weights @ recovered.mean(axis=1) / total
    seen = weights @ _agreement(recovered) / total
    expected = rate**2 + (1 - rate) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(
            np.isclose(expected, 1), NOTHING, (seen - expected) / (1 - expected)
        )


def _agreement(recovered: np.ndarray) -> np.ndarray:
    """Computes [N] which share of its pairs of states agrees, for each victim."""
    states = recovered.shape[1]
    hits = recovered.sum(axis=1)
    misses = states - hits
    return (hits * (hits - 1) + misses * (misses - 1)) / (states * (states - 1))


def consistency_table(pools: Sequence[Pool], axes: dict[str, Axis]) -> Table | None:
    """Tables the index of each arm and attack over the states of a study.

    States are the points of the axes that set the round, or how often a client is
    observed, and do not say who the victims are. Those that are not finished are left
    out, and named.

    Returns:
      None where there is no such axis of two points or more.
    """
    states = [
        axis.name
        for axis in axes.values()
        if axis.fields & STATES and not axis.fields & WHO and len(axis.labels) > 1
    ]
    if not states:
        return None
    together: dict[tuple[tuple[str, str], ...], list[Pool]] = {}
    for pool in pools:
        others = tuple((a, at) for a, at in pool.point.items() if a not in states)
        together.setdefault(others, []).append(pool)
    lines, records = [], []
    for point, members in together.items():
        if len(members) > 1:
            line, record = _line(dict(point), members, states)
            lines.append(tuple(map(Entry, line)))
            records.append(dict(point) | record)
    if not lines:
        return None
    header = (
        *(name for name, _ in next(iter(together))),
        "recovery consistency index [95 %]",
        "pairs of states that agree",
        "victims",
        "recovered, by state",
        "unsolved, by state",
    )
    title = f"Are the same victims recovered at every state ({', '.join(states)})?"
    return Table("consistency", title, header, lines, records)


def _line(
    point: dict[str, str], members: list[Pool], states: list[str]
) -> tuple[list[str], dict]:
    names = [
        at_words({state: pool.point[state] for state in states}) for pool in members
    ]
    nothing = dict.fromkeys(NUMBERS)
    pairs = list(zip(names, members, strict=True))
    waiting = [f"{name}: {p.state}" for name, p in pairs if p.state != "finished"]
    pairs = [(name, pool) for name, pool in pairs if pool.state == "finished"]
    if len(pairs) < 2:
        return [*point.values(), "not run", "-", "-", "\n".join(waiting), "-"], nothing
    names, members = [name for name, _ in pairs], [pool for _, pool in pairs]
    found = [_leaked(pool) for pool in members]
    shared = sorted(set.intersection(*map(set, found)), key=repr)
    if not shared:
        return [*point.values(), "-", "-", "0", "states of other victims", "-"], nothing
    leaked = np.array([[of[image][0] for of in found] for image in shared])
    groups = np.array([found[0][image][1] for image in shared])
    result = recovery_consistency(leaked, groups)
    shares = [
        f"{name}: {rate:.0%}" for name, rate in zip(names, result.rates, strict=True)
    ]
    rates = "\n".join(shares + waiting)
    unsolved = "\n".join(
        f"{name}: {int(pool.rows['outcome'].isin(('unsolved', 'diverged')).sum())}"
        for name, pool in zip(names, members, strict=True)
    )
    index = result.index
    text = "not defined: all or none"
    if np.isfinite(index.estimate):
        bounds = "?" if np.isnan(index.low) else f"{index.low:.2f}, {index.high:.2f}"
        text = f"{index.estimate:.2f} [{bounds}]"
    agreement = f"{result.agreement:.0%}"
    line = [*point.values(), text, agreement, str(result.victims), rates, unsolved]
    numbers = (
        *map(known, (index.estimate, index.low, index.high)),
        result.agreement,
        result.victims,
        len(members),
    )
    return line, dict(zip(NUMBERS, numbers, strict=True))


def _leaked(pool: Pool) -> dict[tuple, tuple[bool, int]]:
    """Reads whether each image is recovered, and its group, by seed, run and image."""
    repetition = {
        cell["id"]: (cell["config"].get("seed"), cell["config"].get("from_run"))
        for cell in pool.cells
    }
    columns = ("cell", "victim", "outcome", "group")
    values = zip(*(pool.rows[name] for name in columns), strict=True)
    return {
        (*repetition[cell], victim): (str(outcome) in LEAKED, group)
        for cell, victim, outcome, group in values
    }
