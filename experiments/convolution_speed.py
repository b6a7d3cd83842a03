"""Times each form of convolution and of its two gradients, one layer at a time.

    XLA_FLAGS=--xla_cpu_multi_thread_eigen=false python experiments/convolution_speed.py
        [--layers NAME ...] [--batches 1 10 32] [--forms NAME ...] [--victims N]
        [--json FILE]

On a CPU, processor time of the whole process, which other work on the machine does not
lengthen much; the flag keeps it on one thread. Elsewhere, the clock. Ten repetitions
make one program. A row is a layer and a batch: billions of floating-point operations
per second (without those by zeros that a form may add) of the convolution and of its
gradients in images and kernel. With --victims, that many have kernels of their own,
side by side. Last stands how far a form is from `lax` at its highest precision, at
most, as a share of the largest entry; a form that is further than `TOO_FAR` ends the
program with an error, after the table.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tabulate import tabulate
from timing.device import on_gpu

from kljax.core.files import write_json
from kljax.models.convolution import CONVOLUTIONS
from kljax.models.convolution_maps import CHANNELS_LAST

REPEATS, SECONDS = 10, 0.3
# What products of 19 bits (TF32, a GPU's default) can be off by in sums of so many.
TOO_FAR = 1e-2
# Side of the image, channels, features, side of the kernel, stride.
LAYERS = {
    "lenet-1": (32, 3, 12, 5, 2),
    "lenet-2": (16, 12, 12, 5, 2),
    "lenet-3": (8, 12, 12, 5, 1),
    "resnet20-1": (32, 16, 16, 3, 1),
    "resnet20-2": (16, 32, 32, 3, 1),
    "resnet20-3": (8, 64, 64, 3, 1),
    "resnet20-halved": (32, 16, 32, 3, 2),
    # Of PyTorch's tutorial, but for its padding; and a first layer of 32 features.
    "tutorial-1": (32, 3, 6, 5, 1),
    "tutorial-2": (14, 6, 16, 5, 1),
    "colours-to-32": (32, 3, 32, 3, 1),
}


def programs(form, layer, victims=None, precision=None):
    """Makes the three maps: (images, kernel, gradient of the result) -> array.

    With `victims`, all three have a leading axis of them.
    """
    *_, side, stride = LAYERS[layer]

    def convolve(x, w):
        padding = ((side // 2, side // 2),) * 2
        return CONVOLUTIONS[form](
            x,
            w,
            (stride, stride),
            padding,
            dimension_numbers=CHANNELS_LAST,
            precision=precision,
        )

    maps = (
        lambda x, w, g: convolve(x, w),
        lambda x, w, g: jax.vjp(lambda x: convolve(x, w), x)[1](g)[0],
        lambda x, w, g: jax.vjp(lambda w: convolve(x, w), w)[1](g)[0],
    )
    return maps if victims is None else tuple(map(jax.vmap, maps))


def difference(form, layer, victims, arrays):
    """Computes how far a form is from `lax`, as a share of the largest entry."""
    pairs = zip(
        programs(form, layer, victims),
        programs("lax", layer, victims, "highest"),
        strict=True,
    )
    found = []
    for ours, slow in pairs:
        made, wanted = jax.jit(ours)(*arrays), jax.jit(slow)(*arrays)
        far = jnp.max(jnp.abs(made - wanted)) / jnp.max(jnp.abs(wanted))
        found.append(float(far))
    # The largest is NaN if one is.
    return float(np.max(found))


def seconds(program, arrays):
    """Measures seconds of one call, the median of several."""
    clock = time.perf_counter if on_gpu() else time.process_time

    def step(arrays, _):
        # All of the result is read, and nothing stays the same from turn to turn.
        small = 1e-9 * jnp.max(jnp.abs(program(*arrays)))
        return [x + small for x in arrays], None

    run = jax.jit(lambda arrays: jax.lax.scan(step, arrays, length=REPEATS)[0])
    jax.block_until_ready(run(arrays))
    values, began = [], clock()
    while clock() < began + SECONDS or len(values) < 3:
        start = clock()
        jax.block_until_ready(run(arrays))
        values.append((clock() - start) / REPEATS)
    return statistics.median(values)


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 10, 32])
    parser.add_argument(
        "--forms",
        nargs="+",
        choices=CONVOLUTIONS,
        default=["matmul", "implicit" if on_gpu() else "bilinear", "lax"],
    )
    parser.add_argument("--victims", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    draw, rows = np.random.default_rng(0).standard_normal, []
    for layer in options.layers:
        size, channels, features, side, stride = LAYERS[layer]
        out = -(-size // stride)
        for batch in options.batches:
            lead = () if options.victims is None else (options.victims,)
            shapes = (
                (*lead, batch, size, size, channels),
                (*lead, side, side, channels, features),
                (*lead, batch, out, out, features),
            )
            arrays = [jnp.asarray(draw(shape), jnp.float32) for shape in shapes]
            work = 2e-9 * batch * out**2 * side**2 * channels * features
            work *= options.victims or 1
            for form in options.forms:
                maps = programs(form, layer, options.victims)
                rows.append(
                    {
                        "layer": layer,
                        "batch": batch,
                        "form": form,
                        "gflops": [work / seconds(one, arrays) for one in maps],
                        "difference": difference(form, layer, options.victims, arrays),
                    }
                )
    print(tabulate(lay_out(rows), "firstrow", "github", disable_numparse=True))
    if options.json:
        write_json(options.json, rows)
    wrong = {row["form"] for row in rows if not row["difference"] < TOO_FAR}
    if wrong:
        sys.exit(f"not the convolution of lax: {', '.join(sorted(wrong))}")


def lay_out(rows):
    """Gives the table: a line for a layer and a batch, a column for a form."""
    forms = list(dict.fromkeys(row["form"] for row in rows))
    lines = {}
    for row in rows:
        rates = "/".join(f"{rate:.0f}" for rate in row["gflops"])
        line = lines.setdefault(f"{row['layer']}, batch {row['batch']}", [])
        line.append(f"{rates} ({row['difference']:.0e})")
    return [["", *forms], *([name, *cells] for name, cells in lines.items())]


if __name__ == "__main__":
    main()
