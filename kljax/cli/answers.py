"""Answers that need no work: help, the version, and names that there are not.

What help says is made of the catalogues, and to read these takes JAX, Flax and three
seconds. So the text of a command's help, its options and the names that they take are
remembered in the user's cache folder, and forgotten when any file of kljax or tyro has
changed. Then help, and a word that was written wrongly, are answered without any of it.
What is not remembered yet is made once, and whoever is in doubt goes on to the parser,
which knows better.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from kljax.core.places import cache_folder
from kljax.core.registry import nearest, unknown_name

PACKAGE = Path(__file__).parents[1]
HELP = ("-h", "--help")
WIDE = 80  # columns, of which help does not break the name of an option
# Options of commands that take one name: what is named, for the error.
NAMED = {
    "leak": {"model": "model", "attack": "attack", "optimiser": "optimiser"},
    "train": {"model": "model"},
}


def answer_at_once(
    given: list[str],
    description: str,
    commands: Mapping[str, str],
    known: Mapping[str, dict],
) -> None:
    """Answers what can be answered before JAX is imported; ends the process then.

    Args:
      given: the arguments of the command line.
      description: of the whole.
      commands: ``name -> what it does``.
      known: what is `remembered`; {} to ask the parser.

    Raises:
      SystemExit: 0 after help and a version, 2 for what there is not. Where nothing is
        raised the command has to be parsed.
    """
    if not given:
        sys.stderr.write(_help_of_all(description, commands))
        raise SystemExit(2)
    name, *rest = given
    if name in HELP:
        print(_help_of_all(description, commands), end="")
        raise SystemExit(0)
    if name == "--version":
        print(f"kljax {metadata.version('kljax')}")
        raise SystemExit(0)
    if name.startswith("--tyro-"):
        return
    if name not in commands:
        _refuse(
            f"unknown command {name!r}{nearest(name, commands)}; known: "
            f"{', '.join(commands)}"
        )
    if name not in known:
        return
    if any(word in HELP for word in rest):
        text = known[name]["help"].get(_look())
        if text is None:
            return
        print(text, end="")
        raise SystemExit(0)
    _refuse_unknown(name, rest, known[name])


@contextlib.contextmanager
def parsing(name: str, kind: type) -> Iterator[None]:
    """Remembers a command's help where its parser ends: it was asked for, or needed."""
    try:
        yield
    except SystemExit:
        with contextlib.suppress(OSError):  # made again the next time
            _remember(name, kind)
        raise


def _help_of_all(description: str, commands: Mapping[str, str]) -> str:
    width = max(map(len, commands))
    lines = [f"  {name:{width}}  {does}" for name, does in commands.items()]
    return "\n".join(
        (
            "usage: kljax COMMAND [OPTIONS]",
            "",
            description,
            "",
            "commands:",
            *lines,
            "",
            "kljax COMMAND --help lists the options of a command.",
            "kljax --version says which kljax this is.",
            "kljax --tyro-print-completion SHELL prints completions of all options for "
            "bash, zsh or tcsh.",
            "",
        )
    )


def _refuse(line: str) -> None:
    print(f"kljax: {line}", file=sys.stderr)
    raise SystemExit(2)


def _refuse_unknown(command: str, rest: list[str], known: dict) -> None:
    """Refuses options and names that there are not; stays silent where in doubt."""
    words = iter(rest)
    for word in words:
        option, equals, value = word.partition("=")
        if not option.startswith("--") or len(option) == 2:
            continue
        option = option.replace("_", "-")
        if option not in known["options"]:
            _refuse(
                f"{command} has no option {option}{nearest(option, known['options'])}; "
                f"kljax {command} --help lists them"
            )
        kind = NAMED.get(command, {}).get(option[2:])
        value = value if equals else next(words, "") if kind else ""
        names = known["names"].get(option[2:], ())
        if kind and value and ":" not in value and value not in names:
            if not value.startswith("-"):
                _refuse(unknown_name(kind, value, names))


def _look() -> str:
    """Says what the text of a help depends on: width, letters, colours."""
    coloured = sys.stdout.isatty() and os.environ.get("TERM") not in (None, "dumb")
    letters = getattr(sys.stdout, "encoding", None)
    return f"{shutil.get_terminal_size().columns} {letters} {'coloured' * coloured}"


def _place() -> Path:
    return cache_folder() / "help.json"


def _stamp() -> str:
    """Digests the files that help is made of: kljax's own, and which tyro it is."""
    digest = hashlib.sha256(f"{sys.version} {metadata.version('tyro')}".encode())
    for path in sorted(PACKAGE.rglob("*.py")):
        state = path.stat()
        digest.update(f"{path} {state.st_mtime_ns} {state.st_size}\n".encode())
    return digest.hexdigest()


def remembered() -> dict[str, dict]:
    """Reads ``command -> help, options and names``; {} where nothing is remembered."""
    try:
        kept = json.loads(_place().read_text(encoding="utf-8"))
        return kept["commands"] if kept["stamp"] == _stamp() else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _remember(name: str, kind: type) -> None:
    from kljax.core.files import write_json

    commands = remembered()
    helps = commands.get(name, {}).get("help", {})
    text = _make_help(name, kind)
    wide = text if shutil.get_terminal_size().columns >= WIDE else ""
    options = sorted(set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", wide)))
    if not options:
        return
    commands[name] = {
        "help": helps | {_look(): text},
        "options": options,
        "names": _names_of(name),
    }
    _place().parent.mkdir(parents=True, exist_ok=True)
    write_json(_place(), {"stamp": _stamp(), "commands": commands})


class _Copy(io.StringIO):
    """Text that is coloured, and has boxes, where the terminal's would."""

    def __init__(self, terminal):
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal.isatty()

    @property
    def encoding(self):  # type: ignore[override]
        return getattr(self._terminal, "encoding", None)


def _make_help(name: str, kind: type) -> str:
    import tyro

    text = _Copy(sys.stdout)
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        tyro.cli(kind, prog=f"kljax {name}", args=["--help"])
    return text.getvalue()


def _names_of(command: str) -> dict[str, list[str]]:
    if command not in NAMED:
        return {}
    from kljax.attacks.optimisers.catalogue import OPTIMISERS
    from kljax.attacks.presets.catalogue import PRESETS
    from kljax.models.catalogue import NETWORKS

    names: dict[str, Mapping] = {
        "model": NETWORKS,
        "attack": PRESETS,
        "optimiser": OPTIMISERS,
    }
    return {option: list(names[option]) for option in NAMED[command]}
