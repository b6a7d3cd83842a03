"""The replay of local training: at the truth it is the client's own change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import (
    CLASSES,
    IMAGE_SHAPE,
    LOCK,
    quick_jit,
    random_images,
    random_private,
    random_weights,
    setting,
    threat,
    toy_model,
)

from kljax.attacks import (
    Candidate,
    Protocol,
    from_optax,
    local_steps,
    replay,
    squared_l2,
)
from kljax.attacks.presets import dlg, matching
from kljax.attacks.simulation import move_by_gradient
from kljax.core.inputs import images_of
from kljax.core.types import Gate, Private, Public
from kljax.defences import (
    example_clipping,
    keylock,
    none,
    norm_clipping,
    plaintext_gates,
)
from kljax.federated.algorithms import proximal
from kljax.federated.clients import local_update, one_step
from kljax.models import Dense, from_nnx
from kljax.models.losses import cross_entropy
from kljax.threat import observe

# As FedKL trains, but faster.
RATE = 0.05
DESCENT = optax.chain(
    optax.add_decayed_weights(5e-2), optax.sgd(RATE, momentum=0.9, nesterov=True)
)
# Examples, local steps, batch: one epoch, two, and one that stops on its way. Norms
# make of two examples nothing but signs, so there are three in a batch.
SIZES = {"epoch": (6, 2, 3), "epochs": (6, 4, 3), "broken off": (6, 3, 3)}
EVERYTHING = {
    "private_key": "known",
    "lock_weights": "known",
    "lock_grads": "shared",
    "labels": "known",
    "upload": "update",
    "victim_norm": "train",
    "attacker_norm": "train",
}


def weights():
    return random_weights(toy_model())


@functools.cache
def update_of(size="epochs", defence="keylock", penalty=None, descent=DESCENT):
    """What one client makes of its examples, norm layers in train mode."""
    examples, steps, batch = SIZES[size]
    private = random_private() if defence == "keylock" else Private()
    params, stats = weights()
    gates = {"norm": Gate(np.full(3, 1.5, np.float32), np.full(3, 0.1, np.float32))}
    public = Public(params, gates if defence == "plaintext" else ())
    training = local_update(
        toy_model(),
        cross_entropy,
        DEFENCES[defence],
        descent,
        steps=steps,
        batch=batch,
        penalty=penalty,
    )
    return quick_jit(training.run)(
        jax.random.key(3),
        jnp.zeros((), jnp.int32),
        public,
        stats,
        training.init(public, private),
        random_images(examples, *IMAGE_SHAPE),
        np.arange(examples) % CLASSES,
    )


DEFENCES = {
    "keylock": keylock(LOCK),
    "none": none(),
    "plaintext": plaintext_gates(None),
    "clipping": norm_clipping(0.05),
    "clipping of examples": example_clipping(0.05),
}


def ground(size="epochs", defence="keylock", lock="known", **facts):
    examples = SIZES[size][0]
    declared = threat(lock, "given", **{**EVERYTHING, **facts}, examples=examples)
    return setting(declared, DEFENCES[defence])


def simulate(update, size="epochs", defence="keylock", lock=None, **options):
    """Replays at the client's own examples, and at its private part or `lock`."""
    _, steps, batch = SIZES[size]
    here = ground(size, defence, "known" if lock is None else "regress_gates")
    gates = here.defence.gates if lock is None else lambda public, guess: guess
    options = {"optimiser": DESCENT, "steps": steps, "batch": batch} | options
    simulation = local_steps(here, gates, **options)
    truth = Candidate(update.inputs, update.targets, lock or update.private)
    return quick_jit(simulation)(observe(here.threat, update), truth)


def assert_alike(found, expected, rtol=1e-4):
    """Compares changes tensor by tensor, beside the tensor's largest entry."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max() + 1e-6)


def apart(found, expected):
    """Measures how far two changes are apart, beside the second's length."""
    distance = squared_l2()
    zero = jax.tree.map(jnp.zeros_like, expected)
    return float(jnp.sqrt(distance(found, expected) / distance(zero, expected)))


