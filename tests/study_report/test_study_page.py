"""The page in a real browser: it filters, sorts, fits a phone and needs no script."""

import html
import json
import re
import shutil
import subprocess

import made_studies
import numpy as np
import pytest
from PIL import Image

from kljax.studies import store
from kljax.studies.reports import write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason=f"no browser here: none of {', '.join(BROWSERS)}"
)
AXES = {
    "arm": {arm: {"arm": arm} for arm in made_studies.ARMS},
    "budget": {"short": {"steps": 100}, "long": {"steps": 400}},
    "seed": {str(n): {"seed": n} for n in range(2)},
}
# Kept by the page while it loads, and read from it afterwards.
WATCH = """<script>
window.wrong = [];
addEventListener("error", (event) => wrong.push(event.message));
addEventListener("securitypolicyviolation", (event) => wrong.push(event.blockedURI));
</script>"""
# Nothing may be loaded but what the page holds.
WALL = (
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
    "img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
)
ASK = """<script>
const points = document.getElementById("points");
const boxes = [...points.querySelectorAll(".filters input")];
const heads = [...points.tHead.rows[0].cells];
const column = (name) => heads.findIndex((head) => head.textContent.startsWith(name));
const shown = () => [...points.tBodies[0].rows].filter((line) => !line.hidden);
const read = (n) => shown().map((line) => line.cells[n].textContent.trim());
function type(name, text) {
  boxes[column(name)].value = text;
  boxes[column(name)].dispatchEvent(new Event("input"));
}
const found = { columns: heads.map((head) => head.textContent), all: shown().length };
type("arm", "KEYLOCK");
found.locked = read(0);
found.count = document.querySelector("#results .count").textContent;
type("budget", "long");
found.long = read(column("budget"));
type("arm", ""); type("budget", "");
type("SSIM >= .6", "> 50%");
const numbers = (name) => shown().map(
  (line) => Number(line.cells[column(name)].dataset.value));
found.half = numbers("SSIM >= .6");
type("SSIM >= .6", "");
const button = heads[column("SSIM [")].querySelector("button");
button.click(); found.rising = numbers("SSIM [");
found.sort = button.parentNode.ariaSort;
button.click(); found.falling = numbers("SSIM [");
heads[0].querySelector("button").click(); found.names = read(0);
found.pictures = [...document.images].every((image) => image.naturalWidth > 0);
found.width = [document.documentElement.scrollWidth, innerWidth];
found.wrong = wrong;
parent.postMessage(JSON.stringify(found), "*");
</script>"""
# The page in a frame: a browser's own window has a least width, above a phone's.
FRAME = """<!DOCTYPE html><pre id="found"></pre><script>
addEventListener("message", (event) => {
  document.getElementById("found").textContent = event.data;
});
</script><iframe src="%s" width="%d" height="800"></iframe>"""


def browse(path, *options):
    """Opens a page, without a screen and without a network."""
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--force-device-scale-factor=1",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={path.parent / 'browser'}",
        "--window-size=1280,900",
        *options,
        path.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    return done.stdout.decode()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "study"
    made_studies.make_study(folder, "partial", axes=AXES)
    return write_report(store.read(folder))


def asked(page, width):
    """Asks the page what it looks like, and does what a reader would."""
    text = page.read_text()
    # Text above the document type would put the browser into another mode.
    assert text.startswith("<!DOCTYPE html>")
    text = text.replace("<head>", f"<head>{WALL}{WATCH}")
    inner = page.with_name(f"inner-{width}.html")
    inner.write_text(text.replace("</body>", f"{ASK}</body>"))
    frame = page.with_name(f"frame-{width}.html")
    frame.write_text(FRAME % (inner.name, width))
    dom = browse(frame, "--dump-dom", "--virtual-time-budget=5000")
    found = re.search('<pre id="found">(.*?)</pre>', dom, re.S)
    return json.loads(html.unescape(found.group(1)))


