"""Entries of the speed table about our own candidates: layouts, forms of convolution.

The defaults of kljax are chosen from them. Nobody else takes part.
"""

import functools
from typing import NamedTuple

from kljax.models.convolution import ON_GPU_ALONE
from kljax.parallel import Layout, fastest_layout

from ..device import on_gpu
from ..entry import Entry
from ..own_layouts import layout_title, runner, spread_layouts
from ..table import ranking
from . import dlg, federated, inversions

# (layout, form of convolution) of the entry `convolution`, the default first.
CANDIDATES = (
    (Layout("sharded_loop", 8), "bilinear"),
    (Layout("sharded", 8), "bilinear"),
    (Layout("sharded_loop", 8), "matmul"),
    (Layout("sharded", 8), "matmul"),
    (Layout("sharded", 8), "lax"),
    (Layout("sharded", 4), "matmul"),
    (Layout("sharded", 16), "matmul"),
    (Layout("sharded", 32), "matmul"),
    (Layout("chunked", 8), "matmul"),
    (Layout("chunked", 32), "matmul"),
    (Layout("vmap"), "matmul"),
    (Layout("loop"), "matmul"),
    (Layout("loop"), "lax"),
)
GPU_CANDIDATES = (
    (Layout("sharded", 64), "matmul"),
    (Layout("sharded", 64), "implicit"),
    (Layout("sharded", 64), "lax"),
    (Layout("sharded", 8), "matmul"),
    (Layout("sharded", 256), "matmul"),
    (Layout("sharded", 512), "matmul"),
    (Layout("sharded", 512), "implicit"),
    (Layout("sharded", 512), "lax"),
    (Layout("loop"), "lax"),
)
FEDERATED = (
    Layout("loop"),
    Layout("vmap"),
    Layout("chunked", 8),
    *(Layout(kind, n) for kind in ("sharded", "sharded_loop") for n in (8, 16)),
)


class Convolution(NamedTuple):
    """What the entry `convolution` runs."""

    work: dlg.Work
    candidates: tuple[tuple[Layout, str], ...]


def convolution(options, work):
    """Formulations and layouts against each other."""
    (victims, repeats, _), candidates = work
    problem = dlg.Problem(victims)
    contestants, compile_s = {}, {}
    for layout, name in candidates:
        label = f"{layout_title(layout)}, {name}"
        run, compile_s[label] = dlg.evaluation_runner(problem, layout, repeats, name)
        contestants[label] = lambda run=run: victims * repeats / run()
    settings = {"victims": victims, "compile_s": compile_s}
    unit = "evaluations/s"
    return [ranking("convolution", options.rounds, contestants, unit, settings)]


def of_inversions(name, options, work):
    """Chunks and forms of convolution of an entry of `inversions`."""
    others = ("lax", *(ON_GPU_ALONE if on_gpu() else ()))
    _, programs, given = inversions.by_form(work, (*work.forms, *others))
    contestants, compile_s = {}, {}
    for layout in (*spread_layouts(work.chunks), Layout("loop")):
        for form, one in programs.items():
            label = f"{layout_title(layout)}, {form}"
            timed, compile_s[label] = runner(one, given, layout)
            contestants[label] = lambda timed=timed: (
                work.victims * work.repeats / timed()[0]
            )
    settings = {"victims": work.victims, "compile_s": compile_s}
    unit = "evaluations/s"
    # The slow ones can take a minute a round: once is enough to rule them out.
    return [ranking(name, options.rounds, contestants, unit, settings, keep=0.25)]


def examples_per_second(federation):
    """Runs a round."""
    return federation.work.examples / federation.round()[0]


def of_rounds(options, work, candidates=FEDERATED):
    """Layouts of clients and both convolutions, for rounds by their titles."""
    default = f"default: {fastest_layout('clients')}"
    pairs = {default: (None, "auto")} | {
        f"{layout_title(layout)}, {convolution}": (layout, convolution)
        for layout in candidates
        for convolution in ("matmul", "lax", *(ON_GPU_ALONE if on_gpu() else ()))
    }
    for title, one in work.items():
        contestants, compile_s = {}, {}
        for label, (layout, convolution) in pairs.items():
            federation = federated.averaging(one, layout, convolution)
            # The first call, which is not counted, has a round in it.
            _, compile_s[label], _ = federation.round()
            contestants[label] = functools.partial(examples_per_second, federation)
        settings = {"work": one._asdict(), "compile_s": compile_s}
        # The slow ones take a minute a round: once is enough to rule them out.
        yield ranking(
            title, options.rounds, contestants, "examples/s", settings, keep=0.25
        )


ROUNDS = {
    f"fl-layouts-{name}": federated.WORK[f"fl-{name}"]
    for name in ("lenet-b10", "lenet-b32")
}
ENTRIES = (
    Entry(
        "convolution",
        "the formulations of `kljax.models.convolution` and the layouts of "
        "`kljax.parallel` for attacks; in evaluations/s",
        convolution,
        Convolution(dlg.WORK, CANDIDATES),
        Convolution(dlg.TINY, CANDIDATES[:2]),
        Convolution(dlg.ON_GPU, GPU_CANDIDATES),
        if_named=True,
    ),
    *(
        Entry(
            f"layouts-{entry.name}",
            f"the same as convolution for {entry.name}",
            functools.partial(of_inversions, f"layouts-{entry.name}"),
            entry.work,
            entry.tiny,
            entry.on_gpu,
            if_named=True,
        )
        for entry in inversions.ENTRIES
    ),
    Entry(
        "fl-layouts",
        "layouts of clients and forms of convolution for the two rounds of LeNet; in "
        "examples/s",
        of_rounds,
        ROUNDS,
        {title: federated.shrunken(work) for title, work in ROUNDS.items()},
        if_named=True,
    ),
)
