"""Makes the PyTorch golden files of this folder; the tests read them without torch.

Made with torch 2.13.0 (CPU, one thread). Remake with a Python that has torch 2.13.0
and numpy:

    python tests/goldens/make_goldens.py

Everything is computed in float64 from float32 inputs, so that a test in float32 or
in float64 starts from exactly the same numbers; gradients of parameters are stored
rounded to float32, values named *objective* and image gradients as float64.

Layouts are torch's: images [B, C, H, W], convolutions [out, in, kh, kw], dense
weights [out, in], flattened features in C, H, W order. PARAMS stands for the eight
names conv1/weight [12, 3, 5, 5], conv1/bias [12], conv2/weight [12, 12, 5, 5],
conv2/bias, conv3/weight, conv3/bias, fc/weight [10, 768], fc/bias [10]. Gradients
are of the mean cross-entropy over the batch.

lenet.npz, LeNet of the DLG paper with sigmoids; the other files use these weights
  params/PARAMS              weights and biases, U(-.5, .5)
  images [2, 3, 32, 32]      U(0, 1);  labels [2] int32
  logits [2, 10], loss []    float64
  grads/PARAMS               gradient of the loss

norm.npz, the control: LeNet with a batch norm without affine after conv1 (eps 1e-5,
momentum .1), MODE = train | eval
  running_mean, running_var [12]   statistics before the call
  MODE/logits, MODE/loss, MODE/grads/PARAMS   as above
  batch_mean, batch_var [12]       of conv1's output, variance biased (what train
                                   mode divides by)
  new_running_mean, new_running_var [12]   after one train-mode call. torch averages
                                   in the UNBIASED variance, batch_var * n / (n - 1)
                                   with n = B*16*16; eval mode changes nothing

lock.npz, LeNet with the lock block: y = gamma * norm(conv1(x)) + beta, gamma =
relu(W_s k + b_s), beta = relu(W_b k + b_b), K = 16; MODE = train | eval. Running
statistics before and after the call are those of norm.npz (the lock acts later).
  private_key [16]                 U(0, 1)
  scale/weight [12, 16], scale/bias [12], shift/weight, shift/bias   U(-.5, .5)
  gamma, beta [12]                 the gates, some of them 0
  MODE/block [2, 12, 16, 16]       y above, before the sigmoid
  MODE/logits, MODE/loss, MODE/grads/PARAMS   as above; in train mode the gradient
                                   of conv1/bias is 0 up to rounding
  MODE/lock_grads/NAME             of scale/weight, scale/bias, shift/weight,
                                   shift/bias, private_key, gamma, beta

dlg.npz, gradient matching at batch 1: objective = sum over PARAMS of squared
differences between the gradient at (dummy image, label) and the observed gradient.
Observed: images[0], labels[0] of lenet.npz. CASE = plain_onehot (true label),
plain_soft (softmax of dummy_label_logits), norm_train, norm_eval, lock_train,
lock_eval (true label, statistics of norm.npz, observed under the gates of lock.npz
and replayed under dummy_gamma, dummy_beta), lock_private_key (train mode, gates from
the true lock weights and dummy_private_key)
  dummy_image [3, 32, 32], dummy_label_logits [10], dummy_gamma, dummy_beta [12],
  dummy_private_key [16]     float32
  CASE/objective []          float64;  CASE/objective_float32: the same run in float32
  CASE/image_grad [3, 32, 32]     float64 (all but lock_private_key)
  plain_soft/label_logits_grad [10], lock_MODE/gamma_grad, lock_MODE/beta_grad [12],
  lock_private_key/private_key_grad [16]   float64

lbfgs.npz, trajectories of torch.optim.LBFGS: see lbfgs_goldens.py.

grnn.npz, GRNN's generator and torch.optim.RMSprop: see grnn_goldens.py.
local.npz, local training by torch.optim.SGD: see local_goldens.py.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from grnn_goldens import grnn_goldens
from lbfgs_goldens import lbfgs_goldens
from local_goldens import local_goldens

FOLDER = Path(__file__).parent
EPS, MOMENTUM, PRIVATE_KEY_SIZE = 1e-5, 0.1, 16
SHAPES = {
    "conv1/weight": (12, 3, 5, 5),
    "conv1/bias": (12,),
    "conv2/weight": (12, 12, 5, 5),
    "conv2/bias": (12,),
    "conv3/weight": (12, 12, 5, 5),
    "conv3/bias": (12,),
    "fc/weight": (10, 768),
    "fc/bias": (10,),
}
LOCK_SHAPES = {
    "scale/weight": (12, PRIVATE_KEY_SIZE),
    "scale/bias": (12,),
    "shift/weight": (12, PRIVATE_KEY_SIZE),
    "shift/bias": (12,),
}


def lenet(params, images, block=lambda h: h):
    """Returns the logits [B, 10] of LeNet with `block` between conv1 and sigmoid."""
    h = F.conv2d(images, params["conv1/weight"], params["conv1/bias"], 2, 2)
    h = torch.sigmoid(block(h))
    h = F.conv2d(h, params["conv2/weight"], params["conv2/bias"], 2, 2)
    h = torch.sigmoid(h)
    h = F.conv2d(h, params["conv3/weight"], params["conv3/bias"], 1, 2)
    h = torch.sigmoid(h).flatten(1)
    return F.linear(h, params["fc/weight"], params["fc/bias"])


def norm(stats, train, gates=None):
    """Returns the block norm (without affine) and then, if given, the gates."""

    def block(h):
        mean, var = stats[0].to(h.dtype).clone(), stats[1].to(h.dtype).clone()
        h = F.batch_norm(h, mean, var, None, None, train, MOMENTUM, EPS)
        if gates is None:
            return h
        return gates[0][:, None, None] * h + gates[1][:, None, None]

    return block


def lock_gates(lock):
    """Returns (gamma [12], beta [12]) of a lock with ReLU gates."""
    private_key = lock["private_key"]
    gamma = F.relu(F.linear(private_key, lock["scale/weight"], lock["scale/bias"]))
    beta = F.relu(F.linear(private_key, lock["shift/weight"], lock["shift/bias"]))
    return gamma, beta


def uniform(rng, shapes):
    """Returns float32 tensors U(-.5, .5), one per name."""
    draws = {n: uniform32(rng, shape, -0.5, 0.5) for n, shape in shapes.items()}
    return {n: torch.from_numpy(draw) for n, draw in draws.items()}


def uniform32(rng, shape, low=0.0, high=1.0):
    """Returns U(low, high) as float32."""
    return rng.uniform(low, high, shape).astype(np.float32)


def leaves(tensors, dtype=torch.float64):
    """Returns copies of the tensors that gradients can be asked for."""
    return {n: t.detach().to(dtype).requires_grad_() for n, t in tensors.items()}


def gradient(params, images, targets, block=lambda h: h, extra=()):
    """Returns logits, loss, gradients by name and those of `extra`; differentiable."""
    logits = lenet(params, images, block)
    loss = F.cross_entropy(logits, targets)
    wanted = [*params.values(), *extra]
    grads = torch.autograd.grad(loss, wanted, create_graph=True)
    return logits, loss, dict(zip(params, grads, strict=False)), grads[len(params) :]


def network_arrays(prefix, logits, loss, grads):
    """Returns one network's outcome as arrays, gradients rounded to float32."""
    named = {f"{prefix}grads/{n}": array(g, np.float32) for n, g in grads.items()}
    return {f"{prefix}logits": array(logits), f"{prefix}loss": array(loss), **named}


