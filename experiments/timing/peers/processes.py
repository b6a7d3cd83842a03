"""Processes that answer requests, one JSON line each: the driver's side.

Peers are measured in processes of their own, because the thread pools of two libraries
disturb each other within one. Idle workers wait for a line and use no CPU. A worker
is a module of `timing.workers`; it may run under another Python than the driver.
"""

import itertools
import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np

# Of the package `timing`, for workers.
ROOT = str(Path(__file__).parents[2])


class Workers:
    """Owns worker processes; use it in a `with`, or call `close`.

    Attributes:
      folder: where arrays too large for a line are left for each other.
    """

    def __init__(self, python, module, count, env=None, gpu=False):
        """Remembers to start `count` processes of a module when first asked.

        env: is added to ours. gpu: whether ours runs on one; if not, they see none.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="speed_peer_")
        self.folder = Path(self._folder.name)
        hidden = {} if gpu else {"CUDA_VISIBLE_DEVICES": ""}
        path = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))
        self._env = os.environ | {"PYTHONPATH": path} | hidden | (env or {})
        self._command, self._count = (str(python), "-m", module), count
        self._processes = []

    def _start(self):
        pipe = subprocess.PIPE
        self._processes = [
            subprocess.Popen(
                self._command, stdin=pipe, stdout=pipe, text=True, env=self._env
            )
            for _ in range(self._count)
        ]

    def __len__(self):
        return self._count

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self):
        """Ends the workers."""
        for process in self._processes:
            process.stdin.close()
        for process in self._processes:
            process.wait()
            process.stdout.close()
        self._folder.cleanup()

    def ask(self, requests):
        """Sends one request per worker (None: none), then collects the answers.

        Raises:
          RuntimeError: with the worker's own traceback.
        """
        if not self._processes:
            self._start()
        pairs = zip(self._processes, requests, strict=False)
        busy = [pair for pair in pairs if pair[1]]
        for process, request in busy:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        answers = [json.loads(p.stdout.readline() or "{}") for p, _ in busy]
        for answer in answers:
            if "ok" not in answer:
                raise RuntimeError(answer.get("error", "a worker has died"))
        return answers


class Peer:
    """Owns the worker processes of one peer; use it in a `with`, or call `close`."""

    def __init__(self, python, worker, processes=1, env=None, gpu=False):
        """Takes what `Workers` does; the worker is a module of `timing.workers`."""
        self._workers = Workers(python, worker, processes, env, gpu)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self):
        """Ends the workers."""
        self._workers.close()

    def send(self, arrays, command="load", **fields):
        """Leaves arrays [...] by name for every worker, and asks all to load them."""
        path = self._workers.folder / "arrays.npz"
        np.savez(path, **arrays)
        request = {"command": command, "path": str(path), **fields}
        self._workers.ask([request] * len(self._workers))

    def ask_one(self, command, **fields):
        """Asks the first worker; gives its answer."""
        (answer,) = self._workers.ask([{"command": command, **fields}])
        return answer

    def ask_shares(self, command, count, processes, **fields):
        """Asks some workers, each for its share first..last-1 of `count` victims."""
        request = {"command": command, **fields}
        return self._workers.ask(
            [
                request | {"first": first, "last": last}
                for first, last in shares(count, processes)
            ]
        )


def shares(count, processes):
    """Deals 0, ..., count - 1 to processes, all of them: first and last + 1 of each."""
    bounds = [part * count // processes for part in range(processes + 1)]
    return list(itertools.pairwise(bounds))


def elapsed(*answers):
    """Gives the seconds from the first worker's start to the last one's stop."""
    # perf_counter is one clock for all processes of a Linux machine.
    return max(a["stop"] for a in answers) - min(a["start"] for a in answers)


def fastest(settings, seconds, warm_up=None):
    """Finds the best of settings, by one round each after one to warm up.

    Args:
      settings: to try.
      seconds: ``setting -> seconds`` of a round.
      warm_up: what runs before it, with the setting; `seconds` if not given.
    """
    spent = {}
    for setting in settings:
        (warm_up or seconds)(setting)
        spent[setting] = seconds(setting)
    return min(spent, key=spent.get)
