"""Attackers that act in some rounds alone, and that share a trigger."""

import jax
import numpy as np
import pytest
from test_roles import ATTACK, RNG, rounds_of, some_batches
from test_rounds import client_data, play
from tiny_studies import quick_compilation

from kljax.data.triggers import distributed
from kljax.federated.cast import cast_of
from kljax.federated.role_texts import parse_roles


@pytest.fixture(autouse=True)
def quickly():
    with quick_compilation():
        yield


SHARED = ATTACK._replace(trigger=distributed(3, 1, 0))


def poisoned_pixels(role):
    """Counts, by pixel, which images of a black batch turn white."""
    images = np.zeros((3, 4, 6, 8, 1), np.float32)
    batches = some_batches()._replace(inputs=images)
    return np.asarray(role.batches(RNG, batches).inputs).max(axis=(0, 1))[..., 0]


def test_attackers_are_dealt_the_parts_by_their_numbers():
    texts = ["5:backdoor", "1-2:model-replacement", "3:label-flip", "6:backdoor"]
    roles = parse_roles(texts, SHARED, 7)
    assert list(roles) == [5, 1, 2, 3, 6]
    places = {n: np.argwhere(poisoned_pixels(roles[n])).tolist() for n in (1, 2, 5, 6)}
    assert places == {1: [[0, 0]], 2: [[0, 1]], 5: [[1, 0]], 6: [[0, 0]]}
    assert not poisoned_pixels(roles[3]).any()


def test_who_puts_on_the_same_part_shares_a_role():
    roles = parse_roles(["0-5:backdoor"], SHARED, 6)
    assert len({id(role) for role in roles.values()}) == 3
    assert roles[0] is roles[3]
    # Without parts, all share one.
    assert (
        len({id(role) for role in parse_roles(["0-5:backdoor"], ATTACK, 6).values()})
        == 1
    )


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["0-1:backdoor"], "has 3 parts, and clients 0, 1 of .* nobody puts on part 2"),
        (["4:backdoor", "0-3:label-flip"], "and client 4 of .* puts on part 1"),
        (["0:backdoor@"], "or CLIENTS:ROLE@ROUNDS, such as 0:backdoor@5-9"),
        (["0:backdoor@x"], "or CLIENTS:ROLE@ROUNDS"),
        (["0:backdoor@3-20"], "there is no round 20, but 0 to 19"),
        (["0:backdoor@4-3"], "the range 4-3 is written backwards"),
    ],
)
def test_what_cannot_be_played_is_refused(texts, message):
    with pytest.raises(ValueError, match=message):
        parse_roles(texts, SHARED, 7, rounds=20)


def test_a_role_is_played_in_its_rounds_alone():
    attack = ATTACK._replace(trigger=lambda images: images)
    (role,) = set(parse_roles(["0:model-replacement=10@1,3-4"], attack, 5).values())
    assert role.rounds == {1, 3, 4}
    numbers = [cast_of({0: role}).numbers(np.arange(2), r).tolist() for r in range(6)]
    assert numbers == [[0, 0], [1, 0], [0, 0], [1, 0], [1, 0], [0, 0]]


def test_single_shot_changes_one_round():
    """In all rounds but one the run is that of honest clients, bit by bit."""
    data = client_data()
    honest = play(rounds_of({}), data, count=3)[2]
    attack = ATTACK._replace(trigger=lambda images: images)
    roles = parse_roles(["3:model-replacement=50@2"], attack, 5)
    attacked = play(rounds_of(roles), data, count=3)[2]
    before = [info.loss for info in honest][:3]
    assert [info.loss for info in attacked][:2] == before[:2]
    assert attacked[2].loss != before[2]
    early = play(rounds_of(roles), data, count=2)[0]
    clean = play(rounds_of({}), data, count=2)[0]
    jax.tree.map(np.testing.assert_array_equal, early.public, clean.public)


def test_who_hardens():
    texts = ["0:honest", "1:backdoor", "2:hardened-backdoor", "3:model-replacement"]
    cast = cast_of(parse_roles([*texts, "4:label-flip"], ATTACK, 6))
    numbers = cast.numbers(np.arange(6), 0)
    assert [bool(cast.hardens(n)) for n in numbers] == [
        *(True, False, True, False, False, True)
    ]
