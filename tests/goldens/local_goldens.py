"""Local training of one client in PyTorch: torch.optim.SGD on LeNet with the lock.

local.npz, T = 4 steps of SGD (rate .01, momentum .9, Nesterov, weight decay 5e-4) on
the network and lock of lock.npz, train mode, from the statistics of norm.npz
  images [4, 2, 3, 32, 32]   U(0, 1);  labels [4, 2] int32
  losses [4]                 before each step, float64
  moved/PARAMS, moved/NAME   parameters and lock weights after minus before, as float32
  new_running_mean, new_running_var [12]   after the last step
"""

import numpy as np
import torch
import torch.nn.functional as F

STEPS = 4
SGD = {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}


def local_goldens(lenet, params, stats, lock, *, momentum, eps):
    """Returns the arrays of local.npz.

    Args:
      lenet: ``(params, images, block) -> logits``.
      params: of the network, float32 tensors by name.
      stats: running mean and variance [12] before the first step.
      lock: private key and lock weights, float32 tensors by name.
      momentum, eps: of the norm.
    """
    rng = np.random.default_rng(7)
    images = rng.uniform(0, 1, (STEPS, 2, 3, 32, 32)).astype(np.float32)
    labels = rng.integers(0, 10, (STEPS, 2)).astype(np.int32)
    private_key = lock["private_key"].double()
    before = params | {n: t for n, t in lock.items() if n != "private_key"}
    trained = {n: t.double().clone().requires_grad_() for n, t in before.items()}
    mean, var = (s.double().clone() for s in stats)
    descent = torch.optim.SGD(trained.values(), **SGD)

    def block(h):
        gates = (
            F.relu(F.linear(private_key, trained[f"{n}/weight"], trained[f"{n}/bias"]))
            for n in ("scale", "shift")
        )
        scale, shift = (gate[:, None, None] for gate in gates)
        h = F.batch_norm(h, mean, var, None, None, True, momentum, eps)
        return scale * h + shift

    losses = []
    for batch, truth in zip(images, labels, strict=True):
        descent.zero_grad()
        logits = lenet(trained, torch.from_numpy(batch).double(), block)
        loss = F.cross_entropy(logits, torch.from_numpy(truth).long())
        loss.backward()
        descent.step()
        losses.append(loss.item())
    moved = {
        f"moved/{n}": (t.detach() - before[n].double()).numpy().astype(np.float32)
        for n, t in trained.items()
    }
    return {
        "images": images,
        "labels": labels,
        "losses": np.array(losses),
        "new_running_mean": mean.numpy(),
        "new_running_var": var.numpy(),
    } | moved
