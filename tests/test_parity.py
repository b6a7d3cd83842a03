"""Parity with PyTorch: transplanted weights, stored results (tests/goldens).

Both sides start from the same float32 numbers and compute in float64.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kljax.attacks import lbfgs_torch, squared_l2
from kljax.core.types import Gate, Private, Public
from kljax.defences import keylock
from kljax.defences.lock import key_lock
from kljax.federated.clients import Batches, local_training
from kljax.models import LeNet, from_nnx
from kljax.models.losses import cross_entropy

FOLDER = Path(__file__).parent / "goldens"
LENET, NORM, LOCK, DLG, LBFGS, LOCAL = (
    np.load(FOLDER / f"{name}.npz")
    for name in ("lenet", "norm", "lock", "dlg", "lbfgs", "local")
)
LAYERS = ("conv1", "conv2", "conv3", "fc")


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def model(norm=False):
    lockable = ("norm1",) * norm
    return from_nnx(lambda rngs: LeNet(10, lockable=lockable, rngs=rngs))


def transplant(golden, prefix):
    """Reads torch's parameters (or their gradients) in our layout."""
    out = {}
    for layer in LAYERS:
        weight = np.asarray(golden[f"{prefix}/{layer}/weight"], np.float64)
        if layer == "fc":  # [10, C * H * W] -> [H * W * C, 10]
            weight = weight.reshape(10, 12, 8, 8).transpose(2, 3, 1, 0).reshape(768, 10)
        else:  # OIHW -> HWIO
            weight = weight.transpose(2, 3, 1, 0)
        out[f"{layer}/kernel"] = weight
        out[f"{layer}/bias"] = np.asarray(golden[f"{prefix}/{layer}/bias"], float)
    return out


def nhwc(images):
    return np.moveaxis(np.asarray(images, np.float64), -3, -1)


# NumPy at import, where float64 is not yet switched on.
PARAMS = transplant(LENET, "params")
IMAGES = nhwc(LENET["images"])
TARGETS = np.eye(10)[LENET["labels"]]
STATS = {
    "norm1/mean": np.asarray(NORM["running_mean"], float),
    "norm1/var": np.asarray(NORM["running_var"], float),
}
GATES = {"norm1": Gate(LOCK["gamma"].astype(float), LOCK["beta"].astype(float))}


def in_jax(tree):
    return jax.tree.map(jnp.asarray, tree)


def loss_and_grads(net, stats, gates, train):
    def loss(params):
        out = net.apply(params, stats, IMAGES, gates=gates, train=train)
        return cross_entropy(out.logits, TARGETS), out

    (value, out), grads = jax.value_and_grad(loss, has_aux=True)(in_jax(PARAMS))
    return value, out, grads


def assert_grads(grads, golden, prefix):
    expected = transplant(golden, prefix)  # stored as float32
    for name, value in expected.items():
        scale = np.abs(value).max() + 1e-6
        np.testing.assert_allclose(grads[name], value, rtol=1e-5, atol=1e-6 * scale)


def test_lenet():
    value, out, grads = loss_and_grads(model(), {}, {}, train=True)
    np.testing.assert_allclose(out.logits, LENET["logits"], rtol=1e-10)
    np.testing.assert_allclose(value, LENET["loss"], rtol=1e-10)
    assert_grads(grads, LENET, "grads")


@pytest.mark.parametrize("mode", ("train", "eval"))
@pytest.mark.parametrize("golden", (NORM, LOCK), ids=("norm", "lock"))
def test_norm_and_lock_block(golden, mode):
    gates = GATES if golden is LOCK else {}
    train = mode == "train"
    value, out, grads = loss_and_grads(model(norm=True), STATS, gates, train)
    np.testing.assert_allclose(out.logits, golden[f"{mode}/logits"], rtol=1e-9)
    np.testing.assert_allclose(value, golden[f"{mode}/loss"], rtol=1e-9)
    assert_grads(grads, golden, f"{mode}/grads")
    if not train:
        np.testing.assert_array_equal(out.stats["norm1/var"], STATS["norm1/var"])
        return
    # Same momentum, another convention: torch averages in the unbiased variance.
    np.testing.assert_allclose(
        out.stats["norm1/mean"], NORM["new_running_mean"], rtol=1e-6
    )
    n = IMAGES.shape[0] * 16 * 16
    ours, old = out.stats["norm1/var"], STATS["norm1/var"]
    np.testing.assert_allclose(
        old * 0.9 + (ours - 0.9 * old) * n / (n - 1),
        NORM["new_running_var"],
        rtol=1e-6,
    )


