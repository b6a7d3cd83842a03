"""The audit of a network without an upload: what a panel of attackers recovers of data.

"Is my network safe at this batch?" has no yes. A panel attacks uploads of one's own
data, and what it recovers is a lower bound on what an upload gives away. What is not
recovered was not recovered by what was tried.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.errors import JaxRuntimeError

from kljax import metrics
from kljax.core.checks import check_number, check_whole
from kljax.data import Dataset
from kljax.metrics import Interval
from kljax.metrics.image import SSIM_WINDOW
from kljax.metrics.kinds import find_kind, kind_named
from kljax.studies.audit.named_objects import named_object
from kljax.studies.audit.network_verdict import judge_network, list_open
from kljax.studies.audit.panel import (
    LABEL_RULES,
    LABELS_ALONE,
    MALICIOUS_SERVER,
    Member,
    find_panel,
    panel_of,
)
from kljax.studies.builder.study import build_study, victim_data_of
from kljax.studies.builder.victims import choose_victims
from kljax.studies.config import LeakConfig
from kljax.studies.leakage import LeakResult, leak
from kljax.studies.scoring import Row, score_rows

CONFIDENCE = 0.95
RIGHT = ("recovered", "recovered_affine")
# Fields that are not those of a study of the same name.
OF_PANEL = ("batch", "uploads", "attacks", "starts", "steps")
GUESSES = 200  # draws of the floor of labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkAuditConfig:
    """A network, data like those of its clients, and what is spent on attacking it.

    Attributes:
      model: network: a name of the catalogue, or ``package.module:function``.
      data: a dataset by name or path, or ``package.module:function``.
      batch: examples in one upload, the mean gradient of one step.
      uploads: that are attacked, of different examples.
      attacks: that search; None for those of the kind of input
        (`kljax.studies.audit.panel.PANELS`). Closed forms and malicious servers are
        tried whatever is said.
      starts, steps: of each search; more starts where an answer is made of many.
      init: weights from U(-init, init); 0 for the network's own, trained ones included.
      classifier, loss, image_size, image_width, channels, tokens, split, data_dir,
        seed: see `kljax.LeakConfig`.

    Raises:
      ValueError: for numbers out of range.
    """

    model: str
    data: str
    batch: int
    uploads: int = 4
    attacks: tuple[str, ...] | None = None
    starts: int = 1
    steps: int = 1000
    init: float = 0.0
    classifier: str | None = None
    loss: str = "cross_entropy"
    image_size: int = 32
    image_width: int | None = None
    channels: int = 3
    tokens: int = 8
    split: str | None = None
    data_dir: str | None = None
    seed: int = 0

    def __post_init__(self):
        least = dict.fromkeys(("batch", "uploads", "starts", "steps"), 1)
        check_whole(self, least | {"image_size": SSIM_WINDOW, "seed": 0})
        check_number(self, "init")

    def study(self, member: Member) -> LeakConfig:
        """Makes the study of one attacker."""
        fields = (field.name for field in dataclasses.fields(self))
        same = {name: getattr(self, name) for name in fields if name not in OF_PANEL}
        return LeakConfig(
            arms=("none",),
            attack=member.attack,
            labels=member.labels,
            victims=self.uploads,
            examples=self.batch,
            restarts=max(self.starts, member.starts),
            steps=1 if member.attack == LABELS_ALONE else self.steps,
            **same,
        )


class Tried(NamedTuple):
    """What one attacker of the panel came to.

    Attributes:
      member: the attacker.
      refused: why it cannot work here; empty where it ran.
      outcomes: inputs by outcome, see `kljax.metrics.outcomes`.
      share: of the inputs that are recovered, up to contrast or not, at `CONFIDENCE`.
      corrected: the same at a confidence that holds for all attackers of the same
        server at once, of whom the best is told.
      whole: recovered inputs of which all is right, tokens or cells; None of images,
        and where labels alone are looked for.
      score, floor: mean primary score of the kind of input, and that of the best floor;
        None where labels alone are looked for.
      labels: share of labels that are right in whatever order, by rule.
      evaluations: of one upload; None for a closed form.
      seconds: that it ran.
    """

    member: Member
    refused: str = ""
    outcomes: dict[str, int] = {}
    share: Interval | None = None
    corrected: Interval | None = None
    whole: int | None = None
    score: float | None = None
    floor: float | None = None
    labels: dict[str, float] = {}
    evaluations: int | None = None
    seconds: float = 0.0

    @property
    def recovered(self) -> int:
        """Counts recovered inputs, up to brightness and contrast or not."""
        return sum(self.outcomes.get(name, 0) for name in RIGHT)


class NetworkAudit(NamedTuple):
    """What came of the audit of a network.

    Attributes:
      config: what was asked.
      tried: the panel, in the order in which it was run.
      label_floor: share of labels that a guess of equally many per class gets right;
        None for targets that are no classes.
      inputs: how many were attacked.
      kind: of input, by its name in `kljax.metrics.kinds`.
      verdict, words: see `kljax.studies.audit.network_verdict`.
      open: what is not excluded, a sentence each.
      best: study and rows of the attacker that recovered most, for a picture.
    """

    config: NetworkAuditConfig
    tried: list[Tried]
    label_floor: float | None
    inputs: int
    kind: str
    verdict: str
    words: str
    open: list[str]
    best: tuple[LeakResult, list[Row]] | None

    @property
    def noun(self) -> str:
        """Names one input."""
        return kind_named(self.kind).noun

    def page(self) -> str:
        """Writes the page, in Markdown."""
        from kljax.studies.audit.network_page import page_of

        return page_of(self)

    def write(self, folder: str | Path) -> Path:
        """Writes ``audit.md``, ``audit.json`` and ``audit.png``; gives the folder.

        Raises:
          OSError: where nothing can be written.
        """
        from kljax.core import folders
        from kljax.studies.audit.network_page import write_network_audit

        with folders.claim(Path(folder)) as claimed:
            write_network_audit(claimed, self)
        return claimed.folder


def audit(
    *,
    model: Any,
    data: Any,
    batch: int,
    say: Callable[[str], Any] = lambda line: None,
    **options: Any,
) -> NetworkAudit:
    """Says what a panel of attackers recovers of uploads of a network, without any.

    >>> import kljax
    >>> kljax.audit(model="lenet", data="digits", batch=32).verdict  # doctest: +SKIP
    'not recovered by what was tried'

    Args:
      model: a network by its name, an `nnx.Module` with the weights that it has, a
        Linen module, a `kljax.Model`, or a factory (`kljax.LeakConfig`).
      data: a dataset by name or path, a `kljax.data.Dataset`, or (images [N, H, W, C],
        labels [N]) as a user's loader gives them.
      batch: examples in one upload.
      say: is told what is begun.
      options: other fields of `NetworkAuditConfig`.

    Returns:
      The audit; ``print(found.page())`` writes it, ``found.write(folder)`` keeps it.

    Raises:
      ValueError: for parts that do not exist or do not fit each other.
    """
    loader = data
    if not isinstance(data, str) and not callable(data):
        loader = functools.partial(_given, data)
    with named_object(model) as model_name, named_object(loader) as data_name:
        config = NetworkAuditConfig(
            model=model_name, data=data_name, batch=batch, **options
        )
        return audit_network(config, say)


def _given(data: Any, shape: tuple[int, int, int]) -> Any:
    del shape  # of data that are there already nothing is resized
    return data


def audit_network(
    config: NetworkAuditConfig, say: Callable[[str], Any] = lambda line: None
) -> NetworkAudit:
    """Runs the panel of an audit; see `audit`.

    Raises:
      ValueError: for parts that do not exist or do not fit each other.
    """
    first = config.study(Member("labels", LABELS_ALONE, LABEL_RULES))
    load = victim_data_of(first)
    dataset = load()
    spec = dataset.input_spec.primary_spec
    members = panel_of(spec, config.attacks)
    # What no attacker could help is told before any is run.
    build_study(dataclasses.replace(first, attack="dlg", labels="given"), load=load)
    ran = []
    for member in members:
        say(f"{member.kind}: {member.name}")
        ran.append(_run(config, member, load))
    tried = _corrected(ran)
    best = max(
        (pair for pair in ran if pair[1] is not None and pair[0].outcomes),
        key=lambda pair: (pair[0].recovered, pair[0].score or 0.0),
        default=(None, None),
    )[1]
    noun = find_kind(spec).noun
    floor = _label_floor(config, dataset, load)
    count = config.uploads * config.batch
    verdict, words = judge_network(config, tried, count, noun, floor)
    return NetworkAudit(
        config,
        tried,
        floor,
        count,
        spec.kind,
        verdict,
        words,
        list_open(config, tried, find_panel(spec), noun),
        best,
    )


def _run(
    config: NetworkAuditConfig, member: Member, load: Callable[[], Dataset]
) -> tuple[Tried, tuple[LeakResult, list[Row]] | None]:
    began = time.monotonic()
    try:
        result = leak(config.study(member), load=load)
    # One attacker that does not fit the memory ends no audit of hours.
    except (ValueError, NotImplementedError, MemoryError, JaxRuntimeError) as error:
        return Tried(member, refused=" ".join(str(error).split())), None
    inputs = result.dataset.input_spec
    primary, column = inputs.primary, find_kind(inputs.primary_spec).primary
    rows = [row for row in score_rows(result) if row["input"] == primary]
    seconds = time.monotonic() - began
    if member.attack == LABELS_ALONE:
        return Tried(member, labels=_labels(result), seconds=seconds), None
    attacked = [row for row in rows if row["attack"] is not None]
    outcomes = [row["outcome"] for row in attacked]
    floors: dict[str, list[float]] = {}
    for row in rows:
        if row["attack"] is None and row.get(column) is not None:
            floors.setdefault(row["arm"], []).append(float(row[column]))
    labels = [row["label_multiset_accuracy"] for row in attacked]
    right = [row for row in attacked if row["outcome"] in RIGHT]
    is_whole = attacked[0].get("exact_match") is not None
    tried = Tried(
        member,
        outcomes={name: outcomes.count(name) for name in metrics.OUTCOMES},
        whole=sum(bool(row["exact_match"]) for row in right) if is_whole else None,
        score=_mean([row.get(column) for row in attacked]),
        floor=max(map(_mean, floors.values()), default=None),
        labels={} if labels[0] is None else {"": _mean(labels)},
        evaluations=attacked[0]["evaluations"],
        seconds=seconds,
    )
    return tried, (result, rows)


def _mean(values: list) -> float:
    finite = np.asarray([value for value in values if value is not None], float)
    finite = finite[np.isfinite(finite)]
    return float(finite.mean()) if len(finite) else float("nan")


def _corrected(
    ran: list[tuple[Tried, tuple[LeakResult, list[Row]] | None]],
) -> list[Tried]:
    """Gives every attacker its intervals; see `Tried.corrected`."""
    done = []
    for one, kept in ran:
        if kept is None:
            done.append(one)
            continue
        rivals = [
            other
            for other, _ in ran
            if other.outcomes
            and (other.member.kind == MALICIOUS_SERVER)
            == (one.member.kind == MALICIOUS_SERVER)
        ]
        rows = [row for row in kept[1] if row["attack"] is not None]
        right = [row["outcome"] in RIGHT for row in rows]
        groups = [row["group"] for row in rows]
        level = 1 - (1 - CONFIDENCE) / len(rivals)
        share, corrected = (
            metrics.interval(right, groups, rate=True, confidence=confidence)
            for confidence in (CONFIDENCE, level)
        )
        done.append(one._replace(share=share, corrected=corrected))
    return done


def _labels(result: LeakResult) -> dict[str, float]:
    """Scores labels by rule, the mean over uploads."""
    info = result.arms[0].attacked.reconstruction.info
    spec, truths = result.dataset.target_spec, result.victims.labels
    if spec.kind != "classes":
        return {}
    return {
        rule: _mean(
            [
                metrics.multiset_accuracy(guess, truth)
                for guess, truth in zip(np.asarray(labels), truths, strict=True)
            ]
        )
        for rule, labels in info.items()
    }


def _label_floor(
    config: NetworkAuditConfig, dataset: Dataset, load: Callable[[], Dataset]
) -> float | None:
    """Averages what a guess of as many per class gets right of the same uploads."""
    if dataset.target_spec.kind != "classes":
        return None
    study = config.study(Member("labels", LABELS_ALONE, LABEL_RULES))
    truths = choose_victims(study, load())[0].labels
    generator = np.random.default_rng(0)
    classes = dataset.target_spec.require_classes("a floor of labels")
    places = np.arange(config.batch) % classes
    return float(
        np.mean(
            [
                metrics.multiset_accuracy(generator.permutation(classes)[places], truth)
                for truth in truths
                for _ in range(GUESSES)
            ]
        )
    )
