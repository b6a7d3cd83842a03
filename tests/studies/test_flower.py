"""Flower: a mod that applies defences, and a strategy that keeps uploads."""

import types

import numpy as np
import pytest

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, Context, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from kljax import defences, flower
from kljax.core.randomness import draw_system_rng
from kljax.core.types import Public

RECEIVED = {
    "fc.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bn.num_batches_tracked": np.asarray(3),
}
CHANGE = np.array([[0.5, -0.1, 0.02], [-2.0, 0.3, 0.01]], np.float32)


def record(arrays):
    return ArrayRecord({name: Array(x) for name, x in arrays.items()})


def message(arrays, *, node=7, **more):
    """Stands for a message; Flower makes its own within a run alone."""
    content = RecordDict({"arrays": record(arrays), **more})
    metadata = types.SimpleNamespace(src_node_id=node)
    return types.SimpleNamespace(
        content=content, metadata=metadata, has_error=lambda: False
    )


def context(node=7):
    return Context(1, node, {}, RecordDict(), {})


def train(received, context):
    """Is a client that trains in place, as PyTorch's do."""
    (arrays,) = received.content.array_records.values()
    trained = {n: x.numpy().copy() for n, x in arrays.items()}
    trained["fc.weight"] = trained["fc.weight"] + CHANGE
    trained["bn.num_batches_tracked"] = np.asarray(4)
    metrics = MetricRecord({"num-examples": 1})
    return message(trained, metrics=metrics)


def sent(mod, at):
    reply = mod(message(RECEIVED), at, train)
    arrays = {n: x.numpy() for n, x in reply.content["arrays"].items()}
    assert reply.content["metrics"]["num-examples"] == 1
    assert arrays["bn.num_batches_tracked"] == 4
    return arrays["fc.weight"] - RECEIVED["fc.weight"]


def test_a_mod_does_to_the_change_what_the_defence_does():
    clipped = sent(flower.defence_mod("norm-clipping=1"), context())
    np.testing.assert_allclose(clipped, CHANGE / np.linalg.norm(CHANGE), atol=1e-6)
    same = sent(flower.defence_mod("norm-clipping@update=1"), context())
    np.testing.assert_array_equal(same, clipped)
    half = defences.Defence(
        release=lambda rng, state, grads, context: (
            Public({n: x / 2 for n, x in grads.model.items()}),
            state,
        )
    )
    halved = sent(flower.defence_mod(half), context())
    np.testing.assert_allclose(halved, CHANGE / 2, atol=1e-6)


def test_noise_is_drawn_anew_by_each_client_and_in_each_round():
    mod = flower.defence_mod("gaussian-noise=0.1", seed=0)
    here, there = context(1), context(2)
    draws = [sent(mod, here), sent(mod, here), sent(mod, there)]
    draws += [sent(flower.defence_mod("gaussian-noise=0.1"), context(1))]
    noises = [draw - CHANGE for draw in draws]
    assert all(0.01 < np.std(noise) < 0.4 for noise in noises)
    for n, noise in enumerate(noises):
        for other in noises[:n]:
            assert np.abs(noise - other).max() > 0.01
    again = flower.defence_mod("gaussian-noise=0.1", seed=0)
    np.testing.assert_array_equal(sent(again, context(1)), draws[0])


def test_what_a_release_remembers_lives_in_flowers_context():
    def release(rng, state, grads, context):
        kept = {n: x + state[n] for n, x in grads.model.items()}
        return Public(kept), kept

    adding = defences.Defence(
        release=release,
        init_state=lambda grads: {n: 0 * x for n, x in grads.model.items()},
    )
    mod, at = flower.defence_mod(adding), context()
    np.testing.assert_allclose(sent(mod, at), CHANGE, atol=1e-6)
    other = flower.defence_mod(adding)  # another process, the same client
    np.testing.assert_allclose(sent(other, at), 2 * CHANGE, atol=1e-6)
    np.testing.assert_allclose(sent(other, context()), CHANGE, atol=1e-6)


@pytest.mark.parametrize(
    ("defence", "words"),
    [
        ("mixup", "inputs or its network"),
        ("precode", "inputs or its network"),
        ("dp-sgd=1,1", "gradient of each example"),
        ("selective-random=0.5", "hides entries"),
        ("soteria=0.5", "needs Context.features"),
        ("none", "only what changes"),
        ("keylock", "none are named"),
        ("gausian-noise=1", "did you mean 'gaussian-noise'"),
    ],
)
def test_what_a_mod_cannot_do_is_refused_by_name(defence, words):
    with pytest.raises(ValueError, match=words):
        flower.defence_mod(defence)


def test_arrays_that_do_not_fit_are_refused():
    mod = flower.defence_mod("norm-clipping=1")
    two = message(RECEIVED)
    two.content["more"] = record(RECEIVED)
    with pytest.raises(ValueError, match="2 array records"):
        mod(two, context(), train)

    def other(received, context):
        reply = train(received, context)
        reply.content["arrays"] = record({"x": np.zeros(3, np.float32)})
        return reply

    with pytest.raises(ValueError, match="arrays that were received"):
        mod(message(RECEIVED), context(), other)


def test_noise_without_a_seed_has_all_bits_of_the_systems_randomness(monkeypatch):
    drawn = []

    def draw():
        drawn.append(draw_system_rng())
        return drawn[-1]

    monkeypatch.setattr(flower, "draw_system_rng", draw)
    mod = flower.defence_mod("gaussian-noise=0.1")
    assert not np.array_equal(sent(mod, context()), sent(mod, context()))
    assert len(drawn) == 2


def test_a_strategy_keeps_the_uploads_of_chosen_rounds_and_aggregates(tmp_path):
    keeping = flower.KeepUploads(FedAvg(), tmp_path, rounds=(2,))
    for number in (1, 2):
        keeping._received = RECEIVED
        replies = [train(message(RECEIVED), None) for _ in range(2)]
        for node, reply in enumerate(replies):
            reply.metadata.src_node_id = node + 5
        arrays, _ = keeping.aggregate_train(number, iter(replies))
        found = arrays["fc.weight"].numpy()
        np.testing.assert_allclose(found, RECEIVED["fc.weight"] + CHANGE, atol=1e-6)
    kept = flower.kept_uploads(tmp_path)
    assert {number for number, _ in kept} == {2}
    for path in kept.values():
        change = np.load(path)
        assert change.files == ["fc.weight"]  # counters are no update
        np.testing.assert_allclose(change["fc.weight"], CHANGE, atol=1e-6)
    received = np.load(tmp_path / "round-2" / "received.npz")
    np.testing.assert_array_equal(received["fc.weight"], RECEIVED["fc.weight"])


# Flower simulates on Ray, whose processes begin as forks of this one; they run no JAX.
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
@pytest.mark.slow
def test_an_update_of_flowers_own_simulation_comes_back_as_its_image(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("RAY_worker_niceness", "0")
    import flower_app

    found, off, floor = flower_app.main(tmp_path, None, 600, 2)
    assert len(flower.kept_uploads(tmp_path)) == 2
    assert found.verdict.name in ("recovered", "likely") and off < floor / 3
