"""Devices: the four numbers that the cost model knows of one, and their measurement.

A calibration takes seconds, and is remembered in the user's cache folder, for each
model of processor apart: machines may share a home.
"""

import dataclasses
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljax.core import files
from kljax.core.places import cache_folder
from kljax.core.types import Array
from kljax.models.convolution import choose_form, matmul_convolution
from kljax.parallel import Layout, chunk_program
from kljax.studies.cost import Device, count_operations

# Of what a calibration measures and counts: older ones in the cache are not read.
VERSION = 2
SECONDS = 0.2  # that each measurement of a calibration lasts


class Sizes(NamedTuple):
    """What a calibration multiplies and moves.

    Attributes:
      side: rows, columns and depth of the large product.
      few, many: victims of a layer whose operations are about as large as a cache, and
        of one whose are larger. On a CPU they were chosen for what they predict, see
        experiments/scale.md.
    """

    side: int
    few: int
    many: int


CPU_SIZES, OTHER_SIZES = Sizes(1024, 48, 512), Sizes(4096, 512, 4096)
ROWS, DEPTH, COLUMNS = 64, 300, 12  # of the narrow products of the layer
CALIBRATING = "measuring this kind of device for the cost model, once"
REPEATS = 20  # within a call, so that calling costs nothing


def calibrate() -> Device:
    """Measures one device, in some ten seconds, most of them compiling.

    A large product and narrow ones give the peak and the half width. A layer as
    LeNet's second, a convolution with its gradients, gives the bandwidths: bytes over
    the time that its products and launches leave, for a few victims and for many. The
    convolution is `matmul` whatever is fastest: its patches are what it moves.

    On a CPU it is processor time, and so that of one core, whatever else the machine
    does meanwhile; elsewhere it is the clock's.
    """
    cpu = jax.default_backend() == "cpu"
    side, few, many = CPU_SIZES if cpu else OTHER_SIZES
    peak = _products(1, side, side, side)
    narrow = _products(few, ROWS, DEPTH, COLUMNS)
    # Sums that cannot be fused, of next to nothing.
    launch = 1 / _rate(jnp.cumsum, 1, (8,))
    device = Device(
        name=device_model(),
        peak=peak,
        half_width=max(0.0, COLUMNS * (peak / narrow - 1)),
        near=1.0,
        far=1.0,
        cache=_cache_bytes() / 2 if cpu else 0.0,
        launch=launch,
        source=f"calibrated {time.strftime('%Y-%m-%d')}",
        backend=jax.default_backend(),
    )
    near, far = (_bandwidth(device, victims) for victims in (few, many))
    return dataclasses.replace(device, near=max(near, far), far=far)


def device_model() -> str:
    """Names the model of the device at hand; of a CPU that hides it, the machine."""
    if jax.default_backend() != "cpu":
        return jax.local_devices()[0].device_kind
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return next(filter(None, models), f"{platform.machine()} {platform.node()}")


def _cache_bytes() -> float:
    """Gives the size of a core's second cache; a usual one where it is not told."""
    try:
        return os.sysconf("SC_LEVEL2_CACHE_SIZE") or 2**21
    except (ValueError, OSError):
        return 2**21


def _products(batch: int, rows: int, depth: int, columns: int) -> float:
    """Measures floating-point operations per second in products of a shape."""
    right = jnp.full((batch, depth, columns), 1 / depth)

    def multiply(left: Array) -> Array:
        made = jnp.einsum("brd,bdc->brc", left, right, precision="highest")
        # All of the product is needed for the next one.
        return left.at[:, :, :columns].set(made)

    flops = 2 * batch * rows * depth * columns
    return _rate(multiply, flops, (batch, rows, depth))


def _layer(maps: Array) -> Array:
    """Moves maps [N, 16, 16, 12] along the gradient of a convolution of each."""

    def loss(maps: Array, kernel: Array) -> Array:
        made = matmul_convolution(
            maps[None],
            kernel,
            window_strides=(2, 2),
            padding=((2, 2), (2, 2)),
            dimension_numbers=jax.lax.conv_dimension_numbers(
                (1, 16, 16, 12), kernel.shape, ("NHWC", "HWIO", "NHWC")
            ),
            precision="highest",
        )
        return jnp.sum(jax.nn.sigmoid(made))

    def one(maps: Array) -> Array:
        kernel = jnp.einsum("hwc,f->hwcf", maps[:5, :5], maps[0, 0]) / DEPTH
        slope, of_kernel = jax.grad(loss, (0, 1))(maps, kernel)
        return maps - 1e-3 * (slope + jnp.sum(of_kernel))

    return chunk_program(one, Layout("vmap"))(maps)


