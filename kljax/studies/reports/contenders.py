"""Contenders: pools that may be ranked, and what is known of each of their victims."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kljax import metrics
from kljax.attacks.presets import PRESETS, of_user
from kljax.studies.builder.from_run import trained_name
from kljax.studies.builder.threat_model import declare_threat
from kljax.studies.config import LeakConfig
from kljax.studies.reports.attackers import Attacker, attacker_of
from kljax.studies.reports.axes import Axis, arm_axis
from kljax.studies.reports.estimates import UNKNOWN
from kljax.studies.reports.pools import Pool
from kljax.studies.reports.tables import at_words
from kljax.studies.reports.threats import read_arm
from kljax.studies.reports.tradeoffs import Tradeoff

# Facts that rankings are made apart by; what is known of a secret makes the attacker.
KNOWN = ("labels", "stats", "server", "upload", "victim_norm", "visible")
LEAKED = ("recovered", "recovered_affine")
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


def find_accuracies(
    tradeoffs: Sequence[Tradeoff], axes: dict[str, Axis]
) -> dict[tuple[str, tuple], float]:
    """Lists accuracies as rankings look them up; several trainings are averaged."""
    gathered: dict[tuple[str, tuple], list[float]] = {}
    for tradeoff in tradeoffs:
        point = group_point({arm_axis(axes).name: "", **tradeoff.point}, axes)
        gathered.setdefault((tradeoff.defence, point), []).append(tradeoff.accuracy)
    return {name: float(np.mean(found)) for name, found in gathered.items()}


def group_point(
    point: Mapping[str, str], axes: dict[str, Axis]
) -> tuple[tuple[str, str], ...]:
    """Gives the part of a point that is on neither the axis of arms nor of attacks."""
    return tuple(
        (axis, label)
        for axis, label in point.items()
        if axis not in axes or not {"arm", "attack"} & axes[axis].fields
    )


def read_contender(pool: Pool, axes: dict[str, Axis]) -> tuple[Group, Contender]:
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
    if config.denoise is not None:
        facts.append(f"denoiser={config.denoise.partition('=')[0]}")
    if preset.learn is not None:
        facts.append(f"learns from {config.public_data or config.data}")
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


def shared_images(members: Iterable[Contender]) -> list[Image]:
    """Lists the images that all have attacked."""
    sets = [set(member.leaked) for member in members]
    return sorted(set.intersection(*sets), key=repr) if sets else []


def groups_of(member: Contender, images: list[Image]) -> np.ndarray:
    return np.array([member.groups[image] for image in images])


def leaked_rate(member: Contender, images: list[Image]) -> metrics.Interval:
    if not images:
        return UNKNOWN
    leaked = [float(member.leaked[image]) for image in images]
    return metrics.interval(leaked, groups_of(member, images), rate=True)


def evaluations_text(members: list[Contender]) -> str:
    """Writes how many evaluations were made of a victim; a closed form makes none."""
    made = [
        member.pool.rows["evaluations"].to_numpy(float, na_value=np.nan)
        for member in members
    ]
    made = np.concatenate(made)
    made = made[np.isfinite(made)]
    return f"{made.mean():,.0f}" if len(made) else "0"
