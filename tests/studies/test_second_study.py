"""The second study of a process is of what is there by then, whatever it is called."""

import importlib

import numpy as np
import outside_package
import pytest
from begun_runs import begin, study
from flax import nnx
from tiny_studies import quick_compilation

from kljax import data
from kljax.studies.builder import from_run, run_client, run_setup, task
from kljax.studies.config import LeakConfig, TrainConfig
from kljax.studies.leakage import leak

REVEAL = {"attack": "outside_package:reveal", "arms": ("keylock/known",)}
CHANGING = {"data": "outside_package:changing", "clients": 1}


@pytest.fixture(autouse=True)
def quickly():
    with quick_compilation():
        yield


def define(monkeypatch, seed):
    """Defines the user's function of data anew, as a cell of a notebook does."""
    images = np.random.default_rng(seed).random((12, 8, 8, 3), np.float32)

    def changing(shape):
        assert shape == images.shape[1:]
        labels = np.arange(12) % 2
        return data.Dataset("changing", images, labels, 2, groups=None, licence="-")

    monkeypatch.setattr(outside_package, "changing", changing, raising=False)
    return images


def assert_victims_are_of(result, images):
    for victim in result.victims.inputs[:, 0]:
        assert np.any(np.all(victim == images, axis=(1, 2, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("upload", ("gradient", "update"))
def test_redefined_data_are_those_of_the_second_run(tmp_path, monkeypatch, upload):
    options = {"upload": upload}
    if upload == "update":
        options |= {"local_steps": 1, "batch": 1, "labels": "given"}
    for name, seed in (("a", 1), ("b", 2)):
        images = define(monkeypatch, seed)
        begin(tmp_path / name, **CHANGING)
        result = leak(study(tmp_path / name, **REVEAL, **options, client=0))
        assert_victims_are_of(result, images)


def test_one_function_that_gives_other_data_is_asked_again(tmp_path, monkeypatch):
    images = define(monkeypatch, 1)
    begin(tmp_path / "a", **CHANGING)
    before = run_client.capture(settled(tmp_path / "a")).setup
    images[:] = define(monkeypatch, 2)  # the same array: the first run's data change
    begin(tmp_path / "b", **CHANGING)
    after = run_client.capture(settled(tmp_path / "b")).setup
    assert after is not before


def settled(folder):
    return from_run.settle(study(folder, client=0, arms=("keylock/known",)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", lambda num_classes, *, image_shape, rngs: _Wide(num_classes, rngs)),
        ("loss", lambda logits, targets: ((logits - targets) ** 2).sum()),
    ],
)
def test_redefined_parts_are_those_of_the_second_study(
    tmp_path, monkeypatch, field, value
):
    original = {"model": outside_package.Tiny, "loss": lambda a, b: (a - b).sum()}
    monkeypatch.setattr(outside_package, "redefined", original[field], raising=False)
    options = {field: "outside_package:redefined", "arms": ("none",)}
    begin(tmp_path / "a", **options)
    config = from_run.settle(study(tmp_path / "a", arms=("none",)))
    before = run_client.capture(config).setup
    assert run_client.capture(config).setup is before  # not twice for nothing
    monkeypatch.setattr(outside_package, "redefined", value)
    after = run_client.capture(config).setup
    assert after is not before
    if field == "loss":
        assert (before.task.loss, after.task.loss) == (original[field], value)


class _Wide(nnx.Module):
    def __init__(self, num_classes, rngs):
        self.fc = nnx.Linear(8 * 8 * 3, num_classes, rngs=rngs)

    def __call__(self, images):
        return self.fc(images.reshape(images.shape[0], -1))


def test_a_folder_written_anew_is_read_anew(tmp_path):
    config = study(tmp_path / "run", arms=("keylock/known",))
    begin(tmp_path / "run")
    before = run_client.capture(from_run.settle(config)).setup
    assert run_client.capture(from_run.settle(config)).setup is before
    (tmp_path / "run").rename(tmp_path / "old")
    begin(tmp_path / "run", seed=1)
    after = run_client.capture(from_run.settle(config)).setup
    assert after.config.seed == 1
    assert not np.array_equal(after.partition[1], before.partition[1])


def test_other_files_under_one_name_are_loaded(monkeypatch):
    files = [("a", 1, 2)]
    monkeypatch.setattr(data, "stamp", lambda name, data_dir: tuple(files))
    loaded = []
    monkeypatch.setattr(data, "load", lambda name, **_: loaded.append(name) or name)
    task._load.cache_clear()
    config = TrainConfig(data="mnist")
    for _ in range(2):
        task.load_dataset(config, "train")
    assert loaded == ["mnist"]
    files[0] = ("a", 3, 2)
    task.load_dataset(config, "train")
    assert loaded == ["mnist", "mnist"]
    task._load.cache_clear()


def test_a_module_that_was_reloaded_counts(tmp_path, monkeypatch):
    """Python imports a file once; what it holds after a reload is what a name means."""
    file = tmp_path / "edited.py"
    source = "import outside_package as o\n\nramps = lambda s: o.ramps(s, {})\n"
    monkeypatch.syspath_prepend(str(tmp_path))
    file.write_text(source.format(8))
    config = LeakConfig(data="edited:ramps", image_size=8)
    assert len(task.load_dataset(config, None)) == 8
    file.write_text(source.format(10))  # of another length: no stale bytecode
    importlib.reload(importlib.import_module("edited"))
    assert len(task.load_dataset(config, None)) == 10


def test_training_itself_prepares_anew(monkeypatch):
    config = TrainConfig(**CHANGING, image_size=8, public_examples=0, arms=("none",))
    for seed in (1, 2):
        images = define(monkeypatch, seed)
        train = run_setup.build_run_setup(config).task.dataset
        found, _ = train.fetch(np.arange(len(train)))
        assert all(np.any(np.all(one == images, axis=(1, 2, 3))) for one in found)