# --- at the truth ----------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_the_truth_gives_the_clients_change_lock_weights_included(size):
    update = update_of(size)
    simulated, observed = simulate(update, size)
    assert_alike(simulated, observed)
    assert_alike(observed, (update.sent, update.lock_grads))
    # There is something to compare, in every tensor but the bias before the norm.
    moved = [float(np.abs(x).max()) for x in jax.tree.leaves(observed)]
    assert np.sum(np.array(moved) > 1e-2) >= len(moved) - 1


@pytest.mark.parametrize("defence", ["none", "plaintext", "clipping"])
def test_the_truth_gives_what_every_defence_releases(defence):
    update = update_of(defence=defence)
    assert_alike(*simulate(update, defence=defence))


def test_the_pull_of_fedprox_is_replayed():
    penalty = proximal(2.0)
    update = update_of(defence="none", penalty=penalty)
    assert_alike(*simulate(update, defence="none", penalty=penalty))
    assert apart(*simulate(update, defence="none")) > 1e-2


def test_examples_are_clipped_one_by_one_and_the_pull_is_not():
    name, penalty = "clipping of examples", proximal(2.0)
    update = update_of(defence=name, penalty=penalty)
    assert_alike(*simulate(update, defence=name, penalty=penalty))
    # The bound shortens: who clips the mean alone, or nothing, is elsewhere.
    for other in ("clipping", "none"):
        assert apart(*simulate(update, defence=other, penalty=penalty)) > 1e-2


def test_adam_is_replayed():
    descent = optax.adam(0.05, eps_root=1e-8)
    update = update_of(defence="none", descent=descent)
    assert_alike(*simulate(update, defence="none", optimiser=descent), rtol=1e-3)


def test_examples_in_the_order_of_other_batches_do_not_match():
    update = update_of()
    order = np.array([3, 1, 2, 0, 4, 5])  # across the border of the batches
    other = update._replace(inputs=update.inputs[order], targets=update.targets[order])
    assert apart(*simulate(other)) > 1e-2
    # Within a batch the order has no meaning.
    order = np.array([2, 0, 1, 3, 5, 4])
    same = update._replace(inputs=update.inputs[order], targets=update.targets[order])
    assert_alike(*simulate(same))


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 3}, {"batch": 2}, {"optimiser": optax.sgd(RATE)}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_another_protocol_does_not_match(wrong):
    assert apart(*simulate(update_of(), **wrong)) > 1e-2


def test_one_step_of_gradient_descent_is_minus_the_gradient():
    params, stats = weights()
    public, private = Public(params), random_private()
    images, labels = random_images(2, *IMAGE_SHAPE), np.array([2, 0])
    targets = np.eye(CLASSES, dtype=np.float32)[labels]
    defence, rng = DEFENCES["keylock"], jax.random.key(3)
    step = one_step(toy_model(), cross_entropy, defence, train=True)
    gradient = quick_jit(step)(rng, public, stats, private, images, targets)
    training = local_update(
        toy_model(), cross_entropy, defence, optax.sgd(RATE), steps=1, batch=2
    )
    state = training.init(public, private)
    update = quick_jit(training.run)(rng, 0, public, stats, state, images, labels)
    for name in ("sent", "lock_grads"):
        downhill = jax.tree.map(lambda g: -RATE * g, getattr(gradient, name))
        assert_alike(getattr(update, name), downhill)
    assert_alike(update.new_stats, gradient.new_stats)
    # In the protocol's unit it is the gradient itself, but for the sign.
    declared = threat("known", "given", **EVERYTHING, examples=2)
    protocol = Protocol(optax.sgd(RATE), steps=1, batch=2, learning_rate=RATE)
    here = setting(declared, defence, protocol=protocol)
    truth = Candidate(images, targets, private)
    simulated, observed = quick_jit(replay(here, here.defence.gates))(
        observe(declared, update), truth
    )
    negative = jax.tree.map(jnp.negative, (gradient.sent, gradient.lock_grads))
    assert_alike(simulated, negative)
    assert_alike(observed, negative)


