"""The command line: which command is run, and how it ends.

What needs no work is answered before anything large is imported: help, the version, and
names that there are not (`kljax.cli.answers`). A command imports what it needs.
"""

import dis
import importlib
import os
import sys
import traceback
from collections.abc import Callable
from typing import NamedTuple

from kljax.cli import answers

DESCRIPTION = "What can be recovered of private training data from shared gradients."
COMPLETION = "--tyro-"  # print-completion, write-completion


class Command(NamedTuple):
    """A command: the class of its options, and the function that runs it.

    Attributes:
      module: where they are: for ``leak``, ``Leak`` and ``run_leak``.
      does: first sentence of the class's docstring, for the list of commands.
      computes: whether it works on JAX's devices.
    """

    module: str
    does: str
    computes: bool = True


COMMANDS = {
    "leak": Command(
        "kljax.cli.leak",
        "Attacks the gradients of real images and reports what was recovered.",
    ),
    "train": Command(
        "kljax.cli.train",
        "Trains a network by federated learning under several defences, side by side.",
    ),
    "sweep": Command(
        "kljax.cli.sweep",
        "Runs a grid of studies from a file, or goes on with one that was cut off.",
    ),
    "report": Command(
        "kljax.cli.sweep",
        "Writes tables, plots and a page about a study, finished or not.",
    ),
    "merge": Command(
        "kljax.cli.sweep", "Joins two studies of the same axes into a new one."
    ),
    "demo": Command(
        "kljax.cli.leak",
        "Runs the main job on embedded images: six arms, sixteen victims.",
    ),
    "audit": Command(
        "kljax.cli.audit",
        "Says what an upload gives away, or what is recovered of a network's uploads.",
    ),
    "data": Command(
        "kljax.cli.data",
        "Prepares a dataset from files on disk, without TensorFlow.",
    ),
    "columns": Command(
        "kljax.cli.columns",
        "Says what is in the rows: every column, its type, its range and its meaning.",
    ),
    "list": Command(
        "kljax.cli.list",
        "Lists attacks, defences, networks, data and whatever else has a name.",
        computes=False,
    ),
    "doctor": Command(
        "kljax.cli.doctor",
        "Says what is installed, what is missing, and the command that mends it.",
        computes=False,
    ),
}
BACKENDS = "jax._src.xla_bridge"  # where JAX looks for its devices
EXPECTED = (
    ValueError,
    NotImplementedError,
    TypeError,
    ImportError,
    RuntimeError,
)
BUG = (
    "kljax: nobody expected this error: it is a bug in kljax, or in a module of yours "
    "that was named"
)


def class_of(name: str) -> type:
    """Imports the class of a command's options."""
    return getattr(importlib.import_module(COMMANDS[name].module), name.capitalize())


def runner_of(name: str) -> Callable:
    """Imports the function that runs a command."""
    return getattr(importlib.import_module(COMMANDS[name].module), f"run_{name}")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status.

    Bad input ends in one line on standard error and status 2, a training that turned
    NaN in status 1. What nobody expected keeps its traceback.
    """
    given = sys.argv[1:] if arguments is None else arguments
    does = {name: command.does for name, command in COMMANDS.items()}
    # Where JAX is there already, the parser costs nothing, and knows better.
    known = {} if "jax" in sys.modules else answers.remembered()
    answers.answer_at_once(given, DESCRIPTION, does, known)
    # A study's own model or data may live beside the user, as with python -m.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        _run(given)
    except KeyboardInterrupt as error:
        for note in getattr(error, "__notes__", ()):
            print(note, file=sys.stderr)
        return 130
    except Exception as error:
        status, line = _refusal(error)
        if line is None:
            error.add_note(BUG)
            raise
        print(f"kljax: {line}", file=sys.stderr)
        return status
    return 0


def _run(given: list[str]) -> None:
    import tyro

    from kljax.cli.printing import open_console
    from kljax.core.checks import check_text

    console = open_console()
    for number, argument in enumerate(given, 1):
        # An empty path would be the folder that one is in.
        check_text(f"argument {number}", argument)
    name, *options = given
    if name.startswith(COMPLETION):
        kinds: dict[str, Callable] = {name: class_of(name) for name in COMMANDS}
        tyro.extras.subcommand_cli_from_dict(
            kinds, prog="kljax", description=DESCRIPTION, args=given
        )
        return
    if COMMANDS[name].computes:
        from kljax.parallel import use_all_cores

        use_all_cores()
    if name == "sweep":
        from kljax.cli.sweep import refuse_dealing

        refuse_dealing(given)
    kind = class_of(name)
    with answers.parsing(name, kind):
        job: object = tyro.cli(kind, prog=f"kljax {name}", args=options)
    runner_of(name)(job, console)


def _refusal(error: Exception) -> tuple[int, str | None]:
    """Finds the exit status and the line for what is wrong with the input or machine.

    What kljax itself refuses is bad input. Whatever breaks elsewhere, in a user's own
    network say, is a bug, and its traceback says where: it has no line.
    """
    trace = error.__traceback__
    modules = [
        frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(trace)
    ]
    assert trace is not None  # it was raised
    while trace.tb_next is not None:
        trace = trace.tb_next
    # Raised by a statement of kljax's, not by what a statement did.
    instruction = trace.tb_frame.f_code.co_code[trace.tb_lasti]
    raised = dis.opname[instruction] == "RAISE_VARARGS"
    here = raised and modules[-1].partition(".")[0] == "kljax"
    line = " ".join(part.strip() for part in str(error).splitlines())
    if BACKENDS in modules[-3:]:
        return 2, (
            f"JAX finds no device (JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}"
            f"{'; ' * bool(line)}{line}): unset it, or install what the device needs, "
            "such as kljax[cuda]"
        )
    if isinstance(error, OSError):
        return 2, line
    of_device = type(error).__name__ == "JaxRuntimeError"
    if isinstance(error, MemoryError) or of_device and "RESOURCE_EXHAUSTED" in line:
        return 2, (
            f"out of memory ({line}): lower layout.chunk, restarts, examples or "
            "image-size"
        )
    if here and isinstance(error, EXPECTED):
        return 2, line
    if here and isinstance(error, FloatingPointError):  # a training that turned NaN
        return 1, line
    return 1, None
