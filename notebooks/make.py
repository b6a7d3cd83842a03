"""Makes the notebooks from their scripts: ``python notebooks/make.py [--check]``.

A script ``notebooks/NN_NAME.py`` (Jupytext's percent form) is the source, and
``NN_NAME.ipynb`` beside it is made from it, without outputs. Both open with the same
two cells, a Colab badge and an install cell, which are written here and follow from
one constant: ``[project.urls] Repository`` in ``pyproject.toml``. A new notebook needs
only a new script, with or without those two cells.
"""

import argparse
import hashlib
import sys
import tomllib
import urllib.parse
from pathlib import Path

import jupytext
import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell

ROOT = Path(__file__).parent.parent
BRANCH = "main"  # that badges point at
SCRIPTS = "[0-9][0-9]_*.py"
PERCENT = "py:percent"
HEADER = ("badge", "install")  # tags of the two cells written here
# Names that the standards reserve (RFC 2606, RFC 6761): nobody's address, ever.
RESERVED = ("invalid", "example", "test", "localhost")
RESERVED += ("example.org", "example.com", "example.net")
METADATA = {
    "jupytext": {
        "cell_metadata_filter": "tags,-all",
        "formats": "ipynb,py:percent",
        "notebook_metadata_filter": "-all",
    },
    "kernelspec": {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
}

GITHUB_BADGE = """\
[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]\
(https://colab.research.google.com/github/{slug}/blob/{branch}/notebooks/{name}.ipynb)"""
ELSEWHERE_BADGE = """\
*No Colab badge: Colab opens notebooks from GitHub, and kljax is at <{url}>. Upload
this file to Colab instead.*"""
NOWHERE_BADGE = """\
*No Colab badge yet: kljax has no public address. To run this in Colab, upload this
file, and a wheel of kljax (`pip wheel --no-deps FOLDER`) to the runtime's working
folder, where the next cell finds it.*"""

INSTALL = """\
# A fresh Colab runtime has no kljax: this installs it for the CPU, GPU or TPU that is
# there. TensorFlow is neither needed nor installed. Elsewhere this does nothing.
import importlib.util

if importlib.util.find_spec("kljax") is None:
    import glob
    import subprocess
    import sys

    gpu = glob.glob("/dev/nvidia[0-9]*")
    tpu = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    extra = "[cuda]" if gpu else "[tpu]" if tpu else ""
{source}
    before = {{"jax", "numpy", "matplotlib", "PIL"}} & sys.modules.keys()
    command = [sys.executable, "-m", "pip", "install", "--quiet", package]
    subprocess.run(command, check=True)
    if before:
        print(f"Restart the session once; loaded before: {{', '.join(sorted(before))}}")
"""
FROM_ADDRESS = """\
    package = f"kljax{{extra}} @ git+{url}"
"""
FROM_WHEEL = """\
    wheels = sorted(glob.glob("kljax-*.whl"))
    if not wheels:
        raise ModuleNotFoundError(
            "kljax is not installed, and has no public address to install it from "
            "yet: put a wheel of it (pip wheel --no-deps FOLDER) in this folder"
        )
    package = f"./{wheels[-1]}{extra}"
"""


def repository(root: Path = ROOT) -> str:
    """Reads the one constant: where kljax is published.

    Raises:
      ValueError: if ``pyproject.toml`` has none, or one that is no https address.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    url = project.get("urls", {}).get("Repository")
    parts = urllib.parse.urlsplit(url or "")
    if parts.scheme != "https" or not parts.hostname or not parts.path.strip("/"):
        raise ValueError(
            "pyproject.toml: [project.urls] Repository must be an address such as "
            f"https://github.com/OWNER/NAME, got {url!r}"
        )
    return url.rstrip("/").removesuffix(".git")


def is_public(url: str) -> bool:
    """Tells whether `url` is an address, not a name reserved for having none."""
    host = urllib.parse.urlsplit(url).hostname
    return not any(host == name or host.endswith(f".{name}") for name in RESERVED)


def header(url: str, name: str) -> list[nbformat.NotebookNode]:
    """Makes the badge and the install cell of the notebook `name`."""
    parts = urllib.parse.urlsplit(url)
    source = FROM_ADDRESS.format(url=url)
    if not is_public(url):
        badge, source = NOWHERE_BADGE, FROM_WHEEL
    elif parts.hostname in ("github.com", "www.github.com"):
        slug = parts.path.strip("/")
        badge = GITHUB_BADGE.format(slug=slug, branch=BRANCH, name=name)
    else:
        badge = ELSEWHERE_BADGE.format(url=url)
    install = INSTALL.format(source=source.rstrip("\n"))
    return [
        new_markdown_cell(badge, metadata={"tags": ["badge"]}),
        new_code_cell(install.rstrip("\n"), metadata={"tags": ["install"]}),
    ]


def make(text: str, url: str, name: str) -> tuple[str, str]:
    """Makes a script with its header, and the notebook.

    Guarantees: depends on the arguments alone; made again from the script that it
    gives, it gives the same. Nothing of this machine gets in.

    Args:
      text: the script, with or without a header.
      url: of the repository.
      name: of the notebook, without suffix.

    Returns:
      The text of the script and of the notebook.
    """
    cells = jupytext.reads(text, fmt=PERCENT).cells
    body = [c for c in cells if not set(HEADER) & set(c.metadata.get("tags", ()))]
    notebook = nbformat.v4.new_notebook(metadata=METADATA)
    notebook.cells = header(url, name) + body
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        # By content: an added cell does not rename the others.
        digest = hashlib.sha256(cell.source.encode()).hexdigest()[:8]
        seen[digest] = seen.get(digest, 0) + 1
        cell["id"] = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        if cell.cell_type == "code":
            cell["outputs"], cell["execution_count"] = [], None
    # Blank lines between cells, which a formatter may want, are the script's alone.
    script = jupytext.writes(notebook, fmt=PERCENT)
    for cell in notebook.cells:
        kept = {
            name: cell.metadata[name] for name in ("tags",) if name in cell.metadata
        }
        cell["metadata"] = kept
    nbformat.validate(notebook)
    return script, nbformat.writes(notebook).rstrip("\n") + "\n"


def made(root: Path = ROOT) -> dict[Path, str]:
    """Makes every file that belongs in ``notebooks/``: path -> text."""
    url, files = repository(root), {}
    for path in sorted((root / "notebooks").glob(SCRIPTS)):
        script, notebook = make(path.read_text(), url, path.stem)
        files[path] = script
        files[path.with_suffix(".ipynb")] = notebook
    return files


def out_of_step(root: Path = ROOT) -> list[Path]:
    """Lists the files that are missing, differ, or have lost their script."""
    files = made(root)
    there = (root / "notebooks").glob("*.ipynb")
    differing = [
        path
        for path, text in files.items()
        if not path.is_file() or path.read_text() != text
    ]
    return differing + sorted(path for path in there if path not in files)


def main() -> int:
    """Writes scripts and notebooks, or says with ``--check`` which are out of step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    stale = out_of_step()
    files = made()
    for path in stale:
        print("out of step:" if check else "written:", path.relative_to(ROOT))
        if not check and path in files:
            path.write_text(files[path])
        elif not check:
            print(f"  (no script makes {path.name}: remove it, or write one)")
    if check and stale:
        print("run python notebooks/make.py")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
