"""Claims on a folder: who may work there, who is named, and that death ends them."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from kljax.core import files
from kljax.core.claims import claim_folder

HOLD = """
import pathlib, sys
from kljax.core.claims import claim_folder
with claim_folder(pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(folder, process=0, processes=1):
    """Starts another process that has claimed the folder."""
    words = [sys.executable, "-c", HOLD, str(folder), str(process), str(processes)]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True)


def test_whoever_holds_a_claim_is_named_until_it_is_dead(tmp_path):
    holders = [hold(tmp_path, number, 2) for number in (0, 1)]
    try:
        assert [holder.stdout.readline() for holder in holders] == ["held\n"] * 2
        for place, number in (((0, 2), 0), ((1, 2), 1), ((0, 1), 0), ((2, 3), 0)):
            with pytest.raises(FileExistsError) as error:
                with claim_folder(tmp_path, *place):
                    pytest.fail("was let in")
            said = f"process {holders[number].pid} on {socket.gethostname()}, "
            assert said + f"{number} of 2" in str(error.value)
            assert str(tmp_path) in str(error.value)
        holders[0].send_signal(signal.SIGKILL)
        holders[0].wait()
        with claim_folder(tmp_path, 0, 2):
            with pytest.raises(FileExistsError, match="1 of 2"):
                with claim_folder(tmp_path, 1, 2):
                    pytest.fail("was let in")
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()
    with claim_folder(tmp_path):
        pass
    # What the dead have left: hidden files, and the folder is as good as new.
    assert {path.name for path in tmp_path.iterdir()} <= {
        f".{what}-{number}-of-2{end}"
        for what, end in (("claim", ""), ("holder", ".json"))
        for number in (0, 1)
    }


@pytest.mark.parametrize("content", ("", "[]", '{"host": "a"}'))
def test_a_claim_counts_whatever_became_of_the_name_of_its_holder(tmp_path, content):
    with claim_folder(tmp_path):
        (holder,) = tmp_path.glob(".holder-*")
        assert files.read_json(holder)["pid"] == os.getpid()
        holder.write_text(content)
        with pytest.raises(FileExistsError, match=r"\(.claim-0-of-1 is held\)"):
            with claim_folder(tmp_path):
                pytest.fail("was let in")
    with claim_folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


WITHOUT_POSIX = """
import builtins, importlib, pkgutil
POSIX = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
original = builtins.__import__
def guarded(name, globals=None, *args, **kwargs):
    importer = (globals or {}).get("__name__", "")
    if name in POSIX and importer.partition(".")[0] in ("kljax", "filelock"):
        raise ImportError(f"no module named {name!r}")
    return original(name, globals, *args, **kwargs)
builtins.__import__ = guarded
import kljax
for module in pkgutil.walk_packages(kljax.__path__, "kljax."):
    if module.name != "kljax.__main__":
        importlib.import_module(module.name)
print("imported")
"""


def test_no_module_needs_what_windows_has_not():
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX], capture_output=True, text=True
    )
    assert found.stdout == "imported\n", found.stderr
