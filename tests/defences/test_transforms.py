"""What a transform acts on: each gradient, or the whole update, in every job."""

import functools
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import outside_package
import pytest
from tiny_studies import quick_compilation, sites_of, tiny
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

from kljax.core.types import Private, Public
from kljax.defences import (
    at_update,
    chain,
    gaussian_noise,
    keylock,
    magnitude_pruning,
    none,
    norm_clipping,
    without_release,
)
from kljax.defences.arms import acts_on_release, parse_arm, parse_training_arm
from kljax.federated.clients import Batches, local_training, local_update, one_step
from kljax.models.losses import cross_entropy
from kljax.parallel import Layout
from kljax.studies import leakage, run_folder, training
from kljax.studies.builder.study import build_study
from kljax.studies.config import LeakConfig, TrainConfig
from kljax.studies.sweeps.legality import is_legal

STEPS, BATCH, RATE, MOMENTUM = 3, 2, 0.1, 0.9
LOCKED = keylock(LOCK)
BOUND, FRACTION = 0.3, 0.4


def widened(tree):
    """Turns 32 bits into 64 where JAX has them switched on."""
    if not jax.config.jax_enable_x64:
        return tree
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def batches(valid=(True,) * STEPS):
    count = len(valid)
    labels = np.arange(count * BATCH).reshape(count, BATCH) % CLASSES
    images = widened(random_images(count, BATCH, *IMAGE_SHAPE))
    return Batches(images, labels, np.array(valid))


def start():
    params, stats = widened(random_weights(toy_model()))
    return Public(params), stats


@functools.cache
def compiled(defence, loss, rate, momentum):
    training = local_training(
        toy_model(), loss, defence, optax.sgd(rate, momentum or None)
    )
    return training.init, quick_jit(training.run)


def run(
    defence,
    *,
    rounds=1,
    rng=7,
    on=None,
    loss=cross_entropy,
    rate=RATE,
    momentum=MOMENTUM,
):
    """Trains one client; gives its last upload and what it keeps."""
    init, train = compiled(defence, loss, rate, momentum)
    received, stats = start()
    kept = init(received, widened(random_private()))
    for number in range(rounds):
        key = jax.random.fold_in(jax.random.key(rng), number)
        given = batches() if on is None else on
        upload, kept, _ = train(key, np.int32(number), received, stats, kept, given)
    return upload, kept


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


# --- of each step, by a slow loop ----------------------------------------------------


def clip(grads):
    """Shortens a gradient, {path: array}, to a norm of BOUND."""
    length = np.sqrt(sum(float(np.sum(np.square(g))) for g in grads.values()))
    return {path: g * min(1.0, BOUND / length) for path, g in grads.items()}


def prune(grads):
    """Drops the smallest entries of each tensor."""
    return {
        path: np.where(np.abs(g) < np.quantile(np.abs(g), FRACTION), 0.0, g)
        for path, g in grads.items()
    }


TRANSFORMS = {clip: norm_clipping(BOUND), prune: magnitude_pruning(FRACTION)}


def by_hand(of_step, of_update):
    """Trains the locked toy by stochastic gradient descent with momentum, in NumPy."""
    model, private = toy_model(), widened(random_private())
    received, stats = start()
    params = {path: np.asarray(x, np.float64) for path, x in received.model.items()}
    lock = private.trainable

    @quick_jit
    def gradient(params, lock, stats, images, labels):
        def objective(params, lock):
            gates = LOCK.gates(lock, private.secret)
            out = model.apply(params, stats, images, gates=gates, train=True)
            chosen = jnp.take_along_axis(
                jax.nn.log_softmax(out.logits), labels[:, None], axis=1
            )
            return -jnp.mean(chosen), out.stats

        return jax.grad(objective, argnums=(0, 1), has_aux=True)(params, lock)

    given = batches()
    velocity = {path: 0.0 for path in params}
    lock_velocity = jax.tree.map(np.zeros_like, lock)
    for images, labels in zip(given.inputs, given.labels, strict=True):
        dtype = jax.dtypes.canonicalize_dtype(np.float64)
        given_params = {path: x.astype(dtype) for path, x in params.items()}
        (grads, lock_grads), stats = gradient(given_params, lock, stats, images, labels)
        grads = {path: np.asarray(g, np.float64) for path, g in grads.items()}
        for transform in of_step:
            grads = transform(grads)
        velocity = {p: MOMENTUM * velocity[p] + grads[p] for p in params}
        params = {p: params[p] - RATE * velocity[p] for p in params}
        # The lock's own gradient goes nowhere, and nothing is done to it.
        lock_velocity = jax.tree.map(
            lambda v, g: MOMENTUM * v + g, lock_velocity, lock_grads
        )
        lock = jax.tree.map(lambda w, v: w - RATE * v, lock, lock_velocity)
    change = {path: params[path] - received.model[path] for path in params}
    for transform in of_update:
        change = transform(change)
    return change, lock


