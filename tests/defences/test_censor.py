"""CENSOR: what is sent instead of the gradient, and what it still says."""

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
    toy_model,
)

from kljax.core.types import Public
from kljax.defences import Context, Defence, at_update, censor, chain, keylock, none
from kljax.defences.orthogonal import looks_computed
from kljax.federated.clients import Batches, local_training, one_step
from kljax.models.losses import cross_entropy

RNG = jax.random.key(4)
GENERATOR = np.random.default_rng(6)


def draw(*shape, dtype=jnp.float32):
    return jnp.asarray(GENERATOR.standard_normal(shape), dtype)


GRADS = Public(
    {
        "conv/kernel": 5 * draw(3, 3, 2, 4),
        "fc/bias": 0.01 * draw(3),
        "fc/half": draw(40, dtype=jnp.bfloat16),
        "one": draw(1),
        "zeros": jnp.zeros(6),
    }
)
WEIGHTS = jax.tree.map(lambda g: draw(*g.shape).astype(g.dtype), GRADS)


def context(loss):
    return Context(WEIGHTS, None, None, None, loss=loss)


def far(public):
    """A loss that is least at the weights as they are."""
    moved = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), public, WEIGHTS)
    return jax.tree.reduce(jnp.add, moved).astype(jnp.float32)


def near(public):
    return -far(public)


def sent_by(defence, grads=GRADS, loss=far, rng=RNG):
    release = quick_jit(lambda *args: defence.release(*args, context(loss))[0])
    return release(rng, (), grads)


def tensors(tree):
    return {n: np.asarray(x, np.float64).ravel() for n, x in tree.model.items()}


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_each_tensor_is_orthogonal_and_as_long():
    sent = sent_by(censor())
    assert jax.eval_shape(lambda: sent) == jax.eval_shape(lambda: GRADS)
    for name, g in tensors(GRADS).items():
        x, exact = tensors(sent)[name], 1e-6 if name != "fc/half" else 1e-2
        if name in ("one", "zeros"):
            np.testing.assert_array_equal(x, 0)
            continue
        assert abs(cosine(x, g)) < exact
        assert np.linalg.norm(x) == pytest.approx(np.linalg.norm(g), rel=exact)


def test_what_is_along_the_gradient_by_chance_is_taken_away_all_the_same():
    """Of two entries one direction is left, however near the draw is to g."""
    g = Public({"a": jnp.array([3.0, 4.0])})

    def cosines(rng):
        sent = censor(1).release(rng, (), g, Context(g, None, None, None, loss=size))
        return jnp.sum(sent[0].model["a"] * g.model["a"]) / 25

    def size(public):
        return jnp.sum(public.model["a"])

    many = jax.vmap(cosines)(jax.random.split(RNG, 3000))
    assert np.abs(many).max() < 1e-6


@pytest.mark.slow
def test_of_all_trials_the_one_of_the_lowest_loss_is_sent():
    tried = []

    def loss(public):
        value = jnp.sum(jnp.sin(40 * public.model["conv/kernel"]))
        tried.append((float(value), public))
        return value

    with jax.disable_jit():
        sent, _ = censor(5, 0.1).release(RNG, (), GRADS, context(loss))
    assert len(tried) == len({value for value, _ in tried}) == 5
    values, places = zip(*tried, strict=True)
    best = places[int(np.argmin(values))]
    assert int(np.argmin(values)) not in (0, 4)
    name = "conv/kernel"
    moved = WEIGHTS.model[name] - 0.1 * sent.model[name]
    np.testing.assert_allclose(moved, best.model[name], rtol=1e-5)


def test_the_true_gradient_is_sent_only_where_it_is_asked_for():
    equal = functools.partial(jax.tree.map, np.testing.assert_array_equal)
    equal(sent_by(censor(fallback=True), loss=far), GRADS)
    without = sent_by(censor(), loss=far)
    assert abs(
        cosine(tensors(without)["conv/kernel"], tensors(GRADS)["conv/kernel"])
    ) < (1e-6)
    equal(sent_by(censor(fallback=True), loss=near), sent_by(censor(), loss=near))


