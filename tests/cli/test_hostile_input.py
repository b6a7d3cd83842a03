"""Hostile input: every option gets values that it was not made for.

Each is accepted, or refused by one clear line that names it; nothing ends in an error
that nobody meant to raise. Nothing is computed.
"""

import pathlib
import sys

import hostile
import pytest
from tiny_studies import TINY

from kljax import cli
from kljax.core.checks import shown
from kljax.parallel import Layout, processes
from kljax.studies import leakage, training
from kljax.studies.config import LeakConfig, TrainConfig
from kljax.studies.sweeps import estimate, running

TRAINING = {
    "model": "dense",
    "image_size": 8,
    "arms": ("none",),
    "rounds": 2,
    "clients": 2,
    "batch": 4,
    "examples": 32,
    "test_examples": 16,
    "public_examples": 8,
    "private_key_size": 16,
    "layout": Layout("loop", 1),
}
# Texts that stand for a kind of their own, and cost a study that is prepared.
SEARCHED = {"model", "data", "attack", "optimiser", "partition", "augment", "normalise"}
SOUGHT = ("[/x]", "missing:thing", "json:loads", "sys:maxsize")


class Begun(Exception):
    """The work has begun: the input was accepted."""


@pytest.fixture(autouse=True)
def nothing_is_computed(monkeypatch, tmp_path):
    def begin(*_, **__):
        raise Begun

    monkeypatch.setattr(leakage, "compile_victims", begin)
    monkeypatch.setattr(training, "start", begin)
    monkeypatch.setattr(running, "sweep", begin)
    monkeypatch.setattr(estimate, "estimate_sweep", begin)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    pathlib.Path("file").write_text("a file")


def study(name, value):
    leakage.leak(LeakConfig(**TINY | {name: value}))


def train(name, value):
    training.train(TrainConfig(**TRAINING | {name: value}))


def check(run, name, value) -> None:
    """Checks that a value is accepted, or refused in words that name it."""
    try:
        run(name, value)
    except Begun:
        return
    except Exception as error:
        status, line = cli.commands._refusal(error)
        if line is None:
            # What a function that was named does is its own affair.
            assert value == "json:loads", f"{name}={value!r}: {error!r}"
            return
    assert status == 2 and len(line) < 1500
    inner = value[0] if isinstance(value, tuple) and value else value
    named = (name, name.replace("_", "-"), shown(inner), str(inner)[:50])
    assert any(words in line for words in named), f"{name}={value!r}: {line}"


RUNS = {LeakConfig: study, TrainConfig: train}


@pytest.mark.parametrize("config", RUNS)
def test_no_option_is_a_trap_when_it_is_written(config):
    """Of the configuration, and of what is looked up for the names in it."""

    def written(name, value):
        config(**{name: value})
        raise Begun

    for name, value in hostile.cases(config):
        sought = name in SEARCHED and value in SOUGHT
        check(RUNS[config] if sought else written, name, value)


@pytest.mark.slow
@pytest.mark.parametrize("config", RUNS)
def test_no_option_is_a_trap_when_all_is_prepared(config):
    for name, value in hostile.cases(config):
        check(RUNS[config], name, value)


