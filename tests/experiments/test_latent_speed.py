"""The entries of experiments/speed.py about latent attacks, at sizes of seconds.

The peer is tested where PyTorch is installed: in this Python, or in the one that
TORCH_PYTHON names.
"""

import jax
import numpy as np
import pytest
from timing.entries.latents import (
    RADIUS,
    RATE,
    SIZE,
    VARIATION,
    Problem,
    Work,
    compare,
)
from timing.peers.latents import LatentPeer, Setting

SMALL = Work(victims=2, candidates=4, steps=6)


pytestmark = pytest.mark.usefixtures("quickly")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ggl-cma", "gifd-stage"])
def test_ours_alone(name, options):
    (row,) = compare(name, options(), SMALL)
    assert row["name"] == name and row["ours"]["median"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(("form", "conv"), [("eager", "native"), ("func", "unfold")])
def test_the_peer_computes_the_same(form, conv, torch_python):
    problem, setting = Problem(SMALL), Setting(form, conv, 4, 1)

    def ours(function, name):
        run = jax.jit(jax.vmap(function))
        return np.ravel(run(*problem.given(name)))

    with LatentPeer(torch_python) as peer:
        peer.load(problem.in_torch())
        _, judged = peer.judge(setting)
        _, found = peer.descend(
            setting,
            steps=SMALL.steps,
            radius=RADIUS,
            rate=RATE,
            variation=VARIATION,
            size=SIZE,
        )
    np.testing.assert_allclose(judged, ours(problem.judge, "ggl-cma"), rtol=1e-3)
    np.testing.assert_allclose(found, ours(problem.descend, "gifd-stage"), rtol=1e-2)
