"""Learning to Invert: its parts against slow forms; what it can learn, and cannot."""

import functools
import inspect
import itertools
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import linear_sum_assignment
from tiny_studies import quick_compilation
from toys import quick_jit, random_weights, replace_fields, setting, threat
from victims import digits

from kljax.attacks import Attacker
from kljax.attacks.drivers import descend_on_batches
from kljax.attacks.drivers.learning import Learned
from kljax.attacks.hashing import deal, feature_hashing
from kljax.attacks.presets import learn_inverter, learned
from kljax.attacks.presets.inverters import draw_layers, read_entries, standardise
from kljax.attacks.unordered_loss import unordered_error
from kljax.core.inputs import images_of
from kljax.core.types import Private, Public
from kljax.defences import none
from kljax.federated.clients import one_step
from kljax.models import Dense, from_nnx
from kljax.models.losses import cross_entropy
from kljax.threat import observe

SHAPE, CLASSES = (8, 8, 1), 10
SIZES = {"width": 64, "hashed": 256, "uploads": 32, "learning_rate": 2e-3}
TRAINED = {"steps": 150, "restarts": 1, **SIZES}
# Two examples mix in one upload, and are told apart later.
STEPS = {1: 150, 2: 900}


def test_hashing_is_that_of_a_slow_loop():
    entries, size = 11, 4
    values = np.random.default_rng(0).standard_normal(entries).astype(np.float32)
    order, signs = (np.asarray(x) for x in deal(entries))
    assert sorted(order) == list(range(entries)) and set(signs) == {-1.0, 1.0}
    slow = np.zeros(size)
    for number in range(entries):
        slow[number % size] += signs[number] * values[order[number]]
    found = feature_hashing(entries, size)(values)
    np.testing.assert_allclose(found, slow, rtol=1e-5, atol=1e-6)


def test_few_numbers_are_not_hashed():
    values = np.arange(5.0)
    assert feature_hashing(5, 5)(values) is values
    with pytest.raises(ValueError, match="1 bucket at least, got 0"):
        feature_hashing(5, 0)


@pytest.mark.parametrize("count", (1, 3, 4, 6))
def test_the_error_is_that_of_the_best_of_all_orders(count):
    generator = np.random.default_rng(count)
    found, truths = generator.random((2, count, 2, 3, 1)).astype(np.float32)
    orders = [
        sum(np.mean((found[i] - truths[j]) ** 2) for i, j in enumerate(order)) / count
        for order in itertools.permutations(range(count))
    ]
    value, slope = jax.jit(jax.value_and_grad(unordered_error))(found, truths)
    assert float(value) == pytest.approx(min(orders), rel=1e-5)
    flat = found.reshape(count, 1, -1) - truths.reshape(1, count, -1)
    _, columns = linear_sum_assignment(np.mean(flat**2, axis=-1))
    expected = 2 * (found - truths[columns]) / found.size
    np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-7)


def test_entries_are_in_units_of_their_tensor():
    entries = np.random.default_rng(0).standard_normal((50, 5)).astype(np.float32)
    entries = entries * np.array([1, 1, 1, 1e-3, 0], np.float32) + 7
    centre, scale = standardise(entries, [3, 1, 1])
    np.testing.assert_allclose(centre, entries.mean(0), rtol=1e-5)
    spread = np.sqrt(np.mean((entries[:, :3] - entries[:, :3].mean(0)) ** 2))
    np.testing.assert_allclose(scale[:3], 1 / spread, rtol=1e-3)
    assert scale[4] == 0  # the same in all uploads
    np.testing.assert_allclose(scale[3], 1 / np.std(entries[:, 3]), rtol=0.05)


def test_layers_are_drawn_apart_and_as_pytorch_draws():
    (kernel, bias), (second, _) = draw_layers(jax.random.key(0), (9, 9, 4))
    assert abs(kernel).max() <= 1 / 3 and abs(kernel).max() > 0.3
    assert not np.allclose(kernel[0], bias)
    assert not np.allclose(kernel[:, :4], second)


# --- what is trained, and on what ----------------------------------------------------


