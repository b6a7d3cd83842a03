"""The ConvNet of Inverting Gradients: its size, its formula, its sites."""

import jax
import numpy as np
import pytest
from by_hand import convolve, normalise, parameter_count, parameter_shapes, pool
from flax import nnx
from toys import quick_jit, random_images, random_weights

from kljax.models import NETWORKS, ConvNet, from_nnx, site_widths

NETWORK = NETWORKS["convnet64"]


def test_it_has_the_published_2_9_million_parameters():
    shapes = parameter_shapes(lambda rngs: NETWORK.factory(10, rngs=rngs))
    channels = (3, 64, 128, 128, 256, 256, 256, 256, 256)
    for i, pair in enumerate(zip(channels[:-1], channels[1:], strict=True)):
        assert shapes[f"layers/{i}/conv/kernel"] == (3, 3, *pair)
        assert shapes[f"layers/{i}/conv/bias"] == pair[1:]
        assert shapes[f"layers/{i}/norm/scale"] == pair[1:]
    assert shapes["fc/kernel"] == (36 * 64, 10)
    assert parameter_count(lambda rngs: NETWORK.factory(10, rngs=rngs)) == 2_904_970


def test_its_site_is_the_norm_behind_the_first_convolution():
    model = from_nnx(lambda rngs: ConvNet(10, lockable=NETWORK.sites, rngs=rngs))
    assert site_widths(model, NETWORK.sites, (32, 32, 3)) == (64,)
    assert NETWORK.sites == ("layers/0/norm",) and len(NETWORK.all_sites) == 8
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    assert "layers/0/norm/scale" not in params and "layers/1/norm/scale" in params


def test_the_network_equals_the_formula():
    model = from_nnx(
        lambda rngs: ConvNet(3, image_shape=(10, 9, 2), width=2, rngs=rngs)
    )
    params, stats = random_weights(model)
    images = random_images(2, 10, 9, 2)
    out = quick_jit(lambda p, s: model.apply(p, s, images, train=True))(params, stats)
    x, p = images, {name: np.asarray(v, np.float64) for name, v in params.items()}
    for i in range(8):
        path = f"layers/{i}"
        x = convolve(x, p[f"{path}/conv/kernel"]) + p[f"{path}/conv/bias"]
        x = normalise(x, "batch", 1) * p[f"{path}/norm/scale"] + p[f"{path}/norm/bias"]
        x = np.maximum(x, 0)
        if i in (5, 7):
            x = pool(x, 3, 3)
    assert x.shape == (2, 1, 1, 8)
    expected = x.reshape(2, -1) @ p["fc/kernel"] + p["fc/bias"]
    np.testing.assert_allclose(out.logits, expected, rtol=1e-4, atol=1e-4)
    assert np.ptp(expected) > 0.1


def test_weights_are_drawn_as_in_pytorch():
    model = from_nnx(lambda rngs: ConvNet(10, width=4, rngs=rngs))
    params, _ = quick_jit(model.init)(jax.random.key(1, impl="unsafe_rbg"))
    for path, fan_in in (("layers/3/conv", 72), ("fc", 144)):
        for leaf in ("kernel", "bias"):
            largest = np.max(np.abs(params[f"{path}/{leaf}"]))
            assert 0.7 * fan_in**-0.5 < largest <= fan_in**-0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lockable": ("norm1",)}, "'norm1'.*layers/0/norm"),
        ({"norm": "instance"}, "unknown norm 'instance'"),
        ({"image_shape": (32, 8, 3)}, r"\(32, 8, 3\) is too small.*9"),
    ],
)
def test_bad_arguments_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        ConvNet(rngs=nnx.Rngs(0), **changes)
