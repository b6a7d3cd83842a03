# %% [markdown] tags=["badge"]
# *No Colab badge yet: kljax has no public address. To run this in Colab, upload this
# file, and a wheel of kljax (`pip wheel --no-deps FOLDER`) to the runtime's working
# folder, where the next cell finds it.*

# %% tags=["install"]
# A fresh Colab runtime has no kljax: this installs it for the CPU, GPU or TPU that is
# there. TensorFlow is neither needed nor installed. Elsewhere this does nothing.
import importlib.util

if importlib.util.find_spec("kljax") is None:
    import glob
    import subprocess
    import sys

    gpu = glob.glob("/dev/nvidia[0-9]*")
    tpu = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    extra = "[cuda]" if gpu else "[tpu]" if tpu else ""
    wheels = sorted(glob.glob("kljax-*.whl"))
    if not wheels:
        raise ModuleNotFoundError(
            "kljax is not installed, and has no public address to install it from "
            "yet: put a wheel of it (pip wheel --no-deps FOLDER) in this folder"
        )
    package = f"./{wheels[-1]}{extra}"
    before = {"jax", "numpy", "matplotlib", "PIL"} & sys.modules.keys()
    command = [sys.executable, "-m", "pip", "install", "--quiet", package]
    subprocess.run(command, check=True)
    if before:
        print(f"Restart the session once; loaded before: {', '.join(sorted(before))}")

# %% [markdown]
# # A key-lock in ten lines
#
# In federated learning a client keeps its images and sends gradients. The key-lock of
# Ren, Deng and Xie ([arXiv 2305.04095](https://arxiv.org/abs/2305.04095)) adds a secret
# to the network: a *private key* and *lock weights*, which both stay with the client,
# make a *gate* for one layer, a scale and a shift per channel.
#
# Here a network that knows nothing of kljax gets such a lock, without being edited. You
# will see what a gate is, what it does to the network, and what the server still
# receives.

# %%
import os

import jax
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

import kljax

TINY = "KLJAX_TINY" in os.environ  # the tests' small settings
SIDE, EXAMPLES = (8, 4) if TINY else (16, 32)

# %% [markdown]
# ## Some images, and a network
#
# Any network will do. This one is nobody's in particular: a convolution, a norm, a
# classifier.

# %%
digits = kljax.data.load("digits", shape=(SIDE, SIDE, 3))
images, labels = digits.fetch(kljax.data.select(digits, EXAMPLES, seed=0))


