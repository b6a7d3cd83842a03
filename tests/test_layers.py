"""The layers of kljax: who may import whom, and who may do what.

Read from the source, so that a forbidden import is found before it runs. A package may
import those of lower layers and the siblings that are named; within a package anything
goes. kljax/README.md draws the layers.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kljax

PACKAGE = Path(kljax.__file__).parent

# From the lowest up; imports go down only.
LAYERS = (
    ("core", "parallel"),
    ("data", "models", "metrics"),
    ("defences", "threat"),
    ("federated", "attacks"),
    ("studies",),
    ("cli",),
    ("__init__", "__main__"),
)
LAYER = {package: i for i, layer in enumerate(LAYERS) for package in layer}
# Of the same layer, and in this direction only.
SIBLINGS = {
    "parallel": {"core"},
    "defences": {"threat"},
    "__main__": {"__init__"},
}
# Attacks hold views: no client, no defence, no data, and no network but as a function.
# Those modules are of layers below, and no more of them.
OF_ATTACKS = {
    "core": None,
    "threat": None,
    "models": {"chain", "convolution", "losses"},  # which loss is trained by is public
}
# An attacker holds a view, and may assume that it is as sent; an update is everything
# that is true.
ATTACKERS_WORDS = {
    "Knowledge",
    "Observations",
    "Strategy",
    "ThreatModel",
    "View",
    "as_sent",
}

# name -> the files that may use it
RESERVED = {
    # A victim axis.
    "vmap": {
        "parallel/victim_axis.py",
        "parallel/client_axis.py",
        "attacks/drivers/population.py",  # one generation
        "attacks/drivers/search.py",  # restarts, and a prior now and at the end
        "attacks/ensembles.py",  # restarts, paired with one of them
        "attacks/latents.py",  # examples, each with weights and a ball of its own
        "attacks/rearranging.py",  # orders of sentences
        "attacks/pooling.py",  # uploads of one client
        "attacks/presets/inverters.py",  # uploads that are simulated, to learn from
        "attacks/simulation/averages.py",  # clients of one average
        "core/drawing.py",  # random keys
        "federated/trigger_inversion.py",  # classes, and pairs of classes
        "federated/evidence.py",  # a client's network on the examples of all clients
        "metrics/kinds/images.py",  # finished reconstructions, on their way into rows
        "metrics/own_metrics.py",  # the same, by a metric of one's own
    },
    "pmap": set(),
    "shard_map": {"parallel/victim_axis.py", "parallel/client_axis.py"},
    # The structure of somebody's network.
    "iter_modules": {"models/gating.py", "models/adapters.py"},  # which edits it
    "iter_graph": {"models/gating.py"},
    "recursive_map": {"models/gating.py"},
    "__class__": {"models/gating.py"},
    "setattr": {
        "models/gating.py",
        "models/adapters.py",
        "models/pytorch/network.py",  # which builds one
    },
    "intercept_methods": {"models/linen.py"},
    "nnx.split": {"models/model.py"},
    "nnx.merge": {"models/model.py"},
}

FILES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))
MODULES = {
    ".".join(Path(file).with_suffix("").parts).removesuffix(".__init__")
    for file in FILES
}


def package_of(file):
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
    found, here = [], package_of(file)
    for module, name in imports(tree):
        top, *parts = module.split(".")
        if top in ("experiments", "tests", ""):  # "": a relative import
            found.append(f"{module} {name}")
        if top != "kljax":
            continue
        if ".".join([*parts, name]) in MODULES:  # `name` is a module itself
            parts = [*parts, name]
        other = parts[0] if parts else "__init__"
        lower = LAYER[other] < LAYER[here]
        fine = other == here or lower or other in SIBLINGS.get(here, ())
        if here == "attacks" and other != here:
            modules = OF_ATTACKS.get(other, set())
            fine &= modules is None or len(parts) > 1 and parts[1] in modules
            fine &= other != "threat" or name in ATTACKERS_WORDS
        if not fine:
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


def named_like_their_file(file, tree):
    """Lists the functions and classes of a file that have its name.

    In a package that exports such a function, the module behind it cannot be reached.
    """
    stem = Path(file).stem
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [n.name for n in tree.body if isinstance(n, kinds) and n.name == stem]


def hidden_modules(file, tree):
    """Lists the modules of a package behind whose name its __init__ puts another."""
    folder = (PACKAGE / file).parent
    if Path(file).name != "__init__.py":
        return []
    inside = {path.stem for path in folder.iterdir()}
    return [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if (alias.asname or alias.name) in inside
        # `from kljax import data` gives the module itself.
        and node.module != ".".join(("kljax", *Path(file).parts[:-1]))
    ]


def parse(file):
    return ast.parse((PACKAGE / file).read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", FILES)
def test_a_file_keeps_to_its_layer(file):
    assert package_of(file) in LAYER, f"{file} is in no layer: see LAYERS"
    tree = parse(file)
    assert forbidden_imports(file, tree) == []
    assert misused(file, tree) == []
    assert named_like_their_file(file, tree) == []
    assert hidden_modules(file, tree) == []


def test_every_row_is_about_a_file():
    packages = {package_of(file) for file in FILES}
    assert set(LAYER) == packages
    assert {file for files in RESERVED.values() for file in files} <= set(FILES)


OFFENCES = {
    "attacks/new.py": (
        "from kljax.threat import Update, View",
        "from kljax.federated.clients import one_step",
        "import kljax.defences.lock",
        "from kljax.models import LeNet",
        "from kljax.models.model import from_nnx",
        "from kljax.metrics import ssim",
        "def f():\n    from kljax import models",
    ),
    "core/types.py": (
        "import kljax.models.losses",
        "from kljax.defences import lock",
        "from kljax.parallel import Layout",
    ),
    "threat/new.py": ("from kljax.defences import Defence",),
    "federated/new.py": ("from kljax.attacks import Attack",),
    "metrics/new.py": (
        "from kljax.attacks import cosine",
        "from kljax.data import load",
    ),
    "models/gating.py": ("from kljax.defences.lock import key_lock",),
    "studies/leakage.py": ("from kljax import cli", "from . import cli"),
    "cli/new.py": ("from experiments import speed", "import tests.toys"),
}


@pytest.mark.parametrize(
    ("file", "source"), [(f, source) for f, all_ in OFFENCES.items() for source in all_]
)
def test_a_forbidden_import_is_found(file, source):
    assert len(forbidden_imports(file, ast.parse(source))) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    (
        (
            "attacks/new.py",
            "from kljax.models import chain\nfrom kljax.core import trees",
        ),
        ("attacks/new.py", "from kljax.threat import View"),
        ("defences/new.py", "from kljax.threat import KNOWLEDGE"),
        ("studies/new.py", "from kljax import attacks, metrics"),
    ),
)
def test_an_import_that_goes_down_is_fine(file, source):
    assert forbidden_imports(file, ast.parse(source)) == []


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
    assert len(misused("federated/clients/local.py", ast.parse(source))) == 1
    harmless = ast.parse("jax.random.split(rng)  # not vmap\n'vmap'")
    assert misused("federated/clients/local.py", harmless) == []


def test_a_function_that_hides_its_module_is_found():
    assert named_like_their_file("data/new.py", ast.parse("def new(): ...")) == ["new"]
    hides = ast.parse("from kljax.data.other import photos")
    assert hidden_modules("data/__init__.py", hides) == ["photos"]
    assert hidden_modules("data/new.py", hides) == []


def test_the_page_of_the_package_names_each_package_in_its_layer():
    page = (PACKAGE / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| `(\w+)` \|", page, re.M)
    expected = [
        (str(number), package)
        for number, layer in enumerate(LAYERS[:-1], 1)
        for package in layer
    ]
    assert sorted(rows) == sorted(expected)


# Of a second or more each, and of use to few, or at the end alone.
SLOW_TO_IMPORT = (
    "scipy.stats",
    "scipy.optimize",
    "jax.experimental.pallas",
    "sklearn",
    "pandas",
    "matplotlib",
)


@pytest.mark.slow
def test_studies_are_imported_without_what_is_slow_and_not_needed_yet():
    code = "import sys; from kljax import LeakConfig, leak; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    imported = done.stdout.split()
    assert "kljax.studies.leakage" in imported
    assert not {*SLOW_TO_IMPORT} & {*imported}