def test_tables_can_be_filtered_and_sorted(page):
    found = asked(page, 1100)
    assert found["wrong"] == []
    assert found["all"] == 10
    assert found["locked"] == [
        arm for arm in made_studies.ARMS[2:] for _ in ("short", "long")
    ]
    assert found["count"] == "6 of 10 lines"
    assert found["long"] == ["long"] * 3
    assert found["half"] and min(found["half"]) > 0.5
    finite = [value for value in found["rising"] if value is not None]
    assert len(finite) > 5 and finite == sorted(finite) and found["sort"] == "ascending"
    falling = [value for value in found["falling"] if value is not None]
    assert falling == finite[::-1]
    assert found["names"] == sorted(found["names"])
    assert found["pictures"]


def test_it_fits_a_phone(page):
    found = asked(page, 360)
    scroll, inner = found["width"]
    assert inner == 360 >= scroll
    assert found["locked"] and found["wrong"] == []


def test_it_needs_no_script(page):
    path = page.with_name("without.html")
    wall = WALL.replace("script-src 'unsafe-inline'", "script-src 'none'")
    assert wall != WALL
    path.write_text(page.read_text().replace("<head>", f"<head>{wall}"))
    dom = browse(path, "--dump-dom")
    assert "<th role" in dom and 'class="filters"' not in dom
    points = dom[dom.index('id="points"') :]
    points = points[: points.index("</table>")]
    assert points.count("<tr ") == 11


def test_it_can_be_seen_by_day_and_by_night(page):
    pictures = {}
    for name, options in (("day", ()), ("night", ("--force-dark-mode",))):
        path = page.with_name(f"{name}.png")
        browse(page, f"--screenshot={path}", *options)
        pictures[name] = np.asarray(Image.open(path).convert("L"), float)
    for picture in pictures.values():
        # Not blank: there is paper, and something is written on it.
        assert (np.abs(picture - np.median(picture)) > 60).mean() > 0.01
    assert np.median(pictures["day"]) > 240 > 60 > np.median(pictures["night"])


LOOK = """<script>
addEventListener("load", () => {
  const right = (one) => Math.round(one.getBoundingClientRect().right);
  const cut = (one) => [...one.querySelectorAll("td, img")].some(
    (part) => right(part) > innerWidth);
  const ranked = document.getElementById("ranking-1");
  const figures = [...document.querySelectorAll(".plot")];
  parent.postMessage(JSON.stringify({
    ranked: cut(ranked), figures: figures.filter(cut).length,
    count: document.querySelector(".count").hidden,
    names: [...ranked.querySelectorAll("td")].map((one) => one.dataset.name),
    points: document.getElementById("points").textContent,
  }), "*");
});
</script>"""


def test_rankings_and_figures_are_not_cut_off_on_a_phone(page):
    """But for a figure of three panels, which is scrolled."""
    inner, frame = (page.with_name(f"{name}.html") for name in ("look", "look-frame"))
    inner.write_text(page.read_text().replace("</body>", f"{LOOK}</body>"))
    frame.write_text(FRAME % (inner.name, 400))
    dom = browse(frame, "--dump-dom", "--virtual-time-budget=5000")
    found = re.search('<pre id="found">(.*?)</pre>', dom, re.S)
    found = json.loads(html.unescape(found.group(1)))
    assert found["ranked"] is False and found["figures"] == 0
    assert found["count"] is True  # nothing is filtered yet
    # No line ends within an interval, or between a number and its unit.
    intervals = re.findall(r"\[[^\]]*,[^\]]*\]", found["points"])
    assert intervals and not any(" " in one for one in intervals)
    assert any("[95\xa0%]" in name for name in found["names"])


def test_on_paper_headers_are_repeated_and_victims_pages_are_not_kept_whole(page):
    style = page.read_text().partition("@media print")[2].partition("</style>")[0]
    assert "table-row-group" not in style and "attr(data-name)" in style
    assert ".scroll:not(.tall)" in style and ".of-victim .scroll" in style
