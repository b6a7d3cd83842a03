"""A cost model: what a victim takes, counted in its traced program, and for how long.

Nothing is compiled or run. An operation takes as long as its arithmetic or its memory,
whichever is longer, and none is free (a roofline: Williams et al., CACM 2009):

    seconds = max(flops / (peak * w / (w + half_width)), moving) + launch
    moving = min(bytes, cache) / near + max(0, bytes - cache) / far

w is the smallest side of a matrix product: narrow ones do not reach the peak (the form
is Hockney's, who has lengths of vectors). `kljax.studies.devices` measures the numbers
of a device. Arithmetic that a compiler fuses into what follows counts as one pass over
its result, without a launch. A bilinear map of a convolution (`kljax.models.bilinear`)
moves what its form moves; its flops are those of the product that it is, without the
zeros that the form multiplies by. An implicit product (`kljax.models.implicit`) reads
its operands once, however often a cache is read, and its zeros count: a kernel that
multiplies them one by one takes as long for them. That was never held against a GPU.

What is left out: reading data, copies between host and device, tracing, compiling,
scoring. experiments/scale.md has predictions beside measurements.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from kljax.core.types import PyTree
from kljax.models import implicit
from kljax.models.bilinear import FORMS
from kljax.parallel import Layout, chunk_program

# Copies of arrays.
MOVES = {"pad", "concatenate", "gather", "sort", "scatter", "scatter-add", "cumsum"}
MOVES |= {"dynamic_slice", "dynamic_update_slice"}
READS_A_PART = {"gather", "dynamic_slice"}
# Another name for an array, or fused into whatever reads it.
FREE = {"reshape", "broadcast_in_dim", "squeeze", "expand_dims", "slice", "transpose"}
FREE |= {"rev", "convert_element_type", "iota", "stop_gradient", "copy"}
BACKENDS = ("cpu", "gpu", "tpu")


class Operation(NamedTuple):
    """Something that a program does, as often as `times`.

    Attributes:
      kind: ``product``, ``move``, ``sum`` or ``arithmetic``.
      flops: of a product; else 0.
      width: of a product, its smallest side; else 0.
      nbytes: read and written.
    """

    kind: str
    times: int
    flops: int
    width: int
    nbytes: int


@dataclasses.dataclass(frozen=True)
class Device:
    """What one device can do; of a CPU, one core.

    Attributes:
      name: kind of the device.
      peak: floating-point operations per second of a large product.
      half_width: smallest side of a product that reaches half of the peak.
      near, far: bytes per second of an operation, of the first `cache` and of the rest.
      cache: bytes.
      launch: seconds that an operation takes however small it is.
      source: where the numbers are from.
      backend: cpu, gpu or tpu, which chooses the form of convolution.

    Raises:
      ValueError: for another backend, and for a number out of its range: `peak`, `near`
        and `far` are positive, the others not negative.
    """

    name: str
    peak: float
    half_width: float
    near: float
    far: float
    cache: float
    launch: float
    source: str
    backend: str

    def __post_init__(self):
        if self.backend not in BACKENDS:
            raise ValueError(
                f"backend of device {self.name!r} must be one of "
                f"{', '.join(BACKENDS)}, got {self.backend!r}"
            )
        for field in ("peak", "near", "far", "half_width", "cache", "launch"):
            value, positive = getattr(self, field), field in ("peak", "near", "far")
            number = isinstance(value, (int, float)) and math.isfinite(value)
            if not number or value < 0 or positive and not value:
                raise ValueError(
                    f"{field} of device {self.name!r} must be a number "
                    f"{'above 0' if positive else 'of at least 0'}, got {value!r}"
                )

    def moving(self, nbytes: int) -> float:
        """Predicts the seconds of reading and writing so many bytes."""
        return min(nbytes, self.cache) / self.near + (
            max(0, nbytes - self.cache) / self.far
        )

    def multiplying(self, flops: int, width: int) -> float:
        """Predicts the seconds of a product's arithmetic."""
        return flops / (self.peak * width / (width + self.half_width)) if flops else 0.0


