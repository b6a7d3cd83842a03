"""Fixed-step L-BFGS over a victim axis, in PyTorch.

Per victim the same rule as torch.optim.LBFGS without line search and without early
stopping: step 1 (the first one min(1, 1/|g|_1)), H0 = y's/y'y, pairs with y's <= 1e-10
skipped, one evaluation per iteration. The direction is computed in compact form
(Byrd, Nocedal, Schnabel 1994, theorem 2.2), equal to the two-loop recursion in exact
arithmetic: it reads the memory twice instead of walking it in 2 x 20 dependent steps,
and the small matrices are the only place where victims with skipped pairs differ.
Letters: V victims, M pairs, n unknowns.
"""

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
        slot=torch.zeros(victims, dtype=torch.int64),
        scale=like.new_ones(victims, dtype=torch.float64),
    )


def remember(memory, move, change):
    """Stores one pair per victim (move, change [V, n]) where its curvature allows."""
    victims, pairs, _ = memory.moves.shape
    curvature = (move * change).sum(-1).double()
    good = curvature > SMALLEST_CURVATURE
    row, slot = torch.arange(victims)[good], memory.slot[good]
    memory.moves[row, slot] = move[good]
    memory.changes[row, slot] = change[good]
    # the new row and column of both small matrices; wasted for victims that skip
    both = torch.stack([move, change], -1)
    products = (memory.changes @ both).double()
    column = (memory.moves @ change[..., None]).double()[..., 0]
    memory.moves_changes[row, slot] = products[good, :, 0]
    memory.moves_changes[row, :, slot] = column[good]
    memory.changes_changes[row, slot] = products[good, :, 1]
    memory.changes_changes[row, :, slot] = products[good, :, 1]
    square = memory.changes_changes[row, slot, slot]
    memory.scale[row] = curvature[good] / square
    memory.slot[row] = (slot + 1) % pairs


def direction(memory, grads):
    """Returns minus the inverse Hessian times the gradients [V, n]."""
    victims, pairs, _ = memory.moves.shape
    # oldest first; slots still empty hold zeros and come before all others
    order = (memory.slot[:, None] + torch.arange(pairs)) % pairs
    row = torch.arange(victims)[:, None]
    block = row[..., None], order[:, :, None], order[:, None, :]
    moves_changes = memory.moves_changes[block]
    curvature = moves_changes.diagonal(dim1=-2, dim2=-1)
    filler = torch.diag_embed((curvature == 0).double())
    upper = moves_changes.triu() + filler
    scale = memory.scale[:, None, None]
    moves_grads = (memory.moves @ grads[..., None]).double()[row, order]
    changes_grads = (memory.changes @ grads[..., None]).double()[row, order]
    inner = torch.linalg.solve_triangular(upper, moves_grads, upper=True)
    outer = curvature[..., None] * inner - scale * changes_grads
    outer += scale * (memory.changes_changes[block] @ inner)
    outer = torch.linalg.solve_triangular(upper.mT, outer, upper=False)
    slots = torch.zeros_like(outer), torch.zeros_like(outer)
    for target, source in zip(slots, (outer, scale * inner), strict=True):
        target[row, order] = source
    step = memory.scale[:, None] * grads
    step += (slots[0].mT.to(grads.dtype) @ memory.moves)[:, 0]
    step -= (slots[1].mT.to(grads.dtype) @ memory.changes)[:, 0]
    return -step


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
