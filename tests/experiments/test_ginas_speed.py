"""The entry of experiments/speed.py about the search of GI-NAS, at sizes of seconds.

The peer is tested where PyTorch is installed: in this Python, or in the one that
TORCH_PYTHON names.
"""

import numpy as np
import pytest
from timing.entries.ginas import Problem, Work, compare
from timing.peers.ginas import GinasPeer, Setting
from timing.peers.processes import shares

SMALL = Work(candidates=24, examples=2, channels=16, scales=2, side=16)


pytestmark = pytest.mark.usefixtures("quickly")


@pytest.mark.slow
def test_ours_alone(options):
    warm, cold = compare(options(), SMALL)
    assert warm["name"] == "ginas-search-warm" and cold["name"] == "ginas-search-cold"
    assert warm["ours"]["median"] > cold["ours"]["median"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting", [Setting("eager", processes=2), Setting("func", chunk=5)]
)
def test_the_peer_judges_the_same(setting, torch_python):
    problem = Problem(SMALL)
    program, given = problem.compiled()
    ours = np.asarray(program(*given))
    assert np.std(ours) > 1e-3
    with GinasPeer(torch_python) as peer:
        peer.load(problem.in_torch())
        theirs = np.array(peer.candidates(setting).values)
    np.testing.assert_allclose(theirs, ours, atol=1e-5)


@pytest.mark.parametrize(("count", "processes"), [(20, 2), (5, 2), (1, 2), (7, 3)])
def test_every_candidate_is_in_one_process_share(count, processes):
    dealt = [list(range(*share)) for share in shares(count, processes)]
    assert len(dealt) == processes
    assert [each for share in dealt for each in share] == list(range(count))
