"""Studies of averages over clients: their rows, their sweeps, and those of a run."""

import os
import subprocess
import sys

import numpy as np
import pytest
from search_path import SEARCH_PATH
from tiny_studies import quick_compilation, scored, study, tiny

from kljax import metrics
from kljax.parallel import Layout
from kljax.studies import leak_summary, training
from kljax.studies.builder.study import build_study
from kljax.studies.config import LeakConfig, TrainConfig
from kljax.studies.leak_report import upload_lines
from kljax.studies.leakage import leak
from kljax.studies.reports.threats import threat_words
from kljax.studies.sweeps import expand, parse_sweep

OF_TWO = {"average_clients": 2, "labels": "given", "threat": ("upload=average",)}


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(metrics, "lpips_available", lambda: False)


def numbers_of(rows):
    """Gives what an attack found, of every row."""
    return [(row["victim"], row["psnr"], row["loss"], row["label"]) for row in rows]


def test_rows_count_image_by_image_and_say_how_many_clients():
    """Two clients of one image, found exactly by an imprint."""
    result = study(
        attack="imprint", optimiser=None, victims=3, **OF_TWO | {"examples": 1}
    )
    rows = [row for row in scored(result) if row["arm"] == "none"]
    assert len(rows) == 6 and {row["average_clients"] for row in rows} == {2}
    assert [row["upload"] for row in rows] == [0, 0, 1, 1, 2, 2]
    # Two images among 64 bins are alone in theirs all but once in 64.
    exact = [row["psnr"] > 47.08 for row in rows]
    assert sum(exact) >= 4 and {row["bins_read"] for row in rows} <= {1, 2}
    summary = leak_summary.summarise(result, scored(result))
    (line,) = [line for line in upload_lines(summary) if line.startswith("none")]
    assert "of the 2 images of an upload" in line
    assert "average upload of several clients on 2 examples per victim, of 2" in (
        " ".join(threat_words(result.config))
    )


def test_noise_that_drowns_each_client_drowns_the_average():
    """What must fail: the same images, and the same attack."""
    result = study(
        attack="imprint",
        optimiser=None,
        victims=3,
        arms=("gaussian-noise=10",),
        **OF_TWO,
    )
    rows = [row for row in scored(result) if row["arm"] == "gaussian-noise=10"]
    assert len(rows) == 6
    assert not any(row["outcome"].startswith("recovered") for row in rows)


@pytest.mark.slow
def test_an_average_of_one_client_is_that_client():
    one, averaged = (
        scored(study(labels="given", **more)) for more in ({}, {"average_clients": 1})
    )
    assert numbers_of(one) == numbers_of(averaged)


def test_what_each_client_sent_before_is_on_no_record():
    with pytest.raises(ValueError, match="earlier=1: of an average"):
        tiny(average_clients=2, earlier=1)


def test_more_clients_than_there_are_examples_for_are_named():
    message = "victims=2 of average_clients=1000, each examples=1 are 2000 inputs"
    with pytest.raises(ValueError, match=message):
        build_study(tiny(victims=2, average_clients=1000))


def test_sweeps_go_over_the_number_of_clients():
    grid = expand(
        parse_sweep(
            {
                "fixed": {"arm": "none", "model": "dense", "image_size": 8},
                "axes": {"average_clients": [1, 2, 4]},
            }
        )
    )
    assert [cell.config.average_clients for cell in grid.cells] == [1, 2, 4]
    assert [cell.config.victim_examples for cell in grid.cells] == [1, 2, 4]
    assert len({cell.id for cell in grid.cells}) == 3


# --- of a run ----------------------------------------------------------------------

RUN = TrainConfig(
    model="dense",
    image_size=8,
    examples=40,
    test_examples=20,
    public_examples=0,
    clients=3,
    rounds=1,
    batch=4,
    local_steps=2,
    private_key_size=16,
    init=0.3,
    keep_rounds=(0, 1),
    arms=("keylock",),
    roles=("0:cgi",),  # what it reads is the average of the others, in round 1
    floor=False,
    layout=Layout("loop"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs") / "run"
    with quick_compilation():
        training.train(RUN, place)
    return str(place)


def of_run(folder, **changes):
    given = {"from_run": folder, "victims": 1, "steps": 2, "optimiser": "adam"}
    given |= {"client": 1, "average_clients": 2, "labels": "given"}
    given |= {"layout": Layout("loop"), "arms": ("keylock/known",)}
    return LeakConfig(**given | changes)


@pytest.mark.slow
def test_changes_of_a_runs_clients_are_averaged_each_under_its_own_key(folder):
    with quick_compilation():
        result = leak(
            of_run(folder, upload="update", client_optimiser="fresh", round=1)
        )
    (arm,) = result.arms
    # Whoever knows both private keys, and the lock weights, replays the average.
    assert arm.attacked.replay_is_exact.all()
    assert result.victims.indices.shape == (1, 2 * 8)
    setup = build_study(of_run(folder)).captured.setup
    for client, own in zip(
        (1, 2), result.victims.indices[0].reshape(2, 8), strict=True
    ):
        assert set(own) <= set(setup.partition[client].tolist())


@pytest.mark.slow
def test_clients_that_a_run_does_not_have_are_refused(folder):
    with pytest.raises(ValueError, match="client=2 with average_clients=2 does not"):
        build_study(of_run(folder, client=2))
    with pytest.raises(ValueError, match="client=0 .* is an attacker itself .0:cgi"):
        build_study(of_run(folder, client=0))


# --- over devices ------------------------------------------------------------------

DEVICES = """
import sys
import jax, numpy as np
from kljax.parallel import Layout
from tiny_studies import quick_compilation, tiny
from kljax.studies.leakage import leak
assert jax.local_device_count() == int(sys.argv[2])
with quick_compilation():
    result = leak(tiny(
        victims=9, average_clients=3, labels="given", arms=("keylock/regress_gates",),
        layout=Layout("sharded", 1),
    ))
found = result.arms[0].attacked.reconstruction
np.savez(sys.argv[1], inputs=found.inputs, loss=found.loss)
"""


@pytest.mark.slow
def test_eight_devices_find_what_one_finds(tmp_path):
    found = []
    for devices in (1, 8):
        path = tmp_path / f"{devices}.npz"
        flags = {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "PYTHONPATH": SEARCH_PATH,
        }
        subprocess.run(
            [sys.executable, "-c", DEVICES, str(path), str(devices)],
            env=os.environ | flags,
            check=True,
            timeout=600,
        )
        found.append(dict(np.load(path)))
    one, eight = found
    assert len(one["loss"]) == 9 and len(set(one["loss"].tolist())) == 9
    for name in one:
        np.testing.assert_allclose(one[name], eight[name], rtol=1e-4, atol=1e-5)
