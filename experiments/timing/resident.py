"""Programs timed with their input on the device, as PyTorch's peers have theirs there.

`kljax.parallel.map_victims` takes host arrays and gives host arrays. Beside a whole
attack the copies are nothing; beside a few evaluations on a GPU they can be most of the
time.
"""

import time

import jax

from kljax.parallel import chunk_program


def resident(one, given, layout):
    """Makes ``() -> (seconds, results)``; says how long it compiled.

    Args:
      one: program of one victim.
      given: what it takes, with a leading axis of victims, of whole chunks.
      layout: of the victims; they are run on one device.

    Returns:
      The function, whose results are lists of a chunk's each, and seconds.
    """
    victims, chunk = len(jax.tree.leaves(given)[0]), layout.chunk
    chunk = {"loop": 1, "vmap": victims}.get(layout.kind, min(chunk, victims))
    if victims % chunk:
        raise ValueError(f"{victims} victims are no whole chunks of {chunk}")
    chunks = [
        jax.device_put(jax.tree.map(lambda x, i=i: x[i : i + chunk], given))
        for i in range(0, victims, chunk)
    ]
    start = time.perf_counter()
    run = jax.jit(chunk_program(one, layout)).lower(*chunks[0]).compile()
    compile_s = time.perf_counter() - start
    jax.block_until_ready(run(*chunks[0]))

    def timed():
        start = time.perf_counter()
        results = jax.block_until_ready([run(*own) for own in chunks])
        return time.perf_counter() - start, results

    return timed, compile_s
