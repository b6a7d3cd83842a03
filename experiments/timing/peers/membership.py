"""The peer of DAGER's membership test: the same test, in plain PyTorch."""

from typing import NamedTuple

from .processes import Peer

PEER = "torch-membership"


class Setting(NamedTuple):
    """How the peer runs."""

    threads: int
    chunk: int  # tokens at a time


SETTINGS = tuple(
    Setting(threads, chunk) for threads in (1, 2) for chunk in (1024, 30_522)
)


class MembershipPeer(Peer):
    """Owns the worker process."""

    def __init__(self, python, gpu=False):
        super().__init__(python, "timing.workers.membership", gpu=gpu)

    def load(self, arrays, tolerance, nearness):
        """Sends embeddings and a gradient, see `workers.membership.Membership`."""
        self.send(arrays, tolerance=tolerance, nearness=nearness)

    def test(self, setting):
        """Tests the whole vocabulary once; gives seconds and (token, place) pairs."""
        answer = self.ask_one("run", repeats=1, **setting._asdict())
        return answer["seconds"], sorted(map(tuple, answer["fits"]))
