"""Files that are there whole or not at all."""

import ast
import dataclasses
import errno
import json
import os
import pickle
from pathlib import Path
from typing import TypedDict

import pytest

import kljax
from kljax.core import files
from kljax.studies.config import TrainConfig


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


# --- files that are not what was written -------------------------------------------


@pytest.mark.parametrize("content", (b"", b"no archive", pickle.dumps([1])))
def test_what_is_no_archive_of_arrays_is_never_taken_for_a_pickle(tmp_path, content):
    path = tmp_path / "arrays.npz"
    path.write_bytes(content)
    with pytest.raises(files.DamagedFile, match="it is no zip archive") as found:
        files.read_arrays(path, remedy="write it anew")
    assert "pickle" not in str(found.value) and "unsafe" not in str(found.value)


class Found(TypedDict):
    """What the test's file holds."""

    name: str
    numbers: list[int]


@pytest.mark.parametrize(
    ("content", "message"),
    (
        (b"", r"at line 1, column 1: it is no JSON \(Expecting value\)"),
        (b'{"name": "a",\n "num', "at line 2, column 2: it is no JSON"),
        (b"[]", "damaged: expected `object`, got `array`"),
        (b"null", "damaged: it holds null, and nothing else"),
        (b'{"name": "a"}', "missing required field `numbers`"),
        (b'{"name": "a", "numbers": [1, "2"]}', r"at numbers\[1\]: expected `int`"),
        ('{"name": "a"}'.encode("utf-16"), "at byte 0: it is not UTF-8"),
        (b'{"name": "\xff"}', "at byte 10: it is not UTF-8"),
        (b"[" * 100_000, "it is no JSON"),
        (b'{"a": ' * 100_000, "it is no JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "it is no JSON"),
    ),
)
def test_json_that_is_not_what_was_written_says_where(content, message, tmp_path):
    path = tmp_path / "found.json"
    path.write_bytes(content)
    with pytest.raises(files.DamagedFile, match=message) as error:
        files.read_json(path, Found, remedy="write it again")
    assert str(error.value).startswith(f"{path} is damaged")
    assert str(error.value).endswith("; write it again")
    assert error.value.path == path
    assert path.read_bytes() == content


def test_json_may_have_a_byte_order_mark_and_more_fields(tmp_path):
    path = tmp_path / "found.json"
    content = {"name": "é", "numbers": [], "later": {"a": 1}}
    path.write_text(json.dumps(content), encoding="utf-8-sig")
    assert files.read_json(path, Found) == content


def test_a_configuration_comes_back_with_its_checks(tmp_path):
    config = TrainConfig(arms=("none",), drops=(2, 4), local_steps=3)
    path = tmp_path / "config.json"
    files.write_json(path, dataclasses.asdict(config))
    content = files.read_json(path)
    remedy = "name another"
    assert files.converted(content, TrainConfig, path, remedy=remedy) == config
    for name, value in (("clients", "3"), ("rounds", 0), ("drops", [4, 2])):
        with pytest.raises(files.DamagedFile, match=name):
            files.converted(content | {name: value}, TrainConfig, path, remedy=remedy)


def leaves_encoding_to_the_locale(call):
    """Tells whether a call opens, reads or writes text by pathlib or by itself."""
    name, count = ast.unparse(call.func).split(".")[-1], len(call.args)
    if any(option.arg == "encoding" for option in call.keywords):
        return False
    if name in (
        "read_text",
        "write_text",
    ):  # those of kljax.core.files take a path more
        return count == (name == "write_text")
    words = [ast.literal_eval(a) for a in call.args if isinstance(a, ast.Constant)]
    binary = any(isinstance(word, str) and "b" in word for word in words)
    return name in ("open", "fdopen") and not binary


@pytest.mark.parametrize(
    ("call", "left"),
    [
        ("path.read_text()", True),
        ("(a / 'b').write_text(text)", True),
        ("open(tube)", True),
        ("open(path, 'w', newline='')", True),
        ("open(path, encoding='utf-8')", False),
        ("open(path, 'rb')", False),
        ("path.open('rb')", False),
        ("files.write_text(path, text)", False),
        ("path.read_text(encoding='utf-8')", False),
    ],
)
def test_text_without_an_encoding_is_found(call, left):
    assert leaves_encoding_to_the_locale(ast.parse(call, mode="eval").body) == left


def test_all_text_is_utf_8_whatever_the_locale():
    """Windows and old locales have another encoding, which lacks letters."""
    found = []
    for path in sorted(Path(kljax.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and leaves_encoding_to_the_locale(node):
                found.append(f"{path.name}:{node.lineno} {ast.unparse(node)[:60]}")
    # Neither text nor a file of ours: a lock's handle and a picture.
    assert [one for one in found if "os.open(" not in one and "Image." not in one] == []


def test_a_full_disk_says_which_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device: .*table.csv"):
        files.write_text(tmp_path / "table.csv", "new")
