"""The experiment on CGI: who has what, what is scored, and what it shows."""

import sys

import client_inversion as experiment
import numpy as np
import pytest
from tiny_studies import quick_compilation


def test_the_first_honest_client_has_an_example_of_the_class_and_nobody_shares():
    _, labels = experiment.digits()
    for number in range(12):
        small, large = (experiment.make_trial(number, honest) for honest in (1, 4))
        assert large.target == number % 10
        assert np.any(labels[large.honest[0]] == large.target)
        np.testing.assert_array_equal(small.own, large.own)
        used = np.concatenate([large.own, large.honest.ravel()])
        assert len({*used.tolist()}) == len(used) and used.min() >= experiment.PUBLIC


def test_a_truth_is_recovered_and_a_floor_is_not():
    images, labels = experiment.digits()
    trial = experiment.make_trial(3, 2)
    truth = trial.honest[0][labels[trial.honest[0]] == 3][0]
    found = experiment.scores(images[truth][None], trial)
    assert found["recovered"] and found["mse"] == 0 < found["floor"]
    grey = experiment.scores(np.full((1, 8, 8, 1), 0.5, np.float32), trial)
    assert not grey["recovered"] and grey["mse"] >= grey["floor"]


@pytest.mark.slow
def test_one_honest_client_is_read_and_lines_are_kept(tmp_path, monkeypatch, capsys):
    words = "client_inversion.py --trials 4 --steps 300 --honest 1 --arms none"
    words += f" --folder {tmp_path}"
    monkeypatch.setattr(sys, "argv", words.split())
    monkeypatch.setattr(experiment, "use_cache", lambda: None)
    with quick_compilation():
        experiment.main()
    printed = capsys.readouterr().out
    assert "none | 1 | zero | 4/4" in printed
    monkeypatch.setattr(experiment, "make_ground", None)  # nothing is computed again
    experiment.main()
    assert capsys.readouterr().out.split("accuracy")[0] == printed.split("accuracy")[0]
