# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # A key-lock in ten lines
#
# A network that knows nothing of kljax is locked without being edited. The private key
# and the lock weights make a *gate* (scale and shift per channel) for one layer;
# everything the server sees keeps the shape it had.

# %%
import jax
from flax import nnx

import kljax


class Network(nnx.Module):
    """Any network: this one is nobody's in particular."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.head = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, images):
        """Maps images [B, H, W, 3] to logits [B, 10]."""
        x = nnx.relu(self.norm(self.conv(images)))
        return self.head(x.mean(axis=(1, 2)))


# %% [markdown]
# Which layers? Named by what they are, and counted: a lock that silently misses its
# layer protects nothing.

# %%
model = kljax.from_nnx(Network)
sites = kljax.find_sites(
    Network, lambda path, module: isinstance(module, nnx.BatchNorm), count=1
)
lock = kljax.key_lock(sites, kljax.site_widths(model, sites, (16, 16, 3)))
rng_key, rng_lock, rng_net, rng_data = jax.random.split(jax.random.key(0), 4)
gates = lock.gates(lock.init(rng_lock), lock.private_key(rng_key))

# %% [markdown]
# The same parameters, with and without the lock.

# %%
params, stats = model.init(rng_net)
images = jax.random.uniform(rng_data, (4, 16, 16, 3))
plain = model.apply(params, stats, images, train=True)
locked = model.apply(params, stats, images, gates=gates, train=True)
print("sites:", sites)
print("gates:", jax.tree.map(lambda x: x.shape, gates))
print("largest change of a logit:", abs(locked.logits - plain.logits).max())
assert jax.tree.structure(plain.stats) == jax.tree.structure(locked.stats)
