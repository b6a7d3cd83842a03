"""Studies that observe a client several times on the same examples."""

import jax
import numpy as np
import pytest
from tiny_studies import scored, sites_of, study, tiny

from kljax.defences.arms import parse_arm
from kljax.studies import leak_report
from kljax.studies.builder.observing import SERVER_RATE
from kljax.studies.builder.privacy import epsilon_of_upload
from kljax.studies.builder.study import build_study

REVEAL = "outside_package:measured_reveal"  # answers with the view, and measures
NOISE = "gaussian-noise=0.1"
OBSERVED = {"attack": REVEAL, "victims": 2, "arms": ("none", NOISE)}


@pytest.fixture(scope="module")
def results():
    """The same victims, observed once and three times."""
    return study(**OBSERVED), study(**OBSERVED, observations=3)


def views(result):
    return [arm.attacked.reconstruction.info["view"] for arm in result.arms]


def test_the_first_observation_is_that_of_a_study_of_one(results):
    for one, several in zip(*map(views, results), strict=True):
        several = several._replace(observations=None)
        for a, b in zip(*map(jax.tree.leaves, (one, several)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert views(results[0])[0].observations is None


def test_weights_move_by_what_was_sent_and_noise_is_drawn_anew(results):
    moved, sent = [], []
    for view in views(results[1]):
        seen = view.observations.views
        name = "fc/kernel"
        weights, grads = seen.public.model[name], seen.grads.model[name]
        assert weights.shape[1] == 3  # [victims, observations, ...]
        for k in range(2):
            expected = weights[:, k] - SERVER_RATE * grads[:, k]
            np.testing.assert_allclose(weights[:, k + 1], expected, rtol=1e-6)
        moved.append(weights[:, 1] - weights[:, 0])
        sent.append(grads)
    assert all(np.abs(move).max() > 0 for move in moved)
    noise = np.asarray(sent[1] - sent[0])
    for k in (1, 2):  # about the same signal, another noise
        correlation = np.corrcoef(noise[:, 0].ravel(), noise[:, k].ravel())[0, 1]
        assert abs(correlation) < 0.5


def test_losses_at_the_truth_are_those_of_all(results):
    for one, several in zip(*(r.arms for r in results), strict=True):
        assert np.all(several.attacked.replay_is_exact)
        if one.arm.name == "none":
            assert np.all(several.attacked.loss_at_truth < 1e-9)
        else:  # of another noise each: about the same, and not the same
            ratio = several.attacked.loss_at_truth / one.attacked.loss_at_truth
            assert np.all((ratio > 0.7) & (ratio < 1.3)) and np.all(ratio != 1)
    (line,) = (x for x in leak_report.threat_lines(results[1]) if "pools" in x)
    assert "3 uploads of the same examples, by the mean" in line
    rows = scored(results[1])
    assert {(row["observations"], row["pooling"]) for row in rows} == {(3, "mean")}


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"attack": "rgap"}, "attack 'rgap' is a closed form, which reads one upload"),
        ({"arms": ("adadefense",)}, "arm 'adadefense': observations=2.*remembers"),
        ({"earlier": 1}, "observations=2 are of the same examples, and earlier=1"),
        ({"observations": 1, "pooling": "median"}, "pooling='median' needs observ"),
        ({"observations": 0}, "observations must be an integer >= 1, got 0"),
        ({"pooling": "krum"}, "pooling must be 'mean' or .*, got 'krum'$"),
        ({"pooling": "trimmed_mean"}, r"did you mean 'trimmed-mean'\?"),
    ),
)
def test_what_cannot_be_pooled_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        build_study(tiny(**({"observations": 2} | changes)))


@pytest.mark.parametrize("private", ("dp-fedavg=1,2", "dp-sgd=1,2"))
def test_every_observation_spends_epsilon(private):
    arm = parse_arm(private, sites_of("layers/0"), {})
    spent = [
        epsilon_of_upload(tiny(arms=(private,), observations=count), arm)
        for count in (1, 4)
    ]
    assert spent[1] > spent[0] > 0
