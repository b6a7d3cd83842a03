"""Threat models in words, and the sweep file written again."""

import tomllib

import jax
import made_studies
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kljax.defences.arms import unplaced_sites
from kljax.defences.catalogue import KINDS
from kljax.studies import store
from kljax.studies.config import LeakConfig
from kljax.studies.reports import threat_words
from kljax.studies.reports.axes import axes_of
from kljax.studies.reports.pools import make_pools
from kljax.studies.reports.sweep_file import sweep_to_toml
from kljax.studies.reports.threats import DOES, KNOWS, threat_models
from kljax.threat import (
    KEYLOCK_STRATEGIES,
    KNOWLEDGE,
    LABEL_STRATEGIES,
    HiddenParts,
)


def test_there_are_words_for_everything():
    plans = {"secret": KEYLOCK_STRATEGIES, "labels": LABEL_STRATEGIES}
    for words, legal in ((KNOWS, KNOWLEDGE), (DOES, plans)):
        assert {name: set(said) for name, said in words.items()} == {
            name: set(values) for name, values in legal.items()
        }


def test_words_say_what_is_known_and_what_is_not():
    words = " ".join(threat_words(LeakConfig(arms=("keylock/regress_gates",))))
    assert "It does not know the private key." in words
    assert "It does not know the lock weights." in words
    assert "the gradient of one step on 1 example per victim" in words
    known = " ".join(threat_words(LeakConfig(arms=("keylock/known",), examples=4)))
    assert "It knows the private key." in known
    assert "on 4 examples per victim" in known


def test_an_arm_without_a_lock_has_no_words_about_one():
    words = " ".join(threat_words(LeakConfig(arms=("none",), labels="joint")))
    assert "private key" not in words and "There is no lock." in words
    assert "It optimises the labels along with the image." in words


@pytest.mark.parametrize(
    ("arm", "said", "unsaid"),
    (
        ("fedbn/regress_gates", "does not know the client's scales", "passports"),
        ("fedbn/known", "It knows the client's scales and shifts.", "does not know"),
        ("fedpass/unit", "It does not know the passports.", "scales and shifts."),
        ("fedpass/peel", "came out of the gates", "does not see the gradient"),
        ("precode/known", "It knows the noise of the bottleneck.", "does not know"),
        ("mixup/random_draws", "does not know the draws of the mixture", "noise"),
    ),
)
def test_what_is_hidden_is_called_as_its_defence_calls_it(arm, said, unsaid):
    words = " ".join(threat_words(LeakConfig(arms=(arm,), examples=4)))
    assert said in words and unsaid not in words
    assert "private key" not in words and "lock" not in words.replace("block", "")


def test_every_defence_that_hides_something_says_what():
    sites = unplaced_sites()._replace(value_shape=lambda name: (4, 4, 4))
    for name, kind in KINDS.items():
        defence = kind.make(sites, **kind.options)
        own = defence.hidden_parts != HiddenParts()
        assert own == bool(defence.strategies), f"give {name} its hidden_parts"
        if own:
            params = {"kernel": jax.ShapeDtypeStruct((1,), np.float32)}
            _, private = jax.eval_shape(defence.init, jax.random.key(0), params)
            called = defence.hidden_parts.trainable is not None
            assert called == bool(jax.tree.leaves(private.trainable)), name


def test_facts_of_the_cell_win():
    config = LeakConfig(arms=("none",), threat=("stats=visible",), weights="shared")
    words = " ".join(threat_words(config))
    assert "It sees the norm statistics of the upload." in words
    assert "the same for all victims" in words


def test_a_client_of_a_training():
    config = LeakConfig(arms=("keylock/fixed_mean",), from_run="r", round=3, client=1)
    words = " ".join(threat_words(config))
    assert "client 1 of a federated training, before round 3" in words
    assert "knows the lock weights as they were in the first round" in words


def test_a_users_attack_need_not_be_here():
    words = threat_words(LeakConfig(arms=("none",), attack="nowhere.at:all"))
    assert "It reads the labels off the gradient of the last layer." in words


