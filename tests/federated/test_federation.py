"""The client axis over devices and processes: all of them give the same aggregate."""

import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from search_path import SEARCH_PATH
from tiny_studies import quick_compilation

from kljax.parallel import Layout, fastest_layout, sum_clients


def tripled(shared, client, x):
    """Sums 3 x over clients; each client keeps its own square."""
    return {"sum": shared * x}, {"square": x**2, "client": client}


def run(layout, count, blocks=None):
    x = np.arange(2.0 * count, dtype=np.float32).reshape(count, 2)
    kept = {}

    def keep(ids, values):
        assert len(values["square"]) == len(ids)
        np.testing.assert_array_equal(values["client"], ids)
        kept.update(zip(ids.tolist(), values["square"], strict=True))

    call = sum_clients(tripled, layout)
    sums, timing = call(
        np.float32(3.0),
        np.arange(count),
        lambda ids: (ids.astype(np.int32), x[ids]),
        keep,
        None if blocks is None else blocks.append,
    )
    return x, sums["sum"], kept, timing


EVERY_LAYOUT = (
    Layout("loop"),
    Layout("chunked", 2),
    Layout("vmap"),
    Layout("sharded", 2),
    Layout("sharded_loop", 3),
)


@pytest.mark.parametrize("layout", EVERY_LAYOUT, ids=lambda layout: layout.kind)
@pytest.mark.parametrize("count", [1, 5, 8])
def test_any_number_of_clients_is_summed_once_each(layout, count):
    blocks = []
    x, total, kept, timing = run(layout, count, blocks)
    np.testing.assert_allclose(total, 3 * x.sum(axis=0), rtol=1e-6)
    assert sorted(kept) == list(range(count))
    for client, square in kept.items():
        np.testing.assert_array_equal(square, x[client] ** 2)
    assert blocks == sorted(blocks) and blocks[-1] == count
    assert timing.compilations == 1


def test_fillers_that_break_are_not_summed():
    def one(shared, x):
        return {"sum": shared / x}, ()

    rows = []

    def fetch(ids):
        rows.append(ids.tolist())
        values = np.ones(len(ids), np.float32)
        if len(rows) == 2:
            values[1:] = 0.0  # the second block has one client and fillers
        return (values,)

    call = sum_clients(one, Layout("chunked", 2))
    sums, _ = call(np.float32(1.0), np.arange(3), fetch, lambda ids, kept: None)
    assert rows == [[0, 1], [2, 2]]
    assert sums["sum"] == 3.0


def test_bad_calls_are_refused():
    call = sum_clients(tripled, Layout("loop"))
    with pytest.raises(ValueError, match="cohort is empty"):
        call(np.float32(1), np.arange(0), None, None)


@pytest.mark.parametrize(
    ("backend", "victims", "clients"),
    [
        ("cpu", Layout("sharded_loop", 8), Layout("sharded_loop", 8)),
        ("gpu", Layout("sharded", 64), Layout("sharded", 16)),
        ("tpu", Layout("sharded", 8), Layout("sharded", 8)),
    ],
)
def test_defaults_follow_the_backend(monkeypatch, backend, victims, clients):
    """As measured in experiments/speed/federated.md."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert fastest_layout("victims") == victims
    assert fastest_layout("clients") == clients


def test_memory_holds_two_blocks_however_many_clients_there_are():
    size = 50_021  # prime: no array that another test left behind is that wide
    live = []

    def one(shared, x):
        return {"sum": shared * x.sum()}, {"x": x + 1}

    def fetch(ids):
        # The block before may still be there; the one before that may not.
        ours = (a.nbytes for a in jax.live_arrays() if a.shape[-1:] == (size,))
        live.append(sum(ours))
        return (np.ones((len(ids), size), np.float32),)

    call = sum_clients(one, Layout("chunked", 2))
    peaks = {}
    for count in (8, 64):
        live.clear()
        call(np.float32(1), np.arange(count), fetch, lambda ids, kept: None)
        peaks[count] = max(live)
    block = 2 * size * 4
    assert block <= peaks[64] <= 5 * block
    assert peaks[64] == peaks[8]


# ---- whole rounds, on eight devices and in two processes -----------------------

ROUNDS = """
import sys
import jax, numpy as np
out, process, address = sys.argv[1:]
jax.config.update("jax_default_matmul_precision", "highest")
if address:
    jax.distributed.initialize(address, num_processes=2, process_id=int(process))
from kljax.parallel import Layout
from tiny_studies import quick_compilation
import test_rounds
with quick_compilation():
    layout = Layout("sharded_loop", 1)
    server, states, infos = test_rounds.play(
        test_rounds.locked(layout), test_rounds.client_data(), **test_rounds.SAMPLED
    )
leaves = jax.tree.leaves((server.public, server.stats))
kernel = states.private.trainable[0]["scale"]["kernel"]
np.savez(f"{out}/{process}.npz", *leaves, states=kernel)
print("devices", jax.device_count(), "processes", jax.process_count())
print("loss", infos[2].loss)
"""


def start(tmp_path, process, devices, address=""):
    flags = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": SEARCH_PATH,
        "JAX_PLATFORMS": "cpu",
    }
    return subprocess.Popen(
        [sys.executable, "-c", ROUNDS, str(tmp_path), str(process), address],
        env=os.environ | flags,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(processes):
    outputs = []
    try:
        for process in processes:
            outputs.append(process.communicate(timeout=240)[0])
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    return outputs


def leaves_of(path):
    with np.load(path) as saved:
        return {name: saved[name] for name in saved.files}


def expected():
    import test_rounds

    with quick_compilation():
        server, states, infos = test_rounds.reference(sampled=True)
    leaves = jax.tree.leaves((server.public, server.stats))
    return leaves, states.private.trainable[0]["scale"]["kernel"], infos


@pytest.mark.slow
def test_eight_devices_give_the_same_rounds(tmp_path):
    # At most three clients at a time: five devices and more run fillers.
    (output,) = finish([start(tmp_path, 0, devices=8)])
    assert "devices 8 processes 1" in output
    found = leaves_of(tmp_path / "0.npz")
    leaves, lock, _ = expected()
    np.testing.assert_allclose(found.pop("states"), lock, atol=1e-6)
    for one, other in zip(found.values(), leaves, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_two_processes_give_the_same_rounds(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    outputs = finish([start(tmp_path, p, 1, address) for p in (0, 1)])
    leaves, lock, infos = expected()
    for process, output in enumerate(outputs):
        assert "devices 2 processes 2" in output
        loss = float(output.rsplit("loss ")[-1])
        assert loss == pytest.approx(infos[2].loss, abs=1e-5)
        found = leaves_of(tmp_path / f"{process}.npz")
        mine = found.pop("states")
        # Each process holds the states of its own clients: every second one.
        np.testing.assert_allclose(mine[process::2], lock[process::2], atol=1e-6)
        assert np.abs(mine[1 - process :: 2] - lock[1 - process :: 2]).max() > 1e-4
        for one, other in zip(found.values(), leaves, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
