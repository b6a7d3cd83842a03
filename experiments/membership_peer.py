"""The peer of DAGER's membership test: a worker under a Python that has PyTorch.

python experiments/membership_peer.py           # the worker
"""

import sys
from pathlib import Path

from workers import serve_object

PEER = "torch-membership"
SCRIPT = Path(__file__).resolve()


def work():
    """Answers requests, inside a worker."""
    from peers.membership import Membership

    serve_object("run", load=Membership)


if __name__ == "__main__":
    sys.exit(work())
