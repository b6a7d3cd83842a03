"""Partitions: which client holds which example.

A partition is a tuple of index arrays, one per client: disjoint, ascending, and
together all examples. It is a pure function of the labels and a seed, made of raw
random integers (`kljax.data.draws`).

As text, a partition is ``NAME[=VALUE]``: ``iid``, ``dirichlet=0.3``, ``shards``,
``shards=3`` or ``by-size=1,2,4``.

>>> labels = [0, 0, 1, 1, 2, 2]
>>> [part.tolist() for part in partition("shards=1", labels, clients=3, seed=0)]
[[2, 3], [4, 5], [0, 1]]
"""

import difflib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from scipy import special

from kljax.core.array_checks import check_integers
from kljax.data.checks import check_positive, check_whole
from kljax.data.dataset import LazyColumn
from kljax.data.draws import check_below, shuffled, uniforms

Partition: TypeAlias = tuple[np.ndarray, ...]  # of each client: [n] int64, ascending


def iid(labels, clients: int, seed: int, *, min_examples: int = 1) -> Partition:
    """Deals the shuffled examples out evenly.

    Numbers of examples differ by one at most; the first clients have the larger ones.

    Args:
      labels: [N] integers, 0 or more (here only their number matters). A `LazyColumn`
        is read whole.
      clients: number of clients.
      seed: a non-negative integer.
      min_examples: the least that a client may be left with, 1 or more.

    Returns:
      One array of indices per client, [n] int64, ascending.

    Raises:
      TypeError, ValueError: arguments that are none, and a client left with fewer
        examples than `min_examples`, with what would help.
    """
    labels = _check(labels, clients)
    order = shuffled(len(labels), seed, "partition")
    return _finish(np.array_split(order, clients), min_examples, "iid", "fewer clients")


def dirichlet(
    labels, clients: int, seed: int, *, alpha: float, min_examples: int = 1
) -> Partition:
    """Shares every class out among the clients in proportions of its own.

    ``p_k ~ Dirichlet(alpha, ..., alpha)`` over the clients, for each class k; client j
    gets the fraction p_kj of the class, within one example. Clients differ in size as
    well as in their labels. The smaller alpha, the more unlike they are.

    This is the variant of Yurochkin et al. 2019, the usual one by now. Differs from
    Hsu et al. 2019, where it comes from: there a client draws its mixture of classes,
    ``q_j ~ Dirichlet(alpha * prior)``, and all clients have the same size. Drawn per
    class, every example is given to exactly one client, whatever the class sizes.

    Guarantees: proportions are drawn by inverting the distribution function of the
    gamma distribution (`scipy.special.gammaincinv`) at raw uniforms, not by NumPy's
    sampler. Another SciPy could only move an example if it changed the last digits.

    Args:
      labels, clients, seed, min_examples: see `iid`.
      alpha: concentration, 1e-6 to 1e6: at the ends, a class goes to one client, and
        all classes are shared evenly.

    Raises:
      As `iid`.

    References: Yurochkin et al. 2019, Bayesian Nonparametric Federated Learning of
    Neural Networks, section 4; Hsu et al. 2019, Measuring the Effects of Non-Identical
    Data Distribution for Federated Visual Classification, section 3.
    """
    labels = _check(labels, clients)
    alpha = check_positive(alpha, "alpha of dirichlet")
    if not 1e-6 <= alpha <= 1e6:
        raise ValueError(f"alpha of dirichlet is {alpha:g}; give 1e-6 to 1e6")
    order = shuffled(len(labels), seed, "partition")
    order = order[np.argsort(labels[order], kind="stable")]
    present, starts = np.unique(labels[order], return_index=True)
    owners = np.empty(len(labels), np.int64)
    for label, members in zip(present, np.split(order, starts[1:]), strict=True):
        counts = _counts(len(members), _dirichlet_shares(clients, alpha, seed, label))
        owners[members] = np.repeat(np.arange(clients), counts)
    sizes = np.bincount(owners, minlength=clients)
    return _finish(
        np.split(np.argsort(owners, kind="stable"), np.cumsum(sizes)[:-1]),
        min_examples,
        f"dirichlet (alpha {alpha:g})",
        "a larger alpha, fewer clients or another seed",
    )


