"""Processes that answer requests, one JSON line each.

Peers are measured in processes of their own, because the thread pools of two libraries
disturb each other within one. Idle workers wait for a line and use no CPU. A worker
is a script that calls `serve`; it may run under another Python than the driver.

Most peers are one object that the worker holds: `serve_object` answers for it, and a
`Peer` is its driver's side.
"""

import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np


class Workers:
    """Owns worker processes; use it in a `with`, or call `close`.

    Attributes:
      folder: where arrays too large for a line are left for each other.
    """

    def __init__(self, command, count, env=None, gpu=False):
        """Remembers to start `count` processes of `command` when first asked.

        env: is added to ours. gpu: whether ours runs on one; if not, they see none.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="speed_peer_")
        self.folder = Path(self._folder.name)
        hidden = {} if gpu else {"CUDA_VISIBLE_DEVICES": ""}
        self._env = os.environ | hidden | (env or {})
        self._command, self._count = [str(part) for part in command], count
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

    def __init__(self, command, processes=1, env=None, gpu=False):
        """Takes what `Workers` does."""
        self._workers = Workers(command, processes, env, gpu)

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
        share = count // processes
        request = {"command": command, **fields}
        return self._workers.ask(
            [
                request | {"first": part * share, "last": (part + 1) * share}
                for part in range(processes)
            ]
        )


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


def serve(commands):
    """Answers requests on stdin until it ends, inside a worker.

    Args:
      commands: name -> function of the request's other fields, that gives a dict.
    """
    # Compilers like to print; only answers may go to the real stdout.
    answers, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = commands[request.pop("command")](**request) | {"ok": True}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


def serve_object(*methods, **makers):
    """Answers requests about one object, inside a worker.

    Args:
      methods: names of those that may be asked for; each gives a dict.
      makers: command -> what makes the object from the request's other fields; it
        takes the place of the one before.
    """
    loaded = []

    def maker(make):
        def command(**fields):
            loaded[:] = [make(**fields)]
            return {}

        return command

    def method(name):
        return lambda **fields: getattr(loaded[0], name)(**fields)

    commands = {name: maker(make) for name, make in makers.items()}
    serve(commands | {name: method(name) for name in methods})
