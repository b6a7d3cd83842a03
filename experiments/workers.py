"""Processes that answer requests, one JSON line each.

Peers are measured in processes of their own, because the thread pools of two libraries
disturb each other within one. Idle workers wait for a line and use no CPU. A worker
is a script that calls `serve`; it may run under another Python than the driver.
"""

import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path


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
