"""The audit of a network without an upload, and its words."""

import json

import numpy as np
import pytest
from flax import nnx
from jax.errors import JaxRuntimeError
from tiny_studies import quick_compilation

import kljax
from kljax import cli
from kljax.attacks.presets import PRESETS
from kljax.core.inputs import images_of
from kljax.core.registry import resolve
from kljax.core.tables import TableColumn, table_of
from kljax.data.sentences import sentences_of
from kljax.metrics import interval, wilson
from kljax.metrics.kinds import KINDS as INPUT_KINDS
from kljax.studies.audit import network
from kljax.studies.audit.named_objects import named_object
from kljax.studies.audit.network import NetworkAuditConfig, Tried, audit
from kljax.studies.audit.network_page import network_table
from kljax.studies.audit.network_verdict import judge_network, list_open
from kljax.studies.audit.panel import (
    CLOSED_FORM,
    FED_LAYER,
    KINDS,
    LABEL_RULES,
    LABELS_ALONE,
    MALICIOUS_SERVER,
    OTHERS,
    PANELS,
    SEARCH,
    Member,
    panel_of,
)

LABELS = Member("labels", LABELS_ALONE, LABEL_RULES)
SMALL = {"image_size": 8, "uploads": 2, "steps": 2}


def some(monkeypatch, *members):
    monkeypatch.setattr(network, "panel_of", lambda *_: list(members))


def test_every_kind_of_input_has_a_panel_of_its_own():
    assert PANELS.keys() == INPUT_KINDS.keys()
    for panel in (*PANELS.values(), OTHERS):
        assert panel.searches and panel.open
        assert panel.starts.keys() <= {*panel.searches}
    text = panel_of(sentences_of(4, ("a", "b")), None)
    closed = [one.name for one in text if one.kind == CLOSED_FORM]
    assert closed == ["dager"] and not [o for o in text if o.kind == MALICIOUS_SERVER]
    rows = panel_of(table_of([TableColumn("age", (0,))]), None)
    assert {one.name: one.starts for one in rows} == {
        "labels": 1,
        "dense layer": 1,
        "dlg, labels joint": 1,
        "dlg, labels given": 1,
        "tableak, labels recovered": 30,
        "tableak, labels given": 30,
    }
    many = NetworkAuditConfig(model="m", data="d", batch=1, starts=40)
    assert [many.study(one).restarts for one in rows] == [40] * 6
    assert CONFIG.study(rows[-1]).restarts == 30


def test_one_row_behind_a_dense_layer_is_recovered_in_whole(monkeypatch):
    """A malicious server on rows is not there, which is not that none works."""
    some(monkeypatch, Member("dense layer", FED_LAYER, CLOSED_FORM))
    with quick_compilation():
        found = audit(model="perceptron", data="breast-cancer", batch=1, uploads=2)
    (row,) = found.tried
    assert (found.verdict, row.recovered, row.whole) == ("recovered", 2, 2)
    assert row.score == 1.0 > row.floor > 0  # the share of cells, and not of rows
    assert "at least 2 of 2 rows, 2 of them in whole, by 'dense layer'" in found.words
    assert "kljax has no attack of its kind on rows" in found.words
    page = found.page()
    assert "at least half of the cells are right" in page and "in whole" in page
    assert "SSIM" not in page and "contrast" not in page
    assert any("Robbing the Fed" in line for line in found.open)


@pytest.mark.slow
def test_sentences_are_recovered_by_the_closed_form_of_their_panel(monkeypatch):
    some(monkeypatch, Member("dager", "dager", CLOSED_FORM))
    with quick_compilation():
        found = audit(model="transformer", data="text", batch=2, uploads=2)
    assert (found.verdict, found.tried[0].recovered) == ("recovered", 4)
    assert found.tried[0].labels == {}  # it looks for none, and none is wrong
    assert network_table(found)[1][0][-2] == "-"
    assert "at least 4 of 4 sentences, 4 of them in whole, by 'dager'" in found.words
    assert any("Decepticons" in line for line in found.open)
    assert "share of a sentence's tokens" in found.page()


