"""Checkpoints: whole or not at all, both or none, and back as they were."""

import jax
import numpy as np
import optax
import pytest
import test_rounds
from tiny_studies import quick_compilation
from toys import LOCK, toy_model

from kljax.core.types import Private, Public
from kljax.federated import checkpoints
from kljax.federated.algorithms import fedkl
from kljax.federated.clients import ClientState
from kljax.federated.server import ServerState
from kljax.models.losses import cross_entropy


def server(number=0, value=1.0):
    params = {"fc/kernel": np.full((2, 3), value, np.float32)}
    memory = optax.sgd(1.0, momentum=0.5).init(Public(params))
    stats = {"norm/mean": np.float32([np.nan, -0.0])}
    return ServerState(Public(params), stats, memory, np.asarray(number, np.int32))


def clients(value=1.0):
    lock = ({"bias": np.ones((2, 1), np.float32)},)
    private = Private(np.full((2, 4), value, np.float32), lock)
    return ClientState(private, (), ())


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def test_states_come_back_bit_by_bit_and_can_be_written_in_place(tmp_path):
    checkpoints.save(tmp_path, server(3, 0.1), clients(0.7))
    assert checkpoints.saved(tmp_path) == [3]
    read = checkpoints.restore(tmp_path, 3, server(), clients())
    assert_same(read, (server(3, 0.1), clients(0.7)))
    read[1].private.secret[0] = 5
    shapes = jax.eval_shape(lambda: (server(), clients()))
    assert_same(
        checkpoints.restore(tmp_path, 3, *shapes), (server(3, 0.1), clients(0.7))
    )


def test_clients_without_anything_of_their_own(tmp_path):
    nothing = ClientState(Private(), (), ())
    checkpoints.save(tmp_path, server(1), nothing)
    assert_same(checkpoints.restore_clients(tmp_path, 1, nothing), nothing)


def test_older_rounds_are_removed_unless_kept(tmp_path):
    for number in range(5):
        checkpoints.save(tmp_path, server(number), clients(), keep=(0, 2))
    assert checkpoints.saved(tmp_path) == [0, 2, 4]
    checkpoints.save(tmp_path, server(4, 9.0), clients(), keep=(0, 2))
    read = checkpoints.restore_server(tmp_path, 4, server())
    assert_same(read, server(4, 9.0))
    for part in checkpoints.PARTS:
        names = {path.name for path in (tmp_path / part).iterdir()}
        assert names == {"0", "2", "4"}


def test_a_round_counts_once_it_is_in_both(tmp_path, monkeypatch):
    checkpoints.save(tmp_path, server(1), clients(), keep=(9,))
    write = checkpoints._write

    def cut_off(path, tree):
        if path.parent.name == "server":
            raise KeyboardInterrupt
        write(path, tree)

    monkeypatch.setattr(checkpoints, "_write", cut_off)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(tmp_path, server(2), clients(), keep=(9,))
    assert (tmp_path / "clients" / "2").is_dir()
    assert checkpoints.saved(tmp_path) == [1]
    # What a killed writer or remover leaves lying about.
    for name in ("2.orbax-checkpoint-tmp", "0" + checkpoints.ASIDE):
        (tmp_path / "server" / name).mkdir()
    assert checkpoints.saved(tmp_path) == [1]
    checkpoints.prune(tmp_path, 1)
    for part in checkpoints.PARTS:
        assert [path.name for path in (tmp_path / part).iterdir()] == ["1"]
    monkeypatch.undo()
    checkpoints.save(tmp_path, server(2), clients())
    assert checkpoints.saved(tmp_path) == [2]


def test_what_does_not_fit_is_named(tmp_path):
    checkpoints.save(tmp_path, server(1), clients())
    with pytest.raises(FileNotFoundError, match="round 4 .* there are 1"):
        checkpoints.restore(tmp_path, 4, server(), clients())
    with pytest.raises(FileNotFoundError, match="there are none"):
        checkpoints.restore(tmp_path / "nowhere", 4, server(), clients())
    other = server()._replace(stats={"norm/var": np.zeros(2, np.float32)})
    with pytest.raises(ValueError, match="missing .*norm/var.*unknown .*norm/mean"):
        checkpoints.restore_server(tmp_path, 1, other)
    wider = server()._replace(stats={"norm/mean": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match=r"norm/mean' is float32\(2,\) there, .*\(3,"):
        checkpoints.restore_server(tmp_path, 1, wider)
    precise = server()._replace(stats={"norm/mean": np.zeros(2)})
    with pytest.raises(ValueError, match="float32.* there, float64"):
        checkpoints.restore_server(tmp_path, 1, precise)


def test_the_servers_folder_holds_no_secret(tmp_path):
    """By name and by value: neither private keys nor lock weights."""
    rounds = fedkl(toy_model(), cross_entropy, optax.sgd(0.1, momentum=0.9), lock=LOCK)
    with quick_compilation():
        state = rounds.init(jax.random.key(0))
        mine = rounds.init_clients(jax.random.key(0), state, 3)
        # Trained and aggregated once: at the start nothing has been uploaded yet.
        data = test_rounds.client_data(clients=3)
        fetch = test_rounds.fetch_from(data)
        state, _ = rounds.run_round(jax.random.key(0), state, mine, np.arange(3), fetch)
    state = jax.device_get(state)
    checkpoints.save(tmp_path, state, mine)
    with checkpoints._checkpointer() as reader:
        stored = reader.restore((tmp_path / "server" / "1").resolve())
        theirs = reader.restore((tmp_path / "clients" / "1").resolve())
    assert "public/model/fc/kernel" in stored
    assert not any("private" in name for name in stored)
    assert "private/secret" in theirs
    wire = b"".join(array.tobytes() for array in stored.values())
    numbers = np.concatenate([x.ravel() for x in jax.tree.leaves(mine.private)])
    assert len(numbers) > 50
    for number in numbers[numbers != 0]:
        assert number.tobytes() not in wire
    # The search finds what is there.
    assert state.public.model["fc/kernel"][0, 0].tobytes() in wire
