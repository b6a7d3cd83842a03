"""Slow forms of rules of aggregation: NumPy, client by client and by coordinate."""

import itertools

import jax
import numpy as np

from kljax.core.types import Public
from kljax.federated.clients import Upload

CLIENTS = 7


def some_uploads(clients=CLIENTS, seed=0):
    """Uploads of two weights' arrays and one of norm statistics [n, ...]."""
    generator = np.random.default_rng(seed)

    def draw(*shape):
        return generator.standard_normal((clients, *shape)).astype(np.float32)

    model = {"kernel": draw(3, 2), "bias": draw(2)}
    return Upload(Public(model), {"mean": draw(2) + 5})


def client(uploads, n):
    return jax.tree.map(lambda x: x[n], uploads)


def vectors(uploads):
    """Writes each upload as one vector [n, D] of float64."""
    return np.stack(
        [
            np.concatenate([np.ravel(x) for x in jax.tree.leaves(client(uploads, n))])
            for n in range(len(uploads.stats["mean"]))
        ]
    ).astype(np.float64)


def slow_mean(rows, weights):
    return sum(w * row for w, row in zip(weights, rows, strict=True)) / sum(weights)


def slow_without_noise(vector, std, aspect):
    """Drops eigenvectors within the bounds of Marchenko and Pastur, one by one."""
    columns = max(1, int(np.sqrt(len(vector) / aspect)))
    rows = int(np.ceil(len(vector) / columns))
    matrix = np.zeros((rows, columns))
    for place, value in enumerate(vector):
        matrix[place // columns, place % columns] = value
    values, directions = np.linalg.eigh(np.atleast_2d(np.cov(matrix, rowvar=False)))
    low, high = ((1 + side * np.sqrt(columns / rows)) ** 2 for side in (-1, 1))
    cleared = np.zeros_like(matrix)
    for value, direction in zip(values, directions.T, strict=True):
        # 0 but for rounding is at most the lower bound, whatever that is.
        if value <= max(low * std**2, 1e-12 * max(values)) or value >= high * std**2:
            for row in range(rows):
                cleared[row] += (matrix[row] @ direction) * direction
    return cleared.ravel()[: len(vector)]


def slow_denoised(std, aspect):
    def denoised(rows, weights):
        mean = slow_mean(rows, weights)
        # What n independent draws leave, and the two statistics, which have none.
        left = std * np.sqrt(sum(w**2 for w in weights)) / sum(weights)
        return np.append(slow_without_noise(mean[:-2], left, aspect), mean[-2:])

    return denoised


def slow_median(rows, weights):
    del weights
    result = []
    for column in rows.T:
        ordered = sorted(column)
        low, high = ordered[(len(rows) - 1) // 2], ordered[len(rows) // 2]
        result.append((low + high) / 2)
    return np.array(result)


def slow_trimmed(attackers):
    def trimmed(rows, weights):
        del weights
        result = []
        for column in rows.T:
            left = list(column)
            for _ in range(attackers):
                left.remove(max(left))
                left.remove(min(left))
            result.append(sum(left) / len(left))
        return np.array(result)

    return trimmed


def slow_scores(rows, attackers):
    """Tries every set of n - F - 2 others: the nearest ones have the least sum."""
    near = len(rows) - attackers - 2
    scores = []
    for i, row in enumerate(rows):
        others = [np.sum((row - r) ** 2) for j, r in enumerate(rows) if j != i]
        scores.append(min(sum(few) for few in itertools.combinations(others, near)))
    return scores


def slow_multi_krum(attackers, selected=None):
    def select(rows, weights):
        del weights
        scores = slow_scores(rows, attackers)
        best = sorted(range(len(rows)), key=lambda i: scores[i])
        return np.mean(rows[best[: selected or len(rows) - attackers]], axis=0)

    return select


def slow_bounded(bound):
    def bounded(rows, weights):
        sent_out = np.concatenate([np.zeros(8), np.full(2, 5.0)])
        short = []
        for row in rows:
            length = np.sqrt(np.sum((row - sent_out) ** 2))
            factor = bound / length if length > bound else 1.0
            short.append(sent_out + factor * (row - sent_out))
        return slow_mean(short, weights)

    return bounded


def slow_bulyan(attackers):
    def select(rows, weights):
        del weights
        chosen = rows[slow_sequence(rows, attackers)]
        kept, result = len(rows) - 4 * attackers, []
        for column in chosen.T:
            centre = slow_median(column[:, None], None)[0]
            near = sorted(column, key=lambda value, c=centre: (abs(value - c), value))
            result.append(sum(near[:kept]) / kept)
        return np.array(result)

    return select


def slow_sequence(rows, attackers):
    left, chosen = list(range(len(rows))), []
    while len(chosen) < len(rows) - 2 * attackers:
        scores = slow_scores(rows[left], attackers)
        chosen.append(left.pop(int(np.argmin(scores))))
    return chosen


def slow_weiszfeld(iterations):
    def iterate(rows, weights):
        point = slow_mean(rows, weights)
        for _ in range(iterations):
            near = [
                w / np.sqrt(np.sum((row - point) ** 2))
                for w, row in zip(weights, rows, strict=True)
            ]
            point = slow_mean(rows, near)
        return point

    return iterate
