"""The README: its first example runs as it is printed."""

import pathlib
import re

import pytest
from studies import quick_compilation

from kljax import metrics

README = pathlib.Path(__file__).parent.parent / "README.md"


def examples() -> list[str]:
    """Finds the blocks of Python."""
    return re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.M | re.S)


def first_example() -> str:
    """Finds the first block of Python."""
    assert examples(), f"{README.name} has no python block"
    return examples()[0]


def test_the_first_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # LPIPS is an extra, and its networks take long to compile.
    monkeypatch.setattr(metrics, "lpips_available", lambda: False)
    with quick_compilation():
        # In a namespace of its own, as in a script.
        exec(compile(first_example(), README.name, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("block", examples()[1:])
def test_the_others_run(block):
    with quick_compilation():
        exec(compile(block, README.name, "exec"), {"__name__": "__main__"})


def test_the_first_example_is_short():
    lines = [line for line in first_example().splitlines() if line.strip()]
    assert 3 <= len(lines) <= 15
    assert "kljax" in first_example()
