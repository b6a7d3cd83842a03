"""Rankings: defences by what leaks of them, attacks by what they find.

Only what is comparable is ranked together: the same victims, the same point of all axes
but arm and attack, the same knowledge of the protocol, the same number of evaluations
offered. Who knows the defence and who does not stand in rankings of their own.

An attack that failed to optimise is no protection. What is known of a defence is
therefore two numbers: what leaked at least, and what may leak at most if all victims
whose gradient no attacker of the ranking has matched would leak as well. A victim that
was matched but is wrong counts for a defence only if the same attack recovers it
undefended. A defence on which an attack was not run, and on others was, may leak all.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from kljax import metrics
from kljax.metrics import COLUMNS
from kljax.studies.reports.attackers import ATTACKERS, Attacker
from kljax.studies.reports.axes import WHO, Axis, arm_axis
from kljax.studies.reports.contenders import (
    Contender,
    Group,
    Image,
    evaluations_text,
    groups_of,
    leaked_rate,
    read_contender,
    shared_images,
)
from kljax.studies.reports.estimates import estimate, with_interval
from kljax.studies.reports.pools import Pool
from kljax.studies.reports.ranks import Ranks, rank
from kljax.studies.reports.relative import (
    HEADING,
    PRIOR,
    relative_leakage,
    relative_words,
)
from kljax.studies.reports.tables import Entry, Table
from kljax.studies.reports.undefended import is_undefended

SUCCESS = COLUMNS["success"]


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
            group, contender = read_contender(pool, axes)
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
    images = shared_images(m for some in finished.values() for m in some)
    lines, records = [], []
    of_images = any(PRIOR in m.pool.floors for m in of_kind)
    if images:
        bare = {m.attack: m for m in members if m.finished and is_undefended(m.pool)}
        bounds = {n: _bounds(some, bare, images) for n, some in finished.items()}
        run = {m.attack for some in finished.values() for m in some}
        for name, (least, most) in bounds.items():
            if any(not m.finished and m.attack in run for m in defences[name]):
                bounds[name] = least, np.ones_like(most)
        ranks = rank(
            [least for least, _ in bounds.values()],
            [most for _, most in bounds.values()],
            groups_of(next(iter(finished.values()))[0], images),
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
    leaked = leaked_rate(strongest, images)
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
        "evaluations": evaluations_text([strongest]),
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
    images = shared_images(m for some in of_shared.values() for m in some)
    lines, records = [], []
    if images:
        found = {
            name: np.array([[m.leaked[i] for i in images] for m in some], float)
            for name, some in of_shared.items()
        }
        values = [-leaks.mean(axis=0, keepdims=True) for leaks in found.values()]
        first = next(iter(of_shared.values()))[0]
        ranks = rank(values, values, groups_of(first, images))
        for item in np.argsort(ranks.mean_low, kind="stable"):
            name = list(found)[item]
            some = of_shared[name]
            leaked = metrics.interval(
                -values[item][0], groups_of(first, images), rate=len(shared) == 1
            )
            unsolved = sum(
                int(m.pool.rows["outcome"].isin(("unsolved", "diverged")).sum())
                for m in some
            )
            scores = [estimate(m.pool, m.pool.primary) for m in some]
            score = float(np.mean([one.mean for one in scores]))
            column = scores[0].value
            lines.append(
                tuple(
                    map(
                        Entry,
                        (
                            ranks.text(item),
                            name,
                            with_interval(SUCCESS, leaked),
                            f"{unsolved} of {sum(len(m.pool.rows) for m in some)}",
                            f"{column.heading} {column.written(score)}",
                            # Of the same victims, whatever the arm.
                            scores[0].floor_text(),
                            evaluations_text(some),
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
        "floor",
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
