"""Entries of the speed table about what a user waits for: `kljax demo`, from Enter.

Its 96 attacks of 1,000 evaluations, from a cold and from a warm cache of compilations:
the start of Python, tracing, compiling, attacks, scores, tables and the gallery are all
in the time. Each is a process of its own with a cache of its own.

The peer is eager PyTorch, at the best of its settings here: evaluations of DLG's
objective on the undefended LeNet, 64 victims, and nothing else. Its start, its moves
and its scores are not counted, and five of the demo's six arms have norms or gates that
the peer's network has not.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from ..device import on_gpu
from ..entry import Entry
from ..peers.dlg import TorchPeer
from ..table import as_fields, line
from ..turns import turns
from . import dlg

EVALUATIONS = 6 * 16 * 1000  # arms, victims, steps
PEER = "torch-eager"
SAID = re.compile(r"([\d.]+) s compiling,\s+([\d.]+) s\s+running")


def demo(name, options, work):
    """Evaluations per second of whole demos, beside the peer's, in turns."""
    runs = []
    with tempfile.TemporaryDirectory() as place:
        warm = Path(place) / "warm"
        if name == "demo-warm":
            run(warm)

        def ours():
            with tempfile.TemporaryDirectory(dir=place) as cold:
                runs.append(run(warm if name == "demo-warm" else Path(cold)))
            return EVALUATIONS / runs[-1]["wall_s"]

        alone = [peer for peer in options.peers if peer == PEER]
        options = argparse.Namespace(**vars(options) | {"peers": alone})
        contestants, chosen = {"ours": ours}, {}
        with TorchPeer(options.torch_python, gpu=on_gpu()) as peer:
            if alone:
                chosen = dlg.best_peers(peer, options, dlg.Problem(work.victims))
            for label, setting in chosen.items():
                contestants[label] = lambda setting=setting: (
                    peer.evaluations(setting, work.repeats).per_second
                )
            values = turns(options.rounds, contestants)
    settings = {
        "evaluations": EVALUATIONS,
        "runs": runs,
        "peers": as_fields(chosen),
    }
    return [line(name, values.pop("ours"), values, "evaluations/s", settings)]


def run(cache):
    """Runs the demo on a cache: its seconds by the clock, what they were, its peak."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "kljax", "demo", "--out", f"{folder}/run"]
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
        start = time.perf_counter()
        with open(Path(folder) / "log", "w+") as log:
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
            _, status, used = os.wait4(process.pid, 0)
            wall = time.perf_counter() - start
            log.seek(0)
            said = log.read()
    spent = SAID.search(said)
    if status or spent is None:
        raise RuntimeError(f"the demo failed: {said[-2000:]}")
    return {
        "wall_s": wall,
        "compile_s": float(spent[1]),
        "run_s": float(spent[2]),
        # Of all its threads: what else the machine does slows a clock, not this.
        "cpu_s": used.ru_utime + used.ru_stime,
        "peak": 1024 * used.ru_maxrss,
    }


SENTENCES = {
    "demo-cold": "a whole `kljax demo`, from Enter on, with a cold compilation cache; "
    "in evaluations/s, its peer eager PyTorch's evaluations alone",
    "demo-warm": "the same with a warm one",
}
# The peer's round; the demo itself has one size.
ENTRIES = tuple(
    Entry(name, sentence, partial(demo, name), dlg.WORK, dlg.TINY, peers=(PEER,))
    for name, sentence in SENTENCES.items()
)
