"""Peeling: the gates of a lock in closed form, where it can be, and where it cannot."""

import functools
from typing import NamedTuple

import jax
import numpy as np
import optax
import pytest
from toys import quick_jit, random_images, replace_fields, setting, threat
from victims import hide_some

from kljax.attacks import Peeled, Protocol, peeling, pooled_gates, secret_of
from kljax.core.inputs import images_of
from kljax.core.types import Gate, Private, Public
from kljax.defences import keylock
from kljax.defences.lock import key_lock
from kljax.federated.clients import one_step
from kljax.models import CNN6, NETWORKS, Dense, LeNet, from_nnx
from kljax.models.losses import cross_entropy
from kljax.threat import View, observe

SHAPE = (16, 16, 3)
SITES = {"lenet": ("norm1", 12), "deep": ("norm2", 12), "dense": ("layers/0", 64)}
KEY_SIZE = 16
TRAIN = {"victim_norm": "train", "attacker_norm": "train"}


@functools.cache
def made(name):
    site, width = SITES[name]
    options = {} if name == "dense" else {"lockable": (site,)}
    kind = Dense if name == "dense" else LeNet
    model = from_nnx(lambda rngs: kind(10, image_shape=SHAPE, rngs=rngs, **options))
    return model, key_lock((site,), (width,), size=KEY_SIZE)


def ground(name, declared=None, **changes):
    model, lock = made(name)
    here = setting(
        declared or threat("peel", **TRAIN),
        keylock(lock),
        model=model,
        inputs=images_of(SHAPE),
        num_classes=10,
        sites=(SITES[name],),
        chain=NETWORKS["dense" if name == "dense" else "lenet"].chain,
    )
    return replace_fields(here, **changes)


@functools.cache
def compiled(name, examples=1):
    """The client's step and the attack, compiled once."""
    model, lock = made(name)
    step = one_step(model, cross_entropy, keylock(lock), train=True)
    declared = threat("peel", examples=examples, **TRAIN)
    return quick_jit(step), quick_jit(peeling(ground(name, declared)))


class Victim(NamedTuple):
    view: View
    scale: np.ndarray  # [C] the truth
    shift: np.ndarray


def attack(
    name,
    seed=0,
    limit=None,
    lock_limit=0.25,
    change=lambda grads: grads,
    labels=(),
    upload=0,
):
    """Draws a client, runs its step, changes its gradient, and peels.

    Weights come from U(-limit, limit), PyTorch's default if None. Uploads of one seed
    differ in their images and labels alone.
    """
    labels = labels or ((seed + upload) % 10,)
    generator = np.random.default_rng(seed)
    model, lock = made(name)
    shapes, stats = jax.eval_shape(model.init, jax.random.key(0))

    def uniform(shape, limit):
        return generator.uniform(-limit, limit, shape).astype(np.float32)

    params = {}
    for path, leaf in sorted(shapes.items()):
        kernel = shapes[path.replace("bias", "kernel")].shape
        params[path] = uniform(leaf.shape, limit or np.prod(kernel[:-1]) ** -0.5)
    stats = {path: np.ones(leaf.shape, np.float32) for path, leaf in stats.items()}
    weights = jax.tree.map(
        lambda leaf: uniform(leaf.shape, lock_limit),
        jax.eval_shape(lock.init, jax.random.key(0)),
    )
    private = Private(generator.random(KEY_SIZE, np.float32), weights)
    step, peel = compiled(name, len(labels))
    images = random_images(len(labels), *SHAPE, seed=seed + 100 * upload)
    targets = np.eye(10, dtype=np.float32)[[*labels]]
    update = step(jax.random.key(0), Public(params), stats, private, images, targets)
    (gate,) = lock.gates(weights, private.secret).values()
    update = update._replace(sent=Public(change(update.sent.model)))
    view = observe(threat("peel", examples=len(labels), **TRAIN), update)
    return Victim(view, *map(np.asarray, gate)), peel(view)


