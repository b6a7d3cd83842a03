"""Generators of studies: found by name, told from their victims, and data."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kljax import LeakConfig, data
from kljax.core.files import DamagedFile
from kljax.core.generator import Generator
from kljax.models import decoders
from kljax.models.decoders import Account, read_decoder
from kljax.models.trained_files import write_trained
from kljax.parallel import Layout
from kljax.studies import leakage
from kljax.studies.builder.generator import find_generator, private_rows
from kljax.studies.builder.study import build_study
from kljax.studies.builder.victims import choose_victims
from kljax.studies.sweeps.cell import make_cell, signature

ACCOUNT = Account(
    dataset="digits",
    split=None,
    examples=1797,
    shape=(8, 8, 1),
    num_classes=10,
    latents=4,
    widths=(5,),
    seed=0,
    steps=500,
)


def config(**options):
    options = {"generator": "digits", "arms": ("none",), "image_size": 8} | options
    return LeakConfig(**options, layout=Layout("loop"))


def weights(account=ACCOUNT):
    generator = np.random.default_rng(2)
    shapes = {
        "layers/0/kernel": (account.latents + 10, 5),
        "layers/0/bias": (5,),
        "fc/kernel": (5, 64),
        "fc/bias": (64,),
    }
    return {k: generator.standard_normal(v, np.float32) for k, v in shapes.items()}


def public(count=ACCOUNT.examples):
    return np.arange(count) % 3 == 0


@pytest.mark.parametrize("name", decoders.list_decoders())
def test_those_of_the_package_are_small_and_say_what_they_saw(name):
    path = decoders.FOLDER / f"{name}.npz"
    assert path.stat().st_size < 6e5
    origin = read_decoder(path).origin
    assert origin.dataset == name.removesuffix("-conv")
    assert 0.49 < origin.public.mean() <= 0.5


@pytest.mark.parametrize("seed", (0, 7))
def test_no_victim_is_one_of_the_images_it_was_trained_on(seed):
    whole = data.load("digits", shape=(8, 8, 3))
    seen = read_decoder(decoders.FOLDER / "digits.npz").origin.public
    most = int((~seen).sum())
    generator = find_generator(config())
    victims, others = choose_victims(config(seed=seed, victims=most), whole, generator)
    assert len(others) == 0
    assert not seen[victims.indices].any()
    assert len(np.unique(victims.indices)) == most == 899
    with pytest.raises(ValueError, match="has 899 that its generator has not seen"):
        choose_victims(config(seed=seed, victims=most + 1), whole, generator)
    # Without a generator they would be: the test can fail.
    all_of_them, _ = choose_victims(config(seed=seed, victims=most), whole)
    assert seen[all_of_them.indices].any()


def test_a_part_of_a_dataset_remembers_who_is_public():
    part = data.subset(data.load("digits", shape=(8, 8, 3)), [5, 3, 900, 1796])
    seen = read_decoder(decoders.FOLDER / "digits.npz").origin.public
    np.testing.assert_array_equal(
        private_rows(config(), part, find_generator(config())), ~seen[[5, 3, 900, 1796]]
    )


class Split:
    """As much of a prepared dataset as is looked at."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def positions_of(self, rows):
        return rows


def test_splits_are_told_apart(tmp_path):
    path = tmp_path / "g.npz"
    account = dataclasses.replace(
        ACCOUNT, dataset="fashion_mnist", split="train", examples=60
    )
    write_trained(path, account, weights(), public(60))

    def private(dataset, split, count=60):
        named = config(generator=str(path), data=dataset, split=split)
        return private_rows(named, Split(count), find_generator(named))

    for name in ("fashion_mnist", "fashion_mnist:3.0.1"):
        for split in (None, "train"):
            np.testing.assert_array_equal(private(name, split), ~public(60))
    assert private("fashion_mnist", "test") is private("mnist", "train") is None
    for split, count in (
        ("train[:30]", 30),
        ("train+test", 70),
        ("train", 61),
        ("all", 70),
        ("all[:50]", 50),
    ):
        with pytest.raises(ValueError, match="which of split=.* cannot be told"):
            private("fashion_mnist", split, count)


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "mine.npz"
    write_trained(path, ACCOUNT, weights(), public())
    found = find_generator(config(generator=str(path)))
    np.testing.assert_array_equal(found.origin.public, public())
    for name, leaf in weights().items():
        np.testing.assert_allclose(found.weights[name], leaf, rtol=1e-3)
    z, y = np.ones((2, 4), np.float32), np.eye(10, dtype=np.float32)[[1, 2]]
    held = found.weights
    hidden = np.concatenate([z, y], 1) @ held["layers/0/kernel"] + held["layers/0/bias"]
    gelu = hidden / 2 * (1 + np.tanh(0.7978846 * (hidden + 0.044715 * hidden**3)))
    pixels = 1 / (1 + np.exp(-(gelu @ held["fc/kernel"] + held["fc/bias"])))
    np.testing.assert_allclose(
        found.decode(held, z, y), pixels.reshape(2, 8, 8, 1), atol=1e-5
    )


