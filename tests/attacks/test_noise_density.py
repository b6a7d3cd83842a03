"""Maximum likelihood: the noise's density in place of a distance."""

import dataclasses
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from scipy import stats
from tiny_studies import scored, study, tiny

import kljax
from kljax.attacks import squared_l2
from kljax.attacks.presets import find_preset, negative_log_likelihood
from kljax.attacks.visibility import comparable
from kljax.core.types import Public
from kljax.defences import gaussian_noise, laplace_noise, none
from kljax.defences.arms import parse_arm, unplaced_sites
from kljax.studies import scoring
from kljax.studies.builder.attacker import check_density
from kljax.studies.builder.study import build_study
from kljax.studies.sweeps.legality import is_legal

NOISES = pytest.mark.parametrize(
    ("defence", "peer", "scale"),
    (
        (gaussian_noise(0.3), stats.norm, 0.3),
        (laplace_noise(0.3), stats.laplace, 0.3 / np.sqrt(2)),
    ),
    ids=("gaussian", "laplace"),
)


def setting(defence, **facts):
    made = toys.setting(toys.threat(**facts), defence)
    return made._replace(defence=made.defence._replace(log_prob=defence.log_prob))


def upload(seed):
    draw = np.random.default_rng(seed).standard_normal
    return Public({"fc/kernel": jnp.asarray(draw((4, 3))), "fc/bias": draw(3)})


@NOISES
def test_it_is_how_much_likelier_a_change_would_be_that_is_what_is_seen(
    defence, peer, scale
):
    seen, simulated = upload(1), upload(2)
    objective = negative_log_likelihood(setting(defence))
    pairs = list(zip(*map(jax.tree.leaves, (seen, simulated)), strict=True))
    wanted = sum(
        peer.logpdf(x, x, scale).sum() - peer.logpdf(x, g, scale).sum()
        for x, g in pairs
    )
    np.testing.assert_allclose(objective(simulated, seen), wanted, rtol=1e-5)
    assert objective(seen, seen) == 0


def test_under_gaussian_noise_it_is_the_squared_distance_of_dlg():
    """Over twice the variance: the same candidates are best, whatever the noise."""
    for std in (1e-3, 0.3):
        objective = negative_log_likelihood(setting(gaussian_noise(std)))
        for seed in range(3):
            one, other = upload(seed), upload(seed + 3)
            distance = squared_l2()(one, other) / (2 * std**2)
            np.testing.assert_allclose(objective(one, other), distance, rtol=1e-5)


@NOISES
def test_it_falls_with_the_power_of_the_difference_that_the_noise_says(
    defence, peer, scale
):
    del peer, scale
    objective, seen, along = (
        negative_log_likelihood(setting(defence)),
        *map(upload, (1, 2)),
    )

    def at(size):
        return objective(jax.tree.map(lambda x, d: x + size * d, seen, along), seen)

    assert at(1.0) / at(0.1) == pytest.approx(10**defence.log_prob_degree, rel=1e-3)


def test_the_loss_floor_has_the_degree_of_the_noise():
    """Through a chain and on the update, too; of a user's density nobody knows it."""
    config = tiny(attack="likelihood")
    for text, degree in (
        ("gaussian-noise=0.1", 2),
        ("laplace-noise=0.1", 1),
        ("keylock+laplace-noise=0.1/known", 1),
        ("none+laplace-noise@update=0.1", 1),
        (f"{__name__}:noise_of_unknown_degree=0.1", None),
    ):
        arm = parse_arm(text, unplaced_sites(), {})
        assert scoring._degree(config, arm) == degree
        assert scoring._degree(tiny(attack="tag"), arm) == 1


def noise_of_unknown_degree(std):
    return gaussian_noise(std)._replace(log_prob_degree=None)


def test_hidden_entries_make_no_difference():
    """They are NaN in the view, and zeros on both sides of every objective."""
    objective = negative_log_likelihood(setting(laplace_noise(0.3)))
    one, other = upload(1), upload(2)
    visible = Public(
        {"fc/kernel": jnp.ones((4, 3), bool), "fc/bias": jnp.zeros(3, bool)}
    )
    unread = other._replace(model={**other.model, "fc/bias": jnp.full(3, jnp.nan)})
    view = types.SimpleNamespace(visible=visible, grads=unread)
    hidden = comparable(view, one)
    short = [
        x._replace(model={"fc/kernel": x.model["fc/kernel"]}) for x in (one, other)
    ]
    assert objective(*hidden) == pytest.approx(float(objective(*short)), rel=1e-6)


