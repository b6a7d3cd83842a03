"""Files of what was trained on the public part of a dataset, and of which part."""

import dataclasses
import errno
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from kljax.core.files import DamagedFile, brief, converted, read_arrays, write_arrays
from kljax.core.types import Params, Rng

ACCOUNT = "account"  # what a file says of itself, beside the weights
PUBLIC = "public"
T = TypeVar("T")


def write_trained(
    path: Path, account: Any, weights: Params, public: np.ndarray
) -> None:
    """Writes a file, whole or not at all; weights become float16.

    Args:
      path: of the file.
      account: dataclass, what it says of itself; with ``examples``.
      weights: {name: array}.
      public: [examples] bool, those that it was trained on.
    """
    halves = {name: np.asarray(leaf, np.float16) for name, leaf in weights.items()}
    text = json.dumps(dataclasses.asdict(account))
    said = {ACCOUNT: np.array(text), PUBLIC: np.packbits(public)}
    write_arrays(path, halves | said, compressed=True)


def read_trained(
    path: Path,
    kind: type[T],
    init: Callable[[T, Rng], Params],
    *,
    what: str,
    remedy: str,
) -> tuple[T, Params, np.ndarray]:
    """Reads what `write_trained` wrote.

    Args:
      path: of the file.
      kind: type of the account.
      init: draws weights of the same names and shapes; it is never run.
      what: it is, for errors.
      remedy: for errors.

    Returns:
      The account, the weights in float32, and [examples] bool of the public ones.

    Raises:
      FileNotFoundError: if it is not there.
      DamagedFile: if it holds anything else.
    """
    held = read_arrays(path, remedy=remedy)
    if held is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    try:
        account = json.loads(str(held.pop(ACCOUNT)))
        bits = held.pop(PUBLIC)
    except (ValueError, KeyError) as error:
        what = f"it is no {what} ({brief(error)})"
        raise DamagedFile(path, what, remedy=remedy) from None
    account = converted(account, kind, path, remedy=remedy)
    wanted = jax.eval_shape(functools.partial(init, account), jax.random.key(0))
    for name in sorted(wanted.keys() | held.keys()):
        shapes = [
            np.shape(tree[name]) if name in tree else None for tree in (held, wanted)
        ]
        if shapes[0] != shapes[1]:
            what = f"weights of shape {shapes[0]}, expected {shapes[1]}"
            raise DamagedFile(path, what, remedy=remedy, place=name)
    if bits.dtype != np.uint8 or bits.shape != (-(-account.examples // 8),):
        what = f"no bit for each of {account.examples} examples"
        raise DamagedFile(path, what, remedy=remedy, place=PUBLIC)
    weights = {name: leaf.astype(np.float32) for name, leaf in held.items()}
    public = np.unpackbits(bits, count=account.examples).astype(bool)
    return account, weights, public


def list_trained(folder: Path) -> tuple[str, ...]:
    """Names the files of a folder that `write_trained` wrote."""
    return tuple(sorted(path.stem for path in folder.glob("*.npz")))
