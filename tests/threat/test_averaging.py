"""The average of several clients is the gradient of all their examples."""

import functools

import jax
import numpy as np
import pytest
from toys import (
    CLASSES,
    IMAGE_SHAPE,
    quick_jit,
    random_images,
    random_weights,
    threat,
    toy_model,
)

from kljax.core.types import Private, Public
from kljax.defences import selective_encryption
from kljax.federated.clients import one_step
from kljax.models.losses import cross_entropy
from kljax.threat import LocalSteps, average_updates, observe

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


def test_the_average_is_the_gradient_of_all_examples():
    """Clients of one and of three examples, and of all four."""
    average, whole = average_updates([update(0, 1), update(1, 4)]), update(0, 4)
    for name in ("sent", "before_release"):
        for a, b in zip(
            jax.tree.leaves(getattr(average, name)),
            jax.tree.leaves(getattr(whole, name)),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
            assert a.dtype == b.dtype
    np.testing.assert_array_equal(average.inputs, whole.inputs)
    np.testing.assert_array_equal(average.targets, whole.targets)
    apart = [
        np.max(np.abs(a - b))
        for a, b in zip(
            jax.tree.leaves(update(0, 1).sent), jax.tree.leaves(whole.sent), strict=True
        )
    ]
    assert max(apart) > 1e-3  # than one client's


def test_a_server_reads_the_average_whole_and_nothing_of_one_client():
    average = average_updates([update(0, 1), update(1, 4)])
    view = observe(threat(examples=4), average)
    assert view.visible is None and view.targets is None and view.earlier is None
    assert not any(np.any(np.isnan(x)) for x in jax.tree.leaves(view.grads))
    alone = observe(threat(examples=1), update(0, 1))
    assert any(np.any(np.isnan(x)) for x in jax.tree.leaves(alone.grads))
    with pytest.raises(ValueError, match="examples=1.*made from 4"):
        observe(threat(examples=1), average)


def test_substitutes_of_several_inputs_come_client_after_client():
    def replaced(values):
        rows = np.array(values, np.float32)
        return update(0, 1)._replace(substitute={"image": rows, "row": -rows})

    average = average_updates([replaced([1, 2]), replaced([3])])
    np.testing.assert_array_equal(average.substitute["image"], [1, 2, 3])
    np.testing.assert_array_equal(average.substitute["row"], [-1, -2, -3])


def test_averages_that_are_no_gradient_of_one_batch_are_refused():
    one = update(0, 1)
    locked = one._replace(private=Private(np.ones(5)))
    several = one._replace(local=LocalSteps(steps=2, batch=1))
    for updates, message in (
        ([], "needs the update of a client"),
        ([one, several], "changes over several local steps"),
        ([one, locked], "something of each client's own"),
        ([one, update(0, 1, seed=4)], "start from the same parameters"),
    ):
        with pytest.raises(ValueError, match=message):
            average_updates(updates)
