"""Scores: one row per image and arm, with everything in its column."""

import dataclasses

import numpy as np
import pytest
from skimage.metrics import structural_similarity
from tiny_studies import close, finished, pretended, scored, tiny, wrong

from kljax import metrics
from kljax.attacks.presets import find_preset
from kljax.metrics import COLUMNS, FLOORS, OUTCOMES
from kljax.studies import leak_report, leak_summary, scoring
from kljax.studies.scoring import SCHEMA_VERSION, matched_images

OF_AN_ATTACK = (
    "secret_strategy",
    "label_strategy",
    "label_guess",
    "label_accuracy",
    "attack",
    "evaluations",
    "matching_loss",
    "matching_loss_at_truth",
    "matching_loss_floor",
    "outcome",
)


def rows_of(rows, arm):
    return [row for row in rows if row["arm"] == arm]


def test_rows_have_the_columns_of_the_schema():
    _, rows = finished()
    for row in rows:
        assert tuple(row) == tuple(COLUMNS)
        assert row["schema_version"] == SCHEMA_VERSION == 7


def test_there_is_one_row_per_victim_and_arm_and_floor():
    result, rows = finished()
    names = [f"floor/{name}" for name in FLOORS] + list(result.config.arms)
    assert list(dict.fromkeys(row["arm"] for row in rows)) == names
    for name in names:
        indices = [row["victim"] for row in rows_of(rows, name)]
        assert indices == list(result.victims.indices[:, 0])
    assert len(rows) == 5 * (6 + 4)


def test_rows_say_what_was_done():
    result, rows = finished()
    for row in rows:
        place = list(result.victims.indices[:, 0]).index(row["victim"])
        assert row["label"] == result.victims.labels[place, 0]
        assert row["group"] == result.victims.groups[place]
        assert (row["model"], row["data"], row["seed"]) == ("dense", "digits", 0)
        assert (row["weights"], row["matmul_precision"]) == ("fresh", "highest")
        assert row["device"] == "cpu"
        if row["arm"].startswith("floor/"):
            assert all(row[name] is None for name in OF_AN_ATTACK)
        else:
            assert (row["attack"], row["optimiser"]) == ("matching", "adam")
            assert (row["restarts"], row["evaluations"]) == (1, 100)
            assert row["label_strategy"] == "recovered"
            assert row["outcome"] in OUTCOMES
    strategies = {row["arm"]: row["secret_strategy"] for row in rows}
    assert strategies["none"] == strategies["gaussian-noise=0.1"] == "unit"
    assert strategies["keylock/regress_gates"] == "regress_gates"


def test_rows_say_every_option():
    """Of a floor those that say who the victims are, of an attack all of them."""
    changes = {
        "init": 0.25,
        "lock_init": 0.5,
        "lock_activation": "signed",
        "private_key_size": 8,
        "sites": ("layers/0",),
        "threat": ("labels=known", "victim_norm=train"),
        "features": 0.1,
        "restarts": 2,
        "step_size": 0.1,
        "seed": 3,
    }
    rows = scored(pretended(tiny(**changes), close))
    (none,) = {tuple(row[name] for name in changes) for row in rows_of(rows, "none")}
    written = {"sites": "layers/0", "threat": "labels=known,victim_norm=train"}
    assert none == tuple((changes | written).values())
    of_attacks = {"features", "restarts", "step_size"}
    for row in rows_of(rows, "floor/grey"):
        for name, value in (changes | written).items():
            assert row[name] == (None if name in of_attacks else value)
    # What says nothing without a run, or where labels are given, is not there.
    for row in rows:
        assert row["upload_kind"] == "gradient" and row["from_run"] is None
        for name in ("round", "client", "local_steps", "client_optimiser"):
            assert row[name] is None
        assert row["label_rule"] is None
    _, rows = finished()
    assert {row["label_rule"] for row in rows_of(rows, "none")} == {"auto"}
    assert {row["label_rule"] for row in rows_of(rows, "floor/grey")} == {None}


