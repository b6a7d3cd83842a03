"""Whole reports: of an empty study, of a part of one, and of all of it."""

import csv
import html.parser
import json
import re
import tomllib

import made_studies
import pytest

from kljax.studies import store
from kljax.studies.reports import write_report, writing

SMALL = {
    "arm": {arm: {"arm": arm} for arm in made_studies.ARMS[:3]},
    "budget": {r"<i>|$\foo$": {"steps": 100}, "long": {"steps": 400}},
    "seed": {str(n): {"seed": n} for n in range(2)},
}


class Page(html.parser.HTMLParser):
    """Reads a page, and complains about what is not closed."""

    VOID = {"meta", "img", "br", "source", "rect", "line", "link", "input", "wbr"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module", params=("empty", "partial", "finished"))
def reported(request, tmp_path_factory):
    """A study in each state, and the folder of its report."""
    folder = tmp_path_factory.mktemp(request.param) / "a study"
    made_studies.make_study(folder, request.param, axes=SMALL)
    page = write_report(store.read(folder))
    assert page == folder / "report" / "report.html"
    return request.param, folder, page.parent


def test_what_is_written(reported):
    state, _, out = reported
    files = {path.name for path in out.iterdir()}
    always = {"report.html", "report.md", "points.csv", "sweep.toml", "table.csv"}
    always |= {f"ranking-{n}.csv" for n in (1, 2)}  # of two attackers, at one point
    always |= {"rows.parquet"}
    drawn = {"comparisons.csv", "budgets.csv", "budgets.svg", "distributions.svg"}
    drawn |= {"victims.csv", "victims"}
    assert files == (always if state == "empty" else always | drawn)


def test_how_far_it_is(reported):
    state, _, out = reported
    words = {
        "empty": "Nothing is finished yet, of 12 cells.",
        "partial": "9 of 12 cells finished, 114 victims attacked. Of the others, 1 "
        "begun and 1 failed.",
        "finished": "12 of 12 cells finished, 144 victims attacked.",
    }[state]
    assert words in Page((out / "report.html").read_text()).words
    assert words in (out / "report.md").read_text()


def test_the_page_is_whole(reported):
    state, _, out = reported
    text = (out / "report.html").read_text()
    page = Page(text)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = {a["href"] for a in page.all("a")}
    inside = {link for link in links if link.startswith("#")}
    assert {link[1:] for link in inside} <= set(ids)
    # Links go nowhere else, but to the files beside the page.
    assert all((out / link).is_file() for link in links - inside)
    assert {"rows.parquet", "points.csv"} <= links or state == "empty"
    assert all(image["alt"] for image in page.all("img"))
    assert page.all("html")[0]["lang"] == "en" and page.all("title")
    assert all(head.get("scope") in ("col", "row") for head in page.all("th"))
    # Nothing is fetched: pictures are inside, and so are style and script.
    for tag in ("img", "source"):
        found = [a.get("src", a.get("srcset")) for a in page.all(tag)]
        assert all(source.startswith("data:image/") for source in found)
    assert not page.all("link") and "src" not in page.all("script")[0]
    assert "url(" not in text and "@import" not in text
    assert bool(page.all("img")) == (state != "empty")


def test_what_people_write_is_escaped(reported):
    state, _, out = reported
    page = (out / "report.html").read_text()
    assert "<i>" not in page and r"&lt;i&gt;|$\foo$" in page
    markdown = (out / "report.md").read_text()
    assert state == "empty" or r"&lt;i>\|$\foo$" in markdown
    assert "<i>" not in re.sub("(?s)```.*?```", "", markdown)
    # As many places in each line of a table, whatever stands in them.
    for table in re.findall(r"(?m)(?:^\|.*\n)+", markdown):
        lines = [re.split(r"(?<!\\)\|", line) for line in table.splitlines()]
        assert len({len(line) for line in lines}) == 1


def test_failures_come_with_their_command(reported):
    state, folder, out = reported
    words = Page((out / "report.html").read_text()).words
    markdown = (out / "report.md").read_text()
    command = "kljax leak --arms keylock/known --seed 1"
    failed = state == "partial"
    assert (command in words) == (command in markdown) == failed
    assert ("out of memory <while> compiling" in words) == failed


def test_it_says_how_to_repeat_it(reported):
    _, folder, out = reported
    sweep = json.loads((folder / "manifest.json").read_text())["sweep"]
    read = tomllib.loads((out / "sweep.toml").read_text())
    assert read["fixed"] == sweep["fixed"]
    assert read["axes"]["arm"] == list(sweep["axes"]["arm"])
    assert read["axes"]["budget"] == sweep["axes"]["budget"]
    words = Page((out / "report.html").read_text()).words
    assert "kljax sweep sweep.toml --out 'a study'" in words
    assert "jax 0.10.2" in words and "kljax report 'a study'" in words


def test_every_rate_stands_beside_its_floor(reported):
    state, _, out = reported
    with open(out / "points.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 6
    for line in lines:
        run = int(line["victims"]) > 0
        assert bool(line["success_floor"]) == bool(line["success_mean"]) == run
        assert (line["state"] == "finished") == (line["victims"] == "24")
    if state == "partial":
        assert lines[-1]["state"] == "failed" and lines[-1]["victims"] == "0"


def test_a_study_without_cells(tmp_path):
    folder = made_studies.make_folder(tmp_path / "none", {}, {}, [])
    page = write_report(store.read(folder))
    assert "The study has no cells." in Page(page.read_text()).words


def test_a_failure_made_good_is_none(tmp_path):
    axes = {"arm": {"none": {"arm": "none"}}}
    folder = made_studies.make_study(tmp_path / "study", "finished", axes=axes)
    (cell,) = store.read(folder).manifest["cells"]
    made_studies.write_failure(folder, cell)
    words = Page(write_report(store.read(folder)).read_text()).words
    assert "1 of 1 cell finished" in words and "Failures" not in words


def read_files(out):
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_report_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    axes = {"arm": {"none": {"arm": "none"}}}
    folder = made_studies.make_study(tmp_path / "study", "finished", axes=axes)
    out = tmp_path / "out"
    write_report(store.read(folder), out)
    before = read_files(out)

    def broken(contents):
        raise RuntimeError("no page")

    monkeypatch.setattr(writing, "to_page", broken)
    with pytest.raises(RuntimeError, match="no page"):
        write_report(store.read(folder), out, value="psnr")
    assert read_files(out) == before


def test_what_an_earlier_report_had_and_this_one_has_not_goes(tmp_path):
    axes = SMALL | {"attack": made_studies.AXES["attack"]}
    folder = made_studies.make_study(tmp_path / "study", "empty", axes=axes)
    out = tmp_path / "victims"  # as the folder of their pages is called
    write_report(store.read(folder), out)
    assert (out / "table-2.csv").exists()
    (out / "budgets.svg").write_text("of an earlier time")
    (out / "notes.csv").write_text("mine")
    (out / "table-of-mine.csv").write_text("mine")
    write_report(store.read(folder), out, rows=["arm", "attack"])
    assert not (out / "table-2.csv").exists() and (out / "table.csv").exists()
    assert not (out / "budgets.svg").exists()
    assert (out / "notes.csv").exists() and (out / "table-of-mine.csv").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"value": "sssim"}, "unknown value 'sssim' .did you mean 'ssim'"),
        ({"rows": ["budgett"]}, "no axis 'budgett' .did you mean 'budget'"),
    ),
)
def test_nothing_is_written_for_what_does_not_exist(tmp_path, options, message):
    folder = made_studies.make_study(tmp_path / "study", "empty", axes=SMALL)
    with pytest.raises(ValueError, match=message):
        write_report(store.read(folder), **options)
    assert not (folder / "report").exists()


@pytest.mark.slow
def test_a_run_beside_the_study(tmp_path):
    from test_study_curves import write_run

    axes = {"arm": {arm: {"arm": arm} for arm in made_studies.ARMS}}
    folder = made_studies.make_study(tmp_path / "study", "finished", axes=axes)
    run = write_run(tmp_path / "run", {"none": 0.87, "keylock": 0.86})
    page = write_report(store.read(folder), runs=[run])
    assert (page.parent / "tradeoffs.svg").exists()
    words = Page(page.read_text()).words
    assert "Privacy against accuracy" in words and "87.0%" in words
    assert (
        "No training of the same network: bn-control (run: it did not train this arm)."
    ) in words
