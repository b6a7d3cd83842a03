"""Layouts of our victims, timed: a program in each of them, and the fastest."""

import numpy as np

from kljax.parallel import Layout, map_victims

from .device import on_gpu
from .resident import resident


def layout_title(layout):
    """Names a layout, with its chunk where that means something."""
    chunked = layout.kind not in ("loop", "vmap")
    return f"{layout.kind}, chunk {layout.chunk}" if chunked else layout.kind


def runner(one, given, layout):
    """Makes ``() -> (seconds, values at the starts)``; says how long it compiled.

    Args:
      one: program of one victim, whose first result is the value there.
      given: what it takes, with a leading axis of victims.
      layout: of the victims.

    On a GPU their input is there before, and most results stay there.
    """
    if on_gpu():
        run, compile_s = resident(one, given, layout)

        def timed_there():
            seconds, results = run()
            return seconds, np.concatenate([values for values, _ in results])

        return timed_there, compile_s
    run = map_victims(one, layout)
    _, timing = run(*given)

    def timed():
        (values, _), timing = run(*given)
        return timing.run_s, np.asarray(values)

    return timed, timing.compile_s


def spread_layouts(chunks):
    """Lists layouts over all devices: in chunks, on CPUs one after another as well."""
    looped = () if on_gpu() else (Layout("sharded_loop", chunks[-1]),)
    return *(Layout("sharded", n) for n in chunks), *looped


def fastest_own(programs, given, chunks):
    """Finds our fastest layout and program, by the better of two rounds each.

    Args:
      programs: of one victim, by form of convolution.
      given: what they take.
      chunks: to try, see `spread_layouts`.

    Returns:
      Form, layout, and what `runner` gives for them.
    """
    found = {}
    for form, one in programs.items():
        for layout in spread_layouts(chunks):
            timed, compile_s = runner(one, given, layout)
            best = min(timed()[0] for _ in range(2))
            found[best] = form, layout, timed, compile_s
    return found[min(found)]
