"""VGG: sizes as published, the formula, dropout, and the norms that a lock takes.

What is computed is a toy of two stages; VGG-16 is only counted.
"""

import jax
import numpy as np
import pytest
from by_hand import (
    ACTIVATIONS,
    convolve,
    normalise,
    parameter_count,
    parameter_shapes,
    pool,
)
from toys import check_refused, quick_jit, random_images, random_weights

from kljax.core.types import Gate
from kljax.models import NETWORKS, VGG, from_nnx

STAGES = ((1, 4), (2, 24))
GROUPS = {4: 1, 24: 2}  # of 4 and of 12 channels: the most that divide, up to 16
NORMS = tuple(f"layers/{i}/norm" for i in range(3))
IMAGES = random_images(2, 9, 6, 2)
RNG = jax.random.key(1, impl="unsafe_rbg")  # the kind that is quickest to compile
CONVOLUTIONS = 14_714_688  # weights and biases of the thirteen


def build(num_classes=3, **changes):
    options = {"image_shape": (9, 6, 2), "stages": STAGES, "hidden": (5,)}
    return lambda rngs: VGG(num_classes, rngs=rngs, **(options | changes))


@pytest.mark.parametrize(
    ("options", "count"),
    [
        # torchvision's vgg16 and vgg16_bn.
        ({"norm": None}, 138_357_544),
        ({}, 138_365_992),
        ({"norm": "group", "dropout": 0}, 138_365_992),
        # The small head: one layer behind 512 features.
        ({"norm": None, "image_shape": (32, 32, 3)}, CONVOLUTIONS + 513_000),
        # Given hidden layers are there at any size.
        (
            {"norm": None, "image_shape": (32, 32, 3), "hidden": (7,)},
            CONVOLUTIONS + 513 * 7 + 8 * 1000,
        ),
        # The paper's lock: one site of 64 channels, without norms elsewhere or with.
        ({"norm": None, "lockable": ("layers/0/norm",)}, 138_357_544),
        ({"lockable": ("layers/0/norm",)}, 138_365_992 - 128),
    ],
)
def test_published_parameter_counts(options, count):
    assert parameter_count(lambda rngs: VGG(rngs=rngs, **options)) == count


def test_sites_are_the_norms():
    sites = NETWORKS["vgg16"].all_sites
    shapes = parameter_shapes(lambda rngs: VGG(10, image_shape=(32, 32, 3), rngs=rngs))
    assert len(sites) == 13
    assert {f"{site}/scale" for site in sites} == {
        path for path in shapes if path.endswith("/scale")
    }


def formula(params, x, *, norm, act):
    params = {path: np.asarray(leaf, np.float64) for path, leaf in params.items()}
    for i in range(3):
        path = f"layers/{i}"
        x = convolve(x, params[f"{path}/conv/kernel"]) + params[f"{path}/conv/bias"]
        if norm:
            x = normalise(x, norm, GROUPS[x.shape[-1]])
            x = x * params[f"{path}/norm/scale"] + params[f"{path}/norm/bias"]
        x = act(x)
        if i != 1:
            x = pool(x, 2, 2)
    assert x.shape == (2, 2, 1, 24)
    x = act(x.reshape(2, -1) @ params["hidden/0/kernel"] + params["hidden/0/bias"])
    return x @ params["fc/kernel"] + params["fc/bias"]


@pytest.mark.parametrize(
    ("norm", "activation"), [("batch", "sigmoid"), ("group", "relu"), (None, "relu")]
)
def test_the_network_equals_the_formula(norm, activation):
    ours, numpys = ACTIVATIONS[activation]
    model = from_nnx(build(norm=norm, activation=ours, dropout=0))
    params, stats = random_weights(model)
    out = quick_jit(lambda p, s: model.apply(p, s, IMAGES, train=True))(params, stats)
    expected = formula(params, IMAGES, norm=norm, act=numpys)
    np.testing.assert_allclose(out.logits, expected, rtol=1e-4, atol=1e-4)
    assert np.ptp(expected) > 0.1


def test_gates_take_the_place_of_scale_and_shift():
    site = NORMS[1]
    plain, locked = (
        from_nnx(build(lockable=lockable, dropout=0)) for lockable in ((), (site,))
    )
    public, stats = random_weights(locked)
    gate = Gate(*random_images(2, 24))
    own = {f"{site}/scale": gate.scale, f"{site}/bias": gate.shift}
    assert parameter_shapes(build()).keys() == public.keys() | own.keys()

    @quick_jit
    def both(public, own, gate):
        return (
            locked.apply(public, stats, IMAGES, gates={site: gate}, train=True).logits,
            plain.apply(public | own, stats, IMAGES, train=True).logits,
        )

    np.testing.assert_allclose(*both(public, own, gate), rtol=1e-5, atol=1e-5)


def test_without_norms_a_lock_brings_its_own():
    bare, locked = (
        jax.eval_shape(from_nnx(build(norm=None, lockable=lockable)).init, RNG)
        for lockable in ((), NORMS[1:2])
    )
    assert bare[0].keys() == locked[0].keys()
    assert not bare[1] and locked[1].keys() == {
        f"{NORMS[1]}/{s}" for s in ("mean", "var")
    }


def test_dropout_follows_its_rng_and_training():
    model = from_nnx(build(norm=None))
    params, _ = random_weights(model)
    run = quick_jit(
        lambda rng: (
            model.apply(params, {}, IMAGES, train=True, rngs=rng).logits,
            model.apply(params, {}, IMAGES, train=False).logits,
        )
    )
    (one, still), (other, _) = (run(jax.random.key(seed)) for seed in (0, 1))
    assert np.max(np.abs(one - other)) > 0.01 and np.max(np.abs(one - still)) > 0.01
    with pytest.raises(ValueError, match="pass rngs="):
        model.apply(params, {}, IMAGES, train=True)


def test_initial_weights():
    model = from_nnx(build(num_classes=1000, hidden=(40,)))
    params, _ = quick_jit(model.init)(RNG)
    kernel = params["layers/1/conv/kernel"]  # 4 -> 24
    assert np.std(kernel) == pytest.approx((2 / (9 * 24)) ** 0.5, rel=0.06)
    assert np.std(params["fc/kernel"]) == pytest.approx(0.01, rel=0.02)
    for path in ("layers/1/conv", "layers/1/norm", "hidden/0", "fc"):
        np.testing.assert_array_equal(params[f"{path}/bias"], 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lockable": ("norm1",)}, f"'norm1'.* those are {', '.join(NORMS)}"),
        ({"lockable": ("norm1",), "norm": None}, "'norm1'.* is no norm layer"),
        ({"norm": "instance"}, "unknown norm 'instance': expected .*'batch', 'group'"),
        ({"norm": ""}, "unknown norm ''"),
        ({"image_shape": (9, 3, 2)}, r"\(9, 3, 2\) is too small.* at least 4"),
    ],
)
def test_bad_arguments_are_refused_by_name(changes, message):
    check_refused(build(**changes), message)
