"""Small transformers of sentences: an encoder, a causal one, a language model."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from kljax.core.types import Array, Path
from kljax.models.initialisers import Initialiser, normal
from kljax.models.norm_layers import Norms, norms

WIDTH, DEPTH, HEADS = 64, 2, 4
VOCABULARY = 4096
EMBEDDING_STD = 1.0  # tokens and positions: nn.Embedding's in PyTorch


def norm_paths(depth: int = DEPTH) -> tuple[Path, ...]:
    """Lists the norms of a network, in forward order."""
    blocks = [f"blocks/{i}/norm{n}" for i in range(depth) for n in (1, 2)]
    return (*blocks, "norm")


class Block(nnx.Module):
    """Attention and a perceptron, each behind a layer norm and inside a shortcut."""

    def __init__(
        self,
        path: Path,
        width: int,
        heads: int,
        *,
        norm: Norms,
        inits: dict[str, Any],
        rngs: nnx.Rngs,
    ):
        """Builds the block at `path`; see `Transformer`."""
        self.norm1 = norm(f"{path}/norm1", width)
        self.attention = nnx.MultiHeadAttention(
            heads, width, decode=False, deterministic=True, rngs=rngs, **inits
        )
        self.norm2 = norm(f"{path}/norm2", width)
        self.expand = nnx.Linear(width, 4 * width, rngs=rngs, **inits)
        self.contract = nnx.Linear(4 * width, width, rngs=rngs, **inits)

    def __call__(self, x: Array, mask: Array | None) -> Array:
        """Maps tokens [B, T, d] to tokens [B, T, d]; `mask` is [1, 1, T, T] or None."""
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.contract(jax.nn.gelu(self.expand(self.norm2(x))))


class Transformer(nnx.Module):
    """Embeds tokens and positions, attends, and classifies the sentence.

    Token embedding ``tokens``, position embedding ``positions``, pre-norm ``blocks``,
    a layer norm ``norm``, and a classifier ``fc`` on what stands for the sentence: the
    mean over its tokens, or in a causal network, where a token sees none of those
    after it, the last one. A lock gates the d channels of the first block's first
    norm.

    It takes embeddings in place of tokens, too: floating-point inputs [B, T, d] stand
    for what ``tokens`` gives. An attack that looks for embeddings feeds it those.

    Where sentences end in padding, that is a token below 0, or an embedding of zeros.
    No token sees it, nothing is learnt at its place, and no sentence is a mean of it.

    Reference: Vaswani et al., "Attention is All You Need" (NeurIPS 2017). Differs: the
    norms stand in front, as in GPT-2, and there is no dropout.
    """

    def __init__(
        self,
        num_classes: int = 8,
        *,
        image_shape: tuple[int] = (8,),
        vocabulary: int = VOCABULARY,
        width: int = WIDTH,
        depth: int = DEPTH,
        heads: int = HEADS,
        causal: bool = False,
        per_token: bool = False,
        padded: bool = False,
        tied: bool = False,
        lockable: tuple[Path, ...] = (),
        initialiser: Initialiser | None = None,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          num_classes: Kc.
          image_shape: [T], the tokens of one sentence.
          vocabulary: V, how many tokens there are.
          width: d of every token; a multiple of `heads`.
          depth: number of blocks, at least 1.
          heads: of each attention.
          causal: whether a token sees only itself and those before it.
          per_token: whether each token is classified, and not the sentence: logits are
            [B, T, Kc]. With `causal` it is a language model.
          padded: whether sentences may end in padding.
          tied: whether the classifier's weights are the embeddings of the first Kc
            tokens, which stand for the classes; there is no ``fc`` then.
          lockable: paths of norms without scale and shift.
          initialiser: of all weights and biases but the norms', which start as 1 and
            0; None for Flax's defaults, and N(0, 1) for tokens and positions.
          rngs: random streams.

        Raises:
          ValueError: for sizes that do not divide, and below 1; for a shape that is no
            sentence's; for an unknown lockable path; and for more classes than tokens,
            where they are tied.
        """
        if len(image_shape) != 1:
            raise ValueError(
                f"a transformer of sentences takes inputs of shape (T,), got "
                f"{tuple(image_shape)}: for images take vit"
            )
        (length,) = image_shape
        sizes = (length, vocabulary, width, depth, heads)
        if min(sizes) < 1 or width % heads:
            raise ValueError(
                f"length={length}, vocabulary={vocabulary}, width={width}, "
                f"depth={depth} and heads={heads} must be at least 1, and heads must "
                "divide width"
            )
        if tied and num_classes > vocabulary:
            raise ValueError(
                f"{num_classes} classes cannot be tied to {vocabulary} tokens"
            )
        inits = {"kernel_init": initialiser, "bias_init": initialiser}
        inits = inits if initialiser else {}
        norm = norms("layer", lockable, norm_paths(depth))
        draw = initialiser or normal(EMBEDDING_STD)
        self.length, self.width, self.num_classes = length, width, num_classes
        self.causal, self.tied = causal, tied
        self.per_token, self.padded = per_token, padded
        self.tokens = nnx.Embed(vocabulary, width, embedding_init=draw, rngs=rngs)
        self.positions = nnx.Param(draw(rngs.params(), (length, width)))
        self.blocks = nnx.List(
            [
                Block(f"blocks/{i}", width, heads, norm=norm, inits=inits, rngs=rngs)
                for i in range(depth)
            ]
        )
        self.norm = norm("norm", width)
        if not tied:
            self.fc = nnx.Linear(width, num_classes, rngs=rngs, **inits)

    def __call__(self, inputs: Array) -> Array:
        """Maps tokens [B, T] integer, or embeddings [B, T, d], to logits [B, Kc].

        Of each token they are [B, T, Kc].

        Raises:
          ValueError: for inputs of another shape.
        """
        embedded = jnp.issubdtype(inputs.dtype, jnp.floating)
        expected = (self.length, self.width) if embedded else (self.length,)
        if inputs.shape[1:] != expected:
            raise ValueError(
                f"inputs of shape {inputs.shape} and type {inputs.dtype}, expected "
                f"tokens [B, {self.length}] or embeddings [B, {self.length}, "
                f"{self.width}]"
            )
        if self.padded:
            real = jnp.any(inputs != 0, axis=-1) if embedded else inputs >= 0
            inputs = inputs if embedded else jnp.maximum(inputs, 0)
        x = inputs if embedded else self.tokens(inputs)
        x = x + self.positions[...][None]
        mask = jnp.tril(jnp.ones((1, 1, self.length, self.length), bool))
        mask = mask if self.causal else None
        if self.padded:
            x = jnp.where(real[..., None], x, 0.0)
            seen = real[:, None, None, :]
            mask = seen if mask is None else seen & mask
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        if not self.per_token:
            x = self._summarise(x, real if self.padded else None)
        if self.tied:
            return x @ self.tokens.embedding[...][: self.num_classes].T
        return self.fc(x)

    def _summarise(self, x: Array, real: Array | None) -> Array:
        """Makes what stands for a sentence, [B, d], of its tokens [B, T, d]."""
        if real is None:
            return x[:, -1] if self.causal else jnp.mean(x, axis=1)
        count = jnp.maximum(jnp.sum(real, axis=1), 1)
        if self.causal:
            return jnp.take_along_axis(x, (count - 1)[:, None, None], axis=1)[:, 0]
        return jnp.sum(jnp.where(real[..., None], x, 0.0), axis=1) / count[:, None]