@pytest.mark.parametrize("length", (0.1, 1.0, 3.0, 1e4))
def test_a_single_division_is_orthogonal_at_length_one_alone(length):
    g = draw(50)
    g = Public({"a": length * g / jnp.linalg.norm(g)})
    nothing = Context(
        g, None, None, None, loss=lambda public: jnp.sum(public.model["a"])
    )
    found, defence = [], censor(1, single_division=True)
    release = quick_jit(lambda rng: defence.release(rng, (), g, nothing)[0].model["a"])
    for i in range(20):
        rng = jax.random.key(i)
        sent = release(rng)
        x, unit = np.asarray(sent, np.float64), np.asarray(g.model["a"]) / length
        # By hand, from the very draw.
        (own,) = jax.random.split(jax.random.fold_in(rng, 0), 1)
        r = np.asarray(jax.random.normal(own, (50,)), np.float64)
        along = r @ unit / np.linalg.norm(r)
        across = np.sqrt(1 - along**2)
        wanted = (1 - length) * along / np.hypot((1 - length) * along, across)
        assert cosine(x, unit) == pytest.approx(wanted, abs=1e-4)
        assert np.linalg.norm(x) == pytest.approx(length, rel=1e-5)
        found.append(abs(wanted))
    assert (np.median(found) > 0.99) == (length > 100)
    assert (np.max(found) < 1e-6) == (length == 1)


# --- what it says --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("options", ({}, {"single_division": True}, {"fallback": True}))
def test_of_the_truth_an_attacker_makes_what_was_sent(options):
    defence = censor(**options)
    sent = sent_by(defence, loss=near)
    at_truth = tensors(defence.simulate(GRADS, sent, None, None))
    other = tensors(defence.simulate(WEIGHTS, sent, None, None))
    for name, x in tensors(sent).items():
        scale = np.linalg.norm(x) or 1.0
        if name == "one" and options.get("single_division"):
            continue  # whose sign is all there is
        exact = 1e-5 if name != "fc/half" else 2e-2
        assert np.linalg.norm(at_truth[name] - x) < exact * scale
        if name not in ("one", "zeros"):
            assert np.linalg.norm(other[name] - x) > 0.01 * scale


@pytest.mark.slow
def test_a_simulation_has_a_slope_and_leaves_out_what_is_hidden():
    defence = censor()
    sent = sent_by(defence)
    kernel = sent.model["conv/kernel"].at[0, 0].set(jnp.nan)
    hidden = sent._replace(model=sent.model | {"conv/kernel": kernel})

    def distance(grads):
        made = defence.simulate(grads, hidden, None, None)
        gaps = jax.tree.map(lambda a, b: jnp.nansum((a - b) ** 2), made, hidden)
        return jax.tree.reduce(jnp.add, gaps).astype(jnp.float32)

    for grads in (WEIGHTS, jax.tree.map(jnp.zeros_like, GRADS)):
        slopes = tensors(jax.grad(distance)(grads))
        assert all(np.all(np.isfinite(x)) for x in slopes.values())
        assert not np.any(slopes["conv/kernel"])
    assert np.any(tensors(jax.grad(distance)(WEIGHTS))["fc/bias"])
    assert defence.simulate(GRADS, None, None, None) is GRADS


@pytest.mark.slow
def test_a_gradient_is_told_from_a_random_direction():
    features, logits = draw(30, 12), draw(30, 5)
    delta = jax.nn.softmax(logits) - jax.nn.one_hot(jnp.arange(30) % 5, 5)
    gradient = {"fc/kernel": features.T @ delta, "conv": draw(3, 3, 1, 4)}
    true = Public({name: 1e-6 * x for name, x in gradient.items()})
    assert looks_computed(true)
    random = jax.vmap(lambda seed: looks_computed(sent_by_small(true, seed)))
    assert not np.any(random(np.arange(50)))
    assert not looks_computed(jax.tree.map(jnp.zeros_like, true))
    assert not looks_computed(Public({"square": jnp.ones((4, 4))}))
    # Then the attacker compares with the gradient itself, and otherwise does not.
    defence = censor(fallback=True)
    guess = jax.tree.map(lambda x: x + 1e-6, true)
    jax.tree.map(
        np.testing.assert_array_equal, defence.simulate(guess, true, None, None), guess
    )
    made = defence.simulate(guess, sent_by_small(true, 0), None, None)
    assert np.any(made.model["conv"] != guess.model["conv"])


