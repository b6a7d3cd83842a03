"""Peeling to the end: the image of a locked network, where it can be and where not."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from poison import differences, poisoned
from toys import quick_jit, replace_fields, setting, threat
from victims import hide_some

from kljax import LeakConfig, leak
from kljax.attacks.closed_form import gate_peeling as closed_peeling
from kljax.attacks.closed_form.below_lock import Below
from kljax.attacks.presets import peeled_image
from kljax.attacks.presets import peeling as presets_peeling
from kljax.core.inputs import images_of
from kljax.core.types import Private, Public
from kljax.defences import keylock
from kljax.defences.lock import ACTIVATIONS, key_lock
from kljax.federated.clients import one_step
from kljax.models import CNN6, NETWORKS, LeNet, from_nnx
from kljax.models.losses import cross_entropy
from kljax.threat import View, observe

SHAPE, KEY_SIZE = (16, 16, 3), 16
TRAIN = {"victim_norm": "train", "attacker_norm": "train"}
FACTS = {
    "unit": {},
    "known": {"private_key": "known", "lock_weights": "known"},
    "fixed_random": {"lock_weights": "known"},
    "peel": {},
}


@functools.cache
def made(norm="norm1", signed=False):
    lockable = () if norm is None else (norm,)
    model = from_nnx(
        lambda rngs: LeNet(10, image_shape=SHAPE, lockable=lockable, rngs=rngs)
    )
    activation = ACTIVATIONS["signed" if signed else "relu"]
    return model, key_lock(("norm1",), (12,), size=KEY_SIZE, activation=activation)


def ground(strategy="unit", norm="norm1", signed=False, **changes):
    model, lock = made(norm, signed)

    def draw_gates(rng):
        return lock.gates(lock.init(rng), lock.private_key(rng))

    here = setting(
        threat(strategy, **TRAIN, **FACTS[strategy]),
        keylock(lock),
        model=model,
        inputs=images_of(SHAPE),
        num_classes=10,
        sites=(("norm1", 12),),
        chain=NETWORKS["lenet"].chain,
        draw_gates=None if strategy == "unit" else draw_gates,
    )
    return replace_fields(here, **changes)


@functools.cache
def compiled(strategy, norm="norm1", signed=False):
    model, lock = made(norm, signed)
    here = ground(strategy, norm, signed)
    step = one_step(model, cross_entropy, keylock(lock), train=True)
    attack = peeled_image(here)
    return quick_jit(step), quick_jit(
        lambda update: attack(jax.random.key(1), observe(here.threat, update))
    )


def picture(seed):
    """A smooth image [1, 16, 16, 3], coloured, in [0.1, 0.9]."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:16, :16] / 16
    image = np.zeros(SHAPE)
    for i, j in itertools.product(range(4), repeat=2):
        wave = np.cos(np.pi * i * y)[..., None] * np.cos(np.pi * j * x)[..., None]
        image += wave * generator.normal(size=3) / (1 + i + j)
    low, high = image.min(), image.max()
    return np.float32(0.1 + 0.8 * (image - low) / (high - low))[None]


def attacked(
    strategy,
    norm="norm1",
    seed=0,
    locked=True,
    change=lambda g: g,
    blind=False,
    signed=False,
):
    """Runs a client with PyTorch's initialisation, and attacks what it sent."""
    generator = np.random.default_rng(seed)
    model, lock = made(norm, signed)
    shapes, stats = jax.eval_shape(model.init, jax.random.key(0))

    def uniform(shape, low, high):
        return generator.uniform(low, high, shape).astype(np.float32)

    params = {}
    for path, leaf in sorted(shapes.items()):
        kernel = shapes[path.replace("bias", "kernel")].shape
        limit = np.prod(kernel[:-1]) ** -0.5
        params[path] = uniform(leaf.shape, -limit, limit)
    stats = {path: np.ones(leaf.shape, np.float32) for path, leaf in stats.items()}
    weights = jax.tree.map(
        lambda leaf: uniform(leaf.shape, -0.25, 0.25),
        jax.eval_shape(lock.init, jax.random.key(0)),
    )
    private = Private(generator.random(KEY_SIZE, np.float32), weights)
    step, attack = compiled(strategy, norm, signed)
    images = picture(seed)
    target = np.eye(10, dtype=np.float32)[[seed % 10]]
    client = private if locked else Private()
    update = step(jax.random.key(0), Public(params), stats, client, images, target)
    update = update._replace(sent=Public(change(update.sent.model)))
    if blind:
        update = poisoned(update, vars(ground(strategy, norm).threat.knowledge))
    return images[0], attack(update)