def test_the_descent_is_that_of_a_slow_loop():
    """The best of its points is in the middle; its weights are kept."""
    aims, held_out, rate = np.float32([3, 4, 5, 6, 0, 0, 0]), np.float32(5), 0.3
    found = descend_on_batches(
        lambda weight, aim: (weight - aim) ** 2,
        jnp.float32(0),
        optax.sgd(rate),
        lambda number: (jnp.asarray(aims)[number],),
        (held_out,),
        steps=7,
        points=3,
    )
    weight, weights, training, validation = 0.0, [], [], []
    for number, aim in enumerate(aims, 1):
        error = (weight - aim) ** 2
        weight -= rate * 2 * (weight - aim)
        if number in (2, 4, 7):
            weights.append(weight)
            training.append(error)
            validation.append((weight - held_out) ** 2)
    np.testing.assert_array_equal(found.steps, [2, 4, 7])
    np.testing.assert_allclose(found.training, training, rtol=1e-5)
    np.testing.assert_allclose(found.validation, validation, rtol=1e-4)
    assert found.best == np.argmin(validation) == 1
    assert float(found.weights) == pytest.approx(weights[1], rel=1e-5)


class Seen(NamedTuple):
    """What `read_entries` reads of a view."""

    grads: dict
    visible: None = None


def made_up(rng, part):
    """An upload of five entries in two tensors, of two images that say their part."""
    entries = jax.random.normal(rng, (5,)) * jnp.array([1, 1, 9, 9, 9]) + 2
    images = jax.random.uniform(jax.random.fold_in(rng, 1), (2, *SHAPE))
    return Seen({"a": entries[:2], "b": entries[2:]}), images + (part == "validation")


@functools.cache
def caught(shuffled=False):
    """Learns from `made_up`: what the driver is given, and what is returned."""
    given = []

    def catch(*args, **options):
        given.append(inspect.signature(descend_on_batches).bind(*args, **options))
        return Learned(args[1], *4 * [jnp.zeros(1)])

    options = {"width": 6, "hashed": 3, "uploads": 4, "learning_rate": 0.1}
    name = "kljax.attacks.presets.inverters.descend_on_batches"
    with mock.patch(name, catch), quick_compilation():
        found = learn_inverter(
            ground(2),
            made_up,
            jax.random.key(3),
            steps=8,
            restarts=1,
            shuffled=shuffled,
            **options,
        )
    return SimpleNamespace(**given[0].arguments), found


@functools.cache
def draw_batch(shuffled=False):
    return quick_jit(caught(shuffled)[0].draw_batch)


def test_no_upload_is_simulated_twice_and_those_held_out_are_of_other_examples():
    parts, _ = caught()
    assert (parts.steps, parts.points) == (8, 20)
    batches = [draw_batch()(n) for n in range(3)]
    for entries, images in batches:
        assert entries.shape == (4, 5) and images.shape == (4, 2, *SHAPE)
        assert np.max(images) < 1
    assert parts.held_out[0].shape == (256, 5) and np.min(parts.held_out[1]) >= 1
    entries = np.concatenate([parts.held_out[0], *(batch[0] for batch in batches)])
    assert len(np.unique(entries.round(5), axis=0)) == len(entries)


@pytest.mark.slow
def test_the_control_has_the_images_of_another_upload():
    (entries, images), (same, others) = draw_batch()(1), draw_batch(shuffled=True)(1)
    np.testing.assert_array_equal(entries, same)
    for place in range(4):
        np.testing.assert_array_equal(others[place], images[place - 1])


def test_its_error_is_that_of_a_slow_form():
    """Standardised and hashed entries, through three layers, in the better order."""
    parts, found = caught()
    entries, images = (np.asarray(x) for x in draw_batch()(0))
    order, signs = (np.asarray(x) for x in deal(5))
    layers = [[np.asarray(x) for x in layer] for layer in parts.weights]
    assert [kernel.shape for kernel, _ in layers] == [(3, 6), (6, 6), (6, 128)]
    total = 0.0
    for one, truths in zip(entries, images, strict=True):
        standard = (one - np.asarray(found.centre)) * np.asarray(found.scale)
        x = np.zeros(3)
        for number in range(5):
            x[number % 3] += signs[number] * standard[order[number]]
        for kernel, bias in layers[:-1]:
            x = np.maximum(x @ kernel + bias, 0)
        x = 1 / (1 + np.exp(-(x @ layers[-1][0] + layers[-1][1])))
        first, second = x.reshape(2, *SHAPE)
        total += min(
            np.mean((np.stack(guess) - truths) ** 2)
            for guess in ((first, second), (second, first))
        )
    value = quick_jit(parts.error)(parts.weights, entries, images)
    assert float(value) == pytest.approx(total / 4, rel=1e-4)