@pytest.mark.parametrize(
    ("arm", "said", "unsaid"),
    (
        ("nowhere.at:fading=0.5", "There is no lock.", "private key"),
        ("nowhere.at:fading=0.5/unaware", "does not know that the defence", "lock w"),
        ("nowhere.at:fading/simulate", "It simulates what the defence does.", "gates"),
        ("nowhere.at:secret=1,3/search", "what its defence calls 'search'", "lock"),
        ("nowhere.at:secret/known", "what its defence calls 'known'", "private key"),
        ("keylock+nowhere.at:fading/known", "It knows the private key.", "no lock"),
        ("gaussian-noise=1+nowhere.at:fading", "There is no lock.", "defence"),
    ),
)
def test_a_users_defence_need_not_be_here(tmp_path, arm, said, unsaid):
    axes = {"seed": {"0": {"seed": 0, "arm": arm}}}
    ((_, sentences),) = models_of(tmp_path, axes)
    words = " ".join(sentences)
    assert said in words and unsaid not in words
    assert "Not readable" not in words and "It sees the network" in words


def test_an_arm_of_kljax_that_is_none_is_not_read():
    with pytest.raises(ValueError, match="unknown defence 'no-such'"):
        threat_words(LeakConfig(arms=("no-such=1",)))


def test_one_cell_has_one_arm():
    with pytest.raises(ValueError, match="a cell has one arm"):
        threat_words(LeakConfig())


def models_of(tmp_path, axes, change=lambda cell: cell):
    folder = made_studies.make_folder(
        tmp_path / "study", axes, cells=[*map(change, made_studies.make_cells(axes))]
    )
    study = store.read(folder)
    return threat_models(make_pools(study, axes_of(study.manifest), ["seed"]))


def test_what_all_share_is_said_once(tmp_path):
    (every, *rest) = models_of(tmp_path, made_studies.AXES)
    assert every[0] == "every attacker" and len(every[1]) == 6
    assert [who for who, _ in rest] == [
        "arm=none; arm=bn-control",
        "arm=keylock/known",
        "arm=keylock/regress_gates",
        "arm=keylock/fixed_random",
        "attack=matching",
        "attack=dlg",
    ]
    said = [sentence for _, sentences in rest for sentence in sentences]
    assert not set(said) & set(every[1])


def test_what_this_kljax_cannot_read_is_said(tmp_path):
    axes = {"seed": {"0": {"seed": 0, "arm": "none"}}}

    def from_the_future(cell):
        return cell | {"config": cell["config"] | {"flux": 3}}

    ((who, sentences),) = models_of(tmp_path, axes, from_the_future)
    assert "Not readable by this kljax" in sentences[0] and "flux" in sentences[0]


def test_a_sweep_is_written_as_a_person_would():
    axes = {"arm": made_studies.AXES["arm"], "budget": made_studies.AXES["budget"]}
    sweep = {
        "fixed": {"victims": 12, "init": 0.5, "labels": None},
        "axes": axes,
        "exclude": [{"arm": ["none"], "budget": ["long"]}],
        "options": {"reconstructions": True},
    }
    assert (
        sweep_to_toml(sweep)
        == """\
[fixed]
victims = 12
init = 0.5

[axes]
arm = ["none", "bn-control", "keylock/known", "keylock/regress_gates", \
"keylock/fixed_random"]

[axes.budget]
short = { steps = 100 }
middle = { steps = 400 }
long = { steps = 400, restarts = 4 }

[[exclude]]
arm = ["none"]
budget = ["long"]

[options]
reconstructions = true
"""
    )


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    NAMES,
)
VALUES = SCALARS | st.lists(NAMES, max_size=3)
FIELDS = st.dictionaries(NAMES, VALUES, max_size=3)
POINTS = st.dictionaries(NAMES, FIELDS, min_size=1, max_size=3)
LISTED = st.lists(NAMES | st.integers(0, 9), min_size=1, max_size=3, unique_by=str)


def points_of(axes):
    """Makes points of the values of one field where an axis is a list."""
    return {
        name: {str(value): {name: value} for value in points}
        if isinstance(points, list)
        else points
        for name, points in axes.items()
    }


SWEEPS = st.fixed_dictionaries(
    {
        "fixed": FIELDS,
        "axes": st.dictionaries(NAMES, POINTS | LISTED, max_size=4).map(points_of),
        "exclude": st.lists(
            st.dictionaries(NAMES, st.lists(NAMES), min_size=1, max_size=2), max_size=2
        ),
        "options": FIELDS,
    }
)


@given(SWEEPS)
def test_toml_says_the_same(sweep):
    read = tomllib.loads(sweep_to_toml(sweep))
    axes = points_of(read.pop("axes", {}))
    assert repr(axes) == repr(sweep["axes"])  # in the same order
    wanted = {section: kept for section, kept in sweep.items() if kept}
    wanted.pop("axes", None)
    assert repr(read) == repr(wanted)  # True is 1, and not the same
