"""The average of several clients: the mean of what they send, and nothing of one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import (
    CLASSES,
    IMAGE_SHAPE,
    locked_update,
    quick_jit,
    random_images,
    random_weights,
    threat,
    toy_model,
)

from kljax.core.types import Private, Public
from kljax.defences import none, selective_encryption
from kljax.federated.clients import local_update, one_step
from kljax.models.losses import cross_entropy
from kljax.threat import LocalSteps, average_stacked, average_updates, observe

IMAGES = random_images(4, *IMAGE_SHAPE)
TARGETS = np.eye(CLASSES, dtype=np.float32)[[1, 2, 0, 1]]


@functools.cache
def client():
    step = one_step(toy_model(), cross_entropy, selective_encryption(0.5), train=False)
    return quick_jit(step)


@functools.cache
def update(first, last, seed=0):
    """Runs a client on some of the images, half of what it sends encrypted."""
    params, stats = random_weights(toy_model(), seed)
    return client()(
        jax.random.key(0),
        Public(params),
        stats,
        Private(),
        IMAGES[first:last],
        TARGETS[first:last],
    )


def test_the_average_is_numpys_weighted_mean():
    """Clients of one and of three examples."""
    updates = [update(0, 1), update(1, 4)]
    average = average_updates(updates)
    for name in ("sent", "before_release", "new_stats"):
        for found, *own in zip(
            *map(jax.tree.leaves, (getattr(u, name) for u in (average, *updates))),
            strict=True,
        ):
            wanted = np.average(np.stack(own), axis=0, weights=[1, 3])
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)
            assert found.dtype == own[0].dtype
    np.testing.assert_array_equal(average.inputs, IMAGES)
    np.testing.assert_array_equal(average.targets, TARGETS)


def test_the_average_is_the_gradient_of_all_examples():
    average, whole = average_updates([update(0, 1), update(1, 4)]), update(0, 4)
    for name in ("sent", "before_release"):
        for a, b in zip(
            jax.tree.leaves(getattr(average, name)),
            jax.tree.leaves(getattr(whole, name)),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
            assert a.dtype == b.dtype
    for name in ("inputs", "targets"):
        own, all_of_them = getattr(average, name), getattr(whole, name)
        np.testing.assert_array_equal(np.reshape(own, all_of_them.shape), all_of_them)
    apart = [
        np.max(np.abs(a - b))
        for a, b in zip(
            jax.tree.leaves(update(0, 1).sent), jax.tree.leaves(whole.sent), strict=True
        )
    ]
    assert max(apart) > 1e-3  # than one client's


def test_uploads_side_by_side_are_averaged_as_one_by_one():
    updates = [update(0, 2), update(2, 4)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *updates)
    one_by_one, side_by_side = average_updates(updates), average_stacked(stacked, 2)
    assert jax.tree.structure(one_by_one) == jax.tree.structure(side_by_side)
    for a, b in zip(*map(jax.tree.leaves, (one_by_one, side_by_side)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_a_server_reads_the_average_whole_and_nothing_of_one_client():
    average = average_updates([update(0, 1), update(1, 4)])
    view = observe(threat(examples=4, upload="average", clients=2), average)
    assert view.visible is None and view.targets is None and view.earlier is None
    assert not any(np.any(np.isnan(x)) for x in jax.tree.leaves(view.grads))
    alone = observe(threat(examples=1), update(0, 1))
    assert any(np.any(np.isnan(x)) for x in jax.tree.leaves(alone.grads))
    with pytest.raises(ValueError, match="examples=1.*made from 4"):
        observe(threat(examples=1, upload="average", clients=2), average)


def test_each_client_keeps_what_it_hides():
    average = average_updates([locked_update(1, seed) for seed in (0, 0)])
    one = locked_update(1).private
    for found, own in zip(*map(jax.tree.leaves, (average.private, one)), strict=True):
        np.testing.assert_array_equal(found, np.stack([own, own]))
    facts = {"private_key": "known", "lock_weights": "known"}
    view = observe(threat(examples=2, upload="average", clients=2, **facts), average)
    assert view.private_key.shape == (2, *one.secret.shape)


def test_changes_of_as_many_local_steps_are_averaged():
    params, stats = random_weights(toy_model())
    public = Public(params)
    training = local_update(
        toy_model(), cross_entropy, none(), optax.sgd(0.1), steps=2, batch=1
    )
    run = quick_jit(training.run)
    updates = [
        run(
            jax.random.key(0),
            0,
            public,
            stats,
            training.init(public, Private()),
            IMAGES[n : n + 2],
            np.argmax(TARGETS[n : n + 2], axis=-1),
        )
        for n in (0, 2)
    ]
    average = average_updates(updates)
    assert average.local == LocalSteps(2, 1)
    for found, *own in zip(
        *(jax.tree.leaves(u.sent) for u in (average, *updates)), strict=True
    ):
        np.testing.assert_allclose(found, np.mean(own, axis=0), rtol=1e-5, atol=1e-7)


def test_substitutes_of_several_inputs_come_client_after_client():
    def replaced(values):
        rows = np.array(values, np.float32)
        return update(0, 1)._replace(substitute={"image": rows, "row": -rows})

    average = average_updates([replaced([1, 2]), replaced([3])])
    np.testing.assert_array_equal(average.substitute["image"], [1, 2, 3])
    np.testing.assert_array_equal(average.substitute["row"], [-1, -2, -3])


def test_what_no_server_would_average_is_refused():
    one = update(0, 1)
    several = one._replace(local=LocalSteps(steps=2, batch=1))
    for updates, message in (
        ([], "needs the update of a client"),
        ([one, several], "as many local steps.*a gradient, LocalSteps"),
        ([one, update(0, 1, seed=4)], "start from the same parameters"),
    ):
        with pytest.raises(ValueError, match=message):
            average_updates(updates)