def test_a_panel_has_every_attack_that_needs_no_more_than_an_upload():
    members = panel_of(images_of((8, 8, 3)), None)
    kinds = {kind: {one.name for one in members if one.kind == kind} for kind in KINDS}
    assert kinds["malicious server"] == {n for n, p in PRESETS.items() if p.inserts}
    assert {"rgap", "spear", "cocktail-party"} <= kinds["closed form"]
    assert kinds["learned"] == {n for n, p in PRESETS.items() if p.learn}
    assert "dager" not in kinds["closed form"]  # of sentences
    assert "matching, labels given" in kinds["search"]
    for name in ("rgap", "imprint"):
        with pytest.raises(ValueError, match="does not search"):
            panel_of(images_of((8, 8, 3)), (name,))


@pytest.mark.slow
def test_one_image_behind_a_dense_layer_is_recovered(monkeypatch, tmp_path):
    closed = [Member(n, n, CLOSED_FORM) for n in ("rgap", "spear")]
    some(monkeypatch, LABELS, *closed)
    with quick_compilation():
        found = audit(model="dense", data="digits", batch=1, **SMALL)
    labels, rgap, spear = found.tried
    assert found.verdict == "recovered" and rgap.recovered == 2
    assert labels.labels["idlg"] == 1.0 and found.label_floor < 0.5
    assert any(spear.refused in line for line in found.open)
    assert rgap.corrected == rgap.share  # it has no rival that ran
    folder = found.write(tmp_path / "audit")
    page = (folder / "audit.md").read_text()
    assert page == found.page() and "at least 2 of 2 images, by 'rgap'" in page
    assert (folder / "audit.png").exists()
    kept = json.loads((folder / "audit.json").read_text())
    assert kept["tried"][1]["recovered"] == 2 and kept["verdict"] == "recovered"
    assert " safe" not in page and " secure" not in page


class Own(nnx.Module):
    def __init__(self, rngs):
        self.head = nnx.Linear(64, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(x.reshape(len(x), -1))


def test_a_network_and_arrays_in_hand_are_audited_as_they_are(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8), np.uint8)  # grey
    some(monkeypatch, *(Member(n, n, CLOSED_FORM) for n in (FED_LAYER, "rgap")))
    with quick_compilation():
        found = audit(
            model=Own(nnx.Rngs(0)), data=(images, np.arange(12) % 4), batch=1, uploads=2
        )
    assert (found.verdict, found.tried[0].recovered) == ("recovered", 2)
    assert "walks a chain" in found.tried[1].refused
    assert found.config.model.partition(":")[2].startswith("Own_")


def test_what_fits_nobody_is_refused_before_any_attack(monkeypatch):
    monkeypatch.setattr(network, "leak", lambda *_, **__: pytest.fail("it ran"))
    for wrong, message in (
        ({"model": "lennet"}, "did you mean 'lenet'"),
        ({"data": "digit"}, "did you mean 'digits'"),
        ({"batch": 0}, "batch must be"),
        ({"batch": 5000}, "ask for fewer"),
        ({"attacks": ("rgap",)}, "does not search"),
    ):
        with pytest.raises(ValueError, match=message):
            audit(**{"model": "dense", "data": "digits", "batch": 1, **SMALL} | wrong)


CONFIG = NetworkAuditConfig(model="lenet", data="digits", batch=32)


def ran(kind, recovered, of=8, **more):
    share = wilson(recovered, of)
    outcomes = {"recovered": recovered, "unsolved": of - recovered}
    member = Member(f"{kind} x", "x", kind)
    return Tried(member, outcomes=outcomes, share=share, corrected=share, **more)


