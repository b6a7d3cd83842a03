"""Selective encryption: what is hidden, and that nothing else changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_studies import quick_compilation, scored, sites_of, study
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

from kljax.attacks import Candidate, replay
from kljax.core.types import Public
from kljax.defences import (
    Context,
    chain,
    gaussian_noise,
    keylock,
    none,
    selective_encryption,
)
from kljax.defences.arms import parse_arm
from kljax.defences.selective import (
    SCORES,
    fisher,
    largest,
    layers,
    magnitude,
    product,
    random,
    sensitivity,
)
from kljax.federated.clients import (
    Batches,
    local_gradient,
    local_training,
    local_update,
    one_step,
)
from kljax.federated.rounds import federated_rounds
from kljax.models.losses import cross_entropy
from kljax.threat import observe

RNG = jax.random.key(5)
EXAMPLES = 2
SGD = optax.sgd(0.1, momentum=0.9)


@functools.cache
def client():
    """A locked client at a batch: its gradient as a function, and its context."""
    model, defence = toy_model(), keylock(LOCK)
    params, stats = random_weights(model)
    public, private = Public(params), random_private()
    gradient = functools.partial(
        local_gradient(model, cross_entropy, defence, train=False),
        jax.random.key(0),
        public,
        stats,
        private,
    )
    images = random_images(EXAMPLES, *IMAGE_SHAPE)
    targets = np.eye(CLASSES, dtype=np.float32)[:EXAMPLES]
    context = Context(public, stats, images, targets, gradient)
    return gradient(images, targets).public, context


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def hidden_of(defence, grads=None, context=None, rng=RNG):
    """Lists which entries are encrypted."""
    sent, own = client()
    visible = defence.visible(rng, grads or sent, context or own)
    return ~flat(visible)


# --- which entries ---------------------------------------------------------------

NUMBERS = {"a": np.array([[0.5, 3.0], [2.0, 0.0]]), "b": np.array([1.0, 3.0, 2.5])}


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.0, [0, 0, 0, 0, 0, 0, 0]),
        (1 / 7, [0, 1, 0, 0, 0, 0, 0]),  # the first of two alike
        (2 / 7, [0, 1, 0, 0, 0, 1, 0]),
        (0.4, [0, 1, 0, 0, 0, 1, 1]),  # 2.8 entries are three
        (6 / 7, [1, 1, 1, 0, 1, 1, 1]),
        (1.0, [1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_the_largest_are_picked(share, expected):
    np.testing.assert_array_equal(flat(largest(NUMBERS, share)), expected)


def test_entries_that_are_alike_may_be_picked_together():
    np.testing.assert_array_equal(
        flat(largest(NUMBERS, 1 / 7, tied=True)), [0, 1, 0, 0, 0, 1, 0]
    )
    for share, count in ((0.0, 0), (0.01, 0), (0.5, 4), (1.0, 7)):
        same = jax.tree.map(jnp.zeros_like, NUMBERS)
        assert flat(largest(same, share, tied=True)).sum() == (7 if count else 0)
        assert flat(largest(same, share)).sum() == count


def test_a_share_is_data():
    picked = jax.jit(lambda share: largest(NUMBERS, share))
    for share in (0.0, 0.3, 1.0):
        np.testing.assert_array_equal(
            flat(picked(share)), flat(largest(NUMBERS, share))
        )
    assert picked._cache_size() == 1


# --- scores ----------------------------------------------------------------------


def jacobian():
    """d g_i / d x_j [d, numbers], one number of the inputs at a time, in float64."""
    _, context = client()
    images = np.asarray(context.inputs)
    gradient = quick_jit(lambda x: context.gradient(x, context.targets).public)
    step, columns = 1e-2, []
    for place in range(images.size):
        move = np.zeros(images.size, np.float32)
        move[place] = step
        move = move.reshape(images.shape)
        up, down = flat(gradient(images + move)), flat(gradient(images - move))
        columns.append((np.float64(up) - down) / (2 * step))
    return np.stack(columns, axis=1)


def test_magnitude_is_the_size_of_what_is_sent():
    sent, context = client()
    np.testing.assert_array_equal(
        flat(magnitude(RNG, sent, context)), np.abs(flat(sent))
    )


def test_sensitivity_is_the_norm_of_the_derivative_by_the_inputs():
    sent, context = client()
    exact = flat(quick_jit(lambda: sensitivity(RNG, sent, context, probes=None))())
    expected = np.linalg.norm(jacobian(), axis=1)
    np.testing.assert_allclose(exact, expected, rtol=1e-2, atol=1e-4)
    assert expected.max() > 5 * expected.min()  # entries differ
    # Probes are right in the mean of the squares.
    many = flat(quick_jit(lambda: sensitivity(RNG, sent, context, probes=4000))())
    np.testing.assert_allclose(many, exact, rtol=0.1, atol=1e-6)


def test_product_multiplies_the_two():
    sent, context = client()
    np.testing.assert_allclose(
        flat(product(RNG, sent, context)),
        np.abs(flat(sent)) * flat(sensitivity(RNG, sent, context)),
        rtol=1e-6,
    )


def test_fisher_is_the_mean_square_under_the_networks_own_labels():
    sent, context = client()
    expected = 0.0
    for image in context.inputs:
        for label in range(CLASSES):
            target = np.eye(CLASSES, dtype=np.float32)[[label]]
            found = context.gradient(image[None], target)
            logits = np.float64(found.logits[0])
            likely = np.exp(logits[label]) / np.exp(logits).sum()
            expected += likely * np.square(flat(found.public)) / EXAMPLES
    np.testing.assert_allclose(
        flat(quick_jit(lambda: fisher(RNG, sent, context))()), expected, rtol=1e-4
    )


def test_random_scores_are_drawn_anew_for_each_rng():
    sent, context = client()
    one, other = (flat(random(rng, sent, context)) for rng in (RNG, jax.random.key(6)))
    assert len(np.unique(one)) == len(one) and np.mean(one == other) < 0.1


def test_layers_are_hidden_whole_and_the_largest_first():
    sent, context = client()
    sizes = {}
    for name, leaf in sent.model.items():
        sizes.setdefault(name.rpartition("/")[0], []).append(np.abs(np.ravel(leaf)))
    means = {name: np.concatenate(parts).mean() for name, parts in sizes.items()}
    assert len(means) == 2
    scores = layers(RNG, sent, context).model
    for name, leaf in scores.items():
        np.testing.assert_allclose(leaf, means[name.rpartition("/")[0]], rtol=1e-6)
    defence = selective_encryption(0.1, score="layers")
    visible = defence.visible(RNG, sent, context).model
    first = max(means, key=means.get)
    for name, leaf in visible.items():
        assert np.all(leaf == (name.rpartition("/")[0] != first))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("share", (0.0, 0.25, 1.0))
def test_as_many_entries_are_hidden_as_are_asked_for(score, share):
    hidden = hidden_of(selective_encryption(share, score=score))
    count, least = hidden.sum(), round(share * len(hidden))
    assert count >= least if score == "layers" else count == least
    assert share or not count


def test_a_score_may_be_ones_own():
    sent, _ = client()

    def smallest(rng, sent, context):
        return jax.tree.map(lambda g: -jnp.abs(g), sent)

    hidden = hidden_of(selective_encryption(0.5, score=smallest))
    sizes = np.abs(flat(sent))
    assert sizes[hidden].max() <= sizes[~hidden].min()


# --- what is refused -------------------------------------------------------------


@pytest.mark.parametrize("share", (-0.1, 1.01, float("nan")))
def test_a_share_outside_the_unit_interval_is_refused(share):
    with pytest.raises(ValueError, match=rf"share must be in \[0, 1\], got {share}"):
        selective_encryption(share)


def test_what_a_score_cannot_work_on_is_refused():
    with pytest.raises(ValueError, match="magnitude, sensitivity.*got 'size'"):
        selective_encryption(0.1, score="size")
    _, context = client()
    for score in ("sensitivity", "product", "fisher"):
        blind = context._replace(gradient=None)
        with pytest.raises(ValueError, match="needs the client's own gradient"):
            hidden_of(selective_encryption(0.1, score=score), context=blind)
    tokens = context._replace(inputs=np.zeros((2, 5), np.int32))
    with pytest.raises(ValueError, match="these are int32: take 'magnitude'"):
        hidden_of(selective_encryption(0.1, score="sensitivity"), context=tokens)


# --- aggregation -----------------------------------------------------------------


@pytest.mark.slow
def test_the_aggregate_is_the_same_bit_for_bit():
    clients, steps, batch = 3, 2, 4
    labels = np.random.default_rng(3).integers(0, CLASSES, (clients, steps, batch))
    batches = Batches(
        random_images(clients, steps, batch, *IMAGE_SHAPE),
        labels.astype(np.int32),
        np.ones((clients, steps), bool),
    )

    def fetch(ids):
        return jax.tree.map(lambda x: x[ids], batches), np.arange(1, clients + 1)[ids]

    def played(defence):
        training = local_training(toy_model(), cross_entropy, defence, SGD)
        rounds = federated_rounds(toy_model(), defence, training)
        server = rounds.init(RNG)
        states = rounds.init_clients(RNG, server, clients)
        for _ in range(2):
            server, _ = rounds.run_round(RNG, server, states, np.arange(clients), fetch)
        return jax.device_get(server), states

    for first in (none(), keylock(LOCK)):
        with quick_compilation():
            plain = played(first)
            hidden = played(chain(first, selective_encryption(0.7)))
        jax.tree.map(np.testing.assert_array_equal, plain, hidden)


def updates(defence, local=False):
    """One client's upload, of a step or of a local training."""
    model = toy_model()
    params, stats = random_weights(model)
    images = random_images(EXAMPLES, *IMAGE_SHAPE)
    private = random_private()
    if local:
        training = local_update(model, cross_entropy, defence, SGD, steps=2, batch=1)
        state = training.init(Public(params), private)
        labels = np.arange(EXAMPLES, dtype=np.int32)
        return quick_jit(training.run)(
            RNG, jnp.array(0), Public(params), stats, state, images, labels
        )
    step = quick_jit(one_step(model, cross_entropy, defence, train=False))
    targets = np.eye(CLASSES, dtype=np.float32)[:EXAMPLES]
    return step(RNG, Public(params), stats, private, images, targets)


