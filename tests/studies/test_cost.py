"""The cost model: counts by hand, and what it predicts of a device made up."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from kljax import cli
from kljax.models import implicit
from kljax.models.convolution import CONVOLUTIONS, choose_form
from kljax.models.convolution_maps import Geometry
from kljax.parallel import Layout
from kljax.studies import devices
from kljax.studies.builder.study import build_study
from kljax.studies.cost import Device, Operation, chunk_operations, count_operations
from kljax.studies.cost import predict as predicted
from kljax.studies.store.manifest import cells_of, make_manifest
from kljax.studies.sweeps import expand, read_sweep
from kljax.studies.sweeps.estimate import (
    predict_attack,
    predict_sweep,
    settle_convolution,
)

# A product of width 10 reaches half of 1e9; the first 100 bytes are free of charge.
DEVICE = Device(
    "made up", 1e9, 10, 1e12, 1e6, cache=100, launch=1e-3, source="", backend="cpu"
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


def layer_gradient(form, count, size, channels, features, window, stride):
    """Counts the gradient of a convolution in its images and its kernel."""
    pads = ((window // 2, window // 2),) * 2

    def loss(images, kernel):
        made = CONVOLUTIONS[form](
            images,
            kernel,
            window_strides=(stride, stride),
            padding=pads,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return jnp.sum(jnp.tanh(made))

    images = jnp.ones((count, size, size, channels))
    kernel = jnp.ones((window, window, channels, features))
    return count_operations(jax.grad(loss, (0, 1)), images, kernel)


@pytest.mark.parametrize(
    "layer",
    [(1, 32, 3, 12, 5, 2), (32, 16, 12, 12, 5, 2), (1, 8, 12, 12, 5, 1)]
    + [(8, 16, 16, 16, 3, 1)],
    ids=["first", "many examples", "stride 1", "ResNet-20"],
)
def test_all_forms_of_convolution_count_the_same_flops(layer):
    count, size, channels, features, window, stride = layer
    # The convolution and its two gradients are the same product.
    product = 2 * count * (size // stride) ** 2 * window**2 * channels * features
    for form in CONVOLUTIONS:
        operations = layer_gradient(form, *layer)
        ratio = predicted(operations, DEVICE).flops / (3 * product)
        # The gradient in the images by XLA, and as an implicit product, has stride^2
        # times as many, of zeros mostly. A bilinear map repeats its kernel by a small
        # product.
        most = (2 + stride**2) / 3 if form in ("lax", "implicit") else 1.2
        assert 1 <= ratio <= most, form
        products = sum(o.times for o in of_kind("product", operations))
        assert products >= 3, form


def test_an_implicit_product_counts_its_zeros_and_no_patches():
    """Of three victims, each with a kernel of its own: one product for all of them."""
    geometry = Geometry((2, 2), ((2, 2), (2, 2)), (16, 16), (5, 5))
    images, kernel = jnp.ones((3, 4, 16, 16, 6)), jnp.ones((3, 5, 5, 6, 12))

    def program(images, kernel):
        each = jax.vmap(lambda x, w: implicit.convolve(x, w, geometry))
        made, back = jax.vjp(each, images, kernel)
        return back(made)

    found = of_kind("product", count_operations(program, images, kernel))
    product = 2 * 3 * 4 * 8**2 * 5**2 * 6 * 12
    assert sorted(one.flops for one in found) == [product, product, 4 * product]
    sides = images.size + kernel.size + 3 * 4 * 8**2 * 12
    assert [one.nbytes for one in found] == 3 * [4 * sides]


def test_a_bilinear_map_moves_the_patches_of_its_form():
    def moved(count):
        operations = layer_gradient("bilinear", count, 16, 12, 12, 5, 2)
        return sum(o.nbytes for o in of_kind("move", operations)) / count

    patches = 4 * 8**2 * 5**2 * 12  # of one example, bytes
    # With many examples the gradient in the kernel is a convolution, without patches.
    assert moved(1) > patches > moved(32)


def test_a_calibration_counts_the_products_that_it_measures():
    shape = jax.ShapeDtypeStruct((48, 16, 16, 12), jnp.float32)
    operations = count_operations(devices._layer, shape)
    product = 2 * 48 * 8**2 * 300 * 12
    assert predicted(operations, DEVICE).flops >= 3 * product
    # What the bandwidth is taken from: patches, of which there are as many.
    assert sum(o.nbytes for o in of_kind("move", operations)) > 4 * 48 * 8**2 * 300


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
    monkeypatch.setattr(devices, "device_model", lambda: "Some CPU @ 2.1GHz")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(devices, "CPU_SIZES", devices.Sizes(64, 2, 4))
    monkeypatch.setattr(devices, "SECONDS", 0.01)
    told = []
    device = devices.this_device(on_calibrate=lambda: told.append("once"))
    assert told == ["once"]
    (file,) = (tmp_path / "kljax").iterdir()
    assert file.name == f"device-cpu-some-cpu---2-1ghz-v{devices.VERSION}.json"
    assert json.loads(file.read_text()) == dataclasses.asdict(device)
    other = dataclasses.replace(device, name="another")
    monkeypatch.setattr(devices, "calibrate", lambda: other)
    assert devices.this_device() == device
    file.write_text("{}")
    with pytest.raises(ValueError, match="expected a JSON object of name, peak"):
        devices.this_device()
    # Neither an older calibration nor that of another machine with the same home.
    monkeypatch.setattr(devices, "VERSION", devices.VERSION + 1)
    assert devices.this_device() == other
    monkeypatch.setattr(devices, "device_model", lambda: "Some other CPU")
    monkeypatch.setattr(devices, "calibrate", lambda: device)
    assert devices.this_device() == device


def test_the_model_of_a_cpu_is_what_its_system_says():
    lines = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if "model name" not in lines:
        pytest.skip("this system does not say it")
    assert devices.device_model() and f": {devices.device_model()}\n" in lines


@pytest.mark.parametrize(
    ("field", "value"),
    [("peak", 0), ("near", float("nan")), ("launch", -1), ("far", "fast")]
    + [("backend", "CPU")],
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


def gigaflops(said):
    """Reads the flops of the table's only arm."""
    (line,) = (line for line in said.splitlines() if line.strip().startswith("none"))
    return float(line.split()[1])


