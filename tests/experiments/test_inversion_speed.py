"""The entries of experiments/speed.py about deeper inversions, at sizes of seconds.

Peers are tested where PyTorch is installed: in this Python, or in the one that
TORCH_PYTHON names.
"""

import jax
import numpy as np
import orders
import pytest
from timing.entries import grnn, inversions, layouts
from timing.entries.inversions import WORK
from timing.peers import inversions as peers
from timing.resident import resident
from timing.slow_form import slow_difference
from tiny_studies import quick_compilation

from kljax.parallel import Layout, map_victims

SMALL = {"victims": 2, "repeats": 1, "chunks": (1,)}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(inversions, "matmul_peak", lambda tiny: 1e12)
    monkeypatch.setattr(peers, "settings", lambda name, *_: [of(name)])
    with quick_compilation():
        yield


def of(name):
    form = "eager" if "eager" in name else "func"
    return peers.Setting(form, processes=2 if "processes" in name else 1)


@pytest.mark.slow
def test_ours_alone(options):
    work = WORK["fedavg-inversion"]._replace(**SMALL)
    (made,) = inversions.compare("fedavg-inversion", options(rounds=2), work)
    assert made["ours"]["low"] > 0 and made["peers"] == {}
    assert made["settings"]["local_steps"] == 5
    # An update is a small difference of weights, in which rounding shows.
    assert made["settings"]["difference_to_slow_form"] < 1e-2
    # Five steps: at least five times the products of a forward pass and its gradient.
    convolutions = 3 * 12 * 16**2, 12 * 12 * 8**2, 12 * 12 * 8**2
    forward = sum(2 * 25 * n for n in convolutions) + 2 * 768 * 10
    assert made["settings"]["flops_per_evaluation"] > 5 * 2 * forward


@pytest.mark.slow
def test_what_is_timed_computes_the_gradient():
    """A compiler leaves out what nobody reads, and unrolls a loop of one turn."""
    problem = inversions.Problem(WORK["fedavg-inversion"]._replace(victims=1))
    given = problem.params, problem.stats, problem.observe()
    given = jax.tree.map(lambda x: x[0], (*given, problem.labels, problem.starts))

    def flops(function):
        return jax.jit(function).lower(*given).compile().cost_analysis()["flops"]

    whole, value = flops(problem.evaluation()), flops(problem.objective())
    timed = flops(inversions.repeated(problem.evaluation(), repeats=1))
    assert timed > 0.99 * whole > 1.5 * value


def test_a_program_on_the_device_gives_the_same():
    given = np.arange(6.0, dtype=np.float32), np.ones((6, 3), np.float32)

    def one(number, row):
        return number * row

    timed, compile_s = resident(one, given, Layout("sharded", 2))
    seconds, results = timed()
    assert len(results) == 3 and min(seconds, compile_s) > 0
    expected, _ = map_victims(one, Layout("chunked", 2))(*given)
    assert np.concatenate(results).tolist() == expected.tolist()
    with pytest.raises(ValueError, match="6 victims are no whole chunks of 4"):
        resident(one, given, Layout("sharded", 4))


def test_the_slow_form_tells_what_is_wrong():
    given = (np.ones((3, 4), np.float32),)
    layout, right = Layout("chunked", 2), (lambda x: (x, x.sum()))
    assert slow_difference(right, right, given, layout) == 0
    wrong = slow_difference(lambda x: (x, 1.1 * x.sum()), right, given, layout)
    assert wrong == pytest.approx(0.1 * 4 / 20**0.5, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("order", [*orders.ORDERS][1:])
def test_orders_of_differentiation_are_one_number(order):
    work = orders.WORK["lenet"][0]._replace(victims=1)
    problem = inversions.Problem(work)
    given = problem.params, problem.stats, problem.observe()
    given = jax.tree.map(lambda x: x[0], (*given, problem.labels, problem.starts))
    made = problem.evaluation(), orders.ORDERS[order](problem)
    (value, slope), (other, found) = (jax.jit(evaluate)(*given) for evaluate in made)
    assert float(other) == pytest.approx(float(value), rel=1e-5)
    assert orders.difference(found[None], slope[None]) < 1e-5


@pytest.mark.slow
def test_layouts(options):
    """Every layout with every formulation, ours first."""
    work = WORK["fedavg-inversion"]._replace(**SMALL)
    name = "layouts-fedavg-inversion"
    (made,) = layouts.of_inversions(name, options(rounds=2), work)
    assert made["name"] == name
    assert made["settings"]["ours"] == "sharded, chunk 1, matmul"
    titles = ("sharded, chunk 1", "sharded_loop, chunk 1", "loop")
    formed = {f"{title}, {form}" for title in titles for form in ("matmul", "lax")}
    assert set(made["peers"]) == formed - {"sharded, chunk 1, matmul"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*WORK, "grnn-lenet"])
def test_peers_do_the_same_work(name, options, torch_python):
    ours = options(*peers.PEERS, rounds=2, torch_python=torch_python)
    if name == "grnn-lenet":
        (made,) = grnn.compare(ours, grnn.WORK._replace(**SMALL))
    else:
        (made,) = inversions.compare(name, ours, WORK[name]._replace(**SMALL))
    assert len(made["peers"]) == 4
    differences = made["settings"]["largest_difference_to_peer"]
    # GRNN's distance is about 10 at the start, the cosine at most 2.
    assert max(differences.values()) < (1e-3 if name == "grnn-lenet" else 1e-4)