def test_guessed_gates_stay_what_they_are():
    """The true gates of the start explain one step, and drift away after it."""
    update = update_of()
    gates = LOCK.gates(update.private.trainable, update.private.secret)
    simulated, observed = simulate(update, lock=gates)
    assert 1e-3 < apart(simulated, observed) < 1
    # The same client with gates that are nobody's parameters: optax.set_to_zero.
    still = optax.chain(
        DESCENT,
        optax.partition(
            {"train": optax.identity(), "keep": optax.set_to_zero()},
            lambda tree: (
                jax.tree.map(lambda _: "train", tree[0]),
                jax.tree.map(lambda _: "keep", tree[1]),
            ),
        ),
    )
    assert_alike(*simulate(update_of(descent=still), lock=gates))


@pytest.mark.parametrize("gradient", (0.0, 1.0))
def test_what_one_and_the_same_gradient_moves_is_a_loop(gradient):
    protocol = Protocol(DESCENT, steps=3, batch=1, learning_rate=RATE)
    start = (Public({"w": np.float32([1.0, -2.0])}), np.float32([[4.0]]))
    public, lock = move_by_gradient(protocol, start, gradient)
    for found, first in ((public.model["w"], start[0].model["w"]), (lock, start[1])):
        now, memory = first.astype(np.float64), 0.0
        for _ in range(3):
            decayed = gradient + 5e-2 * now
            memory = decayed + 0.9 * memory
            now = now - RATE * (decayed + 0.9 * memory)
        np.testing.assert_allclose(found, now - first, rtol=1e-4)


# --- its derivative --------------------------------------------------------------


def loss_of(simulation, view, candidate):
    def loss(images):
        return squared_l2()(*simulation(view, candidate._replace(inputs=images)))

    return quick_jit(jax.value_and_grad(loss))


def off_truth():
    """A candidate beside the truth, and what the server holds."""
    update = update_of("broken off")
    here = ground("broken off")
    images = np.asarray(update.inputs) + 0.3 * random_images(6, *IMAGE_SHAPE, seed=5)
    candidate = Candidate(images, update.targets, update.private)
    return here, observe(here.threat, update), candidate


def unrolled(here, steps, batch):
    """The same by a loop in Python, plain SGD with Nesterov's momentum by hand."""

    def simulation(view, candidate):
        start = (view.public, candidate.secret.trainable)
        now, momentum = start, jax.tree.map(jnp.zeros_like, start)
        for t in range(steps):
            rows = [(t * batch + i) % len(candidate.inputs) for i in range(batch)]

            def loss(now, rows=rows):
                public, trainable = now
                gates = here.defence.gates(
                    (), Private(candidate.secret.secret, trainable)
                )
                out = here.task.model.apply(
                    public.model,
                    view.stats,
                    candidate.inputs[np.array(rows)],
                    gates=gates,
                    train=True,
                )
                return here.task.loss(out.logits, candidate.targets[np.array(rows)])

            grads = jax.tree.map(lambda g, w: g + 5e-2 * w, jax.grad(loss)(now), now)
            momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, grads)
            now = jax.tree.map(
                lambda w, g, m: w - RATE * (g + 0.9 * m), now, grads, momentum
            )
        change = jax.tree.map(jnp.subtract, now, start)
        return change, (view.grads, view.lock_grads)

    return simulation


@functools.cache
def differentiated(rematerialise):
    here, view, candidate = off_truth()
    simulation = local_steps(
        here,
        here.defence.gates,
        optimiser=DESCENT,
        steps=3,
        batch=3,
        rematerialise=rematerialise,
    )
    return loss_of(simulation, view, candidate)(candidate.inputs)


@pytest.mark.slow
def test_its_derivative_is_that_of_an_unrolled_loop():
    here, view, candidate = off_truth()
    value, grads = loss_of(unrolled(here, 3, 3), view, candidate)(candidate.inputs)
    found, found_grads = differentiated(True)
    np.testing.assert_allclose(found, value, rtol=1e-4)
    assert_alike(found_grads, grads)
    assert np.min(np.abs(grads).max(axis=(1, 2, 3))) > 1e-3  # every image counts


def test_its_derivative_is_the_slope():
    """In float64: differences of float32 losses are mostly rounding here."""
    here, *knowns = off_truth()
    with jax.enable_x64(True):
        view, candidate = jax.tree.map(lambda x: np.asarray(x, np.float64), knowns)
        simulation = local_steps(
            here, here.defence.gates, optimiser=DESCENT, steps=3, batch=3
        )
        evaluate = loss_of(simulation, view, candidate)
        _, grads = evaluate(candidate.inputs)
        length = np.linalg.norm(grads)
        near = [candidate.inputs + h * grads / length for h in (1e-4, -1e-4)]
        up, down = (evaluate(images)[0] for images in near)
        np.testing.assert_allclose((up - down) / 2e-4, length, rtol=1e-3)


