"""The training job in trouble, on the command line, and what it draws."""

import contextlib
import os
import resource
import sys

import numpy as np
import pytest
from test_training import TINY, tiny
from tiny_studies import compiled_once

from kljax import cli
from kljax.core import claims
from kljax.core.trees import named
from kljax.defences.arms import parse_training_arm
from kljax.federated import checkpoints
from kljax.federated.rounds import NonFiniteClient
from kljax.studies import figures, run_folder, training
from kljax.studies.builder import run_setup
from kljax.studies.config import TrainConfig
from kljax.studies.figures import draw_curves
from kljax.studies.training import train

OPTIONS = (
    "train --model dense --image-size 8 --examples 200 --test-examples 50 "
    "--public-examples 0 --batch 8 --rounds 2 --private-key-size 16 --arms none "
    "--learning-rate 0.3 --layout.kind loop"
).split()


@pytest.fixture(autouse=True, scope="module")
def quickly(tmp_path_factory):
    with compiled_once(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """Works in a directory of its own."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)


# --- trouble ----------------------------------------------------------------------


def poison(monkeypatch, client, number):
    """Gives a client an image of NaN in one round."""
    batches_of = run_setup.batches_of

    def poisoned(setup, now):
        fetch = batches_of(setup, now)

        def fetched(ids):
            batches, examples = fetch(ids)
            if now == number:
                batches.inputs[ids == client, 0, 0] = np.nan
            return batches, examples

        return fetched

    monkeypatch.setattr(training, "batches_of", poisoned)


def test_a_second_training_in_the_folder_is_refused_before_any_work(
    tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "build_run_setup", pytest.fail)
        folder.mkdir()
        with claims.claim_folder(folder):
            assert cli.main([*OPTIONS, "--out", str(folder)]) == 2
            said = capsys.readouterr().err
            assert "another job is at work in" in said and f"{os.getpid()} on" in said
    assert cli.main([*OPTIONS, "--out", str(folder)]) == 0
    # One that began while this one was still preparing.
    late, build = tmp_path / "late", training.build_run_setup
    with contextlib.ExitStack() as held:

        def faster(config):
            late.mkdir()
            held.enter_context(claims.claim_folder(late))
            return build(config)

        monkeypatch.setattr(training, "build_run_setup", faster)
        with pytest.raises(FileExistsError, match="another job is at work"):
            train(TrainConfig(**TINY), late)
    assert all(path.name[0] == "." for path in late.iterdir())


def test_a_client_that_turns_nan_is_left_out_and_named(monkeypatch, tmp_path, capsys):
    poison(monkeypatch, client=1, number=1)
    assert cli.main([*OPTIONS, "--out", "run"]) == 0
    rows = run_folder.read_rows(tmp_path / "run")
    assert [row["excluded"] for row in rows] == [(), (1,)]
    assert all(np.isfinite(row["loss"]) for row in rows)
    printed = capsys.readouterr().out
    assert "none: clients 1 turned non-finite in round 1 and were left out" in printed


def test_a_client_that_turns_nan_can_stop_the_run(monkeypatch, tmp_path, capsys):
    poison(monkeypatch, client=1, number=1)
    config = tiny(on_nonfinite="stop", save_every=1)
    with pytest.raises(NonFiniteClient, match="round 1: .*1"):
        train(config, tmp_path / "run")
    assert checkpoints.saved(tmp_path / "run" / "keylock") == [1]
    stopped = cli.main([*OPTIONS, "--on-nonfinite", "stop", "--out", "other"])
    assert stopped == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kljax: round 1: 1 clients")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "rounds must be an integer >= 1, got 0"),
        ({"clients": True}, "clients must be an integer >= 1, got True"),
        ({"cohort": 4}, "cohort is 4, and there are 3 clients"),
        ({"local_steps": 0}, "local_steps must be an integer >= 1"),
        ({"examples": 1.5}, "examples must be an integer >= 1, got 1.5"),
        ({"learning_rate": 0}, "learning_rate must be a number > 0, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number > 0"),
        ({"momentum": 1}, "momentum must be a number >= 0 and < 1, got 1"),
        ({"weight_decay": -1}, "weight_decay must be a number >= 0"),
        ({"weighting": "sizes"}, "weighting must be 'examples' or 'uniform'"),
        ({"on_nonfinite": "hope"}, "on_nonfinite must be 'exclude' or 'stop'"),
        ({"precision": "exact"}, "precision='exact'"),
        ({"arms": ()}, "arms is empty"),
        ({"arms": "none"}, "arms must be a tuple"),
        ({"arms": ("none", "none")}, "named more than once"),
        ({"keep_rounds": (5,)}, "keep_rounds holds 5: give rounds from 0 to 4"),
        ({"drops": (3, 3)}, "drops must ascend without repetition"),
        ({"image_size": 6}, "image_size must be an integer >= 7"),
    ],
)
def test_a_configuration_is_checked_when_it_is_made(changes, message):
    with pytest.raises(ValueError) as error:
        tiny(**changes)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--model lennet", "unknown model 'lennet' (did you mean 'lenet'?)"),
        ("--data digit", "unknown dataset 'digit' (did you mean 'digits'?)"),
        ("--data photos --examples 9", "mean too little to train on"),
        ("--arms keylock/known", "nobody attacks while training, drop '/known'"),
        ("--arms keylok", "unknown defence 'keylok' (did you mean 'keylock'?)"),
        ("--arms bn-control", "'bn-control' needs a network with"),
        ("--arms keylock --sites layers", "no module at 'layers'"),
        ("--partition iit", "unknown partition 'iit' (did you mean 'iid'?)"),
        ("--partition shards=200", "need 600 examples"),
        ("--optimiser adamm", "unknown optimiser 'adamm' (did you mean 'adam'?)"),
        ("--optimiser builtins:abs", "gave no optax.GradientTransformation"),
        ("--augment flip", "unknown augmentation 'flip'"),
        ("--normalise cifar", "unknown normalisation 'cifar'"),
        ("--loss entropy", "unknown loss 'entropy'"),
        ("--clients 1439 --public-examples 0", "leave 1438 for 1439 clients"),
        ("--clients 201", "iid leaves client 200 of 201"),
        ("--public-examples 1500", "1500 public ones leave 0"),
        ("--test-split validation", "dataset 'digits' has no splits"),
        ("--data mnist --data-dir nowhere", "tfds build mnist"),
        ("--rounds 0", "rounds must be an integer >= 1, got 0"),
        ("--keep-rounds 3", "keep_rounds holds 3"),
        ("--out existing", "'existing' exists and is no run of kljax train"),
    ],
)
def test_bad_input_ends_in_one_line_and_nothing_written(
    options, message, tmp_path, capsys
):
    (tmp_path / "existing").mkdir()
    (tmp_path / "existing" / "notes.txt").write_text("mine")
    assert cli.main([*OPTIONS, "--out", "deep/run", *options.split()]) == 2
    printed, errors = capsys.readouterr()
    assert printed == ""
    (line,) = errors.splitlines()
    assert line.startswith("kljax: ") and message in line
    assert [path.name for path in tmp_path.iterdir()] == ["existing"]
    assert [p.name for p in (tmp_path / "existing").iterdir()] == ["notes.txt"]


def test_a_training_arm_is_a_defence_and_no_strategy():
    setup = run_setup.build_run_setup(tiny())
    arm = parse_training_arm("keylock+norm-clipping=4", setup.task.sites, {})
    assert arm.secret_strategy is None and arm.gated and arm.norm
    with pytest.raises(ValueError, match="drop '/'"):
        parse_training_arm("none/", setup.task.sites, {})


# --- the command line, and TensorBoard --------------------------------------------


@pytest.mark.slow
def test_the_command_prints_rounds_and_its_table_and_goes_on(tmp_path, capsys):
    arms = ["--arms", "none", "keylock", "--keep-rounds", "1"]
    command = [*OPTIONS, *arms, "--out", "here/run"]
    assert cli.main(command) == 0
    printed, errors = capsys.readouterr()
    assert errors == ""
    folder = tmp_path / "here" / "run"
    summary = run_folder.read_summary(folder)
    lines = printed.splitlines()
    states = named(run_setup.start(*_arm("keylock"))[1])
    size = sum(array.nbytes for array in states.values()) / 1e6
    assert f"keylock: what stays with the 3 clients takes {size:.1f} MB" in lines
    (line,) = [line for line in lines if line.startswith("keylock: round 2/2: loss ")]
    accuracy = run_folder.read_rows(folder)[-1]["test_accuracy"]
    assert f"accuracy {accuracy:.1%}" in line
    assert "clients/s, ETA 0:00:00" in line
    (own,) = [line for line in lines if line.startswith("own ")]
    found = summary["accuracy"]["none"]["own"]["mean"]
    assert own.split()[1] == f"{100 * found:.1f}"
    assert "examples/s on cpu" in printed and "written: here/run/" in printed

    before = (folder / "summary.json").read_bytes()
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("this run is finished: here/run/")
    assert own in printed.splitlines()
    assert cli.main([*command, "--seed", "3"]) == 2
    assert "seed: 0 there, 3 here" in capsys.readouterr().err
    assert (folder / "summary.json").read_bytes() == before


def _arm(name):
    setup = run_setup.build_run_setup(tiny(arms=(name,)))
    return setup, run_setup.arm_rounds(setup, name).rounds


# Orbax's threads talk to an event loop that its own error has closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_fills_up_is_one_line_and_costs_no_round(
    tmp_path, capsys, monkeypatch
):
    """Orbax writes by itself, and raises a ValueError of its own."""
    command = [*OPTIONS, "--save-every", "1", "--out", "run"]
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    save, finished = checkpoints.save, []

    def fill_up(*arguments):
        if finished:
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limit[1]))
        save(*arguments)
        finished.append(arguments)

    monkeypatch.setattr(checkpoints, "save", fill_up)
    try:
        assert cli.main(command) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot write to 'run' ([Errno 27] File too large: 'run/none/" in line
    assert "make room there" in line and "go on from the last checkpoint" in line
    folder = tmp_path / "run" / "none"
    assert checkpoints.saved(folder) == [1]
    for part in checkpoints.PARTS:  # nothing half written takes room
        assert {path.name for path in (folder / part).iterdir()} <= {"1", "2"}

    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert cli.main(command) == 0
    assert "resumed at round 1" in capsys.readouterr().out
    assert len(run_folder.read_rows(tmp_path / "run")) == 2


def test_a_picture_that_cannot_be_drawn_does_not_stop_a_training(
    tmp_path, capsys, monkeypatch
):
    def fail(*_):
        raise RuntimeError("out of paint")

    monkeypatch.setattr(figures, "draw_partition", fail)
    monkeypatch.setattr(figures, "draw_curves", fail)
    assert cli.main([*OPTIONS, "--rounds", "1", "--out", "run"]) == 0
    printed = capsys.readouterr().out
    for name in ("partition.png", "curves.png"):
        assert f"warning: {name} is left out: out of paint" in printed
    assert run_folder.read_summary(tmp_path / "run") is not None


def test_tensorboard_is_written_or_explained(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    with pytest.raises(ValueError, match="needs a run folder"):
        train(tiny(), tensorboard=True)
    folder = tmp_path / "run"
    config = tiny(rounds=1, arms=("none",))
    train(config, folder, tensorboard=True)
    (events,) = (folder / "tensorboard" / "none").iterdir()
    content = events.read_bytes()
    for name in (b"loss", b"train_accuracy", b"test_accuracy"):
        assert name in content
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"pip install 'kljax\[tensorboard\]'"):
        train(config, tmp_path / "other", tensorboard=True)
    assert not (tmp_path / "other").exists()


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "--help"])
    assert end.value.code == 0
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name in TrainConfig.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in printed or name == "layout"
    assert "--tensorboard" in printed and "FedProx's mu" in printed


def test_curves_show_gaps_and_excluded_clients(tmp_path):
    rows = [
        {
            "arm": arm,
            "round": number,
            "loss": 2.0 * 0.5**number,
            "train_accuracy": 0.2 * number,
            "test_accuracy": 0.2 * number if number % 2 else None,
            "excluded": (),
        }
        for arm in ("none", "keylock")
        for number in range(5)
    ]
    draw_curves(rows, tmp_path / "plain.png")
    rows[2]["excluded"] = (1,)
    draw_curves(rows, tmp_path / "marked.png")
    plain, marked = ((tmp_path / f"{n}.png").read_bytes() for n in ("plain", "marked"))
    assert plain.startswith(b"\x89PNG") and plain != marked
