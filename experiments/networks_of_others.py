"""Tries networks as others write them: what works, and what is refused.

    python experiments/networks_of_others.py > runs/networks.txt

Each snippet makes a network in its library's own way. It works if a forward pass and
the gradient of the length of a gradient by the image are finite, and if a tap is there.
Equinox is tried where it is installed.
"""

import functools
import sys

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from kljax.core.trees import named
from kljax.core.types import Model, Output
from kljax.models import from_nnx
from kljax.models.linen import from_linen

SHAPE = (8, 8, 1)
CASES = {}


def case(tap=None):
    """Keeps a snippet, and the path that is tapped."""

    def keep(make):
        CASES[make.__name__] = make, tap
        return make

    return keep


class TutorialCNN(nnx.Module):
    """Flax's MNIST tutorial: partials as attributes, rngs given to dropout, or not."""

    def __init__(self, *, rngs):
        self.conv1 = nnx.Conv(1, 4, kernel_size=(3, 3), rngs=rngs)
        self.batch_norm1 = nnx.BatchNorm(4, rngs=rngs)
        self.dropout1 = nnx.Dropout(rate=0.025)
        self.avg_pool = functools.partial(
            nnx.avg_pool, window_shape=(2, 2), strides=(2, 2)
        )
        self.linear1 = nnx.Linear(64, 10, rngs=rngs)
        self.dropout2 = nnx.Dropout(rate=0.025)

    def __call__(self, x, rngs=None):
        x = self.dropout1(self.conv1(x), rngs=rngs)
        x = self.avg_pool(nnx.relu(self.batch_norm1(x)))
        return self.dropout2(self.linear1(x.reshape(x.shape[0], -1)), rngs=rngs)


@case()
def nnx_tutorial_whose_dropout_is_given_rngs():
    return from_nnx(TutorialCNN(rngs=nnx.Rngs(0)))


@case("linear1")
def nnx_tutorial_called_with_rngs_by_hand():
    def call(network, images, train):
        return network(images, nnx.Rngs(dropout=0))

    return from_nnx(TutorialCNN(rngs=nnx.Rngs(0)), call=call)


@case("layers/0")
def nnx_sequential():
    rngs = nnx.Rngs(0)
    return from_nnx(
        nnx.Sequential(
            nnx.Conv(1, 4, (3, 3), rngs=rngs),
            nnx.relu,
            lambda x: x.reshape(len(x), -1),
            nnx.Linear(256, 10, rngs=rngs),
        )
    )


class Stack(nnx.Module):
    """Flax's guide on scan over layers."""

    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def create(rngs):
            return nnx.Linear(16, 16, rngs=rngs)

        self.first = nnx.Linear(64, 16, rngs=rngs)
        self.blocks, self.head = create(rngs), nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def forward(block, x):
            return nnx.tanh(block(x))

        return self.head(forward(self.blocks, self.first(x.reshape(len(x), -1))))


@case("head")
def nnx_scan_over_layers():
    return from_nnx(Stack)


@case("blocks")
def nnx_tap_of_a_scanned_layer():
    return from_nnx(Stack)


class LinenCNN(nn.Module):
    """Flax's Linen examples: compact, with a train argument."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(4, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Dropout(0.1, deterministic=not train)(x.reshape(len(x), -1))
        return nn.Dense(10)(x)


@case("Conv_0")
def linen_compact_with_train():
    return from_linen(LinenCNN(), SHAPE)


class LinenRemat(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.remat(nn.Dense)(16)(x.reshape(len(x), -1))
        return nn.Dense(10)(nn.tanh(x))


@case("Dense_0")
def linen_remat():
    return from_linen(LinenRemat(), SHAPE)


class LinenSown(nn.Module):
    @nn.compact
    def __call__(self, x):
        count = self.variable("counts", "calls", lambda: jnp.zeros(()))
        return nn.Dense(10)(x.reshape(len(x), -1)) + 0 * count.value


@case()
def linen_with_a_collection_of_its_own():
    return from_linen(LinenSown(), SHAPE)


@case()
def equinox_by_two_functions():
    import equinox as eqx

    def make(rng):
        return eqx.nn.MLP(64, 10, 16, 1, activation=jnp.tanh, key=rng)

    parts = eqx.partition(make(jax.random.key(0)), eqx.is_inexact_array)[1]

    def init(rng):
        return named(eqx.filter(make(rng), eqx.is_inexact_array)), {}

    like = eqx.filter_eval_shape(
        lambda: eqx.filter(make(jax.random.key(0)), eqx.is_inexact_array)
    )
    shape, names = jax.tree.structure(like), [*named(like)]

    def apply(params, stats, images, *, gates=None, taps=(), train, rngs=None):
        if gates or taps:
            raise ValueError("gates and taps are of NNX and Linen alone")
        leaves = [params[name] for name in names]  # JAX sorts a dictionary's names
        network = eqx.combine(jax.tree.unflatten(shape, leaves), parts)
        logits = jax.vmap(lambda image: network(image.ravel()))(images)
        return Output(logits, stats, {})

    return Model(init, apply)


@case()
def equinox_module_as_it_is():
    import equinox as eqx

    return from_nnx(eqx.nn.MLP(64, 10, 16, 1, key=jax.random.key(0)))


def tried(make, tap):
    """Says what becomes of a snippet."""
    model = make()
    params, stats = model.init(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (2, *SHAPE))
    taps = () if tap is None else (tap,)

    @jax.jit
    def second(images):
        def loss(params, images):
            at = {"train": True, "rngs": jax.random.key(2)}
            out = model.apply(params, stats, images, taps=taps, **at)
            return jnp.sum(jax.nn.log_softmax(out.logits)[:, 0])

        def length(images):
            return sum(jnp.sum(g**2) for g in jax.grad(loss)(params, images).values())

        return jnp.all(jnp.isfinite(jax.grad(length)(images)))

    assert bool(second(images)), "not finite"
    return f"works, {len(params)} tensors" + f", tap {tap!r}" * bool(tap)


if __name__ == "__main__":
    jax.config.update("jax_disable_most_optimizations", True)
    chosen = sys.argv[1:] or CASES  # a snippet by its name, or all
    for name in chosen:
        make, tap = CASES[name]
        try:
            told = tried(make, tap)
        except ImportError as error:
            told = f"not tried: {error}"
        except Exception as error:  # refusals and failures alike, with what they say
            told = f"{type(error).__name__}: {' '.join(str(error).split())[:260]}"
        print(f"| {name.replace('_', ' ')} | {told} |", flush=True)
