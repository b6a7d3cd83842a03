"""Denoisers of studies: found by name, kept from victims, and strengths are data."""

import numpy as np
import pytest

from kljax import LeakConfig, data
from kljax.core.denoiser import Denoiser
from kljax.core.files import DamagedFile
from kljax.models.flows import FOLDER, read_flow
from kljax.parallel import Layout
from kljax.studies import leakage
from kljax.studies.builder.denoiser import find_denoiser, parse_denoise
from kljax.studies.builder.generator import find_generator
from kljax.studies.builder.study import build_study
from kljax.studies.builder.victims import choose_victims
from kljax.studies.scoring import score_rows
from kljax.studies.sweeps.cell import make_cell, signature

TINY = {
    "attack": "matching",
    "model": "dense",
    "victims": 2,
    "steps": 4,
    "image_size": 8,
}


def config(**options):
    options = {"arms": ("none",), "denoise": "digits"} | TINY | options
    return LeakConfig(**options, layout=Layout("loop"))


def test_what_is_written_is_read():
    assert parse_denoise("digits") == ("digits", "estimated")
    assert parse_denoise("mine:flow=0.25") == ("mine:flow", 0.25)
    assert parse_denoise("a.npz=matching").program == "a.npz=matching"
    for wrong in ("digits=-1", "digits=nan", "digits=matchin", "digits=inf"):
        with pytest.raises(ValueError, match="neither a number from 0 on nor one of"):
            parse_denoise(wrong)


@pytest.mark.parametrize("generator", (None, "digits-conv"))
def test_no_victim_is_one_of_the_images_it_was_trained_on(generator):
    whole = data.load("digits", shape=(8, 8, 3))
    denoiser = find_denoiser("digits")
    seen = denoiser.origin.public
    trained = [denoiser]
    if generator is not None:
        trained.append(find_generator(config(generator=generator)))
    most = int((~seen).sum())
    victims, _ = choose_victims(config(victims=most), whole, *trained)
    assert not seen[victims.indices].any() and victims.indices.size == most == 899
    with pytest.raises(ValueError, match="has 899 that its denoiser"):
        choose_victims(config(victims=most + 1), whole, *trained)
    everybody, _ = choose_victims(config(victims=most), whole)
    assert seen[everybody.indices].any()  # the test can fail


def test_of_two_that_saw_different_halves_nobody_is_left():
    whole = data.load("digits", shape=(8, 8, 3))
    denoiser = find_denoiser("digits")
    others = denoiser.origin._replace(public=~denoiser.origin.public)
    other = denoiser._replace(origin=others)
    with pytest.raises(ValueError, match="has 0 that its denoiser or denoiser"):
        choose_victims(config(victims=1), whole, denoiser, other)


@pytest.mark.slow
def test_strengths_are_data_and_rows_say_them():
    def sign(text):
        return signature(make_cell({}, config(denoise=text)))

    assert sign("digits=0.1") == sign("digits=0.3") != sign("digits=matching")
    assert sign("digits") == sign("digits=estimated") != sign("fashion_mnist")
    study = build_study(config(denoise="digits=0.1"))
    (job,) = study.attacks
    seen = study.attacker.denoiser.origin.public
    assert not seen[study.victims.indices].any()

    def run(study):
        mapped = leakage.map_victims(
            job.attack_one, Layout("loop"), draws=job.client.draws
        )
        return mapped(*study.attacks[0].inputs)

    weak, _ = run(study)
    strong, timing = run(build_study(config(denoise="digits=0.4"), study))
    assert timing.compilations == 0
    assert not np.array_equal(weak.reconstruction.inputs, strong.reconstruction.inputs)
    before = [
        each.reconstruction.numbers["loss_before_denoising"] for each in (weak, strong)
    ]
    np.testing.assert_allclose(*before, rtol=1e-5)


@pytest.mark.slow
def test_a_closed_form_is_cleaned_too_and_a_row_says_so():
    result = leakage.leak(config(attack="rgap", steps=1, victims=1))
    (row,) = (row for row in score_rows(result) if row["arm"] == "none")
    assert row["denoise"] == "digits" and row["denoising_strength"] >= 0
    plain = leakage.leak(config(attack="rgap", steps=1, victims=1, denoise=None))
    (row,) = (row for row in score_rows(plain) if row["arm"] == "none")
    assert row["denoise"] is None and row["denoising_strength"] is None


def own() -> Denoiser:
    return read_flow(FOLDER / "digits.npz")._replace(origin=None)


def none_at_all():
    return 3


def wrong_range():
    flow = own()
    return flow._replace(velocity=lambda *given: flow.velocity(*given)[..., :0])


def test_one_of_ones_own_is_found_and_what_is_none_is_refused(tmp_path):
    assert find_denoiser(f"{__name__}:own=0.1").origin is None
    for name, message in (
        ("digit", "unknown denoiser 'digit' .did you mean 'digits'"),
        (f"{__name__}:none_at_all", "gave int, expected a kljax.core.denoiser"),
        (f"{__name__}:wrong_range", "moves images of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            find_denoiser(name)
    with pytest.raises(FileNotFoundError):
        find_denoiser("nowhere.npz")
    path = tmp_path / "mine.npz"
    path.write_bytes((FOLDER / "digits.npz").read_bytes()[:-900])
    with pytest.raises(DamagedFile, match="train_denoiser.py"):
        find_denoiser(str(path))
    with np.load(FOLDER / "digits.npz") as file:
        held = {name: file[name] for name in file.files}
    np.savez(path, **held | {"last/bias": held["last/bias"][:2]})
    with pytest.raises(DamagedFile, match=r"last/bias: weights of shape \(2, 4\)"):
        find_denoiser(str(path))


def test_several_observations_are_refused():
    with pytest.raises(ValueError, match="denoise='digits' holds what it makes"):
        config(observations=2)


def test_an_attack_that_matches_nothing_has_no_loss_to_choose_by(nothing_runs):
    with pytest.raises(ValueError, match="this attack matches nothing"):
        leakage.leak(config(attack="rgap", denoise="digits=matching"))
