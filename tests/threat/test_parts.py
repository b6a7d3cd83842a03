"""Parts of an upload: who reads one tensor is told nothing of the others."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from poison import differences
from tiny_studies import quick_compilation, scored
from toys import LOCK, locked_update, quick_jit, setting, threat

from kljax import threat as threats
from kljax.attacks import lbfgs
from kljax.attacks.presets import dlg
from kljax.core.types import Public
from kljax.defences import keylock
from kljax.studies import leakage
from kljax.studies.builder.study import build_study
from kljax.studies.config import LeakConfig
from kljax.studies.reports import threat_words
from kljax.threat.parts import join_masks, list_readable, readable_tensors

SENT = Public(
    {
        "blocks/0/attention/query/kernel": np.zeros((2, 2)),
        "blocks/0/attention/query/bias": np.zeros(2),
        "blocks/1/attention/query/kernel": np.zeros((2, 2)),
        "fc/kernel": np.zeros((2, 3)),
    },
    {"gates/scale": np.zeros(2)},
)


@pytest.mark.parametrize(
    ("visible", "wanted"),
    (
        ("fc/kernel", ["fc/kernel"]),
        ("fc", ["fc/kernel"]),
        ("blocks/0/attention/query/kernel", ["blocks/0/attention/query/kernel"]),
        (
            "blocks/*/attention/query/kernel",
            ["blocks/0/attention/query/kernel", "blocks/1/attention/query/kernel"],
        ),
        ("blocks/1+fc", ["blocks/1/attention/query/kernel", "fc/kernel"]),
        ("*/bias", ["blocks/0/attention/query/bias"]),
        ("defence", ["defence/gates/scale"]),
        ("blocks/[!0]", ["blocks/1/attention/query/kernel"]),
    ),
)
def test_patterns_name_tensors_and_what_they_are_in(visible, wanted):
    assert sorted(list_readable(SENT, visible)) == sorted(wanted)
    masks = readable_tensors(SENT, visible)
    seen = {**masks.model, **{f"defence/{k}": v for k, v in masks.defence.items()}}
    assert {name for name, mask in seen.items() if mask.all()} == {*wanted}
    assert {name for name, mask in seen.items() if not mask.any()} == {*seen} - {
        *wanted
    }
    assert jax.tree.map(jnp.shape, masks) == jax.tree.map(jnp.shape, SENT)


def test_all_is_no_mask():
    assert readable_tensors(SENT, "all") is None


@pytest.mark.parametrize(
    ("visible", "message"),
    (
        ("fc/kernal", "called 'fc/kernal' .did you mean 'fc/kernel'.*; those are"),
        ("blocks/7+fc", "called 'blocks/7'"),
    ),
)
def test_a_tensor_that_is_not_there_is_named(visible, message):
    with pytest.raises(ValueError, match=message):
        readable_tensors(SENT, visible)


@pytest.mark.parametrize("visible", ("", "fc+", "+", 3))
def test_an_empty_pattern_is_refused(visible):
    with pytest.raises(ValueError, match="visible=.*expected 'all', or names"):
        threat(visible=visible)


def test_masks_hide_what_either_hides():
    one, other = np.array([True, True, False]), np.array([True, False, False])
    np.testing.assert_array_equal(join_masks(one, other), [True, False, False])
    assert join_masks(None, other) is other and join_masks(one, None) is one
    assert join_masks(None, None) is None


VISIBLE = "first/kernel"


@functools.cache
def attack(visible):
    model = threat("unit", "joint", visible=visible)
    strike = dlg(setting(model, keylock(LOCK)), lbfgs(), steps=5, restarts=1)
    return quick_jit(
        lambda sent: strike(jax.random.key(1), threats.observe(model, sent))
    )


def changed(update, name, value):
    model = dict(update.sent.model)
    model[name] = jnp.full_like(model[name], value)
    return update._replace(sent=update.sent._replace(model=model))


@pytest.mark.slow
def test_tensors_that_are_not_read_cannot_change_a_reconstruction():
    update = locked_update(1)
    clean = attack(VISIBLE)(update)
    assert clean.finite and np.all(np.isfinite(clean.inputs))
    others = [name for name in update.sent.model if name != VISIBLE]
    assert len(others) >= 3
    for value in (np.nan, 0.0, 1e6):
        poisoned = functools.reduce(lambda u, n: changed(u, n, value), others, update)
        assert not differences(attack(VISIBLE)(poisoned), clean)
    # What is read does change it, and so does what is read where all is.
    assert differences(attack(VISIBLE)(changed(update, VISIBLE, 1.0)), clean)
    assert differences(
        attack("all")(changed(update, others[0], 1.0)), attack("all")(update)
    )


def test_what_a_defence_hides_stays_hidden_in_a_part():
    update = locked_update(1)
    half = jax.tree.map(
        lambda x: (np.arange(x.size) % 2 == 0).reshape(x.shape), update.sent
    )
    view = threats.observe(threat(visible=VISIBLE), update._replace(visible=half))
    for name, seen in view.visible.model.items():
        wanted = (
            half.model[name] if name == VISIBLE else np.zeros_like(half.model[name])
        )
        np.testing.assert_array_equal(seen, wanted)
        np.testing.assert_array_equal(np.isnan(view.grads.model[name]), ~wanted)


# --- studies ------------------------------------------------------------------------

TEXT = {
    "model": "text_networks:small",
    "init": 0.0,
    "data": "text",
    "attack": "dlg",
    "labels": "given",
    "tokens": 4,
    "victims": 1,
    "steps": 2,
    "arms": ("none",),
}
QUERY = "visible=blocks/0/attention/query/kernel"


@pytest.mark.slow
def test_rows_say_how_much_of_an_upload_is_read():
    with quick_compilation():
        result = leakage.leak(LeakConfig(**TEXT, threat=(QUERY,)))
    (row,) = [row for row in scored(result) if row["arm"] == "none"]
    params = result.arms[0].threat.knowledge.visible
    assert params == QUERY.removeprefix("visible=")
    # 16 x 16 of the query's kernel, of a network whose table has 4,096 x 16.
    assert 0.003 < row["visible_share"] < 0.004
    assert row["replay_is_exact"] and row["matching_loss_at_truth"] < 1e-8
    assert row["threat"] == QUERY


def test_a_report_says_which_tensors_are_read():
    words = threat_words(LeakConfig(**TEXT, threat=("visible=fc+blocks/1",)))
    assert "Of the upload it reads the tensors fc, blocks/1 alone." in words
    assert not any("tensors" in word for word in threat_words(LeakConfig(**TEXT)))


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"threat": ("visible=blocks/9",)}, "no tensor of the upload is called"),
        (
            {"threat": (QUERY,), "labels": "recovered"},
            "reads the gradient of the classifier 'fc', which is no part of visible",
        ),
    ),
)
def test_a_part_that_cannot_be_is_refused_before_anything_runs(changes, message):
    with pytest.raises(ValueError, match=message):
        build_study(LeakConfig(**TEXT | changes))
