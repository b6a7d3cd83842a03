"""Checkpoints: the states of one arm on disk, written by orbax.

An arm has two folders: ``server/ROUND`` holds all that the server has,
``clients/ROUND`` all that stays with the clients, so that one can be given away without
the other (but not together with the seed: private keys follow from it). ROUND counts
finished rounds: R is the state before round R is run, 0 the start.

Each of the two appears whole or not at all, and a round counts once it is in both: the
latest such round is the one to go on from, whenever the writing was cut off. Arrays are
stored by the name of their place in the tree (``public/model/fc/kernel``).
"""

import os
import re
import shutil
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np

from kljax.core.files import DamagedFile, brief
from kljax.core.trees import named
from kljax.core.types import PyTree
from kljax.federated.clients import ClientState
from kljax.federated.server import ServerState

Tree = TypeVar("Tree")

PARTS = ("clients", "server")  # in the order of writing
CHECKSUM = "crc32"  # of all leaves, beside them
REMEDY = (
    "restore it from a copy, or remove it: a training goes on from the round before "
    "that was kept, or from its start"
)
ASIDE = ".removed"  # ends the name of what is on its way out


def save(
    folder: Path,
    server: ServerState,
    clients: ClientState,
    keep: Collection[int] = (),
) -> None:
    """Writes both states, and removes older ones.

    Args:
      folder: of the arm; made if it is not there.
      server: its `round` names the checkpoint; one that is there already is replaced.
      clients: of all clients, with a leading axis.
      keep: rounds that are not removed.

    Raises:
      OSError: if it cannot be written; older rounds stay, and nothing is left of it.
    """
    number = int(server.round)
    for part, tree in zip(PARTS, (clients, server), strict=True):
        _remove(folder / part / str(number))
        _write(folder / part / str(number), tree)
    prune(folder, number, keep)


def saved(folder: Path) -> list[int]:
    """Lists the rounds that are there, server and clients, in ascending order."""
    return sorted(set.intersection(*(_rounds(folder / part) for part in PARTS)))


def restore(
    folder: Path, number: int, server: ServerState, clients: ClientState
) -> tuple[ServerState, ClientState]:
    """Reads both states.

    Args:
      folder: of the arm.
      number: one of `saved`.
      server, clients: trees like those wanted, of arrays or of shapes with dtypes.

    Raises:
      FileNotFoundError: if there is no such round; those that are there are listed.
      DamagedFile: if it is not what was written.
      ValueError: if the names, shapes or dtypes are not those wanted.
    """
    return restore_server(folder, number, server), restore_clients(
        folder, number, clients
    )


def restore_server(folder: Path, number: int, like: ServerState) -> ServerState:
    """Reads what the server has; see `restore`."""
    return _read(folder, "server", number, like)


def restore_clients(folder: Path, number: int, like: ClientState) -> ClientState:
    """Reads what stays with the clients; see `restore`."""
    return _read(folder, "clients", number, like)


def prune(folder: Path, number: int, keep: Collection[int] = ()) -> None:
    """Removes every round but `number` and those to keep, and what is half written.

    Rounds after `number` are removed, kept or not: they are the future of another run
    of the same rounds, which was cut off.
    """
    for part in PARTS:
        if not (folder / part).is_dir():
            continue
        wanted = {str(n) for n in (*keep, number) if n <= number}
        for path in list((folder / part).iterdir()):
            if path.name not in wanted:
                _remove(path)


def _rounds(folder: Path) -> set[int]:
    if not folder.is_dir():
        return set()
    # Orbax renames a finished checkpoint; until then its name is not a number.
    return {int(path.name) for path in folder.iterdir() if path.name.isdecimal()}


def _remove(path: Path) -> None:
    """Removes a folder whose removal, too, may be cut off at any moment."""
    if not path.exists():
        return
    if path.name.isdecimal():
        aside = path.with_name(path.name + ASIDE)
        shutil.rmtree(aside, ignore_errors=True)
        path = path.rename(aside)
    shutil.rmtree(path)


def _checkpointer():
    # A second to import, which those who only attack need not wait.
    import orbax.checkpoint

    # Of several processes one alone comes here: orbax would wait for all.
    here = jax.process_index()
    alone = orbax.checkpoint.options.MultiprocessingOptions(
        primary_host=here,
        active_processes={here} if jax.process_count() > 1 else None,
        barrier_sync_key_prefix="kljax" if jax.process_count() > 1 else None,
    )
    handler = orbax.checkpoint.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return orbax.checkpoint.Checkpointer(handler, multiprocessing_options=alone)


def _write(path: Path, tree: PyTree) -> None:
    arrays = {name: np.asarray(leaf) for name, leaf in named(tree).items()}
    checksum = _checksum(arrays)
    # Counted, so that no tree is empty: clients may have nothing of their own.
    arrays["leaves"] = np.asarray(len(arrays), np.int32)
    # Not every byte on the disk is under a checksum of orbax's.
    arrays[CHECKSUM] = np.asarray(checksum, np.uint32)
    try:
        with _checkpointer() as checkpointer:
            checkpointer.save(path.resolve(), arrays)
    except Exception as error:
        # Half a checkpoint takes the room that others need.
        for half in path.parent.glob(f"{path.name}.orbax*"):
            shutil.rmtree(half, ignore_errors=True)
        # A full disk is a ValueError of orbax's, with the system's number in it.
        number = re.search(r"os_error_code='(\d+)'", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(path)) from error


def _read(folder: Path, part: str, number: int, like: Tree) -> Tree:
    path = folder / part / str(number)
    if not path.is_dir():
        there = ", ".join(map(str, sorted(_rounds(folder / part)))) or "none"
        raise FileNotFoundError(
            f"no checkpoint of the {part} at round {number} in {str(folder)!r}; there "
            f"are {there}"
        )
    arrays = _arrays(path)
    wanted = named(like)
    _check(str(path), arrays, wanted)
    # Clients' states are written in place.
    leaves = [np.require(arrays[name], requirements="W") for name in wanted]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with _checkpointer() as checkpointer:
            arrays = checkpointer.restore(path.resolve())
        del arrays["leaves"]
        checksum = arrays.pop(CHECKSUM, None)  # older checkpoints have none
        if checksum is not None and int(checksum) != _checksum(arrays):
            raise ValueError("its numbers are not those that were written")
    except PermissionError:
        raise
    # What orbax raises is of many kinds.
    except Exception as error:
        what = f"it is no checkpoint ({brief(error)})"
        raise DamagedFile(path, what, remedy=REMEDY) from error
    return arrays


def _checksum(arrays: Mapping[str, np.ndarray]) -> int:
    found = 0
    for name, array in sorted(arrays.items()):
        form = f"{name} {array.dtype} {array.shape}"
        found = zlib.crc32(
            np.ascontiguousarray(array), zlib.crc32(form.encode(), found)
        )
    return found


def _check(
    where: str, arrays: dict[str, np.ndarray], wanted: dict[str, object]
) -> None:
    missing = sorted(wanted.keys() - arrays.keys())
    unknown = sorted(arrays.keys() - wanted.keys())
    if missing or unknown:
        raise ValueError(
            f"checkpoint {where!r} does not fit: missing {missing}, unknown {unknown}"
        )
    for name, array in arrays.items():
        have = array.shape, array.dtype
        want = np.shape(wanted[name]), np.dtype(wanted[name].dtype)
        if have != want:
            raise ValueError(
                f"checkpoint {where!r} does not fit: {name!r} is {have[1]}{have[0]} "
                f"there, {want[1]}{want[0]} here"
            )
