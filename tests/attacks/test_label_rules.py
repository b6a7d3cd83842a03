"""Rules of label recovery: parity with slow forms, success, failure, refusal."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import (
    IMAGE_SHAPE,
    quick_jit,
    random_images,
    random_weights,
    replace_fields,
    setting,
    threat,
    toy_model,
)

from kljax.attacks import UNKNOWN, Protocol
from kljax.attacks.labels import (
    LABELS,
    RULES,
    bias_corrected,
    classifier_grads,
    counts,
    find_rule,
    labels_of_counts,
    yin,
)
from kljax.core.inputs import images_of
from kljax.core.types import Private, Public
from kljax.defences import none
from kljax.federated.clients import local_update
from kljax.metrics import multiset_accuracy
from kljax.models import CNN6, Dense, from_nnx
from kljax.models.losses import cross_entropy
from kljax.threat import View, observe

CLASSES, FEATURES = 10, 6
# Of one step, without a look at the network.
CLOSED = ("ggl", "yin", "bias_corrected", "wainakh_simple")


def ground(examples, rule="auto", **changes):
    declared = threat("unit", examples=examples)
    changes = {"num_classes": CLASSES, "label_rule": rule, "model": dense()} | changes
    return setting(declared, none(), inputs=images_of(SHAPE), sites=(), **changes)


def view_of(kernel, bias):
    params = {"fc/kernel": kernel} | ({} if bias is None else {"fc/bias": bias})
    return View(Public(params), {}, Public(params), *(5 * [None]))


def classifier_grad(labels, seed, scale=0.1):
    """The gradient of a classifier of positive features, by hand."""
    generator = np.random.default_rng(seed)
    features = generator.uniform(0.5, 1, (len(labels), FEATURES))
    logits = features @ (scale * generator.standard_normal((FEATURES, CLASSES)))
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    errors = (softmax - np.eye(CLASSES)[labels]) / len(labels)
    return (features.T @ errors).astype(np.float32), errors.sum(0).astype(np.float32)


@functools.cache
def compiled(rule, examples):
    here = ground(examples)
    return quick_jit(lambda *grads: RULES[rule](here, view_of(*grads)))


def found(rule, labels, kernel, bias):
    guess = compiled(rule, len(labels))(kernel, bias)
    assert guess.dtype == jnp.int32 and guess.shape == (len(labels),)
    assert np.all((guess >= 0) & (guess < CLASSES))
    return np.asarray(guess)


# --- what they find --------------------------------------------------------------


@pytest.mark.parametrize("rule", CLOSED)
def test_labels_that_differ_are_found(rule):
    for size, seed in itertools.product((1, 2, 4), range(5)):
        labels = np.random.default_rng(seed).permutation(CLASSES)[:size]
        assert sorted(found(rule, labels, *classifier_grad(labels, seed))) == sorted(
            labels
        )


@pytest.mark.parametrize("rule", ["bias_corrected", "wainakh_simple"])
def test_labels_that_repeat_are_found(rule):
    for labels in ([1, 1, 1, 1], [0, 3, 3, 3], [2, 2, 4, 4]):
        guess = found(rule, labels, *classifier_grad(labels, 0))
        assert sorted(guess) == sorted(labels)


@pytest.mark.parametrize("rule", ["ggl", "yin"])
def test_rules_for_labels_that_differ_do_not_find_repeated_ones(rule):
    guess = found(rule, [1, 1, 1, 1], *classifier_grad([1, 1, 1, 1], 0))
    assert multiset_accuracy(guess, [1, 1, 1, 1]) == 1 / 4
    # More than classes: the ranks are gone through again.
    guess = found(rule, 12 * [1], *classifier_grad(12 * [1], 0))
    assert sorted(guess[:CLASSES]) == list(range(CLASSES))
    np.testing.assert_array_equal(guess[CLASSES:], guess[: 12 - CLASSES])


@pytest.mark.parametrize("rule", CLOSED)
def test_noise_without_a_gradient_says_nothing(rule):
    """Guesses as good as chance: four of ten classes, at random, of four labels."""
    generator = np.random.default_rng(0)
    labels = [0, 3, 3, 3]
    shares = [
        multiset_accuracy(
            found(
                rule,
                labels,
                generator.standard_normal((FEATURES, CLASSES), np.float32),
                generator.standard_normal(CLASSES, np.float32),
            ),
            labels,
        )
        for _ in range(100)
    ]
    # Four classes that differ have .4 of two right; the clean gradient gives 1 or .5.
    assert 0.1 < np.mean(shares) < 0.3


# Zeros; and one entry that is no number among those that are.
NOTHING = {"zeros": lambda x: 0 * x, "NaN": np.nan, "infinity": np.inf}


def emptied(gradient, nothing):
    """Takes away what an array [..., Kc] says."""
    empty = NOTHING[nothing]
    if callable(empty):
        return empty(gradient)
    return np.concatenate(
        [gradient[..., :-1], np.full_like(gradient[..., -1:], empty)], -1
    )


@pytest.mark.parametrize("nothing", NOTHING)
@pytest.mark.parametrize("rule", ["idlg", *CLOSED])
def test_a_gradient_of_nothing_has_no_labels(rule, nothing):
    """Neither class 0 nor any other."""
    size = 1 if rule == "idlg" else 4
    kernel, bias = classifier_grad(np.arange(size) + 3, 0)
    empty = [emptied(kernel, nothing), emptied(bias, nothing)]
    labels = compiled(rule, size)(kernel, bias)
    assert sorted(labels.tolist()) == list(range(3, 3 + size))
    assert compiled(rule, size)(*empty).tolist() == size * [UNKNOWN]
    # What a rule does not read does not matter to it.
    by_bias = rule in ("idlg", "bias_corrected")
    half = (empty[0], bias) if by_bias else (kernel, empty[1])
    np.testing.assert_array_equal(compiled(rule, size)(*half), labels)


# --- parity with slow forms ------------------------------------------------------


def greedily(score, impact, size):
    """breaching's two stages, as loops over lists."""
    score = [float(x) for x in score]
    negative = sorted((x, c) for c, x in enumerate(score) if x < 0)
    labels = [c for _, c in negative[:size]]
    for label in labels:
        score[label] -= impact
    while len(labels) < size:
        chosen = min(range(len(score)), key=score.__getitem__)
        labels.append(chosen)
        score[chosen] -= impact
    return labels