def sent_by_small(grads, seed):
    where = Context(grads, None, None, None, loss=lambda public: jnp.zeros(()))
    return censor(2).release(jax.random.key(seed), (), grads, where)[0]


def test_as_many_releases_as_entries_less_one_give_the_direction():
    g = Public({"a": draw(7)})
    many = jax.vmap(functools.partial(sent_by_small, g))
    sent = np.asarray(many(np.arange(6)).model["a"])
    null = np.linalg.svd(sent)[2][-1]
    assert abs(cosine(null, np.asarray(g.model["a"]))) > 1 - 1e-5
    assert abs(cosine(sent.mean(axis=0), np.asarray(g.model["a"]))) < 1e-5


# --- the client's own loss -----------------------------------------------------------


def telling_loss():
    """Sends the loss that the context has at the weights, and half of them."""

    def release(rng, state, grads, context):
        half = jax.tree.map(lambda w: w / 2, context.public)
        values = context.loss(context.public) + 100 * context.loss(half)
        return jax.tree.map(lambda g: jnp.full_like(g, values), grads), state

    return Defence(release=release)


@pytest.mark.parametrize("locked", (False, True))
def test_trials_are_compared_by_the_clients_own_loss_in_eval_mode(locked):
    model, lock = toy_model(), keylock(LOCK)
    params, stats = random_weights(model)
    private = random_private()
    images, labels = random_images(2, *IMAGE_SHAPE), np.array([0, 2])
    defence = chain(lock if locked else none(), telling_loss())
    gates = lock.gates((), private) if locked else {}

    def loss_at(scale):
        half = {name: scale * x for name, x in params.items()}
        out = model.apply(half, stats, images, gates=gates, train=False)
        logits = np.asarray(out.logits, np.float64)
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return -logs[[0, 1], labels].mean()

    wanted = loss_at(1.0) + 100 * loss_at(0.5)
    step = quick_jit(one_step(model, cross_entropy, defence, train=True))
    found = step(
        RNG, Public(params), stats, private, images, np.eye(CLASSES)[labels]
    ).sent
    np.testing.assert_allclose(found.model["fc/bias"], wanted, rtol=1e-5)
    training = local_training(model, cross_entropy, defence, optax.sgd(1.0))
    batches = Batches(images[None], labels[None], np.array([True]))
    state = training.init(Public(params), private)
    upload, *_ = quick_jit(training.run)(
        RNG, np.int32(0), Public(params), stats, state, batches
    )
    np.testing.assert_allclose(upload.delta.model["fc/bias"], -wanted, rtol=1e-5)


# --- what is refused -----------------------------------------------------------------


@pytest.mark.parametrize("trials", (0, -1, 2.5, float("nan"), float("inf")))
def test_impossible_trials_are_named(trials):
    with pytest.raises(ValueError, match=f"trials must be a whole .*got {trials}"):
        censor(trials)


@pytest.mark.parametrize("rate", (0, -1e-4, float("nan"), float("inf")))
def test_impossible_rates_are_named(rate):
    with pytest.raises(ValueError, match=f"rate must be finite and > 0, got {rate}"):
        censor(20, rate)


def test_a_whole_change_has_no_loss_to_compare_by():
    with pytest.raises(ValueError, match="needs Context.loss.*without '@update'"):
        at_update(censor())
    with pytest.raises(ValueError, match="censor needs Context.loss.*'@update'"):
        censor().release(RNG, (), GRADS, Context(WEIGHTS, None, None, None))


@pytest.mark.slow
def test_five_numbers_of_trials_are_one_program():
    traced = 0

    @jax.jit
    def send(trials):
        nonlocal traced
        traced += 1
        return censor(trials).release(RNG, (), GRADS, context(near))[0]

    for trials in (1, 2, 3, 5, 20):
        direct = sent_by(censor(trials), loss=near).model["conv/kernel"]
        found = send(jnp.float32(trials)).model["conv/kernel"]
        np.testing.assert_allclose(found, direct, rtol=1e-5, atol=1e-6)
    assert traced == 1
