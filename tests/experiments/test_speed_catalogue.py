"""The catalogue of the speed table, and what its workers import."""

import ast
import importlib.util
import sys
from pathlib import Path

import jax
import pytest
import speed
from timing import catalogue, entry
from timing.catalogue import ENTRIES, PEERS
from timing.entries import layouts

from kljax.models.convolution import choose_form
from kljax.parallel import fastest_layout

WORKERS = Path(catalogue.__file__).parent / "workers"


def test_every_entry_is_listed_once(monkeypatch):
    rows = [row for module in catalogue.MODULES for row in module.ENTRIES]
    assert len({row.name for row in rows}) == len(rows) == len(ENTRIES)
    files = (WORKERS.parent / "entries").glob("[!_]*.py")
    assert {file.stem for file in files} == {
        module.__name__.rpartition(".")[2] for module in catalogue.MODULES
    }
    usual, rest = speed.names().split("Only when named:")
    for row in rows:
        assert f"  {row.name} " in (rest if row.if_named else usual)
    monkeypatch.setattr(sys, "argv", ["speed.py", "--json", "x", "--peers"])
    assert not any(ENTRIES[name].if_named for name in speed.arguments().only)


def test_an_entry_does_what_suits_the_device(options, monkeypatch):
    row = entry.Entry("one", "", lambda given, work: [work], 3, tiny=1, on_gpu=5)
    tiny, whole = options(), options()
    whole.tiny = False
    assert row.lines(tiny) == [1] and row.lines(whole) == [3]
    monkeypatch.setattr(entry, "on_gpu", lambda: True)
    assert row.lines(tiny) == [1] and row.lines(whole) == [5]
    assert row._replace(on_gpu=None).lines(whole) == [3]


@pytest.mark.parametrize(
    ("backend", "candidates"),
    [("cpu", layouts.CANDIDATES), ("gpu", layouts.GPU_CANDIDATES)],
)
def test_the_first_of_our_candidates_is_the_default(monkeypatch, backend, candidates):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert candidates[0] == (fastest_layout("victims"), choose_form(backend))


def test_every_peer_has_a_library():
    assert {peer.partition("-")[0] for peer in PEERS} == {"torch", "fedjax"}


@pytest.mark.parametrize("file", sorted(WORKERS.glob("*.py")), ids=lambda f: f.stem)
def test_a_worker_needs_neither_jax_nor_kljax(file):
    """It runs under a Python that has the peer's library."""
    tree, found = ast.parse(file.read_text()), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1  # of this folder
    allowed = {"numpy", "torch", *sys.stdlib_module_names}
    if file.stem == "federated_fedjax":
        allowed |= {"fedjax", "jax", "optax"}
    assert found <= allowed


def test_every_worker_of_a_peer_exists():
    for file in (WORKERS.parent / "peers").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            name = getattr(node, "value", None)
            if isinstance(name, str) and name.startswith("timing.workers."):
                libraries = ("torch", "fedjax") if name.endswith("_") else ("",)
                for library in libraries:
                    assert importlib.util.find_spec(name + library), file


# A demo has one size.
@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in ENTRIES if not n.startswith("demo")])
def test_every_entry_runs_at_its_tiny_size(name, options, quickly):
    for made in ENTRIES[name].lines(options(chunk=8)):
        assert made["ours"]["low"] > 0 and made["unit"] and made["name"]
