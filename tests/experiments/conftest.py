"""What the tests of entries of experiments/speed.py share."""

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
def torch_python():
    """A Python with PyTorch: this one, or that which TORCH_PYTHON names."""
    other = os.environ.get("TORCH_PYTHON")
    if other is None and importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed; TORCH_PYTHON may name where it is")
    return other or sys.executable
