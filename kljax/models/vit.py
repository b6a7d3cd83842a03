"""A small vision transformer whose first attention sees the embedded image itself."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from kljax.core.types import Array
from kljax.models.calling import check_shape
from kljax.models.initialisers import Initialiser, normal

WIDTH, DEPTH, HEADS, PATCH = 128, 2, 4, 4
POSITION_STD = 0.02  # of class token and positions, as in the paper's code and timm


class Block(nnx.Module):
    """Attention and a perceptron, each behind a layer norm and inside a shortcut.

    The block that is `first` has neither at its attention: it attends to the embedding
    as it is, and nothing passes by.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        first: bool,
        inits: dict[str, Any],
        rngs: nnx.Rngs,
    ):
        """Builds the block; see `VisionTransformer`."""
        self.first = first
        if not first:
            self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            heads, width, decode=False, deterministic=True, rngs=rngs, **inits
        )
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.expand = nnx.Linear(width, 4 * width, rngs=rngs, **inits)
        self.contract = nnx.Linear(4 * width, width, rngs=rngs, **inits)

    def __call__(self, x: Array) -> Array:
        """Maps tokens [B, n, d] to tokens [B, n, d]."""
        x = self.attention(x) if self.first else x + self.attention(self.norm1(x))
        return x + self.contract(jax.nn.gelu(self.expand(self.norm2(x))))


class VisionTransformer(nnx.Module):
    """Cuts an image into patches, embeds them, and attends.

    Patch embedding ``patch`` (a convolution whose stride is its kernel), class token
    ``token``, a learned position embedding ``positions`` right in front of the first
    attention, ``blocks``, a layer norm, and a classifier ``fc`` on the class token. A
    lock gates the d channels of what ``patch`` gives, before positions are added; it
    brings no norm along.

    Reference: Dosovitskiy et al., "An Image is Worth 16x16 Words" (ICLR 2021). Differs:
    no norm and no shortcut at the first attention, as in ``vit_small_april`` of
    JonasGeiping/breaching (width 384, depth 12, 6 heads, patches of 16, images of 224);
    a closed form (Lu et al., "APRIL", CVPR 2022) needs that.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        image_shape: tuple[int, int, int] = (32, 32, 3),
        width: int = WIDTH,
        depth: int = DEPTH,
        heads: int = HEADS,
        patch: int = PATCH,
        initialiser: Initialiser | None = None,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          num_classes: Kc.
          image_shape: [H, W, C] of one image; H and W are multiples of `patch`.
          width: d of every token; a multiple of `heads`.
          depth: number of blocks, at least 1.
          heads: of each attention.
          patch: side of the square patches.
          initialiser: of all weights and biases but the norms', which start as 1 and
            0; None for Flax's defaults, and N(0, 0.02^2) for token and positions.
          rngs: random streams.

        Raises:
          ValueError: for sizes that do not divide, and below 1.
        """
        rows, columns, channels = image_shape
        if min(width, depth, heads, patch) < 1 or width % heads:
            raise ValueError(
                f"width={width}, depth={depth}, heads={heads} and patch={patch} must "
                "be at least 1, and heads must divide width"
            )
        if rows % patch or columns % patch:
            raise ValueError(
                f"images of shape {image_shape} cannot be cut into patches of "
                f"{patch} x {patch}: take sides that are multiples of {patch}"
            )
        tokens = (rows // patch) * (columns // patch) + 1
        window = (patch, patch)
        inits = {"kernel_init": initialiser, "bias_init": initialiser}
        inits = inits if initialiser else {}
        self.image_shape = tuple(image_shape)
        self.patch = nnx.Conv(
            channels, width, window, window, padding="VALID", rngs=rngs, **inits
        )
        draw = initialiser or normal(POSITION_STD)
        self.token = nnx.Param(draw(rngs.params(), (width,)))
        self.positions = nnx.Param(draw(rngs.params(), (tokens, width)))
        self.blocks = nnx.List(
            [
                Block(width, heads, first=i == 0, inits=inits, rngs=rngs)
                for i in range(depth)
            ]
        )
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.fc = nnx.Linear(width, num_classes, rngs=rngs, **inits)

    def __call__(self, images: Array) -> Array:
        """Maps images [B, H, W, C] to logits [B, Kc]."""
        check_shape(images, self.image_shape)
        x = self.patch(images)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        token = jnp.broadcast_to(self.token[...], (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([token, x], axis=1) + self.positions[...][None]
        for block in self.blocks:
            x = block(x)
        return self.fc(self.norm(x)[:, 0])
