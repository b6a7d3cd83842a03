"""The command line: what is typed, what is printed, and how it ends."""

import errno
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import types

import jax
import pytest
from tiny_studies import quick_compilation

from kljax import cli, data, metrics
from kljax.attacks import SECRETS
from kljax.cli import printing, progress
from kljax.core import folders
from kljax.metrics import COLUMNS, FLOORS
from kljax.studies import leak_report
from kljax.studies.config import LeakConfig

FILES = {"config.json", "rows.csv", "summary.json", "summary.md", "gallery.png"}
FILES |= {"manifest.json", "parts", "reconstructions"}  # see kljax.studies.leak_study
TINY = (
    "leak --model dense --image-size 8 --victims 3 --steps 4 --optimiser adam "
    "--private-key-size 16 --layout.kind chunked --layout.chunk 2"
).split()


@pytest.fixture(autouse=True)
def quickly(monkeypatch, tmp_path):
    """Compiles quickly, without LPIPS, in a directory of its own, at 80 columns."""
    monkeypatch.setattr(metrics, "lpips_available", lambda: False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    with quick_compilation():
        yield


@pytest.mark.slow
def test_a_study_prints_its_tables_and_writes_its_folder(tmp_path, capsys):
    arms = ["none", "keylock/known"]
    quick = ["--attack", "outside_package:measured_reveal"]
    status = cli.main([*TINY, *quick, "--arms", *arms, "--out", "here/study"])
    assert status == 0
    folder = tmp_path / "here" / "study"
    assert {path.name for path in folder.iterdir()} == FILES
    config = json.loads((folder / "config.json").read_text())
    assert config["arms"] == arms and config["layout"]["chunk"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["here"]  # and no runs/

    printed, errors = capsys.readouterr()
    assert errors == ""
    lines = printed.splitlines()
    assert max(map(len, lines)) <= 80
    for name in (*arms, *FLOORS):  # whole names, not cut off
        row = re.compile(rf"{re.escape(name)} +[-\d]")
        assert sum(bool(row.match(line)) for line in lines) == 1, name
    summary = json.loads((folder / "summary.json").read_text())
    row = next(line for line in lines if line.startswith("none "))
    assert f"{summary['arms']['none']['ssim']:.3f}" in row.split()
    words = " ".join(printed.split())
    assert "dense on digits: 3 victims, attack outside_package:measured" in words
    assert "attacker knows, in every arm: " in words
    assert "known arm is not the undefended arm" in words
    assert "evaluations/s" in words and "attacks/h on cpu" in words
    assert "written: here/study/" in words
    assert "6/6" in words and "attacks/s" in words


def test_a_study_without_a_folder_is_written_to_one_of_its_own(tmp_path):
    arms = ["--attack", "outside_package:reveal", "--arms", "none"]
    assert cli.main([*TINY, *arms]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert {path.name for path in folder.iterdir()} == FILES


USERS = '''
import jax.numpy as jnp
import numpy as np
from flax import nnx
from kljax import data, defences
from kljax.attacks import Reconstruction

class Net(nnx.Module):
    def __init__(self, num_classes, *, image_shape, rngs):
        self.first = nnx.Linear(7 * 7 * 3, 4, rngs=rngs)
        self.last = nnx.Linear(4, num_classes, rngs=rngs)

    def __call__(self, images):
        return self.last(nnx.tanh(self.first(images.reshape(len(images), -1))))

def images(shape):
    values = np.random.default_rng(1).random((5, *shape), np.float32)
    labels = [0, 1, 0, 1, 2]
    return data.Dataset("mine", values, labels, 3, groups=None, licence="my own")

def attack(setting, optimiser=None, *, steps, restarts):
    """Knows how the first layer's gradient gives its input away."""
    def run(rng, view):
        kernel, bias = (view.grads.model[f"first/{n}"] for n in ("kernel", "bias"))
        channel = jnp.argmax(jnp.abs(bias))
        image = kernel[:, channel] / bias[channel]
        image = image.reshape(1, *setting.task.image_shape)
        return Reconstruction(
            image, jnp.zeros(1, int), jnp.zeros(()), jnp.array(True), {}
        )
    return run

def defence():
    return defences.gaussian_noise(1.0)
'''


NAMED = (
    "leak --model mine:Net --data mine:images --attack mine:attack --victims 5 "
    "--arms none mine:defence --classifier last --image-size 7 --out run"
).split()


def check_mine(folder):
    summary = json.loads((folder / "summary.json").read_text())
    arms = summary["arms"]
    assert list(arms) == ["none", "mine:defence"]
    # The closed form is exact, and worthless under noise.
    assert arms["none"]["outcomes"]["recovered"] == 5
    assert arms["mine:defence"]["outcomes"]["recovered"] == 0
    assert "my own" in (folder / "summary.md").read_text()
    return summary


def test_a_file_beside_the_user_brings_model_data_attack_and_defence(tmp_path):
    (tmp_path / "mine.py").write_text(USERS)
    assert cli.main(NAMED) == 0
    check_mine(tmp_path / "run")


def run(program, *arguments, cwd):
    """Runs a command as a user does: no settings of the tests'."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [*program, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


PROGRAMS = {
    "script": [str(pathlib.Path(sys.executable).parent / "kljax")],
    "module": [sys.executable, "-m", "kljax"],
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_programs_refuse_in_one_line(program, tmp_path):
    done = run(PROGRAMS[program], "leak", "--model", "lennet", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("kljax: unknown model 'lennet' (did you mean 'lenet'?)")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_program_runs_a_study_as_a_user_does(tmp_path):
    (tmp_path / "mine.py").write_text(USERS)
    done = run(PROGRAMS["module"], *NAMED, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    summary = check_mine(tmp_path / "run")
    # With all that is installed, and one host device per core.
    assert summary["arms"]["none"]["lpips_alex"] < 0.01
    assert summary["config"]["local_devices"] == os.cpu_count()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model lennet", "unknown model 'lennet' (did you mean 'lenet'?)"),
        ("--data outside_package:nan_image", "image 4 of dataset 'broken' holds NaN"),
        ("--data outside_package:constant_image", "is constant"),
        ("--data outside_package:label_out_of_range", "labels must lie in [0, 2)"),
        ("--arms none bn-control", "'bn-control' needs a network with"),
        ("--arms none none", "arms ['none'] are named more than once"),
        ("--arms keylock/guess", f"write keylock/STRATEGY with one of {[*SECRETS][0]}"),
        ("--arms keylock/known --sites layers", "no module at 'layers'"),
        ("--arms keylock/known --threat lock_weights=hidden", "needs lock_weights="),
        ("--arms", "arms is empty"),
        ("--victims 0", "victims must be an integer >= 1, got 0"),
        ("--victims 1798", "dataset 'digits' has 1797"),
        ("--image-size 6", "image_size must be an integer >= 7, got 6"),
        ("--steps -3", "steps must be an integer >= 1, got -3"),
        ("--layout.chunk 0", "chunk must be an integer >= 1, got 0"),
        ("--data \udcff", "='\\udcff' is no text in UTF-8"),
        ("--precision exact", "precision='exact'"),
        ("--threat upload=update", "upload=gradient"),
        ("--labels given --label-rule ggl", "needs labels='recovered'"),
        ("--attack outside_package:missing", "has no attribute 'missing'"),
        ("--data-dir nowhere --data mnist", "tfds build mnist"),
    ],
)
def test_bad_input_ends_in_one_line_and_nothing_written(
    arguments, message, tmp_path, capsys, nothing_runs
):
    arms = [] if "--arms" in arguments else ["--arms", "none"]
    status = cli.main([*TINY, *arms, *arguments.split(), "--out", "deep/run"])
    assert status == 2
    printed, errors = capsys.readouterr()
    assert printed == ""
    (line,) = errors.splitlines()
    assert line.startswith("kljax: ") and message in line
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize(
    ("out", "why"),
    [
        ("file/run", "'file' is no folder"),
        ("n" * 300, "File name too long"),
        ("/proc/run", "cannot be written"),
    ],
    ids=("below a file", "too long", "nothing can be made there"),
)
def test_a_folder_that_cannot_be_is_refused_before_anything_is_computed(
    out, why, tmp_path, capsys, nothing_runs
):
    (tmp_path / "file").write_text("precious")
    assert cli.main([*TINY, "--arms", "none", "--out", out]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line.startswith(f"kljax: run folder {out!r} cannot be written") and why in line
    )
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


REVEAL = ["--attack", "outside_package:reveal", "--arms", "none"]


def test_optional_parts_that_fail_are_named_and_cost_no_row(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(metrics, "lpips_available", lambda: True)

    def fail(*_):
        raise RuntimeError("out of paint")

    monkeypatch.setattr(leak_report, "draw_gallery", fail)
    data = ["--data", "outside_package:ramps_of_2_channels"]
    assert cli.main([*TINY, *REVEAL, *data, "--out", "[/x]"]) == 0
    printed, errors = capsys.readouterr()
    assert errors == "" and "written: [/x]/" in printed
    folder = tmp_path / "[" / "x]"
    assert {path.name for path in folder.iterdir()} == FILES - {"gallery.png"}
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    for words in summary["warnings"]:
        assert f"warning: {words}" in printed
    parts = [words.partition(" ")[0] for words in summary["warnings"]]
    assert parts == ["LPIPS", "gallery.png"]


def test_a_disk_that_fills_up_meanwhile_ends_in_one_line_and_a_rescue(
    tmp_path, capsys, monkeypatch
):
    def full(path, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folders, "write_text", full)
    assert cli.main([*TINY, *REVEAL, "--out", "deep/run"]) == 2
    printed, errors = capsys.readouterr()
    (line,) = errors.splitlines()
    assert "'deep/run' could not be written" in line and "No space left" in line
    # Nowhere is room: what was computed is printed.
    assert "rows.csv:" in printed and ",".join(COLUMNS) in printed
    assert list(tmp_path.iterdir()) == []


def test_names_are_printed_as_they_are_in_any_locale(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    console = printing.open_console()
    printing.say(console, "arm [/x] of :heart: ±")
    console.print("one [bold]more[/x]")
    console.print(printing.printed_table(["[/x]", "n"], [["a[/b]", ":heart:"]]))
    with progress.SweepProgress(console) as shown:
        for text in (shown._bar.columns[0], shown._bar.columns[-1]):
            task = types.SimpleNamespace(
                description="[/x]", fields={"state": "[/x]"}, finished=False
            )
            assert text.render(types.SimpleNamespace(**vars(task))).plain == "[/x]"
    sys.stdout.flush()
    text = written.getvalue().decode("ascii")
    assert "arm [/x] of :heart: \\xb1" in text and "one [bold]more[/x]" in text
    assert "a[/b]|:heart:" in text


def test_help_asks_for_no_device_and_work_without_one_ends_in_one_line(
    capsys, monkeypatch
):
    before = os.environ | {"JAX_PLATFORMS": "cuda"}
    done = subprocess.run(
        [*PROGRAMS["module"], "leak"], env=before, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "JAX finds no device (JAX_PLATFORMS=cuda" in line and "unset it" in line

    def none(*_):
        raise AssertionError("a device is asked for")

    monkeypatch.setattr(jax._src.xla_bridge, "get_backend", none)
    for command in cli.commands.COMMANDS:
        with pytest.raises(SystemExit) as end:
            cli.main([command, "--help"])
        assert end.value.code == 0
    capsys.readouterr()


def test_what_nobody_expected_keeps_its_traceback_and_says_so(monkeypatch):
    def broken(job, console):
        return {}["missing"]

    for wrong in (broken, lambda job, console: int("x"), lambda job, console: 1 + "x"):
        monkeypatch.setattr("kljax.cli.sweep.run_merge", wrong)
        with pytest.raises((KeyError, ValueError, TypeError)) as failure:
            cli.main(["merge", "a", "b", "--out", "c"])
        assert any("a bug" in note for note in failure.value.__notes__)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 7.45 GiB"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory: 7.45 GiB"),
    ],
)
def test_memory_that_runs_out_is_one_line_with_what_to_lower(
    error, capsys, monkeypatch
):
    def run(job, console):
        raise error

    monkeypatch.setattr("kljax.cli.sweep.run_merge", run)
    assert cli.main(["merge", "a", "b", "--out", "c"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "out of memory" in line and "7.45 GiB" in line and "lower" in line


def test_an_existing_folder_is_refused_before_anything_is_computed(
    tmp_path, capsys, nothing_runs
):
    (tmp_path / "run").mkdir()
    assert cli.main([*TINY, "--arms", "none", "--out", "run"]) == 2
    assert "'run' exists: name another with --out" in capsys.readouterr().err
    assert list((tmp_path / "run").iterdir()) == []


def test_a_mistake_in_a_users_code_keeps_its_traceback(tmp_path, nothing_runs):
    (tmp_path / "mistaken.py").write_text(
        "def images(shape):\n    return int('not a number')\n"
    )
    # The very type that a refusal has.
    with pytest.raises(ValueError, match="invalid literal") as error:
        cli.main([*TINY, "--arms", "none", "--data", "mistaken:images"])
    assert error.traceback[-1].path.name == "mistaken.py"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["leek"],
        ["leak", "--stepz", "3"],
        ["leak", "--victims", "many"],
        ["leak", "--weights", "frozen"],
        ["leak", "--layout.kind", "pmap"],
        ["data", "destroy", "fashion_mnist", "--from", "."],
    ],
    ids=" ".join,
)
def test_what_cannot_be_parsed_is_explained(arguments, capsys, nothing_runs):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    errors = capsys.readouterr().err
    assert not arguments or arguments[-1].lstrip("-") in errors or "from" in errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ("leak", "demo", "data")),
        (
            ["leak"],
            [
                # from_run is typed --from
                {"from_run": "--from"}.get(name, name.replace("_", "-"))
                for name in LeakConfig.__dataclass_fields__
            ],
        ),
        (["leak"], ("--out", "digits, photos", "causal-transformer", "sharded")),
        (["demo"], ("--out", "--data")),
        (["data"], ("prepare", "--from", "--data-dir", "fashion_mnist")),
    ],
)
def test_help_is_there(arguments, words, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([*arguments, "--help"])
    assert end.value.code == 0
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for word in words:
        assert word in printed


def test_the_demo_is_a_preset_of_a_study(monkeypatch, tmp_path):
    jobs = []
    monkeypatch.setattr(cli.leak, "run_leak", lambda job, console: jobs.append(job))
    assert cli.main(["demo"]) == 0
    assert cli.main(["demo", "--data", "photos", "--out", "there"]) == 0
    for job in jobs:
        assert isinstance(job, LeakConfig)
        assert (job.model, job.victims, len(job.arms)) == ("lenet", 16, 6)
        assert 1000 <= job.steps <= 2000
    assert jobs[0].data == "digits" and jobs[0].out.parts[0] == "runs"
    assert jobs[1].data == "photos" and jobs[1].out == pathlib.Path("there")


def test_a_dataset_is_prepared_where_it_is_wanted(monkeypatch, capsys):
    calls = []

    def prepare(source, data_dir):
        calls.append((source, data_dir))
        return "somewhere"

    monkeypatch.setitem(data.PREPARERS, "fashion_mnist", prepare)
    named = ["data", "prepare", "fashion_mnist", "--from", "idx"]
    assert cli.main(named) == 0
    assert cli.main([*named, "--data-dir", "tfds"]) == 0
    path = pathlib.Path
    assert calls == [(path("idx"), None), (path("idx"), path("tfds"))]
    assert "written: somewhere" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fashion_mnist", "no IDX file nowhere/train-images-idx3-ubyte.gz"),
        ("fashion-mnist", "unknown dataset to prepare 'fashion-mnist' (did you mean"),
    ],
)
def test_a_dataset_without_its_files_is_refused(name, message, capsys, tmp_path):
    where = ["--from", "nowhere", "--data-dir", "tfds"]
    assert cli.main(["data", "prepare", name, *where]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"kljax: {message}")
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_attacks_and_what_is_left():
    def shown(completed, total, elapsed):
        task = types.SimpleNamespace(
            completed=completed, elapsed=elapsed, remaining=total - completed
        )
        return progress.AttacksPace().render(task).plain

    assert shown(0, 96, 3.0) == "-- attacks/s, ETA -:--:--"
    assert shown(16, 96, 32.0) == "0.50 attacks/s, ETA 0:02:40"
    assert shown(96, 96, 48.0) == "2.00 attacks/s, ETA 0:00:00"


def test_what_is_compiling_is_shown_with_what_it_took():
    console = printing.open_console()
    config = LeakConfig(arms=("none", "bn-control"))
    for last, words in ((None, ""), (9.4, " (all took 9 s last time)")):
        with progress.LeakProgress(config, console, last) as shown:
            (task,) = shown._bar.tasks
            shown.on_compile(["none", "bn-control"])
            assert task.description == f"compiling none, bn-control{words}"
            shown.on_compile(["bn-control"])
            assert task.description == f"compiling bn-control{words}"
            shown.on_arm("none")
            assert task.description == "none"


def test_what_goes_on_is_written_line_by_line_into_a_pipe(capsys, monkeypatch):
    config = LeakConfig(arms=("none", "bn-control"), victims=4)
    monkeypatch.setattr(progress, "SECONDS", 0)
    with progress.LeakProgress(config, printing.open_console()) as shown:
        shown.on_compile(["none", "bn-control"])
        shown.on_arm("none")
        shown.on_block(3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["compiling none, bn-control", "none"]
    assert lines[2].startswith("none: 3/8 victims, ") and len(lines) == 3