@pytest.mark.parametrize("mode", ("train", "eval"))
def test_lock_block_output(mode):
    out = model(norm=True).apply(
        PARAMS, STATS, IMAGES, gates=GATES, taps=("norm1",), train=mode == "train"
    )
    expected = nhwc(LOCK[f"{mode}/block"])  # stored as float32
    np.testing.assert_allclose(out.taps["norm1"], expected, rtol=1e-6, atol=1e-6)


def lock_weights():
    return (
        {
            name: {
                "kernel": jnp.asarray(LOCK[f"{name}/weight"], float).T,
                "bias": jnp.asarray(LOCK[f"{name}/bias"], float),
            }
            for name in ("scale", "shift")
        },
    )


def test_gates_and_lock_gradients():
    lock = key_lock(("norm1",), (12,), size=16)
    private_key = jnp.asarray(LOCK["private_key"], float)
    gates = lock.gates(lock_weights(), private_key)["norm1"]
    np.testing.assert_allclose(gates.scale, LOCK["gamma"], rtol=1e-7)
    np.testing.assert_allclose(gates.shift, LOCK["beta"], rtol=1e-7)

    def loss(weights):
        gates = lock.gates(weights, private_key)
        out = model(norm=True).apply(PARAMS, STATS, IMAGES, gates=gates, train=True)
        return cross_entropy(out.logits, TARGETS)

    grads = jax.grad(loss)(lock_weights())[0]
    for name in ("scale", "shift"):
        for ours, theirs in (("kernel", "weight"), ("bias", "bias")):
            expected = np.asarray(LOCK[f"train/lock_grads/{name}/{theirs}"])
            np.testing.assert_allclose(
                grads[name][ours], expected.T, rtol=1e-5, atol=1e-8
            )


def dlg(case):
    """Rebuilds a case of dlg.npz: (objective of image, labels' logits, gate) -> []."""
    kind, _, detail = case.partition("_")
    net, train = model(norm=kind != "plain"), detail != "eval"
    stats = {} if kind == "plain" else STATS
    true_gates = GATES if kind == "lock" else {}

    def gradient(image, targets, gates):
        def loss(params):
            out = net.apply(params, stats, image[None], gates=gates, train=train)
            return cross_entropy(out.logits, targets)

        return jax.grad(loss)(in_jax(PARAMS))

    observed = gradient(IMAGES[0], TARGETS[:1], true_gates)

    def objective(image, logits, gate):
        targets = jax.nn.softmax(logits)[None] if detail == "soft" else TARGETS[:1]
        gates = {"norm1": gate} if kind == "lock" else {}
        return squared_l2()(gradient(image, targets, gates), observed)

    return objective


CASES = (
    "plain_onehot",
    "plain_soft",
    "norm_train",
    "norm_eval",
    "lock_train",
    "lock_eval",
)


