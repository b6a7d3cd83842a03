"""What a release is made of: it installs, and its papers say the same version."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_papers_have_the_version_of_the_package():
    version = PROJECT["project"]["version"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.*)$", citation, re.M)[1] == version
    assert re.search(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[1] == (
        version
    )
    assert (ROOT / "kljax" / "py.typed").read_text() == ""


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("mypy") is None, reason="mypy: make types installs it"
)
def test_the_public_modules_are_clean_in_types():
    subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, check=True)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("build") is None, reason="build: make dist installs it"
)
def test_sdist_and_wheel_install_into_a_clean_environment():
    script = ROOT / "tests" / "packaging" / "check_install.py"
    subprocess.run([sys.executable, script], check=True)
