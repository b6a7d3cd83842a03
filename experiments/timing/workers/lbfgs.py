"""Fixed-step L-BFGS over a victim axis, in PyTorch.

Per victim the same rule as torch.optim.LBFGS without line search and without early
stopping: step 1 (the first one min(1, 1/|g|_1)), H0 = y's/y'y, pairs with y's <= 1e-10
skipped, one evaluation per iteration. The direction is computed in compact form
(Byrd, Nocedal, Schnabel 1994, theorem 2.2), equal to the two-loop recursion in exact
arithmetic: it reads the memory twice instead of walking it in 2 x 20 dependent steps,
and the small matrices are the only place where victims with skipped pairs differ.
Letters: V victims, M pairs, n unknowns.
"""

from functools import partial
from typing import NamedTuple

import torch

SMALLEST_CURVATURE = 1e-10


class Memory(NamedTuple):
    """Pairs of V victims in rings; changed in place."""

    moves: torch.Tensor  # [V, M, n] s
    changes: torch.Tensor  # [V, M, n] y
    moves_changes: torch.Tensor  # [V, M, M] float64, s_i'y_j
    changes_changes: torch.Tensor  # [V, M, M] float64, y_i'y_j
    slot: torch.Tensor  # [V] where the next pair goes
    scale: torch.Tensor  # [V] float64, H0


def empty_memory(like, pairs):
    """Makes an empty memory for unknowns like `like` [V, n]."""
    victims, size = like.shape
    return Memory(
        moves=like.new_zeros(victims, pairs, size),
        changes=like.new_zeros(victims, pairs, size),
        moves_changes=like.new_zeros(victims, pairs, pairs, dtype=torch.float64),
        changes_changes=like.new_zeros(victims, pairs, pairs, dtype=torch.float64),
        slot=like.new_zeros(victims, dtype=torch.int64),
        scale=like.new_ones(victims, dtype=torch.float64),
    )


def inner_products(vectors, pairs):
    """Returns the products [V, M], float64, of vectors [V, n] with pairs [V, M, n].

    As a row times a matrix: PyTorch's batched product of the matrix with a column is
    ten times slower.
    """
    return (vectors[:, None] @ pairs.mT)[:, 0].double()


def remember(memory, move, change):
    """Stores one pair per victim (move, change [V, n]) where its curvature allows."""
    victims, pairs, _ = memory.moves.shape
    curvature = (move * change).sum(-1).double()
    good = curvature > SMALLEST_CURVATURE
    good = slice(None) if good.all() else good  # a view where a mask would copy
    row = torch.arange(victims, device=move.device)[good]
    slot = memory.slot[good]
    memory.moves[row, slot] = move[good]
    memory.changes[row, slot] = change[good]
    # the new row and column of both small matrices; wasted for victims that skip
    move_changes = inner_products(move, memory.changes)[good]
    change_changes = inner_products(change, memory.changes)[good]
    memory.moves_changes[row, slot] = move_changes
    memory.moves_changes[row, :, slot] = inner_products(change, memory.moves)[good]
    memory.changes_changes[row, slot] = change_changes
    memory.changes_changes[row, :, slot] = change_changes
    square = memory.changes_changes[row, slot, slot]
    memory.scale[row] = curvature[good] / square
    memory.slot[row] = (slot + 1) % pairs


def direction(memory, grads):
    """Returns minus the inverse Hessian times the gradients [V, n]."""
    victims, pairs, _ = memory.moves.shape
    # oldest first; slots still empty hold zeros and come before all others
    count = partial(torch.arange, device=grads.device)
    order = (memory.slot[:, None] + count(pairs)) % pairs
    row = count(victims)[:, None]
    block = row[..., None], order[:, :, None], order[:, None, :]
    moves_changes = memory.moves_changes[block]
    curvature = moves_changes.diagonal(dim1=-2, dim2=-1)
    filler = torch.diag_embed((curvature == 0).double())
    upper = moves_changes.triu() + filler
    scale = memory.scale[:, None, None]
    moves_grads = inner_products(grads, memory.moves)[row, order, None]
    changes_grads = inner_products(grads, memory.changes)[row, order, None]
    inner = torch.linalg.solve_triangular(upper, moves_grads, upper=True)
    outer = curvature[..., None] * inner - scale * changes_grads
    outer += scale * (memory.changes_changes[block] @ inner)
    outer = torch.linalg.solve_triangular(upper.mT, outer, upper=False)
    # back to the rings' own order
    weights = torch.empty_like(outer[..., 0]), torch.empty_like(outer[..., 0])
    weights[0][row, order] = -outer[..., 0]
    weights[1][row, order] = (scale * inner)[..., 0]
    of_moves, of_changes = (w[:, None].to(grads.dtype) for w in weights)
    step = of_moves @ memory.moves + of_changes @ memory.changes
    return step[:, 0] - memory.scale[:, None].to(grads.dtype) * grads


def minimise(evaluate, start, iterations, pairs):
    """Runs fixed-step L-BFGS and keeps each victim's best iterate.

    `evaluate` maps unknowns [V, n] to objectives [V] and gradients [V, n]. Returns the
    best unknowns [V, n] and their objectives [V]; a NaN is never the best.
    """
    guess, memory = start.clone(), empty_memory(start, pairs)
    best, best_objective = start.clone(), start.new_full(start.shape[:1], torch.inf)
    move = last_grads = None
    for _ in range(iterations):
        objective, grads = evaluate(guess)
        better = objective < best_objective
        best = torch.where(better[:, None], guess, best)
        best_objective = torch.where(better, objective, best_objective)
        if move is None:
            length = grads.abs().sum(-1, keepdim=True)
            move = -grads / length.clamp(min=1)
        else:
            remember(memory, move, grads - last_grads)
            move = direction(memory, grads)
        guess = guess + move
        last_grads = grads
    return best, best_objective
