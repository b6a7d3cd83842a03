"""Writing of a report: each file whole or not at all, the page last."""

import io
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet

from kljax.core.checks import check_text
from kljax.core.files import write_bytes
from kljax.studies.reports.contents import make_contents
from kljax.studies.reports.markdown import to_markdown
from kljax.studies.reports.page import to_page
from kljax.studies.reports.tables import to_csv
from kljax.studies.reports.victim_pages import VICTIM_FILE, victim_files
from kljax.studies.reports.victims import FOLDER
from kljax.studies.store import Study

PAGE = "report.html"


def write_report(
    study: Study,
    out: Path | str | None = None,
    *,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    value: str | None = None,
    runs: Sequence[Path | str] = (),
    against: Study | None = None,
    gif: bool = False,
) -> Path:
    """Writes a report on a study, however far it is.

    ``report.html`` is all of it in one file; ``report.md`` the same for reading in a
    terminal or a repository, with its pictures beside it; ``*.csv`` the tables with all
    digits, ``rows.parquet`` all rows; ``sweep.toml`` the file that repeats the study;
    ``victims/`` a page for each of the first victims whose reconstructions are kept.
    Everything is computed before the first file is written, and files of an earlier
    report that this one does not have are removed.

    Args:
      study: from `kljax.studies.store.read`.
      out: folder to write to; None for ``report`` in the study.
      rows: axes whose points become lines; None for the one that sets the arm.
      columns: axes whose points become columns; None for the longest of the others.
      value: one of `kljax.metrics.VALUES`, or a column of your own, by name; None for
        the primary score of the study's kind of inputs (``ssim`` of images,
        ``token_accuracy`` of text), and ``success`` where it has several kinds.
      runs: folders of finished trainings (`kljax train`), for accuracies; each counts
        for the attacked arms of the same network, see `kljax.studies.reports.pairing`.
      against: another study, whose cells that are alike are compared, see
        `kljax.studies.reports.against`; None for none.
      gif: whether the victims' pages have moving pictures, where snapshots are kept.

    Returns:
      The path of the page.

    Raises:
      ValueError: for an unknown axis or value (with the nearest known one), an axis
        named twice, a run that is not finished or is none, files of the study that are
        broken, and another study that has nothing to compare.
      FileNotFoundError: for a run that is not there.
    """
    out = study.folder / "report" if out is None else Path(out)
    check_text("out", str(out))
    contents = make_contents(
        study, rows=rows, columns=columns, value=value, runs=runs, other=against
    )
    files = {f"{table.name}.csv": to_csv(table).encode() for table in contents.tables}
    files |= {f"{figure.name}.svg": figure.light for figure in contents.figures}
    files["rows.parquet"] = _to_parquet(study)
    files["sweep.toml"] = contents.sweep.encode()
    files |= victim_files(contents, gif)
    files["report.md"] = to_markdown(contents).encode()
    files[PAGE] = to_page(contents).encode()
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (out / name).parent.mkdir(exist_ok=True)
        write_bytes(out / name, content)
    for path in (*out.iterdir(), *(out / FOLDER).glob("*")):
        own = path.relative_to(out)
        if _ours(own) and own.as_posix() not in files:
            path.unlink()
    return out / PAGE


def _to_parquet(study: Study) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(study.rows, buffer)
    return buffer.getvalue()


def _ours(path: Path) -> bool:
    """Tells whether a report may have written a file of this name, beside its page."""
    if path.parent.name == FOLDER:
        return bool(VICTIM_FILE.fullmatch(path.name))
    names = ("table", "points", "comparisons", "ranking", "consistency", "budgets")
    names += ("tradeoffs", "distributions", "trends", "convergence", "against")
    names += ("victims",)
    stem, _, number = path.stem.partition("-")
    numbered = not number or (stem in ("table", "ranking") and number.isdigit())
    return path.suffix in (".csv", ".svg") and stem in names and numbered
