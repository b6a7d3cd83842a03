"""Batches: what each client of a round trains on, as indices into a dataset.

Letters: n clients of one round, T local steps, B examples in a batch.

Each local epoch shuffles the client's examples and cuts them into whole batches of B;
what is left over is dropped for that epoch. A client with fewer than B examples fills
its only batch by going through its shuffled examples again. Clients with fewer steps
than others are padded by whole steps that are marked as not valid.

Every draw is a function of (seed, round) or of (seed, round, client) alone, so a run
that is resumed, or that maps its clients otherwise, trains on the same batches.

>>> mine = np.array([4, 5, 6, 7, 8])
>>> local_batches(mine, batch=2, epochs=1, seed=0, round=0, client=0).shape
(2, 2)
"""

from collections.abc import Sequence

import numpy as np

from kljax.core.array_checks import check_integers
from kljax.core.trees import map_columns
from kljax.data.checks import check_whole
from kljax.data.dataset import Dataset
from kljax.data.draws import check_below, shuffled


def cohort(seed: int, round: int, clients: int, size: int) -> np.ndarray:
    """Draws the clients of a round, without replacement.

    Args:
      seed: a non-negative integer.
      round: number of the round, 0 or more.
      clients: number of clients there are.
      size: number of clients to draw; all of them, in order, if equal to `clients`.

    Returns:
      ids [size] int64, ascending.

    Raises:
      TypeError, ValueError: no integers, or more clients asked for than there are.
    """
    clients, size = _at_least_one(clients, "clients"), _at_least_one(size, "size")
    if size > clients:
        raise ValueError(
            f"asked for {size} clients a round, and there are {clients}; ask for "
            f"{clients} or fewer"
        )
    return np.sort(shuffled(clients, seed, "cohort", round)[:size])


def local_steps(
    count: int, batch: int, epochs: int, *, steps: int | None = None
) -> int:
    """Counts the local steps T that `local_batches` gives a client.

    The largest of all clients serves every round, so that one compilation does.

    Args:
      count: number of the client's examples, 1 or more.
      batch, epochs, steps: see `local_batches`.
    """
    count, batch = _at_least_one(count, "count"), _at_least_one(batch, "batch")
    total = max(count // batch, 1) * _at_least_one(epochs, "epochs")
    return total if steps is None else min(total, _at_least_one(steps, "steps"))


def local_batches(
    examples,
    *,
    batch: int,
    epochs: int,
    steps: int | None = None,
    seed: int,
    round: int,
    client: int,
) -> np.ndarray:
    """Draws the batches of one client in one round.

    Guarantees: the same for the same numbers and the same `examples` in the same
    order; fewer `steps` are the first ones of more; an epoch gives no example twice,
    unless there are fewer than B.

    Args:
      examples: [count] indices into the dataset, those of this client.
      batch: B.
      epochs: how often the client goes through its examples.
      steps: at most so many steps; None for all that the epochs give.
      seed: a non-negative integer.
      round: number of the round.
      client: number of the client among all.

    Returns:
      indices [T, B] int64, T as `local_steps` says.

    Raises:
      TypeError, ValueError: no integers, numbers out of range, or a client without
        examples, by its number.
    """
    client = check_below(client, 2**32, "client")
    examples = check_integers(examples, "examples", f"client {client}", np.int64)
    if not len(examples):
        raise ValueError(
            f"client {client} has no examples; leave it out, or partition otherwise"
        )
    total = local_steps(len(examples), batch, epochs, steps=steps)
    per_epoch = local_steps(len(examples), batch, 1)
    drawn = []
    for epoch in range(-(-total // per_epoch)):
        order = shuffled(len(examples), seed, "batches", round, client, epoch)
        # Cuts the remainder off, or goes through few examples again.
        drawn.append(np.resize(examples[order], (per_epoch, batch)))
    return np.concatenate(drawn)[:total]


def stacked(
    batches: Sequence[np.ndarray], steps: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Puts the batches of several clients into one array, padded by whole steps.

    Padding repeats the client's last step, so that nothing more need be read for it.

    Args:
      batches: for each client, indices [T_i, B], T_i 1 or more.
      steps: T; None for the largest T_i.

    Returns:
      indices [n, T, B] int64, and valid [n, T] bool, False for the padding.

    Raises:
      ValueError: no client, batches that differ in size, or more steps than T.
    """
    if not len(batches):
        raise ValueError("no client to stack; give the batches of at least one")
    batches = [np.asarray(own) for own in batches]
    for i, own in enumerate(batches):
        if own.ndim != 2 or not own.size or own.shape[1] != batches[0].shape[-1]:
            raise ValueError(
                f"batches {i} have shape {own.shape}, the first {batches[0].shape}; "
                "give [T, B], T 1 or more and B the same for all"
            )
    counts = np.array([len(own) for own in batches])
    steps = counts.max() if steps is None else _at_least_one(steps, "steps")
    if counts.max() > steps:
        raise ValueError(
            f"batches {counts.argmax()} have {counts.max()} steps, and steps is "
            f"{steps}; give {counts.max()} or more"
        )
    step = np.arange(steps)
    indices = np.stack([own[np.minimum(step, len(own) - 1)] for own in batches])
    return indices.astype(np.int64, copy=False), step < counts[:, None]


def fetch_batches(dataset: Dataset, indices) -> tuple[np.ndarray, np.ndarray]:
    """Reads the examples of batches.

    An example that is wanted several times (epochs, padding) is read and decoded once.

    Args:
      indices: integers into the dataset, of any shape, such as [n, T, B].

    Returns:
      images [n, T, B, H, W, C] float32 in [0, 1], and labels [n, T, B] int32; or as
      the dataset has them.

    Raises:
      As `Dataset.fetch`.
    """
    indices = np.asarray(indices)
    rows, place = indices.ravel(), None
    if dataset.is_lazy:
        rows, place = np.unique(rows, return_inverse=True)

    def in_batches(column: np.ndarray) -> np.ndarray:
        column = column if place is None else column[place]
        return column.reshape(*indices.shape, *column.shape[1:])

    images, labels = dataset.fetch(rows)
    return map_columns(in_batches, images), in_batches(labels)


def _at_least_one(value, name: str) -> int:
    if check_whole(value, name) < 1:
        raise ValueError(f"{name} is {value}; give 1 or more")
    return int(value)
