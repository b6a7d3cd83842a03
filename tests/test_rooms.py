"""The order of the house: who may import whom, and who may do what.

Read from the source, so that a forbidden import is found before it runs. A new file
needs a row here; a row says what its room stands on.
"""

import ast
from pathlib import Path

import pytest

import kljax

HOUSE = Path(kljax.__file__).parent

# room -> the rooms it may import, besides itself
FOUNDATION = {
    "typing": set(),
    "trees": {"typing"},
    "dependence": {"typing"},
    "randomness": {"typing"},
    "registry": set(),
    "files": set(),
    "claim": {"files"},
    "run_folder": {"files"},
    "memory": set(),
    "provenance": set(),
    "compilation": set(),
    "rollcall": set(),
    "drawing": {"typing"},
    "convolution": {"typing"},
    "losses": {"typing"},
    "keylock": {"typing"},
    "threat": {"typing"},
    "mapping": {"typing"},
    "data": {"typing", "memory"},
    "augmentation": {"typing"},
    "figures": {"typing"},
    "metrics": {"typing"},
    "chain": {"typing", "convolution"},
    "surgery": {"typing", "convolution"},
    "models": {
        "typing",
        "dependence",
        "randomness",
        "convolution",
        "surgery",
        "chain",
    },
    "defences": {"typing", "keylock"},
    "clients": {"typing", "randomness", "losses", "defences", "threat"},
    "rounds": {
        "typing",
        "randomness",
        "drawing",
        "data",
        "clients",
        "defences",
        "mapping",
    },
    "algorithms": {"typing", "keylock", "clients", "defences", "rounds"},
    "evaluation": {"typing", "registry", "losses", "defences"},
    # On the other side of the wall: no client, no defence, no network.
    "attacks": {
        "typing",
        "trees",
        "dependence",
        "randomness",
        "registry",
        "threat",
        "chain",
        "convolution",
        "losses",  # which one a client trains by is public
    },
}
# What puts the rooms together; each may import the foundation and what is before it.
UPSTAIRS = (
    "config",
    "arms",
    "ground",
    "preparation",
    "sizes",
    "checkpoint",
    "journal",
    "training",
    "captured",
    "staging",
    "diagnosis",
    "leakage",
    "scoring",
    "gallery",
    "report",
    "sweeps",
    "studies",
    "tally",
    "engine",
    "probe",
    "study_report",
    "progress",
    "cli",
    "__init__",
    "__main__",
)
ALLOWED = FOUNDATION | {
    room: {*FOUNDATION, *UPSTAIRS[:i]} for i, room in enumerate(UPSTAIRS)
}
# An attacker holds a view; an update is everything that is true.
ATTACKERS_WORDS = {"View", "ThreatModel", "Knowledge", "Strategy", "STRATEGY"}

# name -> the files that may use it
RESERVED = {
    # A victim axis.
    "vmap": {
        "mapping/victims.py",
        "mapping/clients.py",
        "attacks/attack.py",  # restarts of one attack
        "attacks/pooling.py",  # uploads of one client
        "drawing.py",  # random keys
        "scoring.py",  # finished reconstructions, on their way into rows
    },
    "pmap": set(),
    "shard_map": {"mapping/victims.py", "mapping/clients.py"},
    # The structure of somebody's network.
    "iter_modules": {"surgery.py"},
    "iter_graph": {"surgery.py"},
    "recursive_map": {"surgery.py"},
    "__class__": {"surgery.py"},
    "setattr": {"surgery.py"},
    "intercept_methods": {"models/linen.py"},
    "nnx.split": {"models/model.py"},
    "nnx.merge": {"models/model.py"},
}

FILES = sorted(str(path.relative_to(HOUSE)) for path in HOUSE.rglob("*.py"))


def room_of(file):
    return file.removesuffix(".py").split("/")[0]


def imports(tree):
    """Lists (module, name) of every import, inside functions, too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((module, alias.name) for alias in node.names)


def forbidden_imports(file, tree):
    """Lists what `file` imports and may not."""
    found = []
    for module, name in imports(tree):
        top, *parts = module.split(".")
        if top in ("experiments", "tests", ""):  # "": a relative import
            found.append(f"{module} {name}")
        if top != "kljax":
            continue
        other = parts[0] if parts else name
        is_room = other in ALLOWED
        if is_room and other != room_of(file) and other not in ALLOWED[room_of(file)]:
            found.append(f"{module} {name}")
        if room_of(file) == "attacks" and other == "threat":
            if name not in ATTACKERS_WORDS:
                found.append(f"{module} {name}")
    return found


def uses(tree):
    """Lists the names used in code (not in comments or strings)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.alias):
            yield node.name
        elif isinstance(node, ast.Attribute):
            yield node.attr
            if isinstance(node.value, ast.Name):
                yield f"{node.value.id}.{node.attr}"


def misused(file, tree):
    return sorted(
        {name for name in uses(tree) if file not in RESERVED.get(name, {file})}
    )


def parse(file):
    return ast.parse((HOUSE / file).read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", FILES)
def test_a_file_keeps_to_its_room(file):
    assert room_of(file) in ALLOWED, f"{file} needs a row in tests/test_rooms.py"
    assert forbidden_imports(file, parse(file)) == []
    assert misused(file, parse(file)) == []


def test_every_row_is_about_a_file():
    rooms = {room_of(file) for file in FILES}
    assert set(FOUNDATION) <= rooms
    assert {file for files in RESERVED.values() for file in files} <= set(FILES)


OFFENCES = {
    "attacks/new.py": (
        "from kljax.threat import Update, View",
        "from kljax.clients import one_step",
        "import kljax.keylock",
        "def f():\n    from kljax import models",
    ),
    "typing.py": ("import kljax.losses", "from kljax import keylock"),
    "metrics/new.py": ("from kljax.attacks import cosine",),
    "surgery.py": ("from kljax.keylock import key_lock",),
    "leakage.py": ("from kljax import cli", "from . import cli"),
    "cli.py": ("from experiments import speed", "import tests.toys"),
}


@pytest.mark.parametrize(
    ("file", "source"), [(f, source) for f, all_ in OFFENCES.items() for source in all_]
)
def test_a_forbidden_import_is_found(file, source):
    assert len(forbidden_imports(file, ast.parse(source))) == 1


@pytest.mark.parametrize(
    "source",
    (
        "jax.vmap(f)",
        "from jax import vmap",
        "module.__class__ = other",
        "nnx.split(network)",
        "nnx.iter_modules(network)",
    ),
)
def test_a_reserved_name_is_found(source):
    assert len(misused("clients/local.py", ast.parse(source))) == 1
    harmless = ast.parse("jax.random.split(rng)  # not vmap\n'vmap'")
    assert misused("clients/local.py", harmless) == []
