"""The main job: what attacks of whole studies find."""

import numpy as np
import pytest
from tiny_studies import finished, scored, study

from kljax.studies import scoring
from kljax.studies.config import LeakConfig
from kljax.studies.leakage import leak

# ---- Attacks -------------------------------------------------------------------------


@pytest.mark.slow
def test_extraction_is_as_good_as_knowing_the_private_key():
    # Both compare lock gradients, which are shared: nothing else is different.
    arms = ("keylock/known", "keylock/extract")
    known, extract = study(arms=arms, threat=("lock_grads=shared",), steps=10).arms
    assert known.threat.knowledge.private_key == "known"
    assert extract.threat.knowledge.private_key == "hidden"
    one, other = (arm.attacked.reconstruction for arm in (known, extract))
    np.testing.assert_allclose(
        one.info["secret"].secret, other.info["secret"].secret, rtol=0, atol=1e-5
    )
    np.testing.assert_allclose(one.inputs, other.inputs, rtol=0, atol=1e-4)
    np.testing.assert_allclose(one.loss, other.loss, rtol=1e-3)


@pytest.mark.slow
def test_restarts_choose_by_the_attackers_own_loss():
    config = {"attack": "idlg", "steps": 6}  # without a prior, loss is all there is
    three = study(**config, restarts=3).arms[0].attacked.reconstruction
    single = study(**config).arms[0].attacked.reconstruction
    losses = three.info["restart_losses"]
    assert losses.shape == (3, 3)
    assert np.all(np.ptp(losses, axis=1) > 0)
    np.testing.assert_array_equal(three.loss, losses.min(axis=1))
    # The first of three starts is the only one of one.
    np.testing.assert_allclose(losses[:, 0], single.loss, rtol=1e-4)
    first = np.argmin(losses, axis=1) == 0
    apart = np.max(np.abs(three.inputs - single.inputs), axis=(1, 2, 3, 4))
    np.testing.assert_array_equal(apart < 1e-4, first)
    np.testing.assert_array_equal(three.numbers["evaluations"], 18)
    np.testing.assert_array_equal(single.numbers["evaluations"], 6)


@pytest.mark.slow
def test_a_search_that_breaks_off_is_not_finite():
    result = study(optimiser="outside_package:exploding")
    found = result.arms[0].attacked.reconstruction
    assert not np.any(found.finite)
    # What it had before is kept.
    assert np.all(np.isfinite(found.inputs)) and np.all(np.isfinite(found.loss))
    outcomes = [row["outcome"] for row in scored(result)]
    assert outcomes.count("diverged") == 3
    sound = finished()[0].arms[0].attacked.reconstruction
    assert np.all(sound.finite)


@pytest.mark.slow
def test_several_examples_can_share_a_gradient():
    result = study(examples=2, labels="joint", victims=2)
    assert result.arms[0].threat.strategy.labels == "joint"
    assert result.arms[0].threat.knowledge.examples == 2
    assert result.victims.inputs.shape == (2, 2, 8, 8, 3)
    found = result.arms[0].attacked.reconstruction
    assert found.inputs.shape == (2, 2, 8, 8, 3)
    assert found.labels.shape == (2, 2)
    np.testing.assert_array_less(0, found.loss)


@pytest.mark.slow
def test_recovered_labels_are_right():
    result, _ = finished()
    for arm in result.arms:
        assert arm.threat.strategy.labels == "recovered"
        if not arm.arm.name.startswith("gaussian"):
            np.testing.assert_array_equal(
                arm.attacked.reconstruction.labels, result.victims.labels
            )


def test_the_attack_comes_closest_without_a_defence():
    result, rows = finished()
    ssim = {
        arm.arm.name: np.mean([r["ssim"] for r in rows if r["arm"] == arm.arm.name])
        for arm in result.arms
    }
    assert ssim["none"] > 0.9
    # A trend only: how far gate regression comes is a finding, not a requirement.
    assert ssim["none"] > ssim["keylock/regress_gates"]


# ---- Acceptance: the default study on LeNet, minutes --------------------------------


@pytest.fixture(scope="module")
def defaults():
    """Runs the default attack on 16 victims, without a defence and behind a norm."""
    rows = {}
    for name in ("digits", "photos"):
        result = leak(LeakConfig(data=name, arms=("none", "bn-control")))
        rows[name] = scoring.score_rows(result)
    return rows


def column(rows, arm, name):
    values = [row[name] for row in rows if row["arm"] == arm]
    assert len(values) == 16
    return values


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "photos"])
def test_the_default_attack_recovers_the_undefended(defaults, name):
    outcomes = column(defaults[name], "none", "outcome")
    rate = outcomes.count("recovered") / 16
    print(f"{name}: recovered {rate:.0%}, {outcomes}")
    assert rate >= 0.8


@pytest.mark.slow
def test_the_norm_alone_hides_contrast_and_nothing_else(defaults):
    for name, rows in defaults.items():
        for metric in ("ssim", "ssim_minmax", "ssim_affine_oracle"):
            print(name, metric, np.mean(column(rows, "bn-control", metric)))
    ssim = column(defaults["digits"], "bn-control", "ssim_affine_oracle")
    assert np.mean(ssim) >= 0.9


@pytest.mark.slow
def test_noise_that_hides_no_more_than_the_norm_does_is_no_protection():
    """With noise the gradient counts as matched sooner, and the images are as right."""
    arms = ("bn-control", "bn-control+gaussian-noise=0.001")
    options = {"model": "lenet", "optimiser": None, "steps": 600}
    rows = scored(study(**options, arms=arms))
    attacked = [row for row in rows if row["arm"] in arms]
    assert [row["outcome"] for row in attacked] == ["recovered_affine"] * 6
    assert min(row["ssim_affine_oracle"] for row in attacked) > 0.99
    # Wrong as they stand, and matched: that was called evidence for the noise.
    noisy = [row for row in attacked if row["arm"] == arms[1]]
    assert any(row["matching_loss"] <= row["matching_loss_floor"] for row in noisy)


@pytest.mark.slow
def test_strengths_and_step_sizes_are_data():
    noise = ("gaussian-noise=0.1", "gaussian-noise=0", "none")
    slow, fast = (study(arms=noise, step_size=rate) for rate in (1e-3, 0.3))
    assert slow.arms[1].timing.compilations == 0  # the arm before has made it
    loud, silent, bare = (r.attacked.reconstruction.inputs for r in slow.arms)
    np.testing.assert_allclose(silent, bare, atol=1e-6)
    assert np.abs(loud - bare).max() > 1e-4
    moved = [
        np.abs(r.arms[2].attacked.reconstruction.inputs - 0.5).max()
        for r in (slow, fast)
    ]
    assert moved[1] > moved[0] + 0.5
