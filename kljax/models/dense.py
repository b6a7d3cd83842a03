"""A dense network, small enough to check by hand."""

from collections.abc import Callable, Sequence

import jax
from flax import nnx

from kljax.core.types import Array
from kljax.models.calling import check_shape
from kljax.models.chain import SIGMOID, Layer, dense
from kljax.models.initialisers import Initialiser

# With the widths and the activation that are the default; a gate at the hidden layer
# acts on the output of ``layers/0`` itself, there is no norm.
CHAIN = (Layer("layers/0", dense, SIGMOID), Layer("fc", dense))


class Dense(nnx.Module):
    """Flattens an image and sends it through dense layers.

    With ``widths=()`` it is one linear layer, whose gradient gives its input away in
    closed form (`kljax.attacks.dense_input`).
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        image_shape: tuple[int, int, int] = (32, 32, 3),
        widths: Sequence[int] = (64,),
        activation: Callable[[Array], Array] = jax.nn.sigmoid,
        initialiser: Initialiser | None = None,
        rngs: nnx.Rngs,
    ):
        """Builds the network; arguments as in `kljax.models.LeNet`.

        Args:
          num_classes: Kc.
          image_shape: [H, W, C] of one image.
          widths: sizes of the hidden layers ``layers/0``, ``layers/1``, ...
          activation: after each hidden layer.
          initialiser: of weights and biases; None for Flax's defaults.
          rngs: random streams.
        """
        height, width, channels = image_shape
        sizes = (height * width * channels, *widths, num_classes)
        inits = {"kernel_init": initialiser, "bias_init": initialiser}
        inits = inits if initialiser else {}
        layers = [
            nnx.Linear(n_in, n_out, rngs=rngs, **inits)
            for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True)
        ]
        self.image_shape = tuple(image_shape)
        self.activation = activation
        self.layers = nnx.List(layers[:-1])
        self.fc = layers[-1]

    def __call__(self, images: Array) -> Array:
        """Maps images [B, H, W, C] to logits [B, Kc]."""
        check_shape(images, self.image_shape)
        x = images.reshape(images.shape[0], -1)
        for layer in self.layers:
            x = self.activation(layer(x))
        return self.fc(x)
