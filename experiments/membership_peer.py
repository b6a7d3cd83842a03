"""The peer of DAGER's membership test: a worker under a Python that has PyTorch.

python experiments/membership_peer.py           # the worker
"""

import sys
from pathlib import Path

from workers import serve

PEER = "torch-membership"
SCRIPT = Path(__file__).resolve()


def work():
    """Answers requests, inside a worker."""
    from peers.membership import Membership

    loaded = []

    def load(**fields):
        loaded[:] = [Membership(**fields)]
        return {}

    def run(**fields):
        return loaded[0].run(**fields)

    serve({"load": load, "run": run})


if __name__ == "__main__":
    sys.exit(work())
