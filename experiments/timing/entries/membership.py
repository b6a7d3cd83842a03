"""The entry of the speed table about DAGER's membership test, beside plain PyTorch.

All V tokens of a vocabulary at all T places are tested against the span of a first
attention's gradient; the decomposition of that gradient is in the time on both sides.
The peer is `timing.peers.membership`, at the best of its settings here. Both give the
same tokens, or the entry fails.
"""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljax.attacks.closed_form.attention_inputs import (
    Point,
    Probe,
    find_candidates,
    find_spans,
    sample_sentences,
)
from kljax.attacks.closed_form.spans import TOLERANCE

from ..device import on_gpu
from ..entry import Entry
from ..peers.membership import PEER, SETTINGS, MembershipPeer
from ..table import line
from ..turns import turns

NEARNESS = 1e-3  # the peer's threshold; members are nearer by far, others farther


class Size(NamedTuple):
    """What is tested: V tokens of width d at T places, r of them in the gradient."""

    vocabulary: int
    places: int
    width: int
    rank: int


class Problem:
    """Embeddings of N(0, 0.02^2), and a gradient with r planted inputs."""

    def __init__(self, size):
        draw = np.random.default_rng(0)
        self.size, width = size, size.width
        self.tokens = 0.02 * draw.standard_normal((size.vocabulary, width))
        self.positions = 0.02 * draw.standard_normal((size.places, width))
        self.scale = 1 + 0.1 * draw.standard_normal(width)
        self.bias = 0.1 * draw.standard_normal(width)
        places = np.arange(size.rank) % size.places
        tokens = draw.choice(size.vocabulary, size.rank, replace=False)
        self.planted = sorted(zip(tokens.tolist(), places.tolist(), strict=True))
        x = self.tokens[tokens] + self.positions[places]
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
        x = x * self.scale + self.bias
        grads = np.geomspace(1, 1e-3, size.rank)[:, None]
        self.columns = x.T @ (grads * draw.standard_normal((size.rank, 3 * width)))

    def arrays(self):
        """Gives what both sides are given, float32."""
        names = ("tokens", "positions", "scale", "bias", "columns")
        return {name: np.float32(getattr(self, name)) for name in names}

    def ours(self):
        """Makes our test, compiled: seconds of one run, and the tokens that fit."""
        size, probe = self.size, Probe("x", ("kernel",))

        def feed(arrays, sentences):
            x = arrays["tokens"][sentences] + arrays["positions"][None]
            mean = jnp.mean(x, axis=-1, keepdims=True)
            var = jnp.mean((x - mean) ** 2, axis=-1, keepdims=True)
            x = (x - mean) * jax.lax.rsqrt(var + 1e-5)
            scale, bias = (arrays[n][None, None] for n in ("scale", "bias"))
            return {"x": x * scale + bias}

        @jax.jit
        def test(arrays):
            samples = sample_sentences(size.vocabulary, size.places, size.width)
            grads = {"kernel": arrays["columns"]}
            spans = find_spans((probe,), grads, feed(arrays, samples))
            return find_candidates(
                jax.random.key(0),
                (Point(spans, lambda sentences: feed(arrays, sentences)),),
                vocabulary=size.vocabulary,
                length=size.places,
                count=size.rank,
            )

        arrays = jax.device_put(self.arrays())
        jax.block_until_ready(test(arrays))

        def run():
            start = time.perf_counter()
            found = jax.block_until_ready(test(arrays))
            seconds = time.perf_counter() - start
            place, column = np.nonzero(np.asarray(found.allowed))
            tokens = np.asarray(found.tokens)[place, column]
            fits = sorted(zip(tokens.tolist(), place.tolist(), strict=True))
            return seconds, fits

        return run


def compare(options, size):
    """Tests per second, ours beside the peer's, in turns."""
    problem = Problem(size)
    test, seen = problem.ours(), {}

    def ours():
        seconds, seen["ours"] = test()
        return 1 / seconds

    contestants, chosen = {"ours": ours}, None
    with MembershipPeer(options.torch_python, gpu=on_gpu()) as peer:
        if PEER in options.peers:
            peer.load(problem.arrays(), TOLERANCE, NEARNESS)

            def theirs(setting):
                seconds, seen[PEER] = peer.test(setting)
                return 1 / seconds

            chosen = max(SETTINGS, key=theirs)
            contestants[PEER] = lambda: theirs(chosen)
        values = turns(options.rounds, contestants)
    for name, fits in seen.items():
        if fits != problem.planted:
            raise RuntimeError(f"{name} finds other tokens than were planted")
    settings = size._asdict() | {"peer": chosen}
    mine = values.pop("ours")
    return [line("dager-membership", mine, values, "tests/s", settings)]


ENTRIES = (
    Entry(
        "dager-membership",
        "DAGER's test of BERT's 30,522 tokens at 16 places, width 768, by the span of "
        "a gradient of rank 128; in tests/s",
        compare,
        Size(30_522, 16, 768, 128),
        Size(600, 4, 64, 8),
        peers=(PEER,),
    ),
)
