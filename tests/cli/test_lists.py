"""``kljax list`` and ``kljax doctor``."""

import json

import pytest

from kljax import cli
from kljax.attacks.presets.catalogue import PRESETS
from kljax.cli import doctor
from kljax.data.catalogue import EMBEDDED, PREPARED
from kljax.defences.catalogue import KINDS
from kljax.models.catalogue import NETWORKS
from kljax.studies.catalogues import LISTS, entries, explain


def test_every_name_of_a_catalogue_is_listed_with_a_sentence():
    tables = {"attacks": PRESETS, "defences": KINDS, "models": NETWORKS}
    tables["data"] = EMBEDDED | PREPARED
    for kind in LISTS:
        found = entries(kind)
        assert [entry.name for entry in found] == [*tables.get(kind, map_names(found))]
        for entry in found:
            assert entry.does.endswith((".", ")")), (kind, entry)
            assert entry.written.removeprefix("ARM/").startswith(entry.name) or (
                kind == "strategies"
            )


def map_names(found):
    return [entry.name for entry in found]


def test_an_entry_says_what_it_needs_and_where_it_is_from():
    attacks = {entry.name: entry for entry in entries("attacks")}
    assert "server=malicious" in attacks["imprint"].needs
    assert "kljax[evolution]" in attacks["ggl"].needs
    assert attacks["dlg"].source.startswith("Zhu, Liu, Han")
    needs = {name: entry.needs.split("; ")[1:] for name, entry in attacks.items()}
    assert needs["lamp"] == ["sentences", "a language model"]
    assert (needs["dager"], needs["dlg"]) == (["sentences"], [])
    assert (needs["tableak"], needs["matching"]) == (["rows of a table"], ["images"])
    noise = {entry.name: entry for entry in entries("defences")}["gaussian-noise"]
    assert noise.written == "gaussian-noise[=std=0.01]"


def test_a_docstring_is_read():
    def thing():
        """Does one thing.

        More of it.

        Reference: A, "B"
        (C 2020).

        And more.
        """

    assert explain(thing) == ("Does one thing.", 'A, "B" (C 2020).')


def test_lists_are_printed(capsys):
    assert cli.main(["list"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert all(name in printed for name in (*PRESETS, *KINDS, *LISTS))
    assert cli.main(["list", "attacks", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in listed["attacks"]] == [*PRESETS]
    assert cli.main(["list", "atacks"]) == 2
    assert "did you mean 'attacks'?" in capsys.readouterr().err


@pytest.fixture
def devices(monkeypatch, tmp_path):
    """Answers for JAX, whose process takes seconds."""
    found = {"backend": "cpu", "devices": ["cpu"], "cache": str(tmp_path)}
    monkeypatch.setattr(doctor, "ask_for_devices", lambda: found)
    (tmp_path / "compiled").write_bytes(bytes(2**20))
    return found


def diagnose(capsys, *arguments):
    try:
        status = cli.main(["doctor", *arguments])
    except SystemExit as end:
        status = end.code
    return status, capsys.readouterr().out


def test_a_healthy_machine_has_no_faults(devices, capsys):
    status, printed = diagnose(capsys)
    assert status == 0 and "faults: none" in printed and "cache:" in printed
    assert "1.0 MiB" in printed
    found = json.loads(diagnose(capsys, "--json")[1])
    assert found["faults"] == [] and found["packages"]["jax"]
    assert found["extras"]["he"]["mend"] == "pip install 'kljax[he]'"


def test_what_is_missing_is_named_with_what_mends_it(devices, capsys, monkeypatch):
    version = doctor._version

    def without(name):
        return {"optax": "0.0.1", "tenseal": None}.get(name, version(name))

    monkeypatch.setattr(doctor, "_version", without)
    devices.pop("cache"), devices.update(error="no backend")
    status, printed = diagnose(capsys)
    printed = " ".join(printed.split())
    assert status == 1 and "faults: 2" in printed
    assert "is 0.0.1 here: pip install 'optax>=" in printed
    assert "JAX finds no device (no backend)" in printed
    assert "he pip install 'kljax[he]'" in printed


def test_jax_is_asked_in_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(doctor, "ASKS", "raise SystemExit('broken driver')")
    assert doctor.ask_for_devices() == {"error": "broken driver"}
    monkeypatch.setattr(doctor, "ASKS", 'print(\'{"backend": "cpu"}\')')
    assert doctor.ask_for_devices() == {"backend": "cpu"}
