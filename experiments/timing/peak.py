"""How near to the machine's peak: operations counted, and one large product timed."""

import jax
import numpy as np

from kljax.models.bilinear import FORMS
from kljax.models.implicit import PREFIX
from kljax.parallel import Layout, map_victims
from kljax.studies.cost import bilinear_product

# Rows and columns of what is multiplied: a large square, and two of the sizes in which
# convolutions are products, at which some processors are faster.
SIZES = ((2048, 2048), (1024, 1152), (1024, 576))
GPU_SIZES = ((4096, 4096),)
# Operations of one call: several products, or moving the result would be timed.
CPU_WORK, GPU_WORK, TINY_WORK = 5e10, 7e12, 1e8


def matmul_peak(tiny=False):
    """Measures floating-point operations per second of one large product a device.

    The best of the sizes, all devices at once. `tiny` takes no time, and is no peak.
    """
    cpu = jax.default_backend() == "cpu"
    sizes, work = (SIZES, CPU_WORK) if cpu else (GPU_SIZES, GPU_WORK)
    work = TINY_WORK if tiny else work
    return max(_product_rate(*size, work) for size in sizes)


def _product_rate(rows, columns, work):
    devices, draw = jax.local_device_count(), np.random.default_rng(0).normal
    left = draw(size=(devices, rows, columns)).astype(np.float32)
    right = (draw(size=(devices, columns, columns)) / columns**0.5).astype(np.float32)
    times = max(1, int(work / (rows * columns**2)))
    chained = map_victims(
        lambda a, b: jax.lax.fori_loop(0, times, lambda _, x: x @ b, a),
        Layout("sharded", 1),
    )
    chained(left, right)
    seconds = min(chained(left, right)[1].run_s for _ in range(3))
    return times * devices * 2 * rows * columns**2 / seconds


def product_flops(fn, *args):
    """Counts the floating-point operations of all matrix products `fn` traces to.

    A convolution by `kljax.models.bilinear` or `kljax.models.implicit` counts as the
    product that it is without the zeros that its form multiplies by.
    What is computed again on the way back (`jax.checkpoint`) counts as often.
    """

    def count(jaxpr):
        total = 0
        for eqn in jaxpr.eqns:
            times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
            for value in eqn.params.values():
                for sub in value if isinstance(value, (tuple, list)) else (value,):
                    sub = getattr(sub, "jaxpr", sub)
                    total += times * count(sub) if hasattr(sub, "eqns") else 0
            if eqn.primitive.name == "dot_general":
                (contract, _), _ = eqn.params["dimension_numbers"]
                shape = eqn.invars[0].aval.shape
                depth = int(np.prod([shape[axis] for axis in contract]))
                total += 2 * depth * int(np.prod(eqn.outvars[0].aval.shape))
            if eqn.primitive.name.removeprefix(PREFIX) in FORMS:
                total += bilinear_product(eqn)[0]
        return total

    return count(jax.make_jaxpr(fn)(*args).jaxpr)
