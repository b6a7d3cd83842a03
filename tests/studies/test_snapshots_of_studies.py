"""Snapshots of a study: they are kept beside reconstructions, and change no row."""

from types import SimpleNamespace

import numpy as np
import pytest
from tiny_studies import study

from kljax.studies.config import LeakConfig
from kljax.studies.convergence import record_convergence
from kljax.studies.scoring import matched_images, score_rows
from kljax.studies.store.images import Images, _alike

OPTIONS = {"arms": ("none", "gaussian-noise=0.1"), "examples": 2, "restarts": 2}


@pytest.fixture(scope="module")
def pair():
    """One study, without snapshots and with two of them."""
    return [study(snapshots=count, **OPTIONS) for count in (0, 2)]


@pytest.mark.slow
def test_snapshots_change_no_row(pair):
    plain, kept = map(score_rows, pair)
    assert len(plain) == len(kept) > 0
    for one, other in zip(plain, kept, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            np.testing.assert_equal(other[name], value, name)


def test_the_last_snapshot_is_what_is_found_in_the_order_of_the_truths(pair):
    _, result = pair
    rows = score_rows(result)
    for arm in result.arms:
        found = record_convergence(arm, result)
        assert found["snapshots"].shape == (3, 2, 2, 8, 8, 3)
        np.testing.assert_array_equal(
            found["snapshots"][:, -1], matched_images(arm, result)
        )
        own = [row["ssim"] for row in rows if row["arm"] == arm.arm.name]
        last = found["snapshot_scores"][:, -1].ravel()
        np.testing.assert_allclose(last, own, rtol=1e-5)
        first = found["snapshot_scores"][:, 0].ravel()
        assert not np.allclose(first, own)


def test_losses_are_recorded_without_snapshots(pair):
    plain, kept = (record_convergence(result.arms[0], result) for result in pair)
    assert plain.keys() == {"losses", "loss_evaluations"}
    np.testing.assert_array_equal(plain["loss_evaluations"], [[1, 2, 3, 4]] * 3)
    np.testing.assert_array_equal(kept["losses"], plain["losses"][:, 1::2])


def test_an_attack_without_a_search_records_nothing(pair):
    found = SimpleNamespace(info={"losses": np.zeros(3)})
    arm = SimpleNamespace(attacked=SimpleNamespace(reconstruction=found))
    assert record_convergence(arm, pair[0]) == {}


def test_parts_of_a_cell_with_other_snapshots_are_joined_without_them():
    def part(points):
        others = {"losses": np.zeros((2, 4)), "snapshots": np.zeros((2, points, 1))}
        return Images(0, np.zeros(2), np.zeros(2), np.zeros(2), others)

    assert _alike([part(4), part(4)]) == {"losses", "snapshots"}
    assert _alike([part(4), part(2)]) == {"losses"}


def test_one_arm_in_two_spellings_is_refused():
    arms = ("none", "gaussian-noise=.1", "gaussian-noise=0.10/known")
    assert LeakConfig(arms=arms).arms == arms  # another attacker is another arm
    with pytest.raises(
        ValueError, match=r"'gaussian-noise=.1' and 'gaussian-noise=1e-"
    ):
        LeakConfig(arms=("gaussian-noise=.1", "gaussian-noise=1e-1"))