class Network(nnx.Module):
    """Classifies by the mean of eight channels."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.head = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, images):
        """Maps images [B, H, W, 3] to logits [B, 10]."""
        x = nnx.relu(self.norm(self.conv(images)))
        return self.head(x.mean(axis=(1, 2)))


# %% [markdown]
# ## The ten lines
#
# Which layer? It is named by what it is, and counted: a lock that silently misses its
# layer protects nothing.

# %%
rng_lock, rng_key, rng_other, rng_net = jax.random.split(jax.random.key(0), 4)
model = kljax.from_nnx(Network)
sites = kljax.find_sites(Network, lambda _, m: isinstance(m, nnx.BatchNorm), count=1)
widths = kljax.site_widths(model, sites, digits.shape)
lock = kljax.key_lock(sites, widths)
lock_weights = lock.init(rng_lock)
private_key = lock.private_key(rng_key)
gates = lock.gates(lock_weights, private_key)
params, stats = model.init(rng_net)
locked = model.apply(params, stats, images, gates=gates, train=True)

# %% [markdown]
# ## What a gate is
#
# Two numbers per channel, made by one dense layer each from the private key, then a
# ReLU. Below are the gates of our private key, and those that *another* private key
# makes with the same lock weights.
#
# Two things to look for. A scale of exactly 0 is a dead channel: whatever that channel
# saw is gone, for the attacker and for the client alike. And how far apart are the two
# keys' gates? Private keys are uniform numbers on [0, 1), so a part of what a key
# gives, that of their mean, is the same for all of them.

# %%
other_gates = lock.gates(lock_weights, lock.private_key(rng_other))
(site,) = sites
figure, axes = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
for axis, part in zip(axes, ("scale", "shift"), strict=True):
    for offset, (name, made) in zip(
        (-0.2, 0.2), {"our key": gates, "another key": other_gates}.items(), strict=True
    ):
        values = np.asarray(getattr(made[site], part))
        axis.bar(np.arange(len(values)) + offset, values, 0.4, label=name)
    axis.set(title=f"{part} at {site!r}", xlabel="channel")
axes[0].legend()
plt.show()

dead = int(np.sum(gates[site].scale == 0))
apart = np.linalg.norm(gates[site].scale - other_gates[site].scale)
print(f"{dead} of {widths[0]} channels are dead under our key")
print(
    f"the two keys' scales are {apart / np.linalg.norm(gates[site].scale):.0%} of "
    "their length apart"
)

# %% [markdown]
# ## What a gate does
#
# The same parameters and the same image, with and without the lock: the output of the
# locked layer, channel by channel. kljax puts the gate on while the network runs and
# takes it off afterwards; `taps` reads a layer's output on the way.

# %%
plain = model.apply(params, stats, images, taps=sites, train=True)
locked = model.apply(params, stats, images, gates=gates, taps=sites, train=True)
figure, axes = plt.subplots(2, 9, figsize=(10, 2.6), layout="constrained")
for line, (name, output) in zip(
    axes, {"plain": plain, "locked": locked}.items(), strict=True
):
    line[0].imshow(images[0])
    line[0].set_ylabel(name)
    for channel, axis in enumerate(line[1:]):
        axis.imshow(output.taps[site][0, :, :, channel], vmin=-2, vmax=2, cmap="RdBu")
        axis.set_title(f"channel {channel}", fontsize=8)
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
plt.show()

# %% [markdown]
# So the same parameters answer differently. These are the class probabilities of that
# image, for someone without gates, with our gates, and with those of another key. The
# network is untrained: only the differences mean anything.

# %%
other = model.apply(params, stats, images, gates=other_gates, train=True)
answers = {"no gates": plain, "our key": locked, "another key": other}
figure, axis = plt.subplots(figsize=(7, 2.6), layout="constrained")
for place, (name, output) in enumerate(answers.items()):
    chances = jax.nn.softmax(output.logits[0])
    axis.bar(np.arange(10) + 0.27 * (place - 1), chances, 0.27, label=name)
axis.set(xlabel="class", ylabel="probability", xticks=range(10))
axis.legend()
plt.show()

# %% [markdown]
# ## What the server receives
#
# The gradient of the public parameters, and its tree is the very same with and without
# the lock. Private key and lock weights have no place in it; their gradients exist on
# the client alone.

# %%
targets = jax.nn.one_hot(labels, digits.num_classes)


def loss(params, gates):
    """Computes the client's training loss."""
    out = model.apply(params, stats, images, gates=gates, train=True)
    return kljax.losses.cross_entropy(out.logits, targets)


sent_plain, sent_locked = jax.grad(loss)(params, {}), jax.grad(loss)(params, gates)
assert jax.tree.structure(sent_plain) == jax.tree.structure(sent_locked)
for path in sorted(sent_locked):
    before, after = (np.linalg.norm(tree[path]) for tree in (sent_plain, sent_locked))
    print(f"sent  {path:12} {str(sent_locked[path].shape):14}", end=" ")
    print(f"length {before:.4f}, under the lock {after:.4f}")
secret = sum(leaf.size for leaf in jax.tree.leaves(lock_weights))
print(f"kept  private key: {private_key.size} numbers; lock weights: {secret} numbers")

# %% [markdown]
# ## What this does not show
#
# Nothing here says that the image cannot be recovered. What is sent is still computed
# from it, and all that the secret does to the network is those few numbers in the first
# picture. Whether that is enough is a question for an attack:
# `02_leak_with_and_without`.