@pytest.mark.parametrize(
    ("of_step", "of_update"),
    [
        ((), ()),
        ((clip,), ()),
        ((prune,), ()),
        ((clip, prune), ()),
        ((prune, clip), ()),
        ((), (prune, clip)),
        ((clip,), (prune,)),
    ],
    ids=lambda transforms: " then ".join(t.__name__ for t in transforms) or "nothing",
)
def test_local_training_is_the_loop_by_hand(of_step, of_update):
    members = [TRANSFORMS[transform] for transform in of_step]
    # Those of the update act after all steps, wherever they are written.
    members[:0] = [at_update(TRANSFORMS[transform]) for transform in of_update]
    # In 64 bits: the norm of two examples gives about -1 and 1 whatever the weights, so
    # the first layer's gradient is what is left of terms that cancel. In 32 bits (with
    # `prune` in each step) its change was off by 1.1e-6 here and by 5e-7 by hand. The
    # two are not one program, and need not round alike.
    with jax.enable_x64(True):
        upload, kept = run(chain(LOCKED, *members))
        change, lock = by_hand(of_step, of_update)
        pairs = [(upload.delta.model[path], change[path]) for path in change]
        pairs += zip(*map(jax.tree.leaves, (kept.private.trainable, lock)), strict=True)
        for found, expected in pairs:
            found, expected = np.asarray(found), np.asarray(expected)
            assert found.dtype == expected.dtype == np.float64
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_the_order_and_the_place_of_transforms_matter():
    orders = [((clip, prune), ()), ((prune, clip), ()), ((), (prune, clip)), ((), ())]
    changes = [
        np.concatenate([x.ravel() for x in by_hand(*order)[0].values()])
        for order in orders
    ]
    for one, other in itertools.combinations(changes, 2):
        assert np.linalg.norm(one - other) > 1e-3 * np.linalg.norm(one)


# --- draws ---------------------------------------------------------------------------


def nothing(logits, targets):
    """A loss without a gradient: what is uploaded are the draws alone."""
    del targets
    return 0.0 * jnp.sum(logits)


def noise(defence, steps, rng=7):
    """Draws of a client's steps, added up, by leaf."""
    given = batches((True,) * steps)
    upload, _ = run(defence, rng=rng, on=given, loss=nothing, rate=1.0, momentum=0)
    return [-np.ravel(leaf) for leaf in jax.tree.leaves(upload.delta)]


def test_steps_leaves_members_and_clients_draw_for_themselves():
    once = chain(LOCKED, gaussian_noise(1.0))
    first, two, three = (noise(once, steps) for steps in (1, 2, 3))
    twice = noise(chain(once, gaussian_noise(1.0)), 1)
    of_update = noise(chain(LOCKED, at_update(gaussian_noise(1.0))), 1)
    draws = {
        "first step": first,
        "second step": [b - a for a, b in zip(first, two, strict=True)],
        "third step": [c - b for b, c in zip(two, three, strict=True)],
        "another client": noise(once, 1, rng=8),
        "second member": [b - a for a, b in zip(first, twice, strict=True)],
        "the whole update": of_update,
    }
    numbers = [abs(round(float(x), 4)) for d in draws.values() for x in flat(d)]
    assert len(numbers) == 6 * len(flat(first)) and max(numbers) < 6
    # Four digits of a hundred draws meet by chance; a draw used twice would meet
    # everywhere.
    assert len(set(numbers)) > 0.97 * len(numbers)


def test_noise_of_steps_adds_up_and_noise_of_an_update_does_not():
    sizes = {}
    for name, transform in (
        ("steps", gaussian_noise(1.0)),
        ("update", at_update(gaussian_noise(1.0))),
    ):
        defence = chain(LOCKED, transform)
        many = [flat(noise(defence, STEPS, rng=rng)) for rng in range(60)]
        sizes[name] = np.std(np.concatenate(many))
    assert sizes["steps"] == pytest.approx(np.sqrt(STEPS), rel=0.05)
    assert sizes["update"] == pytest.approx(1.0, rel=0.05)


# --- what a release remembers --------------------------------------------------------


def counting():
    """A transform that counts its releases, and sends ever less."""

    def release(rng, count, grads, context):
        del rng
        assert context.inputs.shape[0] == context.targets.shape[0]
        return jax.tree.map(lambda g: g / (count + 1.0), grads), count + 1

    return none()._replace(
        release=release, init_state=lambda grads: jnp.zeros((), jnp.int32)
    )


