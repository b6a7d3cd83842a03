"""Names: what stands for what, and what is said when nothing does."""

import types

import outside_package
import pytest

from kljax import data
from kljax.attacks.optimisers import OPTIMISERS
from kljax.attacks.presets import PRESETS
from kljax.core.registry import nearest, resolve, unknown_name
from kljax.data.triggers import TRIGGERS
from kljax.defences.arms import KINDS
from kljax.federated.aggregation import AGGREGATORS
from kljax.federated.encryption import ENCRYPTIONS
from kljax.federated.hardening import HARDENINGS
from kljax.federated.roles import ROLES
from kljax.models import NETWORKS, losses

# Every table of names that a study looks something up in.
TABLES = {
    "model": NETWORKS,
    "dataset": data.EMBEDDED,
    "attack": PRESETS,
    "optimiser": OPTIMISERS,
    "loss": losses.LOSSES,
    "defence": KINDS,
    "dataset to prepare": data.PREPARERS,
    "aggregator": AGGREGATORS,
    "encryption": ENCRYPTIONS,
    "role": ROLES,
    "trigger": TRIGGERS,
    "hardening": HARDENINGS,
}


@pytest.mark.parametrize("kind", TABLES)
def test_every_name_stands_for_its_entry(kind):
    for name, entry in TABLES[kind].items():
        assert resolve(kind, name, TABLES[kind]) is entry


@pytest.mark.parametrize("kind", TABLES)
def test_a_misspelt_name_is_told_from_its_neighbour(kind):
    for name in TABLES[kind]:
        with pytest.raises(ValueError) as error:
            resolve(kind, f"{name}x", TABLES[kind])
        message = str(error.value)
        assert f"unknown {kind} '{name}x'" in message
        assert f"did you mean {name!r}" in message
        assert all(known in message for known in TABLES[kind])
        assert "package.module:function" in message


def test_no_neighbour_is_made_up():
    assert nearest("zzz", ("lenet", "dense")) == ""
    assert "did you mean" not in unknown_name("model", "zzz", ("lenet", "dense"))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("outside_package:Tiny", outside_package.Tiny),
        ("outside_package:reveal", outside_package.reveal),
        ("outside_package:Tiny.__call__", outside_package.Tiny.__call__),
        ("kljax.models.losses:cross_entropy", losses.cross_entropy),
    ],
)
def test_anything_that_can_be_imported_can_be_named(name, found):
    assert resolve("model", name, NETWORKS) is found


@pytest.mark.parametrize(
    ("name", "culprit"),
    [
        ("no_such_package:net", "cannot import module 'no_such_package'"),
        ("outside_package.deeper:net", "cannot import module 'outside_package.deeper'"),
        ("outside_package:missing", "has no attribute 'missing'"),
        ("outside_package:Tiny.missing", "has no attribute 'missing'"),
        ("outside_package:", "unknown model 'outside_package:'"),
        (":Tiny", "unknown model ':Tiny'"),
        (".relative:net", "unknown model '.relative:net'"),
        ("", "unknown model ''"),
        ("outside_package", "unknown model 'outside_package'"),
    ],
)
def test_what_cannot_be_imported_is_refused_by_name(name, culprit):
    with pytest.raises(ValueError) as error:
        resolve("model", name, NETWORKS)
    assert culprit in str(error.value)
    assert repr(name) in str(error.value)


def test_a_module_that_lacks_a_module_of_its_own_says_which(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import not_installed_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="No module named 'not_installed_at_all'"):
        resolve("attack", "needs_more:attack", PRESETS)


def test_a_mistake_inside_a_users_module_keeps_its_own_error(tmp_path, monkeypatch):
    # Not the fault of the name: the user needs the line in that file.
    (tmp_path / "is_broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZeroDivisionError):
        resolve("attack", "is_broken:attack", PRESETS)


def test_names_of_the_library_win_over_modules(monkeypatch):
    table = {"outside_package:Tiny": types.SimpleNamespace()}
    assert (
        resolve("model", "outside_package:Tiny", table) is table["outside_package:Tiny"]
    )


def test_a_number_among_choices_is_near_to_no_name():
    assert nearest("3", (1, 3)) == ""
    assert nearest("grex", (1, "grey")) == " (did you mean 'grey'?)"