def _dirichlet_shares(clients, alpha, seed, label) -> np.ndarray:
    """Draws one symmetric Dirichlet vector, as gamma variates over their sum."""
    first, second = uniforms(2 * clients, seed, "shares", label).reshape(2, clients)
    # Gamma(alpha) = Gamma(alpha + 1) * U**(1 / alpha), in logarithms, because for small
    # alpha nearly all of the variates are smaller than any float64.
    logs = np.log(special.gammaincinv(alpha + 1, first)) + np.log(second) / alpha
    shares = np.exp(logs - logs.max())
    return shares / shares.sum()


def shards(
    labels,
    clients: int,
    seed: int,
    *,
    shards_per_client: int = 2,
    min_examples: int = 1,
) -> Partition:
    """Sorts the examples by label, cuts them into shards and deals the shards out.

    Within a label the examples are shuffled; sizes of shards differ by one at most.

    Guarantees: a client has at most `shards_per_client` labels where shards end at the
    ends of labels (equally common labels, and a multiple of as many shards). In
    general a shard may span a border, and where every label fills a shard a client has
    at most ``2 * shards_per_client`` labels.

    Args:
      labels, clients, seed, min_examples: see `iid`.
      shards_per_client: 2 in the reference.

    Raises:
      As `iid`; also where there are more shards than examples.

    Reference: McMahan et al. 2017, Communication-Efficient Learning of Deep Networks
    from Decentralized Data, section 3, the pathological non-IID split.
    """
    labels = _check(labels, clients)
    if check_whole(shards_per_client, "shards_per_client") < 1:
        raise ValueError(f"shards_per_client is {shards_per_client}; give 1 or more")
    count = clients * shards_per_client
    if count > len(labels):
        raise ValueError(
            f"{clients} clients of {shards_per_client} shards need {count} examples "
            f"or more, and there are {len(labels)}; give fewer clients or shards"
        )
    order = shuffled(len(labels), seed, "partition")
    order = order[np.argsort(labels[order], kind="stable")]
    pieces = np.array_split(order, count)
    dealt = shuffled(count, seed, "shards").reshape(clients, shards_per_client)
    return _finish(
        [np.concatenate([pieces[piece] for piece in hand]) for hand in dealt],
        min_examples,
        "shards",
        "fewer clients",
    )


def by_size(
    labels,
    clients: int,
    seed: int,
    *,
    sizes: Sequence[float],
    min_examples: int = 1,
) -> Partition:
    """Deals the shuffled examples out in given proportions: unequal, but alike.

    Args:
      labels, clients, seed, min_examples: see `iid`.
      sizes: relative sizes [clients], positive. A client gets its share of the
        examples within one, and exactly that many where the sizes add up to N.

    Raises:
      As `iid`.
    """
    labels = _check(labels, clients)
    sizes = [check_positive(s, f"size {i} of by-size") for i, s in enumerate(sizes)]
    if len(sizes) != clients:
        raise ValueError(
            f"by-size has {len(sizes)} sizes for {clients} clients; give one per client"
        )
    shares = np.array(sizes) / sum(sizes)
    order = shuffled(len(labels), seed, "partition")
    return _finish(
        np.split(order, np.cumsum(_counts(len(order), shares))[:-1]),
        min_examples,
        "by-size",
        "sizes less unequal or fewer clients",
    )


PARTITIONS: dict[str, Callable[..., Partition]] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "shards": shards,
    "by-size": by_size,
}


class _Value(NamedTuple):
    """What may follow ``NAME=``: the argument it is, and how it is read."""

    argument: str
    read: Callable[[str], Any]
    example: str
    required: bool


_VALUES = {
    "dirichlet": _Value("alpha", float, "0.3", required=True),
    "shards": _Value("shards_per_client", int, "2", required=False),
    "by-size": _Value(
        "sizes",
        lambda text: [float(size) for size in text.split(",")],
        "1,2,4",
        required=True,
    ),
}


def notations() -> list[str]:
    """Writes how each partition is written: ``dirichlet=0.3``, ``shards[=2]``."""
    written = []
    for name in PARTITIONS:
        value = _VALUES.get(name)
        example = f"={value.example}" if value else ""
        optional = value and not value.required
        written.append(f"{name}[{example}]" if optional else name + example)
    return written


