"""Notebooks run as they are."""

import pathlib
import runpy

import pytest
from studies import quick_compilation

NOTEBOOKS = sorted((pathlib.Path(__file__).parent.parent / "notebooks").glob("*.py"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, capsys):
    with quick_compilation():
        runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out


def test_there_is_one():
    assert NOTEBOOKS