def rewritten(path, change):
    with np.load(path) as file:
        held = {name: file[name] for name in file.files}
    change(held)
    np.savez(path, **held)


def narrowed(held):
    held["account"] = np.array(
        json.dumps(json.loads(str(held["account"])) | {"widths": [6]})
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda held: held.pop("account"), "it is no decoder"),
        (lambda held: held.pop("fc/bias"), "fc/bias: weights of shape None"),
        (narrowed, r"fc/kernel: weights of shape \(5, 64\), expected \(6, 64\)"),
        (lambda held: held.update(public=held["public"][:9]), "no bit for each of"),
        (lambda held: held.update(account=np.array("{}")), "missing required field"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, damage, message):
    path = tmp_path / "mine.npz"
    write_trained(path, ACCOUNT, weights(), public())
    rewritten(path, damage)
    with pytest.raises(DamagedFile, match=message):
        find_generator(config(generator=str(path)))


def with_flipped_bytes(path):
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(255 - byte for byte in content[200:260])
    path.write_bytes(content)


def as_one_array(path):
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"no archive"),
        lambda path: path.write_bytes(b""),
        with_flipped_bytes,
        as_one_array,
    ],
)
def test_a_file_that_is_no_archive_is_named(tmp_path, damage):
    path = tmp_path / "mine.npz"
    write_trained(path, ACCOUNT, weights(), public())
    damage(path)
    with pytest.raises(DamagedFile, match="mine.npz is damaged.*train_generator.py"):
        find_generator(config(generator=str(path)))


def no_generator():
    return 3


