"""The study of learned inversion, and its entry of the speed table."""

import json

import learned_inversion
import pytest
from timing.entries.inverters import Work, compare
from timing.peers import inverters


def test_contests_have_names_of_their_own_and_the_lock_comes_first():
    rows = learned_inversion.contests("digits", 1)
    assert len({row.name for row in rows}) == len(rows) == 30
    assert {row.arm for row in rows[:3]} == {*learned_inversion.ARMS[-3:]}
    for row in rows:  # every configuration is one
        config = learned_inversion.config_of(row)
        assert config.weights == "shared" and len(config.arms) == 1


def test_tables_hold_what_was_kept(tmp_path):
    images = {"ssim": [0.5, 0.7, 0.9, 0.9], "psnr": [10, 20, 30, 40], "mse": [0] * 4}
    kept = {
        "contest": ["digits", 2, "learned", "keylock/unit"],
        "images": images,
        "recovered": 3,
        "floors": {
            "data_mean": {"ssim": [0.1, 0.1, 0.3, 0.3], "psnr": [9.0] * 4},
            "class_mean": {"ssim": [0.4, 0.6, 0.7, 0.7], "psnr": [9.0] * 4},
        },
        "errors": {"training_error": 0.01, "validation_error": 0.02},
    }
    (tmp_path / "one.json").write_text(json.dumps(kept), encoding="utf-8")
    text = learned_inversion.tables(learned_inversion.read(tmp_path))
    assert "## digits, b = 2" in text and "| 3/4 " in text
    # Images of one upload are drawn together: the interval is from one to the other.
    assert "0.750 [0.600, 0.900]" in text and "25.0 [15.0, 35.0]" in text
    assert "0.150 [0.100, 0.200]" in text  # above the means of classes
    assert "data mean" in text and "0.200 [0.100, 0.300]" in text


def test_contests_of_another_seed_are_not_taken_for_those_that_are_there(tmp_path):
    learned_inversion.require_seed(tmp_path, 1)
    (tmp_path / "one.json").write_text("{}", encoding="utf-8")
    learned_inversion.require_seed(tmp_path, 0)
    with pytest.raises(SystemExit, match="one.json is of seed 0.*another --out"):
        learned_inversion.require_seed(tmp_path, 1)


@pytest.mark.slow
def test_peers_train_as_ours(monkeypatch, options, torch_python):
    monkeypatch.setattr(
        inverters,
        "settings",
        lambda name: [inverters.Setting(name.removeprefix("torch-"), "onednn")],
    )
    peers = options(*inverters.PEERS, torch_python=torch_python)
    (made,) = compare(peers, Work(uploads=3, steps=3, width=8, hashed=100))
    differences = made["settings"]["largest_difference_to_peer"]
    assert len(differences) == 2 and max(differences.values()) < 1e-5
    assert made["ours"]["low"] > 0
