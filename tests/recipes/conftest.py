"""Each recipe writes a module outside the package, and runs a job with it."""

import csv
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest
from tiny_studies import quick_compilation

from kljax import cli, metrics

TINY = (
    "--model dense --image-size 8 --victims 1 --steps 2 --optimiser adam "
    "--private-key-size 16 --arms none"
).split()


class Job(NamedTuple):
    """What a job left."""

    rows: list[dict[str, str]]  # as rows.csv has them
    report: str  # summary.md
    folder: Path

    def of_arms(self) -> list[dict[str, str]]:
        """Leaves the rows of floors out."""
        return [row for row in self.rows if not row["arm"].startswith("floor/")]


@pytest.fixture(autouse=True)
def quickly(monkeypatch, tmp_path):
    """Compiles quickly and without LPIPS, in a folder of its own."""
    monkeypatch.setattr(metrics, "lpips_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    with quick_compilation():
        yield


@pytest.fixture
def mine(monkeypatch, tmp_path):
    """Writes the module ``mine``, outside the package; a function of its source."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)

    def write(source: str) -> None:
        (tmp_path / "mine.py").write_text(textwrap.dedent(source))

    yield write
    sys.modules.pop("mine", None)


@pytest.fixture
def leak(tmp_path):
    """Runs ``kljax leak``, tiny but for the options that are given."""

    def run(*options: str) -> Job:
        folder = tmp_path / "run"
        assert cli.main(["leak", *TINY, *options, "--out", str(folder)]) == 0
        with (folder / "rows.csv").open(newline="") as opened:
            rows = list(csv.DictReader(opened))
        return Job(rows, (folder / "summary.md").read_text(), folder)

    return run
