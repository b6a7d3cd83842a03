"""Run folders: claimed before the work, whole or absent, nothing lost at the end."""

import contextlib
import errno
import os
import resource
import tempfile

import pytest

from kljax.core import folders
from kljax.core.folders import NotWritten, claim

TEXTS = {"config.json": "{}", "rows.csv": "a,b\r\n1,2\r\n"}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@contextlib.contextmanager
def small_disk(size):
    """Lets no file of this process grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_folder_appears_whole(tmp_path):
    folder = tmp_path / "deep" / "run"
    with claim(folder) as claimed:
        assert not folder.exists()
        claimed.write_first(TEXTS)
    assert names(folder) == sorted(TEXTS) and claimed.folder == folder
    assert (folder / "rows.csv").read_bytes() == TEXTS["rows.csv"].encode()
    assert names(tmp_path / "deep") == ["run"]
    assert folder.stat().st_mode & 0o777 == 0o755


def test_a_name_may_be_as_long_as_the_file_system_has_them(tmp_path):
    folder = tmp_path / ("n" * os.pathconf(tmp_path, "PC_NAME_MAX"))
    with claim(folder) as claimed:
        claimed.write_first(TEXTS)
    assert names(folder) == sorted(TEXTS)


NO_PLACES = {
    "below a file": ("file/run", "'[^']*file' is no folder"),
    "far below a file": ("file/deep/run", "'[^']*file' is no folder"),
    "too long": ("new/" + "n" * 300, "File name too long"),
    "no name": ("new/a\0b", "null byte"),
    "no text": ("new/\ud800", "surrogates not allowed"),
}


@pytest.mark.parametrize("place", NO_PLACES)
def test_where_nothing_can_be_written_is_said_before_the_work(tmp_path, place):
    (tmp_path / "file").write_text("precious")
    name, why = NO_PLACES[place]
    with pytest.raises(OSError, match=f"run folder .* cannot be written .*{why}"):
        with claim(tmp_path / name):
            pytest.fail("the work has begun")
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("number", (errno.EROFS, errno.EACCES))
def test_a_disk_that_takes_nothing_is_said_before_the_work(
    tmp_path, monkeypatch, number
):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(OSError, match=f"{os.strerror(number)}.*--out"):
        with claim(tmp_path / "deep" / "run"):
            pytest.fail("the work has begun")
    assert names(tmp_path) == []


def test_a_full_disk_is_said_before_the_work(tmp_path):
    with small_disk(2**16):
        with pytest.raises(OSError, match="cannot be written .*--out, or make room"):
            with claim(tmp_path / "deep" / "run", room=2**20):
                pytest.fail("the work has begun")
    assert names(tmp_path) == []


def test_a_result_has_its_room_on_the_disk_from_the_beginning(tmp_path):
    with claim(tmp_path / "run", room=2**16) as claimed:
        assert os.fstat(claimed.room.fileno()).st_blocks * 512 >= 2**16
        # Nothing of it is left behind by a process that is killed.
        assert names(claimed.aside) == []
        claimed.write_first(TEXTS)
        assert claimed.room.closed


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_that_only_writes_keeps_room_all_the_same(
    tmp_path, monkeypatch, number
):
    def unknown(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", unknown)
    with claim(tmp_path / "run", 3 * 2**20 + 1) as claimed:
        assert os.fstat(claimed.room.fileno()).st_size == 3 * 2**20 + 1
        claimed.write_first(TEXTS)
    assert names(tmp_path / "run") == sorted(TEXTS)


def test_a_size_out_of_reason_is_left_to_whoever_knows_why(tmp_path):
    with claim(tmp_path / "run", room=2**60) as claimed:
        assert os.fstat(claimed.room.fileno()).st_size == folders.MOST_ROOM


def test_work_that_fails_before_anything_is_written_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="on purpose"):
        with claim(tmp_path / "deep" / "deeper" / "run"):
            raise RuntimeError("on purpose")
    assert names(tmp_path) == []
    # But what was there, or has come, stays.
    (tmp_path / "deep").mkdir()
    with pytest.raises(RuntimeError, match="on purpose"):
        with claim(tmp_path / "deep" / "run"):
            raise RuntimeError("on purpose")
    assert names(tmp_path) == ["deep"]


@pytest.mark.parametrize("content", ((), ("precious.txt",)))
def test_a_folder_that_appeared_meanwhile_is_not_touched(tmp_path, content):
    with claim(tmp_path / "run") as claimed:
        (tmp_path / "run").mkdir()
        for name in content:
            (tmp_path / "run" / name).write_text("years of work")
        (tmp_path / "run-2").write_text("a file")
        claimed.write_first(TEXTS)
    assert claimed.folder == tmp_path / "run-3"
    assert names(tmp_path / "run-3") == sorted(TEXTS)
    assert names(tmp_path / "run") == [*content]


def test_what_does_not_fit_in_the_end_is_rescued(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    write = folders.write_text

    def full(path, text):
        if path.name == "rows.csv" and "elsewhere" not in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, text)

    monkeypatch.setattr(folders, "write_text", full)
    with pytest.raises(NotWritten, match="No space left.* were rescued to") as failure:
        with claim(tmp_path / "run") as claimed:
            claimed.write_first(TEXTS)
    assert not (tmp_path / "run").exists()
    (rescued,) = (tmp_path / "elsewhere").iterdir()
    assert str(rescued) in str(failure.value) and failure.value.texts == {}
    for name, text in TEXTS.items():
        assert (rescued / name).read_bytes() == text.encode()


def test_what_fits_nowhere_is_in_the_error(tmp_path):
    with pytest.raises(NotWritten, match="nor could a temporary one") as failure:
        with claim(tmp_path / "run", room=0) as claimed, small_disk(1):
            claimed.write_first(TEXTS)
    assert failure.value.texts == TEXTS
    assert names(tmp_path) == []


def test_what_was_written_first_outlives_what_fails_later(tmp_path):
    with pytest.raises(NotWritten, match="No space.*run-unfinished.*config.json, rows"):
        with claim(tmp_path / "run") as claimed:
            claimed.write_first(TEXTS)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == ["run-unfinished"]
    assert names(tmp_path / "run-unfinished") == sorted(TEXTS)
