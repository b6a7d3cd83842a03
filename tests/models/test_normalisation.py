"""Standardised images inside a network, [0, 1] outside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit, random_images, random_weights

from kljax.models import FEDKL_STATISTICS, Dense, from_nnx, normalised

MEAN, STD = (0.25, 0.5), (0.5, 4.0)
IMAGES = random_images(3, 2, 2, 2)
PLAIN = from_nnx(lambda rngs: Dense(3, image_shape=(2, 2, 2), widths=(4,), rngs=rngs))


def test_the_network_sees_standardised_images():
    model = normalised(PLAIN, MEAN, STD)
    params, stats = random_weights(model)
    assert jax.eval_shape(model.init, jax.random.key(0))[0].keys() == params.keys()

    @quick_jit
    def run(params):
        seen = (IMAGES - np.array(MEAN)) / np.array(STD)
        out = model.apply(params, stats, IMAGES, taps=("fc:input",), train=True)
        return out, PLAIN.apply(params, stats, seen, taps=("fc:input",), train=True)

    out, expected = run(params)
    np.testing.assert_allclose(out.logits, expected.logits, atol=1e-5)
    np.testing.assert_allclose(
        out.taps["fc:input"], expected.taps["fc:input"], atol=1e-5
    )


def test_precision_is_that_of_the_images():
    def dtype(images):
        model = normalised(PLAIN._replace(apply=lambda p, s, images: images), MEAN, STD)
        return model.apply({}, {}, images).dtype

    assert dtype(jnp.zeros((1, 2, 2, 2))) == jnp.float32
    with jax.enable_x64(True):
        assert dtype(jnp.zeros((1, 2, 2, 2), jnp.float64)) == jnp.float64


def test_constants_of_the_paper():
    assert FEDKL_STATISTICS["cifar10"].mean == (0.485, 0.456, 0.406)
    assert FEDKL_STATISTICS["cifar10"].std == (0.229, 0.224, 0.225)
    assert FEDKL_STATISTICS["cifar100"].mean == (0.4573, 0.4388, 0.4073)
    assert FEDKL_STATISTICS["cifar100"].std == (0.2675, 0.2638, 0.2777)
    for statistics in FEDKL_STATISTICS.values():
        normalised(PLAIN, *statistics)


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.5,), (0.5, 0.5)),
        (0.5, 0.5),
        ((0.5, 0.5), (0.5, 0.0)),
        ((0.5, 0.5), (0.5, -1.0)),
        ((0.5, float("nan")), (0.5, 0.5)),
        ((0.5, 0.5), (0.5, float("inf"))),
    ],
)
def test_bad_statistics_are_refused(mean, std):
    with pytest.raises(ValueError, match="mean .*std.* got"):
        normalised(PLAIN, mean, std)


def test_another_number_of_channels_is_refused():
    model = normalised(PLAIN, *FEDKL_STATISTICS["cifar10"])
    with pytest.raises(ValueError, match="have 2 channels, mean and std are of 3"):
        model.apply({}, {}, IMAGES, train=False)
