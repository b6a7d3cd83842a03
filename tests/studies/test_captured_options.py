"""Options of a run that change a client's round are those of its attacked client."""

import shutil

import jax
import numpy as np
import pytest
from begun_runs import UPLOADS, begin, study
from tiny_studies import quick_compilation

from kljax.core.randomness import derive_rng
from kljax.federated import checkpoints
from kljax.federated.clients import STEP_PURPOSES, local_gradient
from kljax.studies import leakage
from kljax.studies.builder import run_setup
from kljax.studies.builder.drawn_client import draw_rng, make_sources
from kljax.studies.leakage import leak

REVEAL = "outside_package:measured_reveal"  # answers with the view, and measures
KNOWN = {"arms": ("keylock/known",), "attack": REVEAL}


@pytest.fixture(autouse=True)
def quickly():
    with quick_compilation():
        yield


def attacked(folder, upload):
    """Runs a study of two victims; gives the view, and the loss at the truth."""
    (arm,) = leak(study(folder, **KNOWN, **UPLOADS[upload])).arms
    losses = arm.attacked.loss_at_truth / arm.attacked.loss_scale
    return arm.attacked.reconstruction.info["view"], losses


@pytest.mark.slow
@pytest.mark.parametrize("upload", UPLOADS)
def test_a_fresh_private_key_is_the_attacked_clients_too(tmp_path, upload):
    _, _, clients = begin(tmp_path / "run", fresh_private_keys=True)
    view, losses = attacked(tmp_path / "run", upload)
    old, fresh = clients.private.secret, view.private_key
    assert fresh.shape == (2, *old.shape[1:])
    assert not np.any(np.isclose(fresh[:, None], old[None], atol=1e-6).all(axis=-1))
    assert not np.array_equal(*fresh)
    assert np.all((fresh >= 0) & (fresh < 1))
    # The upload is of that private key: whoever has it replays the client exactly.
    assert np.all(losses < 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("upload", UPLOADS)
def test_a_kept_private_key_is_kept(tmp_path, upload):
    _, _, clients = begin(tmp_path / "run")
    view, losses = attacked(tmp_path / "run", upload)
    for shown in view.private_key:
        np.testing.assert_array_equal(shown, clients.private.secret[1])
    assert np.all(losses < 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("upload", UPLOADS)
def test_the_attacked_client_augments_as_the_run_does(tmp_path, upload):
    begin(tmp_path / "run", augment="crop_flip")
    _, losses = attacked(tmp_path / "run", upload)
    assert np.all(losses > 1e-2)  # nobody replays draws that they do not know


@pytest.mark.slow
def test_a_gradient_is_of_the_augmented_image(tmp_path):
    setup, server, clients = begin(tmp_path / "run", augment="crop_flip")
    result = leak(study(tmp_path / "run", **KNOWN))
    view = result.arms[0].attacked.reconstruction.info["view"]
    made = run_setup.arm_rounds(setup, "keylock")
    gradient = local_gradient(made.model, setup.task.loss, made.defence, train=True)
    source = make_sources(result.config, result.victims)
    augment = run_setup.local_options(setup)["augment"]
    for n in range(2):
        mine = jax.tree.map(lambda x, n=n: x[n], source)
        rng = draw_rng(mine, "step")
        images = augment(
            derive_rng(rng, STEP_PURPOSES, "augmentation"), result.victims.inputs[n]
        )
        expected = gradient(
            derive_rng(rng, STEP_PURPOSES, "gradient"),
            server.public,
            server.stats,
            jax.tree.map(lambda x: x[1], clients.private),
            images,
            jax.nn.one_hot(result.victims.labels[n], 10),
        )
        np.testing.assert_allclose(
            view.grads.model["fc/kernel"][n],
            expected.public.model["fc/kernel"],
            atol=1e-6,
        )


def test_a_release_goes_on_with_what_the_client_remembers(tmp_path):
    arm, sent = "outside_package:fading", []
    for name, count in (("new", 0.0), ("later", 3.0)):
        _, server, clients = begin(tmp_path / name, arms=(arm,))
        assert not np.any(clients.release.steps)
        remembered = clients.release._replace(steps=clients.release.steps + count)
        shutil.rmtree(tmp_path / name / arm)
        kept = clients._replace(release=remembered)
        checkpoints.save(tmp_path / name / arm, server, kept, (0,))
        (found,) = leak(study(tmp_path / name, arms=(arm,), attack=REVEAL)).arms
        sent.append(found.attacked.reconstruction.info["view"].grads)
    jax.tree.map(
        lambda new, later: np.testing.assert_allclose(new, 4 * later, rtol=1e-5), *sent
    )


@pytest.mark.parametrize("upload", UPLOADS)
def test_an_option_that_a_client_cannot_take_is_never_left_out(
    tmp_path, upload, monkeypatch
):
    begin(tmp_path / "run")
    given = run_setup.local_options
    monkeypatch.setattr(
        run_setup, "local_options", lambda setup: given(setup) | {"novel": 1}
    )
    config = study(tmp_path / "run", **KNOWN, **UPLOADS[upload])
    with pytest.raises(TypeError, match="novel"):
        leakage.leak(config)
