"""GradDefense: how a gradient is cut, which slices have noise, and its density."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from tiny_studies import sites_of
from toys import CLASSES, IMAGE_SHAPE, quick_jit, random_weights, toy_model

from kljax.core.types import Private, Public
from kljax.defences import Context, at_update, chain, none, slice_noise
from kljax.defences.arms import parse_training_arm
from kljax.defences.slices import NARROW, sensitivities, slice_indices
from kljax.federated.clients import one_step
from kljax.models.losses import cross_entropy

GENERATOR = np.random.default_rng(3)
MATRIX = GENERATOR.standard_normal((6, 4)).astype(np.float32)
INPUTS, TARGETS = jnp.ones((2, 2, 3, 1)), jnp.zeros((2, 3))


class Found:
    """What a gradient of two tensors gives, with derivatives of known lengths."""

    def __init__(self, inputs):
        x = inputs.reshape(2, 6)
        self.public = Public({"a": x @ MATRIX, "b": 3 * x[:1, :2], "c": jnp.ones(5)})


GRADS = Public({"a": jnp.ones((2, 4)), "b": jnp.ones((1, 2)), "c": jnp.ones(5)})
CONTEXT = Context(None, None, INPUTS, TARGETS, lambda inputs, targets: Found(inputs))
SIZES = [x.size for x in jax.tree.leaves(GRADS)]


@quick_jit
def releases(numbers, rngs):
    """Gives of each draw what is sent [n, entries], and the slices of the entries."""

    def one(rng):
        sent, _ = slice_noise(*numbers).release(rng, (), GRADS, CONTEXT)
        sensitive = sensitivities(jax.random.split(rng, 3)[0], CONTEXT)
        places = slice_indices(SIZES, sensitive, numbers[0])
        leaves = [jnp.ravel(x) for x in jax.tree.leaves(sent)]
        return jnp.concatenate(leaves), jnp.concatenate(places)

    return jax.vmap(one)(rngs)


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def test_a_tensor_is_as_sensitive_as_its_jacobian_is_long():
    measure = quick_jit(jax.vmap(lambda rng: sensitivities(rng, CONTEXT)))
    many = measure(jax.random.split(jax.random.key(0), 2000))
    found = np.sqrt(np.mean(np.square(many), axis=0))
    wanted = [np.sqrt(2 * np.sum(MATRIX**2)), np.sqrt(2 * 9), 0]
    np.testing.assert_allclose(found, wanted, rtol=0.05)


def cut_by_hand(sizes, sensitive, slices):
    """Walks over entries, and adds up what is in front of the middle of each."""
    total, before, found = sum(sensitive), 0.0, []
    for size, own in zip(sizes, sensitive, strict=True):
        for _ in range(size):
            found.append(int((before + own / size / 2) / total * slices))
            before += own / size
    return found


def test_slices_are_equally_sensitive():
    sizes, sensitive = [40, 7, 200, 1], [1.0, 4.1, 0.37, 2.03]
    found = slice_indices(sizes, jnp.array(sensitive), 10)
    np.testing.assert_array_equal(
        np.concatenate(found), cut_by_hand(sizes, sensitive, 10)
    )
    # Where nothing is sensitive, by number.
    same = np.concatenate(slice_indices([4, 6], jnp.zeros(2), 5))
    np.testing.assert_array_equal(same, np.repeat(np.arange(5), 2))


def test_so_many_slices_have_noise_of_that_size_and_others_have_none():
    rngs = jax.random.split(jax.random.key(2), 300)
    for slices, perturbed in ((4, 2), (4, 4), (3, 1)):
        numbers = tuple(np.float32(x) for x in (slices, perturbed, 0.1))
        counts, drawn, which = set(), [], set()
        for sent, place in zip(*map(np.asarray, releases(numbers, rngs)), strict=True):
            off = sent - 1
            noisy = set(place[off != 0])
            assert not noisy & set(place[off == 0])
            # Slices without an entry cannot be seen.
            counts.add(len(noisy))
            drawn.append(off[off != 0])
            which.add(frozenset(noisy))
        assert max(counts) == perturbed
        assert len(which) > 1 or perturbed == slices
        drawn = np.concatenate(drawn)
        assert stats.kstest(drawn, stats.norm(scale=0.1).cdf).pvalue > 1e-3
        for scale in (0.08, 0.12):
            assert stats.kstest(drawn, stats.norm(scale=scale).cdf).pvalue < 1e-3


def test_no_noise_is_the_identity_and_strengths_are_data():
    traced = []

    @quick_jit
    def send(numbers):
        traced.append(1)
        defence = chain(none(), slice_noise(*numbers))
        return defence.release(jax.random.key(0), ((), ()), GRADS, CONTEXT)[0]

    for numbers, same in (((10, 0, 0.1), 1), ((10, 5, 0.0), 1), ((1, 1, 0.1), 0)):
        sent = flat(send(tuple(np.float32(x) for x in numbers)))
        assert np.all(sent == 1) == same and np.any(sent == 1) == same
    assert len(traced) == 1
    assert slice_noise(10, 0).log_prob is slice_noise(std=0).log_prob is None


def test_an_attackers_density_is_a_mixture_which_a_hidden_entry_has_no_part_in():
    defence = slice_noise(4, 1, 0.2)
    seen = {"a": jnp.array([0.3, jnp.nan, -0.01]), "b": None}
    mean = {"a": jnp.array([0.1, 5.0, 0.0]), "b": jnp.ones(2)}
    off = np.array([0.2, -0.01])
    wide, narrow = (stats.norm(scale=s).pdf(off) for s in (0.2, 0.2 * NARROW))
    wanted = np.sum(np.log(0.25 * wide + 0.75 * narrow))
    ask = jax.value_and_grad(lambda g: defence.log_prob(seen, g))
    value, slopes = ask(mean)
    assert value == pytest.approx(wanted, rel=1e-5)
    assert slopes["a"][1] == 0 and slopes["a"][0] > 0 > slopes["a"][2]
    # It is highest where the two are equal, and has a slope where all have noise.
    assert defence.log_prob(seen, seen) > value
    every = slice_noise(4, 4, 0.2)
    value, slopes = jax.value_and_grad(lambda g: every.log_prob(seen, g))(mean)
    assert value == pytest.approx(np.sum(np.log(wide)), rel=1e-5)
    np.testing.assert_allclose(slopes["a"][0], 0.2 / 0.2**2, rtol=1e-4)


def test_a_client_measures_its_own_network():
    """Two clients of one program, through the second derivative of their loss."""
    params, stats_of_norm = random_weights(toy_model())
    images = np.random.default_rng(2).random((2, 2, *IMAGE_SHAPE), np.float32)
    targets = np.eye(CLASSES, dtype=np.float32)[[0, 2]]
    defence = chain(none(), slice_noise(6, 3, 0.05))
    step = one_step(toy_model(), cross_entropy, defence, train=False)

    def of_client(rng, x):
        return step(rng, Public(params), stats_of_norm, Private(), x, targets)

    rngs = jax.random.split(jax.random.key(0), 2)
    found = quick_jit(jax.vmap(of_client))(rngs, images)
    off = [
        np.concatenate([np.ravel(x[n]) for x in jax.tree.leaves(tree)])
        for n in range(2)
        for tree in (jax.tree.map(jnp.subtract, found.sent, found.before_release),)
    ]
    for x in off:
        assert 0 < np.mean(x != 0) < 1 and np.abs(x).max() < 0.3
    assert np.any((off[0] != 0) != (off[1] != 0))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 0), "slices must be a whole number from 1 to 1000, got 0"),
        ((2.5, 1), "slices must be a whole number from 1 to 1000, got 2.5"),
        ((float("nan"), 1), "slices must be a whole number .* got nan"),
        ((4, -1), "perturbed must be a whole number >= 0, got -1"),
        ((4, float("nan")), "perturbed must be a whole .* got nan"),
        ((4, 5), "perturbed=5 of slices=4 are too many"),
        ((4, 1, -0.1), "std must be finite and >= 0, got -0.1"),
        ((4, 1, float("nan")), "std must be finite and >= 0, got nan"),
    ],
)
def test_impossible_numbers_are_named(numbers, message):
    with pytest.raises(ValueError, match=message):
        slice_noise(*numbers)


def test_what_has_no_derivative_is_refused():
    with pytest.raises(ValueError, match="Context.gradient.*without '@update'"):
        at_update(slice_noise())
    with pytest.raises(ValueError, match="'graddefense@update'.*Context.gradient"):
        parse_training_arm("graddefense@update", sites_of(), {})
    tokens = CONTEXT._replace(inputs=jnp.zeros((1, 3), jnp.int32))
    with pytest.raises(ValueError, match="these are int32"):
        slice_noise().release(jax.random.key(0), (), GRADS, tokens)