def test_rows_say_what_an_update_was_made_by():
    of_run = {"from_run": "runs/some", "round": 2, "client": 1, "upload": "update"}
    config = tiny(**of_run, local_steps=4, batch=3)
    said = scoring._options(config, "all")
    assert (said["from_run"], said["round"], said["client"]) == ("runs/some", 2, 1)
    assert (said["upload_kind"], said["local_steps"], said["batch"]) == ("update", 4, 3)
    assert said["client_optimiser"] == "kept" and said["local_epochs"] is None


def test_rows_carry_the_losses_of_the_attack():
    result, rows = finished()
    for arm in result.arms:
        for n, row in enumerate(rows_of(rows, arm.arm.name)):
            attacked = arm.attacked
            assert row["matching_loss"] == attacked.reconstruction.loss[n]
            assert row["matching_loss_at_truth"] == attacked.loss_at_truth[n]
            floor = max(attacked.loss_at_truth[n], 1e-6 * attacked.loss_scale[n])
            assert row["matching_loss_floor"] == pytest.approx(floor)
            assert row["matching_loss_scale"] == attacked.loss_scale[n]
            assert row["matching_loss_degree"] == 2
            wanted = attacked.live_channels[n] if arm.arm.gated else None
            assert row["live_channels"] == wanted
            # The undefended attack is not far from done; noise sets a floor.
            if arm.arm.name.startswith("gaussian"):
                assert row["matching_loss_floor"] > 10


def test_scores_against_values_computed_another_way():
    result, rows = finished()
    for arm in result.arms:
        for n, row in enumerate(rows_of(rows, arm.arm.name)):
            truth = result.victims.inputs[n, 0].astype(np.float64)
            guess = np.clip(arm.attacked.reconstruction.inputs[n, 0], 0, 1)
            error = np.mean((guess.astype(np.float64) - truth) ** 2)
            assert row["mse"] == pytest.approx(error, rel=1e-4)
            assert row["psnr"] == pytest.approx(-10 * np.log10(error), rel=1e-4)
            similarity = structural_similarity(
                guess.astype(np.float64), truth, data_range=1, channel_axis=-1
            )
            assert row["ssim"] == pytest.approx(similarity, abs=1e-4)
            assert row["success"] == (similarity >= 0.6)
            assert row["rmse255"] == pytest.approx(255 * error**0.5, rel=1e-4)
            fedkl = 10 * np.log10(255**2 / (255 * error**0.5))
            assert row["psnr_fedkl"] == pytest.approx(fedkl, rel=1e-4)


def test_an_exact_guess_is_recovered():
    result = pretended(tiny(), lambda arm, victims: victims.inputs)
    for row in rows_of(scored(result), "none"):
        assert (row["mse"], row["psnr"]) == (0, float("inf"))
        assert row["ssim"] == pytest.approx(1)
        assert (row["success"], row["outcome"]) == (True, "recovered")
        assert row["label_guess"] == row["label"] and row["label_accuracy"] == 1


def test_every_outcome_has_its_name():
    def guesses(arm, victims):
        images = wrong(arm, victims)
        images[0] = close(arm, victims)[0]
        images[3] = np.nan
        return images

    result = pretended(
        tiny(victims=5),
        guesses,
        loss=np.array([9.0, 1e-3, 1e-7, 1e-7, 1e-7]),
        finite=np.array([True, True, True, True, False]),
        loss_at_truth=np.zeros(5),
        loss_scale=np.full(5, 0.5),  # a loss above 5e-7 has missed something
    )
    rows = rows_of(scored(result), "none")
    outcomes = [row["outcome"] for row in rows]
    assert outcomes == ["recovered", "unsolved", "ambiguous", "diverged", "diverged"]
    assert np.isnan(rows[3]["ssim"]) and rows[3]["success"] is False
    # With a floor under the loss, as from noise, the same loss has matched.
    noisy = pretended(
        tiny(victims=5), guesses, loss=np.full(5, 1e-3), loss_at_truth=np.full(5, 0.01)
    )
    outcomes = [row["outcome"] for row in rows_of(scored(noisy), "none")]
    assert outcomes == ["recovered", "ambiguous", "ambiguous", "diverged", "ambiguous"]