def test_what_a_release_remembers_is_carried_through_steps_and_rounds():
    padded = batches((True, True, True, False))
    _, kept = run(chain(LOCKED, counting(), at_update(counting())), rounds=2, on=padded)
    # Padding counts nothing; rounds go on where the one before ended.
    assert jax.tree.leaves(kept.release.steps) == [2 * STEPS]
    assert jax.tree.leaves(kept.release.update) == [2]
    upload, _ = run(chain(LOCKED, counting()))
    plain, _ = run(LOCKED)
    assert not np.allclose(flat(upload.delta), flat(plain.delta), rtol=1e-3)


def test_a_step_goes_on_with_what_the_client_remembers():
    received, stats = start()
    step = quick_jit(one_step(toy_model(), cross_entropy, counting(), train=True))
    images, targets = random_images(2, *IMAGE_SHAPE), np.eye(CLASSES)[[0, 2]]
    ask = functools.partial(
        step, jax.random.key(0), received, stats, Private(), images, targets
    )
    fresh, later = ask(), ask(np.int32(3))
    np.testing.assert_allclose(flat(fresh.sent), 4 * flat(later.sent), rtol=1e-5)
    np.testing.assert_allclose(flat(fresh.sent), flat(later.before_release), rtol=1e-5)


def test_one_step_refuses_what_acts_on_an_update():
    with pytest.raises(ValueError, match="acts on the whole change"):
        one_step(toy_model(), cross_entropy, at_update(gaussian_noise(1)), train=True)


def test_without_release_nothing_is_left_to_do():
    defence = chain(LOCKED, gaussian_noise(1.0), at_update(norm_clipping(0.1)))
    assert without_release(defence) == LOCKED
    update = local_update(
        toy_model(), cross_entropy, defence, optax.sgd(RATE), steps=2, batch=1
    )
    received, stats = start()
    found = quick_jit(update.run)(
        jax.random.key(0),
        np.int32(0),
        received,
        stats,
        update.init(received, random_private()),
        random_images(2, *IMAGE_SHAPE),
        np.arange(2),
    )
    assert np.linalg.norm(flat(found.sent)) == pytest.approx(0.1, rel=1e-4)
    assert np.linalg.norm(flat(found.before_release)) > 0.11


# --- what is written -----------------------------------------------------------------


def test_an_arm_says_what_it_acts_on():
    sites = sites_of("layers/0")
    step = parse_training_arm("keylock+norm-clipping=2", sites, {})
    update = parse_training_arm("keylock+norm-clipping@update=2", sites, {})
    assert step.defence.update == none().update
    assert without_release(update.defence)._replace(update=update.defence.update) == (
        update.defence
    )
    assert (step.options, update.options) == ((2.0,), (2.0,))
    assert step.skeleton == "keylock+norm-clipping"
    assert update.skeleton == "keylock+norm-clipping@update"
    attacked = parse_arm("keylock+norm-clipping@update=2/known", sites, {})
    assert (attacked.skeleton, attacked.options) == (update.skeleton, (2.0,))
    # Without a strength it is the same default; a user's own may be told, too.
    default = parse_training_arm("gaussian-noise@update", sites, {})
    assert default.options == parse_training_arm("gaussian-noise", sites, {}).options
    grads = {"w": jnp.array([3.0, -4.0])}
    for text, at in (("", 1.0), ("@update", 0.5)):
        mine = f"outside_package:half_gradient{text}"
        defence = parse_training_arm(mine, sites, {}).defence
        sent, _ = defence.release(None, (), grads, None)
        np.testing.assert_allclose(sent["w"], (1.5 - at) * grads["w"])
        sent, _ = defence.update.release(None, (), grads, None)
        np.testing.assert_allclose(sent["w"], at * grads["w"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gaussian-noise@step=1", "'gaussian-noise@step' says '@' and not '@update'"),
        ("gaussian-noise@=1", "'gaussian-noise@' says '@'"),
        ("gaussian-noise@update@update", "says '@' and not '@update'"),
        ("none@update", "'none@update': only what changes each gradient"),
        ("keylock@update+gaussian-noise", "'keylock@update': only what changes"),
        ("gaussian-nose@update=1", "did you mean 'gaussian-noise'"),
        (
            "gaussian-noise=1@update",
            "option std of gaussian-noise must be a finite number",
        ),
        ("gaussian-noise@update=-1", "std must be >= 0"),
    ],
)
def test_bad_places_are_refused_by_name(text, message):
    with pytest.raises(ValueError, match=message):
        parse_training_arm(text, sites_of("layers/0"), {})