def assert_found(victim, peeled, name, rtol):
    gate = peeled.gates[SITES[name][0]]
    live = victim.scale > 0
    assert 0 < live.sum() < len(live)  # the lock has some of both
    np.testing.assert_array_equal(gate.scale == 0, ~live)
    errors = np.abs(gate.scale / np.where(live, victim.scale, 1) - 1)[live]
    assert np.median(errors) < rtol, errors
    assert np.max(errors) < 10 * rtol, errors
    np.testing.assert_allclose(gate.shift, victim.shift, atol=rtol)


# --- where it succeeds -----------------------------------------------------------


# What is left is the norm's epsilon: 1e-5 beside variances of about 0.02.
@pytest.mark.parametrize(("name", "rtol"), [("lenet", 5e-4), ("dense", 1e-5)])
@pytest.mark.parametrize("seed", (0, 1))
def test_gates_are_found_and_dead_channels_exactly(name, rtol, seed):
    victim, peeled = attack(name, seed)
    assert_found(victim, peeled, name, rtol)
    for layer, residual in peeled.residuals.items():
        assert residual < 1e-11, layer
        np.testing.assert_allclose(peeled.ranks[layer], 1, atol=1e-3)
    assert set(peeled.residuals) == ({"conv2", "conv3"} if name == "lenet" else set())


@pytest.mark.parametrize(
    ("name", "rtol"), [("lenet", 1e-3), ("deep", 1e-3), ("dense", 1e-3)]
)
@pytest.mark.parametrize("labels", ((3, 8), (1, 2, 5, 7)))
def test_gates_are_found_from_a_batch(name, rtol, labels):
    victim, peeled = attack(name, labels=labels)
    assert_found(victim, peeled, name, rtol)
    for layer, residual in peeled.residuals.items():
        assert residual < 1e-8, layer
    assert "fc" in peeled.residuals


@pytest.mark.slow
def test_a_batch_of_more_inputs_than_equations_says_so():
    """The strided layer: 768 inputs and 192 equations of each, 3,600 of all."""
    victim, peeled = attack("lenet", labels=(0, 1, 2, 3, 4, 5, 6))
    assert peeled.ranks["conv2"] < 0.95 < 0.99 < peeled.ranks["conv3"]
    gate, deviation = peeled.gates["norm1"], peeled.deviation["norm1"]
    assert np.all(np.abs(gate.shift - victim.shift) <= 3 * deviation.shift)
    # And it still says something.
    assert np.max(deviation.shift) < np.max(victim.shift)


def test_wrong_labels_are_seen_in_the_residual():
    victim, _ = attack("dense", labels=(3, 8))
    declared = threat("peel", "given", examples=2, labels="known", **TRAIN)
    for labels, low, high in (((3, 8), 0, 1e-8), ((3, 1), 1e-3, 2)):
        targets = np.eye(10, dtype=np.float32)[[*labels]]
        peeled = quick_jit(peeling(ground("dense", declared)))(
            victim.view._replace(targets=targets)
        )
        assert low <= peeled.residuals["fc"] < high


def test_the_epsilon_of_the_norm_is_all_that_is_missed():
    victim, peeled = attack("lenet")
    model, _ = made("lenet")
    params, stats = victim.view.public.model, victim.view.stats
    h = quick_jit(
        lambda: model.apply(
            params, stats, random_images(1, *SHAPE, seed=0), taps=("conv1",), train=True
        )
    )().taps["conv1"]
    variance = np.var(h, axis=(0, 1, 2))
    expected = victim.scale * np.sqrt(variance / (variance + 1e-5))
    np.testing.assert_allclose(peeled.gates["norm1"].scale, expected, rtol=2e-5)


@pytest.mark.parametrize("seed", (0, 1))
def test_in_a_saturated_network_it_knows_what_it_does_not_know(seed):
    """Weights and lock of DLG's test, U(-.5, .5): sigmoids are 1 in float32."""
    victim, peeled = attack("lenet", seed, limit=0.5, lock_limit=4.0)
    gate, deviation = peeled.gates["norm1"], peeled.deviation["norm1"]
    for found, true, spread in zip(
        gate, (victim.scale, victim.shift), deviation, strict=True
    ):
        # 1e-3 more for the norm's epsilon.
        assert np.all(np.abs(found - true) <= 3 * spread + 1e-3 * true)
    sure = deviation.shift < 1e-2
    assert 0 < sure.sum() < len(sure)