def without_stages():
    return read_decoder(decoders.FOLDER / "digits.npz")._replace(stages=())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", "unknown generator 'digit' .did you mean 'digits'"),
        (f"{__name__}:no_generator", "gave int, expected a kljax.core.generator"),
    ],
)
def test_a_name_that_stands_for_none_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        find_generator(config(generator=name))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generator": None}, "give generator, such as digits"),
        ({"generator": None, "attack": "gias"}, "give generator, such as digits"),
        ({"generator": None, "attack": "gifd"}, "give generator, such as digits"),
        ({"attack": "gifd", "generator": f"{__name__}:without_stages"},
         "this one does not say its own: give kljax.core.generator"),
        ({"attack": "gifd", "steps": 2}, "steps=2 are fewer than the 3 stages"),
        ({"steps": 70}, "no whole number of generations of 50"),
        ({"optimiser": "lbfgs", "attack": "matching", "attack_options": ("a",)},
         "write it as name=value"),
        ({"attack_options": ("=1",)}, "option '=1': write it as name=value"),
        ({"attack_options": ("divergense=1",)}, "did you mean 'divergence'"),
        ({"attack_options": ("divergence=x",)}, "expected a number"),
        ({"attack": "gifd", "attack_options": ("learning_rate=0",)},
         "'learning_rate=0': a rate must be above 0"),
        ({"attack": "gias", "attack_options": ("weight_rate=-1",)},
         "'weight_rate=-1': a rate must be above 0"),
        ({"attack": "gias", "optimiser": "adam", "attack_options": ("weight_rate=1",)},
         "'weight_rate' is of the optimiser .* optimiser='adam' takes its place"),
        ({"attack_options": ("bounded=1",)}, "expected true or false"),
        ({"attack_options": ("bounded=true", "bounded=true")}, "given twice"),
        ({"attack": "matching", "optimiser": "cma_es"}, "follows gradients"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_runs(nothing_runs, options, message):
    options = {"attack": "ggl", "steps": 100, "model": "dense"} | options
    with pytest.raises(ValueError, match=message):
        leakage.leak(config(**options))


def test_dials_are_data_and_other_options_are_not():
    def sign(*options, step_size=None, of="ggl"):
        optimiser = None if step_size is None else "cma_es"
        made = config(
            attack=of,
            attack_options=options,
            step_size=step_size,
            optimiser=optimiser,
        )
        return signature(make_cell({}, made))

    assert sign("divergence=1") == sign("divergence=2") != sign()
    both = ("divergence=1", "bounded=true")
    assert sign(*both) == sign(*both[::-1])
    assert sign("bounded=true") != sign("bounded=false")
    assert sign(step_size=1.0) == sign(step_size=2.0) != sign()
    assert sign("radius=1", of="gifd") == sign("radius=2", of="gifd")
    assert sign("depth=1", of="gifd") != sign("depth=2", of="gifd")


@pytest.mark.slow
def test_options_and_weights_reach_the_attack_as_data(tmp_path):
    """Two generators and two weights of the divergence, in one compiled function."""
    path = tmp_path / "mine.npz"
    write_trained(path, ACCOUNT, weights(), public())
    options = {"attack": "ggl", "model": "dense", "victims": 1, "steps": 100}
    given = {"generator": str(path), "attack_options": ("divergence=0.1",)}
    study = build_study(config(**options, **given))
    (job,) = study.attacks

    def run(**changes):
        changed = config(**options, **(given | changes))
        again = build_study(changed, study)
        inputs = again.attacks[0].inputs
        mapped = leakage.map_victims(
            job.attack_one, Layout("loop"), draws=job.client.draws
        )
        return mapped(*inputs)

    first, timing = run()
    heavy, later = run(attack_options=("divergence=1000",))
    assert timing.compilations > 0 and later.compilations == 0
    assert not np.array_equal(first.reconstruction.inputs, heavy.reconstruction.inputs)
    write_trained(path, ACCOUNT, {k: -v for k, v in weights().items()}, public())
    other, later = run()
    assert later.compilations == 0
    assert not np.array_equal(first.reconstruction.inputs, other.reconstruction.inputs)


SHADES = {"scale": np.float32(1.0)}


def shades():
    """A generator of one's own: grey pictures, one shade per latent and class."""

    def decode(weights, latents, targets):
        told = latents[:, 0] + targets @ np.linspace(-1, 1, 10, dtype=np.float32)
        shade = jax.nn.sigmoid(weights["scale"] * told)
        return jnp.broadcast_to(shade[:, None, None, None], (len(latents), 8, 8, 1))

    return Generator(decode, dict(SHADES), 2, (8, 8, 1), 10)


def white():
    """One whose images are of another range."""
    own = shades()
    return own._replace(decode=lambda *given: 2 * own.decode(*given))


@pytest.mark.slow
def test_a_function_of_ones_own_is_a_generator_whose_weights_are_data(monkeypatch):
    options = {"attack": "ggl", "model": "dense", "victims": 1, "steps": 100}
    made = config(**options, generator=f"{__name__}:shades")
    study = build_study(made)
    (job,) = study.attacks

    def run(study):
        mapped = leakage.map_victims(
            job.attack_one, Layout("loop"), draws=job.client.draws
        )
        return mapped(*study.attacks[0].inputs)

    found, _ = run(study)
    images = np.asarray(found.reconstruction.inputs)
    assert np.ptp(images) == 0 and 0 < images.min() < 1
    monkeypatch.setitem(SHADES, "scale", np.float32(-3.0))
    other, timing = run(build_study(made, study))
    assert timing.compilations == 0
    assert not np.array_equal(other.reconstruction.inputs, images)
    # Nobody says what it saw: every example may be a victim.
    assert private_rows(made, Split(9), find_generator(made)) is None
    with pytest.raises(ValueError, match=":white' makes images in .* lie in .0, 1."):
        find_generator(config(generator=f"{__name__}:white"))