def test_what_a_wrong_replay_misses_is_no_match():
    """A client that goes on with momentum: the truth itself has a large loss."""

    def outcomes(exact):
        found = pretended(
            tiny(victims=3),
            wrong,
            loss=np.array([0.5, 1e-9, 2.0], np.float32),
            loss_at_truth=np.full(3, 1.0, np.float32),
            loss_scale=np.ones(3, np.float32),
            replay_is_exact=np.full(3, exact),
        )
        rows = rows_of(scored(found), "none")
        assert [row["replay_is_exact"] for row in rows] == [exact] * 3
        return [row["outcome"] for row in rows]

    assert outcomes(True) == ["ambiguous", "ambiguous", "unsolved"]
    assert outcomes(False) == ["unsolved", "ambiguous", "unsolved"]


def test_examples_are_matched_one_to_one():
    orders = np.array([[2, 0, 1], [1, 2, 0], [0, 1, 2]])  # guess i is truth order[i]

    def shuffled(images, orders=orders):
        return np.stack([x[order] for x, order in zip(images, orders, strict=True)])

    config = tiny(examples=3)
    straight = pretended(config, close)
    victims = straight.victims
    mixed = pretended(
        config,
        lambda arm, victims: shuffled(close(arm, victims)),
        labels=shuffled(victims.labels),
    )
    np.testing.assert_array_equal(
        matched_images(mixed.arms[0], mixed), close("none", victims)
    )
    for one, other in zip(scored(straight), scored(mixed), strict=True):
        assert one == other
    row = rows_of(scored(mixed), "none")[0]
    assert row["label_accuracy"] == 1 and row["outcome"] == "recovered"
    # Without the matching this would have been somebody else.
    apart = np.mean((shuffled(victims.inputs) - victims.inputs) ** 2, axis=(1, 2, 3, 4))
    assert apart[0] > 10 * row["mse"] and apart[2] == 0
    # The label of a guess goes with it to the image that it is matched with.
    labels = shuffled(victims.labels)
    labels[:, 0] = (labels[:, 0] + 1) % 10
    rows = rows_of(
        scored(
            pretended(
                config,
                lambda arm, victims: shuffled(close(arm, victims)),
                labels=labels,
            )
        ),
        "none",
    )
    expected = [float(example != order[0]) for order in orders for example in range(3)]
    assert [row["label_accuracy"] for row in rows] == expected


def test_labels_in_another_order_than_the_images_are_counted_apart():
    config = tiny(examples=3, victims=3)
    truths = pretended(config, lambda arm, victims: victims.inputs).victims.labels
    rolled = np.roll(truths, 1, axis=1)
    result = pretended(config, lambda arm, victims: victims.inputs, labels=rolled)
    rows = rows_of(scored(result), "none")
    for row, label, guess in zip(rows, truths.flat, rolled.flat, strict=True):
        assert row["label_multiset_accuracy"] == 1
        assert (row["label"], row["label_guess"]) == (label, guess)
        assert row["label_accuracy"] == (label == guess)


