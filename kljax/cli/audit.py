"""``kljax audit``."""

import dataclasses
import datetime
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from kljax.cli.printing import printed_table, say
from kljax.studies.audit.facts import AuditConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit(AuditConfig):
    """Says what one upload gives away: somebody's gradient or update, from a file.

    Attributes:
      out: folder to write; None for runs/audit-DATE-TIME.
    """

    upload_file: Annotated[Path, tyro.conf.Positional]
    out: Path | None = None

    def __post_init__(self):
        """Leaves the checks to the `AuditConfig` made of it, behind the parser."""


def run_audit(job: Audit, console: Console) -> None:
    """Audits an upload, writes its page and prints its table and verdict."""
    from kljax.core import folders
    from kljax.parallel import compilation
    from kljax.studies.audit import audit, table, write_audit

    names = [field.name for field in dataclasses.fields(AuditConfig)]
    config = AuditConfig(**{name: getattr(job, name) for name in names})
    stamp = f"{datetime.datetime.now():%Y%m%d-%H%M%S}"
    folder = job.out or Path("runs") / f"audit-{stamp}"
    compilation.use_cache()
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
