"""Options of a run that change a client's round are those of its attacked client."""

import dataclasses

import jax
import numpy as np
import pytest
from studies import quick_compilation

from kljax import checkpoint, files, journal, leakage, preparation, staging
from kljax.clients import STEP_PURPOSES, local_gradient
from kljax.config import LeakConfig, TrainConfig
from kljax.leakage import leak
from kljax.mapping import Layout
from kljax.randomness import derive_rng

RUN = TrainConfig(
    model="dense",
    image_size=8,
    examples=40,
    test_examples=8,
    public_examples=0,
    clients=2,
    rounds=1,
    batch=1,
    private_key_size=16,
    init=0.3,
    keep_rounds=(0,),
    arms=("keylock",),
    layout=Layout("loop"),
)
REVEAL = "outside_package:measured_reveal"  # answers with the view, and measures
UPLOADS = {
    "gradient": {"upload": "gradient"},
    "update": {"upload": "update", "local_steps": 2, "batch": 1, "labels": "given"},
}


@pytest.fixture(autouse=True)
def quickly():
    with quick_compilation():
        yield


def begun(folder, **changes):
    """Writes the folder of a run that has not trained yet."""
    prepared = preparation.prepare(dataclasses.replace(RUN, **changes))
    rounds = preparation.arm_rounds(prepared, "keylock").rounds
    server, clients = preparation.start(prepared, rounds)
    folder.mkdir()
    described = journal.describe(prepared.config, prepared.train.licence)
    files.write_json(folder / "config.json", described)
    checkpoint.save(folder / "keylock", server, clients, (0,))
    return prepared, server, clients


def study(folder, **changes):
    options = {
        "from_run": str(folder),
        "client": 1,
        "victims": 2,
        "arms": ("keylock/known",),
        "attack": REVEAL,
        "layout": Layout("loop"),
    }
    return LeakConfig(**(options | changes))


def attacked(folder, upload):
    """Runs a study of two victims; gives the view, and the loss at the truth."""
    (arm,) = leak(study(folder, **UPLOADS[upload])).arms
    losses = arm.attacked.loss_at_truth / arm.attacked.loss_scale
    return arm.attacked.reconstruction.info["view"], losses


@pytest.mark.parametrize("upload", UPLOADS)
def test_a_fresh_private_key_is_the_attacked_clients_too(tmp_path, upload):
    _, _, clients = begun(tmp_path / "run", fresh_private_keys=True)
    view, losses = attacked(tmp_path / "run", upload)
    old, fresh = clients.private.secret, view.private_key
    assert fresh.shape == (2, *old.shape[1:])
    assert not np.any(np.isclose(fresh[:, None], old[None], atol=1e-6).all(axis=-1))
    assert not np.array_equal(*fresh)
    assert np.all((fresh >= 0) & (fresh < 1))
    # The upload is of that private key: whoever has it replays the client exactly.
    assert np.all(losses < 1e-6)


@pytest.mark.parametrize("upload", UPLOADS)
def test_a_kept_private_key_is_kept(tmp_path, upload):
    _, _, clients = begun(tmp_path / "run")
    view, losses = attacked(tmp_path / "run", upload)
    for shown in view.private_key:
        np.testing.assert_array_equal(shown, clients.private.secret[1])
    assert np.all(losses < 1e-6)


@pytest.mark.parametrize("upload", UPLOADS)
def test_the_attacked_client_augments_as_the_run_does(tmp_path, upload):
    begun(tmp_path / "run", augment="crop_flip")
    _, losses = attacked(tmp_path / "run", upload)
    assert np.all(losses > 1e-2)  # nobody replays draws that he does not know


def test_a_gradient_is_of_the_augmented_image(tmp_path):
    prepared, server, clients = begun(tmp_path / "run", augment="crop_flip")
    result = leak(study(tmp_path / "run"))
    view = result.arms[0].attacked.reconstruction.info["view"]
    made = preparation.arm_rounds(prepared, "keylock")
    gradient = local_gradient(made.model, prepared.loss, made.defence, train=True)
    source = staging.sources(result.config, result.victims)
    augment = preparation.local_options(prepared)["augment"]
    for n in range(2):
        mine = jax.tree.map(lambda x, n=n: x[n], source)
        rng = staging.draw_rng(mine, "step")
        images = augment(
            derive_rng(rng, STEP_PURPOSES, "augmentation"), result.victims.images[n]
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


@pytest.mark.parametrize("upload", UPLOADS)
def test_an_option_that_a_client_cannot_take_is_never_left_out(
    tmp_path, upload, monkeypatch
):
    begun(tmp_path / "run")
    given = preparation.local_options
    monkeypatch.setattr(
        preparation, "local_options", lambda prepared: given(prepared) | {"novel": 1}
    )
    config = study(tmp_path / "run", **UPLOADS[upload])
    with pytest.raises(TypeError, match="novel"):
        leakage.leak(config)
