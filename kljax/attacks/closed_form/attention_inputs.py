"""What the attentions of a transformer were fed, and which tokens can have fed them.

Letters: T tokens of a sentence, V tokens of a vocabulary, N sentences, d width.

Queries, keys and values of an attention are dense layers of one input, so the gradients
of their weights have one span (`kljax.attacks.closed_form.spans`). Where they have
adapters (`kljax.models.add_adapters`), the gradients of ``down`` have it; as long as
``up`` is 0 these are 0, and those of ``up`` have the span of the input seen through
``down``. Nothing of the network is written down here a second time: what a sentence
feeds an attention is tapped.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kljax.attacks.closed_form.sentence_search import Candidates
from kljax.attacks.closed_form.spans import (
    ROUNDING,
    TOLERANCE,
    Span,
    deviations,
    draw_sketch,
    find_span,
    tells,
)
from kljax.attacks.setting import Setting
from kljax.core.randomness import fixed_rng
from kljax.core.types import Array, Gates, Model, Params, Path, Rng, Stats

ATTENTION = "blocks/{}/attention"
POSITIONS = "positions"
PROJECTIONS = ("query", "key", "value")
SKETCH = 32  # random directions through which all tokens are looked at
SMALLEST = 1e-30  # instead of a length of 0
SAME = 1e-5  # relative: rounding, where the same numbers are summed
CHUNK = 512  # tokens of a vocabulary that are there at one time


class Probe(NamedTuple):
    """A value of the network, and the kernels that it was fed to.

    Attributes:
      tap: name of the value [B, T, d], see `kljax.core.types.Model`.
      kernels: their paths; each kernel is [d, ...].
    """

    tap: str
    kernels: tuple[Path, ...]


# {tap: [N, T, d]} of sentences [N, T]
Feed = Callable[[Params, Array], dict[str, Array]]


class Point(NamedTuple):
    """One place of a client's way, at which sentences are tried.

    Attributes:
      spans: of the probes.
      feed: ``sentences [N, T] -> {tap: [N, T, d]}``, at the parameters there.
      move: the same of how far that moves on the whole way; None for no way.
    """

    spans: dict[str, Span]
    feed: Callable[[Array], dict[str, Array]]
    move: Callable[[Array], dict[str, Array]] | None = None


def find_probes(setting: Setting, block: int) -> tuple[Probe, ...]:
    """Finds what is uploaded of the attention of a block.

    Raises:
      ValueError: where there is nothing.
    """
    params, _ = setting.task.shapes()
    attention = ATTENTION.format(block)
    paths = [f"{attention}/{name}" for name in PROJECTIONS]
    own = [
        f"{path}/{part}"
        for path in paths
        for part in ("kernel", "down/kernel")
        if f"{path}/{part}" in params
    ]
    probes = [Probe(f"{paths[0]}:input", tuple(own))] if own else []
    # Each adapter sees the input in a way of its own. In the gradient of queries the
    # first token of a causal network has no part, nor any but the last in a last block.
    ups = [path for path in reversed(paths) if f"{path}/up/kernel" in params]
    probes += [Probe(f"{path}/up:input", (f"{path}/up/kernel",)) for path in ups[:1]]
    if not probes:
        raise ValueError(
            f"dager reads what the attention {attention!r} of a transformer was fed, "
            f"and of {', '.join(paths)} neither kernels nor adapters are uploaded: "
            "take a network such as 'gpt-tiny' or 'bert-tiny', of two blocks at least"
        )
    return tuple(probes)


def draw_weights(model: Model) -> tuple[Params, Stats]:
    """Draws weights, to ask a network what its form is: the same whenever it is asked.

    Those of an initialiser may be 0, and show nothing.
    """
    params, stats = jax.eval_shape(model.init, jax.random.key(0))
    rngs = jax.random.split(fixed_rng("diagnosis"), len(params))
    drawn = {
        path: jax.random.normal(rng, leaf.shape, leaf.dtype)
        for rng, (path, leaf) in zip(rngs, params.items(), strict=True)
    }
    return drawn, jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), stats)


@functools.lru_cache(maxsize=32)
def is_causal(model: Model, tap: str, length: int) -> bool:
    """Tells whether what a place feeds an attention hangs on no token behind it.

    Asked of the network itself, with any weights: another last token moves what the
    other places feed, or does not.
    """

    def largest_move() -> Array:
        params, stats = draw_weights(model)
        sentences = jnp.zeros((2, length), jnp.int32).at[1, -1].set(1)
        fed = model.apply(params, stats, sentences, taps=(tap,), train=False).taps[tap]
        moves = jnp.abs(fed[1] - fed[0])[:-1]
        return jnp.max(moves, initial=0.0) / jnp.max(jnp.abs(fed))

    with jax.ensure_compile_time_eval():
        return bool(jax.jit(largest_move)() < SAME)


def find_spans(
    probes: tuple[Probe, ...],
    grads: Params,
    sampled: dict[str, Array],
    tolerance: Array | float = TOLERANCE,
    *,
    error: Array | float = ROUNDING,
    noisy: bool = False,
) -> dict[str, Span]:
    """Finds the span of each probe's input, see `find_span`.

    A column that is hidden in part, and so not finite, is left out.

    Args:
      probes: what is read.
      grads: what was uploaded.
      sampled: {tap: [N, T, d]} of some sentences, to see what an input can be.
      tolerance, error, noisy: see `find_span`.
    """
    spans = {}
    for probe in probes:
        columns = jnp.concatenate(
            [grads[path].reshape(grads[path].shape[0], -1) for path in probe.kernels],
            axis=1,
        )
        whole = jnp.all(jnp.isfinite(columns), axis=0, keepdims=True)
        columns = jnp.where(whole, columns, 0.0)
        # An adapter of low rank has fewer columns than the input is wide.
        missing = max(0, columns.shape[0] - columns.shape[1])
        columns = jnp.pad(columns, ((0, 0), (0, missing)))
        samples = _spread(sampled[probe.tap])
        spans[probe.tap] = find_span(
            columns,
            tolerance,
            error=error,
            samples=samples,
            count=jnp.sum(whole),
            noisy=noisy,
        )
    return spans


def feed_of(
    setting: Setting, probes: tuple[Probe, ...], stats: Stats, gates: Gates
) -> Feed:
    """Makes what taps the probes, as the attacker's network runs."""
    taps = tuple(probe.tap for probe in probes)

    def feed(params: Params, sentences: Array) -> dict[str, Array]:
        return setting.task.model.apply(
            params, stats, sentences, gates=gates, taps=taps, train=False
        ).taps

    return feed


