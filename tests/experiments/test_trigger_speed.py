"""The entries of experiments/speed.py about trigger inversion, at sizes of seconds.

The peer is tested where PyTorch is installed: in this Python, or in the one that
TORCH_PYTHON names.
"""

import numpy as np
import pytest
from timing.entries.triggers import WORK, Pairs, compare
from timing.peers.triggers import Setting, TriggerPeer

SMALL = WORK["trigger-inversion"]._replace(examples=2, steps=3)


pytestmark = pytest.mark.usefixtures("quickly")


@pytest.mark.slow
def test_ours_alone(options):
    warm, cold = compare("trigger-inversion", options(), SMALL)
    assert warm["name"] == "trigger-inversion-warm" and warm["settings"]["pairs"] == 90
    assert warm["ours"]["median"] > cold["ours"]["median"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("form", ["loop", "batched"])
def test_the_peer_finds_the_same(form, torch_python):
    pairs = Pairs(SMALL._replace(steps=40))
    program, given = pairs.compiled(40)
    ours = np.asarray(program(*given))
    with TriggerPeer(torch_python) as peer:
        peer.load("dense", pairs.in_torch())
        _, theirs = peer.search(Setting(form), 40)
    assert np.isfinite(ours).any()
    np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(theirs))
    found = np.isfinite(ours)
    np.testing.assert_allclose(np.array(theirs)[found], ours[found], rtol=0.02)
