"""Denoisers: the flow, how much noise is taken off, and what that invents."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from poison import differences, poisoned
from toys import quick_jit, replace_fields, threat
from victims import ground, update

from kljax import data
from kljax.attacks.attack import Reconstruction
from kljax.attacks.denoising import cleaned, denoised, estimated_noise
from kljax.attacks.objectives import squared_l2
from kljax.attacks.presets import dlg
from kljax.core.denoiser import (
    Denoiser,
    check_denoiser,
    mixed,
    move_to_clean,
    time_of,
)
from kljax.core.types import Private
from kljax.metrics import ssim
from kljax.models.flows import FOLDER, list_flows, read_flow
from kljax.threat import observe

EVAL = {"victim_norm": "eval", "attacker_norm": "eval"}
MEAN, SPREAD = 0.6, 0.2


def of_gaussians() -> Denoiser:
    """The exact flow of images whose pixels are N(.6, .2^2), each by itself."""

    def velocity(weights, states, times):
        at = times[:, None, None, None]
        mean, variance = 2 * weights["mean"] - 1, (2 * weights["spread"]) ** 2
        share = at * variance / (at**2 * variance + (1 - at) ** 2)
        image = mean + share * (states - at * mean)
        noise = (states - at * image) / jnp.maximum(1 - at, 1e-6)
        return image - noise

    return Denoiser(velocity, {"mean": MEAN, "spread": SPREAD}, (8, 8, 1))


@functools.cache
def of_digits() -> Denoiser:
    return read_flow(FOLDER / "digits.npz")


@functools.cache
def private_digits(count=64):
    dataset = data.load("digits", shape=(8, 8, 1))
    rows = np.flatnonzero(~of_digits().origin.public)[:count]
    return dataset.fetch(rows)[0]


def noise_like(images, seed=0):
    return np.random.default_rng(seed).standard_normal(images.shape).astype(np.float32)


@jax.jit
def clean_by(images, strength):
    return move_to_clean(of_digits(), images, strength)


def test_one_move_is_the_mean_of_what_fits():
    """Of Gaussian pixels that is in every book: shrunk towards the mean."""
    strength = 0.3
    truth = MEAN + SPREAD * noise_like(np.zeros((3, 8, 8, 1)), 1)
    noisy = truth + strength * noise_like(truth, 2)
    share = SPREAD**2 / (SPREAD**2 + strength**2)
    wanted = np.clip(MEAN + share * (noisy - MEAN), 0, 1)
    found = move_to_clean(of_gaussians(), jnp.asarray(noisy), strength, moves=1)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_several_moves_are_eulers_steps():
    """And are on their way: of Gaussian pixels the whole of it stretches them."""
    strength = 0.3
    noisy = MEAN + np.hypot(SPREAD, strength) * noise_like(np.zeros((2, 8, 8, 1)), 3)
    flow, moves = of_gaussians(), 8
    time = 1 / (1 + 2 * strength)
    states = time * (2 * noisy - 1)
    for number in range(moves):
        now = time + number * (1 - time) / moves
        slope = flow.velocity(flow.weights, states, jnp.full(2, now))
        states = states + (1 - time) / moves * np.asarray(slope)
    by_hand = np.clip((states + 1) / 2, 0, 1)
    found = move_to_clean(flow, jnp.asarray(noisy), strength, moves=moves)
    np.testing.assert_allclose(found, by_hand, atol=1e-5)
    share = SPREAD / np.hypot(SPREAD, strength)
    whole = np.clip(MEAN + share * (noisy - MEAN), 0, 1)
    assert 1e-3 < np.abs(by_hand - whole).max() < 0.1


def test_the_state_at_the_time_of_a_strength_is_the_noisy_image():
    image = np.full((1, 2, 2, 1), 0.7, np.float32)
    noise, strength = noise_like(image), 0.15
    time = time_of(strength)
    state = mixed(image, noise, jnp.full(1, time))
    np.testing.assert_allclose(
        state / time, 2 * (image + strength * noise) - 1, rtol=1e-5
    )
    assert time_of(0.0) == 1


def test_strength_0_changes_nothing_even_of_another_size():
    large = jnp.asarray(np.random.default_rng(0).random((1, 13, 11, 3), np.float32))
    clean = quick_jit(functools.partial(cleaned, of_digits()))
    np.testing.assert_array_equal(clean(large, 0.0), large)
    assert clean(large, 0.1).shape == large.shape
    assert differences(clean(large, 0.1), large)


def test_noise_is_estimated_from_the_finest_detail():
    flat = np.full((2, 65, 64, 1), 0.5, np.float32)
    for strength in (0.05, 0.2):
        found = estimated_noise(jnp.asarray(flat + strength * noise_like(flat)))
        assert float(found) == pytest.approx(strength, rel=0.1)
    assert float(estimated_noise(jnp.asarray(flat))) == 0
    ramp = np.linspace(0, 1, 64, dtype=np.float32) + np.zeros((2, 64, 1), np.float32)
    assert float(estimated_noise(jnp.asarray(ramp)[..., None])) < 1e-6


def test_noisy_digits_become_digits():
    truth = private_digits()
    score = jax.jit(jax.vmap(ssim))
    for strength, least in ((0.2, 0.03), (0.4, 0.1)):  # gains stated beforehand
        noisy = np.clip(truth + strength * noise_like(truth), 0, 1)
        found = clean_by(noisy, strength)
        gain = np.mean(score(found, truth)) - np.mean(score(noisy, truth))
        assert gain > least


def test_nothing_but_noise_becomes_a_look_alike_that_the_floor_shows():
    """Digits out of nothing: no nearer to the truth than the average public image."""
    truth = private_digits()
    noise = 0.5 + noise_like(truth)
    found = np.asarray(clean_by(noise, 1.0))
    seen = data.load("digits", shape=(8, 8, 1))
    public = seen.fetch(np.flatnonzero(of_digits().origin.public))[0]
    floor = np.mean((public.mean(axis=0) - truth) ** 2)
    assert np.mean((found - truth) ** 2) > floor

    def nearest(images):  # some digit, whosever
        apart = np.mean((images[:, None] - public[None]) ** 2, axis=(2, 3, 4))
        return np.median(apart.min(axis=1))

    assert nearest(found) < 0.5 * nearest(np.clip(noise, 0, 1))


@pytest.mark.parametrize("name", list_flows())
def test_those_of_the_package_saw_the_public_half_alone(name):
    flow = read_flow(FOLDER / f"{name}.npz")
    check_denoiser(flow, name)
    assert (FOLDER / f"{name}.npz").stat().st_size < 6e5
    assert flow.origin.dataset == name
    assert 0.49 < flow.origin.public.mean() <= 0.5


def pretended(images):
    """An attack that has found these images."""

    def attack(rng, view):
        del rng, view
        return Reconstruction(
            images, jnp.zeros(1, int), jnp.zeros(()), jnp.asarray(True), {"secret": ()}
        )

    return attack


def set_up(denoiser=None, **facts):
    declared = threat("unit", "given", labels="known", **EVAL, **facts)
    return declared, ground(declared, denoiser=denoiser or of_digits())


def test_what_is_reported_is_of_the_cleaned_image():
    declared, setting = set_up()
    upload = update()
    noisy = jnp.clip(upload.inputs + 0.2 * noise_like(upload.inputs), 0, 1)

    def run(strength, images):
        def attack(rng, view):
            labels = jnp.argmax(upload.targets, -1)
            found = pretended(images)(rng, view)
            return found._replace(labels=labels, info={"secret": Private()})

        clean = denoised(attack, setting, squared_l2(), strength)
        return clean(jax.random.key(0), observe(declared, upload))

    by_number = quick_jit(run)
    by_loss = quick_jit(functools.partial(run, "matching"))
    cleanest, as_it_is = by_number(0.2, noisy), by_number(0.0, noisy)
    np.testing.assert_array_equal(as_it_is.inputs, noisy)
    before = float(as_it_is.loss)
    assert float(as_it_is.numbers["loss_before_denoising"]) == before
    assert float(cleanest.numbers["loss_before_denoising"]) == pytest.approx(before)
    assert float(cleanest.loss) < before
    chosen = by_loss(noisy)
    assert float(chosen.loss) <= float(cleanest.loss)
    assert float(chosen.numbers["denoising_strength"]) > 0
    # The truth has no loss: the attacker's own loss lets nothing be taken off it.
    kept = by_loss(jnp.asarray(upload.inputs))
    assert float(kept.numbers["denoising_strength"]) == 0


def test_an_estimated_strength_is_that_of_what_was_found():
    declared, setting = set_up()
    truth, images = update(), private_digits(1)
    noisy = jnp.asarray(np.clip(images + 0.2 * noise_like(images), 0, 1))

    @quick_jit
    def run(noisy):
        clean = denoised(pretended(noisy), setting, None, "estimated")
        found = clean(jax.random.key(0), observe(declared, truth))
        at = estimated_noise(noisy)
        return found, at, cleaned(of_digits(), noisy, at)

    found, at, wanted = run(noisy)
    assert float(found.numbers["denoising_strength"]) == float(at) > 0.05
    np.testing.assert_allclose(found.inputs, wanted, atol=1e-6)
    np.testing.assert_array_equal(found.info["before_denoising"], noisy)
    assert found.loss == found.numbers["loss_before_denoising"] == 0  # the attack's own


def test_a_strength_whose_loss_is_broken_is_not_chosen():
    flow = of_digits()
    broken = flow._replace(velocity=lambda *given: jnp.nan * flow.velocity(*given))
    declared, setting = set_up(broken)
    truth = update()

    def attack(rng, view):
        found = pretended(truth.inputs)(rng, view)
        return found._replace(info={"secret": Private()})

    clean = denoised(attack, setting, squared_l2(), "matching")
    found = quick_jit(lambda: clean(jax.random.key(0), observe(declared, truth)))()
    assert float(found.numbers["denoising_strength"]) == 0 and np.isfinite(found.loss)
    np.testing.assert_array_equal(found.inputs, truth.inputs)


def test_strengths_are_data():
    traced = []

    @jax.jit
    def run(strength):
        traced.append(1)
        declared, setting = set_up()
        images = jnp.asarray(private_digits(1))
        clean = denoised(pretended(images), setting, None, strength)
        return clean(jax.random.key(0), observe(declared, update())).inputs

    assert differences(run(0.1), run(0.3)) and len(traced) == 1


def test_what_is_hidden_does_not_reach_it():
    declared, setting = set_up()
    attack = dlg(setting, steps=4, restarts=1)
    clean = denoised(attack, setting, squared_l2(), "matching")
    run = quick_jit(lambda truth: clean(jax.random.key(8), observe(declared, truth)))
    truth = update()
    facts = EVAL | {"labels": "known"}
    assert not differences(run(truth), run(poisoned(truth, facts)))
    assert differences(run(truth), run(update(seed=1)))


def test_what_does_not_fit_is_refused():
    _, setting = set_up()
    attack = pretended(jnp.asarray(private_digits(1)))
    with pytest.raises(ValueError, match="strength 'best' of a denoiser"):
        denoised(attack, setting, squared_l2(), "best")
    with pytest.raises(ValueError, match="this attack matches nothing"):
        denoised(attack, setting, None, "matching")
    other = dataclasses.replace(setting.task.inputs, kind="text")
    with pytest.raises(ValueError, match="cleans images, and the inputs are text"):
        denoised(attack, replace_fields(setting, inputs=other), None, 0.1)

    def silent(rng, view):
        return attack(rng, view)._replace(info={})

    with pytest.raises(ValueError, match="does not say the secret that it found"):
        denoised(silent, setting, squared_l2(), 0.1)(jax.random.key(0), None)
    without = ground(setting.threat)
    with pytest.raises(ValueError, match="name one with the option denoise"):
        denoised(attack, without, None, 0.1)
    _, coloured = set_up(of_digits()._replace(shape=(8, 8, 3)))
    with pytest.raises(ValueError, match="of 3 channels, and the network takes in 1"):
        denoised(attack, coloured, None, 0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda flow: flow[:, :7], r"moves images of shape \(8, 8, 1\) by \(7, 8, 1\)"),
        (lambda flow: flow * jnp.nan, "its flow is not finite"),
        (lambda flow: flow @ jnp.ones((3, 3)), "'mine' cannot move states"),
    ],
)
def test_a_denoiser_that_is_not_what_it_says_is_refused(change, message):
    flow = of_gaussians()
    wrong = flow._replace(velocity=lambda *given: change(flow.velocity(*given)))
    with pytest.raises(ValueError, match=message):
        check_denoiser(wrong, "mine")