def likeness(found, image):
    """Correlation, which is indifferent to brightness and contrast."""
    return np.corrcoef(np.ravel(found.inputs[0]), image.ravel())[0, 1]


@pytest.mark.parametrize("seed", (0, 1))
def test_without_a_norm_the_image_is_exact(seed):
    image, found = attacked("unit", None, seed, locked=False)
    assert np.abs(found.inputs[0] - image).max() < 1e-3 and found.loss < 1e-10
    assert found.numbers["evaluations"] == 0
    np.testing.assert_array_equal(found.labels, [seed])


@pytest.mark.parametrize("seed", (0, 1))
def test_below_a_norm_all_but_brightness_and_contrast_is_found(seed):
    image, found = attacked("unit", "norm1", seed, locked=False)
    assert likeness(found, image) > 0.99 and found.loss < 1e-10
    assert np.all((found.inputs >= 0) & (found.inputs <= 1))


@pytest.mark.slow
@pytest.mark.parametrize("seed", (0, 1, 2))
def test_below_a_lock_the_image_is_found_without_its_private_key(seed):
    """As well as with it, and far better than by a guess, which is told by the loss."""
    scores, losses = {}, {}
    for strategy in ("known", "peel", "fixed_random"):
        image, found = attacked(strategy, seed=seed)
        scores[strategy], losses[strategy] = likeness(found, image), found.loss
        assert bool(found.finite)
    assert scores["peel"] > 0.85 and abs(scores["peel"] - scores["known"]) < 0.05
    assert scores["fixed_random"] < scores["peel"] - 0.2
    assert losses["known"] < 1e-8 and losses["peel"] < 1e-5 < losses["fixed_random"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", (0, 1, 2))
def test_signs_of_scales_are_found_up_to_one_for_all(seed):
    """An image and its negative, under opposite scales, have the same gradient."""
    image, known = attacked("known", seed=seed, signed=True)
    _, found = attacked("peel", seed=seed, signed=True)
    private = known.info["secret"]
    _, lock = made("norm1", True)
    true = lock.gates(private.trainable, private.secret)["norm1"].scale
    peeled = found.info["secret"].gates["norm1"].scale
    assert np.any(true < 0) and np.any(true > 0)
    relative = peeled / true
    np.testing.assert_allclose(relative, np.sign(relative[0]), rtol=5e-2)
    assert likeness(known, image) > 0.95
    assert np.sign(relative[0]) * likeness(found, image) > 0.95


@pytest.mark.parametrize(
    ("strategy", "signed", "told"),
    [
        ("known", False, [0.0]),
        ("unit", False, [0.0]),
        ("peel", False, [1e-5]),
        ("peel", True, [1e-5, 1e-5]),  # for the signs, too
    ],
)
def test_the_epsilon_is_told_where_scales_were_peeled(
    strategy, signed, told, monkeypatch
):
    """A scale that is known is right, and one that was peeled leaves it out."""
    seen = []

    def spied(step, place, gate, grad, kernel, epsilon):
        seen.append(epsilon)
        nothing = jnp.zeros(kernel.shape[-1], kernel.dtype)
        return Below(jnp.zeros(SHAPE, kernel.dtype), nothing, jnp.asarray(0.25))

    monkeypatch.setattr(presets_peeling, "solve_below", spied)
    monkeypatch.setattr(closed_peeling, "solve_below", spied)
    here = ground(strategy, signed=signed)
    view = jax.eval_shape(lambda: observed(strategy, signed))
    found = jax.eval_shape(
        lambda view: peeled_image(here)(jax.random.key(1), view), view
    )
    assert seen == told and found.inputs.shape == (1, *SHAPE)


def observed(strategy, signed):
    """What the server sees of a client, for its shapes."""
    model, lock = made(signed=signed)
    step = one_step(model, cross_entropy, keylock(lock), train=True)
    rng = jax.random.key(0)
    params, stats = model.init(rng)
    private = Private(lock.private_key(rng), lock.init(rng))
    update = step(
        rng, Public(params), stats, private, jnp.zeros((1, *SHAPE)), jnp.zeros((1, 10))
    )
    return observe(ground(strategy, signed=signed).threat, update)


def test_its_loss_is_the_mean_of_the_layers_shares():
    _, found = attacked("fixed_random")
    residuals = found.info["residuals"]
    assert set(residuals) == {"conv1", "conv2", "conv3"}
    np.testing.assert_allclose(found.loss, np.mean([*residuals.values()]), rtol=1e-5)


def test_a_dense_network_is_peeled_without_a_lock_and_refused_with_one():
    config = dict(model="dense", image_size=8, attack="peeling", victims=2, init=0.0)
    (arm,) = leak(LeakConfig(arms=("none",), **config)).arms
    found = arm.attacked.reconstruction
    assert found.inputs.shape == (2, 1, 8, 8, 3) and np.all(found.loss < 1e-10)
    with pytest.raises(ValueError, match="first layer's norm, and layers/0 is none"):
        leak(LeakConfig(arms=("keylock/peel",), **config))


@pytest.mark.parametrize("labels", ("joint", "given"))
def test_labels_are_taken_as_the_strategy_says(labels):
    facts = {"labels": "known"} if labels == "given" else {}
    here = ground(threat=threat("unit", labels, **TRAIN, **facts))
    if labels == "joint":
        with pytest.raises(ValueError, match="'joint' optimises"):
            peeled_image(here)
    else:
        peeled_image(here)


def test_noise_takes_the_image_away():
    def noisy(grads):
        generator = np.random.default_rng(9)
        return {
            path: np.asarray(g) + 0.1 * generator.standard_normal(g.shape, np.float32)
            for path, g in grads.items()
        }

    image, found = attacked("peel", change=noisy)
    assert abs(likeness(found, image)) < 0.5 and found.loss > 0.1


@pytest.mark.parametrize("value", (0.0, np.nan))
@pytest.mark.parametrize("strategy", ("peel", "known"))
def test_a_gradient_of_nothing_is_a_reported_failure(strategy, value):
    def nothing(grads):
        return jax.tree.map(lambda leaf: np.full_like(leaf, value), grads)

    _, found = attacked(strategy, change=nothing)
    assert not bool(found.finite)


@pytest.mark.parametrize("strategy", ("peel", "known"))
def test_what_is_hidden_cannot_change_it(strategy):
    _, clean = attacked(strategy)
    _, again = attacked(strategy, blind=True)
    assert bool(clean.finite)
    assert not differences(again, clean)


def without_bias():
    return from_nnx(lambda rngs: CNN6(10, image_shape=(32, 32, 3), rngs=rngs))


@pytest.mark.parametrize(
    ("norm", "changes", "message"),
    [
        ("norm1", {"chain": ()}, "walks a chain of layers, and this network is none"),
        ("norm1", {"threat": threat(examples=2, **TRAIN)}, "examples=2"),
        ("norm1", {"threat": threat(upload="update", **TRAIN)}, "upload='update'"),
        ("norm1", {"threat": threat("regress_gates", **TRAIN)}, "'regress_gates' opt"),
        ("norm1", {"threat": threat()}, "victim_norm='train'"),
        ("norm1", {"features": 0.1}, "peeling has no objective"),
        (
            None,
            {"model": without_bias(), "chain": NETWORKS["cnn6"].chain},
            "peeling needs a bias in the layer 'fc'.*'rgap'",
        ),
        ("norm2", {}, "norm of the first layer alone.*norm2"),
    ],
)
def test_what_cannot_be_peeled_to_the_end_is_refused(norm, changes, message):
    with pytest.raises(ValueError, match=message):
        peeled_image(ground(norm=norm, **changes))


def test_a_gradient_that_is_hidden_in_part_is_a_reported_failure():
    _, found = attacked("known", change=hide_some)
    assert not found.finite


def test_gates_that_nobody_told_of_beforehand_are_refused_in_the_attack():
    """The server does not know what a lock's gates are like, and there are some."""
    here = ground("known", norm=None, draw_gates=None)
    attack = peeled_image(here)
    _, lock = made(None)
    shapes = jax.eval_shape(
        lambda rng: (
            here.task.model.init(rng)[0],
            lock.private_key(rng),
            lock.init(rng),
        ),
        jax.random.key(0),
    )

    def run(params, private_key, weights):
        view = View(Public(params), {}, Public(params), *(5 * [None]))
        view = view._replace(private_key=private_key, lock_weights=weights)
        return attack(jax.random.key(0), view)

    with pytest.raises(ValueError, match="first layer's norm, and norm1 is none"):
        jax.eval_shape(run, *shapes)