def test_rematerialisation_changes_nothing():
    for found, expected in zip(
        differentiated(True), differentiated(False), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


# --- what is refused -------------------------------------------------------------


@pytest.mark.parametrize(
    "bad", [{"steps": 0}, {"batch": 0}, {"batch": 4}], ids=lambda bad: str(bad)
)
def test_bad_sizes_are_refused(bad):
    here, options = ground(), {"optimiser": DESCENT, "steps": 2, "batch": 2} | bad
    with pytest.raises(ValueError, match="steps=.*batch=.*divide the 6 examples"):
        local_steps(here, here.defence.gates, **options)


@pytest.mark.parametrize("bad", [{"steps": 0}, {"batch": 0}])
def test_a_client_refuses_bad_sizes(bad):
    options = {"steps": 1, "batch": 2} | bad
    with pytest.raises(ValueError, match="steps=.*batch="):
        local_update(toy_model(), cross_entropy, none(), DESCENT, **options)


def test_a_client_refuses_a_batch_that_does_not_fit():
    training = local_update(
        toy_model(), cross_entropy, none(), DESCENT, steps=1, batch=2
    )
    params, stats = weights()
    state = training.init(Public(params), Private())
    images = random_images(3, *IMAGE_SHAPE)
    with pytest.raises(ValueError, match="batch=2 does not divide the 3 examples"):
        training.run(
            jax.random.key(0), 0, Public(params), stats, state, images, np.arange(3)
        )


@pytest.mark.parametrize("preset", [matching, dlg])
def test_presets_refuse_an_update_without_its_protocol(preset):
    with pytest.raises(ValueError, match="upload='update'.*no protocol"):
        preset(ground(), steps=1, restarts=1)


def test_a_protocol_without_an_update_is_refused():
    protocol = Protocol(DESCENT, steps=1, batch=1, learning_rate=RATE)
    here = ground(upload="gradient")._replace(protocol=protocol)
    with pytest.raises(ValueError, match="upload='gradient'.*has a protocol"):
        replay(here, here.defence.gates)


# --- an attack -------------------------------------------------------------------


@pytest.mark.slow
def test_two_steps_on_a_dense_network_give_their_images_away():
    shape = (4, 4, 1)
    model = from_nnx(
        lambda rngs: Dense(CLASSES, image_shape=shape, widths=(12,), rngs=rngs)
    )
    params, stats = random_weights(model, scale=0.3)
    descent = optax.sgd(RATE, momentum=0.9)
    training = local_update(model, cross_entropy, none(), descent, steps=2, batch=1)
    public = Public(params)
    images, labels = random_images(2, *shape), np.array([1, 2])
    facts = {"labels": "known", "upload": "update", "examples": 2}
    declared = threat("unit", "given", **facts)
    here = setting(
        declared,
        none(),
        model=model,
        inputs=images_of(shape),
        sites=(),
        protocol=Protocol(descent, steps=2, batch=1, learning_rate=RATE),
    )
    attack = matching(here, steps=600, restarts=1, variation=0.0)
    slow = from_optax(optax.sgd(0.0))
    start = matching(here, slow, steps=1, restarts=1, variation=0.0)

    @quick_jit
    def run(params):
        public = Public(params)
        state = training.init(public, Private())
        update = training.run(
            jax.random.key(0), 0, public, stats, state, images, labels
        )
        view = observe(declared, update)
        return attack(jax.random.key(1), view), start(jax.random.key(1), view)

    found, first = run(public.model)
    assert found.loss < 1e-5 * first.loss
    errors = np.mean((found.inputs - images) ** 2, axis=(1, 2, 3))
    guessed = np.mean((first.inputs - images) ** 2, axis=(1, 2, 3))
    # In the order of the steps, so that nothing need be matched.
    assert np.min(errors) < 1e-3 * np.min(guessed)
    np.testing.assert_array_equal(found.labels, labels)
