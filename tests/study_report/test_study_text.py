"""Studies of text: reports say of sentences what is true of sentences."""

import csv
import io

import made_studies
import pytest

from kljax.metrics.kinds import KINDS
from kljax.studies import store
from kljax.studies.config import LeakConfig
from kljax.studies.reports import write_report
from kljax.studies.reports.axes import axes_of
from kljax.studies.reports.contents import make_contents
from kljax.studies.reports.estimates import estimate
from kljax.studies.reports.pools import make_pools
from kljax.studies.reports.tables import to_csv
from kljax.studies.reports.threats import DOES, threat_facts
from kljax.studies.reports.tradeoffs import Tradeoff, tradeoffs_table
from kljax.studies.reports.verdicts import count_outcomes
from kljax.studies.reports.words import reading

BUDGET = {"short": {"steps": 100}, "long": {"steps": 400}}
ARMS = {arm: {"arm": arm} for arm in ("none", "keylock/known")}
ACCURACY = {
    ("none", 100): [1.0, 0.5, 0.5, 0.25],
    ("none", 400): [1.0, 1.0, 0.75, 0.5],
    ("keylock/known", 100): [0.25, 0.5, 0.0, 0.25],
    ("keylock/known", 400): [0.25, 0.5, 0.25, 0.0],
}
OWN = [0.25, 0.25, 0.0, 0.25]


def sentences_of(cell):
    config = cell["config"]
    accuracy = ACCURACY[config["arms"][0], config["steps"]]
    return made_studies.sentence_rows(cell, accuracy, OWN)


def images_of(cell):
    found = made_studies.attack_rows(cell, [0.9, 0.8, 0.7, 0.5])
    return found + made_studies.floor_rows([0.7, 0.1, 0.1, 0.1])


def make(folder, axes, rows_of):
    folder = made_studies.make_folder(folder, axes, {"victims": 4})
    for number, cell in enumerate(store.read(folder).manifest["cells"]):
        made_studies.write_part(folder, str(number), cell, rows_of(cell))
    return store.read(folder)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A study of sentences: two arms at two budgets."""
    folder = tmp_path_factory.mktemp("text") / "study"
    return make(folder, {"arm": ARMS, "budget": BUDGET}, sentences_of)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A study of images and of sentences, told apart by an axis."""
    axes = {
        "arm": ARMS,
        "of": {"images": {"data": "digits"}, "sentences": {"data": "text"}},
        "budget": BUDGET,
    }
    folder = tmp_path_factory.mktemp("mixed") / "study"
    rows_of = {"images": images_of, "sentences": sentences_of}
    return make(folder, axes, lambda cell: rows_of[cell["point"]["of"]](cell))


@pytest.fixture(scope="module")
def contents(text):
    return make_contents(text)


def test_a_report_of_text_says_nothing_of_images(text):
    page = write_report(text)
    written = (page.parent / "report.md").read_text()
    for words in ("SSIM", "squared error", "mean image", "brightness"):
        assert words not in written, words
    # Nowhere else: that no sentence has this outcome is said.
    assert [line for line in written.splitlines() if "image" in line.lower()] == [
        "- *recovered_affine*: of images alone: no sentence is recovered up to "
        "anything."
    ]
    assert "- *success*: all tokens of the sentence are right" in written
    assert "at most half as many are wrong as in the sentence's best floor" in written
    assert "--value" not in written
    shown = page.read_text()
    assert "SSIM" not in shown and "sentences recovered / " in shown


def test_tables_of_text_are_about_its_tokens(contents):
    assert (contents.kinds, contents.value) == (("text",), "token_accuracy")
    (table,) = contents.pivots
    assert table.title == "tokens by arm and budget"
    assert [entry.text.splitlines()[0][:3] for entry in table.lines[0][1:]] == [
        "56%",
        "81%",
    ]
    assert "floor 19% (own_tokens)" in table.lines[0][1].text
    assert "all tokens [95 %]" in contents.points.header
    assert "Tokens: above its floor" in contents.points.records[1]["reads_as"]
    assert not any("SSIM" in head for head in contents.points.header)
    assert "all tokens: arm / minus" in contents.comparisons.header
    assert "all tokens: p" in contents.comparisons.header


def test_another_value_of_text_can_be_asked_for(text, contents):
    assert contents.commands[1] == "kljax report study"
    contents = make_contents(text, value="success")
    assert contents.pivots[0].title == "all tokens by arm and budget"
    assert contents.commands[1].endswith("--value success")


def test_what_a_budget_brought_is_told_of_tokens(contents):
    header = contents.budgets.header
    assert header[-5:-1] == (
        "all tokens [95 %]",
        "floor",
        "tokens [95 %]",
        "floor of tokens",
    )
    last = contents.budgets.records[1]
    assert last["token_accuracy"] == pytest.approx(0.8125)
    assert last["token_accuracy_gain"] == pytest.approx(0.25)
    assert not any("ssim" in name for name in last)
    (_, none), _ = contents.budget_words
    assert none.startswith(
        "from 100 to 400 evaluations: +25 points, tokens +25 points; "
    )
    assert "sentences with all tokens right" in contents.budget_figure.alt


def test_a_study_of_both_says_both(mixed):
    contents = make_contents(mixed)
    assert (contents.kinds, contents.value) == (("image", "text"), "success")
    assert "SSIM >= .6 or all tokens [95 %]" in contents.points.header
    names = [name for name, _ in reading(contents.kinds)]
    assert names[:4] == [
        "success (image)",
        "success (text)",
        "floor (image)",
        "floor (text)",
    ]
    assert names.count("unsolved") == 1 and "SSIM affine oracle" in names
    by_kind = {line["of"]: line for line in contents.budgets.records}
    assert by_kind["images"]["ssim"] == pytest.approx(0.725)
    assert by_kind["images"]["token_accuracy"] is None
    assert by_kind["sentences"]["token_accuracy"] == pytest.approx(0.25)
    assert by_kind["sentences"]["ssim"] is None
    reads = {line["of"]: line["reads_as"] for line in contents.points.records}
    assert reads["images"].startswith("SSIM: above its floor; SSIM >= .6 or all tokens")
    assert reads["sentences"].startswith("Not told apart from its floor. All 4")
    lines = list(csv.DictReader(io.StringIO(to_csv(contents.budgets))))
    assert len(lines) == 8


def test_trade_offs_of_text(text):
    (pool, *_) = make_pools(text, axes_of(text.manifest), ())
    success, score = estimate(pool, "success"), estimate(pool, pool.primary)
    made = Tradeoff(
        "none", "none", {}, ("r",), 0.9, 0.0, success, score, count_outcomes(pool)
    )
    table = tradeoffs_table([made])
    assert "floor of tokens" in table.header and "all tokens [95 %]" in table.header
    assert table.records[0]["token_accuracy"] == pytest.approx(0.5625)


def test_attackers_look_for_sentences():
    config = LeakConfig(arms=("keylock/regress_private_key",), labels="joint")
    found = threat_facts(config, "sentence")
    assert found["does labels"] == "It optimises the labels along with the sentence."
    assert found["does secret"].endswith("private key along with the sentence.")
    said = " ".join(words for fact in DOES.values() for words in fact.values())
    assert "image" not in said


def test_every_kind_says_what_recovered_is():
    for kind in KINDS:
        said = dict(reading([kind]))
        assert said["recovered"] == f"{KINDS[kind].meanings['recovered']}."
    assert "squared error" not in dict(reading(["text"]))["recovered"]