def test_a_leak_of_a_gradient_refuses_what_acts_on_an_update():
    config = tiny(arms=("none", "gaussian-noise@update=0.5+norm-clipping"))
    message = (
        "gaussian-noise@update=0.5.norm-clipping' acts on the whole change.*write "
        "'gaussian-noise=0.5.norm-clipping'.*upload='update'"
    )
    with pytest.raises(ValueError, match=message):
        build_study(config)
    with pytest.raises(ValueError, match=message):
        is_legal(tiny(arms=config.arms[1:]))


RUN = TrainConfig(
    model="dense",
    image_size=8,
    examples=24,
    test_examples=10,
    public_examples=0,
    clients=2,
    rounds=1,
    batch=2,
    learning_rate=RATE,
    init=0.3,
    arms=(
        "norm-clipping=0.5+norm-clipping@update=0.05",
        "outside_package:half_gradient",
    ),
    keep_rounds=(0,),
    layout=Layout("loop"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run whose arms act on each gradient, and on the update."""
    place = tmp_path_factory.mktemp("runs") / "run"
    with quick_compilation():
        training.train(RUN, place)
    return str(place)


def attacked(folder, *arms, **changes):
    options = {"upload": "update", "local_steps": 3, "batch": 1, "victims": 2}
    return LeakConfig(
        from_run=folder,
        arms=arms,
        attack="outside_package:measured_reveal",
        steps=2,
        layout=Layout("chunked", 2),
        **(options | changes),
    )


def test_a_run_means_the_same_where_it_is_attacked(folder):
    places = [path.name for path in pathlib.Path(folder).iterdir() if path.is_dir()]
    assert set(RUN.arms) <= set(places)
    with quick_compilation():
        result = leakage.leak(attacked(folder, RUN.arms[0]))
    (found,) = (arm.attacked for arm in result.arms)
    assert np.all(found.replay_is_exact)
    assert np.all(found.loss_at_truth < 1e-6 * found.loss_scale)
    sent = found.reconstruction.info["view"].grads
    for n in range(2):
        one = jax.tree.map(lambda x, n=n: x[n], sent)
        assert np.linalg.norm(flat(one)) == pytest.approx(0.05, rel=1e-4)


def test_gradients_of_the_run_are_attacked_where_an_arm_acts_on_them(folder):
    gradient = {"upload": "gradient", "local_steps": None, "batch": None}
    with pytest.raises(
        ValueError, match="norm-clipping@update=0.05' acts on the whole"
    ):
        build_study(attacked(folder, RUN.arms[0], **gradient))
    build_study(attacked(folder, RUN.arms[1], **gradient))


def test_what_no_attacker_can_simulate_is_refused(folder, monkeypatch):
    def half():
        def simulate(grads, sent, earlier, private):
            return jax.tree.map(lambda g, s: jnp.where(s == 0, 0.0, g), grads, sent)

        return none()._replace(release=lambda *_: None, simulate=simulate)

    monkeypatch.setattr(outside_package, "half_gradient", half)
    with pytest.raises(
        ValueError, match="half_gradient'.*cannot be simulated.*@update"
    ):
        build_study(attacked(folder, RUN.arms[1]))


# --- runs of before ------------------------------------------------------------------


def test_what_acts_on_release_is_found():
    for text in ("none", "keylock/known", "bn-control", "plaintext-gates-as-lock"):
        assert not acts_on_release(text)
    for text in (
        "gaussian-noise",
        "keylock+norm-clipping=4/known",
        "none+magnitude-pruning@update=0.1",
        "outside_package:half_gradient",
    ):
        assert acts_on_release(text)
    assert not acts_on_release("outside_package:gates_alone")


@pytest.mark.parametrize("version", ({}, {"schema_version": 1}), ids=str)
def test_an_older_run_is_refused_where_its_arms_mean_something_else(tmp_path, version):
    def write(arms, **changes):
        config = TrainConfig(arms=arms)
        described = run_folder.describe(config, "none") | changes
        if not changes:
            del described["schema_version"]
        (tmp_path / "config.json").write_text(json.dumps(described))
        return config

    config = write(("none", "keylock"), **version)
    assert run_folder.read_config(tmp_path) == config
    run_folder.check_same(tmp_path, config)
    config = write(("none", "keylock+gaussian-noise=0.1"), **version)
    message = "older kljax.*keylock.gaussian-noise=0.1 acted once .*@update"
    with pytest.raises(ValueError, match=message):
        run_folder.read_config(tmp_path)
    with pytest.raises(ValueError, match=message):
        run_folder.check_same(tmp_path, config)
    config = write(config.arms, schema_version=run_folder.SCHEMA_VERSION)
    assert run_folder.read_config(tmp_path) == config
    run_folder.check_same(tmp_path, config)