@pytest.mark.parametrize("local", (False, True))
@pytest.mark.parametrize("score", SCORES)
def test_an_upload_is_sent_as_without_and_says_what_can_be_read(local, score):
    first = keylock(LOCK)
    plain = updates(first, local)
    masked = updates(chain(first, selective_encryption(0.5, score=score)), local)
    assert plain.visible is None
    share = 1 - flat(masked.visible).mean()
    assert share >= 0.5 if score == "layers" else share == pytest.approx(0.5, abs=0.03)
    np.testing.assert_array_equal(flat(masked.sent), flat(plain.sent))


def test_the_mask_of_a_chain_is_of_what_is_sent():
    """The size that counts is that after the noise."""
    sent = updates(chain(keylock(LOCK), gaussian_noise(5.0), selective_encryption(0.5)))
    sizes, hidden = np.abs(flat(sent.sent)), ~flat(sent.visible)
    assert sizes[hidden].min() >= sizes[~hidden].max()


def test_the_truth_replays_to_what_is_visible():
    defence = chain(keylock(LOCK), selective_encryption(0.5))
    update = updates(defence)
    facts = {"private_key": "known", "lock_weights": "known"}
    declared = threat("known", "joint", examples=EXAMPLES, **facts)
    view = observe(declared, update)
    ground = setting(declared, defence)
    truth = Candidate(update.inputs, update.targets, update.private)
    simulated, observed = replay(ground, ground.defence.gates)(view, truth)
    seen = flat(update.visible)
    np.testing.assert_allclose(flat(simulated), flat(observed), atol=1e-6)
    np.testing.assert_array_equal(flat(observed)[seen], flat(update.sent)[seen])
    assert np.all(flat(observed)[~seen] == 0)


