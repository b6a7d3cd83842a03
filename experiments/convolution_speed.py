"""Times each form of convolution and of its two gradients, one layer at a time.

    XLA_FLAGS=--xla_cpu_multi_thread_eigen=false python experiments/convolution_speed.py
        [--layers NAME ...] [--batches 1 10 32] [--forms NAME ...]

Processor time of the whole process, which other work on the machine does not lengthen
much; the flag keeps it on one thread. Ten repetitions make one program. A row is a
layer and a batch: billions of floating-point operations per second (without those by
zeros that a form may add) of the convolution and of its gradients in images and kernel.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from tabulate import tabulate

from kljax.models.bilinear import CHANNELS_LAST
from kljax.models.convolution import CONVOLUTIONS

REPEATS, SECONDS = 10, 0.3
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


def programs(form, layer):
    """Makes the three maps: (images, kernel, gradient of the result) -> array."""
    *_, side, stride = LAYERS[layer]

    def convolve(x, w):
        padding = ((side // 2, side // 2),) * 2
        return CONVOLUTIONS[form](
            x, w, (stride, stride), padding, dimension_numbers=CHANNELS_LAST
        )

    return (
        lambda x, w, g: convolve(x, w),
        lambda x, w, g: jax.vjp(lambda x: convolve(x, w), x)[1](g)[0],
        lambda x, w, g: jax.vjp(lambda w: convolve(x, w), w)[1](g)[0],
    )


def seconds(program, arrays):
    """Measures processor seconds of one call, the median of several."""

    def step(arrays, _):
        # All of the result is read, and nothing stays the same from turn to turn.
        small = 1e-9 * jnp.max(jnp.abs(program(*arrays)))
        return [x + small for x in arrays], None

    run = jax.jit(lambda arrays: jax.lax.scan(step, arrays, length=REPEATS)[0])
    jax.block_until_ready(run(arrays))
    values, began = [], time.process_time()
    while time.process_time() < began + SECONDS or len(values) < 3:
        start = time.process_time()
        jax.block_until_ready(run(arrays))
        values.append((time.process_time() - start) / REPEATS)
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
        default=["matmul", "bilinear", "lax"],
    )
    options = parser.parse_args()
    draw, rows = np.random.default_rng(0).standard_normal, []
    for layer in options.layers:
        size, channels, features, side, stride = LAYERS[layer]
        out = -(-size // stride)
        for batch in options.batches:
            shapes = (
                (batch, size, size, channels),
                (side, side, channels, features),
                (batch, out, out, features),
            )
            arrays = [jnp.asarray(draw(shape), jnp.float32) for shape in shapes]
            work = 2e-9 * batch * out**2 * side**2 * channels * features
            rates = [
                "/".join(
                    f"{work / seconds(p, arrays):.0f}" for p in programs(form, layer)
                )
                for form in options.forms
            ]
            rows.append([f"{layer}, batch {batch}", *rates])
    print(tabulate(rows, ["", *options.forms], "github", disable_numparse=True))


if __name__ == "__main__":
    main()
