"""Trajectories of torch.optim.LBFGS (torch 2.13.0, lr 1, no line search), float64.

What one `.step()` evaluates, as seen from the closure:
- It evaluates once at the point where it stands, even if the last `.step()` already
  did. If max|grad| <= tolerance_grad (1e-7) it returns: one evaluation, no iteration.
- Then up to max_iter (20) iterations. Each first updates the memory from the last
  move (a pair with y's <= 1e-10 is skipped and leaves the old H0 = y's/y'y in force),
  takes the direction d and the step t (min(1, 1/|grad|_1) in the very first iteration
  of all, then 1), and stops BEFORE moving if grad'd > -1e-9. Otherwise it moves and
  evaluates, except after the max_iter-th move. A full step thus makes 20 moves and 20
  evaluations, and returns at a point whose loss the closure has not seen yet.
- It stops early after an evaluation: at max_eval (max_iter * 5 / 4) evaluations of
  this step, at max|grad| <= 1e-7, at max|t d| <= 1e-9, at |loss - last loss| < 1e-9.
- An iteration that stops before moving counts as one, and has overwritten d, t and the
  previous gradient. In the next `.step()` y is then 0, so the pair is skipped.
- Comparisons with NaN are false: once the loss is NaN every step makes 20 evaluations.
Pairs, H0, d, t, previous gradient and the iteration count outlive the `.step()`.

Arrays of lbfgs.npz; E evaluations in S steps of n unknowns, CASE below:
  CASE/x0 [n]                  start
  CASE/settings [3]            history_size, max_iter, max_eval (int32)
  CASE/losses [E]              loss at every evaluation, in order
  CASE/evaluations [S]         evaluations of each step (int32), summing to E
  CASE/iterations [S]          iterations so far after each step (int32)
  CASE/iterates [S, n]         unknowns after each step
  CASE/loss_drift, CASE/iterate_drift []   largest change, relative to the largest
      magnitude of that array, when x0 is disturbed by 1e-13 relative: what rounding
      alone may do. All counts survive the disturbance
The cases:
  quadratic        .5 x'Ax - b'x, n = 6; quadratic/A [6, 6], quadratic/b [6]. Converges
                   and stops early; from then on every step stops before moving, after
                   one evaluation and one iteration
  quadratic_short  the same with max_iter 8, max_eval 5: steps end at max_eval
  quadratic_history3, rosenbrock_history3   memory of 3 pairs, oldest dropped
  rosenbrock       sum_i (1 - x_i)^2 + 5 (x_{i+1} - x_i^2)^2, i = 0..n-2, n = 4
  concave          sum_i x_i^4 / 4 - x_i^2 / 2 + .1 x_0 x_1, n = 3, from near 0, where
                   curvature is negative: first pairs skipped
  bowl             x'x / 2, n = 2: stops at the gradient tolerance, then every step
                   evaluates once and returns without an iteration
  root             sum_i x_i - 2 sqrt(x_i), n = 2: oversteps to x < 0, where loss and
                   gradient are NaN; never stops early again (drifts are NaN)
  dlg              known-label DLG objective of plain LeNet (dlg.npz, plain_onehot)
                   from dummy_image, unknowns in C, H, W order, n = 3072
  dlg_joint        image and label logits together, from dummy_image and
                   dummy_label_logits: n = 3082, the image first
"""

import numpy as np
import torch

STEPS = 3


def rosenbrock(x):
    """Returns the chained Rosenbrock function with a mild valley."""
    return ((1 - x[:-1]) ** 2 + 5 * (x[1:] - x[:-1] ** 2) ** 2).sum()


def concave(x):
    """Returns a sum of coupled double wells."""
    return (x**4 / 4 - x**2 / 2).sum() + 0.1 * x[0] * x[1]


def root(x):
    """Returns a function whose quasi-Newton step leaves its domain from x > 2.25."""
    return (x - 2 * x.sqrt()).sum()


def trajectory(objective, x0, steps, history_size=100, max_iter=20, max_eval=None):
    """Runs torch's L-BFGS; returns losses, counts and iterates."""
    x = torch.tensor(x0, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([x], 1, max_iter, max_eval, history_size=history_size)
    losses, evaluations, iterations, iterates = [], [], [], []

    def closure():
        loss = objective(x)
        (x.grad,) = torch.autograd.grad(loss, x)
        losses.append(loss.item())
        return loss

    for _ in range(steps):
        before = len(losses)
        optimiser.step(closure)
        evaluations.append(len(losses) - before)
        iterations.append(optimiser.state[x]["n_iter"])
        iterates.append(x.detach().numpy().copy())
    settings = optimiser.param_groups[0]
    return {
        "x0": np.asarray(x0),
        "settings": np.int32(
            [settings[n] for n in ("history_size", "max_iter", "max_eval")]
        ),
        "losses": np.array(losses),
        "evaluations": np.int32(evaluations),
        "iterations": np.int32(iterations),
        "iterates": np.array(iterates),
    }


def golden(objective, x0, steps, **settings):
    """Returns a trajectory and how far rounding may move it."""
    x0 = np.asarray(x0, dtype=np.float64)
    out = trajectory(objective, x0, steps, **settings)
    disturbance = np.random.default_rng(0).standard_normal(x0.shape)
    twin = trajectory(objective, x0 * (1 + 1e-13 * disturbance), steps, **settings)
    for name in ("evaluations", "iterations"):
        if not np.array_equal(out[name], twin[name]):
            raise RuntimeError(f"{name} hang on rounding: choose another start")
    for name, drift in (("losses", "loss_drift"), ("iterates", "iterate_drift")):
        change = np.abs(out[name] - twin[name]).max()
        out[drift] = change / np.abs(out[name]).max()
    return out


def lbfgs_goldens(matching, dummies):
    """Makes lbfgs.npz; `matching(image, target)` is the DLG objective."""
    rng = np.random.default_rng(1989)
    basis = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    matrix = basis @ np.diag([0.2, 0.5, 0.9, 1.3, 2.0, 3.0]) @ basis.T
    matrix = (matrix + matrix.T) / 2
    vector, start = rng.standard_normal((2, 6))
    tensor = torch.from_numpy(matrix), torch.from_numpy(vector)

    def quadratic(x):
        return 0.5 * x @ tensor[0] @ x - tensor[1] @ x

    def joint(x):
        return matching(x[:3072].view(3, 32, 32), x[3072:].softmax(-1))

    image = dummies["dummy_image"].double().flatten().numpy()
    logits = dummies["dummy_label_logits"].double().numpy()
    valley = [-0.5, 0.8, 0.3, 1.2]
    short = {"max_iter": 8, "max_eval": 5}
    cases = {
        "quadratic": golden(quadratic, start, 5),
        "quadratic_short": golden(quadratic, start, 6, **short),
        "quadratic_history3": golden(quadratic, start, STEPS, history_size=3),
        "rosenbrock": golden(rosenbrock, valley, STEPS),
        "rosenbrock_history3": golden(rosenbrock, valley, STEPS, history_size=3),
        "concave": golden(concave, [0.02, -0.03, 0.05], STEPS),
        "bowl": golden(lambda x: x @ x / 2, [3.0, -4.0], STEPS),
        "root": golden(root, [5.0, 4.0], 2),
        "dlg": golden(lambda x: matching(x.view(3, 32, 32)), image, STEPS),
        "dlg_joint": golden(joint, np.concatenate([image, logits]), STEPS),
    }
    arrays = {f"{c}/{n}": a for c, out in cases.items() for n, a in out.items()}
    return arrays | {"quadratic/A": matrix, "quadratic/b": vector}
