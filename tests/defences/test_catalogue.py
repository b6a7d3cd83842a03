"""The catalogue of defences: each row has an attacker who knows it, or says why not."""

import pytest
from tiny_studies import sites_of

from kljax import defences
from kljax.defences.arms import parse_training_arm
from kljax.defences.catalogue import KINDS, Kind, write_strengths
from kljax.threat import as_sent

SITES = sites_of("layers/0")


def adaptive_arms(defence):
    """Names what an attacker who knows a defence can do about it."""
    arms = {
        "simulate": defence.simulate is not as_sent,
        "simulate_example": defence.simulate_example is not None,
        "simulate_update": defence.update.simulate is not as_sent,
        "log_prob": defence.log_prob is not None,
        "strategies": bool(defence.strategies),
        "simulate_inputs": defence.simulate_inputs is not None,
    }
    return [name for name, there in arms.items() if there]


def check_row(kind):
    """Refuses a row without an adaptive arm or a reason, and one with both."""
    made = kind.make(SITES, **kind.options)
    found, reason = adaptive_arms(made), kind.why_not_adaptive
    assert found or (reason and len(reason.split()) > 3), "neither an arm nor a reason"
    assert not (found and reason), f"has {found}, and a reason for having none"


@pytest.mark.parametrize("name", KINDS)
def test_a_row_has_an_adaptive_arm_or_says_why_not(name):
    check_row(KINDS[name])


def test_a_row_that_has_neither_is_refused():
    def half(sites):
        return defences.Defence(release=lambda rng, state, grads, context: (0, state))

    bare = Kind(half)
    for reason in (None, "", "no"):
        with pytest.raises(AssertionError, match="neither"):
            check_row(bare._replace(why_not_adaptive=reason))
    check_row(bare._replace(why_not_adaptive="what it sends is always nothing"))
    stale = KINDS["norm-clipping"]._replace(
        why_not_adaptive="nobody can know it at all"
    )
    with pytest.raises(AssertionError, match=r"has \['simulate'\], and a reason"):
        check_row(stale)


def check_strengths(name, kind):
    """Refuses a row with numbers that the table of all defences could not vary."""
    numbers = [n for n, value in kind.options.items() if not isinstance(value, str)]
    assert bool(numbers) == bool(kind.strengths), (
        f"the row {name!r} of kljax/defences/catalogue.py takes {numbers}: write "
        "one of them as three strengths, from weak to strong, with the value that it "
        "has if none is written in the middle, such as std=(0.001, 0.01, 0.1)"
    )
    for option, values in kind.strengths.items():
        assert option in numbers and len(values) == 3, f"{name}: {option} has {values}"
        assert values[1] == kind.options[option], f"{name}: {option} is not its middle"
    steps = [*zip(*kind.strengths.values(), strict=True)]
    assert len({*steps}) == len(steps), f"{name}: two of {steps} are one strength"


@pytest.mark.parametrize("name", KINDS)
def test_a_row_with_numbers_has_three_strengths(name):
    check_strengths(name, KINDS[name])
    sites = SITES._replace(value_shape=lambda name: (4, 4, 2))
    for at, arm in enumerate(write_strengths(name)):
        varied = {n: values[at] for n, values in KINDS[name].strengths.items()}
        made = parse_training_arm(arm, sites, {})
        data = [n for n in KINDS[name].options if n not in KINDS[name].fixed]
        found = dict(zip(data, made.options, strict=True))
        assert {n: found.get(n, v) for n, v in varied.items()} == varied


def test_strengths_that_could_not_be_tabled_are_refused():
    row = KINDS["gaussian-noise"]
    for strengths, said in (
        ({}, "row 'mine' .* write one of them as three strengths"),
        ({"std": (0.1, 0.2, 0.3)}, "std is not its middle"),
        ({"std": (0.01, 0.01, 0.01)}, "are one strength"),
        ({"size": (0.001, 0.01, 0.1)}, "mine: size has"),
    ):
        with pytest.raises(AssertionError, match=said):
            check_strengths("mine", row._replace(strengths=strengths))


def test_strengths_are_written_as_arms():
    assert write_strengths("none") == ("none",)
    assert write_strengths("gaussian-noise")[2] == "gaussian-noise=0.1"
    assert write_strengths("adadefense")[0] == "adadefense=eps=0.001"
    assert write_strengths("quantise-mixed")[0] == "quantise-mixed=8,12,16"
