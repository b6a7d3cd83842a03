"""Which layer feeds a site: found by looking at one pass, nothing computed."""

import functools

import pytest
from flax import nnx

from kljax.models import NETWORKS, feeding_layers, from_nnx

SHAPE = (8, 8, 3)


@pytest.mark.parametrize(
    ("name", "expected"),
    (
        ("lenet", {"norm1": "conv1", "norm2": "conv2", "norm3": "conv3"}),
        ("dense", {"layers/0": "layers/0"}),  # the gate is on the layer itself
        ("vit", {"patch": "patch"}),
    ),
)
def test_networks_of_the_catalogue(name, expected):
    network = NETWORKS[name]
    factory = network.factory
    if network.accepts("lockable"):
        factory = functools.partial(factory, lockable=network.all_sites)
    model = from_nnx(lambda rngs: factory(10, image_shape=SHAPE, rngs=rngs))
    assert dict(feeding_layers(model, network.all_sites, SHAPE)) == expected


class Odd(nnx.Module):
    """Has a norm behind a convolution, one behind a sum, and a layer used twice."""

    def __init__(self, rngs: nnx.Rngs):
        def conv():
            return nnx.Conv(3, 3, (3, 3), rngs=rngs)

        def norm():
            return nnx.BatchNorm(3, use_scale=False, use_bias=False, rngs=rngs)

        self.first, self.second, self.twice = conv(), conv(), conv()
        self.behind_conv, self.behind_sum = norm(), norm()

    def __call__(self, images):
        x = self.behind_conv(self.first(self.twice(self.twice(images))))
        x = self.behind_sum(x + self.second(x))
        return x.mean(axis=(1, 2))


def test_what_is_not_fed_by_a_layer_is_left_out():
    found = feeding_layers(from_nnx(Odd), ("behind_conv", "behind_sum"), SHAPE)
    assert found == (("behind_conv", "first"),)
