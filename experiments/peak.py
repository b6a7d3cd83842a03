"""How near to the machine's peak: operations counted, and one large product timed."""

import jax
import numpy as np

from kljax.mapping import Layout, map_victims


def matmul_peak():
    """Measures floating-point operations per second of one large product a device."""
    size = 2048
    devices = jax.local_device_count()
    run = map_victims(lambda a: a @ a, Layout("sharded", 1))
    matrices = np.random.default_rng(0).normal(size=(devices, size, size))
    matrices = matrices.astype(np.float32)
    run(matrices)
    # Several products per call, or moving the result would be timed.
    chained = map_victims(
        lambda a: jax.lax.fori_loop(0, 10, lambda _, x: x @ a / size, a),
        Layout("sharded", 1),
    )
    chained(matrices)
    seconds = min(chained(matrices)[1].run_s for _ in range(3))
    return 10 * devices * 2 * size**3 / seconds


def product_flops(fn, *args):
    """Counts the floating-point operations of all matrix products `fn` traces to.

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
        return total

    return count(jax.make_jaxpr(fn)(*args).jaxpr)
