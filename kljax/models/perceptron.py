"""A perceptron of rows of tables."""

from collections.abc import Callable, Sequence

import jax
from flax import nnx

from kljax.core.types import Array, Path
from kljax.models.initialisers import Initialiser
from kljax.models.norm_layers import norms

NORM_PATHS = ("norm1",)
WIDTHS = (100, 100)  # TabLeak's


class Perceptron(nnx.Module):
    """Sends a row through dense layers.

    Hidden layers ``layers/0``, ``layers/1``, ..., and the classifier ``fc``. A lock
    gates the channels behind ``layers/0``, where a layer norm ``norm1`` without scale
    and shift then stands; without a lock there is no norm. A batch norm would leave
    nothing of a single row.

    Reference: Vero et al., "TabLeak" (ICML 2023), section 5: two layers of 100, ReLU.
    """

    def __init__(
        self,
        num_classes: int = 2,
        *,
        image_shape: tuple[int] = (30,),
        widths: Sequence[int] = WIDTHS,
        activation: Callable[[Array], Array] = jax.nn.relu,
        lockable: tuple[Path, ...] = (),
        initialiser: Initialiser | None = None,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          num_classes: Kc.
          image_shape: [D], the entries of one row.
          widths: sizes of the hidden layers, at least one.
          activation: after each hidden layer.
          lockable: paths of norms without scale and shift.
          initialiser: of weights and biases; None for Flax's defaults.
          rngs: random streams.

        Raises:
          ValueError: for a shape that is no row's, no hidden layer, and an unknown
            lockable path.
        """
        if len(image_shape) != 1:
            raise ValueError(
                f"a perceptron of rows takes inputs of shape (D,), got "
                f"{tuple(image_shape)}: for images take dense"
            )
        if not widths:
            raise ValueError("a perceptron needs at least one hidden layer")
        inits = {"kernel_init": initialiser, "bias_init": initialiser}
        inits = inits if initialiser else {}
        sizes = (*image_shape, *widths)
        self.image_shape = tuple(image_shape)
        self.activation = activation
        self.layers = nnx.List(
            [
                nnx.Linear(n_in, n_out, rngs=rngs, **inits)
                for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True)
            ]
        )
        norm = norms("layer", lockable, NORM_PATHS, everywhere=False)
        self.norm1 = norm("norm1", widths[0])
        self.fc = nnx.Linear(widths[-1], num_classes, rngs=rngs, **inits)

    def __call__(self, rows: Array) -> Array:
        """Maps rows [B, D] to logits [B, Kc].

        Raises:
          ValueError: for rows of another shape.
        """
        if rows.shape[1:] != self.image_shape:
            raise ValueError(
                f"rows of shape {rows.shape}, expected [B, {self.image_shape[0]}]"
            )
        x = rows
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number == 0 and self.norm1 is not None:
                x = self.norm1(x)
            x = self.activation(x)
        return self.fc(x)
