"""The training job: federated rounds under several arms, and what the models can do.

`train` runs what a `kljax.TrainConfig` says: arm after arm from the same weights, on
the same batches, by what `kljax.studies.builder.run_setup` makes of it. A run that was
killed goes on from its last checkpoint to the very parameters of an uninterrupted one.
"""

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from kljax.core import files
from kljax.core.checks import check_text
from kljax.core.claims import claim_folder
from kljax.core.folders import optional
from kljax.federated import checkpoints, evaluation
from kljax.federated.clients import ClientState
from kljax.federated.rounds import RoundInfo, nbytes
from kljax.federated.server import ServerState
from kljax.parallel.agreement import (
    agreed,
    arrays_from_first,
    fill_in_clients,
    from_first,
    leads,
    true_anywhere,
)
from kljax.studies import figures, run_folder
from kljax.studies.builder.privacy import check_trained, epsilon_by_round
from kljax.studies.builder.run_setup import (
    RunSetup,
    arm_rounds,
    batches_of,
    build_run_setup,
    cohort_of,
    local_steps,
    random_keys,
    start,
)
from kljax.studies.builder.sizes import check_training
from kljax.studies.config import TrainConfig
from kljax.studies.measuring import Measured, evaluate_arm, measure, measuring_of
from kljax.studies.run_folder import Row

# What a disk says that is full, gone or read only.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
TWIN = "honest"  # folder of the run without attackers


class ArmBegun(NamedTuple):
    """An arm that is about to be trained."""

    name: str
    round: int  # 0, or the round it is resumed from
    private_bytes: int  # that the states of all clients take on the host
    measure: str = run_folder.ACCURACY  # what accuracies are, see `TargetSpec.measure`


class TrainedArm(NamedTuple):
    """An arm at the end of its rounds."""

    server: ServerState
    clients: ClientState  # NumPy arrays with a leading axis [N]
    accuracy: dict[str, dict[str, Any]]  # by test, see `kljax.evaluation.evaluate`
    attack_success: dict[str, Any] | None  # as an accuracy; None without attackers


class TrainResult(NamedTuple):
    """A finished run."""

    setup: RunSetup
    arms: dict[str, TrainedArm]
    rows: list[Row]  # of ``metrics.csv``
    summary: dict[str, Any]


def train(
    config: TrainConfig,
    folder: Path | None = None,
    *,
    tensorboard: bool = False,
    on_arm: Callable[[ArmBegun], Any] = lambda begun: None,
    on_round: Callable[[Row], Any] = lambda row: None,
) -> TrainResult:
    """Trains every arm, and measures what each model can do.

    With a folder, states and metrics are written as they come, and a run that was cut
    off goes on where it was: to the same parameters, bit by bit, with the same speed
    options on the same devices. While it runs, it holds a claim on the folder
    (`kljax.core.claims`). Keys of an encryption are in no file: a run that goes on
    draws new ones, and needs nothing of the old. CKKS draws noise with them, so that a
    run under it is repeated to 2^-24 in each round, and not bit by bit.

    Several processes that stay connected (`jax.distributed`) share the clients and run
    it together, each with the same configuration: to what one process would, but for
    rounding. Process 0 alone reads and writes the folder.

    Args:
      config: the run.
      folder: run folder to make, or to go on with; None writes nothing.
      tensorboard: whether to write ``tensorboard/`` in it, too.
      on_arm: called before an arm begins.
      on_round: called with the row of every finished round.

    Raises:
      ValueError: for anything in `config` that does not exist or does not fit, before
        anything is computed or written; in several processes, a layout of one device
        is such a thing.
      RuntimeError: in a process where nothing is wrong, if another one failed.
      FileExistsError: if `folder` is of another configuration or of something else, or
        if another process trains in it.
      ImportError: for `tensorboard` without tensorboardX.
      DamagedFile: for a file of the folder that is not what was written.
      OSError: for a disk that is full or cannot be written; nothing written before is
        lost.
      kljax.federated.rounds.NonFiniteClient: see `TrainConfig.on_nonfinite`.
    """
    if not leads():
        folder, tensorboard = None, False
    with contextlib.ExitStack() as held:
        with agreed():
            setup, boards = _open(config, folder, tensorboard, held)
        try:
            return _train(setup, folder, boards, on_arm, on_round)
        except OSError as error:
            if folder is None or error.errno not in DISK:
                raise
            raise OSError(
                f"the training cannot write to {str(folder)!r} ({error}): what it has "
                "written so far is whole and stays; make room there, and the same "
                "configuration and folder go on from the last checkpoint"
            ) from error


