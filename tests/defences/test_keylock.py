"""Private key and lock weights in, gates out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

from kljax.defences.lock import ACTIVATIONS, PRIVATE_KEY_SIZE, key_lock

# Not in alphabetical order: a chain that sorted its sites would be another chain.
SITES = ("stem", "blocks/1", "blocks/0")
WIDTHS = (2, 3, 4)


def dense(kernel, bias):
    return {"kernel": np.array(kernel, np.float32), "bias": np.array(bias, np.float32)}


def random_lock_weights(lock, seed=0):
    generator = np.random.default_rng(seed)
    shapes = jax.eval_shape(lock.init, jax.random.key(0))
    return jax.tree.map(
        lambda leaf: generator.standard_normal(leaf.shape, np.float32), shapes
    )


# Private key (1, 2) and these weights, worked out on paper.
FIRST = {
    "scale": dense([[1, -1], [1, 0]], [0.5, 0]),  # (3.5, -1) -> relu (3.5, 0)
    "shift": dense([[0, 2], [-1, 1]], [1, -1]),  # (-1, 3) -> relu (0, 3)
}
SECOND = {
    "scale": dense([[2], [5]], [-1]),  # from (3.5, 0): 6
    "shift": dense([[7], [1]], [0]),  # from (0, 3): 3
}
UNCHAINED_SECOND = ([2 + 10 - 1], [7 + 2])  # from the private key itself


@pytest.mark.parametrize(
    ("chained", "second"), [(True, ([6], [3])), (False, UNCHAINED_SECOND)]
)
def test_gates_worked_out_on_paper(chained, second):
    lock = key_lock(("b", "a"), (2, 1), size=2, chained=chained)
    gates = lock.gates((FIRST, SECOND), np.array([1.0, 2.0], np.float32))
    assert tuple(gates) == ("b", "a")
    np.testing.assert_array_equal(gates["b"], [[3.5, 0], [0, 3]])
    np.testing.assert_array_equal(gates["a"], second)


def test_activation_is_an_argument():
    lock = key_lock(("a",), (2,), size=2, activation=lambda x: 10 * x)
    (gate,) = lock.gates((FIRST,), np.array([1.0, 2.0], np.float32)).values()
    np.testing.assert_array_equal(gate, [[35, -10], [-10, 30]])


@pytest.mark.parametrize("compiled", (False, True))
@pytest.mark.parametrize("chained", (False, True))
def test_the_chain_follows_the_order_of_the_sites(chained, compiled):
    lock = key_lock(SITES, WIDTHS, size=5, chained=chained, activation=jnp.tanh)
    weights = random_lock_weights(lock)
    private_key = np.random.default_rng(1).random(5, np.float32)
    make = jax.jit(lock.gates) if compiled else lock.gates
    gates = make(weights, private_key)
    assert gates.keys() == set(SITES)
    inputs = {"scale": private_key, "shift": private_key}
    for site, width, layers in zip(SITES, WIDTHS, weights, strict=True):
        found = gates[site]._asdict()
        for name, layer in layers.items():
            expected = np.tanh(inputs[name] @ layer["kernel"] + layer["bias"])
            assert found[name].shape == (width,)
            np.testing.assert_allclose(found[name], expected, atol=1e-6)
            inputs[name] = expected if chained else private_key


@pytest.mark.parametrize(
    ("chained", "fan_ins"), [(False, (5, 5, 5)), (True, (5, 2, 3))]
)
def test_shapes_of_the_lock_weights(chained, fan_ins):
    lock = key_lock(SITES, WIDTHS, size=5, chained=chained)
    weights = jax.eval_shape(lock.init, jax.random.key(0))
    assert len(weights) == len(SITES)
    for layers, fan_in, width in zip(weights, fan_ins, WIDTHS, strict=True):
        assert layers.keys() == {"scale", "shift"}
        for layer in layers.values():
            assert layer["kernel"].shape == (fan_in, width)
            assert layer["bias"].shape == (width,)


def test_size_of_the_papers_lenet_lock():
    lock = key_lock(("norm1",), (12,))
    leaves = jax.tree.leaves(jax.eval_shape(lock.init, jax.random.key(0)))
    assert sum(leaf.size for leaf in leaves) == 24_600  # FedKL, LeNet at K = 1024
    (private_key,) = jax.tree.leaves(
        jax.eval_shape(lock.private_key, jax.random.key(0))
    )
    assert private_key.shape == (PRIVATE_KEY_SIZE,)


@pytest.mark.parametrize(("limit", "bound"), [(None, 1 / 16), (0.5, 0.5)])
def test_start_of_the_paper_kills_about_half_the_channels(limit, bound):
    lock = key_lock(("a", "b"), (200, 200), size=256, limit=limit)

    @quick_jit
    def make(rng):
        weights = lock.init(rng)
        private_key = lock.private_key(rng)
        return weights, private_key, lock.gates(weights, private_key)

    # The generator that is quickest to compile.
    weights, private_key, gates = make(jax.random.key(0, impl="unsafe_rbg"))
    kernels = np.stack([weights[i][n]["kernel"] for i in (0, 1) for n in weights[i]])
    assert 0.99 * bound < np.abs(kernels).max() <= bound
    assert abs(kernels.mean()) < 0.01 * bound
    # Sites, and scale and shift of one site, draw for themselves.
    assert np.all(np.abs(np.corrcoef(kernels.reshape(4, -1)) - np.eye(4)) < 0.02)
    assert np.all((private_key >= 0) & (private_key < 1))
    assert 0.4 < private_key.mean() < 0.6
    for gate in gates.values():
        for values in gate:
            assert np.all(values >= 0)
            assert 0.35 < np.mean(np.asarray(values) == 0) < 0.65


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gates_keep_to_the_range_of_their_activation(name):
    lock = key_lock(("a",), (400,), size=64, activation=ACTIVATIONS[name])
    weights = random_lock_weights(lock)
    private_key = np.random.default_rng(2).random(64, np.float32)
    (gate,) = lock.gates(weights, private_key).values()
    for values in gate:
        below, above = np.mean(values < 0), np.mean(np.asarray(values) > 1)
        assert (below > 0.2) == (name == "signed")
        assert (above > 0.2) == (name != "sigmoid")
        assert (np.mean(np.asarray(values) == 0) > 0.2) == (name == "relu")


def test_no_sites_give_no_gates():
    lock = key_lock((), (), size=4)
    assert lock.init(jax.random.key(0)) == ()
    assert lock.gates((), jnp.zeros(4)) == {}


REFUSED = {
    "a list": ((["a"], (1,)), {}, TypeError, "tuple of paths.*'a'"),
    "a string": (("norm1", (1,)), {}, TypeError, "tuple of paths.*'norm1'"),
    "repeated": ((("b", "a", "b"), (1, 1, 1)), {}, ValueError, r"\['b'\] are repeated"),
    "a width missing": ((("a", "b"), (1,)), {}, ValueError, "2 sites.*as many widths"),
    "no channels": ((("a",), (0,)), {}, ValueError, r"positive, got .*\(0,\)"),
    "no private key": ((("a",), (1,)), {"size": 0}, ValueError, "positive, got 0"),
}


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"), REFUSED.values(), ids=REFUSED
)
def test_bad_input_is_refused(arguments, options, error, message):
    with pytest.raises(error, match=message):
        key_lock(*arguments, **options)


def test_weights_of_another_lock_are_refused():
    lock = key_lock(("a", "b"), (2, 1), size=2)
    with pytest.raises(ValueError):
        lock.gates((FIRST,), jnp.zeros(2))
