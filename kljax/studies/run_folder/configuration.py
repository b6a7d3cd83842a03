"""``config.json``: which run a folder is of, and whether another may go on with it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from kljax.core.files import converted, read_json
from kljax.core.provenance import collect_provenance
from kljax.core.registry import unknown_name
from kljax.defences.arms import ON_UPDATE, acts_on_release
from kljax.studies.config import SPEED_OPTIONS, TrainConfig

# Up to 1, what is now written NAME@update was written NAME.
SCHEMA_VERSION = 2
JOB = "train"
# What config.json says besides options.
DESCRIBED = {
    *("schema_version", "job", "data_licence"),
    *("device", "local_devices", "python", "versions"),
}
RESTORE = "restore it from a copy, or name another folder"


def check_same(folder: Path, config: TrainConfig) -> None:
    """Refuses a folder that belongs to something else; a new one is fine.

    Raises:
      FileExistsError: if `folder` is there and is no run of `kljax train`, or one of
        another configuration; the differences are named. Options of speed may differ.
      DamagedFile: if its ``config.json`` is not what was written.
      ValueError: for a run whose arms mean something else today.
    """
    # Killed before its first file was whole, a run has left nothing but hidden files.
    if not folder.exists() or (
        folder.is_dir() and all(p.name[0] == "." for p in folder.iterdir())
    ):
        return
    there = _read_config(folder)
    if there is None:
        raise FileExistsError(
            f"run folder {str(folder)!r} exists and is no run of kljax train: name "
            "another"
        )
    # Through JSON and back, where tuples are lists.
    here = json.loads(json.dumps(dataclasses.asdict(config)))
    # What a run could not say yet was as it is by default.
    there = json.loads(json.dumps(dataclasses.asdict(TrainConfig()))) | there
    different = [
        f"{name}: {_shown(there, name)} there, {_shown(here, name)} here"
        for name in here
        if name not in SPEED_OPTIONS and _shown(there, name) != _shown(here, name)
    ]
    if different:
        raise FileExistsError(
            f"run folder {str(folder)!r} is of another configuration ("
            f"{'; '.join(different)}): name another, or repeat its own"
        )
    _check_meaning(folder, there)


def read_config(folder: Path, *, newer_ok: bool = False) -> TrainConfig:
    """Reads the configuration of a run.

    Args:
      folder: of the run.
      newer_ok: whether options that this kljax does not have are passed over.

    Raises:
      FileNotFoundError: if there is no ``config.json``.
      DamagedFile: if it is not what was written.
      ValueError: if it is not of a run of `kljax train`, has an option that this kljax
        does not have, or arms that mean something else today.
    """
    path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{str(folder)!r} is no run of kljax train: it has no config.json"
        )
    content = _read_config(folder)
    if content is None:
        raise ValueError(f"{str(folder)!r} is no run of kljax train")
    options = {field.name: field for field in dataclasses.fields(TrainConfig)}
    for name in () if newer_ok else content.keys() - options.keys() - DESCRIBED:
        raise ValueError(f"{path}: {unknown_name('option', name, options)}")
    config = converted(content, TrainConfig, path, remedy=RESTORE)
    _check_meaning(folder, content)
    return config


def _read_config(folder: Path) -> dict[str, Any] | None:
    """Reads ``config.json``; None if the folder is no run of `kljax train`."""
    try:
        content = read_json(folder / "config.json", dict[str, Any], remedy=RESTORE)
    except NotADirectoryError:
        return None
    return None if content is None or content.get("job") != JOB else content


def describe(config: TrainConfig, licence: str) -> dict[str, Any]:
    """Says all that is needed to repeat a run, as written to ``config.json``."""
    return {
        "schema_version": SCHEMA_VERSION,
        "job": JOB,
        **dataclasses.asdict(config),
        "data_licence": licence,
        **collect_provenance(),
    }


def _check_meaning(folder: Path, config: dict[str, Any]) -> None:
    """Refuses a run in which transforms acted on updates without saying so."""
    if config.get("schema_version", 1) != 1:
        return
    changed = [arm for arm in config.get("arms", ()) if acts_on_release(arm)]
    if changed:
        raise ValueError(
            f"run {str(folder)!r} is of an older kljax, in which noise, clipping and "
            f"pruning of {', '.join(changed)} acted once on the whole update; now they "
            f"act on the gradient of each step, unless {ON_UPDATE} follows their name: "
            "train it again in another folder, under the names of what you mean"
        )


def _shown(config: dict[str, Any], name: str) -> str:
    return json.dumps(config[name]) if name in config else "nothing"
