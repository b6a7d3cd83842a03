"""Optimisers of the server: by hand, by name, and what is refused."""

import math

import pytest
from test_rounds import pixels, product, weight_after
from tiny_studies import quick_compilation

from kljax.federated.optimisers import make_server_optimiser


@pytest.fixture(autouse=True)
def quickly():
    with quick_compilation():
        yield


def trained(text, rate, count):
    """The weight after rounds with one client of the pixel 1, which halves it."""
    rounds = product(server_optimiser=make_server_optimiser(text, rate))
    return weight_after(rounds, pixels(1.0), count=count)[0]


def slow(kind, rate, count, b1=0.9, b2=0.99, tau=1e-3):
    """Adam and Yogi in Python, of the one weight that clients halve from 1 on."""
    weight, first, second = 1.0, 0.0, 0.0
    if kind == "yogi":
        first = second = 1e-6
    for number in range(1, count + 1):
        change = -weight / 2
        first = b1 * first - (1 - b1) * change
        square = change**2
        if kind == "adam":
            second = b2 * second + (1 - b2) * square
        else:
            second -= (1 - b2) * math.copysign(square, second - square)
        mean, spread = first / (1 - b1**number), second / (1 - b2**number)
        weight -= rate * mean / (math.sqrt(spread) + tau)
    return weight


@pytest.mark.parametrize("kind", ["adam", "yogi"])
def test_adam_and_yogi_are_their_slow_forms(kind):
    for count in (1, 4):
        expected = slow(kind, 0.25, count)
        assert trained(kind, 0.25, count) == pytest.approx(expected, abs=3e-6)
    other = trained(f"{kind}=0.5,0.6,0.1", 0.25, 4)
    expected = slow(kind, 0.25, 4, b1=0.5, b2=0.6, tau=0.1)
    assert other == pytest.approx(expected, abs=3e-6)
    assert abs(other - trained(kind, 0.25, 4)) > 0.01
    named = trained(f"{kind}=tau=.1,b2=.6,b1=.5", 0.25, 4)
    assert named == other


def test_sgd_by_hand():
    # The aggregate is -.5; twice the rate of .5: 1 -> .75 -> .5625.
    assert trained("sgd", 0.5, 2) == pytest.approx(0.5625)
    # 1 -> .5; then -.25 and half of -.5: 0.
    assert trained("sgd=0.5", 1.0, 2) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adm", "unknown server_optimiser 'adm' .did you mean 'adam'"),
        ("sgd=1", "sgd needs momentum >= 0 and < 1, got 1"),
        ("adam=1", "adam needs b1 >= 0 and < 1, got 1"),
        ("yogi=.9,-1", "yogi needs b2 >= 0 and < 1, got -1"),
        ("adam=tau=0", "adam needs a finite tau > 0, got 0"),
        ("adam=.9,.99,.1,3", "'adam' cannot be called with float, float, float, float"),
        ("builtins:abs", "'builtins:abs' gave no optax.GradientTransformation, but fl"),
    ],
)
def test_what_is_no_optimiser_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        make_server_optimiser(text, 1.0)
