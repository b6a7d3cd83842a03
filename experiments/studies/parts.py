"""Drivers of experiments in parts: a budget of processor time, and what was not run.

A part is a sweep file, or another command of kljax that goes on where it was cut off.
What all calls took together stands in OUT/spent.json.
"""

import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path

from tabulate import tabulate

from kljax.core.files import read_json, write_json
from kljax.studies import store
from kljax.studies.reports.tables import Table
from kljax.studies.store import Study
from kljax.studies.store.failures import read_failures
from kljax.studies.store.manifest import open_study
from kljax.studies.sweeps import expand, read_sweep


def spent(out: Path) -> dict[str, float]:
    """Reads the processor seconds of each part so far."""
    return read_json(out / "spent.json", dict[str, float]) or {}


def left(out: Path, hours: float) -> float:
    """Gives the processor seconds that are left of a budget for all parts."""
    return 3600 * hours - sum(spent(out).values())


def run_sweep(part: Path, out: Path, budget: float) -> bool:
    """Runs the sweep file of a part, until it is finished or has used up its budget.

    Cells that failed before are tried again. Gives False if some failed.

    Args:
      part: sweep file, whose name is the part's.
      out: folder of the parts.
      budget: processor seconds.
    """
    command = ("sweep", part, "--out", out / part.stem, "--no-report", "--retry-failed")
    fine = run_within(part.stem, ("-m", "kljax", *command), out, budget)
    return fine and not read_failures(out / part.stem)


def run_within(name: str, command: Iterable, out: Path, budget: float) -> bool:
    """Runs Python within a budget, and writes down what it took.

    Args:
      name: of the part, in OUT/spent.json.
      command: arguments of Python.
      out: folder of the parts.
      budget: processor seconds, after which it is told to end.

    Returns:
      Whether it went well, as far as it went.
    """
    out.mkdir(parents=True, exist_ok=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen([sys.executable, *map(str, command)])
    # What is finished is safe; what is in flight is computed again next time.
    watch = threading.Event()
    clock = threading.Thread(target=stop_after, args=(process, budget, watch))
    clock.start()
    try:
        process.wait()
    finally:
        watch.set()
        clock.join()
        # Interrupted, it must neither go on nor be left out of the account.
        process.terminate()
        process.wait()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = sum(after[:2]) - sum(before[:2])
        total = spent(out)
        total[name] = total.get(name, 0.0) + seconds
        write_json(out / "spent.json", total)
    return process.returncode in (0, -signal.SIGTERM)


def stop_after(process, budget: float, finished: threading.Event) -> None:
    """Ends a process that has used up its processor time."""
    tick = os.sysconf("SC_CLK_TCK")
    while not finished.wait(5):
        try:
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2]
        except FileNotFoundError:
            return
        if sum(map(int, fields.split()[11:13])) / tick > budget:
            # An interrupt is not heard by what a shell put into the background.
            process.terminate()
            return


def read_part(part: Path, out: Path) -> Study:
    """Reads a part as far as it is; of one that was not begun, the cells alone."""
    folder = out / part.stem
    if (folder / "manifest.json").exists():
        return store.read(folder)
    with tempfile.TemporaryDirectory() as empty:
        # In OUT they would stand in the way of a part that is changed before it is run.
        read = read_sweep(part)
        open_study(Path(empty), read, expand(read))
        return store.read(empty)


def markdown(table: Table) -> str:
    """Lays a table out for Markdown, where a line is a line."""
    body = [
        [entry.text.replace("\n", "<br>") for entry in line] for line in table.lines
    ]
    return tabulate(body, table.header, tablefmt="pipe", disable_numparse=True)
