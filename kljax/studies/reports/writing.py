"""Writing of a report: each file whole or not at all, the page last."""

from collections.abc import Sequence
from pathlib import Path

from kljax.core.checks import check_text
from kljax.core.files import write_bytes
from kljax.studies.reports.contents import make_contents
from kljax.studies.reports.markdown import to_markdown
from kljax.studies.reports.page import to_page
from kljax.studies.reports.tables import to_csv
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
) -> Path:
    """Writes a report on a study, however far it is.

    ``report.html`` is all of it in one file; ``report.md`` the same for reading in a
    terminal or a repository, with its pictures beside it; ``*.csv`` the tables with all
    digits; ``sweep.toml`` the file that repeats the study. Everything is computed
    before the first file is written, and files of an earlier report that this one does
    not have are removed.

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

    Returns:
      The path of the page.

    Raises:
      ValueError: for an unknown axis or value (with the nearest known one), an axis
        named twice, a run that is not finished or is none, and files of the study that
        are broken.
      FileNotFoundError: for a run that is not there.
    """
    out = study.folder / "report" if out is None else Path(out)
    check_text("out", str(out))
    contents = make_contents(study, rows=rows, columns=columns, value=value, runs=runs)
    files = {f"{table.name}.csv": to_csv(table).encode() for table in contents.tables}
    files |= {f"{figure.name}.svg": figure.light for figure in contents.figures}
    files["sweep.toml"] = contents.sweep.encode()
    files["report.md"] = to_markdown(contents).encode()
    files[PAGE] = to_page(contents).encode()
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_bytes(out / name, content)
    for path in out.iterdir():
        if _ours(path) and path.name not in files:
            path.unlink()
    return out / PAGE


def _ours(path: Path) -> bool:
    """Tells whether a report may have written a file of this name."""
    names = ("table", "points", "comparisons", "ranking", "consistency", "budgets")
    names += ("tradeoffs", "distributions", "trends")
    stem, _, number = path.stem.partition("-")
    numbered = not number or (stem in ("table", "ranking") and number.isdigit())
    return path.suffix in (".csv", ".svg") and stem in names and numbered