def by_hand(rule, size, kernel, bias):
    sums = kernel.sum(axis=0)
    if rule == "ggl":
        return [int(np.argsort(sums)[i % CLASSES]) for i in range(size)]
    if rule == "yin":
        return [int(np.argsort(kernel.min(axis=0))[i % CLASSES]) for i in range(size)]
    if rule == "bias_corrected":
        return greedily(bias, bias[bias < 0].sum() / size, size)
    return greedily(sums, sums[sums < 0].sum() * (1 + 1 / CLASSES) / size, size)


@pytest.mark.parametrize("rule", CLOSED)
def test_rules_are_their_slow_forms(rule):
    generator = np.random.default_rng(7)
    for _, size in itertools.product(range(20), (1, 3, 12)):
        kernel = generator.standard_normal((FEATURES, CLASSES), np.float32)
        bias = generator.standard_normal(CLASSES, np.float32)
        guess = found(rule, size * [0], kernel, bias)
        assert guess.tolist() == by_hand(rule, size, kernel, bias)


@pytest.mark.parametrize("rule", CLOSED)
def test_a_batch_of_victims_is_each_of_them(rule):
    here = ground(4)
    grads = [classifier_grad(np.arange(4) % (1 + seed), seed) for seed in range(3)]
    stacked = [np.stack(parts) for parts in zip(*grads, strict=True)]
    together = quick_jit(jax.vmap(lambda *g: RULES[rule](here, view_of(*g))))(*stacked)
    for guess, one in zip(together, grads, strict=True):
        np.testing.assert_array_equal(guess, found(rule, 4 * [0], *one))


def test_labels_of_counts_are_floor_and_largest_remainder():
    generator = np.random.default_rng(2)
    for _ in range(50):
        exact = generator.dirichlet(np.ones(5)) * 12
        whole = np.floor(exact).astype(int)
        rest = 12 - whole.sum()
        whole[np.argsort(exact - whole)[::-1][:rest]] += 1
        labels = jax.jit(labels_of_counts, static_argnums=1)(
            exact.astype(np.float32), 12
        )
        np.testing.assert_array_equal(np.bincount(labels, minlength=5), whole)


def test_labels_of_counts_are_the_nearest_there_is():
    generator = np.random.default_rng(3)
    every = [c for c in itertools.product(range(4), repeat=3) if sum(c) == 3]
    for _ in range(50):
        exact = generator.normal(1, 2, 3)  # negative ones, too, and any sum
        nearest = min(every, key=lambda c: np.sum((np.array(c) - exact) ** 2))  # noqa: B023
        labels = jax.jit(labels_of_counts, static_argnums=1)(
            exact.astype(np.float32), 3
        )
        assert tuple(np.bincount(labels, minlength=3)) == nearest


# --- updates ---------------------------------------------------------------------

# Eight examples in batches of four, twice through.
STEPS, BATCH = 4, 4
SHAPE = (4, 4, 1)


def dense(classes=CLASSES):
    # Wide and shallow, so that no feature vanishes.
    return from_nnx(
        functools.partial(_build_dense, num_classes=classes, image_shape=SHAPE)
    )