def compare(points: Sequence[Point], sentences: Array) -> tuple[Array, Array]:
    """Gives `deviations` [N, T] of what sentences feed, at the point that fits best.

    Of several probes the largest counts.

    Returns:
      distance and excess.
    """
    each = []
    for point in points:
        fed = point.feed(sentences)
        moves = dict.fromkeys(fed) if point.move is None else point.move(sentences)
        probes = [deviations(span, fed[t], moves[t]) for t, span in point.spans.items()]
        each.append([jnp.max(jnp.stack(x), axis=0) for x in zip(*probes, strict=True)])
    return tuple(jnp.min(jnp.stack(x), axis=0) for x in zip(*each, strict=True))


def sample_sentences(vocabulary: int, length: int, width: int) -> Array:
    """Makes sentences [N, T] of one token each, of 2 d tokens, or of all there are.

    Of n tokens and T places, sums of two embeddings have n + T dimensions at most.
    """
    count = min(vocabulary, 2 * width)
    tokens = jnp.linspace(0, vocabulary - 1, count).astype(jnp.int32)
    return jnp.broadcast_to(tokens[:, None], (count, length))


def _spread(fed: Array) -> Array:
    """Takes one place of each sentence [N, T, d] in turn; of few sentences, all."""
    count, length, width = fed.shape
    if count < 2 * width:
        return fed.reshape(-1, width)
    rows = jnp.arange(count)
    return fed[rows, rows % length]


def tells_something(spans: dict[str, Span]) -> Array:
    """Tells [] whether any span leaves something out."""
    return jnp.any(jnp.stack([tells(span) for span in spans.values()]))


def find_candidates(
    rng: Rng,
    points: Sequence[Point],
    *,
    vocabulary: int,
    length: int,
    count: int,
) -> Candidates:
    """Finds the tokens that can have been at each place.

    Every token is looked at through a few random directions outside of the spans, and
    the nearest of a place are then compared with the whole of them. What is in a span
    is not missed, as its products with all those directions are rounding; under noise
    it can be, where more tokens seem nearer than are compared.

    Args:
      rng: of the directions.
      points: at which the first attention's inputs are computed; they share spans.
      vocabulary, length: V and T.
      count: K candidates of each place.
    """
    spans = points[0].spans
    sketches = {
        tap: draw_sketch(jax.random.fold_in(rng, i), span, SKETCH)
        for i, (tap, span) in enumerate(spans.items())
    }

    def seen_at(point: Point, sentences: Array) -> Array:
        fed = point.feed(sentences)
        shares = [
            jnp.linalg.norm(fed[tap] @ sketch, axis=-1)
            / jnp.maximum(jnp.linalg.norm(fed[tap], axis=-1), SMALLEST)
            for tap, sketch in sketches.items()
        ]
        return jnp.max(jnp.stack(shares), axis=0)

    def seen(sentences: Array) -> Array:
        return jnp.min(jnp.stack([seen_at(p, sentences) for p in points]), axis=0)

    rough = over_vocabulary(seen, vocabulary, length)
    compared = min(vocabulary, 2 * count + SKETCH)
    _, nearest = jax.lax.top_k(-rough.T, compared)
    # What feeds the first attention at a place is its own token alone: one sentence
    # has the nearest of each.
    tokens = nearest.astype(jnp.int32).T
    _, excess = compare(points, tokens)
    excess, order = jax.lax.top_k(-excess.T, min(count, compared))
    allowed = (excess >= -1.0) & tells_something(spans)
    return Candidates(jnp.take_along_axis(tokens.T, order, axis=1), allowed)


def over_vocabulary(
    function: Callable[[Array], Array], vocabulary: int, length: int
) -> Array:
    """Calls a function with sentences of one token each, a chunk at a time.

    Args:
      function: ``sentences [CHUNK, T] -> [CHUNK, ...]``.
      vocabulary: V.
      length: T.

    Returns:
      [V, ...], the results of all tokens.
    """
    size = min(CHUNK, vocabulary)
    chunks = -(-vocabulary // size)
    tokens = jnp.minimum(jnp.arange(chunks * size), vocabulary - 1).astype(jnp.int32)

    def of_chunk(tokens: Array) -> Array:
        return function(jnp.broadcast_to(tokens[:, None], (size, length)))

    results = jax.lax.map(of_chunk, tokens.reshape(chunks, size))
    return results.reshape(chunks * size, *results.shape[2:])[:vocabulary]
