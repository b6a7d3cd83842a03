"""Federated averaging by fedjax's jit backend, on plain functions with `lax.conv`.

fedjax compiles one step of one client and calls it from Python, client after client.
Parameters and statistics are flat dictionaries with kljax's names. The networks need
not be Haiku's: `fedjax.for_each_client` takes any functions of trees, and carries the
norm statistics that `fedjax.algorithms.fed_avg` has no place for.

fedjax 0.0.17 calls `jax.tree_map`, which JAX has dropped; it is put back here, and
nothing else is changed.
"""

import time

import fedjax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from .serving import serve_object

jax.tree_map = jax.tree_util.tree_map


def convolve(params, path, x, stride=1, padded=True):
    """Convolves images [B, H, W, C] with an odd window, padded by half of it or not."""
    kernel = params[f"{path}/kernel"]
    half = kernel.shape[0] // 2 if padded else 0
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((half, half), (half, half)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def lenet(params, stats, images):
    """DLG's LeNet: logits [B, Kc] and the (absent) statistics."""
    x = images
    for path, stride in (("conv1", 2), ("conv2", 2), ("conv3", 1)):
        x = convolve(params, path, x, stride) + params[f"{path}/bias"]
        x = jax.nn.sigmoid(x)
    x = x.reshape(x.shape[0], -1)
    return x @ params["fc/kernel"] + params["fc/bias"], stats


def batch_norm(params, stats, updated, path, x):
    """Normalises by the batch; leaves the new running statistics in `updated`."""
    mean = x.mean((0, 1, 2))
    var = jnp.square(x - mean).mean((0, 1, 2))
    for name, value in (("mean", mean), ("var", var)):
        old = stats[f"{path}/{name}"]
        updated[f"{path}/{name}"] = 0.9 * old + 0.1 * value
    x = (x - mean) * jax.lax.rsqrt(var + 1e-5)
    return x * params[f"{path}/scale"] + params[f"{path}/bias"]


def resnet20(params, stats, images):
    """CIFAR's ResNet-20, option A: logits [B, Kc] and the new statistics."""
    updated = {}

    def layer(x, path, number, stride=1):
        x = convolve(params, f"{path}conv{number}", x, stride)
        return batch_norm(params, stats, updated, f"{path}norm{number}", x)

    x = jax.nn.relu(layer(images, "", 1))
    for block in range(9):
        stride = 2 if block in (3, 6) else 1
        y = jax.nn.relu(layer(x, f"blocks/{block}/", 1, stride))
        y = layer(y, f"blocks/{block}/", 2)
        x = x[:, ::stride, ::stride]
        widening = y.shape[-1] - x.shape[-1]
        channels = (widening // 2, widening - widening // 2)
        x = jax.nn.relu(y + jnp.pad(x, ((0, 0), (0, 0), (0, 0), channels)))
    return x.mean((1, 2)) @ params["fc/kernel"] + params["fc/bias"], updated


def tutorial_cnn(params, stats, images):
    """The network of PyTorch's tutorial: logits [B, Kc] and the (absent) statistics."""
    x = images
    for path in ("conv1", "conv2"):
        x = convolve(params, path, x, padded=False) + params[f"{path}/bias"]
        x = jax.nn.relu(x)
        window, zero = (1, 2, 2, 1), -jnp.inf
        x = jax.lax.reduce_window(x, zero, jax.lax.max, window, window, "VALID")
    x = x.reshape(x.shape[0], -1)
    for path in ("fc1", "fc2"):
        x = jax.nn.relu(x @ params[f"{path}/kernel"] + params[f"{path}/bias"])
    return x @ params["fc3/kernel"] + params["fc3/bias"], stats


NETWORKS = {"lenet": lenet, "resnet20": resnet20, "tutorial-cnn": tutorial_cnn}


def local_training(network, optimiser):
    """Makes fedjax's function of many clients: (id, delta of (params, stats), [])."""

    def loss(params, stats, batch):
        logits, stats = NETWORKS[network](params, stats, batch["x"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        return losses.mean(), stats

    def init(server, client):
        del client
        params, stats = server
        return params, stats, optimiser.init(params)

    def step(state, batch):
        params, stats, memory = state
        grads, stats = jax.grad(loss, has_aux=True)(params, stats, batch)
        memory, params = optimiser.apply(grads, memory, params)
        return params, stats, memory

    def final(server, state):
        return jax.tree_util.tree_map(jnp.subtract, server, state[:2])

    return fedjax.for_each_client(init, step, final)


class Federation:
    """What the server and the clients hold; see `federated_peer.FederatedPeer.load`."""

    def __init__(self, network, rate, path):
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        self.images, self.labels, self.batches, self.weights = (
            arrays.pop(name) for name in ("images", "labels", "batches", "weights")
        )
        statistics = ("mean", "var")
        stats = {n: a for n, a in arrays.items() if n.split("/")[-1] in statistics}
        params = {n: a for n, a in arrays.items() if n not in stats}
        self.server = jax.device_put((params, stats))
        with fedjax.for_each_client_backend("jit"):
            self.train = local_training(network, fedjax.optimizers.sgd(rate))

    def round(self, setting, first, last, steps=None, path=None):
        """Runs the clients first..last-1; their mean goes to `path`, if there is one.

        Returns the clock before and after, and the sum of the clients' weights.
        """
        del setting
        start = time.perf_counter()
        clients = [(i, self._batches(i, steps), None) for i in range(first, last)]
        delta = fedjax.tree_util.tree_mean(
            (delta, self.weights[client])
            for client, delta, *_ in self.train(self.server, clients)
        )
        mean = jax.tree_util.tree_map(jnp.subtract, self.server, delta)
        jax.block_until_ready(mean)
        stop = time.perf_counter()
        if path:
            np.savez(path, **mean[0], **mean[1])
        weight = float(self.weights[first:last].sum())
        return {"start": start, "stop": stop, "weight": weight}

    def _batches(self, client, steps):
        for batch in self.batches[client, :steps]:
            yield {"x": self.images[batch], "y": self.labels[batch]}


if __name__ == "__main__":
    serve_object("round", load=Federation)