@pytest.mark.parametrize(
    ("honest", "malicious", "verdict"),
    [
        (0, 0, "not recovered by what was tried"),
        (0, 3, "recovered by a malicious server"),
        (1, 3, "recovered"),
        (1, 0, "recovered"),
    ],
)
def test_verdicts_say_what_was_found_and_never_that_nothing_leaks(
    honest, malicious, verdict
):
    tried = [ran(SEARCH, honest), ran(MALICIOUS_SERVER, malicious)]
    tried.append(Tried(Member("y", "y", CLOSED_FORM), refused="y is of one example"))
    name, words = judge_network(CONFIG, tried, 8, "image", 0.4)
    assert name == verdict
    told = " ".join([name, words, *list_open(CONFIG, tried, PANELS["image"], "image")])
    assert "safe" not in told and "secure" not in told
    assert "y is of one example" in told and "these searches failed" in told
    assert ("lower bound" in words) == (name != "not recovered by what was tried")


def test_where_nobody_could_try_the_verdict_says_so():
    tried = [Tried(Member("y", "y", kind), refused="no") for kind in KINDS[1:4]]
    rules = {"near": 0.5, "far": 0.1}
    tried.append(Tried(LABELS, labels=rules))
    name, words = judge_network(CONFIG, tried, 8, "image", 0.4)
    assert name == "nothing could be tried" and "no evidence" in words
    assert "'near' reads 50% right, the best of 2 by the truth" in words


@pytest.mark.parametrize(("groups", "told"), [(4, True), (12, False)])
def test_an_interval_of_few_uploads_is_said_to_be_too_narrow(groups, told):
    values = [n % 4 == 0 for n in range(2 * groups)]
    share = interval(values, [n // 2 for n in range(2 * groups)], rate=True)
    one = ran(SEARCH, 1)._replace(share=share, corrected=share)
    _, words = judge_network(CONFIG, [one], 8, "image", 0.4)
    assert f"{groups} independent" in words and ("it is wider" in words) == told


def test_an_attacker_that_fits_no_memory_does_not_end_the_audit(monkeypatch):
    def full(config, **_):
        raise JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(network, "leak", full)
    found, kept = network._run(CONFIG, LABELS, lambda: None)
    assert "RESOURCE_EXHAUSTED" in found.refused and kept is None


def test_the_best_of_many_has_a_wider_interval(monkeypatch):
    rows = [{"attack": "x", "outcome": "recovered" if n < 3 else "unsolved", "group": n}
            for n in range(8)]  # fmt: skip
    two = [ran(SEARCH, 3), ran(CLOSED_FORM, 3), ran(MALICIOUS_SERVER, 3)]
    found = network._corrected([(one, (None, rows)) for one in two])
    assert found[0].share == wilson(3, 8)
    assert found[0].corrected == wilson(3, 8, confidence=0.975)
    assert found[2].corrected == wilson(3, 8)


def test_an_object_has_a_name_while_it_is_needed():
    given = object()
    with named_object(given) as name:
        assert resolve("model", name, {}) is given
    with pytest.raises(ValueError, match="no attribute"):
        resolve("model", name, {})
    with named_object("lenet") as name:
        assert name == "lenet"


def test_the_command_audits_a_network(monkeypatch, tmp_path, capsys):
    some(monkeypatch, Member("rgap", "rgap", CLOSED_FORM))
    words = ["audit", "--model", "dense", "--data", "digits", "--batch", "1"]
    words += ["--image-size", "8", "--uploads", "2"]
    with quick_compilation():
        assert cli.main([*words, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "recovered: An honest server" in printed and "Not excluded" in printed
    assert (tmp_path / "out" / "audit.md").exists()
    for more, message in (
        (["upload.npz"], "both is there"),
        (["--truth", "x.npz"], "--truth x.npz says nothing"),
        (["--label-candidates", "3"], "--label-candidates 3 says nothing"),
    ):
        assert cli.main([*words, *more]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["audit", "--model", "dense", "upload.npz"]) == 2
    assert "--weights is missing" in capsys.readouterr().err
    assert kljax.audit is audit
