"""Entries of the speed table about sweeps: whole commands, from start to end.

Each value is of one ``kljax sweep`` in a process of its own, on a study folder and a
compilation cache of its own; scores, LPIPS where it is installed, and parts on disk are
in it, the report is not.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ..entry import Entry
from ..table import line

# LeNet and DLG's attack, 200 evaluations each, without and with the lock.
SWEEP = """
[fixed]
model = "lenet"
data = "digits"
attack = "dlg"
labels = "recovered"
steps = 200
victims = {victims}

[axes]
arm = ["none", "keylock/known"]
seed = {seeds}
"""
DONE = re.compile(
    r"(\d+) attacks, (\d+) compilations: ([\d.]+) s compiling, ([\d.]+) s"
)


class Work(NamedTuple):
    """How much is swept; the arms double both."""

    victims: int  # of each cell
    seeds: int
    often: bool = True  # whether it is run again, warm


def sweep(name, options, work):
    """Attacks per hour of a whole sweep; the large one is run once, and cold."""
    victims, seeds, often = work
    rounds = options.rounds if often else 0
    with tempfile.TemporaryDirectory() as place:
        cache = Path(place) / "cache"
        cold = run(place, victims, seeds, cache)
        warm = [run(place, victims, seeds, cache) for _ in range(rounds)] or [cold]
    last = warm[-1]
    settings = {
        "sweep": SWEEP.format(victims=victims, seeds=list(range(seeds))),
        "attacks": last["attacks"],
        "compilations": last["compilations"],
        "cpu_s_per_attack": [one["cpu_s"] / one["attacks"] for one in warm],
        "peak_process_bytes": last["peak"],
        "cold": cold,
        "warm": warm,
    }
    pace = [3600 * one["attacks"] / one["wall_s"] for one in warm]
    made = [line(name, pace, {}, "attacks/h", settings)]
    if often:
        for kind, runs in (("cold", [cold]), ("warm", warm)):
            first = [one["first_s"] for one in runs]
            made.append(line(f"sweep-first-chunk-{kind}", first, {}, "s", {}))
    return made


def run(place, victims, seeds, cache):
    """Runs a sweep: when its parts were there, when it ended, and its memory."""
    with tempfile.TemporaryDirectory(dir=place) as folder:
        file, out = Path(folder) / "sweep.toml", Path(folder) / "study"
        file.write_text(SWEEP.format(victims=victims, seeds=list(range(seeds))))
        command = [sys.executable, "-m", "kljax", "sweep", file, "--out", out]
        start, began = time.perf_counter(), time.time()
        with open(Path(folder) / "log", "w+") as log:
            process = subprocess.Popen(
                [*command, "--no-report"],
                env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            first, ended = None, (0, 0, None)
            while not ended[0]:
                time.sleep(0.05)
                if first is None and list(out.glob("parts/[!.]*.parquet")):
                    first = time.perf_counter() - start
                ended = os.wait4(process.pid, os.WNOHANG)
            wall = time.perf_counter() - start
            log.seek(0)
            said = log.read()
        written = sorted(path.stat().st_mtime for path in out.glob("parts/*.parquet"))
        found = DONE.search(said)
        if ended[1] or found is None or first is None:
            raise RuntimeError(f"the sweep failed: {said[-2000:]}")
    attacks, compilations, compile_s, run_s = found.groups()
    return {
        "attacks": int(attacks),
        "compilations": int(compilations),
        "compile_s": float(compile_s),
        "attack_s": float(run_s),
        "first_s": first,
        "wall_s": wall,
        # Of all its threads: what else the machine does slows a clock, not this.
        "cpu_s": ended[2].ru_utime + ended[2].ru_stime,
        "parts_s": [round(at - began, 1) for at in written],
        "peak": 1024 * ended[2].ru_maxrss,
    }


ENTRIES = (
    Entry(
        "sweep-64",
        "a whole `kljax sweep` of 64 attacks (LeNet, DLG, 200 evaluations, with and "
        "without lock): attacks/h, peak memory, compilations; and seconds to the first "
        "finished chunk, with a cold and a warm cache",
        partial(sweep, "sweep-64"),
        Work(32, 1),
        Work(1, 1),
    ),
    Entry(
        "sweep-4096",
        "the same as sweep-64 with 4,096 attacks, once",
        partial(sweep, "sweep-4096"),
        Work(256, 8, often=False),
        Work(1, 1, often=False),
        if_named=True,
    ),
)