@pytest.mark.parametrize("seed", (0, 1, 2))
def test_sigmoids_near_zero_are_as_sure_as_they_say(seed):
    """Float32 tells e-30 from e-20, but not 1 - e-20 from 1."""
    victim, peeled = attack("dense", seed, limit=0.5, lock_limit=2.0)
    gate, deviation = peeled.gates["layers/0"], peeled.deviation["layers/0"]
    told = np.isfinite(deviation.shift)
    errors = np.abs(gate.shift - victim.shift)[told]
    assert np.mean(errors <= 5 * deviation.shift[told] + 1e-3) > 0.95


def test_the_length_of_the_gradient_does_not_matter():
    """Clipping divides a gradient by a number that nobody tells."""
    _, whole = attack("lenet")
    _, clipped = attack(
        "lenet", change=lambda grads: jax.tree.map(lambda g: g * 1e-3, grads)
    )
    for a, b in zip(whole.gates["norm1"], clipped.gates["norm1"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_several_uploads_together_know_what_each_alone_does_not():
    """One lock, two images; every second channel is saturated in either upload."""
    truth = np.array([3.0, 0.0, 2.0], np.float32)
    values = np.array([[3.0, 0.0, 9.0], [7.0, 0.0, 2.0]], np.float32)
    deviation = np.array([[1e-5, 0, 5], [5, 0, 1e-5]], np.float32)
    peeled = Peeled(
        {"norm": Gate(values, values + 1)}, {"norm": Gate(deviation, deviation)}, {}, {}
    )
    gate = pooled_gates(peeled)["norm"]
    np.testing.assert_allclose(gate.scale, truth, atol=1e-4)
    np.testing.assert_allclose(gate.shift, truth + 1, atol=1e-4)
    assert gate.scale[1] == 0


def test_an_upload_that_says_nothing_of_a_channel_is_left_out():
    """NaN, or no idea at all: the other upload is as good as alone."""
    values = np.array([[3.0, -2.0, np.nan], [np.nan, -2.2, np.nan]], np.float32)
    deviation = np.array([[0.1, 0.1, 0.1], [0.1, np.inf, 0.1]], np.float32)
    peeled = Peeled(
        {"norm": Gate(values, values)}, {"norm": Gate(deviation, deviation)}, {}, {}
    )
    gate = pooled_gates(peeled)["norm"]
    for found in gate:
        np.testing.assert_allclose(found, [3, -2, np.nan], rtol=1e-6)


def test_a_saturated_channel_of_a_dense_layer_is_owned_up_to():
    """Nothing comes back through it: its scale is given as 0, and is not believed."""
    silent = 0
    for seed in range(3):
        _, peeled = attack("dense", seed, limit=0.5, lock_limit=8.0)
        gate, deviation = peeled.gates["layers/0"], peeled.deviation["layers/0"]
        assert all(np.isfinite(part).all() for part in gate)
        unknown = np.isinf(deviation.scale)
        np.testing.assert_array_equal(np.isinf(deviation.shift), unknown)
        assert (gate.scale[unknown] == 0).all() and not unknown.all()
        silent += unknown.sum()
    assert silent


def test_signs_of_uploads_are_aligned_before_they_are_pooled():
    """Each upload's are known up to one for all of them."""
    scale, shift = np.array([1.0, -2.0, 0.0]), np.array([0.5, -1.0, 2.0])
    gates = Gate(np.stack([scale, -scale]), np.stack([shift, shift]))
    same = Gate(np.full((2, 3), 0.1), np.full((2, 3), 0.1))
    pooled = pooled_gates(Peeled({"norm1": gates}, {"norm1": same}, {}, {}))["norm1"]
    np.testing.assert_allclose(pooled.scale, scale, rtol=1e-6)
    np.testing.assert_allclose(pooled.shift, shift, rtol=1e-6)


def test_signs_are_those_of_the_first_upload_that_has_some():
    scale = np.array([1.0, -2.0, 3.0])
    silent = np.full((2, 3), np.nan), np.zeros((1, 3))
    values = np.concatenate([*silent, [scale, -scale]])
    gates, same = Gate(values, values), Gate(np.full((5, 3), 0.1), np.full((5, 3), 0.1))
    same.scale[2] = np.inf
    pooled = pooled_gates(Peeled({"norm1": gates}, {"norm1": same}, {}, {}))["norm1"]
    np.testing.assert_allclose(pooled.scale, scale, rtol=1e-6)


def test_what_is_called_exact_is_so_up_to_rounding():
    """The weights by hand: rounding of the number itself, and 1e-8 for what is 0."""
    values = np.array([[0.0, 1.0], [1e-8, 1 + 2e-7]], np.float32)
    deviation = np.array([[0, 0], [1e-8, 5e-8]], np.float32)
    peeled = Peeled(
        {"norm": Gate(values, values)}, {"norm": Gate(deviation, deviation)}, {}, {}
    )
    weights = 1 / (deviation.astype(float) ** 2 + (2.0**-24 * values) ** 2 + 1e-16)
    expected = np.sum(weights * values, axis=0) / np.sum(weights, axis=0)
    found = pooled_gates(peeled)["norm"]
    for part in found:
        np.testing.assert_allclose(part[0], expected[0], rtol=1e-4)
        np.testing.assert_allclose(part[1] - 1, expected[1] - 1, atol=1.3e-7)


def test_two_uploads_of_one_lock_are_better_weighted_than_plainly_averaged():
    """Where a channel is saturated in one of two images, the other one counts.

    Over many locks the error is about half of a plain mean's (geometric means), and
    none is above the worse upload's by more than rounding. Of one lock it is rounding,
    and depends on the processor and on how a convolution is computed. Ten locks do not
    tell .5 from .8 (logarithms deviate by 1.3), so that the mean of eighty is held
    against its error.
    """
    gains = []
    for seed in range(80):
        truths, found = zip(
            *(attack("lenet", seed, 0.5, lock_limit=2.0, upload=n) for n in (0, 1)),
            strict=True,
        )
        np.testing.assert_array_equal(truths[0].scale, truths[1].scale)
        each = [peeled.gates["norm1"] for peeled in found]
        pooled = pooled_gates(jax.tree.map(lambda *x: np.stack(x), *found))["norm1"]
        plain = jax.tree.map(lambda *x: np.mean(x, axis=0), *each)

        def errors(gate, truth=truths[0]):
            pairs = (
                getattr(gate, part) - getattr(truth, part) for part in gate._fields
            )
            return np.array([np.linalg.norm(away) for away in pairs])

        assert (errors(pooled) < 1.1 * np.max([*map(errors, each)], axis=0)).all()
        gains.append(errors(pooled) / errors(plain))
    gains = np.log(gains)
    error = np.std(gains, axis=0) / np.sqrt(len(gains))
    assert (np.mean(gains, axis=0) + 2 * error < 0).all()


# --- where it fails, and says so -------------------------------------------------


def noisy(grads):
    generator = np.random.default_rng(9)
    return {
        path: np.asarray(g) + 0.1 * generator.standard_normal(g.shape, np.float32)
        for path, g in grads.items()
    }


@pytest.mark.parametrize("name", SITES)
def test_noise_takes_the_gates_away(name):
    victim, peeled = attack(name, change=noisy)
    gate = peeled.gates[SITES[name][0]]
    live = victim.scale > 0
    errors = np.abs(gate.scale - victim.scale)[live] / victim.scale[live]
    assert np.median(errors) > 0.2
    assert not np.any(gate.scale[~live] == 0)
    for residual in peeled.residuals.values():
        assert residual > 0.1


def nothing(grads):
    return jax.tree.map(np.zeros_like, grads)


@pytest.mark.parametrize(
    ("name", "labels"), [*((name, ()) for name in SITES), ("dense", (3, 8))]
)
def test_a_gradient_of_zeros_gives_no_gates(name, labels):
    _, peeled = attack(name, change=nothing, labels=labels)
    assert np.all(np.isnan(peeled.gates[SITES[name][0]].shift))


@pytest.mark.parametrize("name", SITES)
def test_a_gradient_that_is_hidden_in_part_gives_no_gates(name):
    _, peeled = attack(name, change=hide_some)
    assert np.all(np.isnan(peeled.gates[SITES[name][0]].shift))


# --- the boundary ----------------------------------------------------------------


def test_nothing_but_the_gradient_and_the_parameters_is_used():
    victim, peeled = attack("dense")
    bare = View(*victim.view[:3], None, None, None, None, None)._replace(stats=None)
    again = compiled("dense")[1](bare)
    jax.tree.map(np.testing.assert_array_equal, again, peeled)


def test_the_strategy_settles_the_gates():
    victim, peeled = attack("dense")
    secret = secret_of(ground("dense"))
    free, fixed = quick_jit(
        lambda: secret.unknown.start(jax.random.key(1), victim.view)
    )()
    assert free == ()
    gates = secret.gates((), secret.unknown.decode(free, fixed))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        gates,
        peeled.gates,
    )


# --- what it refuses -------------------------------------------------------------

STEPS = Protocol(optax.sgd(0.1), steps=3, batch=1, learning_rate=0.1)
UPDATE = threat("peel", upload="update", **TRAIN)
WITHOUT_BIAS = {
    "model": from_nnx(lambda rngs: CNN6(10, image_shape=(32, 32, 3), rngs=rngs)),
    "chain": NETWORKS["cnn6"].chain,
    "sites": (("layers/0", 12),),
}


@pytest.mark.parametrize(
    ("name", "declared", "changes", "message"),
    [
        ("lenet", None, {"chain": ()}, "walks a chain .* this network is none"),
        ("lenet", None, {"sites": (("norm1", 12), ("norm2", 12))}, "one site.*norm2"),
        ("lenet", None, {"sites": (("fc", 10),)}, "'fc' is not below.*norm1"),
        ("lenet", None, {"sites": (("conv1", 12),)}, "needs a norm at .* 'conv1'"),
        ("lenet", threat("peel"), {}, "victim_norm='train'"),
        ("lenet", threat(examples=9, **TRAIN), {}, "at most 8 examples .* examples=9"),
        ("lenet", None, WITHOUT_BIAS, "'peel' needs a bias in the layer 'fc'"),
        ("lenet", UPDATE, {"protocol": STEPS}, "gradient of at most.*upload='update'"),
    ],
)  # fmt: skip
def test_what_cannot_be_peeled_is_refused(name, declared, changes, message):
    with pytest.raises(ValueError, match=message):
        peeling(ground(name, declared, **changes))


@pytest.mark.parametrize(("classes", "most"), [(10, 8), (20, 8), (8, 7), (5, 4)])
def test_as_many_examples_as_can_be_are_taken_and_one_more_is_not(classes, most):
    """Eight for the work's sake, and fewer than there are classes."""

    def make(examples):
        declared = threat("peel", "given", examples=examples, labels="known", **TRAIN)
        return peeling(ground("lenet", declared, num_classes=classes))

    make(most)
    with pytest.raises(ValueError, match=f"at most {most} examples"):
        make(most + 1)


def without(path):
    """The dense network, which lacks one of its parameters."""
    model, _ = made("dense")

    def init(rng):
        params, stats = model.init(rng)
        return {name: leaf for name, leaf in params.items() if name != path}, stats

    return model._replace(init=init)


def test_a_dense_layer_is_peeled_by_its_bias():
    with pytest.raises(ValueError, match="'peel' needs a bias in .*'layers/0'"):
        peeling(ground("dense", model=without("layers/0/bias")))


def test_one_example_needs_no_label():
    """Nor a rule for one: nothing here has a column of the classifier per class."""
    peeling(ground("dense", num_classes=7))
    declared = threat("peel", examples=2, **TRAIN)
    with pytest.raises(ValueError, match="'fc' has 10 column.* for 7 classes"):
        peeling(ground("dense", declared, num_classes=7))


def test_a_norm_above_the_lock_is_refused():
    lockable = ("norm1", "norm2")
    model = from_nnx(
        lambda rngs: LeNet(10, image_shape=SHAPE, lockable=lockable, rngs=rngs)
    )
    with pytest.raises(ValueError, match="norm layers above the lock.*norm2"):
        peeling(ground("lenet", model=model))
