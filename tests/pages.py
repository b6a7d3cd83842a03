"""Pages: where they are, their commands, their blocks of Python and their links."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parent.parent
# The package's own, and pages that people read; notebooks are tested for themselves.
PAGES = [
    ROOT / "README.md",
    ROOT / "kljax" / "README.md",
    *sorted((ROOT / "experiments").glob("*.md")),
    *sorted((ROOT / "experiments" / "speed").glob("*.md")),
]
# Pages whose every command and example is run.
FOR_USERS = [
    ROOT / "README.md",
    ROOT / "kljax" / "README.md",
    ROOT / "experiments" / "guide.md",
]


def named(page: Path) -> str:
    """Names a page as tests are listed."""
    return str(page.relative_to(ROOT))


def python_blocks(page: Path) -> list[str]:
    """Finds the blocks of Python."""
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S)


def plain_blocks(page: Path) -> list[str]:
    """Finds the blocks without a language, which hold commands or drawings."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.M | re.S)
    return [text for language, text in blocks if not language]


def commands(page: Path) -> list[list[str]]:
    """Finds all lines that call ``kljax`` or ``make``, as lists of words."""
    lines = "".join(plain_blocks(page)).replace("\\\n", " ").splitlines()
    return [
        shlex.split(line, comments=True)
        for line in lines
        if line.startswith(("kljax ", "make "))
    ]


def links(page: Path) -> list[str]:
    """Finds what a page links to, but for addresses elsewhere."""
    found = re.findall(r"\]\(([^()\s]+)\)", page.read_text())
    return [link for link in found if "://" not in link]


def anchors(page: Path) -> set[str]:
    """Lists the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        for heading in headings
    }