def test_adams_rate_falls_to_a_tenth_for_the_last_quarter():
    """Of a gradient that stays the same Adam's move is the rate itself."""
    optimiser, weight = caught()[0].optimiser, jnp.float32(1)
    state, moves = optimiser.init(weight), []
    for _ in range(8):
        move, state = optimiser.update(jnp.float32(2), state, weight)
        moves.append(float(move))
    np.testing.assert_allclose(moves, [-0.1] * 6 + [-0.01] * 2, rtol=1e-4)


# --- a network of its own ----------------------------------------------------------


@functools.cache
def model():
    return from_nnx(
        lambda rngs: Dense(CLASSES, image_shape=SHAPE, widths=(12,), rngs=rngs)
    )


def ground(examples=1, inverter=None, **changes):
    here = setting(
        threat(examples=examples),
        none(),
        model=model(),
        inputs=images_of(SHAPE),
        num_classes=CLASSES,
    )
    return replace_fields(here, **changes)._replace(attacker=Attacker(learned=inverter))


@functools.cache
def network():
    return random_weights(model(), scale=0.3)


def drawing(examples, noise):
    """Makes what draws an upload of the 1,200 public digits, the last 200 held out."""
    images, targets = digits(1300)
    step = one_step(model(), cross_entropy, none(), train=True)
    params, stats = network()

    def draw(rng, part):
        first, last = {"training": (100, 1100), "validation": (1100, 1300)}[part]
        rng_chosen, rng_noise = jax.random.split(rng)
        chosen = jax.random.choice(rng_chosen, last - first, (examples,), replace=False)
        chosen = jnp.asarray(first) + chosen
        own, aims = jnp.asarray(images)[chosen], jnp.asarray(targets)[chosen]
        update = step(rng_noise, Public(params), stats, Private(), own, aims)
        update = update._replace(sent=disturb(rng_noise, update.sent, noise))
        return observe(threat(examples=examples), update), own

    return draw


def disturb(rng, sent, noise):
    leaves, tree = jax.tree.flatten(sent)
    rngs = jax.random.split(rng, len(leaves))
    return jax.tree.unflatten(
        tree,
        [
            x + noise * jax.random.normal(r, x.shape)
            for x, r in zip(leaves, rngs, strict=True)
        ],
    )


@functools.cache
def training(examples, shuffled=False):
    def run(noise):
        return learn_inverter(
            ground(examples),
            drawing(examples, noise),
            jax.random.key(3),
            **TRAINED | {"steps": STEPS[examples]},
            shuffled=shuffled,
        )

    return jax.jit(run)


@functools.cache
def inverter(examples=1, noise=0.0, shuffled=False):
    return training(examples, shuffled)(noise)


@functools.cache
def victims(examples=1):
    """The first 32 digits, which are no public ones: views, images [32, B, ...]."""
    images, targets = (x[: 32 * examples] for x in digits(100))
    step = one_step(model(), cross_entropy, none(), train=True)
    params, stats = network()

    def upload(images, targets):
        update = step(
            jax.random.key(0), Public(params), stats, Private(), images, targets
        )
        return observe(threat(examples=examples), update)

    images, targets = (x.reshape(-1, examples, *x.shape[1:]) for x in (images, targets))
    return quick_jit(jax.vmap(upload))(images, targets), images


def errors(found, examples=1, views=None):
    """Attacks all victims: mean squared error of each image in the best order."""
    seen, images = victims(examples)
    attack = learned(ground(examples, found), **TRAINED)
    run = quick_jit(jax.vmap(lambda view: attack(jax.random.key(1), view).inputs))
    guesses = run(seen if views is None else views)
    return float(jnp.mean(jax.vmap(unordered_error)(guesses, images)))


def floor(examples=1):
    """The error of the mean public image."""
    public, (_, images) = digits(1300)[0][100:], victims(examples)
    return float(np.mean((public.mean(0) - images) ** 2))


@pytest.mark.parametrize("examples", (1, pytest.param(2, marks=pytest.mark.slow)))
def test_it_learns_to_invert_an_undefended_network(examples):
    found = inverter(examples)
    assert errors(found, examples) < floor(examples) / 2
    assert found.training[-1] < 0.5 * found.training[0]
    best = int(found.best)
    assert best == int(np.argmin(found.validation))
    # Of those held out, which it has not seen either: the same is left.
    held_out = float(found.validation[best])
    assert errors(found, examples) == pytest.approx(held_out, rel=0.5)