def test_images_of_a_batch_are_scored_one_by_one():
    """Half of the images are read exactly: the other half must not hide them."""

    def guesses(arm, victims):
        images = wrong(arm, victims)
        images[:, ::2] = victims.inputs[:, ::2]
        return images

    result = pretended(
        tiny(victims=2, examples=8, data="photos"),
        guesses,
        loss=np.array([0.5, 0.25], np.float32),
        feature_error=np.array([0.1, 0.2], np.float32),
        numbers={"evaluations": np.array([4, 4]), "bins_read": np.array([5, 6])},
    )
    victims, rows = result.victims, scored(result)
    for arm in ("none", "floor/grey", "floor/noise_affine"):
        found = rows_of(rows, arm)
        assert [row["victim"] for row in found] == victims.indices.ravel().tolist()
        assert [row["label"] for row in found] == victims.labels.ravel().tolist()
        assert [row["upload"] for row in found] == [0] * 8 + [1] * 8
        assert [row["example"] for row in found] == [*range(8)] * 2
        # Images of an upload are one cluster, whichever photographs they come from.
        assert [row["group"] for row in found] == np.repeat(victims.groups, 8).tolist()
    assert len({*result.dataset.groups_of(victims.indices[0])}) > 1
    attacked = rows_of(rows, "none")
    outcomes = [row["outcome"] for row in attacked]
    assert outcomes == ["recovered", "unsolved"] * 8
    assert [row["mse"] == 0 for row in attacked] == [True, False] * 8
    # What belongs to the upload alone is the same in all of its rows.
    for column, expected in (
        ("matching_loss", [0.5, 0.25]),
        ("feature_error", [0.1, 0.2]),
        ("bins_read", [5, 6]),
        ("label_multiset_accuracy", [1, 1]),
    ):
        values = [row[column] for row in attacked]
        assert values == pytest.approx(np.repeat(expected, 8))
    # A floor is the image's own.
    truths = victims.inputs.reshape(-1, *victims.inputs.shape[2:])
    for row, truth in zip(rows_of(rows, "floor/grey"), truths, strict=True):
        assert row["mse"] == pytest.approx(np.mean((truth - 0.5) ** 2), rel=1e-4)
    for row in attacked:
        mine = [r for r in rows if r["victim"] == row["victim"]]
        best = min(r["mse"] for r in mine if r["arm"].startswith("floor/"))
        assert row["floor_mse"] == pytest.approx(best, rel=1e-4)


def test_scores_of_an_image_do_not_depend_on_its_upload():
    alone = pretended(tiny(victims=6, data="photos"), close)
    together = pretended(tiny(victims=2, examples=3, data="photos"), close)
    assert alone.victims.indices.ravel().tolist() == [*together.victims.indices.ravel()]
    upload = ("upload", "example", "examples", "group", "evaluations")
    upload += ("label_multiset_accuracy",)
    for one, other in zip(scored(alone), scored(together), strict=True):
        assert {k: v for k, v in one.items() if k not in upload} == {
            k: v for k, v in other.items() if k not in upload
        }


def test_an_image_right_but_for_its_contrast_has_an_outcome_of_its_own():
    """Behind a norm in train mode the gradient of one example says no more."""

    def faded(arm, victims):
        images = 0.15 * close(arm, victims) + 0.75
        images[2] = wrong(arm, victims)[2]  # this one is wrong after the fit, too
        images[3] = close(arm, victims)[3]
        return images

    result = pretended(tiny(victims=4), faded, loss=np.full(4, 1e-9, np.float32))
    rows = rows_of(scored(result), "none")
    expected = ["recovered_affine", "recovered_affine", "ambiguous", "recovered"]
    assert [row["outcome"] for row in rows] == expected
    assert all(row["ssim"] < 0.6 < row["ssim_affine_oracle"] for row in rows[:2])


def test_dead_locks_are_counted_as_such():
    config = tiny(arms=("none", "keylock/known"), victims=2)
    rows = scored(pretended(config, close, live_channels=np.array([0, 3])))
    assert [r["live_channels"] for r in rows_of(rows, "keylock/known")] == [0, 3]
    # Without gates there is nothing to be dead.
    none = scored(pretended(tiny(victims=2), close))
    assert [r["live_channels"] for r in rows_of(none, "none")] == [None, None]


def test_rows_of_a_closed_form_name_no_search():
    """It was offered restarts, steps and an optimiser, and made no use of them."""
    searched = ("optimiser", "step_size", "restarts", "evaluations")
    config = tiny(step_size=0.1, restarts=4)
    found = pretended(config, close, numbers={"evaluations": np.zeros(3, int)})
    for row in rows_of(scored(found), "none"):
        assert [row[name] for name in searched] == [None] * 4
        assert row["attack"] == "matching" and row["outcome"] == "recovered"
    for row in rows_of(scored(pretended(config, close)), "none"):
        assert [row[name] for name in searched] == ["adam", 0.1, 4, 16]


