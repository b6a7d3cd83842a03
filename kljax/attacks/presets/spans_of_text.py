"""DAGER: sentences of a batch, exactly, by the rank of an attention's gradient.

Reference: Petrov, Dimitrov, Baader, Müller, Vechev, "DAGER: Exact Gradient Inversion
for Large Language Models" (NeurIPS 2024); code
insait-institute/dager-gradient-inversion (Apache-2.0).
"""

import jax
import jax.numpy as jnp

from kljax.attacks.attack import Attack, Optimiser, Reconstruction
from kljax.attacks.closed_form.attention_inputs import (
    POSITIONS,
    Feed,
    Point,
    Probe,
    compare,
    feed_of,
    find_candidates,
    find_probes,
    find_spans,
    is_causal,
    sample_sentences,
    tells_something,
)
from kljax.attacks.closed_form.refusals import refuse_search
from kljax.attacks.closed_form.sentence_search import (
    Sentences,
    combine_candidates,
    extend_prefixes,
)
from kljax.attacks.closed_form.spans import TOLERANCE, Span
from kljax.attacks.optimisers import refuse_optimiser
from kljax.attacks.priors import refuse_feature
from kljax.attacks.secrets import secret_of
from kljax.attacks.setting import Setting
from kljax.core.targets import UNKNOWN
from kljax.core.types import Array, Params, PyTree, Rng
from kljax.threat import View

BUDGET = 4096  # combinations of an encoder's candidates that are tested first
SPARE = 8  # kept beyond what there can be: for what passes by chance


def dager(
    setting: Setting,
    optimiser: Optimiser | None = None,
    *,
    steps: int | None = None,
    restarts: int | None = None,
    tolerance: float = TOLERANCE,
    budget: int = BUDGET,
) -> Attack:
    """Makes the attack; it has no optimiser, no steps and no restarts.

    Tokens whose input at a place is in the span of the first attention's gradient are
    that place's candidates. Sentences of candidates are tested at the second attention:
    prefix by prefix where a token sees none behind it, and else whole (see
    `kljax.attacks.closed_form.sentence_search`). Labels are neither needed nor found.

    What is read of a second attention that is the last, below a classifier by the last
    token, has few directions: of H heads, 1 + 2 H a sentence, and H where adapters are
    fresh. Where sentences have more tokens, none is found there.

    Sentences may end in padding. The last token before it has no next one, so of a
    decoder it is in no gradient, and what is found ends without it.

    An update is a sum over local steps, in each of which the inputs are others, as the
    parameters are. Its rank is up to T times that of a gradient (T steps), and the
    inputs at the received parameters, which are known, are in its span, whatever the
    rate is. So what a client trains on in its first step is tested there. Inputs of
    later batches are computed on the straight way to the trained parameters. What of an
    input's own way is outside of the span counts as its error, up to
    `kljax.attacks.closed_form.spans.LARGEST_ERROR`, which later batches meet at low
    rates alone. An update is rounded with the parameters that it moves, which counts as
    noise: at very low rates that buries inputs.

    Args:
      setting: of the attack.
      optimiser: must be None.
      steps, restarts: of no effect.
      tolerance: share of the largest singular value below which others are rounding.
      budget: combinations that are tested, at least 1, in a network that is not causal.

    Returns:
      The attack. Its loss is the mean distance of the sentences found from the second
      span, in [0, 1], where a sentence that was not found counts as 1: its tokens are
      -1. Its ``numbers`` say why: ranks, whether one is full, whether the search was
      whole (`kljax.metrics.COLUMNS`). Nothing is guessed: where the rank is
      full no sentence is found.

    Raises:
      ValueError: for a network that is no transformer of two blocks, places or a
        vocabulary that do not fit the data, as many examples as the width of the
        attention, an optimiser, a secret strategy that optimises, and an average of
        clients with gates of their own.

    Reference: the paper, algorithms 1 and 2. Differs: gradients of keys and values are
    used beside that of queries, in which a causal network's first token has no part;
    what counts as near follows from the singular values and not from a threshold for
    each setting; of noise it is enough to know that there is some, for encoders too,
    for which the code raises NotImplementedError. Of updates the paper has low rates,
    at which inputs hardly move.
    """
    del steps, restarts
    first, second = _check(setting, optimiser, budget)
    secret = secret_of(setting)
    wanted = setting.threat.knowledge.examples
    (length,) = setting.task.inputs.shape
    padded = bool(setting.task.inputs.sizes.get("padded"))
    vocabulary = setting.task.inputs.sizes["vocabulary"]
    kept = 2 * wanted + SPARE
    # A token may fit a place by standing at another, beside one that stands at both.
    width = _width(setting, first)
    count = min(vocabulary, min(wanted * length, width) + SPARE)
    samples = sample_sentences(vocabulary, length, width)
    # What is sent has a density where the defence in force is known to add noise.
    # Of an update, parameters are rounded after every step, and that is noise as well.
    noisy = setting.defence.log_prob is not None or not setting.sees_gradient
    causal = is_causal(setting.task.model, second[0].tap, length)

    def attack(rng: Rng, view: View) -> Reconstruction:
        rng_secret, rng_tokens, rng_search = jax.random.split(rng, 3)
        guess = secret.unknown.decode(*secret.unknown.start(rng_secret, view))
        gates = secret.gates(view.public.defence, guess)
        feeds = [
            feed_of(setting, probes, view.stats, gates) for probes in (first, second)
        ]
        way = _points(setting, view)
        spans = [
            find_spans(
                probes,
                view.grads.model,
                feed(way[0], samples),
                tolerance,
                noisy=noisy,
            )
            for probes, feed in zip((first, second), feeds, strict=True)
        ]
        points = [
            _tried_at(its, feed, way) for its, feed in zip(spans, feeds, strict=True)
        ]
        candidates = find_candidates(
            rng_tokens,
            points[0],
            vocabulary=vocabulary,
            length=length,
            count=count,
        )
        # A second span that tells nothing would pass whatever the first lets through.
        candidates = candidates._replace(
            allowed=candidates.allowed & tells_something(spans[1])
        )

        def test(sentences: Array) -> tuple[Array, Array]:
            return compare(points[1], sentences)

        options = {"wanted": wanted, "kept": kept, "padded": padded}
        if causal:
            found = extend_prefixes(candidates, test, **options)
        else:
            found = combine_candidates(
                rng_search, candidates, test, budget=budget, **options
            )
        return _reconstruction(setting, spans, found, guess)

    return attack


