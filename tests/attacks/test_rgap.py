"""R-GAP: images out of small networks that lose nothing, and out of no others."""

import functools

import jax
import numpy as np
import pytest
from poison import differences, poisoned
from toys import quick_jit, random_images, replace_fields, setting, threat
from victims import filled, hide_some

from kljax.attacks import UNKNOWN, rgap
from kljax.core.inputs import images_of
from kljax.core.types import Private, Public
from kljax.defences import none
from kljax.federated.clients import one_step
from kljax.models import CNN6, NETWORKS, LeNet, from_nnx
from kljax.models.cnn6 import Window, chain
from kljax.models.losses import cross_entropy, squared_error
from kljax.threat import observe

SHAPE = (8, 8, 3)
# cnn6's first layers; every layer has more equations than unknowns.
WINDOWS = (Window(12, 4, 2, 2), Window(20, 3, 2, 1))


@functools.cache
def made(name, classes):
    if name == "lenet":
        model = from_nnx(lambda rngs: LeNet(classes, image_shape=SHAPE, rngs=rngs))
        return model, NETWORKS["lenet"].chain
    model = from_nnx(
        lambda rngs: CNN6(classes, image_shape=SHAPE, windows=WINDOWS, rngs=rngs)
    )
    return model, chain(WINDOWS)


def ground(name="cnn", classes=2, declared=None, **changes):
    model, layers = made(name, classes)
    here = setting(
        declared or threat(),
        none(),
        model=model,
        inputs=images_of(SHAPE),
        num_classes=classes,
        sites=(),
        chain=layers,
    )
    return replace_fields(here, **changes)


@functools.cache
def compiled(name, classes):
    model, _ = made(name, classes)
    attack = rgap(ground(name, classes))
    return (
        quick_jit(one_step(model, cross_entropy, none(), train=True)),
        quick_jit(lambda view: attack(jax.random.key(1), view)),
    )


def attacked(name, classes, seed=0, label=0, change=lambda update: update):
    """Runs a client and attacks its update, changed; PSNR, and what was found."""
    generator = np.random.default_rng(seed)
    model, _ = made(name, classes)
    shapes, stats = jax.eval_shape(model.init, jax.random.key(0))
    params = {}
    for path, leaf in sorted(shapes.items()):
        fan_in = np.prod(shapes[path.replace("bias", "kernel")].shape[:-1])
        draw = generator.uniform(-1, 1, leaf.shape) * fan_in**-0.5
        params[path] = draw.astype(np.float32)
    step, attack = compiled(name, classes)
    images = random_images(1, *SHAPE, seed=seed)
    target = np.eye(classes, dtype=np.float32)[[label]]
    update = step(jax.random.key(0), Public(params), stats, Private(), images, target)
    found = attack(observe(threat(), change(update)))
    mse = np.mean((found.inputs - images) ** 2)
    return 10 * np.log10(1 / mse), found


def noisy(update):
    generator = np.random.default_rng(9)
    return update._replace(
        sent=jax.tree.map(
            lambda g: g + 0.1 * np.float32(generator.standard_normal(g.shape)),
            update.sent,
        )
    )


# The paper's own network and images give a PSNR of 49.
@pytest.mark.parametrize(
    ("name", "classes", "label", "seed"),
    [
        ("cnn", 2, 1, 0),
        # Each compiles a program of its own.
        *(
            pytest.param(*case, seed, marks=pytest.mark.slow)
            for case in (("cnn", 2, 0), ("cnn", 5, 3), ("lenet", 5, 3))
            for seed in (0, 1)
        ),
    ],
)
def test_the_image_is_found(name, classes, label, seed):
    psnr, found = attacked(name, classes, seed, label)
    assert psnr > 40
    assert found.finite and found.loss < 1e-9
    assert found.numbers["evaluations"] == 0
    np.testing.assert_array_equal(found.labels, [label])
    for rank in found.info["ranks"].values():
        np.testing.assert_allclose(rank, 1, atol=1e-3)


# Without biases, and with them: two ways into the network.
@pytest.mark.parametrize(("name", "classes"), [("cnn", 2), ("lenet", 5)])
def test_noise_takes_the_image_away(name, classes):
    psnr, found = attacked(name, classes, change=noisy)
    assert not psnr > 15
    assert not found.loss < 0.1


@pytest.mark.parametrize("value", (0.0, np.nan))
@pytest.mark.parametrize(("name", "classes"), [("cnn", 2), ("lenet", 5)])
def test_a_gradient_of_nothing_is_told_apart_from_a_success(name, classes, value):
    _, found = attacked(name, classes, change=lambda update: filled(update, value))
    assert not found.finite
    assert found.labels.tolist() == [UNKNOWN]


def test_a_gradient_that_is_hidden_in_part_is_a_reported_failure():
    def hide(update):
        return update._replace(sent=hide_some(update.sent))

    assert not attacked("cnn", 2, change=hide)[1].finite


def test_what_is_hidden_cannot_change_a_reconstruction():
    facts = vars(threat().knowledge)
    _, clean = attacked("cnn", 2)
    _, again = attacked("cnn", 2, change=lambda update: poisoned(update, facts))
    assert clean.finite and not differences(again, clean)


def test_too_few_filters_are_seen_in_the_rank():
    """One filter of a convolution has fewer equations than the image has pixels."""
    windows = (Window(2, 4, 2, 2),)
    model = from_nnx(
        lambda rngs: CNN6(2, image_shape=SHAPE, windows=windows, rngs=rngs)
    )
    attack = rgap(ground(model=model, chain=chain(windows)))
    generator = np.random.default_rng(0)
    params = {
        path: np.float32(0.2 * generator.standard_normal(leaf.shape))
        for path, leaf in jax.eval_shape(model.init, jax.random.key(0))[0].items()
    }
    step = one_step(model, cross_entropy, none(), train=True)
    images = random_images(1, *SHAPE)

    def run(params):
        target = np.eye(2, dtype=np.float32)[[0]]
        update = step(jax.random.key(0), Public(params), {}, Private(), images, target)
        return attack(jax.random.key(1), observe(threat(), update))

    found = quick_jit(run)(params)
    assert found.info["ranks"]["layers/0"] < 0.9
    assert np.mean((found.inputs - images) ** 2) > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chain": ()}, "walks a chain .* this network is none"),
        ({"declared": threat(examples=2)}, "one example, .* examples=2"),
        ({"declared": threat("regress_gates")}, "secret='regress_gates'.*'peeling'"),
        ({"declared": threat("unit", "joint")}, "label strategy 'joint' optimises"),
        ({"draw_gates": lambda rng: {}}, "rgap knows no gates"),
        ({"loss": squared_error}, "without bias under cross-entropy alone; 'fc'"),
        ({"features": 0.1}, "rgap has no objective that features=0.1"),
        (
            {"model": from_nnx(lambda r: LeNet(lockable=("norm1",), rngs=r))},
            "norm layers",
        ),
    ],
)
def test_what_it_cannot_walk_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        rgap(ground(**changes))
