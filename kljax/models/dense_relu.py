"""Dense layers and ReLUs, the network of SPEAR, with or without norms to lock."""

from collections.abc import Sequence

import jax
from flax import nnx

from kljax.core.types import Array, Path
from kljax.models.calling import check_shape
from kljax.models.initialisers import Initialiser, torch_uniform
from kljax.models.norm_layers import norms

WIDTHS = (400, 100)


def norm_paths(widths: Sequence[int] = WIDTHS) -> tuple[Path, ...]:
    """Lists where norms can be, one per hidden layer."""
    return tuple(f"norms/{i}" for i in range(len(widths)))


class DenseReLU(nnx.Module):
    """Flattens an image: dense layers, a norm where one is lockable, ReLU each.

    Without norms it is the network whose batches `kljax.attacks.spear` reads exactly.

    Reference: Dimitrov et al., "SPEAR: Exact Gradient Inversion of Batches in Federated
    Learning" (NeurIPS 2024), which attacks perceptrons of ReLUs.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        image_shape: tuple[int, int, int] = (32, 32, 3),
        widths: Sequence[int] = WIDTHS,
        norm: str = "batch",
        lockable: tuple[Path, ...] = (),
        initialiser: Initialiser | None = None,
        rngs: nnx.Rngs,
    ):
        """Builds the network; arguments as in `kljax.models.LeNet`.

        Args:
          num_classes: Kc.
          image_shape: [H, W, C] of one image.
          widths: sizes of the hidden layers ``layers/0``, ``layers/1``, ...
          norm: kind of the norms, ``batch`` or ``group``.
          lockable: which of ``norms/0``, ``norms/1``, ... are there; none of them has a
            scale and shift.
          initialiser: of weights and biases; None for PyTorch's default.
          rngs: random streams.

        Raises:
          ValueError: for an unknown norm or lockable path.
        """
        height, width, channels = image_shape
        sizes = (height * width * channels, *widths, num_classes)
        make_norm = norms(norm, lockable, norm_paths(widths), everywhere=False)

        def layer(n_in: int, n_out: int) -> nnx.Linear:
            init = initialiser or torch_uniform(n_in)
            return nnx.Linear(n_in, n_out, kernel_init=init, bias_init=init, rngs=rngs)

        *layers, self.fc = (
            layer(n_in, n_out)
            for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True)
        )
        self.image_shape = tuple(image_shape)
        self.layers = nnx.List(layers)
        self.norms = nnx.List(
            make_norm(path, size)
            for path, size in zip(norm_paths(widths), widths, strict=True)
        )

    def __call__(self, images: Array) -> Array:
        """Maps images [B, H, W, C] to logits [B, Kc]."""
        check_shape(images, self.image_shape)
        x = images.reshape(images.shape[0], -1)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = layer(x)
            x = jax.nn.relu(x if norm is None else norm(x))
        return self.fc(x)