def _open(
    config: TrainConfig,
    folder: Path | None,
    tensorboard: bool,
    held: contextlib.ExitStack,
) -> tuple[RunSetup, Callable | None]:
    """Prepares a run and claims its folder, after everything is seen to be right."""
    processes = jax.process_count()
    if processes > 1 and not config.layout.spread:
        raise ValueError(
            f"layout {config.layout.kind!r} uses one device, and there are {processes} "
            "processes: take 'sharded' or 'sharded_loop'"
        )
    if folder is not None:
        check_text("folder", str(folder))
        run_folder.check_same(folder, config)
    boards = run_folder.boards(folder) if tensorboard else None
    there = folder is not None and folder.exists()
    if there:
        _claim(folder, config, held)
    setup = build_run_setup(config)
    check_training(setup)
    for name in config.arms:
        check_trained(setup, name)
    # What is wrong in the configuration leaves no folder.
    if folder is not None and not there:
        folder.mkdir(parents=True, exist_ok=True)
        _claim(folder, config, held)
    if folder is not None:
        for name in config.arms:  # too long a name is refused here
            with contextlib.suppress(FileNotFoundError):
                os.lstat(folder / name)
    return setup, boards


def _claim(folder: Path, config: TrainConfig, held: contextlib.ExitStack) -> None:
    held.enter_context(claim_folder(folder))
    # Another process may have been faster.
    run_folder.check_same(folder, config)


def _train(
    setup: RunSetup,
    folder: Path | None,
    boards: Callable | None,
    on_arm: Callable[[ArmBegun], Any],
    on_round: Callable[[Row], Any],
) -> TrainResult:
    config = setup.config
    described = run_folder.describe(config, setup.task.dataset.licence)
    rows: list[Row] = []
    with agreed():
        if folder is not None:
            rows = [r for r in run_folder.read_rows(folder) if r["arm"] in config.arms]
            _begin(folder, setup, described)
    rows = [r | {"excluded": tuple(r["excluded"])} for r in from_first(rows)]
    trained = {}
    with jax.default_matmul_precision(config.precision):
        for name in config.arms:
            place = None if folder is None else folder / name
            trained[name] = _train_arm(
                setup, name, place, rows, boards, on_arm, on_round
            )
    accuracy = {name: arm.accuracy for name, arm in trained.items()}
    success = None
    if setup.attack is not None:
        floors = _train_twin(setup, folder, boards, on_arm, on_round)
        success = {
            name: {**arm.attack_success, "floor": floors.get(name)}
            for name, arm in trained.items()
        }
    measure = setup.task.dataset.target_spec.measure
    epsilons = {
        name: epsilon_by_round(setup, name)(config.rounds) for name in config.arms
    }
    summary = run_folder.summarise(
        described, rows, accuracy, success, measure, epsilons
    )
    with agreed():
        if folder is not None:
            run_folder.write_summary(folder, summary, rows)
    return TrainResult(setup, trained, rows, summary)


def _train_twin(
    setup: RunSetup,
    folder: Path | None,
    boards: Callable | None,
    on_arm: Callable[[ArmBegun], Any],
    on_round: Callable[[Row], Any],
) -> dict[str, float]:
    """Trains honest clients alone, and measures what a trigger does to each arm.

    A run of its own, in ``honest/``, which can be gone on with and attacked like any.
    """
    twin = setup.config.honest_twin
    if twin is None:
        return {}
    found = train(
        twin,
        None if folder is None else folder / TWIN,
        tensorboard=boards is not None,
        on_arm=lambda begun: on_arm(begun._replace(name=f"{TWIN}/{begun.name}")),
        on_round=lambda row: on_round(row | {"arm": f"{TWIN}/{row['arm']}"}),
    )
    floors = {}
    with jax.default_matmul_precision(twin.precision):
        for name, arm in found.arms.items():
            on = measuring_of(setup, name, arm_rounds(setup, name))
            floors[name] = _mean(measure(on, arm.server, arm.clients).attack_success)
    return floors


