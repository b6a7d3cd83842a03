"""Operations of compiled programs, by kind: what a trace says of their seconds."""

import collections
import re
import statistics
import tempfile
from pathlib import Path

import jax

from .device import on_gpu

# Parts of the names that the CPU backend gives to operations without a product; the
# first kind counts.
KINDS = {
    "products": ("dot",),
    "moving": ("pad", "slice", "concatenate", "copy", "transpose"),
    "sums": ("ynn", "reduce"),
    "other arithmetic": ("",),
}
# Parts of the names that GPU kernels of products have, beside "dot" of KINDS.
GPU_PRODUCTS = ("gemm", "cutlass", "cublas", "nvjet", "sm80", "sm90", "dot", "triton")
COMPUTATION = re.compile(r"^%([\w.-]+) \(.*?^}", re.MULTILINE | re.DOTALL)
CALL = re.compile(r"%([\w.-]+) = .*fusion\(.*calls=%([\w.-]+)")
OPERATION = re.compile(r"[a-z_-]+(\.\d+)?")
# What holds other operations, and is counted by them.
OUTER = ("while", "call", "conditional")


def trace_operations(run, given, calls):
    """Traces calls of a compiled program.

    Args:
      run: the program, called before.
      given: its input.
      calls: how many.

    Returns:
      How many operations there are in one call, and their seconds there by kind.
    """
    products = with_products(run.as_text())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(calls):
                jax.block_until_ready(run(*given))
        (file,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
        durations = collections.defaultdict(list)
        for plane in data.planes:
            for own in plane.lines:
                if is_of_device(plane.name, own.name):
                    for event in own.events:
                        durations[event.name].append(event.duration_ns * 1e-9)
    seconds, count = collections.Counter(), 0
    for name, values in durations.items():
        kind = kind_of(name, products)
        if kind is not None:
            # Medians: beside other work a thread is taken off its core now and then,
            # and one such wait is longer than all the rest of a small program.
            seconds[kind] += len(values) / calls * statistics.median(values)
            count += len(values)
    return round(count / calls), seconds


def with_products(program):
    """Lists the fusions of a compiled program, its text, that hold a product."""
    bodies = {found[1]: found[0] for found in COMPUTATION.finditer(program)}
    calls = CALL.findall(program)
    return {name for name, body in calls if " dot(" in bodies.get(body, "")}


def is_of_device(plane, line):
    """Tells whether a line of a trace holds operations: a GPU's stream, or a thread."""
    if plane.startswith("/device:GPU"):
        return line.startswith("Stream")
    return line.startswith("tf_XLA")


def kind_of(name, products):
    """Classifies an operation by its name; None for what holds other operations."""
    gpu = on_gpu()
    if name.startswith(OUTER) or not (gpu or OPERATION.fullmatch(name)):
        return None
    lower = name.lower()
    if name in products or gpu and any(part in lower for part in GPU_PRODUCTS):
        return "products"
    if gpu and lower.startswith(("memcpy", "memset")):
        return "moving"
    return next(kind for kind, parts in KINDS.items() if any(p in lower for p in parts))