def array(tensor, dtype=None):
    """Returns a tensor as a NumPy array."""
    return np.asarray(tensor.detach().numpy(), dtype=dtype)


def lenet_goldens(params, images, labels):
    """Makes lenet.npz."""
    logits, loss, grads, _ = gradient(leaves(params), images.double(), labels)
    return {
        **{f"params/{n}": array(p) for n, p in params.items()},
        "images": array(images),
        "labels": array(labels, np.int32),
        **network_arrays("", logits, loss, grads),
    }


def norm_goldens(params, images, labels, stats):
    """Makes norm.npz."""
    out = {"running_mean": array(stats[0]), "running_var": array(stats[1])}
    for mode in ("train", "eval"):
        block = norm(stats, mode == "train")
        logits, loss, grads, _ = gradient(
            leaves(params), images.double(), labels, block
        )
        out |= network_arrays(f"{mode}/", logits, loss, grads)
    weight, bias = params["conv1/weight"].double(), params["conv1/bias"].double()
    h = F.conv2d(images.double(), weight, bias, 2, 2)
    mean, var = stats[0].double().clone(), stats[1].double().clone()
    F.batch_norm(h, mean, var, None, None, True, MOMENTUM, EPS)
    out["batch_mean"] = array(h.mean((0, 2, 3)))
    out["batch_var"] = array(h.var((0, 2, 3), correction=0))
    return out | {"new_running_mean": array(mean), "new_running_var": array(var)}


def lock_goldens(params, images, labels, stats, lock):
    """Makes lock.npz."""
    out = {n: array(t) for n, t in lock.items()}
    for mode in ("train", "eval"):
        net, free = leaves(params), leaves(lock)
        gates = lock_gates(free)
        block = norm(stats, mode == "train", gates)
        logits, loss, grads, hidden = gradient(
            net, images.double(), labels, block, [*free.values(), *gates]
        )
        h = F.conv2d(images.double(), net["conv1/weight"], net["conv1/bias"], 2, 2)
        out |= network_arrays(f"{mode}/", logits, loss, grads)
        out[f"{mode}/block"] = array(block(h), np.float32)
        names = [*free, "gamma", "beta"]
        for n, g in zip(names, hidden, strict=True):
            out[f"{mode}/lock_grads/{n}"] = array(g, np.float32)
    return out | {"gamma": array(gates[0]), "beta": array(gates[1])}