# --- arms ------------------------------------------------------------------------


def test_arms_name_score_and_share():
    for score in SCORES:
        arm = parse_arm(f"selective-{score}=0.3", sites_of("layers/0"), {})
        assert (arm.options, arm.skeleton) == ((0.3,), f"selective-{score}")
    both = parse_arm(
        "keylock+selective-magnitude=0.3/regress_gates", sites_of("layers/0"), {}
    )
    assert both.gated and both.options == (0.3,)
    unaware = parse_arm("selective-random=0.3/unaware", sites_of("layers/0"), {})
    assert unaware.release_strategy == "unaware"
    with pytest.raises(ValueError, match="cannot be undone"):
        parse_arm("selective-random/undo", sites_of("layers/0"), {})
    with pytest.raises(ValueError, match="'none/unaware'.*hides nothing"):
        parse_arm("none/unaware", sites_of("layers/0"), {})
    with pytest.raises(ValueError, match=r"'selective-random=2'.*share must be in"):
        parse_arm("selective-random=2", sites_of("layers/0"), {})


@functools.cache
def studied():
    shares = ("0", "0.3", "1", "0.3/unaware")
    arms = ("none", *(f"selective-magnitude={share}" for share in shares))
    result = study(victims=2, steps=100, optimiser="lbfgs", labels="given", arms=arms)
    return result, scored(result)


