"""What the tests of entries of experiments/speed.py share."""

import argparse
import importlib.util
import os
import sys

import pytest
from tiny_studies import quick_compilation


@pytest.fixture
def quickly():
    """Compiles quickly."""
    with quick_compilation():
        yield


@pytest.fixture
def options():
    """Makes what speed.py reads of the command line, for some peers."""

    def make(*peers, rounds=1, torch_python=sys.executable, **others):
        return argparse.Namespace(
            peers=peers,
            rounds=rounds,
            torch_python=torch_python,
            peers_from=None,
            tiny=True,
            **others,
        )

    return make


@pytest.fixture
def torch_python():
    """A Python with PyTorch: this one, or that which TORCH_PYTHON names."""
    other = os.environ.get("TORCH_PYTHON")
    if other is None and importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed; TORCH_PYTHON may name where it is")
    return other or sys.executable
