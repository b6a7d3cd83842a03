"""SPEAR: batches read exactly behind a ReLU, and what is said where they are not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from poison import differences, poisoned
from toys import quick_jit, random_images, replace_fields, setting, threat
from victims import drowned, filled, hide_some

from kljax.attacks import spear
from kljax.attacks.closed_form.low_rank import split
from kljax.attacks.closed_form.relu_batches import _order_share
from kljax.attacks.closed_form.sparse_directions import (
    Exact,
    Rows,
    _leverage,
    depends_on,
    independent,
    is_kept,
    keep,
    noise_of,
    null_vectors,
    rows_of,
    sampled,
    search,
)
from kljax.core.inputs import images_of
from kljax.core.types import Gate, Private, Public
from kljax.defences import none
from kljax.federated.clients import one_step
from kljax.models import Dense, DenseReLU, from_nnx
from kljax.models.losses import cross_entropy
from kljax.threat import observe

SHAPE, CLASSES, EXAMPLES, UNITS = (4, 4, 1), 5, 4, 120


@functools.cache
def network(lockable=()):
    return from_nnx(
        lambda rngs: DenseReLU(
            CLASSES,
            image_shape=SHAPE,
            widths=(UNITS, 30),
            lockable=lockable,
            rngs=rngs,
        )
    )


def ground(declared=None, **changes):
    here = setting(
        declared or threat(examples=EXAMPLES),
        none(),
        model=network(),
        inputs=images_of(SHAPE),
        num_classes=CLASSES,
    )
    return replace_fields(here, **changes)


def weights(model, seed=0):
    """Draws weights whose ReLUs are open for one image and shut for another."""
    generator = np.random.default_rng(seed)
    shapes, stats = jax.eval_shape(model.init, jax.random.key(0))
    params = {
        path: np.float32(generator.standard_normal(leaf.shape) / leaf.shape[0] ** 0.5)
        for path, leaf in shapes.items()
    }
    # Images are around 1/2: with the bias, units are around 0.
    kernel = params["layers/0/kernel"]
    params["layers/0/bias"] = (-0.5 * kernel.sum(axis=0)).astype(np.float32)
    fill = {"mean": np.zeros, "var": np.ones}
    return params, {
        path: fill[path.rpartition("/")[2]](leaf.shape, leaf.dtype)
        for path, leaf in stats.items()
    }


@functools.cache
def update(examples=EXAMPLES, lockable=(), train=True):
    model = network(lockable)
    params, stats = weights(model)
    step = quick_jit(one_step(model, cross_entropy, none(), train=train))
    return step(
        jax.random.key(0),
        Public(params),
        stats,
        Private(),
        random_images(examples, *SHAPE),
        np.eye(CLASSES, dtype=np.float32)[np.arange(examples) % CLASSES],
    )


@functools.cache
def compiled(examples=EXAMPLES, **options):
    declared = threat(examples=examples)
    attack = spear(ground(declared), **{"candidates": 2**15, **options})
    return quick_jit(lambda seen: attack(jax.random.key(1), observe(declared, seen)))


def worst(found, truth):
    """Computes the largest error of any pixel, each image held against its nearest."""
    gaps = np.abs(np.asarray(found.inputs)[:, None] - truth.inputs[None])
    nearest = gaps.max(axis=(2, 3, 4)).argmin(axis=0)
    assert sorted(nearest) == list(range(len(truth.inputs)))
    return gaps.max(axis=(2, 3, 4)).min(axis=0).max()


def changed(truth, change):
    """Changes the gradient of the first layer, kernel [d, m] and bias [m]."""
    sent = dict(truth.sent.model)
    names = ("layers/0/kernel", "layers/0/bias")
    sent |= dict(zip(names, change(*(np.array(sent[n]) for n in names)), strict=True))
    return truth._replace(sent=truth.sent._replace(model=sent))


@pytest.mark.parametrize(
    "way", ["sampled", pytest.param("learned", marks=pytest.mark.slow)]
)
def test_a_batch_is_read_exactly(way):
    found = compiled(directions=way)(update())
    assert found.finite and found.loss < 1e-9
    assert found.numbers["gradient_rank"] == found.numbers["rows_found"] == EXAMPLES
    assert found.numbers["examples_read"] == EXAMPLES
    assert 0 < found.numbers["candidates_tried"] <= 2**15
    assert worst(found, update()) < 1e-3


def test_two_examples_by_hand():
    """Of two, every column gives one direction; the two that vanish most are rows."""
    truth = update(2)
    kernel, bias = (
        np.float64(truth.sent.model[f"layers/0/{x}"]) for x in ("kernel", "bias")
    )
    whole = np.concatenate([kernel, bias[None]])
    left, sizes, right = np.linalg.svd(whole, full_matrices=False)
    right, zeros, tried = right[:2], [], []
    for column in right.T:
        if np.linalg.norm(column) < 1e-6:
            continue
        direction = np.array([-column[1], column[0]]) / np.linalg.norm(column)
        if any(abs(direction @ other) > 1 - 1e-9 for other in tried):
            continue
        lengths = np.linalg.norm(right, axis=0)
        angles = np.abs(direction @ right[:, lengths > 1e-6]) / lengths[lengths > 1e-6]
        tried.append(direction)
        zeros.append(np.sum(angles < 1e-4))
    best = np.argsort(zeros)[-2:]
    rows = np.stack([tried[i] for i in best])
    # left S = X^T rows, for rows of any length.
    inputs = (left[:, :2] * sizes[:2]) @ np.linalg.inv(rows)
    images = (inputs[:-1] / inputs[-1]).T.reshape(2, *SHAPE)
    found = compiled(2)(truth)
    for image in images:
        assert (
            np.min(np.abs(np.asarray(found.inputs) - image).max(axis=(1, 2, 3))) < 1e-3
        )
    assert worst(found, truth) < 1e-3


def test_a_gate_behind_the_layer_changes_nothing():
    """It multiplies columns, by a negative number or by 0, too."""
    scale = np.random.default_rng(2).standard_normal(UNITS).astype(np.float32)
    scale[::7] = 0
    gated = changed(update(), lambda kernel, bias: (kernel * scale, bias * scale))
    found = compiled()(gated)
    assert found.numbers["examples_read"] == EXAMPLES
    assert worst(found, update()) < 1e-3


def test_gates_of_a_network_are_such():
    model = from_nnx(
        lambda rngs: Dense(
            CLASSES, image_shape=SHAPE, widths=(UNITS, 30), activation=jax.nn.relu,
            rngs=rngs,
        )
    )  # fmt: skip
    params, stats = weights(model)
    generator = np.random.default_rng(3)
    gate = Gate(*(np.float32(generator.standard_normal(UNITS)) for _ in range(2)))
    truth = update()

    def loss(params):
        gates = {"layers/0": gate}
        out = model.apply(params, stats, truth.inputs, gates=gates, train=True)
        return cross_entropy(out.logits, truth.targets)

    sent = truth.sent._replace(model=quick_jit(jax.grad(loss))(params))
    found = compiled()(truth._replace(sent=sent))
    assert found.numbers["examples_read"] == EXAMPLES
    assert worst(found, truth) < 1e-3


def test_of_several_clients_each_may_have_gates_of_its_own():
    """A unit then opens from another output on for each of them."""
    model = from_nnx(
        lambda rngs: Dense(
            CLASSES, image_shape=SHAPE, widths=(UNITS, 30), activation=jax.nn.relu,
            rngs=rngs,
        )
    )  # fmt: skip
    params, stats = weights(model)
    draw, truth = np.random.default_rng(3), update()
    scales, shifts = draw.standard_normal((2, EXAMPLES, UNITS)).astype(np.float32)

    def loss(params, image, target, scale, shift):
        gates = {"layers/0": Gate(scale, shift)}
        out = model.apply(params, stats, image[None], gates=gates, train=True)
        return cross_entropy(out.logits, target[None])

    each = quick_jit(jax.vmap(jax.grad(loss), (None, 0, 0, 0, 0)))(
        params, truth.inputs, truth.targets, scales, shifts
    )
    mean = jax.tree.map(lambda leaf: np.mean(leaf, axis=0), each)
    averaged = truth._replace(sent=truth.sent._replace(model=mean))
    declared = threat(examples=EXAMPLES, clients=EXAMPLES, upload="average")
    attack, seen_as = (
        spear(ground(declared), candidates=2**15),
        threat(examples=EXAMPLES),
    )
    run = quick_jit(lambda seen: attack(jax.random.key(1), observe(seen_as, seen)))
    found = run(averaged)
    assert found.numbers["examples_read"] == EXAMPLES
    assert worst(found, truth) < 1e-3
    assert run(drowned(averaged)).numbers["examples_read"] == 0


def test_a_norm_in_train_mode_leaves_no_zeros_and_no_bias():
    found = compiled()(update(lockable=("norms/0",)))
    assert found.numbers["examples_read"] == 0 and found.loss == 1
    np.testing.assert_array_equal(found.inputs, 0.5)


def test_a_norm_in_eval_mode_hides_nothing():
    found = compiled()(update(lockable=("norms/0",), train=False))
    assert found.numbers["examples_read"] == EXAMPLES
    assert worst(found, update()) < 1e-3


def test_an_example_that_is_there_twice_takes_no_rank():
    """Both are one, with the sum of their derivatives: three are read, one is not."""
    truth = update()
    model = network()
    images = np.array(truth.inputs)
    images[3] = images[2]
    step = quick_jit(one_step(model, cross_entropy, none(), train=True))
    twice = step(
        jax.random.key(0), truth.public, truth.stats, Private(), images, truth.targets
    )
    found = compiled()(twice)
    assert found.numbers["gradient_rank"] == found.numbers["examples_read"] == 3
    np.testing.assert_array_equal(found.inputs[3], 0.5)
    gaps = np.abs(np.asarray(found.inputs)[:3, None] - images[None, :3])
    assert gaps.max(axis=(2, 3, 4)).min(axis=0).max() < 1e-3


def test_more_examples_than_said_are_seen_in_the_rank():
    more = update(6)
    less = more._replace(inputs=more.inputs[:4], targets=more.targets[:4])
    found = compiled()(less)
    assert found.numbers["gradient_rank"] > EXAMPLES
    assert found.numbers["examples_read"] == found.numbers["candidates_tried"] == 0


def test_noise_that_drowns_the_gradient_is_no_image():
    found = compiled()(drowned(update()))
    assert found.numbers["examples_read"] == 0 and found.loss == 1
    np.testing.assert_array_equal(found.inputs, 0.5)


def test_a_little_noise_makes_a_little_error():
    generator = np.random.default_rng(5)

    def disturb(*tensors):
        size = 1e-4 * np.abs(tensors[0]).max()
        return [
            t + np.float32(size * generator.standard_normal(t.shape)) for t in tensors
        ]

    found = compiled()(changed(update(), disturb))
    assert found.numbers["examples_read"] == EXAMPLES
    assert 1e-6 < worst(found, update()) < 0.1


def test_an_upload_that_says_nothing_is_no_success():
    assert not compiled()(filled(update(), 0.0)).finite
    assert not compiled()(filled(update(), np.nan)).finite
    hidden = update()._replace(sent=hide_some(update().sent))
    assert not compiled()(hidden).finite


def test_what_is_hidden_cannot_change_a_reconstruction():
    facts = vars(threat(examples=EXAMPLES).knowledge)
    clean, again = (compiled()(u) for u in (update(), poisoned(update(), facts)))
    assert clean.finite and not differences(again, clean)


@pytest.mark.parametrize("size", (1, 2, 5))
def test_null_vectors_are_at_right_angles(size):
    shape = size, size - 1, 7
    columns = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    found = np.asarray(quick_jit(null_vectors)(columns))
    assert found.shape == (size, 7)
    for i in range(7):
        expected = np.linalg.svd(columns[:, :, i])[0][:, -1]
        np.testing.assert_allclose(abs(expected @ found[:, i]), 1, rtol=1e-5)


def test_rank_and_noise_of_a_gradient():
    generator = np.random.default_rng(0)
    gradient = generator.standard_normal((20, 3)) @ generator.standard_normal((3, 30))
    gradient[4] = gradient[:, 7] = 0  # a dark pixel, a dead unit
    noise = 1e-3 * generator.standard_normal(gradient.shape)
    noise[4] = noise[:, 7] = 0
    with jax.enable_x64(True):
        factors = split(jnp.asarray(gradient + noise), 3)
        assert factors.rank == 3
        np.testing.assert_allclose(factors.noise, 1e-3, rtol=0.15)
        np.testing.assert_allclose(factors.left @ factors.right, gradient, atol=5e-3)
        assert split(jnp.asarray(gradient + noise), 5).rank == 3
        assert split(jnp.asarray(noise), 3).rank == 0


def test_columns_are_evened_and_beyond_the_rank_there_is_nothing():
    draw = np.random.default_rng(9)
    stretched = draw.standard_normal((29, 4)) * [9.0, 1, 1, 1]
    right = np.insert(np.linalg.qr(stretched)[0].T, 5, 0, axis=1)  # a dead unit
    sizes = np.array([8.0, 4.0, 2.0, 1e-3])
    with jax.enable_x64(True):
        rows = jax.device_get(jax.jit(rows_of)(right, sizes, 1e-3, np.int32(3)))
    np.testing.assert_allclose(rows.sizes, sizes / 1e-3)
    np.testing.assert_allclose(rows.right[:3], right[:3])
    assert np.all(rows.right[3] == 0) and int(rows.rank) == 3
    live = np.arange(30) != 5
    np.testing.assert_array_equal(rows.live, live)
    evened = rows.back.T @ rows.right
    lengths = np.linalg.norm(evened, axis=0)
    np.testing.assert_allclose(rows.lengths, np.where(live, lengths, 0), atol=1e-12)
    angles = np.where(live, evened / np.where(live, lengths, 1), 0)
    np.testing.assert_allclose(rows.angles, angles, atol=1e-6)
    # Tyler's scatter: unit vectors that point everywhere alike.
    np.testing.assert_allclose(
        3 / 29 * angles @ angles.T, np.diag([1, 1, 1, 0]), atol=0.01
    )


def some_rows(rank, size=4, count=9):
    """A space of rows [B, m] with a dead column, in made up coordinates."""
    draw = np.random.default_rng(6)
    angles = draw.standard_normal((size, count))
    angles[rank:] = 0
    angles[:, 3] = 0
    lengths = np.linalg.norm(angles, axis=0)
    angles /= np.where(lengths > 0, lengths, 1)
    sizes = np.array([9.0, 5.0, 2.0, 0.5])
    return Rows(angles, sizes, angles, lengths, np.eye(size), np.int32(rank))


@pytest.mark.parametrize("rank", (2, 4))
def test_noise_and_leverage_of_a_direction_by_hand(rank):
    rows = some_rows(rank)
    directions = np.random.default_rng(7).standard_normal((3, 4))
    found = quick_jit(noise_of)(rows, directions)
    for direction, noise in zip(directions, found, strict=True):
        squares = sum((direction[i] / rows.sizes[i]) ** 2 for i in range(rank))
        np.testing.assert_allclose(noise, squares**0.5, rtol=1e-5)
    zero = np.arange(9) != 5
    with jax.enable_x64(True):
        leverage = jax.jit(_leverage)(rows, zero)
    kept = np.where(zero, rows.angles, 0)
    # A direction is determined by one column fewer than the rank.
    right = np.linalg.svd(kept)[2][: rank - 1]
    np.testing.assert_allclose(leverage, np.sum(right**2, axis=0), atol=1e-9)


def test_units_that_open_in_the_order_of_their_outputs_are_counted():
    draw = np.random.default_rng(8)
    share = quick_jit(_order_share)
    for _ in range(20):
        outputs = draw.integers(0, 4, (4, 9)).astype(np.float32)  # some are alike
        lit, within = draw.random((4, 9)) < 0.5, np.arange(4) < 3
        good = total = 0
        for unit in range(9):
            sides = [outputs[:3, unit][lit[:3, unit] == on] for on in (False, True)]
            if min(map(len, sides)):
                off, on = sides
                total += 1
                good += max(off) <= min(on) or max(on) <= min(off)
        np.testing.assert_allclose(share(outputs, lit, within), good / total, rtol=1e-6)
    assert share(outputs, np.ones((4, 9), bool), within) == 1


def test_directions_are_kept_once_and_chosen_by_zeros():
    eye = np.eye(3)
    empty = jnp.zeros((6, 3))
    kept = Exact(empty, empty, jnp.full(6, -1, jnp.int32))
    between = np.array([1.0, 1.0, 0.0]) / 2**0.5
    for row, zeros in ((eye[0], 9), (-eye[0], 8), (between, 4), (eye[1], 7)):
        kept = keep(kept, Exact(row, row, np.int32(zeros)))
    found = independent(kept)
    assert sorted(np.asarray(found.zeros)) == [-1, 7, 9]  # `between` depends on these


def test_what_is_kept_and_what_depends_on_it_by_hand():
    eye, spare = np.eye(3), np.array([0.0, 0.0, 1.0])
    kept = Exact(
        np.stack([eye[0], eye[1], spare]), np.zeros((3, 5)), np.array([4, 7, -1])
    )
    turned = np.array([np.cos(0.1), 0, np.sin(0.1)])
    tried = np.stack([eye[0], -eye[1], (eye[0] + eye[1]) / 2**0.5, spare, turned]).T
    with jax.enable_x64(True):
        alike, dependent = (
            jax.jit(find)(kept, tried) for find in (is_kept, depends_on)
        )
    np.testing.assert_array_equal(alike, [True, True, False, False, False])
    np.testing.assert_array_equal(dependent, [True, True, True, False, False])


def test_rows_of_fewer_zeros_than_others_share_are_found():
    """Combinations of the first two vanish at 160 columns, the other rows at 80.

    Once they filled every place at which candidates are made exact.
    """
    draw = np.random.default_rng(10)
    rows = draw.standard_normal((4, 400))
    rows[:2, :160] = rows[0, 160:200] = rows[1, 200:240] = 0
    rows[2, 200:280] = rows[3, 240:320] = 0
    _, sizes, right = np.linalg.svd(rows, full_matrices=False)
    with jax.enable_x64(True):
        space = jax.jit(rows_of)(right, sizes, 1e-9, np.int32(4))
        found, chunks = jax.jit(
            lambda rng, space: search(rng, space, sampled(2048), chunks=20)
        )(jax.random.key(0), space)
    assert sorted(np.asarray(found.zeros)) == [80, 80, 200, 200] and chunks < 20
    truth = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = np.abs(np.asarray(found.row) @ truth.T)
    np.testing.assert_allclose(cosines.max(axis=0), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"declared": threat(examples=4, upload="update")}, {}, "upload='update'"),
        (
            {"declared": threat("regress_gates", examples=4)},
            {},
            "secret='regress_gates'",
        ),
        ({"features": 0.1}, {}, "spear has no objective that features=0.1"),
        ({"declared": threat(examples=16)}, {}, "1024 .* fewer: .* directions=learned"),
        ({"declared": threat(examples=17)}, {}, "at most 16 examples .* examples=17"),
        ({}, {"directions": "guessed"}, "must be sampled or learned, got 'guessed'"),
        ({}, {"layer": "fc"}, "one dense layer .* 16 numbers .* layers/0"),
        (
            {"model": from_nnx(lambda r: Dense(5, image_shape=SHAPE, rngs=r))},
            {},
            "needs a ReLU behind the layer 'layers/0'",
        ),
    ],
)
def test_what_it_cannot_read_is_refused(changes, options, message):
    with pytest.raises(ValueError, match=message):
        spear(ground(**changes), **{"candidates": 1024, **options})