@pytest.mark.parametrize("case", CASES)
def test_dlg_objective_and_its_gradient(case):
    image = nhwc(DLG["dummy_image"])
    logits = jnp.asarray(DLG["dummy_label_logits"], float)
    gate = Gate(
        jnp.asarray(DLG["dummy_gamma"], float), jnp.asarray(DLG["dummy_beta"], float)
    )
    value, grads = jax.jit(jax.value_and_grad(dlg(case), argnums=(0, 1, 2)))(
        image, logits, gate
    )
    np.testing.assert_allclose(value, DLG[f"{case}/objective"], rtol=1e-9)
    expected = nhwc(DLG[f"{case}/image_grad"])
    scale = np.abs(expected).max()
    np.testing.assert_allclose(grads[0], expected, rtol=1e-6, atol=1e-9 * scale)
    if case == "plain_soft":
        np.testing.assert_allclose(
            grads[1], DLG["plain_soft/label_logits_grad"], rtol=1e-6
        )
    if case.startswith("lock"):
        for ours, name in zip(grads[2], ("gamma_grad", "beta_grad"), strict=True):
            np.testing.assert_allclose(ours, DLG[f"{case}/{name}"], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("case", ("dlg", "dlg_joint"))
def test_lbfgs_torch_on_dlg(case):
    """Three calls of torch's L-BFGS on the attack itself, loss for loss."""
    joint = case == "dlg_joint"
    objective = dlg("plain_soft" if joint else "plain_onehot")
    history, max_iter, max_eval = map(int, LBFGS[f"{case}/settings"])
    optimiser = lbfgs_torch(history=history, max_iter=max_iter, max_eval=max_eval)
    image = nhwc(DLG["dummy_image"])
    logits = np.asarray(DLG["dummy_label_logits"], float)
    losses = LBFGS[f"{case}/losses"]

    @jax.jit
    def run(free):
        def step(carry, _):
            free, state = carry
            value, grads = jax.value_and_grad(
                lambda free: objective(free[0], free[1] if joint else logits, None)
            )(free)
            return optimiser.step(free, state, value, grads), value

        return jax.lax.scan(step, (free, optimiser.init(free)), length=len(losses))[1]

    ours = run(in_jax((image, logits) if joint else (image,)))
    drift = float(LBFGS[f"{case}/loss_drift"])
    atol = (1e-9 + 100 * drift) * np.abs(losses).max()
    np.testing.assert_allclose(ours, losses, rtol=0, atol=atol)


# --- local training, by torch.optim.SGD --------------------------------------------


def trained_locally(optimiser):
    """Trains a client from torch's weights on torch's batches, in float64."""
    lock = key_lock(("norm1",), (12,), size=16)
    training = local_training(model(norm=True), cross_entropy, keylock(lock), optimiser)
    private = Private(jnp.asarray(LOCK["private_key"], float), lock_weights())
    received = in_jax(Public(PARAMS))
    batches = Batches(
        jnp.asarray(nhwc(LOCAL["images"])),
        jnp.asarray(LOCAL["labels"]),
        jnp.ones(len(LOCAL["labels"]), bool),
    )
    run = jax.jit(training.run)
    upload, kept, progress = run(
        jax.random.key(0),
        0,
        received,
        in_jax(STATS),
        training.init(received, private),
        batches,
    )
    moved = jax.tree.map(jnp.subtract, kept.private.trainable, private.trainable)
    return upload, moved[0], progress


def nesterov(rate=0.01, momentum=0.9, decay=5e-4, nesterov=True):
    return optax.chain(
        optax.add_decayed_weights(decay),
        optax.sgd(rate, momentum=momentum, nesterov=nesterov),
    )


def test_local_steps():
    upload, moved, progress = trained_locally(nesterov())
    np.testing.assert_allclose(progress.loss, LOCAL["losses"].mean(), rtol=1e-9)
    assert_grads(upload.delta.model, LOCAL, "moved")
    for name in ("scale", "shift"):
        for ours, theirs in (("kernel", "weight"), ("bias", "bias")):
            expected = LOCAL[f"moved/{name}/{theirs}"].T
            np.testing.assert_allclose(
                moved[name][ours], expected, rtol=1e-5, atol=1e-8
            )
    np.testing.assert_allclose(
        upload.stats["norm1/mean"], LOCAL["new_running_mean"], rtol=1e-9
    )
    # torch averages unbiased variances in, n / (n - 1) of ours, at every step.
    n, left = 2 * 16 * 16, 0.9 ** len(LOCAL["labels"]) * STATS["norm1/var"]
    unbiased = left + (upload.stats["norm1/var"] - left) * n / (n - 1)
    np.testing.assert_allclose(unbiased, LOCAL["new_running_var"], rtol=1e-9)
    apart = np.abs(upload.stats["norm1/var"] / LOCAL["new_running_var"] - 1)
    assert apart.max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "other", [{"nesterov": False}, {"momentum": 0.8}, {"decay": 0.0}], ids=str
)
def test_other_local_steps_are_told_apart(other):
    upload, _, _ = trained_locally(nesterov(**other))
    with pytest.raises(AssertionError):
        assert_grads(upload.delta.model, LOCAL, "moved")
