"""Builds kljax, installs it into a clean environment, and attacks one victim there.

    python tests/packaging/check_install.py              # with this Python
    python tests/packaging/check_install.py python3.13   # with another

The source distribution is built first and the wheel from it, so that both are whole.
What is installed is the wheel and what it requires, from the package index.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEAK = (
    "leak --model dense --image-size 8 --victims 1 --steps 20 --optimiser adam "
    "--arms none --out run"
).split()
CHECK = """
import kljax, sys
from pathlib import Path
assert "site-packages" in kljax.__file__, kljax.__file__
assert (Path(kljax.__file__).parent / "py.typed").exists()
[getattr(kljax, name) for name in kljax.__all__]
print(sys.version.split()[0], kljax.__version__)
"""


def build(folder: Path) -> Path:
    """Builds sdist and wheel into a folder; returns the wheel."""
    run([sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)], folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def check(python: str, wheel: Path, folder: Path, constraints: list[str] = ()) -> None:
    """Installs a wheel with a Python, and runs what a user runs first."""
    run([python, "-m", "venv", "clean"], folder)
    inside = folder / "clean" / "bin"
    install = [str(inside / "python"), "-m", "pip", "install", "--quiet", str(wheel)]
    run([*install, *constraints], folder)
    run([str(inside / "python"), "-c", CHECK], folder)
    run([str(inside / "kljax"), "doctor"], folder)
    run([str(inside / "kljax"), "--help"], folder)
    run([str(inside / "kljax"), *LEAK], folder)
    summary = json.loads((folder / "run" / "summary.json").read_text())
    print("outcomes:", summary["arms"]["none"]["outcomes"], flush=True)


def run(command: list[str], folder: Path) -> None:
    """Runs a command in a folder, and stops where it fails."""
    print("+", *command[:4], flush=True)
    subprocess.run(command, cwd=folder, check=True)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("python", nargs="?", default=sys.executable)
    parser.add_argument(
        "--with",
        dest="constraints",
        nargs="*",
        default=[],
        help="versions to install beside it, such as jax==0.10.2",
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        check(given.python, build(folder), folder, given.constraints)


if __name__ == "__main__":
    main()
