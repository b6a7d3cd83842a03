"""Transformers of sentences: encoders, causal ones, language models.

`Transformer` is all of them, by its options. `bert` and `gpt` set these options as BERT
and GPT-2 have them; `SIZES` are the three sizes that the catalogue names.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from kljax.core.types import Array, Path
from kljax.models.initialisers import Initialiser, normal
from kljax.models.norm_layers import EPSILON, Norms, norms

WIDTH, DEPTH, HEADS = 64, 2, 4
VOCABULARY = 4096
EMBEDDING_STD = 1.0  # tokens and positions: nn.Embedding's in PyTorch
EMBEDDING_NORM = "embedding_norm"
# Blocks, width and heads; base is that of BERT-base and of the smallest GPT-2.
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"depth": 2, "width": 64, "heads": 2},
    "small": {"depth": 4, "width": 256, "heads": 4},
    "base": {"depth": 12, "width": 768, "heads": 12},
}


def norm_paths(depth: int = DEPTH, *, post_norm: bool = False) -> tuple[Path, ...]:
    """Lists the norms of a network, in forward order."""
    blocks = [f"blocks/{i}/norm{n}" for i in range(depth) for n in (1, 2)]
    return (EMBEDDING_NORM, *blocks) if post_norm else (*blocks, "norm")


class Block(nnx.Module):
    """Attention and a perceptron, each inside a shortcut, with a layer norm.

    The norms stand in front of the two, or behind their shortcuts (`post_norm`).
    """

    def __init__(
        self,
        path: Path,
        width: int,
        heads: int,
        *,
        norm: Norms,
        inits: dict[str, Any],
        shortcut_inits: dict[str, Any],
        post_norm: bool,
        exact_gelu: bool,
        dropout: float,
        rngs: nnx.Rngs,
    ):
        """Builds the block at `path`; see `Transformer`.

        Args:
          path: of the block.
          width: d of every token.
          heads: of the attention.
          norm: makes the norm of a path.
          inits: of weights, for Flax's layers.
          shortcut_inits: of those of the layers that a shortcut passes by last.
          post_norm, exact_gelu, dropout: see `Transformer`.
          rngs: random streams.
        """
        out = {f"out_{name}": init for name, init in shortcut_inits.items()}
        self.post_norm, self.exact_gelu = post_norm, exact_gelu
        self.norm1 = norm(f"{path}/norm1", width)
        self.attention = nnx.MultiHeadAttention(
            heads,
            width,
            decode=False,
            deterministic=True,
            dropout_rate=dropout,
            broadcast_dropout=False,
            rngs=rngs,
            **inits,
            **out,
        )
        self.norm2 = norm(f"{path}/norm2", width)
        self.expand = nnx.Linear(width, 4 * width, rngs=rngs, **inits)
        self.contract = nnx.Linear(4 * width, width, rngs=rngs, **shortcut_inits)
        if dropout:
            self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: Array, mask: Array | None) -> Array:
        """Maps tokens [B, T, d] to tokens [B, T, d]; `mask` is [1, 1, T, T] or None."""
        if self.post_norm:
            x = self.norm1(x + self._dropped(self.attention(x, mask=mask)))
            return self.norm2(x + self._dropped(self._perceptron(x)))
        x = x + self._dropped(self.attention(self.norm1(x), mask=mask))
        return x + self._dropped(self._perceptron(self.norm2(x)))

    def _perceptron(self, x: Array) -> Array:
        hidden = jax.nn.gelu(self.expand(x), approximate=not self.exact_gelu)
        return self.contract(hidden)

    def _dropped(self, x: Array) -> Array:
        return self.dropout(x) if hasattr(self, "dropout") else x


class Transformer(nnx.Module):
    """Embeds tokens and positions, attends, and classifies the sentence.

    Token embedding ``tokens``, position embedding ``positions``, ``blocks``, and a
    classifier ``fc`` on what stands for the sentence: the mean over its tokens, or in a
    causal network, where a token sees none of those after it, the last one. Its blocks
    are pre-norm, with a layer norm ``norm`` behind the last; or post-norm, with one
    ``embedding_norm`` in front of the first. A lock gates the d channels of the first
    norm.

    It takes embeddings in place of tokens, too: floating-point inputs [B, T, d] stand
    for what ``tokens`` gives. An attack that looks for embeddings feeds it those.

    Where sentences end in padding, that is a token below 0, or an embedding of zeros.
    No token sees it, nothing is learnt at its place, and no sentence is a mean of it.

    Reference: Vaswani et al., "Attention is All You Need" (NeurIPS 2017). Differs: the
    norms stand in front unless `post_norm` is said, as in GPT-2, and there is no
    dropout unless it is asked for.
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
        post_norm: bool = False,
        types: int = 0,
        pooled: bool = False,
        exact_gelu: bool = False,
        epsilon: float = EPSILON,
        dropout: float = 0.0,
        std: float | None = None,
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
          post_norm: whether norms stand behind the shortcuts, as in BERT.
          types: number of token types, rows of ``types`` [types, d]. An input is one
            sentence, all of type 0; the other rows are there for weights of others.
          pooled: whether the sentence is its first token behind a dense layer
            ``pooler`` and a hyperbolic tangent, as in BERT.
          exact_gelu: whether GELU is computed by the error function, as in BERT, and
            not by the hyperbolic tangent, as in GPT-2.
          epsilon: of the norms.
          dropout: share of embeddings, attention weights and outputs of layers under a
            shortcut that train mode drops, and of the pooled sentence.
          std: draws weights and embeddings from N(0, std^2), biases as 0; in pre-norm
            blocks the layers under a shortcut by sqrt(2 depth) smaller, as GPT-2 does.
            None for Flax's defaults, and N(0, 1) for embeddings.
          lockable: paths of norms without scale and shift.
          initialiser: of all weights and biases but the norms', which start as 1 and
            0, in place of `std`.
          rngs: random streams.

        Raises:
          ValueError: for sizes that do not divide, and below 1; for a shape that is no
            sentence's; for an unknown lockable path; for more classes than tokens,
            where they are tied; for a dropout outside [0, 1); and for what is pooled
            per token or causally.
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
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must be in [0, 1)")
        if pooled and (per_token or causal):
            raise ValueError(
                "pooled=True classifies a sentence by its first token, which has to "
                "see the others: leave per_token and causal False"
            )
        inits, shortcut_inits, draw = _initialisers(
            initialiser, std, shrink=1 if post_norm else (2 * depth) ** 0.5
        )
        paths = norm_paths(depth, post_norm=post_norm)
        norm = norms("layer", lockable, paths, epsilon=epsilon)
        self.length, self.width, self.num_classes = length, width, num_classes
        self.causal, self.tied, self.pooled = causal, tied, pooled
        self.per_token, self.padded, self.post_norm = per_token, padded, post_norm
        self.tokens = nnx.Embed(vocabulary, width, embedding_init=draw, rngs=rngs)
        self.positions = nnx.Param(draw(rngs.params(), (length, width)))
        if types:
            self.types = nnx.Param(draw(rngs.params(), (types, width)))
        if post_norm:
            self.embedding_norm = norm(EMBEDDING_NORM, width)
        if dropout:
            self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.blocks = nnx.List(
            [
                Block(
                    f"blocks/{i}",
                    width,
                    heads,
                    norm=norm,
                    inits=inits,
                    shortcut_inits=shortcut_inits,
                    post_norm=post_norm,
                    exact_gelu=exact_gelu,
                    dropout=dropout,
                    rngs=rngs,
                )
                for i in range(depth)
            ]
        )
        if not post_norm:
            self.norm = norm("norm", width)
        if pooled:
            self.pooler = nnx.Linear(width, width, rngs=rngs, **inits)
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
        if hasattr(self, "types"):
            x = x + self.types[...][None, :1]
        if self.post_norm:
            x = self.embedding_norm(x)
        x = self._dropped(x)
        mask = jnp.tril(jnp.ones((1, 1, self.length, self.length), bool))
        mask = mask if self.causal else None
        if self.padded:
            x = jnp.where(real[..., None], x, 0.0)
            seen = real[:, None, None, :]
            mask = seen if mask is None else seen & mask
        for block in self.blocks:
            x = block(x, mask)
        x = x if self.post_norm else self.norm(x)
        if not self.per_token:
            x = self._summarise(x, real if self.padded else None)
        if self.tied:
            return x @ self.tokens.embedding[...][: self.num_classes].T
        return self.fc(x)

    def _summarise(self, x: Array, real: Array | None) -> Array:
        """Makes what stands for a sentence, [B, d], of its tokens [B, T, d]."""
        if self.pooled:
            return self._dropped(jnp.tanh(self.pooler(x[:, 0])))
        if real is None:
            return x[:, -1] if self.causal else jnp.mean(x, axis=1)
        count = jnp.maximum(jnp.sum(real, axis=1), 1)
        if self.causal:
            return jnp.take_along_axis(x, (count - 1)[:, None, None], axis=1)[:, 0]
        return jnp.sum(jnp.where(real[..., None], x, 0.0), axis=1) / count[:, None]

    def _dropped(self, x: Array) -> Array:
        return self.dropout(x) if hasattr(self, "dropout") else x


def _initialisers(
    initialiser: Initialiser | None, std: float | None, shrink: float
) -> tuple[dict[str, Any], dict[str, Any], Initialiser]:
    """Gives those of layers, of layers under a shortcut, and of embeddings."""
    if initialiser is not None:
        every = {"kernel_init": initialiser, "bias_init": initialiser}
        return every, every, initialiser
    if std is None:
        return {}, {}, normal(EMBEDDING_STD)
    inner = {"kernel_init": normal(std)}
    return inner, {"kernel_init": normal(std / shrink)}, normal(std)


# Standard deviation of weights, in the code of both.
STD = 0.02
# Devlin et al., "BERT" (NAACL 2019); types and epsilon as in its code. There is no
# piece [CLS]: the first piece of a sentence stands in its place.
bert = functools.partial(
    Transformer,
    post_norm=True,
    types=2,
    pooled=True,
    exact_gelu=True,
    epsilon=1e-12,
    std=STD,
)
# Radford et al., "Language Models are Unsupervised Multitask Learners" (2019).
gpt = functools.partial(Transformer, causal=True, per_token=True, tied=True, std=STD)
gpt_classifier = functools.partial(Transformer, causal=True, std=STD)
