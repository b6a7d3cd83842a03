"""What an attacker does about what a defence does to what is sent."""

import re

import jax
import numpy as np
import pytest
from tiny_studies import scored, sites_of, study, tiny

from kljax.defences.arms import check_upload, parse_arm
from kljax.studies import leak_report
from kljax.studies.builder.study import build_study
from kljax.studies.reports import threat_words
from kljax.studies.sweeps.legality import is_legal

# An eps at which gradients of these networks, up to 1, survive the rounding of float32.
SENT = "adadefense=eps=1e-6"
ARMS = ("none", SENT, f"{SENT}/undo", f"{SENT}/unaware")


@pytest.fixture(scope="module")
def revealed():
    """A study whose attack shows what it sees, arm by arm."""
    return study(arms=ARMS, attack="outside_package:measured_reveal")


def seen(arm):
    model = arm.attacked.reconstruction.info["view"].grads.model
    leaves = [np.reshape(x, (len(x), -1)) for x in jax.tree.leaves(model)]
    return np.concatenate(leaves, axis=1)


def test_every_attacker_sees_the_same_and_makes_its_own_of_it(revealed):
    plain, adaptive, undone, unaware = map(seen, revealed.arms)
    np.testing.assert_array_equal(adaptive, unaware)
    np.testing.assert_allclose(np.abs(adaptive[plain != 0]).max(), 1e-3, rtol=1e-3)
    error = np.linalg.norm(undone - plain, axis=1) / np.linalg.norm(plain, axis=1)
    assert np.all((error < 0.01) & (error > 0))


def test_only_who_knows_the_defence_explains_what_is_sent(revealed):
    losses = [arm.attacked.loss_at_truth for arm in revealed.arms]
    scales = [arm.attacked.loss_scale for arm in revealed.arms]
    plain, adaptive, undone, unaware = np.array(losses) / np.array(scales)
    assert np.all(plain < 1e-6) and np.all(adaptive < 1e-6)
    assert np.all(undone < 1) and np.all(unaware > 100)


@pytest.mark.slow
def test_a_record_of_earlier_uploads_tells_the_moments():
    """At t = 1, to who has it; the first of two gradients is what it is alone."""
    arms = (SENT, f"{SENT}/unaware", f"{SENT}/undo")
    options = {"arms": arms, "attack": "outside_package:measured_reveal"}
    first, second = study(**options), study(**options, earlier=1)
    np.testing.assert_array_equal(first.victims.inputs, second.victims.inputs)
    assert second.victims.before[0].shape == (3, 1, 1, 8, 8, 3)
    own = {image.tobytes() for image in second.victims.inputs[:, 0]}
    assert not own & {image.tobytes() for image in second.victims.before[0][:, 0, 0]}
    # Another state, another upload; each is explained by who follows the state.
    assert np.max(np.abs(seen(second.arms[0]) - seen(first.arms[0]))) > 1e-4
    for result in (first, second):
        adaptive, unaware, undone = (
            arm.attacked.loss_at_truth / arm.attacked.loss_scale for arm in result.arms
        )
        assert np.all(adaptive < 0.1) and np.all(unaware > 100)
    view = second.arms[0].attacked.reconstruction.info["view"]
    assert view.earlier.model["fc/kernel"].shape == (
        3,
        1,
        *view.grads.model["fc/kernel"].shape[1:],
    )


@pytest.mark.slow
def test_a_past_with_gaps_in_it_leaves_a_loss_to_search_by():
    """Each upload has a mask of its own."""
    options = {"arms": (f"{SENT}+selective-random=0.2",), "labels": "given"}
    (found,) = study(victims=1, steps=3, earlier=1, **options).arms
    assert np.all(np.isfinite(found.attacked.reconstruction.loss))
    assert np.all(found.attacked.loss_at_truth < 0.1 * found.attacked.loss_scale)


def test_a_past_longer_than_the_dataset_is_refused():
    with pytest.raises(
        ValueError, match="earlier=9000 uploads of 3 victims take 27000"
    ):
        build_study(tiny(arms=("none",), earlier=9000))


def test_the_tables_say_what_it_does(revealed):
    assert {row["arm"] for row in scored(revealed)} >= {*ARMS}
    lines = "\n".join(leak_report.threat_lines(revealed))
    assert f"{SENT}/unaware: does release=unaware" in lines
    for arm, words in (("undo", "undoes what the defence"), ("unaware", "not know")):
        assert words in " ".join(threat_words(tiny(arms=(f"adadefense/{arm}",))))
    assert "release" not in "".join(leak_report.threat_lines(study(steps=1)))


def test_what_nobody_sees_cannot_be_undone():
    arm = parse_arm("adadefense/undo", sites_of(), {})
    with pytest.raises(ValueError, match="adadefense/undo'.*each local step.*@update"):
        check_upload(arm, "update")
    on_update = parse_arm("adadefense@update/undo", sites_of(), {})
    check_upload(on_update, "update")


@pytest.mark.slow
def test_the_table_of_the_experiment_has_its_trend(capsys, monkeypatch):
    """Both ends: who undoes the defence must succeed, who is unaware must fail."""
    import adadefense

    monkeypatch.setattr("sys.argv", ["adadefense", "--victims", "4", "--earlier", "0"])
    adadefense.main()
    lines = capsys.readouterr().out.splitlines()[2:]
    cells = [line.strip("| ").split(" | ") for line in lines]
    recovered = {arm.strip("`"): int(count[0]) for _, arm, count, *_ in cells}
    assert recovered["none"] == recovered["adadefense/undo"] == 4
    assert recovered["adadefense/unaware"] == 0


HIDING = "adadefense+selective-magnitude=0.1"


def test_labels_that_memory_and_encryption_mix_are_refused():
    for labels, arm, earlier, refused in (
        (None, HIDING, 1, True),
        ("recovered", f"{HIDING}/simulate", 1, True),
        ("joint", HIDING, 1, False),
        (None, HIDING, 0, False),
        (None, f"{HIDING}/undo", 1, False),
        # Nothing is remembered; nothing is hidden.
        (None, "norm-clipping=1+selective-magnitude=0.1", 1, False),
        (None, "adadefense", 1, False),
    ):
        options = {"labels": labels, "earlier": earlier, "arms": (arm,)}
        config = tiny(attack="inverting-gradients", victims=1, **options)
        if refused:
            with pytest.raises(
                ValueError, match=f"{re.escape(HIDING)}.*labels='joint'.*/undo'"
            ):
                build_study(config)
            with pytest.raises(ValueError, match="labels='recovered' reads signs"):
                is_legal(config)
        else:
            build_study(config)
            assert is_legal(config)


@pytest.mark.slow
def test_who_undoes_a_defence_looks_where_its_whole_record_is_readable():
    """Labels are read as without a memory, and the loss is finite."""
    arm = f"{HIDING}/undo"
    (found,) = study(
        arms=(arm,), attack="outside_package:measured_reveal", earlier=2, labels="given"
    ).arms
    view = found.attacked.reconstruction.info["view"]
    for name, record in view.earlier.model.items():
        gaps = np.isnan(record).any(axis=1)  # [N, t, ...]
        seen = view.visible.model[name]
        assert not np.any(seen & gaps)
        np.testing.assert_array_equal(np.isnan(view.grads.model[name]), ~seen)
    assert np.isfinite(found.attacked.loss_at_truth).all()
    options = {"attack": "inverting-gradients", "steps": 3, "earlier": 1}
    (attacked,) = study(arms=(arm,), **options).arms
    found = attacked.attacked.reconstruction
    assert np.isfinite(found.loss).all() and (found.labels >= 0).all()