def _build_dense(rngs, **options):
    return Dense(rngs=rngs, **options)


@functools.cache
def client(labels, rate, momentum=0.0, decay=0.0, batch=BATCH):
    """The setting, and the view of a client's update."""
    model = dense()
    descent = optax.chain(
        optax.add_decayed_weights(decay),
        optax.sgd(rate, momentum=momentum or None, nesterov=bool(momentum)),
    )
    params, stats = random_weights(model, scale=0.2)
    public, labels = Public(params), np.array(labels)
    training = local_update(
        model, cross_entropy, none(), descent, steps=STEPS, batch=batch
    )
    update = quick_jit(training.run)(
        jax.random.key(0),
        0,
        public,
        stats,
        training.init(public, Private()),
        random_images(len(labels), *SHAPE),
        labels,
    )
    facts = {"upload": "update", "victim_norm": "train", "attacker_norm": "train"}
    declared = threat("unit", examples=len(labels), **facts)
    here = setting(
        declared,
        none(),
        model=model,
        inputs=images_of(SHAPE),
        num_classes=CLASSES,
        sites=(),
        classifier="fc",
        protocol=Protocol(descent, STEPS, batch, rate),
    )
    return here, observe(declared, update)


LABEL_SETS = (
    (0, 1, 2, 3, 4, 0, 1, 2),
    (3, 3, 3, 3, 3, 3, 3, 3),
    (4, 4, 1, 1, 1, 0, 4, 4),
)


@pytest.mark.slow
@pytest.mark.parametrize("labels", LABEL_SETS, ids=str)
@pytest.mark.parametrize("rule", ["counts", "counts_bias"])
def test_counts_of_an_update_are_found(rule, labels):
    here, view = client(labels, 0.05)
    guess = quick_jit(lambda view: RULES[rule](here, view, samples=300))(view)
    assert multiset_accuracy(guess, labels) == 1


@pytest.mark.parametrize("rule", ["counts", "counts_bias"])
def test_counts_of_another_update_are_wrong(rule):
    """The same view with a classifier's update that is noise: chance is left."""
    here, view = client(LABEL_SETS[1], 0.05)
    generator = np.random.default_rng(0)
    read = quick_jit(lambda view: RULES[rule](here, view, samples=100))
    shares = []
    for _ in range(20):
        noise = jax.tree.map(
            lambda x: generator.standard_normal(x.shape, np.float32),  # noqa: B023
            view.grads,
        )
        guess = read(view._replace(grads=noise))
        shares.append(multiset_accuracy(guess, LABEL_SETS[1]))
    assert np.mean(shares) < 0.5


@pytest.mark.parametrize("nothing", NOTHING)
@pytest.mark.parametrize("rule", ["counts", "counts_bias"])
def test_an_update_of_nothing_has_no_counts(rule, nothing):
    """What the network says on noise would be left, and is not given out as labels."""
    here, view = client(LABEL_SETS[0], 0.05)
    read = quick_jit(lambda view: RULES[rule](here, view, samples=100))
    sent = view.grads.model
    empty = {k: emptied(x, nothing) if "fc/" in k else x for k, x in sent.items()}
    assert np.all(read(view) >= 0)
    assert np.all(read(view._replace(grads=Public(empty))) == UNKNOWN)


@pytest.mark.slow
@pytest.mark.parametrize("at", ["start", "end", "interpolated"])
def test_counts_are_the_formula(at):
    """Dimitrov et al.'s restore_labels with NumPy, on the same noise."""
    labels = LABEL_SETS[2]
    here, view = client(labels, 0.05)
    learned = jax.tree.map(np.add, view.public.model, view.grads.model)
    softmax, sums = [], []
    for params in (view.public.model, learned):
        draw = jax.random.fold_in(jax.random.key(0), 0)
        images = jax.random.normal(draw, (100, *SHAPE))
        out = quick_jit(
            functools.partial(here.task.model.apply, taps=("fc:input",), train=True)
        )(params, view.stats, images)
        softmax.append(np.mean(jax.nn.softmax(out.logits), axis=0))
        sums.append(np.mean(np.sum(out.taps["fc:input"], axis=1)))
    share = {"start": [0], "end": [1], "interpolated": np.arange(STEPS) / STEPS}[at]
    gradient = np.sum(view.grads.model["fc/kernel"], axis=0) / -0.05
    exact = np.mean(
        [
            8 * ((1 - t) * softmax[0] + t * softmax[1])
            - 8 * gradient / ((1 - t) * sums[0] + t * sums[1]) / STEPS
            for t in share
        ],
        axis=0,
    )
    expected = labels_of_counts(jnp.asarray(exact, jnp.float32), 8)
    read = quick_jit(functools.partial(counts, here, samples=100, at=at))
    np.testing.assert_array_equal(read(view), expected)
    with pytest.raises(ValueError, match="at must be one of"):
        counts(here, view, at="middle")


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [{}, {"momentum": 0.9}, {"momentum": 0.9, "decay": 0.5}], ids=str
)
def test_the_mean_gradient_is_found_in_an_update(method):
    """At a small rate nothing moves, and every step has the gradient of the first."""
    labels = LABEL_SETS[0]
    here, view = client(labels, 1e-3, **method, batch=8)
    model, params = here.task.model, view.public.model

    def loss(params):
        images = random_images(len(labels), *SHAPE)
        out = model.apply(params, view.stats, images, train=True)
        return cross_entropy(out.logits, np.eye(CLASSES, dtype=np.float32)[labels,])

    expected = quick_jit(jax.grad(loss))(params)
    grads = quick_jit(functools.partial(classifier_grads, here))(view)
    for part in ("kernel", "bias"):
        true = expected[f"fc/{part}"]
        # A thousandth of a step's change is lost to float32 and to the steps' drift.
        np.testing.assert_allclose(
            getattr(grads, part), true, rtol=0, atol=0.02 * np.abs(true).max()
        )


