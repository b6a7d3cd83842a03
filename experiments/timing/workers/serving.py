"""Answers the requests of `timing.peers.processes`, inside a worker."""

import json
import os
import sys
import traceback


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