@pytest.mark.slow
def test_a_dry_run_counts_convolutions_in_the_form_of_its_device(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    study = ["leak", "--model", "lenet", "--arms", "none", "--steps", "100"]
    table = {}
    for backend, form in (("cpu", "auto"), ("gpu", "auto"), ("cpu", "matmul")):
        device = made_up(tmp_path, backend=backend)
        assert cli.main([*study, *device, "--convolution", form]) == 0
        said = capsys.readouterr().out
        (line,) = (x for x in said.splitlines() if x.strip().startswith("none"))
        table[backend, form] = line.split()
        fastest = "matmul" if backend == "gpu" else "bilinear"
        assert f"are auto count as {fastest}." in " ".join(said.split())
    assert table["gpu", "auto"] == table["cpu", "matmul"] != table["cpu", "auto"]
    ours, products = (float(table["cpu", form][1]) for form in ("auto", "matmul"))
    assert products <= ours <= 1.25 * products


@pytest.mark.slow
def test_a_sweep_is_predicted_in_the_form_of_the_device(tmp_path):
    file = tmp_path / "made-up.toml"
    file.write_text(
        '[fixed]\nmodel = "lenet"\nattack = "dlg"\nsteps = 10\nvictims = 2\n'
        '[axes]\narm = ["none"]\n'
    )
    sweep = read_sweep(file)
    manifest = make_manifest("made-up", sweep, expand(sweep), None)
    seconds = {}
    for name in ("cpu", "gpu"):
        device = dataclasses.replace(DEVICE, backend=name)
        seconds[name], _ = predict_sweep(manifest, Layout("vmap", 4), device)
        config = settle_convolution(cells_of(manifest)[0].config, device)
        assert config.convolution == choose_form(name)
        (attack,) = build_study(config).attacks
        alone = predict_attack(config, attack, Layout("vmap", 4), device).seconds
        assert seconds[name] == alone
    assert seconds["cpu"] != seconds["gpu"]


@pytest.mark.parametrize("command", [["leak"], ["sweep", "nowhere.toml"]])
def test_a_device_is_for_dry_runs_alone(command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*command, "--device", "h200.json"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "--device h200.json" in said and "--dry-run" in said
    assert not list(tmp_path.iterdir())
