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
with claim_folder(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(folder):
    """Starts another process that has claimed the folder."""
    words = [sys.executable, "-c", HOLD, str(folder)]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True)


def test_whoever_holds_a_claim_is_named_until_it_is_dead(tmp_path):
    holder = hold(tmp_path)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(FileExistsError) as error:
            with claim_folder(tmp_path):
                pytest.fail("was let in")
        said = f"process {holder.pid} on {socket.gethostname()}"
        assert said in str(error.value) and str(tmp_path) in str(error.value)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        # What the dead has left: hidden files, which mean nothing.
        assert {path.name for path in tmp_path.iterdir()} == {".claim", ".holder.json"}
        with claim_folder(tmp_path):
            with pytest.raises(FileExistsError, match=f"process {os.getpid()} on"):
                with claim_folder(tmp_path):
                    pytest.fail("was let in")
    finally:
        holder.kill()
        holder.communicate()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ("", "[]", '{"host": "a"}'))
def test_a_claim_counts_whatever_became_of_the_name_of_its_holder(tmp_path, content):
    with claim_folder(tmp_path):
        holder = tmp_path / ".holder.json"
        assert files.read_json(holder)["pid"] == os.getpid()
        holder.write_text(content)
        with pytest.raises(FileExistsError, match=r"\(.claim is held\)"):
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


@pytest.mark.slow
def test_no_module_needs_what_windows_has_not():
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX], capture_output=True, text=True
    )
    assert found.stdout == "imported\n", found.stderr
