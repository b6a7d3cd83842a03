"""What peers of the speed table share, with a worker that needs no library."""

import sys

import numpy as np
import pytest
from timing import torch_layouts
from timing.peers import processes
from timing.turns import beside_peers, largest_differences

WORKER = """
import numpy as np
from timing.workers.serving import serve_object

class Sums:
    def __init__(self, path, factor):
        with np.load(path) as file:
            self.values = factor * file["values"]

    def total(self, first=0, last=None):
        total = float(sum(self.values[first:last]))
        return {"start": first, "stop": 10, "total": total}

serve_object("total", load=Sums, load_twice=lambda path: Sums(path, 2))
"""


@pytest.fixture
def peer(tmp_path, monkeypatch):
    (tmp_path / "sums.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with processes.Peer(sys.executable, "sums", processes=2) as peer:
        yield peer
    assert not peer._workers.folder.exists()


def test_a_peer_asks_for_the_object_loaded_last(peer):
    peer.send({"values": np.arange(4.0)}, factor=3)
    assert peer.ask_one("total")["total"] == 18
    shares = peer.ask_shares("total", 4, 2)
    assert [share["total"] for share in shares] == [3, 15]
    assert [share["start"] for share in shares] == [0, 2]
    assert processes.elapsed(*shares) == 10 and processes.elapsed(shares[1]) == 8
    peer.send({"values": np.ones(4)}, "load_twice")
    assert peer.ask_shares("total", 4, 1)[0]["total"] == 8
    with pytest.raises(RuntimeError, match="KeyError: 'no such'"):
        peer.ask_one("no such")


def test_the_fastest_setting_is_found_after_a_warm_up():
    asked, times = [], {"a": [1, 5], "b": [9, 2]}

    def seconds(setting):
        asked.append(setting)
        return times[setting].pop(0)

    assert processes.fastest(["a", "b"], seconds) == "b" and asked == [*"aabb"]
    times |= {"a": [3], "b": [4]}
    warm = []
    assert processes.fastest(["a", "b"], seconds, warm.append) == "a"
    assert warm == ["a", "b"]


def test_peers_run_in_turns_at_what_was_chosen():
    order = []

    def ours():
        order.append("ours")
        return 4, [1, 7]

    def run(setting):
        order.append(setting)
        return 2, [len(order), 0]

    names = ["torch-eager", "torch-func"]
    rates, chosen, values = beside_peers(2, {"ours": ours}, names, len, run)
    assert chosen == {"torch-eager": 11, "torch-func": 10}
    assert order == ["ours", 11, 10] * 2
    assert rates == {"ours": [4, 4], "torch-eager": [2, 2], "torch-func": [2, 2]}
    # Of the last round.
    differences = largest_differences(values)
    assert differences == {"torch-eager": 7, "torch-func": 7}
    parts = largest_differences(values, relative=True)
    assert parts == {"torch-eager": 4, "torch-func": 5}
    assert values["torch-eager"].tolist() == [5, 0]


@pytest.mark.parametrize("some", [(), (2,)])
def test_layouts_of_lenet_are_those_of_pytorch(some):
    draw = np.random.default_rng(0)
    widths = {"conv1": (5, 5, 3, 12), "conv2": (5, 5, 12, 12), "conv3": (5, 5, 12, 12)}
    params = {f"{n}/kernel": draw.random((*some, *w)) for n, w in widths.items()}
    params |= {f"{n}/bias": draw.random((*some, 12)) for n in widths}
    params |= {"fc/kernel": draw.random((*some, 192, 7))}
    params |= {"fc/bias": draw.random((*some, 7))}
    turned = torch_layouts.lenet_in_torch(params)
    kernel, weight = params["conv1/kernel"], turned["conv1/weight"]
    assert weight.shape == (*some, 12, 3, 5, 5)
    assert (weight[..., 11, 2, 0, 4] == kernel[..., 0, 4, 2, 11]).all()
    # Pixels first with us, channels first there: 4 by 4 of 12.
    ours = params["fc/kernel"][..., (3 * 4 + 1) * 12 + 5, 6]
    theirs = turned["fc/weight"][..., 6, 5 * 16 + 3 * 4 + 1]
    assert (theirs == ours).all()
    assert [*turned][:2] == ["conv1/weight", "conv1/bias"]
