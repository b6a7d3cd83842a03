"""Several uploads under one lock."""

import jax
import numpy as np
import pytest
from toys import (
    CLASSES,
    IMAGE_SHAPE,
    LOCK,
    locked_update,
    quick_jit,
    random_images,
    random_private,
    random_weights,
    setting,
    threat,
    toy_model,
)

from kljax.attacks import (
    LABELS,
    SECRETS,
    Candidate,
    Unknown,
    Unknowns,
    no_prior,
    normal,
    pooled,
    replay,
    searched,
    squared_l2,
    total_variation,
)
from kljax.attacks.presets import gate_regression
from kljax.core.types import Public
from kljax.defences import keylock
from kljax.federated.clients import one_step
from kljax.models.losses import cross_entropy
from kljax.threat import observe

DEFENCE = keylock(LOCK)
RNG = jax.random.key(3)
UPLOADS, EXAMPLES = 3, 2
MODEL = threat("regress_gates", "given", labels="known", examples=EXAMPLES)
GROUND = setting(MODEL, DEFENCE)


def uploads(count=UPLOADS, examples=EXAMPLES, seeds=None):
    """Makes uploads of one client: other images and other weights, one private part."""
    model = toy_model()
    step = quick_jit(one_step(model, cross_entropy, DEFENCE, train=False))
    made = []
    for seed in range(count) if seeds is None else seeds:
        params, stats = random_weights(model, seed)
        images = random_images(examples, *IMAGE_SHAPE, seed=seed)
        labels = (np.arange(examples) + seed) % CLASSES
        targets = np.eye(CLASSES, dtype=np.float32)[labels]
        private = random_private(seed=4)
        made.append(step(RNG, Public(params), stats, private, images, targets))
    return made


def stack(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def composed(prior=no_prior, uploads=UPLOADS):
    secret = SECRETS["regress_gates"](GROUND)
    labels = LABELS["given"](GROUND)
    single = (
        Unknowns(searched(GROUND, normal(0.5, 0.1)), labels, secret.unknown),
        replay(GROUND, secret.gates),
        squared_l2(),
        prior,
    )
    return single, pooled(*single, uploads=uploads)


def test_the_pooled_objective_is_the_mean_over_uploads():
    """Against one upload after the other, with the same gates."""
    single, together = composed(total_variation(0.3, relative=False))
    views = [observe(MODEL, update) for update in uploads()]
    images = random_images(UPLOADS * EXAMPLES, *IMAGE_SHAPE, seed=9)
    targets = np.concatenate([view.targets for view in views])
    gates = DEFENCE.gates((), random_private(seed=6))
    candidate = Candidate(images, targets, gates)

    @quick_jit
    def measured(views):
        loss = together[2](*together[1](views, candidate))
        return loss, together[3](views, candidate, 0.5)

    @quick_jit
    def alone(view, candidate):
        return single[2](*single[1](view, candidate)), single[3](view, candidate, 0.5)

    found, believed = measured(stack(views))
    losses, penalties = [], []
    for u, view in enumerate(views):
        part = slice(u * EXAMPLES, (u + 1) * EXAMPLES)
        mine = Candidate(images[part], targets[part], gates)
        loss, penalty = alone(view, mine)
        losses.append(loss)
        penalties.append(penalty)
    np.testing.assert_allclose(found, np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(believed, np.mean(penalties), rtol=1e-5)
    assert found > 1e-3


def test_the_truth_has_no_loss():
    _, together = composed()
    made = uploads()
    gates = DEFENCE.gates((), made[0].private)

    @quick_jit
    def loss(views, images, targets):
        return together[2](*together[1](views, Candidate(images, targets, gates)))

    def at_truth(made):
        truths = (
            np.concatenate([getattr(update, name) for update in made])
            for name in ("inputs", "targets")
        )
        return loss(stack([observe(MODEL, update) for update in made]), *truths)

    assert at_truth(made) < 1e-10
    # Another client's upload in the pool is seen: its gates are others.
    assert at_truth([*made[:2], locked_update(EXAMPLES, seed=2)]) > 1e-6


def test_one_lock_and_the_images_of_all_uploads():
    _, (unknowns, *_) = composed()
    views = stack([observe(MODEL, update) for update in uploads()])

    @quick_jit
    def begin(views):
        starts = [part.start(RNG, views) for part in unknowns]
        parts = [p.decode(*z) for p, z in zip(unknowns, starts, strict=True)]
        return starts[0][0], parts

    first, parts = begin(views)
    assert first.shape == (UPLOADS, EXAMPLES, *IMAGE_SHAPE)
    assert len({float(image.sum()) for image in first}) == UPLOADS
    assert parts[0].shape == (UPLOADS * EXAMPLES, *IMAGE_SHAPE)
    assert parts[1].shape == (UPLOADS * EXAMPLES, CLASSES)
    assert parts[2]["norm"].scale.shape == (3,)
    np.testing.assert_array_equal(parts[0][EXAMPLES], first[1, 0])


def test_parts_are_started_projected_and_put_together_one_upload_after_the_other():
    """With parts that give away what they are given."""

    def start(rng, view):
        return (view, jax.random.uniform(rng)), view + 0.5

    def decode(free, fixed):
        return free[0] * jax.numpy.ones((EXAMPLES, 1)) + fixed

    part = Unknown(
        start,
        decode,
        lambda free: (free[0] - 7, free[1]),
        penalty=lambda free: free[0] ** 2,
        report=lambda free, fixed: {"seen": free[0] + fixed},
    )
    images, targets, secret = pooled(
        Unknowns(part, part, part), None, None, None, uploads=UPLOADS
    )[0]
    views = np.array([1.0, 2.0, 3.0], np.float32)
    for each in (images, targets):
        free, fixed = each.start(RNG, views)
        np.testing.assert_array_equal(free[0], views)
        assert len(set(np.asarray(free[1]).tolist())) == UPLOADS
        np.testing.assert_array_equal(each.project(free)[0], views - 7)
        values = np.repeat(2 * views + 0.5, EXAMPLES)[:, None]
        np.testing.assert_array_equal(each.decode(free, fixed), values)
        assert float(each.penalty(free)) == pytest.approx(np.mean(views**2))
        np.testing.assert_array_equal(each.report(free, fixed)["seen"], 2 * views + 0.5)
    # One lock, of the first upload, with the random key as it is.
    free, fixed = secret.start(RNG, views)
    assert free[0] == 1 and fixed == 1.5 and free[1] == jax.random.uniform(RNG)
    assert secret.decode(free, fixed).shape == (EXAMPLES, 1)


def test_the_attack_on_a_pool_returns_all_its_images():
    attack = gate_regression(GROUND, steps=2, restarts=1, uploads=UPLOADS)
    views = stack([observe(MODEL, update) for update in uploads()])
    found = quick_jit(attack)(RNG, views)
    assert found.inputs.shape == (UPLOADS * EXAMPLES, *IMAGE_SHAPE)
    assert found.labels.shape == (UPLOADS * EXAMPLES,)
    assert bool(found.finite) and found.info["secret"]["norm"].scale.shape == (3,)


def test_no_uploads_are_refused():
    with pytest.raises(ValueError, match="uploads must be at least 1, got 0"):
        composed(uploads=0)
