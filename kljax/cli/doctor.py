"""``kljax doctor``: whether this machine can run kljax, and what would mend it.

It imports nothing that it judges but JAX, and that in a process of its own, since a
broken JAX can end a process.
"""

import dataclasses
import json
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from rich.console import Console

from kljax.cli.printing import printed_table, say
from kljax.core.places import cache_folder

SECONDS = 120  # that JAX may take to find its devices
ASKS = """
import json, jax
print(json.dumps({
    "backend": jax.default_backend(),
    "devices": [d.device_kind for d in jax.local_devices()],
    "cache": jax.config.jax_compilation_cache_dir,
}))
"""
# Extras that are for work on kljax itself, and missing in most places.
FOR_DEVELOPERS = frozenset(("test", "types", "docs", "release", "notebooks", "peers"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Doctor:
    """Says what is installed, what is missing, and the command that mends it.

    Its exit status is 0 where all that every command needs is there, and 1 otherwise;
    an extra that is missing is no fault.

    Attributes:
      json: whether to print JSON.
    """

    json: bool = False


class Lack(NamedTuple):
    """A package that is not as it is required.

    Attributes:
      requirement: as it is required.
      found: the version that is there; None for none.
    """

    requirement: str
    found: str | None


def run_doctor(job: Doctor, console: Console) -> None:
    """Prints versions, devices, the cache and what is missing.

    Raises:
      SystemExit: 1 where something is missing that every command needs.
    """
    required = list_requirements()
    lacks = {extra: find_lacks(needed) for extra, needed in required.items()}
    devices = ask_for_devices()
    cache = Path(devices.get("cache") or cache_folder())
    size = folder_size(cache)
    faults = [
        f"{_told(lack)}: pip install '{lack.requirement}'" for lack in lacks.pop("")
    ]
    if "error" in devices:
        faults.append(
            f"JAX finds no device ({devices['error']}): unset JAX_PLATFORMS, or pip "
            "install 'kljax[cuda]' or 'kljax[tpu]' for an accelerator"
        )
    elif not _writable(cache):
        faults.append(
            f"{cache} cannot be written, and everything is compiled anew in every "
            "process: set JAX_COMPILATION_CACHE_DIR to a folder of yours"
        )
    found = {
        "kljax": metadata.version("kljax"),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in map(_name, required[""])},
        "devices": devices,
        "cache": {"folder": str(cache), "bytes": size},
        "extras": {
            extra: {"missing": [_told(lack) for lack in there], "mend": _mend(extra)}
            for extra, there in lacks.items()
        },
        "faults": faults,
    }
    if job.json:
        print(json.dumps(found, indent=2))
    else:
        _print(found, console)
    if faults:
        raise SystemExit(1)


def list_requirements() -> dict[str, list[Requirement]]:
    """Reads what kljax requires off its metadata: ``extra -> requirements``.

    Those of every command are under the empty name.
    """
    extras = metadata.metadata("kljax").get_all("Provides-Extra") or []
    required: dict[str, list[Requirement]] = {name: [] for name in ("", *extras)}
    for text in metadata.requires("kljax") or []:
        requirement = Requirement(text)
        for extra, requirements in required.items():
            if _asked(requirement, "") == (extra == "") and _asked(requirement, extra):
                requirements.append(requirement)
    return required


def find_lacks(requirements: list[Requirement]) -> list[Lack]:
    """Finds those of some requirements that are not met, the extras of each, too."""
    lacks = []
    for requirement in requirements:
        found = _version(requirement.name)
        met = found is not None and requirement.specifier.contains(found, True)
        met = met and all(
            _version(other.name) is not None
            for other in _of_extras(requirement.name, requirement.extras)
        )
        if not met:
            plain = str(requirement).partition(";")[0].strip()
            lacks.append(Lack(plain, found))
    return lacks


def _asked(requirement: Requirement, extra: str) -> bool:
    """Tells whether a requirement is one here, for an extra; for all, if empty."""
    marker = requirement.marker
    return marker is None or marker.evaluate({"extra": extra})


def _of_extras(name: str, extras: set[str]) -> list[Requirement]:
    """Lists what the extras of an installed package require, such as CUDA of JAX's."""
    required = [Requirement(text) for text in metadata.requires(name) or []]
    return [
        requirement
        for requirement in required
        if not _asked(requirement, "")
        and any(_asked(requirement, extra) for extra in extras)
    ]


def ask_for_devices() -> dict:
    """Asks JAX for its backend, devices and cache, in a process of its own.

    Returns:
      What it says; ``error`` where it finds none.
    """
    command = [sys.executable, "-c", ASKS]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer in {SECONDS} s"}
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    last = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return {"error": last[-1][:300]}


def folder_size(folder: Path) -> int:
    """Adds up the bytes of the files in a folder; 0 where there is none."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # gone meanwhile, or not for us to see
            continue
    return total


def _writable(folder: Path) -> bool:
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _name(requirement: Requirement) -> str:
    return re.sub(r"[-_.]+", "-", requirement.name).lower()


def _told(lack: Lack) -> str:
    there = "is missing" if lack.found is None else f"is {lack.found} here"
    return f"{lack.requirement} {there}"


def _mend(extra: str) -> str:
    return f"pip install 'kljax[{extra}]'"


def _print(found: dict, console: Console) -> None:
    devices, cache = found["devices"], found["cache"]
    say(console, f"kljax {found['kljax']}, Python {found['python']}")
    versions = (f"{n} {v or '(missing)'}" for n, v in found["packages"].items())
    say(console, ", ".join(versions), wrap=True)
    if "error" not in devices:
        say(console, f"devices: {devices['backend']}: {', '.join(devices['devices'])}")
    say(console, f"cache: {cache['folder']}, {cache['bytes'] / 2**20:.1f} MiB")
    say(console, "")
    lines = [
        [extra, "there" if not there["missing"] else there["mend"]]
        for extra, there in found["extras"].items()
        if extra not in FOR_DEVELOPERS
    ]
    console.print(printed_table(["extra", "installed, or how to"], lines))
    say(console, "")
    for fault in found["faults"]:
        say(console, f"fault: {fault}")
    say(console, f"faults: {len(found['faults']) or 'none'}")
