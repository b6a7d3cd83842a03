"""Draws that are made together: bit by bit those that are made one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from toys import equations, quick_jit

from kljax.core import drawing
from kljax.core.drawing import draw_jointly
from kljax.defences.lock import key_lock
from kljax.models import NETWORKS, Dense, from_nnx, uniform

RNG = jax.random.key(3)


def built_in(name, **options):
    factory = NETWORKS[name].factory
    return from_nnx(
        lambda rngs: factory(5, image_shape=(8, 8, 3), rngs=rngs, **options)
    )


def chained_lock():
    lock = key_lock(("a", "b", "c"), (3, 4, 5), size=6, chained=True)
    return lambda rng: (lock.init(rng), lock.private_key(jax.random.fold_in(rng, 9)))


def two_draws(rng):
    rngs = jax.random.split(rng)
    return {
        "first": jax.random.uniform(rngs[0], (3,)),
        "second": jax.random.normal(jax.random.fold_in(rngs[1], 7), (2,)),
    }


class Odd(nnx.Module):
    """Draws in ways of its own, one after the other and from what was drawn."""

    def __init__(self, rngs):
        self.normal = nnx.Param(jax.random.normal(rngs.params(), (3, 2)))
        self.count = nnx.Variable(jax.random.randint(rngs.params(), (4,), 0, 9))
        self.kept = nnx.Param(jax.random.bernoulli(rngs.params(), 0.5, (5,)) * 1.0)
        self.gamma = nnx.Param(jax.random.gamma(rngs.params(), 2.0, (2,)))
        self.order = nnx.Variable(jax.random.permutation(rngs.params(), 6))
        seed = jax.random.bits(rngs.params(), dtype=jnp.uint32)
        self.child = nnx.Param(jax.random.uniform(jax.random.key(seed), (3,)))
        self.none = nnx.Param(jax.random.uniform(rngs.params(), (0, 3)))
        self.stack = nnx.Param(
            jax.vmap(jax.random.uniform)(jax.random.split(rngs.params(), 3))
        )
        self.half = nnx.Param(jax.random.uniform(rngs.params(), (3,), jnp.bfloat16))

    def __call__(self, images):
        return images


def dense(depth):
    def build(rngs):
        return Dense(5, image_shape=(2, 2, 1), widths=(3,) * depth, rngs=rngs)

    return from_nnx(build).init


def odd(rng):
    return nnx.to_pure_dict(nnx.state(Odd(nnx.Rngs(rng))))


# name: function, most numbers that are drawn together
CASES = {
    "lenet": (built_in("lenet", initialiser=uniform(0.5)).init, drawing.MOST),
    "dense": (dense(2), drawing.MOST),
    "dense in parts": (dense(2), 12),
    "a lock": (chained_lock(), drawing.MOST),
    "odd draws": (odd, drawing.MOST),
}


@pytest.mark.parametrize(("function", "most"), CASES.values(), ids=CASES)
def test_values_are_bit_by_bit_the_same(function, most, monkeypatch):
    monkeypatch.setattr(drawing, "MOST", most)
    jax.tree.map(
        np.testing.assert_array_equal,
        quick_jit(draw_jointly(function))(RNG),
        quick_jit(function)(RNG),
    )


def test_each_of_a_batch_of_random_keys_has_its_own_draws():
    rngs = jax.random.split(RNG, 2)
    together, alone = (
        quick_jit(jax.vmap(function))(rngs)["second"]
        for function in (draw_jointly(two_draws), two_draws)
    )
    np.testing.assert_array_equal(together, alone)
    assert not np.any(together[0] == together[1])


def test_further_arguments_are_passed_on():
    def scaled(rng, tree):
        return {"x": tree["by"] * jax.random.normal(rng, (3,)), "by": tree["by"]}

    tree = {"by": jnp.array(3.0)}
    jax.tree.map(
        np.testing.assert_array_equal,
        quick_jit(draw_jointly(scaled))(RNG, tree),
        quick_jit(scaled)(RNG, tree),
    )


def loops(function):
    """Counts what XLA compiles a loop for."""
    kinds = ("threefry2x32", "random_bits", "random_fold_in", "random_split")
    return sum(
        equation.primitive.name in kinds for equation in equations(function, RNG)
    )


def test_a_deeper_network_has_no_more_loops():
    shallow, deep = (loops(draw_jointly(dense(depth))) for depth in (2, 9))
    assert shallow == deep < loops(dense(2)) < loops(dense(9))


def test_other_random_keys_are_drawn_from_as_they_were():
    rng = jax.random.key(3, impl="unsafe_rbg")
    mine, plain = (
        str(jax.make_jaxpr(function)(rng))
        for function in (draw_jointly(two_draws), two_draws)
    )
    assert mine == plain