def test_it_attacks_a_study_and_stands_in_its_rows():
    arms = ("gaussian-noise=0.001", "laplace-noise=0.001", "gaussian-noise=0.01")
    result = study(arms=arms, attack="likelihood", steps=3)
    rows = [row for row in scored(result) if row["arm"] in arms]
    assert {row["attack"] for row in rows} == {"likelihood"}
    for row in rows:
        # Half the square of a standard normal number per entry, or one exponential.
        assert 0 < row["matching_loss_at_truth"] and np.isfinite(row["matching_loss"])
        degree = row["matching_loss_degree"]
        assert degree == (1 if row["arm"].startswith("laplace") else 2)
        resolved = 1e-3**degree * row["matching_loss_scale"]
        floor = max(row["matching_loss_at_truth"], resolved)
        assert row["matching_loss_floor"] == pytest.approx(floor)


@pytest.mark.parametrize(
    "arm",
    (
        "none",
        "gaussian-noise=0",
        "gaussian-noise=0.01/unaware",
        "gaussian-noise=0.01+magnitude-pruning=0.1",
        "norm-clipping=1",
        "norm-clipping=1+gaussian-noise=0",
        "norm-clipping=1+gaussian-noise=0.01/unaware",
        "gaussian-noise=0+gaussian-noise=0.01",
    ),
)
def test_what_has_no_density_is_refused(arm):
    config = tiny(arms=(arm,), attack="likelihood")
    with pytest.raises(
        ValueError,
        match=f"arm '{re.escape(arm)}': attack 'likelihood' needs.*may clip, "
        "prune or quantise a computed gradient, and then adds one noise above 0",
    ):
        build_study(config)
    with pytest.raises(ValueError, match="needs the density"):
        is_legal(config)


@pytest.mark.parametrize(
    "before", ("none", "keylock", "obscured-inputs=3,0.1,0.5", "selective-random")
)
def test_what_leaves_the_computed_gradient_alone_keeps_the_density(before):
    """Inputs, gates and what is hidden are no change of a computed gradient."""
    secret = "/known" if before == "keylock" else ""
    arm = f"{before}+gaussian-noise=0.01{secret}"
    assert is_legal(tiny(arms=(arm,), attack="likelihood"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "examples"),
    (
        ("norm-clipping=1", 1),
        # Of two examples each is clipped, by the client and by who knows it.
        ("example-clipping=0.1", 2),
        ("magnitude-pruning=0.1", 1),
        ("quantise=4", 1),
    ),
)
def test_what_is_a_function_of_the_gradient_keeps_a_density(before, examples):
    arm = f"{before}+gaussian-noise=0.01"
    options = {"arms": (arm,), "attack": "likelihood", "examples": examples}
    config = tiny(**options)
    assert is_legal(config)
    result = study(**options, steps=2)
    for row in scored(result):
        if row["arm"] == arm:
            # At the truth half the square of a standard normal number per entry.
            entries = sum(x.size for x in jax.tree.leaves(_params(result)))
            assert row["matching_loss_at_truth"] == pytest.approx(entries / 2, rel=0.1)
            assert row["replay_is_exact"] and row["matching_loss_degree"] == 2


def _params(result):
    task = build_study(result.config).task
    return jax.eval_shape(task.models[False].init, jax.random.key(0))[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        (
            {
                "arms": ("outside_package:halved_examples+gaussian-noise=0.01",),
                "examples": 2,
            },
            "needs the density of what is uploaded, and there is none",
        ),
        (
            {"arms": ("keylock+norm-clipping=1+gaussian-noise=0.01/known",)},
            "does not explain the gradient of the lock weights",
        ),
    ),
)
def test_what_a_candidate_does_not_say_all_of_has_no_density(changes, message):
    config = tiny(attack="likelihood", **changes)
    with pytest.raises(ValueError, match=message):
        build_study(config)
    with pytest.raises(ValueError, match=message):
        is_legal(config)


def test_a_strength_of_0_is_refused_where_a_compilation_is_shared():
    config = tiny(arms=("gaussian-noise=0.1",), attack="likelihood")
    first = build_study(config)
    for arm, refused in (("gaussian-noise=0.2", False), ("gaussian-noise=0", True)):
        other = dataclasses.replace(config, arms=(arm,))
        if refused:
            with pytest.raises(ValueError, match="needs the density"):
                build_study(other, first)
        else:
            build_study(other, first)


def test_noise_of_local_steps_has_no_density_of_the_update():
    config = kljax.LeakConfig(upload="update", from_run="run", attack="likelihood")
    preset = find_preset("likelihood")
    of_steps, of_update = (
        parse_arm(text, unplaced_sites(), {})
        for text in ("gaussian-noise=0.1", "gaussian-noise@update=0.1")
    )
    with pytest.raises(ValueError, match="such as gaussian-noise@update"):
        check_density(config, of_steps, preset)
    check_density(config, of_update, preset)


def test_shared_lock_gradients_are_refused():
    with pytest.raises(ValueError, match="lock_grads='hidden'"):
        negative_log_likelihood(setting(gaussian_noise(0.1), lock_grads="shared"))
    with pytest.raises(ValueError, match="density"):
        negative_log_likelihood(setting(none()))
