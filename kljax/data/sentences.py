"""Sentences as inputs: tokens that an attack looks for among their embeddings."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kljax.core.array_checks import refuse_rows
from kljax.core.inputs import InputSpec, SearchSpace
from kljax.core.types import Array, Params, Path

TABLE = "tokens/embedding"  # where networks of this package have their embeddings
POSITIONS = "positions"  # and those of places
PADDING = -1  # stands after the end of a sentence
SPACE = "▁"  # begins a piece that begins a word


def sentences_of(
    length: int,
    pieces: Sequence[str],
    *,
    table: Path = TABLE,
    padded: bool = False,
    positions: Path = POSITIONS,
) -> InputSpec:
    """Makes the spec of sentences: numbers of pieces, looked for as embeddings.

    A network that takes embeddings [B, T, d] in place of tokens [B, T] is attacked in
    the space of embeddings, as DLG and its followers do with text: latents are
    embeddings in units of the table's standard deviation, so that a start from
    N(0, 1) is one from where embeddings are. What is found is read as the token whose
    embedding is nearest by cosine: layer norms say little about lengths.

    The table's own gradient has a row for every token that occurs, which no embedding
    by itself explains; it is left out of what is compared. That is less than what the
    server sees: untied, the rows that are not 0 are the tokens of the sentence in
    another order.

    Over the local steps of an update the table is trained. A replay moves the
    embeddings of a candidate by their own gradient, which is that of the rows that they
    stand for: exactly so for tokens that occur once in all of a client's examples, for
    a row of the table moves by the sum over its places; and not exactly where the
    table is tied to a classifier, which moves the rows of all classes. What a penalty
    or a defence does to the table is not replayed.

    Args:
      length: T tokens in each sentence.
      pieces: V of them; a word's first begins with ``▁``.
      table: path of the network's embeddings [V, d].
      padded: whether sentences are of different lengths: what follows their end is -1.
        A network must have an argument ``padded`` to be told so; it is fed zeros in the
        place of padding, where embeddings are looked for.
      positions: path of the network's embeddings [T, d] of places. Behind the last that
        has a gradient no sentence of an upload has a token: so an attacker reads off
        where the longest sentence ends, and takes all for as long. Of what a defence
        changes nothing is read off so, not even where it keeps zeros, as clipping does.

    Reference: Zhu, Liu, Han, "Deep Leakage from Gradients" (NeurIPS 2019), section 4.2;
    Balunović et al., "LAMP" (NeurIPS 2022), its code (nearest by cosine).
    """
    pieces, shape = tuple(pieces), (length,)
    count = len(pieces)

    def embeddings(params: Params) -> Array:
        found = params.get(table)
        if found is None:
            raise ValueError(
                f"the network has no embeddings of tokens {table!r}: attacks look for "
                "a sentence there, and feed the network embeddings [B, T, d]; give "
                "sentences_of the path of its own"
            )
        if found.ndim != 2 or found.shape[0] != count:
            raise ValueError(
                f"the vocabulary does not fit: the network's embeddings {table!r} are "
                f"{found.shape}, and the data has {count} tokens"
            )
        return found

    def check(tokens: np.ndarray, rows: np.ndarray, name: str) -> np.ndarray:
        if not np.issubdtype(tokens.dtype, np.integer):
            raise TypeError(f"tokens of {name} are {tokens.dtype}; give integers")
        if tokens.shape[1:] != shape:
            raise ValueError(
                f"tokens of {name} have shape {tokens.shape}; give [n, {length}]"
            )
        wrong = (tokens < (PADDING if padded else 0)) | (tokens >= count)
        what = f"sentence {{}} of {name}"
        refuse_rows(
            wrong.any(axis=1),
            rows,
            what,
            lambda i: f"has token {tokens[i][wrong[i]][0]}; they lie in [0, {count})",
        )
        real = tokens >= 0
        refuse_rows(
            ~real[:, 0] | (real[:, 1:] & ~real[:, :-1]).any(axis=1),
            rows,
            what,
            lambda i: "has padding in front of a token, or no token",
        )
        return tokens.astype(np.int32, copy=False)

    def latent_shape(params: Params) -> tuple[int, int]:
        return length, embeddings(params).shape[1]

    def decode(params: Params, latents: Array) -> Array:
        return latents * jnp.std(embeddings(params))

    def read(params: Params, fed: Array) -> Array:
        tokens = nearest_tokens(embeddings(params), fed)
        return jnp.where(jnp.any(fed != 0, axis=-1), tokens, PADDING)

    def hold(upload: Params, fed: Array) -> Array:
        places = upload.get(positions)
        if places is None or places.shape[:1] != shape:
            return fed
        # NaN, which is hidden, is not 0 either.
        there = jnp.any(places != 0, axis=1)
        # A sentence has a token, and no padding in front of one.
        real = jax.lax.cummax(there.astype(int), reverse=True) | ~jnp.any(there)
        return jnp.where(real.astype(bool)[:, None], fed, 0.0)

    def draw(rng: Array, n: int) -> Array:
        return jax.random.randint(rng, (n, length), 0, count)

    return InputSpec(
        kind="text",
        shape=shape,
        dtype=np.int32,
        check=check,
        search=SearchSpace(
            shape=latent_shape,
            decode=decode,
            read=read,
            unexplained=(table,),
            trained=True,
            hold=hold if padded else None,
            table=embeddings,
        ),
        draw=draw,
        spell=lambda tokens: spell(pieces, tokens),
        sizes={"vocabulary": count, "padded": padded},
    )


def nearest_tokens(table: Array, embedded: Array) -> Array:
    """Finds the tokens [...] int32 whose embeddings are nearest by cosine.

    Args:
      table: [V, d].
      embedded: [..., d].
    """
    lengths = jnp.linalg.norm(table, axis=1)
    # How long a guess is itself changes none of its comparisons.
    cosines = embedded @ (table / jnp.where(lengths > 0, lengths, 1.0)[:, None]).T
    cosines = jnp.where(lengths > 0, cosines, -jnp.inf)
    return jnp.argmax(cosines, axis=-1).astype(jnp.int32)


def spell(pieces: Sequence[str], tokens: np.ndarray) -> str:
    """Writes tokens [T] as text; padding is nothing."""
    written = "".join(pieces[int(t)] for t in tokens if t >= 0)
    return written.replace(SPACE, " ").strip()