def rows_of(arm):
    return [row for row in studied()[1] if row["arm"] == arm]


@pytest.mark.slow
def test_a_share_of_zero_is_no_defence_and_one_of_one_stays_at_the_floor():
    none_, open_, closed = map(
        rows_of, ("none", "selective-magnitude=0", "selective-magnitude=1")
    )
    for plain, same in zip(none_, open_, strict=True):
        assert plain["outcome"] == same["outcome"] == "recovered"
        assert same["mse"] == pytest.approx(plain["mse"], abs=1e-4)
    for row in closed:
        assert row["outcome"] == "diverged" and row["mse"] > row["floor_mse"]


@pytest.mark.slow
def test_an_attack_on_a_locked_upload_runs_on_what_is_left_of_it():
    arm = "keylock+selective-random=0.5/regress_gates"
    result = study(victims=2, labels="given", arms=(arm,))
    for row in [row for row in scored(result) if row["arm"] == arm]:
        assert row["visible_share"] == pytest.approx(0.5, abs=1e-3)
        assert row["replay_is_exact"] and row["matching_loss_at_truth"] < 1e-8
        assert row["live_channels"] > 0 and row["outcome"] == "unsolved"


@pytest.mark.slow
def test_rows_say_how_much_can_be_read():
    shares = {"none": 1, "selective-magnitude=0.3": 0.7, "selective-magnitude=1": 0}
    shares["selective-magnitude=0.3/unaware"] = 0.7
    for arm, share in shares.items():
        for row in rows_of(arm):
            assert row["visible_share"] == pytest.approx(share, abs=1e-3)


@pytest.mark.slow
def test_who_matches_zeros_has_another_upload_before_it():
    """The true images match what is visible, and no upload with holes in it."""
    for row in rows_of("selective-magnitude=0.3"):
        assert row["matching_loss_at_truth"] < 1e-8
    for row in rows_of("selective-magnitude=0.3/unaware"):
        assert row["matching_loss_at_truth"] > 1e-3


def test_one_compilation_serves_all_shares():
    result, _ = studied()
    timings = {arm.arm.name: arm.timing.compilations for arm in result.arms}
    assert timings["selective-magnitude=0"] > 0
    assert timings["selective-magnitude=0.3"] == timings["selective-magnitude=1"] == 0
