"""The door of the command line: which command, and how it ends."""

import os
import sys
import traceback

import tyro
from rich.console import Console

from kljax.cli.data import Data, run_data
from kljax.cli.leak import Demo, Leak, run_demo, run_leak
from kljax.cli.sweep import Merge, Report, Sweep, run_merge, run_report, run_sweep
from kljax.cli.train import Train, run_train

DESCRIPTION = "What can be recovered of private training data from shared gradients."
RUNS = {
    Leak: run_leak,
    Train: run_train,
    Sweep: run_sweep,
    Report: run_report,
    Merge: run_merge,
    Demo: run_demo,
    Data: run_data,
}
COMMANDS = {kind.__name__.lower(): kind for kind in RUNS}


def _use_all_cores() -> None:
    """Gives JAX one host device per core, so that victims are spread over them.

    On two cores two devices ran 1.3 to 2 times as many evaluations as one
    (experiments/speed.md). Left alone where the user has chosen already.
    """
    import jax

    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status.

    Bad input ends in one line on standard error and status 2, a training that turned
    NaN in status 1.
    """
    _use_all_cores()
    # A study's own model or data may live beside the user, as with python -m.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    job = tyro.extras.subcommand_cli_from_dict(
        COMMANDS, prog="kljax", description=DESCRIPTION, args=arguments
    )
    try:
        RUNS[type(job)](job, Console())
    except OSError as error:
        return _refused(error)
    except (ValueError, NotImplementedError, TypeError, ImportError) as error:
        # What kljax itself refuses is bad input. Whatever breaks elsewhere, in a
        # user's own network say, is a bug, and its traceback says where.
        if not _raised_here(error):
            raise
        return _refused(error)
    except FloatingPointError as error:  # a training that turned NaN
        if not _raised_here(error):
            raise
        return _refused(error, status=1)
    except KeyboardInterrupt:
        return 130
    return 0


def _refused(error: Exception, status: int = 2) -> int:
    line = " ".join(part.strip() for part in str(error).splitlines())
    print(f"kljax: {line}", file=sys.stderr)
    return status


def _raised_here(error: Exception) -> bool:
    frame = list(traceback.walk_tb(error.__traceback__))[-1][0]
    return frame.f_globals.get("__name__", "").partition(".")[0] == "kljax"
