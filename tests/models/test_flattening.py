"""Which dense layers are fed a whole input: a flattened picture, a row as it is."""

import jax.numpy as jnp
import pytest
from flax import nnx

from kljax.core.inputs import images_of
from kljax.core.tables import TableColumn, table_of
from kljax.models import from_nnx
from kljax.models.flattening import flattened_inputs

ROW = table_of([TableColumn(name, (n,)) for n, name in enumerate("abcd")])
PICTURE = images_of((4, 3, 2))


class Layered(nnx.Module):
    """Two dense layers behind a function of the input."""

    def __init__(self, width, before, *, rngs):
        self.first = nnx.Linear(width, 5, rngs=rngs)
        self.second = nnx.Linear(5, 4, rngs=rngs)
        self.before = before

    def __call__(self, x):
        return self.second(self.first(self.before(x)))


def flat(x):
    return x.reshape(len(x), -1)


@pytest.mark.parametrize(
    ("inputs", "width", "before", "found"),
    [
        (PICTURE, 24, flat, {"first/kernel": (4, 3, 2)}),
        (ROW, 4, lambda x: x, {"first/kernel": (4,)}),
        (ROW, 4, lambda x: 2 * x, {}),  # it is fed something else
        (PICTURE, 24, lambda x: flat(jnp.tanh(x)), {"first/kernel": (4, 3, 2)}),
        (PICTURE, 2, lambda x: x, {}),  # each place by itself is no whole picture
    ],
)
def test_layers_are_found_by_what_they_are_fed(inputs, width, before, found):
    model = from_nnx(lambda rngs: Layered(width, before, rngs=rngs))
    assert flattened_inputs(model, inputs) == found