def test_no_label_is_wrong_of_an_attack_that_gives_none(monkeypatch):
    of_labels = (
        "label_guess",
        "label_accuracy",
        "label_multiset_accuracy",
        "label_rule",
    )
    result, rows = finished()
    mute = find_preset("matching")._replace(gives_labels=False)
    monkeypatch.setattr(scoring, "find_preset", lambda name: mute)
    for row, before in zip(scoring.score_rows(result), rows, strict=True):
        if row["attack"] is not None:
            assert all(row[name] is None for name in of_labels)
            assert all(before[name] is not None for name in of_labels)
            assert row["ssim"] == before["ssim"]


def test_attacks_need_not_count_their_evaluations():
    rows = rows_of(scored(pretended(tiny(), close, numbers={})), "none")
    assert [row["evaluations"] for row in rows] == [None] * 3
    assert rows[0]["attack"] == "matching"


def test_perceptual_distances_have_their_columns(monkeypatch):
    calls = []

    def distances(guesses, truths, network):
        assert guesses.shape == truths.shape
        assert guesses.shape[1:] == (8, 8, 3)
        calls.append((network, len(guesses)))
        offset = {"alex": 1, "vgg": 2}[network]
        return offset + np.arange(len(guesses))

    result = pretended(tiny(examples=2), close)
    monkeypatch.setattr(metrics, "lpips_available", lambda: True)
    monkeypatch.setattr(metrics, "lpips_distances", distances)
    rows = scoring.score_rows(result)
    grey, arm = rows_of(rows, "floor/grey"), rows_of(rows, "none")
    assert [row["lpips_alex"] for row in grey] == [1, 2, 3, 4, 5, 6]
    assert [row["lpips_alex"] for row in arm] == [1, 2, 3, 4, 5, 6]
    assert [row["lpips_vgg"] for row in arm] == [2, 3, 4, 5, 6, 7]
    # All floors in one call, as what they share is computed once; then the arm.
    assert calls == [("alex", 36), ("vgg", 36), ("alex", 6), ("vgg", 6)]
    for row in scored(result):
        assert row["lpips_alex"] is row["lpips_vgg"] is None


def test_rows_do_not_depend_on_the_blocks(monkeypatch):
    """Many victims are scored block by block, a study's parts one by one."""
    result = pretended(tiny(victims=7, arms=("none", "keylock/known")), close)
    together = scored(result)
    for pixels in (64, 192):  # one victim, and three, so that the last has only one
        monkeypatch.setattr(scoring, "PIXELS_PER_BLOCK", pixels)
        assert scored(result) == together


def test_photographs_are_the_clusters_of_their_crops():
    result = pretended(tiny(data="photos", victims=12), close)
    rows = rows_of(scored(result), "none")
    groups = [row["group"] for row in rows]
    assert groups == [row["label"] for row in rows]
    assert 1 < len(set(groups)) < 12


def test_another_precision_and_weights_are_in_every_row():
    config = dataclasses.replace(tiny(), precision="default", weights="shared", seed=4)
    for row in scored(pretended(config, close)):
        found = row["matmul_precision"], row["weights"], row["seed"]
        assert found == ("default", "shared", 4)


def test_rows_say_where_the_label_rule_does_not_hold():
    config = tiny(victims=3, arms=("none",))
    holds = np.array([1.0, 0.0, np.nan], np.float32)
    result = pretended(config, close, label_rule_holds=holds)
    rows = scored(result)
    said = [row["label_rule_holds"] for row in rows_of(rows, "none")]
    assert said == [True, False, None]
    summary = leak_summary.summarise(result, rows)
    header, lines = leak_report.table(summary)
    assert lines[0][header.index("label rule holds")] == "50%"
