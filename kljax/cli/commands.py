"""The command line: which command is run, and how it ends."""

import dis
import os
import sys
import traceback

import jax
import tyro

from kljax.cli.columns import Columns, run_columns
from kljax.cli.data import Data, run_data
from kljax.cli.leak import Demo, Leak, run_demo, run_leak
from kljax.cli.printing import open_console
from kljax.cli.sweep import (
    Merge,
    Report,
    Sweep,
    refuse_dealing,
    run_merge,
    run_report,
    run_sweep,
)
from kljax.cli.train import Train, run_train
from kljax.core.checks import check_text

DESCRIPTION = "What can be recovered of private training data from shared gradients."
RUNS = {
    Leak: run_leak,
    Train: run_train,
    Sweep: run_sweep,
    Report: run_report,
    Merge: run_merge,
    Demo: run_demo,
    Data: run_data,
    Columns: run_columns,
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
COMMANDS = {kind.__name__.lower(): kind for kind in RUNS}


def _use_all_cores() -> None:
    """Gives JAX one host device per core, so that victims are spread over them.

    On two cores two devices ran 1.3 to 2 times as many evaluations as one
    (experiments/speed.md). Left alone where the user has chosen already.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status.

    Bad input ends in one line on standard error and status 2, a training that turned
    NaN in status 1. What nobody expected keeps its traceback.
    """
    _use_all_cores()
    # A study's own model or data may live beside the user, as with python -m.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    console = open_console()
    try:
        given = sys.argv[1:] if arguments is None else arguments
        _check_text(given)
        refuse_dealing(given)
        job = tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="kljax", description=DESCRIPTION, args=arguments
        )
        RUNS[type(job)](job, console)
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


def _check_text(arguments: list[str]) -> None:
    for number, argument in enumerate(arguments, 1):
        # An empty path would be the folder that one is in.
        check_text(f"argument {number}", argument)


def _refusal(error: Exception) -> tuple[int, str | None]:
    """Finds the exit status and the line for what is wrong with the input or machine.

    What kljax itself refuses is bad input. Whatever breaks elsewhere, in a user's own
    network say, is a bug, and its traceback says where: it has no line.
    """
    trace = error.__traceback__
    modules = [
        frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(trace)
    ]
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
    of_device = isinstance(error, jax.errors.JaxRuntimeError)
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
