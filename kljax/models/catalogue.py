"""Which networks there are, by name, and where they are locked."""

import inspect
from collections.abc import Callable
from typing import NamedTuple

from flax import nnx

from kljax.models.dense import Dense
from kljax.models.lenet import LeNet
from kljax.typing import Path


class Network(NamedTuple):
    """A network as a study uses it.

    Attributes:
      factory: ``(num_classes, *, image_shape, rngs, ...) -> nnx.Module``. With an
        argument ``norm`` it has two forms, with and without the norm layer that a
        key-lock brings along; with an argument ``initialiser``, its weights can be
        drawn otherwise.
      sites: paths of the layers to lock, in chain order.
      classifier: path of the last dense layer.
    """

    factory: Callable[..., nnx.Module]
    sites: tuple[Path, ...]
    classifier: str

    def accepts(self, argument: str) -> bool:
        """Tells whether the factory has an argument of this name."""
        # NNX classes are called through their metaclass, which hides __init__.
        factory = self.factory
        called = factory.__init__ if inspect.isclass(factory) else factory
        return argument in inspect.signature(called).parameters


NETWORKS: dict[str, Network] = {
    # The paper's single site is the norm after the first convolution.
    "lenet": Network(LeNet, ("norm1",), "fc"),
    "dense": Network(Dense, ("layers/0",), "fc"),
}