def partition(
    text: str, labels, clients: int, seed: int, *, min_examples: int = 1
) -> Partition:
    """Makes a partition from its text.

    Args:
      text: ``NAME[=VALUE]`` with a name of `PARTITIONS`; see the top of this file.
      labels, clients, seed, min_examples: see `iid`.

    Raises:
      ValueError: an unknown name (with the nearest known one), a value missing, not
        wanted or not a number, and what the partition itself refuses.
    """
    name, equals, value = text.partition("=")
    if name not in PARTITIONS:
        near = difflib.get_close_matches(name, PARTITIONS, n=1)
        guess = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(
            f"unknown partition {name!r}{guess}; known: {', '.join(PARTITIONS)}"
        )
    wanted = _VALUES.get(name)
    arguments = {}
    if equals and wanted is None:
        raise ValueError(f"partition {text!r}: {name} has no value, drop '={value}'")
    if wanted is not None and (equals or wanted.required):
        try:
            arguments[wanted.argument] = wanted.read(value)
        except ValueError:
            raise ValueError(
                f"partition {text!r} needs {wanted.argument}, such as "
                f"{name}={wanted.example}"
            ) from None
    try:
        return PARTITIONS[name](
            labels, clients, seed, min_examples=min_examples, **arguments
        )
    except ValueError as error:
        raise ValueError(f"partition {text!r}: {error}") from error


def _counts(total: int, shares: np.ndarray) -> np.ndarray:
    """Turns shares into whole numbers that add up, each within one of its share."""
    borders = np.rint(np.cumsum(shares)[:-1] * total).astype(np.int64)
    return np.diff(borders, prepend=0, append=total)


def _check(labels, clients: int) -> np.ndarray:
    if isinstance(labels, LazyColumn):
        labels = labels[np.arange(len(labels))]
    labels = check_integers(labels, "labels", "a partition", np.int64)
    if not labels.size:
        raise ValueError("no labels to make a partition of; give at least one")
    if labels.min() < 0:
        raise ValueError(
            f"labels of a partition hold {labels.min()}; give integers of 0 or more"
        )
    if check_below(clients, 2**32, "clients") < 1:
        raise ValueError(f"clients is {clients}; give 1 or more")
    return labels


def part_examples(
    partition: Partition, share: float, seed: int
) -> tuple[Partition, Partition]:
    """Parts the examples of each client in two, at random.

    Args:
      partition: of each client [n].
      share: of its examples that go to the second part, in (0, 1): rounded, and at
        least one.
      seed: a non-negative integer.

    Returns:
      Two partitions, each [m] int64, ascending.

    Raises:
      ValueError: for a share outside (0, 1), and a client that would be left with
        nothing.
    """
    if not 0 < share < 1:
        raise ValueError(f"share is {share!r}; give a number between 0 and 1")
    first, second = [], []
    for client, own in enumerate(partition):
        count = max(1, round(share * len(own)))
        if count >= len(own):
            raise ValueError(
                f"client {client} of {len(partition)} has {len(own)} example"
                f"{'' if len(own) == 1 else 's'}, and {count} of them held out leave "
                "none; give more examples or fewer clients"
            )
        order = shuffled(len(own), seed, "held out", client)
        second.append(np.sort(own[order[:count]]))
        first.append(np.sort(own[order[count:]]))
    return tuple(first), tuple(second)


def _finish(
    parts: Sequence[np.ndarray], min_examples: int, name: str, remedy: str
) -> Partition:
    """Sorts the parts, and refuses them where a client is left with too little."""
    if check_whole(min_examples, "min_examples") < 1:
        raise ValueError(f"min_examples is {min_examples}; give 1 or more")
    short = [i for i, part in enumerate(parts) if len(part) < min_examples]
    if short:
        more = f" (and {len(short) - 1} more)" if len(short) > 1 else ""
        have = len(parts[short[0]])
        raise ValueError(
            f"{name} leaves client {short[0]} of {len(parts)}{more} with "
            f"{have or 'no'} example{'' if have == 1 else 's'}, and min_examples is "
            f"{min_examples}; give {remedy}"
        )
    return tuple(np.sort(part) for part in parts)
