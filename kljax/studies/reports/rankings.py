"""Rankings: defences by what leaks of them, attacks by what they find.

Only what is comparable is ranked together: the same victims, the same point of all axes
but arm and attack, the same knowledge of the protocol, the same number of evaluations
offered. Who knows the defence and who does not stand in rankings of their own.

An attack that failed to optimise is no protection. What is known of a defence is
therefore two numbers: what leaked at least, and what may leak at most if all victims
whose gradient no attacker of the ranking has matched would leak as well. A victim that
was matched but is wrong counts for a defence only if the same attack recovers it
undefended.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kljax import metrics
from kljax.attacks.presets import PRESETS, of_user
from kljax.metrics import COLUMNS
from kljax.studies.builder.from_run import trained_name
from kljax.studies.builder.threat_model import declare_threat
from kljax.studies.config import LeakConfig
from kljax.studies.reports.attackers import ATTACKERS, Attacker, attacker_of
from kljax.studies.reports.axes import WHO, Axis, arm_axis
from kljax.studies.reports.estimates import UNKNOWN, estimate, with_interval
from kljax.studies.reports.pools import Pool
from kljax.studies.reports.ranks import Ranks, rank
from kljax.studies.reports.relative import (
    HEADING,
    PRIOR,
    relative_leakage,
    relative_words,
)
from kljax.studies.reports.tables import Entry, Table, at_words
from kljax.studies.reports.threats import read_arm
from kljax.studies.reports.undefended import is_undefended

# Facts that rankings are made apart by; what is known of a secret makes the attacker.
KNOWN = ("labels", "stats", "server", "upload", "victim_norm", "visible")
LEAKED = ("recovered", "recovered_affine")
SUCCESS = COLUMNS["success"]
Image = tuple  # what a row is of, whatever the arm and the attack


class Group(NamedTuple):
    """What may be ranked together.

    Attributes:
      point: where it stands on all axes but those of arm and attack.
      facts: of the protocol that every attacker of it knows, and its budget.
    """

    point: tuple[tuple[str, str], ...]
    facts: tuple[str, ...]

    def words(self) -> str:
        """Writes it for the title of a table."""
        return "; ".join(filter(None, (at_words(dict(self.point)), *self.facts)))


class Contender(NamedTuple):
    """A pool in its group, with what is known of each of its victims."""

    pool: Pool
    arm: str
    attack: str
    attacker: Attacker
    leaked: dict[Image, bool]
    wrong: dict[Image, bool]  # matched but wrong
    groups: dict[Image, int]

    @property
    def defence(self) -> str:
        """Names what is defended with, with its options."""
        return trained_name(self.arm)

    @property
    def finished(self) -> bool:
        return self.pool.state == "finished"


def make_rankings(
    pools: Sequence[Pool],
    axes: dict[str, Axis],
    accuracies: Mapping[tuple[str, tuple], float] | None = None,
) -> list[Table]:
    """Ranks the defences and the attacks of a study.

    Args:
      pools: of the study.
      axes: of the study.
      accuracies: (defence, point without arm and attack) -> of what was trained with
        it; what is missing was not trained.

    Returns:
      A table per group and kind of attacker, first of defences, then of attacks.
      Nothing where there is one of them alone, where arms have victims of their own,
      and of configurations that this kljax cannot read.
    """
    if arm_axis(axes).fields & WHO:
        return []
    tables: list[Table] = []
    together: dict[Group, list[Contender]] = {}
    for pool in pools:
        try:
            group, contender = _read(pool, axes)
        except (ValueError, TypeError, KeyError):
            continue  # of another kljax
        together.setdefault(group, []).append(contender)
    for make in (_of_defences, _of_attacks):
        for group, members in together.items():
            for attacker in ATTACKERS:
                table = make(group, members, attacker, accuracies or {})
                if table is not None:
                    number = len(tables) + 1
                    tables.append(table._replace(name=f"ranking-{number}"))
    return tables


def group_point(
    point: Mapping[str, str], axes: dict[str, Axis]
) -> tuple[tuple[str, str], ...]:
    """Gives the part of a point that is on neither the axis of arms nor of attacks."""
    return tuple(
        (axis, label)
        for axis, label in point.items()
        if axis not in axes or not {"arm", "attack"} & axes[axis].fields
    )


def _read(pool: Pool, axes: dict[str, Axis]) -> tuple[Group, Contender]:
    """Finds the group of a pool, and reads its victims.

    Raises:
      ValueError, TypeError, KeyError: for a configuration that cannot be read.
    """
    config = LeakConfig(**pool.cells[0]["config"])
    preset = PRESETS.get(config.attack, of_user(None))
    arm, _ = read_arm(config.arms[0])
    knowledge = declare_threat(config, arm, preset).knowledge
    facts = [f"{name}={getattr(knowledge, name)}" for name in KNOWN]
    if config.generator is not None:
        facts.append(f"generator={config.generator}")
    if preset.language_model:
        facts.append("a language model of its own")
    facts.append(f"{config.steps * config.restarts} evaluations offered")
    repetition = {
        cell["id"]: (cell["config"].get("seed"), cell["config"].get("from_run"))
        for cell in pool.cells
    }
    rows = pool.rows
    images = [
        (*repetition[cell], victim)
        for cell, victim in zip(rows["cell"], rows["victim"], strict=True)
    ]
    outcomes = rows["outcome"].astype(str).tolist()
    label = next((pool.point[a] for a in axes if "attack" in axes[a].fields), None)
    contender = Contender(
        pool,
        config.arms[0],
        label or config.attack,
        attacker_of(config.arms[0], config.attack),
        dict(zip(images, (name in LEAKED for name in outcomes), strict=True)),
        dict(zip(images, (name == "ambiguous" for name in outcomes), strict=True)),
        dict(zip(images, rows["group"].tolist(), strict=True)),
    )
    return Group(group_point(pool.point, axes), tuple(facts)), contender


def _of_defences(
    group: Group, members: list[Contender], attacker: Attacker, accuracies: Mapping
) -> Table | None:
    """Ranks defences against attackers of a kind; the undefended is among them."""
    if attacker == "only":
        return None
    of_kind = [m for m in members if m.attacker in (attacker, "only")]
    defences: dict[str, list[Contender]] = {}
    for member in of_kind:
        defences.setdefault(member.defence, []).append(member)
    if len(defences) < 2 or all(m.attacker == "only" for m in of_kind):
        return None
    finished = {
        name: [m for m in some if m.finished] for name, some in defences.items()
    }
    finished = {name: some for name, some in finished.items() if some}
    images = _shared(m for some in finished.values() for m in some)
    lines, records = [], []
    of_images = any(PRIOR in m.pool.floors for m in of_kind)
    if images:
        bare = {m.attack: m for m in members if m.finished and is_undefended(m.pool)}
        bounds = {n: _bounds(some, bare, images) for n, some in finished.items()}
        ranks = rank(
            [least for least, _ in bounds.values()],
            [most for _, most in bounds.values()],
            _groups(next(iter(finished.values()))[0], images),
        )
        order = np.lexsort((ranks.mean_high, ranks.mean_low))
        for item in order:
            name = list(finished)[item]
            strongest = finished[name][int(bounds[name][0].mean(axis=1).argmax())]
            accuracy = accuracies.get((name, group.point))
            line, record = _defence_line(name, item, ranks, strongest, images)
            waiting = [m for m in defences[name] if not m.finished]
            if not of_images:
                del line["relative"]
            line["attackers"] = _counted(finished[name], waiting)
            line["accuracy"] = "not run" if accuracy is None else f"{accuracy:.1%}"
            lines.append(tuple(Entry(text) for text in line.values()))
            records.append(record | {"accuracy": accuracy})
    header = (
        "rank",
        "defence",
        "strongest attacker",
        "leaks at least [95 %]",
        "at most",
        "unsolved",
        "score [95 %]",
        "floor",
        *([HEADING] if of_images else []),
        "evaluations",
        "attackers",
        "accuracy",
    )
    lines += _waiting(
        [m for name, some in defences.items() if name not in finished for m in some],
        len(header),
    )
    title = f"Defences by leakage, attacker {attacker}: {ATTACKERS[attacker]}"
    return Table("", f"{title}. {group.words()}", header, lines, records)


def _bounds(
    attackers: list[Contender], bare: Mapping[str, Contender], images: list[Image]
) -> tuple[np.ndarray, np.ndarray]:
    """Says what leaks at least, and may leak at most: [A, N] of 0 and 1 each."""
    least = np.array([[m.leaked[i] for i in images] for m in attackers], float)
    settled = least.any(axis=0)
    for member in attackers:
        reference = bare.get(member.attack)
        if reference is None:
            continue
        settled |= np.array(
            [member.wrong[i] and reference.leaked.get(i, False) for i in images]
        )
    return least, np.maximum(least, ~settled)


def _defence_line(
    name: str, item: int, ranks: Ranks, strongest: Contender, images: list[Image]
) -> tuple[dict[str, str], dict]:
    pool = strongest.pool
    leaked = _rate(strongest, images)
    score, relative = estimate(pool, pool.primary), relative_leakage(pool)
    unsolved = int((pool.rows["outcome"].isin(("unsolved", "diverged"))).sum())
    most = float(ranks.mean_high[item])
    line = {
        "rank": ranks.text(item),
        "defence": name,
        "strongest": f"{strongest.arm}, {strongest.attack}",
        "least": with_interval(SUCCESS, leaked),
        "most": SUCCESS.written(most),
        "unsolved": f"{unsolved} of {len(pool.rows)}",
        "score": f"{score.value.heading} {score.text()}",
        "floor": score.floor_text(),
        "relative": relative_words(relative),
        "evaluations": _evaluations([strongest]),
    }
    record = {
        "rank_low": int(ranks.low[item]),
        "rank_high": int(ranks.high[item]),
        "defence": name,
        "arm": strongest.arm,
        "attack": strongest.attack,
        "leaks_at_least": leaked.estimate,
        "leaks_low": leaked.low,
        "leaks_high": leaked.high,
        "leaks_at_most": most,
        "unsolved": unsolved,
        "victims": len(images),
        f"{pool.primary}_mean": score.mean,
        "rdlv": relative.estimate,
        "rdlv_low": relative.low,
        "rdlv_high": relative.high,
    }
    return line, record


def _of_attacks(
    group: Group, members: list[Contender], attacker: Attacker, accuracies: Mapping
) -> Table | None:
    """Ranks attacks of a kind by what they find, over the arms that all have run."""
    del accuracies
    attacks: dict[str, dict[str, Contender]] = {}
    for member in members:
        if member.attacker == attacker:
            attacks.setdefault(member.attack, {})[member.arm] = member
    if len(attacks) < 2:
        return None
    done = {
        name: {arm: m for arm, m in arms.items() if m.finished}
        for name, arms in attacks.items()
    }
    done = {name: arms for name, arms in done.items() if arms}
    shared = [
        arm
        for arm in next(iter(done.values()), {})
        if all(arm in arms for arms in done.values())
    ]
    of_shared = {name: [arms[a] for a in shared] for name, arms in done.items()}
    images = _shared(m for some in of_shared.values() for m in some)
    lines, records = [], []
    if images:
        found = {
            name: np.array([[m.leaked[i] for i in images] for m in some], float)
            for name, some in of_shared.items()
        }
        values = [-leaks.mean(axis=0, keepdims=True) for leaks in found.values()]
        first = next(iter(of_shared.values()))[0]
        ranks = rank(values, values, _groups(first, images))
        for item in np.argsort(ranks.mean_low, kind="stable"):
            name = list(found)[item]
            some = of_shared[name]
            leaked = metrics.cluster_bootstrap(-values[item][0], _groups(first, images))
            unsolved = sum(
                int(m.pool.rows["outcome"].isin(("unsolved", "diverged")).sum())
                for m in some
            )
            score = np.nanmean([estimate(m.pool, m.pool.primary).mean for m in some])
            column = some[0].pool.values[some[0].pool.primary]
            lines.append(
                tuple(
                    map(
                        Entry,
                        (
                            ranks.text(item),
                            name,
                            with_interval(SUCCESS, leaked),
                            f"{unsolved} of {sum(len(m.pool.rows) for m in some)}",
                            f"{column.heading} {column.written(float(score))}",
                            _evaluations(some),
                            f"{len(shared)} of {len(attacks[name])}",
                        ),
                    )
                )
            )
            records.append(
                {
                    "rank_low": int(ranks.low[item]),
                    "rank_high": int(ranks.high[item]),
                    "attack": name,
                    "finds": leaked.estimate,
                    "finds_low": leaked.low,
                    "finds_high": leaked.high,
                    "unsolved": unsolved,
                    "arms": len(shared),
                    "victims": len(images),
                }
            )
    header = (
        "rank",
        "attack",
        "finds [95 %]",
        "unsolved",
        "score",
        "evaluations",
        "arms, of its own",
    )
    missing = [
        member
        for arms in attacks.values()
        for member in arms.values()
        if not member.finished
    ]
    lines += _waiting(missing, len(header))
    title = f"Attacks by what they find, attacker {attacker}: {ATTACKERS[attacker]}"
    return Table("", f"{title}. {group.words()}", header, lines, records)


def _shared(members: Iterable[Contender]) -> list[Image]:
    """Lists the images that all have attacked."""
    sets = [set(member.leaked) for member in members]
    return sorted(set.intersection(*sets), key=repr) if sets else []


def _groups(member: Contender, images: list[Image]) -> np.ndarray:
    return np.array([member.groups[image] for image in images])


def _rate(member: Contender, images: list[Image]) -> metrics.Interval:
    if not images:
        return UNKNOWN
    leaked = [float(member.leaked[image]) for image in images]
    return metrics.interval(leaked, _groups(member, images), rate=True)


def _evaluations(members: list[Contender]) -> str:
    """Writes how many evaluations were made of a victim; a closed form makes none."""
    made = [
        member.pool.rows["evaluations"].to_numpy(float, na_value=np.nan)
        for member in members
    ]
    made = np.concatenate(made)
    made = made[np.isfinite(made)]
    return f"{made.mean():,.0f}" if len(made) else "0"


def _counted(finished: list[Contender], waiting: list[Contender]) -> str:
    """Says how many attackers of a defence were run, and which were not."""
    if not waiting:
        return str(len(finished))
    names = ", ".join(f"{m.arm} by {m.attack}: {m.pool.state}" for m in waiting)
    return f"{len(finished)} of {len(finished) + len(waiting)}\n{names}"


def _waiting(members: Iterable[Contender], width: int) -> list[tuple[Entry, ...]]:
    """Writes a line for each cell that cannot be ranked, with what became of it."""
    return [
        (
            Entry(member.pool.state),
            Entry(f"{member.arm}, {member.attack}"),
            *(Entry("-") for _ in range(width - 2)),
        )
        for member in members
    ]
