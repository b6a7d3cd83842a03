"""What is answered before JAX is imported, and what is remembered for that."""

import inspect
import json
import os
import subprocess
import sys

import pytest

from kljax import cli
from kljax.cli import answers
from kljax.cli.commands import COMMANDS, class_of
from kljax.core.places import cache_folder

HEAVY = ("jax", "flax", "optax", "numpy", "tyro", "matplotlib", "pandas")
PROBE = f"""
import sys
from kljax.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as end:
    status = end.code
print("IMPORTED", [name for name in {HEAVY} if name in sys.modules])
sys.exit(status)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A user's cache folder, in which the help of kljax leak is remembered."""
    folder = tmp_path_factory.mktemp("home")
    first = ask(folder, "leak", "--help")
    assert first.returncode == 0, first.stderr
    return folder, first.stdout.partition("IMPORTED")[0]


def ask(folder, *arguments):
    environment = os.environ | {"XDG_CACHE_HOME": str(folder), "COLUMNS": "80"}
    return subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--help"], 0, "commands:"),
        (["--version"], 0, "kljax 0."),
        ([], 2, "usage: kljax COMMAND"),
        (["leek"], 2, "unknown command 'leek' (did you mean 'leak'?)"),
        (["leak", "--help"], 0, "--private-key-size"),
        (["leak", "--stepz", "3"], 2, "no option --stepz (did you mean '--steps'?)"),
        (["leak", "--model", "lennet"], 2, "'lennet' (did you mean 'lenet'?)"),
        (["leak", "--attack=dgl"], 2, "unknown attack 'dgl' (did you mean 'ggl'?)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_it_is_answered_without_jax(arguments, status, words, home):
    done = ask(home[0], *arguments)
    assert done.returncode == status, done.stderr
    assert "IMPORTED []" in done.stdout
    assert words in (done.stderr if status else done.stdout)


def test_a_remembered_help_is_the_one_that_the_parser_prints(home):
    folder, first = home
    again = ask(folder, "leak", "--help").stdout.partition("IMPORTED")[0]
    assert again == first and "╭─ options" in again


@pytest.mark.slow
def test_importing_kljax_imports_no_jax_and_gives_everything():
    check = (
        "import sys, kljax; assert 'jax' not in sys.modules; "
        "[getattr(kljax, name) for name in kljax.__all__]; "
        "assert set(kljax.__all__) <= set(dir(kljax)); kljax.studies.store; "
        "assert not hasattr(kljax, 'study_report') and not hasattr(kljax, 'nothing')"
    )
    subprocess.run([sys.executable, "-c", check], check=True)


def test_a_command_is_listed_by_the_first_sentence_of_its_class():
    for name, command in COMMANDS.items():
        text = inspect.getdoc(class_of(name))
        assert command.does == text.partition("\n")[0], name


@pytest.fixture
def remembered(monkeypatch, tmp_path):
    """Lets nothing be remembered but what a test says: options and names of leak."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def remember(stamp=None):
        known = {
            "help": {},
            "options": ["--model", "--arms"],
            "names": {"model": ["a"]},
        }
        kept = {"stamp": stamp or answers._stamp(), "commands": {"leak": known}}
        place = cache_folder() / "help.json"
        place.parent.mkdir(exist_ok=True)
        place.write_text(json.dumps(kept))
        return place

    return remember


def answered(*arguments):
    """Tells whether a line is answered at once."""
    try:
        known = answers.remembered()
        answers.answer_at_once(list(arguments), "", {"leak": ""}, known)
    except SystemExit:
        return True
    return False


def test_what_may_be_right_is_left_to_the_parser(remembered, capsys):
    remembered()
    assert answered("leak", "--modle", "a") and answered("leak", "--model=b")
    for line in ("--model a", "--model mine:b", "--model", "--arms -- x", "--arms b"):
        assert not answered("leak", *line.split()), line
    assert not answered("leak", "--help")  # in no width of that kind
    capsys.readouterr()


def test_what_is_out_of_date_or_damaged_is_not_believed(remembered, capsys):
    remembered(stamp="of another kljax")
    assert not answered("leak", "--modle", "a")
    remembered().write_text("{")
    assert not answered("leak", "--modle", "a")
    capsys.readouterr()


def test_a_cache_that_cannot_be_written_costs_no_help(monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    with pytest.raises(SystemExit) as end:
        cli.main(["merge", "--help"])
    assert end.value.code == 0 and "folder to write" in capsys.readouterr().out
