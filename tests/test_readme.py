"""Pages for users: every command and every example in them works."""

import dataclasses
import os
import re

import pages
import pytest
import tyro
from tiny_studies import made_up_device, quick_compilation

import kljax
from kljax import metrics
from kljax.cli.commands import COMMANDS, class_of, main
from kljax.parallel import Layout
from kljax.studies.config import LeakConfig
from kljax.studies.sweeps.legality import is_legal

README = pages.ROOT / "README.md"
# What stands for the reader's own files and machines: these commands are parsed.
READERS = ("mine:", "./pictures", " DIR", "runs/other", "--coordinator", "--ray")
EXAMPLES = [
    (page, number)
    for page in pages.FOR_USERS
    for number in range(len(pages.python_blocks(page)))
]
CALLS = [
    (page, tuple(words)) for page in pages.FOR_USERS for words in pages.commands(page)
]
SMALL = {
    "leak": {"victims": 1, "steps": 2, "private_key_size": 16},
    "train": {"rounds": 20, "examples": 64, "test_examples": 8, "public_examples": 8},
}


def of_page(value):
    if isinstance(value, tuple):
        return " ".join(value)[:60]
    return pages.named(value) if isinstance(value, pages.Path) else str(value)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Makes each study one of seconds; files are written aside."""
    real, real_leak = kljax.LeakConfig, kljax.leak

    def leak(config):
        changes = SMALL["leak"] | {"image_size": 8, "layout": Layout("chunked", 1)}
        changes |= {"model": "dense", "arms": config.arms[:2]}
        assert isinstance(config, real)
        result = real_leak(dataclasses.replace(config, **changes))
        return result._replace(config=result.config)

    monkeypatch.setattr(kljax, "leak", leak)
    # LPIPS is an extra, and its networks take long to compile.
    monkeypatch.setattr(metrics, "lpips_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    made_up_device(monkeypatch)
    with quick_compilation():
        yield


@pytest.mark.parametrize(("page", "number"), EXAMPLES, ids=of_page)
def test_an_example_runs(page, number, small):
    block = pages.python_blocks(page)[number]
    # In a namespace of its own, as in a script.
    exec(compile(block, pages.named(page), "exec"), {"__name__": "__main__"})


def test_the_first_example_is_short_and_draws_its_picture(small, tmp_path, capsys):
    block = pages.python_blocks(README)[0]
    lines = [line for line in block.splitlines() if line.strip()]
    assert 3 <= len(lines) <= 8
    exec(compile(block, README.name, "exec"), {"__name__": "__main__"})
    assert (tmp_path / "gallery.png").stat().st_size > 1000
    assert "none" in capsys.readouterr().out


@pytest.mark.parametrize(("page", "words"), CALLS, ids=of_page)
def test_a_command_is_understood(page, words):
    program, *arguments = words
    if program == "make":
        targets = re.findall(
            r"^(\w[\w-]*):", (pages.ROOT / "Makefile").read_text(), re.M
        )
        assert set(arguments) <= set(targets)
        return
    kinds = {name: class_of(name) for name in COMMANDS}
    job = tyro.extras.subcommand_cli_from_dict(kinds, prog="kljax", args=arguments)
    for file in re.findall(r"experiments/\S+\.toml", " ".join(words)):
        assert (pages.ROOT / file).is_file()
    assert type(job).__name__.lower() == arguments[0]
    if arguments[0] == "leak" and is_run(words) and job.from_run is None:
        names = [field.name for field in dataclasses.fields(LeakConfig)]
        given = {name: getattr(job, name) for name in names if name != "layout"}
        for arm in job.arms:  # every name exists, and every attacker can be
            assert is_legal(LeakConfig(**given | {"arms": (arm,)}))


def is_run(words):
    """Tells whether a command can be run here: with kljax, and nobody's own files."""
    text = " ".join(words)
    return words[0] == "kljax" and not any(
        mark in text
        for mark in (*READERS, " DIR", "runs/other", "--help", "./pictures")
    )


@pytest.mark.slow
@pytest.mark.parametrize("page", pages.FOR_USERS, ids=of_page)
def test_the_commands_of_a_page_run_in_order(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.symlink(pages.ROOT / "experiments", tmp_path / "experiments")
    monkeypatch.setattr(metrics, "lpips_available", lambda: False)
    with quick_compilation():
        for words in filter(is_run, pages.commands(page)):
            arguments = list(words[1:])
            if arguments[0] in SMALL:
                for name, value in SMALL[arguments[0]].items():
                    if "--from" in arguments and name == "private_key_size":
                        continue
                    arguments += [f"--{name.replace('_', '-')}", str(value)]
            assert main(arguments) == 0, (words, capsys.readouterr().err)


def test_the_readme_is_short():
    lines = README.read_text().splitlines()
    assert len(lines) <= 150
    text = "\n".join(line for line in lines if not line.startswith(("|", "!")))
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("page", pages.PAGES, ids=of_page)
def test_links_lead_somewhere(page):
    for link in pages.links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in pages.anchors(target), link


def test_the_index_of_experiments_names_each_page():
    folder = pages.ROOT / "experiments"
    linked = set(pages.links(folder / "README.md"))
    there = {path.name for path in folder.glob("*.md")} - {"README.md"}
    assert there - linked == set()