def test_it_learns_nothing_from_noise_but_what_digits_look_like():
    found = inverter(noise=1e4)
    noisy, _ = victims()
    noisy = noisy._replace(grads=disturb(jax.random.key(9), noisy.grads, 1e4))
    assert 0.9 * floor() < errors(found, views=noisy) < 1.3 * floor()
    assert float(found.validation[found.best]) > 0.8 * floor()


@pytest.mark.slow
def test_it_learns_nothing_from_uploads_of_other_images():
    found = inverter(shuffled=True)
    assert 0.9 * floor() < errors(found) < 1.3 * floor()
    assert float(found.validation[found.best]) > 0.8 * floor()


def test_a_hidden_tensor_that_is_poisoned_changes_nothing():
    seen, _ = victims()
    visible = jax.tree.map(lambda x: jnp.ones(x.shape, bool), seen.grads)
    name = "layers/0/kernel"
    visible.model[name] = ~visible.model[name]
    masked = seen._replace(visible=visible)
    poison = dict(seen.grads.model) | {name: jnp.full_like(seen.grads.model[name], 7)}
    other = masked._replace(grads=Public(poison))
    nothing = dict(poison) | {name: jnp.full_like(poison[name], jnp.nan)}
    hidden = masked._replace(grads=Public(nothing))
    found = [errors(inverter(), views=views) for views in (masked, other, hidden)]
    assert found[0] == found[1] == found[2] != errors(inverter())


def test_of_a_view_it_reads_gradients_alone():
    seen = jax.tree.map(lambda x: x[0], victims()[0])
    told = seen._replace(
        targets=jnp.ones((1, CLASSES)), private_key=jnp.ones(3), lock_weights=()
    )
    np.testing.assert_array_equal(read_entries(seen), read_entries(told))


def test_a_broken_gradient_is_grey_and_reported():
    seen = jax.tree.map(lambda x: x[0], victims()[0])
    broken = seen._replace(grads=jax.tree.map(lambda x: x * jnp.nan, seen.grads))
    attack = learned(ground(1, inverter()), **TRAINED)
    found = quick_jit(attack)(jax.random.key(1), broken)
    assert not bool(found.finite) and (np.asarray(found.inputs) == 0.5).all()
    np.testing.assert_array_equal(found.numbers["validation_error"], found.loss)


@functools.cache
def breaking():
    """Learns from images of which a share is not finite."""
    whole = drawing(1, 0.0)

    def run(share):
        def draw(rng, part):
            view, images = whole(rng, part)
            lost = jax.random.uniform(jax.random.fold_in(rng, 9)) < share
            return view, jnp.where(lost & (part == "training"), jnp.nan, images)

        options = TRAINED | {"steps": 40}
        return learn_inverter(ground(), draw, jax.random.key(3), **options)

    return quick_jit(run)


def test_of_a_training_that_breaks_what_was_before_is_kept():
    found = breaking()(0.003)
    sound = np.isfinite(found.validation)
    assert sound[0] and not sound[-1]
    least = np.nanmin(np.asarray(found.validation))
    assert float(found.validation[found.best]) == least
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.layers))


def test_a_training_that_was_never_sound_is_reported():
    found = breaking()(1.0)
    assert not np.isfinite(found.validation).any()
    one = jax.tree.map(lambda x: x[0], victims()[0])
    attack = learned(ground(1, found), **TRAINED)
    assert not bool(quick_jit(attack)(jax.random.key(1), one).finite)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"restarts": 2}, "1 step at least and 1 restart, got .* restarts=2"),
        ({"steps": 0}, "got steps=0"),
        ({"width": 0}, "width must be 1 or more, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"shuffled": True, "uploads": 1}, "needs uploads of 2 or more"),
    ],
)
def test_what_it_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        learned(ground(), **(TRAINED | options))


def test_before_anything_is_learned_nothing_is_attacked():
    attack = learned(ground(), **TRAINED)
    with pytest.raises(ValueError, match="needs what its attacker has learned"):
        attack(jax.random.key(0), jax.tree.map(lambda x: x[0], victims()[0]))
