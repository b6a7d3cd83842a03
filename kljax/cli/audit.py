"""``kljax audit``."""

import dataclasses
import datetime
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from kljax.cli.printing import printed_table, say
from kljax.studies.audit.facts import AuditConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit(AuditConfig):
    """Says what an upload gives away, or what is recovered of a network's uploads.

    With an upload, from a file, it is read and searched for its private inputs. With
    ``--data`` instead of one, a panel of attackers tries the network on uploads of such
    data; of the options below ``uploads``, ``data``, ``split``, ``data-dir``,
    ``tokens`` and ``init`` are then used, and facts about an upload are not.

    Attributes:
      upload_file: ``.npz`` or ``.safetensors`` of what a client sent: the mean gradient
        of its examples, or trained minus received weights. None to audit the network on
        ``data``.
      weights: the same of the weights that it started from; an upload needs them.
      batch: examples in one upload of a network's audit; of an update, those of one
        local step.
      attacks: that search, by name; None for matching of an upload, and for those of
        the kind of data of a network's audit.
      starts: searches of each attack, from different starts; None for 3 of an upload,
        and 1 of a network's audit, but 30 of tableak at least.
      data: dataset of a network's audit, by name or path, see ``kljax leak``.
      uploads: of a network's audit, of different examples; None for 4.
      split, data_dir, tokens: of the dataset, see ``kljax leak``.
      init: weights of a network's audit from U(-init, init); None for the network's
        own.
      out: folder to write; None for runs/audit-DATE-TIME.
    """

    # Here None is what was not said; the configuration that is made of it has none.
    upload_file: Annotated[Path | None, tyro.conf.Positional] = None  # type: ignore
    weights: Path | None = None  # type: ignore[assignment]
    attacks: tuple[str, ...] | None = None  # type: ignore[assignment]
    starts: int | None = None  # type: ignore[assignment]
    data: str | None = None
    uploads: int | None = None
    split: str | None = None
    data_dir: str | None = None
    tokens: int | None = None
    init: float | None = None
    out: Path | None = None

    def __post_init__(self):
        """Leaves the checks to the configuration made of it, behind the parser."""


def run_audit(job: Audit, console: Console) -> None:
    """Audits an upload, or a network; writes its page and prints table and verdict.

    Raises:
      ValueError: for options that do not fit what is audited.
    """
    from kljax.parallel import compilation

    stamp = f"{datetime.datetime.now():%Y%m%d-%H%M%S}"
    folder = job.out or Path("runs") / f"audit-{stamp}"
    if (job.upload_file is None) == (job.data is None):
        raise ValueError(
            "give an upload's file to audit it, or --data and --batch to audit the "
            f"network: {'neither' if job.data is None else 'both'} is there"
        )
    compilation.use_cache()
    if job.data is None:
        _audit_upload(job, folder, console)
    else:
        _audit_network(job, folder, console)


def _said(job: Audit, names: Iterable[str], what: str) -> None:
    """Refuses options of the other kind of audit.

    Raises:
      ValueError: with the option, and what it would need.
    """
    plain = {field.name: field.default for field in dataclasses.fields(Audit)}
    for name in names:
        if getattr(job, name) != plain[name]:
            raise ValueError(
                f"--{name.replace('_', '-')} {getattr(job, name)} says nothing of "
                f"{what}: leave it out"
            )


OF_NETWORK = ("data", "uploads", "split", "data_dir", "tokens", "init")


def _audit_network(job: Audit, folder: Path, console: Console) -> None:
    from kljax.core import folders
    from kljax.studies.audit.network import NetworkAuditConfig, audit_network
    from kljax.studies.audit.network_page import network_table, write_network_audit

    names = {field.name for field in dataclasses.fields(NetworkAuditConfig)}
    of_upload = [f.name for f in dataclasses.fields(AuditConfig) if f.name not in names]
    _said(job, of_upload, "a network's audit, which makes its own uploads")
    if job.batch is None:
        raise ValueError("--batch is missing: examples in one upload, such as 32")
    given = {name: getattr(job, name) for name in names if hasattr(job, name)}
    config = NetworkAuditConfig(**{n: v for n, v in given.items() if v is not None})
    with folders.claim(folder) as claimed:
        done = audit_network(config, lambda line: say(console, f"{line} ..."))
        write_network_audit(claimed, done)
    console.print()
    console.print(printed_table(*network_table(done)))
    console.print()
    say(console, "Not excluded:")
    for line in done.open:
        say(console, f"- {line}", wrap=True)
    console.print()
    say(console, f"{done.verdict}: {done.words}", wrap=True)
    say(console, f"written: {claimed.folder}/ (audit.md, audit.png, audit.json)")


def _audit_upload(job: Audit, folder: Path, console: Console) -> None:
    from kljax.core import folders
    from kljax.studies.audit import audit, table, write_audit

    _said(job, OF_NETWORK, "an upload, which is of one client's data")
    if job.weights is None:
        raise ValueError(
            "--weights is missing: a file of the weights that the client started from"
        )
    names = [field.name for field in dataclasses.fields(AuditConfig)]
    given = {name: getattr(job, name) for name in names}
    unsaid = {n for n in ("attacks", "starts") if given[n] is None}
    config = AuditConfig(**{n: v for n, v in given.items() if n not in unsaid})
    with folders.claim(folder) as claimed:
        done = audit(config, lambda line: say(console, f"{line} ..."))
        write_audit(claimed, done)
    for fact, value, source in config.told():
        say(console, f"{fact} = {value} ({source})")
    console.print()
    for finding in done.findings:
        say(console, f"{finding.about}: {finding.says}", wrap=True)
    console.print()
    console.print(printed_table(*table(done)))
    console.print()
    say(console, f"{done.verdict.name}: {done.verdict.words}", wrap=True)
    say(
        console,
        f"written: {claimed.folder}/ (audit.md, audit.png, audit.json, best.npz)",
    )