def _begin(folder: Path, setup: RunSetup, described: dict[str, Any]) -> None:
    if not (folder / "config.json").exists():
        files.write_json(folder / "config.json", described)
    dataset = setup.task.dataset
    class_of = dataset.target_spec.class_of
    if class_of is None:  # there is no picture of classes by client
        return
    with optional("partition.png"):
        figures.draw_partition(
            setup.partition,
            class_of(dataset.labels[np.arange(len(dataset))]),
            dataset.target_spec.classes,
            folder / "partition.png",
            dataset.class_names,
        )


def _train_arm(
    setup: RunSetup,
    name: str,
    place: Path | None,
    rows: list[Row],
    boards: Callable | None,
    on_arm: Callable[[ArmBegun], Any],
    on_round: Callable[[Row], Any],
) -> TrainedArm:
    """Trains an arm, or goes on with it; process 0 alone has a `place` to write to."""
    config, keys = setup.config, random_keys(setup.config)
    built = arm_rounds(setup, name)
    rounds = built.rounds
    server, clients = start(setup, rounds)
    first = 0
    with agreed():
        if place is not None:
            first = max(checkpoints.saved(place), default=0)
            run_folder.check_rows(place.parent, rows, name, first)
            if first:
                server, clients = checkpoints.restore(place, first, server, clients)
            # Not before this one is read: if it is damaged, an older one may do.
            checkpoints.prune(place, first, config.keep_rounds)
            if not first and 0 in config.keep_rounds:
                checkpoints.save(place, server, clients, config.keep_rounds)
    first = from_first(first)
    if first:
        server, clients = arrays_from_first((server, clients))
    # What was measured after the checkpoint is measured again.
    rows[:] = [r for r in rows if r["arm"] != name or r["round"] < first]
    board = None if boards is None else boards(name, first)
    on = measuring_of(setup, name, built)
    measured_by = setup.task.dataset.target_spec.measure
    on_arm(ArmBegun(name, first, nbytes(clients), measured_by))
    epsilon_after = epsilon_by_round(setup, name)
    for number in range(first, config.rounds):
        server, info = rounds.run_round(
            keys.rounds,
            server,
            clients,
            cohort_of(config, number),
            batches_of(setup, number),
        )
        done = number + 1
        last = done == config.rounds
        measured = done % config.evaluate_every == 0 or last
        due = done % config.save_every == 0 or done in config.keep_rounds or last
        if measured or due:
            fill_in_clients(clients)
        seen = measure(on, server, clients) if measured else None
        rows.append(_row(setup, name, number, info, seen, epsilon_after(done)))
        with agreed():
            if place is not None:
                run_folder.write_rows(place.parent, rows)
                if due:
                    checkpoints.save(place, server, clients, config.keep_rounds)
            if board is not None:
                run_folder.write_board(board, rows[-1])
        on_round(rows[-1])
    if board is not None:
        board.close()
    accuracy = evaluate_arm(on, server, clients, place)
    success = None
    if setup.attack is not None:
        found = measure(on, server, clients).attack_success
        success = evaluation.mean_and_std(found)
    return TrainedArm(jax.device_get(server), clients, accuracy, success)


def _row(
    setup: RunSetup,
    name: str,
    number: int,
    info: RoundInfo,
    seen: Measured | None,
    epsilon: float | None,
) -> Row:
    config = setup.config
    steps = sum(
        local_steps(config, len(setup.partition[client])) for client in info.clients
    )
    excluded = info.clients[true_anywhere(np.isin(info.clients, info.excluded))]
    return {
        "schema_version": run_folder.SCHEMA_VERSION,
        "arm": name,
        "round": number,
        "loss": info.loss,
        "train_accuracy": None if np.isnan(info.accuracy) else info.accuracy,
        "test_accuracy": _mean(seen.accuracy if seen else None),
        "attack_success": _mean(seen.attack_success if seen else None),
        "epsilon": epsilon,
        "clients": len(info.clients),
        "examples": steps * config.batch,
        "excluded": tuple(excluded.tolist()),
        "compile_s": info.timing.compile_s,
        "run_s": info.timing.run_s,
    }


def _mean(values: list[float] | None) -> float | None:
    return None if values is None else float(np.mean(values))
