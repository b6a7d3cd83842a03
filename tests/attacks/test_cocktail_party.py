"""The Cocktail Party Attack: batches unmixed, and where there is nothing to go by."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from poison import differences, poisoned
from test_spear import changed
from toys import quick_jit, random_weights, replace_fields, setting, threat
from victims import digits, filled

from kljax.attacks.presets.unmixed_batches import (
    Mixtures,
    Weights,
    cocktail_party,
    read_images,
    unmix,
    unmixing_loss,
    whitened,
)
from kljax.core.inputs import images_of
from kljax.core.types import Private, Public
from kljax.defences import none
from kljax.federated.clients import one_step
from kljax.models import Dense, DenseReLU, LeNet, from_nnx
from kljax.models.losses import cross_entropy
from kljax.threat import observe

SHAPE, CLASSES, EXAMPLES, UNITS = (8, 8, 1), 10, 3, 40
WEIGHTS = Weights(1.47, 3.1, 12.4)
# Little decorrelation: two rows at right angles are held there by it, and slowed.
CONTRAST = Weights(1e-3, 0.0, 12.4)
START = np.array([[0.8, 0.6], [-0.6, 0.8]], np.float32)


@functools.cache
def model(lockable=()):
    return from_nnx(
        lambda rngs: DenseReLU(
            CLASSES, image_shape=SHAPE, widths=(UNITS,), lockable=lockable, rngs=rngs
        )
    )


def ground(declared=None, **changes):
    here = setting(
        declared or threat(examples=EXAMPLES),
        none(),
        model=model(),
        inputs=images_of(SHAPE),
        num_classes=CLASSES,
    )
    return replace_fields(here, **changes)


@functools.cache
def update(lockable=()):
    params, stats = random_weights(model(lockable))
    step = quick_jit(one_step(model(lockable), cross_entropy, none(), train=True))
    return step(jax.random.key(0), Public(params), stats, Private(), *digits(EXAMPLES))


@functools.cache
def compiled():
    declared = threat(examples=EXAMPLES)
    attack = cocktail_party(ground(declared), steps=20, restarts=2)
    return quick_jit(lambda seen: attack(jax.random.key(1), observe(declared, seen)))


def gradient_of(images, units=12, seed=1):
    """Mixes images [B, d], and the one of the bias, by random shares."""
    shares = np.random.default_rng(seed).standard_normal((len(images), units))
    return np.concatenate([images, np.ones((len(images), 1))], axis=1).T @ shares


@functools.cache
def whiten(count):
    return quick_jit(functools.partial(whitened, examples=count))


def mixtures_of(images):
    with jax.enable_x64(True):
        found = whiten(len(images))(np.float64(gradient_of(images)))
    return Mixtures(
        np.float32(found.images), np.float32(found.ones), found.active, found.rank
    )


@functools.cache
def unmixer():
    return quick_jit(
        functools.partial(
            unmix,
            image_shape=(32, 32, 1),
            weights=CONTRAST,
            learning_rate=1e-2,
            steps=300,
            points=3,
        )
    )


def unmixed(sources):
    """Mixes sources [2, 1024] and unmixes them: images, and |correlation| [2, 2]."""
    mixtures = mixtures_of(sources)
    directions, _ = unmixer()(START, mixtures)
    images = np.asarray(read_images(directions[-1], mixtures))
    return images, abs(np.corrcoef(images, sources)[:2, 2:])


def test_uniform_sources_come_back_with_sign_and_length():
    sources = np.random.default_rng(0).random((2, 1024))
    images, correlation = unmixed(sources)
    order = correlation.argmax(axis=1)
    assert sorted(order) == [0, 1] and correlation.max(axis=1).min() > 0.95
    # Neither mirrored nor stretched: the bias says both.
    assert np.abs(images - sources[order]).mean() < 0.1


def test_gaussian_sources_stay_mixed():
    """No direction is less Gaussian than another: chance leaves some mixed."""
    worst = []
    for seed in range(3):
        sources = 0.5 + 0.1 * np.random.default_rng(seed).standard_normal((2, 1024))
        worst.append(unmixed(sources)[1].max(axis=1).min())
    assert min(worst) < 0.95


def slow_loss(free, images, active, shape, weights):
    count = len(free)
    rows = []
    for row in free:
        row = [x if on else 0.0 for x, on in zip(row, active, strict=True)]
        rows.append(np.array(row) / np.sqrt(np.dot(row, row)))
    contrast = variation = alike = 0.0
    for row in rows:
        u = sum(row[j] * images[j] for j in range(count))
        contrast += np.mean(np.log(np.cosh(u - u.mean()))) ** 2 / count
        picture = u.reshape(shape)
        down = [abs(b - a).mean() for a, b in zip(picture, picture[1:], strict=False)]
        across = abs(picture[:, 1:] - picture[:, :-1]).mean()
        variation += (np.mean(down) + across) / count
    for i in range(count):
        for j in range(count):
            if i != j:
                cosine = abs(np.dot(rows[i], rows[j]))
                alike += (np.exp(weights.sharpness * cosine) - 1) / count**2
    return weights.decorrelation * alike + weights.variation * variation - contrast


def test_the_objective_against_a_slow_form():
    generator = np.random.default_rng(2)
    images, free = generator.standard_normal((3, 24)), generator.random((3, 3)) - 0.5
    active = np.array([True, True, False])
    mixtures = Mixtures(np.float32(images), np.zeros(3), active, np.int32(2))
    found = quick_jit(lambda free: unmixing_loss(free, mixtures, (4, 3, 2), WEIGHTS))(
        np.float32(free)
    )
    known = slow_loss(free, images, active, (4, 3, 2), WEIGHTS)
    np.testing.assert_allclose(found, known, rtol=1e-4)


def test_mixtures_are_white_and_hold_the_images():
    sources = np.random.default_rng(3).random((3, 1024))
    mixtures = mixtures_of(sources)
    assert mixtures.rank == 3 and mixtures.active.all()
    np.testing.assert_allclose(np.cov(mixtures.images, bias=True), np.eye(3), atol=1e-4)
    whole = np.concatenate([mixtures.images, mixtures.ones[:, None]], axis=1)
    shares = np.linalg.lstsq(
        whole.T, np.concatenate([sources, np.ones((3, 1))], axis=1).T, rcond=None
    )[0]
    np.testing.assert_allclose(shares.T @ mixtures.images, sources, atol=1e-4)
    # Of true directions, images come back as they were.
    np.testing.assert_allclose(
        read_images(np.float32(shares.T), mixtures), sources, atol=1e-3
    )


def test_what_is_not_there_is_left_out():
    sources = np.random.default_rng(3).random((3, 1024))
    sources[2] = sources[1]
    mixtures = mixtures_of(sources)
    assert mixtures.rank == 2 and list(mixtures.active) == [True, True, False]
    np.testing.assert_array_equal(mixtures.images[2], 0)
    images = read_images(np.eye(3, dtype=np.float32), mixtures)
    np.testing.assert_array_equal(images[2], 0.5)
    assert images.min() >= 0 and images.max() <= 1


def test_images_get_their_sign_and_length_as_a_slow_form_has_it():
    """Mirrored; longer than [0, 1]; below it and above it; nothing at all."""
    images = np.array(
        [
            [-0.2, -0.9, -0.4],
            [0.5, -2.5, 1.5],
            [0.3, -0.2, 0.1],
            [1.4, 0.9, 1.2],
            [0.0, 0.0, 0.0],
        ]
    )
    ones, wanted = np.array([-2.0, 1.0, 1.0, 0.5, 0.0]), []
    for image, one in zip(images, ones, strict=True):
        length = max(abs(one), image.max() - image.min())
        if length == 0:
            wanted.append(np.full(3, 0.5))
            continue
        image = (-image if one < 0 else image) / length
        image = image - min(image.min(), 0) - max(image.max() - 1, 0)
        wanted.append(image)
    mixtures = Mixtures(np.float32(images), np.float32(ones), np.ones(5, bool), 5)
    found = read_images(np.eye(5, dtype=np.float32), mixtures)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert np.min(wanted) == 0 and np.max(wanted) == 1


@pytest.mark.slow
def test_of_restarts_the_lowest_loss_wins_and_none_that_broke(monkeypatch):
    """Losses at the end are made up: the first entry of the start, NaN for the lowest.

    Those on the way say the opposite.
    """

    def unmix(start, mixtures, *args, **options):
        first = start[0, 0]
        last = jnp.where(first == lowest, jnp.nan, first)
        return jnp.stack([0 * start, start]), jnp.stack([-first, last])

    starts = [
        jax.random.normal(rng, (EXAMPLES, EXAMPLES))
        for rng in jax.random.split(jax.random.key(1), 4)
    ]
    starts.sort(key=lambda start: float(start[0, 0]))
    lowest, declared = float(starts[0][0, 0]), threat(examples=EXAMPLES)
    monkeypatch.setattr("kljax.attacks.presets.unmixed_batches.unmix", unmix)
    attack = cocktail_party(ground(declared), steps=5, restarts=4)
    view = observe(declared, update())
    found = quick_jit(attack)(jax.random.key(1), view)
    assert found.finite and float(found.loss) == float(starts[1][0, 0])
    assert found.numbers["evaluations"] == 20
    sent = view.grads.model
    whole = np.concatenate([sent["layers/0/kernel"], sent["layers/0/bias"][None]])
    with jax.enable_x64(True):
        mixtures = whiten(EXAMPLES)(np.float64(whole))
        mixtures = mixtures._replace(
            images=np.float32(mixtures.images), ones=np.float32(mixtures.ones)
        )
    wanted = read_images(starts[1], mixtures)
    np.testing.assert_allclose(found.inputs, wanted.reshape(-1, *SHAPE), atol=1e-4)


def test_a_batch_of_a_network_is_attacked():
    found = compiled()(update())
    assert found.finite and found.numbers["gradient_rank"] == EXAMPLES
    assert found.inputs.shape == (EXAMPLES, *SHAPE)
    assert np.min(found.inputs) >= 0 and np.max(found.inputs) <= 1


def test_its_way_is_recorded_as_that_of_a_descent():
    declared = threat(examples=EXAMPLES)
    attack = cocktail_party(ground(declared, snapshots=4), steps=20, restarts=2)
    run = quick_jit(functools.partial(attack, jax.random.key(1)))
    kept, plain = run(observe(declared, update())), compiled()(update())
    assert "snapshots" not in plain.info and len(plain.info["losses"]) == 20
    np.testing.assert_array_equal(kept.info["loss_evaluations"], [5, 10, 15, 20])
    np.testing.assert_allclose(kept.inputs, plain.inputs, atol=1e-5)
    np.testing.assert_allclose(kept.info["losses"], plain.info["losses"][4::5], 1e-5)
    assert kept.info["losses"][-1] == kept.loss < kept.info["losses"][0]
    snapshots = kept.info["snapshots"]
    np.testing.assert_array_equal(snapshots[-1], kept.inputs)
    assert len(np.unique(snapshots, axis=0)) == 4
    assert int(kept.numbers["evaluations"]) == 40


def test_a_gate_behind_the_layer_changes_no_span():
    """It multiplies columns, and the space of the images stays as it was."""
    scale = np.random.default_rng(2).uniform(0.5, 2, UNITS).astype(np.float32)
    gated = changed(update(), lambda kernel, bias: (kernel * scale, bias * scale))
    assert compiled()(gated).numbers["gradient_rank"] == EXAMPLES


def test_a_norm_in_train_mode_takes_one_from_the_rank():
    """The derivatives of a batch then add up to zero, and so does the bias."""
    found = compiled()(update(lockable=("norms/0",)))
    assert found.finite and found.numbers["gradient_rank"] < EXAMPLES


def test_an_upload_that_says_nothing_is_no_success():
    assert not compiled()(filled(update(), 0.0)).finite
    assert not compiled()(filled(update(), np.nan)).finite


def test_what_is_hidden_cannot_change_a_reconstruction():
    facts = vars(threat(examples=EXAMPLES).knowledge)
    clean, again = (compiled()(u) for u in (update(), poisoned(update(), facts)))
    assert clean.finite and not differences(again, clean)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"declared": threat(examples=3, upload="update")}, {}, "upload='update'"),
        ({"declared": threat("regress_gates", examples=3)}, {}, "'regress_gates'"),
        ({"features": 0.1}, {}, "cocktail-party has no objective that features=0.1"),
        ({"declared": threat(examples=40)}, {}, "at most 39 examples .* examples=40"),
        ({}, {"layer": "fc"}, "one dense layer .* 64 numbers .* layers/0"),
        (
            {"model": from_nnx(lambda r: LeNet(10, image_shape=SHAPE, rngs=r))},
            {},
            "convolution '.*/kernel': there the embedding .* 'dense-relu'",
        ),
        (
            {"declared": threat(examples=3, visible="layers/0/kernel+fc")},
            {},
            "'layers/0/bias' is no part of visible=.*: add 'layers/0'",
        ),
        ({}, {"steps": 0}, "steps=0"),
        ({}, {"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({}, {"variation": -1.0}, "variation must be 0 or more"),
    ],
)
def test_what_it_cannot_unmix_is_refused(changes, options, message):
    with pytest.raises(ValueError, match=message):
        cocktail_party(ground(**changes), **options)


def test_a_dense_network_of_another_activation_is_taken():
    dense = from_nnx(lambda r: Dense(10, image_shape=SHAPE, widths=(40,), rngs=r))
    assert callable(cocktail_party(ground(model=dense)))
