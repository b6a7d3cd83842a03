"""The cost model: counts by hand, and what it predicts of a device made up."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from kljax import cli
from kljax.parallel import Layout
from kljax.studies import devices
from kljax.studies.cost import Device, Operation, chunk_operations, count_operations
from kljax.studies.cost import predict as predicted

# A product of width 10 reaches half of 1e9; the first 100 bytes are free of charge.
DEVICE = Device(
    "made up", 1e9, 10, near=1e12, far=1e6, cache=100, launch=1e-3, source=""
)


def of_kind(kind, operations):
    return [one for one in operations if one.kind == kind]


def test_products_are_counted_by_hand():
    left, right = jnp.ones((5, 7, 11)), jnp.ones((5, 11, 3))
    (one,) = count_operations(
        lambda x, y: jnp.einsum("brd,bdc->brc", x, y), left, right
    )
    assert one == Operation("product", 1, 2 * 5 * 7 * 11 * 3, 3, 4 * 5 * (77 + 33 + 21))


def test_loops_count_as_often_as_they_run():
    def program(x):
        def step(x, _):
            return jax.lax.fori_loop(0, 4, lambda i, x: jnp.tanh(x @ x), x), None

        return jax.lax.scan(step, x, length=3)[0]

    operations = count_operations(program, jnp.ones((6, 6)))
    (product,) = of_kind("product", operations)
    assert (product.times, product.flops) == (12, 2 * 6**3)
    assert sum(o.times * (o.nbytes == 4 * 36) for o in operations) >= 12  # tanh


def test_the_dearest_branch_counts():
    def program(x, first):
        return jax.lax.cond(first, lambda x: x + 1, lambda x: x @ x, x)

    kinds = [o.kind for o in count_operations(program, jnp.ones((8, 8)), True)]
    assert kinds.count("product") == 1


def test_convolutions_count_as_their_products():
    images, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((5, 5, 3, 12))

    def program(images, kernel):
        return jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    (one,) = of_kind("product", count_operations(program, images, kernel))
    assert one.flops == 2 * 2 * 8 * 8 * 75 * 12 and one.width == 12


def test_a_prediction_is_the_larger_of_arithmetic_and_memory():
    narrow = Operation("product", 2, flops=1_000_000, width=10, nbytes=100)
    assert predicted([narrow], DEVICE).seconds == pytest.approx(2 * (2e-3 + 1e-3))
    moved = Operation("move", 1, 0, 0, nbytes=1_000_100)
    assert predicted([moved], DEVICE).seconds == pytest.approx(1 + 1e-3)
    fused = Operation("arithmetic", 1, 0, 0, nbytes=1_000_100)
    cost = predicted([narrow, moved, fused], DEVICE)
    assert cost.seconds == pytest.approx(6e-3 + 1.001 + 1)
    assert (cost.flops, cost.launches) == (2_000_000, 3)


@pytest.mark.parametrize("kind", ["sharded", "sharded_loop"])
def test_a_chunk_has_the_draws_and_the_work_of_its_victims(kind):
    def draw(source):
        return source["scale"] * jnp.ones((4, 4)) @ jnp.ones((4, 4))

    def attack(network, source, image):
        return network @ image

    given = {"scale": jnp.ones(9)}, jnp.ones((9, 4, 2))
    operations = chunk_operations(attack, Layout(kind, 5), given, draws=(draw,))
    assert predicted(operations, DEVICE).flops == 5 * 2 * (4**3 + 4 * 4 * 2)


def test_a_device_is_calibrated_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(devices, "CPU_SIZES", devices.Sizes(64, 2, 4))
    monkeypatch.setattr(devices, "SECONDS", 0.01)
    told = []
    device = devices.this_device(on_calibrate=lambda: told.append("once"))
    assert told == ["once"]
    (file,) = (tmp_path / "kljax").iterdir()
    assert file.name == "device-cpu.json"
    assert json.loads(file.read_text()) == dataclasses.asdict(device)
    monkeypatch.setattr(devices, "calibrate", lambda: 1 / 0)
    assert devices.this_device() == device
    file.write_text("{}")
    with pytest.raises(ValueError, match="expected a JSON object of name, peak"):
        devices.this_device()


@pytest.mark.parametrize(
    ("field", "value"),
    [("peak", 0), ("near", float("nan")), ("launch", -1), ("far", "fast")],
)
def test_what_no_device_is_like_is_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} of device 'made up' must be"):
        dataclasses.replace(DEVICE, **{field: value})


def made_up(tmp_path, **changes):
    device = tmp_path / "device.json"
    told = dataclasses.asdict(dataclasses.replace(DEVICE, **changes))
    device.write_text(json.dumps(told))
    return ["--dry-run", "--device", str(device)]


def test_a_leak_says_what_it_would_take(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = ["leak", "--model", "dense", "--image-size", "8", "--arms", "none"]
    seconds = []
    for steps in (100, 200):
        options = [*study, "--steps", str(steps), *made_up(tmp_path)]
        assert cli.main(options) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "for all 16 with nothing else running" in said and "made up" in said
        seconds.append(float(said.split("model about ")[1].split(" s per")[0]))
    assert 1.8 < seconds[1] / seconds[0] < 2.2
    assert [path.name for path in tmp_path.iterdir()] == ["device.json"]


def test_a_device_that_is_none_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = made_up(tmp_path)
    (tmp_path / "device.json").write_text("[]")
    study = ["leak", "--model", "dense", "--image-size", "8", "--arms", "none"]
    assert cli.main([*study, *options]) == 2
    assert "device.json does not describe a device" in capsys.readouterr().err
    assert cli.main([*study, *options[:-1], "elsewhere.json"]) == 2
    assert "elsewhere.json" in capsys.readouterr().err