def _bandwidth(device: Device, victims: int) -> float:
    shape = victims, 16, 16, 12
    operations = count_operations(_layer, jax.ShapeDtypeStruct(shape, np.float32))
    seconds = 1 / _rate(_layer, 1, shape)
    others = sum(
        one.times * device.multiplying(one.flops, one.width)
        + one.times * device.launch * (one.kind != "arithmetic")
        for one in operations
    )
    moved = sum(one.times * one.nbytes for one in operations if one.kind != "product")
    # Were the rest nothing but noise, memory would still take a part.
    return moved / max(seconds - others, seconds / 10)


def _rate(fn: Callable[[Array], Array], work: float, shape: tuple[int, ...]) -> float:
    """Measures units of work per second, the median of five."""

    def repeated(x: Array) -> Array:
        def once(x: Array, _: None) -> tuple[Array, None]:
            return jax.lax.optimization_barrier(fn(x)), None

        return jax.lax.scan(once, x, length=REPEATS)[0]

    x = jnp.asarray(np.random.default_rng(0).random(shape, np.float32))
    run = jax.jit(repeated).lower(x).compile()
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    jax.block_until_ready(run(x))
    rates = []
    for _ in range(5):
        calls, start, until = 0, clock(), time.perf_counter() + SECONDS / 5
        while time.perf_counter() < until:
            jax.block_until_ready(run(x))
            calls += 1
        rates.append(work * REPEATS * calls / (clock() - start))
    return statistics.median(rates)


def this_device(
    place: Path | None = None, on_calibrate: Callable[[], Any] = lambda: None
) -> Device:
    """Reads what is known of a device; calibrates the one at hand the first time.

    Args:
      place: JSON file that says it; None for the one of this model of device in the
        user's cache folder (``XDG_CACHE_HOME``, ``~/.cache``), which is written if it
        is not there.
      on_calibrate: called before a calibration.

    Raises:
      OSError: for a file that cannot be read.
      ValueError: for a file that holds something else.
    """
    if place is not None:
        return read_device(place)
    model = device_model().lower()
    name = "".join(letter if letter.isalnum() else "-" for letter in model)
    kind = f"{jax.default_backend()}-{name}-v{VERSION}"
    place = cache_folder() / f"device-{kind}.json"
    if place.exists():
        return read_device(place)
    on_calibrate()
    device = calibrate()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(place, dataclasses.asdict(device))
    except OSError:
        pass  # measured again the next time
    return device


def read_device(place: Path) -> Device:
    """Reads a device from a JSON file.

    Raises:
      OSError: for a file that cannot be read.
      ValueError: for a file that holds something else.
    """
    text = place.read_text(encoding="utf-8")
    try:
        return Device(**json.loads(text))
    except (TypeError, ValueError) as error:
        names = ", ".join(field.name for field in dataclasses.fields(Device))
        raise ValueError(
            f"{place} does not describe a device ({error}): expected a JSON object "
            f"of {names}"
        ) from error


def basis(each: float, whole: float, victims: int, device: Device) -> str:
    """Says what the cost model predicts, and by which numbers.

    Args:
      each: seconds per victim on one device.
      whole: of all victims on the devices at hand.
      victims: how many.
      device: that the prediction is for.
    """
    return (
        f"by the cost model about {each:.2g} s per victim on one device (of a CPU, one "
        f"core), {whole:.2g} s for all {victims} with nothing else running; not in it: "
        f"compiling, copies to and from the device, scoring. Convolutions that are "
        f"auto count as {choose_form(device.backend)}. Device {device.name}, "
        f"{device.source}: {device.peak / 1e9:.3g} GFLOP/s, half of it at products "
        f"{device.half_width:.3g} wide, {device.near / 1e9:.3g} GB/s, "
        f"{device.far / 1e9:.3g} GB/s beyond {device.cache / 2**20:.3g} MiB, "
        f"{device.launch * 1e6:.2g} us an operation"
    )