class Cost(NamedTuple):
    """What the program of a chunk of victims takes.

    Attributes:
      flops: in products.
      nbytes: read and written.
      launches: operations that are not fused into others.
      seconds: on one device.
    """

    flops: int
    nbytes: int
    launches: int
    seconds: float


def predict(operations: Iterable[Operation], device: Device) -> Cost:
    """Predicts what a program takes on one device."""
    flops = nbytes = launches = 0
    seconds = 0.0
    for one in operations:
        flops += one.times * one.flops
        nbytes += one.times * one.nbytes
        launches += one.times * (one.kind != "arithmetic")
        seconds += one.times * _seconds(one, device)
    return Cost(flops, nbytes, launches, seconds)


def _seconds(one: Operation, device: Device) -> float:
    seconds = max(device.multiplying(one.flops, one.width), device.moving(one.nbytes))
    return seconds + device.launch * (one.kind != "arithmetic")


def chunk_operations(
    fn: Callable[..., Any],
    layout: Layout,
    args: PyTree,
    *,
    draws: Iterable[Callable[..., PyTree]] = (),
    chunk: int | None = None,
) -> list[Operation]:
    """Lists what one device does for a chunk of victims.

    Args:
      fn, draws: of one victim, see `kljax.parallel.map_victims`.
      layout: how victims are run.
      args: of some victims, with their leading axis.
      chunk: how many; None for the layout's.
    """
    chunk = chunk or layout.chunk

    def shapes(x: Any, lead: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        dtype = jax.dtypes.canonicalize_dtype(x.dtype)
        return jax.ShapeDtypeStruct((*lead, *np.shape(x)[1:]), dtype)

    one = [jax.tree.map(lambda x: shapes(x, ()), arg) for arg in args]
    found: list[Operation] = []
    drawn: list[PyTree] = []
    for draw in draws:  # one after another
        own = count_operations(draw, one[0], *drawn)
        found += [o._replace(times=chunk * o.times) for o in own]
        drawn.append(jax.eval_shape(draw, one[0], *drawn))
    batch = jax.tree.map(lambda x: x.update(shape=(chunk, *x.shape)), (*drawn, *one))
    return found + count_operations(chunk_program(fn, layout), *batch)


def count_operations(fn: Callable[..., Any], *args: Any) -> list[Operation]:
    """Traces a program and lists what it does, largest loops included.

    Of branches the most expensive one counts. A loop whose length is not known counts
    once.

    Args:
      fn: the program of a chunk.
      args: arrays or their shapes.
    """
    return _operations(jax.make_jaxpr(fn)(*args).jaxpr, 1)


def _operations(jaxpr: Any, times: int) -> list[Operation]:
    found: list[Operation] = []
    for eqn in jaxpr.eqns:
        inner = _inner(eqn)
        often = times * eqn.params["length"] if eqn.primitive.name == "scan" else times
        if eqn.primitive.name == "cond":
            branches = [_operations(branch, often) for branch in inner]
            found += max(branches, key=lambda own: sum(o.times * o.nbytes for o in own))
        elif eqn.primitive.name in FORMS:
            found += _bilinear_operations(eqn, often)
        elif eqn.primitive.name.startswith(implicit.PREFIX):
            found.append(_implicit_operation(eqn, often))
        elif inner:
            for sub in inner:
                found += _operations(sub, often)
        elif eqn.primitive.name not in FREE:
            found.append(_operation(eqn, often))
    return found


def _inner(eqn: Any) -> list[Any]:
    """Lists the programs inside an equation, but those that reduce by one operation."""
    name = eqn.primitive.name
    if name.startswith(("reduce", "scatter", "select_and", "cum", "arg")):
        return []
    if name.startswith("custom_jvp"):  # its rule is another way to the same
        return [eqn.params["call_jaxpr"].jaxpr]
    found = []
    for value in eqn.params.values():
        for sub in value if isinstance(value, (tuple, list)) else (value,):
            sub = getattr(sub, "jaxpr", sub)
            found += [sub] if hasattr(sub, "eqns") else []
    return found


def bilinear_product(eqn: Any) -> tuple[int, int]:
    """Counts flops and smallest side of the product that a bilinear map is.

    Of images [B, H, W, C], a kernel [kh, kw, C, F] and results [B, h, w, F], the map
    is a product of [B h w, kh kw C] and [kh kw C, F], or one of its two gradients.

    Args:
      eqn: of a map of `kljax.models.convolution_maps`, in one of its forms. Victims, an
        axis before the letters, have a product each.
    """
    geometry, (left, right) = eqn.params["geometry"], (v.aval.shape for v in eqn.invars)
    inputs, outputs = left[-1], right[-1]
    if eqn.primitive.name.endswith("image_gradient"):
        inputs, outputs = right[-2], left[-1]
    pixels, window = math.prod(geometry.result), math.prod(geometry.kernel)
    sides = left[-4] * pixels, window * inputs, outputs
    return 2 * math.prod(left[:-4]) * math.prod(sides), min(sides)


def _bilinear_operations(eqn: Any, times: int) -> list[Operation]:
    form = functools.partial(FORMS[eqn.primitive.name], **eqn.params)
    found = _operations(jax.make_jaxpr(form)(*(v.aval for v in eqn.invars)).jaxpr, 1)
    (at,) = (i for i, one in enumerate(found) if one.kind == "product")
    flops, width = bilinear_product(eqn)
    # A gradient in a kernel is a product for each block of examples.
    flops //= found[at].times
    found[at] = found[at]._replace(flops=flops, width=width)
    return [one._replace(times=times * one.times) for one in found]


def _implicit_operation(eqn: Any, times: int) -> Operation:
    """Counts a product with its zeros; operands are read once, patches not written."""
    make = implicit.PRODUCTS[eqn.primitive.name.removeprefix(implicit.PREFIX)]
    left, right = (v.aval.shape for v in eqn.invars)
    product = make(left, right, eqn.params["geometry"])
    sides = product.rows, product.inner, product.columns
    nbytes = sum(_nbytes(v.aval) for v in (*eqn.invars, *eqn.outvars))
    flops = 2 * left[0] * math.prod(sides)  # victims have a product each
    return Operation("product", times, flops, min(sides), nbytes)


def _operation(eqn: Any, times: int) -> Operation:
    name = eqn.primitive.name
    read, written = (
        sum(_nbytes(v.aval) for v in vs) for vs in (eqn.invars, eqn.outvars)
    )
    if name == "dot_general":
        (contracting, _), (batched, _) = eqn.params["dimension_numbers"]
        left, right = (v.aval.shape for v in eqn.invars)
        batch = math.prod(left[axis] for axis in batched)
        depth = math.prod(left[axis] for axis in contracting)
        rows, columns = (math.prod(x) // max(1, batch * depth) for x in (left, right))
        flops = 2 * batch * rows * depth * columns
        width = min(rows, depth, columns)
        return Operation("product", times, flops, width, read + written)
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        outputs, groups = eqn.params["dimension_numbers"].rhs_spec[0], eqn.params
        width = kernel[outputs] // groups["feature_group_count"]
        depth = math.prod(kernel) // kernel[outputs]
        flops = 2 * depth * math.prod(eqn.outvars[0].aval.shape)
        return Operation("product", times, flops, min(width, depth), read + written)
    if name == "dynamic_update_slice":  # in place
        return Operation("move", times, 0, 0, 2 * _nbytes(eqn.invars[1].aval))
    if name in MOVES or name.startswith("select_and"):
        read = written if name in READS_A_PART else read
        return Operation("move", times, 0, 0, read + written)
    if name.startswith(("reduce", "cum", "arg")):
        return Operation("sum", times, 0, 0, read + written)
    return Operation("arithmetic", times, 0, 0, written)


def _nbytes(aval: Any) -> int:
    size = getattr(getattr(aval, "dtype", None), "itemsize", 4)
    return math.prod(getattr(aval, "shape", ())) * size