def _reconstruction(
    setting: Setting, spans: list[dict[str, Span]], found: Sentences, guess: PyTree
) -> Reconstruction:
    firsts = [next(iter(its.values())) for its in spans]
    ranks = [jnp.max(jnp.stack([s.rank for s in its.values()])) for its in spans]
    full = [jnp.all(jnp.stack([s.full for s in its.values()])) for its in spans]
    targets = setting.task.targets
    labels = (len(found.tokens), *targets.stored)
    return Reconstruction(
        inputs=found.tokens,
        labels=jnp.full(labels, UNKNOWN, targets.dtype),
        loss=jnp.mean(found.distances),
        finite=jnp.all(jnp.stack([s.strengths[0] > 0 for s in firsts]))
        | jnp.any(jnp.stack(ranks) > 0),
        info={"spans": spans},
        numbers={
            "evaluations": jnp.asarray(0),
            "rank_first": ranks[0],
            "rank_second": ranks[1],
            "rank_is_full": full[0] | full[1],
            "sentences_found": jnp.sum(found.found),
            "search_is_whole": found.whole,
        },
    )


def _points(setting: Setting, view: View) -> list[Params]:
    """Gives parameters at which what is uploaded was computed, the first exactly.

    One for each batch of a client's, where it is gone through for the first time, as
    far as that is on the straight way from the received parameters to the trained ones;
    of an update the last of them are those.
    """
    params, protocol = view.public.model, setting.protocol
    if setting.sees_gradient:
        return [params]
    facts = setting.threat.knowledge
    batches = -(-facts.examples // (facts.clients * protocol.batch))
    shares = [k / protocol.steps for k in range(min(batches, protocol.steps))]
    # What is hidden is NaN, and taken for not having moved.
    change = jax.tree.map(jnp.nan_to_num, view.grads.model)
    return [
        jax.tree.map(lambda x, c, s=share: x + s * c, params, change)
        for share in (*shares, 1.0)
    ]


def _tried_at(
    spans: dict[str, Span], feed: Feed, way: list[Params]
) -> tuple[Point, ...]:
    """Makes the points of a client's way at which sentences are tried."""
    if len(way) == 1:
        return (Point(spans, lambda sentences: feed(way[0], sentences)),)

    def move(sentences: Array) -> dict[str, Array]:
        first, last = (feed(params, sentences) for params in (way[0], way[-1]))
        return jax.tree.map(jnp.subtract, last, first)

    return tuple(
        Point(spans, lambda sentences, there=there: feed(there, sentences), move)
        for there in way[:-1]
    )


def _width(setting: Setting, probes: tuple[Probe, ...]) -> int:
    """Gives d of the widest input."""
    params, _ = setting.task.shapes()
    return max(params[path].shape[0] for probe in probes for path in probe.kernels)


def _check(
    setting: Setting, optimiser: Optimiser | None, budget: int
) -> tuple[tuple[Probe, ...], tuple[Probe, ...]]:
    """Refuses what the attack cannot read; gives what it reads."""
    refuse_feature(setting, "dager")
    refuse_optimiser(optimiser, "dager")
    refuse_search(setting, "dager", "dlg")
    strategy = setting.threat.strategy.secret
    if setting.threat.knowledge.upload == "average" and strategy != "unit":
        raise ValueError(
            "dager reads an average of clients by one network, and under secret "
            f"strategy {strategy!r} each client has gates of its own: write 'unit', or "
            "take the attack 'dlg'"
        )
    spec = setting.task.inputs
    if spec.kind != "text":
        raise ValueError(f"dager looks for sentences, and the inputs are {spec.kind}")
    if budget < 1:
        raise ValueError(f"dager: budget={budget} combinations; give 1 or more")
    params, _ = setting.task.shapes()
    (length,) = spec.shape
    if POSITIONS in params and len(params[POSITIONS]) < length:
        raise ValueError(
            f"dager: sentences of {length} tokens are longer than the network's "
            f"{len(params[POSITIONS])} places"
        )
    if any(path in params for path in spec.search.unexplained):
        spec.search.shape(params)  # which refuses another vocabulary
    first, second = (find_probes(setting, block) for block in (0, 1))
    width = _width(setting, first)
    examples = setting.threat.knowledge.examples
    if examples >= width:
        raise ValueError(
            f"dager: {examples} examples in an upload fill the {width} directions that "
            "an attention's input has, and every token fits then: take a wider network "
            "or fewer examples"
        )
    return first, second