NAMED = {
    "model": ("sys:maxsize", "model .sys:maxsize. is .*, expected a function or class"),
    "data": ("sys:maxsize", "dataset 'sys:maxsize' is no function, but int"),
    "attack": ("json:loads", "attack 'json:loads' cannot be called with Setting, Opt"),
    "loss": ("sys:maxsize", "loss 'sys:maxsize' is no function, but int"),
    "arms": (("json:loads",), "option s of json:loads has no default"),
    "optimiser": ("json:loads", "optimiser 'json:loads' cannot be made of"),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_name_that_stands_for_something_else_is_refused(name):
    value, message = NAMED[name]
    with pytest.raises(ValueError, match=message):
        study(name, value)


PATHS = ("[/x]", "file/below", "missing", "n" * 300, "/dev/null", "..", "", "\udcff")
NUMBERS = ("-1", "0", "2147483648", "9" * 30, "9" * 5000, "nan", "inf", "1e400", "x")
COMMANDS = [
    *(["sweep", "{path}", "--dry-run"], ["sweep", "few.toml", "--out", "{path}"]),
    *(["report", "{path}"], ["report", ".", "--out", "{path}", "--rows", "{path}"]),
    *(["merge", "{path}", "{path}", "--out", "o"], ["merge", "a", "b", "--out"]),
    ["data", "prepare", "fashion_mnist", "--from", "{path}", "--data-dir", "{path}"],
    ["data", "prepare", "{path}", "--from", "."],
    *(["demo", "--data", "{path}"], ["demo", "--data", "[/x]", "--out", "{path}"]),
    *(["leak", "--data", "[/x]", "--out", "{path}"], ["leak", "--from", "{path}"]),
    ["train", "--data", "[/x]", "--out", "{path}"],
    *(["sweep", "few.toml", f"--{o}={{number}}"] for o in ("part", "memory", "probe")),
    *(
        ["train", "--data", "[/x]", f"--{o}={{number}}"]
        for o in ("processes", "process")
    ),
    *(["sweep", "few.toml", "--ray", "local", f"--ray-cpus={n}"] for n in ("0", "-1")),
    ["sweep", "few.toml", "--layout.chunk={number}"],
    ["sweep", "few.toml", "--dry-run", "--part={number}"],
    ["leak", "--model", "[/x]", "--seed={number}"],
    ["leak", "--model", "[/x]", "--init={number}"],
    ["leak", "--model", "[/x]", "--layout.chunk={number}"],
    ["train", "--data", "[/x]", "--rounds={number}"],
]
CALL = ["train", "--data", "[/x]", "--coordinator", "{call}", "--processes", "2"]
CALLS = ("host", "host:", "host:x", ":1", "host:99999", "host:-1", " : ", "a:0")


def commands():
    for words in COMMANDS:
        values = NUMBERS if any("{number}" in word for word in words) else PATHS
        for value in values:
            yield [word.format(path=value, number=value) for word in words]
    for call in CALLS:
        yield [word.format(call=call) for word in (*CALL, "--process", "0")]
        if call != "a:0":  # which may be waited for
            yield ["sweep", "few.toml", "--ray", call]
    for place in (
        ("2", "2"),
        ("0", "0"),
        ("-1", "0"),
        ("9" * 30, "0"),
        ("2", "9" * 30),
    ):
        last = ["--processes", place[0], f"--process={place[1]}"]
        yield ["train", "--data", "[/x]", "--coordinator", "localhost:1", *last]


@pytest.mark.slow
def test_no_command_is_a_trap(capsys, monkeypatch):
    def begin(*_, **__):
        raise Begun

    monkeypatch.setattr(processes.jax.distributed, "initialize", begin)
    pathlib.Path("few.toml").write_text(
        "[fixed]\nmodel = 'dense'\nvictims = 2\n[axes]\narm = ['none']\n"
    )
    for words in commands():
        try:
            status = cli.main(words)
        except Begun:
            continue
        except SystemExit as end:  # by the parser, which explains itself
            assert end.code == 2, words
            capsys.readouterr()
            continue
        except Exception as error:
            raise AssertionError(f"{words}: {error!r}") from error
        errors = capsys.readouterr().err
        assert status == 2 and errors.startswith("kljax: "), words
        assert errors.count("\n") == 1 and len(errors) < 1500, words
        # It is asked for in vain, and never waited for.
        assert "did not meet" not in errors or words[4] not in CALLS, words


@pytest.mark.parametrize("place", ((0, 0), (2, 2), (2, -1), (10**30, 0)))
def test_a_place_out_of_range_is_refused_before_anybody_is_waited_for(place):
    count, process = place
    with pytest.raises(ValueError, match="process(es)? must be from .* to .*, got"):
        processes.stay_together("localhost:1", count, process)
    with pytest.raises(ValueError, match="coordinator must be HOST:PORT"):
        processes.stay_together("localhost", 2, 1)
