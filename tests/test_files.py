"""Files that are there whole or not at all."""

import errno
import json
import os

import pytest

from kljax import files


def test_json_comes_back_with_null_for_what_is_no_number(tmp_path):
    path = tmp_path / "found.json"
    files.write_json(path, {"a": float("nan"), "b": [1.5, float("inf")], "c": "é"})
    assert files.read_json(path) == {"a": None, "b": [1.5, None], "c": "é"}
    assert files.read_json(tmp_path / "missing.json") is None
    json.loads(path.read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize("step", ("fsync", "replace"))
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "table.csv"
    files.write_text(path, "old\r\n")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        files.write_text(path, "new\r\n")
    assert path.read_bytes() == b"old\r\n"
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]
