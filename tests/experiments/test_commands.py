"""experiments/: a file at its top is a command that a page names, and nothing else."""

import ast

import pytest
from pages import ROOT

EXPERIMENTS = ROOT / "experiments"
COMMANDS = sorted(EXPERIMENTS.glob("*.py"))
TEXTS = [
    path.read_text()
    for page in ("README.md", "kljax/**/*.md", "experiments/**/*.md", "notebooks/*.py")
    for path in ROOT.glob(page)
]


@pytest.mark.parametrize("file", COMMANDS, ids=lambda file: file.stem)
def test_it_is_a_command_that_a_page_names(file):
    assert 'if __name__ == "__main__":' in file.read_text()
    assert any(f"experiments/{file.name}" in text for text in TEXTS)


@pytest.mark.parametrize("file", COMMANDS, ids=lambda file: file.stem)
def test_what_commands_share_is_in_packages(file):
    imported = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    assert not imported & {command.stem for command in COMMANDS}


def test_packages_say_what_is_in_them():
    packages = {file.parent for file in EXPERIMENTS.rglob("*.py")} - {EXPERIMENTS}
    for folder in packages - {EXPERIMENTS / "audit"}:  # one script, of a page
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