def dlg_cases(stats, lock):
    """Returns CASE -> (replay from the free leaves, observed block, free leaves)."""

    def with_gates(train):
        def replay(free):
            gates = free["dummy_gamma"], free["dummy_beta"]
            return norm(stats, train, gates), None

        return replay

    def from_private_key(free):
        dtype = free["dummy_private_key"].dtype
        guess = {n: t.to(dtype) for n, t in lock.items()}
        gates = lock_gates(guess | {"private_key": free["dummy_private_key"]})
        return norm(stats, True, gates), None

    def soft(free):
        return (lambda h: h), free["dummy_label_logits"].softmax(-1)

    def true_block(dtype, train):
        return norm(stats, train, lock_gates({n: t.to(dtype) for n, t in lock.items()}))

    plain, gates = (lambda dtype: lambda h: h), ["dummy_gamma", "dummy_beta"]
    return {
        "plain_onehot": (lambda free: (lambda h: h, None), plain, []),
        "plain_soft": (soft, plain, ["dummy_label_logits"]),
        "norm_train": (
            lambda free: (norm(stats, True), None),
            lambda dtype: norm(stats, True),
            [],
        ),
        "norm_eval": (
            lambda free: (norm(stats, False), None),
            lambda dtype: norm(stats, False),
            [],
        ),
        "lock_train": (with_gates(True), lambda d: true_block(d, True), gates),
        "lock_eval": (with_gates(False), lambda d: true_block(d, False), gates),
        "lock_private_key": (
            from_private_key,
            lambda d: true_block(d, True),
            ["dummy_private_key"],
        ),
    }


def dlg_objective(params, image, target, observed, block=lambda h: h):
    """Returns the DLG objective at one image [3, 32, 32] and soft label [10]."""
    grads = gradient(params, image[None], target[None], block)[2]
    return sum((grads[n] - observed[n]).square().sum() for n in params)


def dlg_goldens(params, images, labels, stats, lock, dummies):
    """Makes dlg.npz."""
    out = {n: array(t) for n, t in dummies.items()}
    for case, (replay, observed_block, names) in dlg_cases(stats, lock).items():
        for dtype in (torch.float64, torch.float32):
            net, free = leaves(params, dtype), leaves(dummies, dtype)
            onehot = F.one_hot(labels[0], 10).to(dtype)
            observed = gradient(
                net, images[:1].to(dtype), onehot[None], observed_block(dtype)
            )[2]
            observed = {n: g.detach() for n, g in observed.items()}
            block, soft = replay(free)
            target = onehot if soft is None else soft
            value = dlg_objective(net, free["dummy_image"], target, observed, block)
            if dtype == torch.float32:
                out[f"{case}/objective_float32"] = array(value)
                continue
            out[f"{case}/objective"] = array(value)
            wanted = ["dummy_image", *names]
            grads = torch.autograd.grad(value, [free[n] for n in wanted])
            for n, g in zip(wanted, grads, strict=True):
                # lock_train has this image gradient already, but for the gates
                if (case, n) != ("lock_private_key", "dummy_image"):
                    out[f"{case}/{n.removeprefix('dummy_')}_grad"] = array(g)
    return out


def main():
    """Writes every golden file."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(2305)
    params = uniform(rng, SHAPES)
    images = torch.from_numpy(uniform32(rng, (2, 3, 32, 32)))
    labels = torch.tensor([3, 8])
    stats = [
        torch.from_numpy(uniform32(rng, 12, -0.5, 0.5)),
        torch.from_numpy(uniform32(rng, 12, 0.5, 1.5)),
    ]
    lock = uniform(rng, LOCK_SHAPES)
    lock["private_key"] = torch.from_numpy(uniform32(rng, PRIVATE_KEY_SIZE))
    dummies = {
        "dummy_image": 0.5 + 0.1 * rng.standard_normal((3, 32, 32)),
        "dummy_label_logits": rng.standard_normal(10),
        "dummy_gamma": rng.uniform(0.5, 1.5, 12),
        "dummy_beta": rng.uniform(0.0, 0.5, 12),
        "dummy_private_key": rng.uniform(0.0, 1.0, PRIVATE_KEY_SIZE),
    }
    dummies = {n: torch.from_numpy(d.astype(np.float32)) for n, d in dummies.items()}
    net = leaves(params)
    onehot = F.one_hot(labels[0], 10).double()
    observed = gradient(net, images[:1].double(), onehot[None])[2]
    observed = {n: g.detach() for n, g in observed.items()}

    def matching(image, target=onehot):
        return dlg_objective(net, image, target, observed)

    files = {
        "lenet": lenet_goldens(params, images, labels),
        "norm": norm_goldens(params, images, labels, stats),
        "lock": lock_goldens(params, images, labels, stats, lock),
        "dlg": dlg_goldens(params, images, labels, stats, lock, dummies),
        "lbfgs": lbfgs_goldens(matching, dummies),
        "grnn": grnn_goldens(),
        "local": local_goldens(lenet, params, stats, lock, momentum=MOMENTUM, eps=EPS),
    }
    for name, arrays in files.items():
        path = FOLDER / f"{name}.npz"
        np.savez_compressed(path, **arrays)
        print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
