"""Networks that were not written for kljax: plain Flax, as users write it.

Nothing in them knows of gates, taps, victims or attacks. Each is tiny; each maps
images [B, 8, 8, 3] to logits [B, 5].
"""

import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

IMAGE_SHAPE = (8, 8, 3)
CLASSES = 5


class Digits(nnx.Module):
    """Recognises digits: two convolutions, a norm, two dropouts, a sequential head."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(3, 4, kernel_size=(3, 3), rngs=rngs)
        self.norm1 = nnx.BatchNorm(4, rngs=rngs)
        self.dropout1 = nnx.Dropout(rate=0.1, rngs=rngs)
        self.conv2 = nnx.Conv(4, 6, kernel_size=(3, 3), strides=2, rngs=rngs)
        self.head = nnx.Sequential(
            nnx.Linear(24, 8, rngs=rngs),
            nnx.relu,
            nnx.Dropout(rate=0.1, rngs=rngs),
            nnx.Linear(8, CLASSES, rngs=rngs),
        )

    def __call__(self, x):
        x = nnx.relu(self.dropout1(self.norm1(self.conv1(x))))
        x = nnx.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = nnx.relu(self.conv2(x))
        return self.head(x.reshape(x.shape[0], -1))


class Encoder(nnx.Module):
    """One transformer block, normed first."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            num_heads=2, in_features=width, dropout_rate=0.1, decode=False, rngs=rngs
        )
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.mlp = nnx.Sequential(
            nnx.Linear(width, 2 * width, rngs=rngs),
            nnx.gelu,
            nnx.Linear(2 * width, width, rngs=rngs),
        )

    def __call__(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nnx.Module):
    """Attends over patches; positions and class token are bare parameters."""

    def __init__(self, rngs: nnx.Rngs, *, width: int = 8, depth: int = 1):
        self.patches = nnx.Conv(
            3, width, kernel_size=(4, 4), strides=(4, 4), padding="VALID", rngs=rngs
        )
        self.positions = nnx.Param(0.02 * rngs.params.normal((1, 5, width)))
        self.token = nnx.Param(jnp.zeros((1, 1, width)))
        self.blocks = nnx.List([Encoder(width, rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = self.patches(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        token = jnp.broadcast_to(self.token[...], (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([token, x], axis=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class Residual(nnx.Module):
    """One convolution with group norm beside a shortcut."""

    def __init__(self, width_in: int, width: int, stride: int, rngs: nnx.Rngs):
        self.conv = nnx.Conv(
            width_in, width, (3, 3), strides=stride, use_bias=False, rngs=rngs
        )
        self.norm = nnx.GroupNorm(width, num_groups=2, rngs=rngs)
        self.shortcut = (
            None
            if width_in == width
            else nnx.Conv(width_in, width, (1, 1), strides=stride, rngs=rngs)
        )

    def __call__(self, x):
        y = self.norm(self.conv(x))
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class SmallResNet(nnx.Module):
    """A stem and residual blocks in a list, averaged over space."""

    def __init__(self, rngs: nnx.Rngs):
        self.stem = nnx.Conv(3, 4, kernel_size=(3, 3), use_bias=False, rngs=rngs)
        self.stem_norm = nnx.GroupNorm(4, num_groups=2, rngs=rngs)
        self.blocks = nnx.List([Residual(4, 4, 1, rngs), Residual(4, 6, 2, rngs)])
        self.head = nnx.Linear(6, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.stem_norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(axis=(1, 2)))


# --- networks that hold, stack or say things in a way of their own -----------------


def flat(images):
    return images.reshape(images.shape[0], -1)


class Standardising(nnx.Module):
    """Holds its constants as plain arrays: JAX's, NumPy's, and in a list."""

    def __init__(self, rngs: nnx.Rngs):
        self.mean = jnp.array([[[[0.4, 0.5, 0.6]]]])
        self.std = np.array([[[[0.2, 0.3, 0.4]]]], np.float32)
        self.factors = nnx.data([jnp.array(2.0)])
        self.head = nnx.Linear(192, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.head(flat((x - self.mean) / self.std * self.factors[0]))


class WeightNormed(nnx.Module):
    """Has a head whose kernel has columns of length 1."""

    def __init__(self, rngs: nnx.Rngs):
        self.head = nnx.WeightNorm(nnx.Linear(192, CLASSES, rngs=rngs), rngs=rngs)

    def __call__(self, x):
        return self.head(flat(x))


class Listed(nnx.Module):
    """Keeps its layers in a Python list, which NNX does not look into."""

    def __init__(self, rngs: nnx.Rngs):
        self.layers = [nnx.Linear(192, CLASSES, rngs=rngs)]

    def __call__(self, x):
        return self.layers[0](flat(x))


class DroppingLayer(nnx.Module):
    """Drops a half of what a dense layer gives."""

    def __init__(self, rngs: nnx.Rngs):
        self.dense = nnx.Linear(8, 8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.dense(x))


class Stack(nnx.Module):
    """Scans over three dropping layers, made by nnx.vmap; gives what is dropped."""

    def __init__(self, rngs: nnx.Rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def make(rngs):
            return DroppingLayer(rngs)

        self.layers = make(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(None, 0), out_axes=0)
        def dropped(x, layer):
            return layer.dropout(x)

        kept = dropped(jnp.ones(8), self.layers)
        return flat(x)[:, :3] + kept.sum(1)[None]


class Moded(nnx.Module):
    """Has a norm whose mode is an argument of the call, with a default."""

    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.head = nnx.Linear(192, CLASSES, rngs=rngs)

    def through(self, x, running):
        return self.head(flat(self.norm(x, use_running_average=running)))

    def __call__(self, x, train=False):
        return self.through(x, not train)


class Deterministic(Moded):
    """Says it the other way round."""

    def __call__(self, x, *, deterministic: bool = True):
        return self.through(x, deterministic)


class Required(Moded):
    """Has no default."""

    def __call__(self, x, use_running_average):
        return self.through(x, use_running_average)


class Phased(Moded):
    """Has its own word for the mode."""

    def __call__(self, x, phase: str):
        return self.through(x, phase != "fit")


class TwoHeaded(nnx.Module):
    """Gives logits and features."""

    def __init__(self, rngs: nnx.Rngs):
        self.head = nnx.Linear(192, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.head(flat(x)), flat(x)


class Counted(nnx.Module):
    """Calls an integer a parameter."""

    def __init__(self, rngs: nnx.Rngs):
        self.head = nnx.Linear(192, CLASSES, rngs=rngs)
        self.places = nnx.Param(jnp.arange(CLASSES))

    def __call__(self, x):
        return self.head(flat(x)) + self.places[...]


class Configured(nnx.Module):
    """Is built from a width alone."""

    def __init__(self, width: int):
        self.head = nnx.Linear(192, width, rngs=nnx.Rngs(0))


class LinenNetwork(linen.Module):
    """Is of Flax's older kind."""

    @linen.compact
    def __call__(self, x):
        return linen.Dense(CLASSES)(flat(x))


class LinenModed(linen.Module):
    """Is of the older kind, and told its mode the other way round."""

    @linen.compact
    def __call__(self, x, deterministic):
        return linen.Dense(CLASSES)(linen.Dropout(0.5)(flat(x), deterministic))
