import doctest
import importlib

import pytest

import kljax.metrics

ROOMS = ("floors", "image", "intervals", "matching", "outcomes")


def test_the_door_opens_what_it_lists():
    assert len(set(kljax.metrics.__all__)) == len(kljax.metrics.__all__)
    for name in kljax.metrics.__all__:
        assert hasattr(kljax.metrics, name), name
    for name in kljax.metrics.__all__:
        value = getattr(kljax.metrics, name)
        assert not callable(value) or value.__doc__, name


@pytest.mark.parametrize("room", ROOMS)
def test_examples_in_docstrings(room):
    module = importlib.import_module(f"kljax.metrics.{room}")
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0