def test_an_order_is_drawn_where_batches_make_one():
    here, view = client(LABEL_SETS[0], 0.05)
    unknown = LABELS["recovered"](replace_fields(here, label_rule="bias_corrected"))
    start, orders = quick_jit(unknown.start), []
    for seed in range(3):
        free, targets = start(jax.random.key(seed), view)
        assert free == ()
        orders.append(np.argmax(targets, axis=-1).tolist())
    assert len({tuple(order) for order in orders}) > 1
    assert len({tuple(sorted(order)) for order in orders}) == 1
    # In one batch of all an order has no meaning, and none is drawn.
    examples = here.threat.knowledge.examples
    whole = replace_fields(
        here,
        protocol=here.protocol._replace(batch=examples),
        label_rule="bias_corrected",
    )
    start = quick_jit(LABELS["recovered"](whole).start)
    one, other = (start(jax.random.key(seed), view)[1] for seed in range(2))
    np.testing.assert_array_equal(one, other)
    assert sorted(np.argmax(one, axis=-1)) == sorted(orders[0])


# --- by name ---------------------------------------------------------------------


def test_auto_is_what_fits_the_upload():
    assert find_rule(ground(1)) is RULES["idlg"]
    assert find_rule(ground(3)) is RULES["bias_corrected"] is bias_corrected
    assert find_rule(ground(CLASSES)) is bias_corrected
    assert find_rule(ground(CLASSES + 1)) is RULES["yin"]
    here, _ = client(LABEL_SETS[0], 0.05)
    examples = here.threat.knowledge.examples
    for classes, rule in ((examples, "counts"), (examples - 1, "yin")):
        of_size = replace_fields(here, num_classes=classes, model=dense(classes))
        assert find_rule(of_size) is RULES[rule]
    assert find_rule(ground(3, "yin")) is RULES["yin"] is yin


def without_bias(examples, rule="auto"):
    model = from_nnx(lambda rngs: CNN6(CLASSES, image_shape=(8, 8, 1), rngs=rngs))
    return replace_fields(
        ground(examples, rule), model=model, inputs=images_of((8, 8, 1))
    )


def test_a_classifier_without_a_bias_has_rules_of_its_own():
    assert find_rule(without_bias(1)) is RULES["opposite_sign"]
    assert find_rule(without_bias(3)) is RULES["yin"]
    for rule, other in (("bias_corrected", "yin"), ("counts_bias", "counts")):
        with pytest.raises(ValueError, match=f"{rule}.* 'fc' has none: take '{other}'"):
            find_rule(without_bias(3, rule))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("yinn", "label_rule must be 'auto' or"),
        ("idlg", "needs examples=1"),
        ("opposite_sign", "needs examples=1"),
    ],
)
def test_wrong_rules_are_refused(rule, message):
    with pytest.raises(ValueError, match=message):
        find_rule(ground(2, rule))


def test_counts_of_an_update_need_its_protocol():
    here, _ = client(LABEL_SETS[0], 0.05)
    with pytest.raises(ValueError, match="needs the protocol"):
        find_rule(here._replace(protocol=None))


@pytest.mark.parametrize("rule", ["bias_corrected", "counts_bias"])
def test_rules_of_the_bias_need_one(rule):
    params, stats = random_weights(toy_model())
    images = random_images(2, *IMAGE_SHAPE)
    del images
    grads = Public({"fc/kernel": np.ones((3, 3), np.float32)})
    view = View(Public(params), stats, grads, *(5 * [None]))
    here = setting(threat("unit", examples=2), none())
    with pytest.raises(ValueError, match="has none: take"):
        RULES[rule](here, view)
