"""The catalogue of defences: each row has an attacker who knows it, or says why not."""

import pytest
from tiny_studies import sites_of

from kljax import defences
from kljax.defences.catalogue import KINDS, Kind
from kljax.threat import as_sent

SITES = sites_of("layers/0")


def adaptive_arms(defence):
    """Names what an attacker who knows a defence can do about it."""
    arms = {
        "simulate": defence.simulate is not as_sent,
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
