"""Variational bottlenecks: PRECODE, CVB, and what attackers do about their noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from poison import differences, poisoned
from scipy import integrate, stats
from tiny_studies import study, tiny
from toys import quick_jit, random_images, random_weights, setting_of

from kljax import defences, threat
from kljax.attacks import SECRETS, Task, dense_layer
from kljax.attacks.attack import Candidate
from kljax.attacks.closed_form import bottleneck_noise
from kljax.attacks.labels import CONDITIONS
from kljax.attacks.optimisers import adam, lbfgs
from kljax.attacks.presets import matching
from kljax.attacks.secrets import secret_of
from kljax.attacks.simulation import replay
from kljax.core.inputs import images_of
from kljax.core.targets import classes_of
from kljax.core.types import Private, Public
from kljax.defences.arms import parse_arm, parse_training_arm, unplaced_sites
from kljax.defences.bottleneck import sample
from kljax.defences.cvb import pass_convolved
from kljax.defences.precode import pass_dense
from kljax.federated import clients
from kljax.models import Dense, LeNet, from_nnx, layers_behind, value_shape
from kljax.models.losses import cross_entropy
from kljax.studies.builder.study import build_study
from kljax.studies.sweeps.cell import make_cell, signature
from kljax.threat.secrets import OWN_NAMES

SHAPE, CLASSES, SIZE = (4, 4, 1), 5, 6
BOTTLENECKS = threat.BOTTLENECK_STRATEGIES


@functools.cache
def network():
    """Dense, sigmoid, classifier: the first layer is fed the flattened image."""
    return from_nnx(
        lambda rngs: Dense(CLASSES, image_shape=SHAPE, widths=(12,), rngs=rngs)
    )


@functools.cache
def convolutional():
    return from_nnx(lambda rngs: LeNet(CLASSES, image_shape=(8, 8, 1), rngs=rngs))


def bottleneck(**options):
    return defences.dense_bottleneck(
        "fc", (12,), **({"size": SIZE, "beta": 0.01} | options)
    )


def cvb(**options):
    behind = functools.partial(layers_behind, convolutional(), "conv2:input", (8, 8, 1))
    shape = (4, 4, 12)
    return defences.convolutional_bottleneck("conv2", shape, behind=behind, **options)


def upload(defence, model, shape, examples=1, seed=0, train=True):
    """Makes the update of one step on random images."""
    params, stats_ = random_weights(model, seed)
    public, private = defence.init(jax.random.key(seed), params)
    images = random_images(examples, *shape, seed=seed + 1)
    targets = np.eye(CLASSES, dtype=np.float32)[np.arange(examples) % CLASSES]
    step = quick_jit(clients.one_step(model, cross_entropy, defence, train=train))
    given = Public(params, public), stats_, private, images, targets
    return step(jax.random.key(seed + 2), *given)


def setting(strategy, defence, model, shape, examples=1, labels="given", **facts):
    own = {one.name: one for one in defence.strategies}
    declared = threat.least_knowledge(
        threat.Strategy(secret=strategy, labels=labels),
        own,
        examples=examples,
        **facts,
    )
    task = Task(model, cross_entropy, images_of(shape), classes_of(CLASSES), "fc")
    found = setting_of(task, declared, defence)
    draw = functools.partial(defence.draw_private, private=Private(), count=examples)
    return found._replace(defence=found.defence._replace(draw_private=draw))


def loss_at_truth(strategy, defence, model, shape, update):
    """Computes the squared distance of the replay at the truth from what was sent."""
    ground = setting(strategy, defence, model, shape, len(update.targets))
    secret = secret_of(ground)
    view = threat.observe(ground.threat, update)
    free, fixed = secret.unknown.start(jax.random.key(7), view)
    candidate = Candidate(
        update.inputs, update.targets, secret.unknown.decode(free, fixed)
    )
    simulated, observed = replay(ground, secret.gates)(view, candidate)
    apart = jax.tree.map(jnp.subtract, simulated, observed)
    return float(optax.tree.norm(apart) / optax.tree.norm(observed))


# --- what a bottleneck computes --------------------------------------------------


def softplus(x):
    return np.log1p(np.exp(x))


def divergence_in_bits(mean, deviation):
    """Integrates the divergence of N(mean, deviation) from N(0, 1)."""
    one, other = stats.norm(mean, deviation), stats.norm()
    reach = mean - 9 * deviation, mean + 9 * deviation
    nats = integrate.quad(
        lambda x: one.pdf(x) * (one.logpdf(x) - other.logpdf(x)), *reach
    )[0]
    return nats / np.log(2)


def test_the_sample_and_its_divergence_are_those_worked_out_by_hand():
    generator = np.random.default_rng(0)
    mean, raw, noise = generator.normal(size=(3, 2, 3))
    latent, added = sample(*map(jnp.asarray, (mean, raw, noise)), 0.25)
    np.testing.assert_allclose(latent, mean + softplus(raw) * noise, rtol=1e-5)
    bits = [
        divergence_in_bits(m, s)
        for m, s in zip(mean.ravel(), softplus(raw).ravel(), strict=True)
    ]
    np.testing.assert_allclose(added, 0.25 * np.sum(bits) / 2, rtol=1e-5)
    np.testing.assert_array_equal(sample(mean, raw, None, 1.0)[0], mean)


def test_a_deviation_that_underflows_has_a_finite_divergence_and_derivative():
    raw = jnp.array([[-200.0, -16.0, -14.0, 0.0]])
    value, slope = jax.value_and_grad(lambda r: sample(0 * r, r, None, 1.0)[1])(raw)
    wanted = 200 + 16 + 14 - np.log(np.log(2)) + 0.5 * np.log(2) ** 2 - 2
    np.testing.assert_allclose(value * np.log(2), wanted, rtol=1e-5)
    # Below, the logarithm of softplus has the slope 1.
    np.testing.assert_allclose(slope[0, :2] * np.log(2), -1, rtol=1e-4)


def test_a_dense_bottleneck_is_put_in_front_of_its_layer():
    model, defence = network(), bottleneck(beta=0.5)
    params, stats_ = random_weights(model)
    public, _ = defence.init(jax.random.key(3), params)
    images = random_images(2, *SHAPE)
    noise = np.random.default_rng(5).normal(size=(2, SIZE)).astype(np.float32)
    out = model.apply(
        params,
        stats_,
        images,
        gates=defence.gates(public, Private(noise)),
        taps=("fc:input",),
        train=True,
    )
    before = model.apply(params, stats_, images, taps=("fc:input",), train=True)
    x = np.asarray(before.taps["fc:input"], np.float64)
    public = jax.tree.map(np.asarray, public)
    encoded = x @ public["encoder"]["kernel"] + public["encoder"]["bias"]
    mean, deviation = encoded[:, :SIZE], softplus(encoded[:, SIZE:])
    decoder = public["decoder"]
    fed = (mean + deviation * noise) @ decoder["kernel"] + decoder["bias"]
    np.testing.assert_allclose(out.taps["fc:input"], fed, rtol=1e-4, atol=1e-5)
    logits = fed @ params["fc/kernel"] + params["fc/bias"]
    np.testing.assert_allclose(out.logits, logits, rtol=1e-4, atol=1e-5)
    bits = np.vectorize(divergence_in_bits)(mean, deviation)
    np.testing.assert_allclose(out.added_loss, 0.5 * bits.sum() / 2, rtol=1e-4)
    assert before.added_loss == 0


def test_a_convolutional_bottleneck_is_that_of_loops():
    defence = defences.convolutional_bottleneck("conv2", (3, 4, 2), size=3, beta=0.5)
    public, _ = defence.init(jax.random.key(3), {})
    generator = np.random.default_rng(6)
    value = 3 * generator.normal(size=(2, 3, 4, 2))
    noise = generator.normal(size=(2, 3, 4, 3))
    found, added = pass_convolved(0.5, public, noise, jnp.asarray(value, jnp.float32))
    padded = np.pad(value, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def convolved(part):
        kernel = np.asarray(public[part]["kernel"])
        made = np.zeros((2, 3, 4, 3))
        for row in range(3):
            for column in range(4):
                window = padded[:, row : row + 3, column : column + 3]
                made[:, row, column] = np.einsum("bijc,ijck->bk", window, kernel)
        return made

    mean, deviation = (
        convolved("mean"),
        softplus(np.clip(convolved("deviation"), -5, 5)),
    )
    decoded = (mean + deviation * noise) @ np.asarray(public["decoder"]["kernel"])[0, 0]
    np.testing.assert_allclose(found, decoded, rtol=1e-4, atol=1e-4)
    bits = np.vectorize(divergence_in_bits)(mean, deviation)
    np.testing.assert_allclose(added, 0.5 * bits.sum() / 2, rtol=1e-3)


def test_half_of_the_channels_or_eight_are_sampled():
    for channels, size in ((12, 6), (8, 4), (3, 8)):
        defence = defences.convolutional_bottleneck("conv", (2, 2, channels))
        rng = jax.random.key(0)
        public, _ = jax.eval_shape(defence.init, rng, {})
        assert public["decoder"]["kernel"].shape == (1, 1, size, channels)
        draw = functools.partial(defence.draw_private, private=Private(), count=3)
        assert jax.eval_shape(draw, rng).secret.shape == (3, 2, 2, size)


# --- where it is put -------------------------------------------------------------


def test_values_have_a_shape_and_layers_behind_them():
    model, shape = convolutional(), (8, 8, 1)
    assert value_shape(model, "conv2:input", shape) == (4, 4, 12)
    assert value_shape(model, "fc:input", shape) == (48,)
    assert layers_behind(model, "fc:input", shape) == ("fc",)
    assert layers_behind(model, "conv2:input", shape) == ("conv2", "conv3", "fc")
    assert layers_behind(model, "conv2", shape) == ("conv3", "fc")


def test_a_layer_that_is_not_there_is_refused_by_its_name():
    for arm, said in (
        ("precode=layer=conv9/mean", "no module at 'conv9'.*did you mean 'conv"),
        ("cvb=layer=fc/mean", r"'fc' is fed \(48,\).*take 'precode'"),
    ):
        with pytest.raises(ValueError, match=f"(?s){arm}.*{said}"):
            build_study(tiny(model="lenet", arms=(arm,)))
    params, stats_ = random_weights(network())
    defence = defences.dense_bottleneck("layer", (12,))
    gates = defence.gates(defence.init(jax.random.key(0), params)[0], Private())
    with pytest.raises(ValueError, match="no module at 'layer'"):
        network().apply(
            params, stats_, random_images(1, *SHAPE), gates=gates, train=True
        )


@pytest.mark.parametrize(
    ("arm", "said"),
    (
        ("precode=0/mean", "size must be a whole number >= 1"),
        ("precode=2.5/mean", "size must be a whole number >= 1"),
        ("precode=8,-1/mean", "beta must be finite and >= 0"),
        ("precode=8,nan/mean", "beta of precode must be a finite number"),
        ("cvb=-1/mean", "size must be a whole number >= 1"),
        ("precode=layer=/mean", "layer of precode must be a word"),
        ("precode=8,laier=fc/mean", "did you mean 'layer'"),
        ("precode=8", "unknown secret strategy ''.*mean, known"),
        ("precode=8/read_nois", "did you mean 'read_noise'"),
        ("cvb/read_noise", "unknown secret strategy 'read_noise'"),
        ("none+precode=8", "defence 1 of the chain has gates or parts"),
    ),
)
def test_what_is_wrong_with_an_arm_is_named(arm, said):
    with pytest.raises(ValueError, match=said):
        parse_arm(arm, unplaced_sites(), {})


@pytest.mark.parametrize("size", (0, 2.5, float("nan"), float("inf")))
def test_impossible_sizes_are_named(size):
    for make in (
        lambda: bottleneck(size=size),
        lambda: defences.gates_by_passports(("norm",), (3,), size=size),
    ):
        with pytest.raises(ValueError, match=f"size must be a whole .*got {size}"):
            make()


def test_shapes_are_part_of_the_program_and_weights_are_data():
    def parse(text):
        return parse_training_arm(text, unplaced_sites(), {})

    arm = parse("precode=16,0.5+norm-clipping=2")
    assert arm.options == (0.5, 2)
    assert arm.skeleton == "precode[size=16,layer=classifier]+norm-clipping"
    assert parse("precode=16").skeleton == parse("precode=16,1,fc").skeleton.replace(
        "fc", "classifier"
    )

    def program(text):
        return signature(make_cell({}, tiny(arms=(text,))))

    assert program("precode=16,1/mean") == program("precode=16,2/mean")
    assert program("precode=16/mean") != program("precode=8/mean")
    assert program("precode=16,1,fc/mean") != program("precode=16,1/mean")
    assert program("mine:lost=1/x") == program("mine:lost=2/x")


def test_noise_or_values_that_do_not_fit_are_refused():
    public, _ = bottleneck().init(jax.random.key(0), {})
    with pytest.raises(ValueError, match="for 12 entries is fed \\(11,\\)"):
        pass_dense(0.1, public, None, jnp.zeros((1, 11)))
    with pytest.raises(ValueError, match=r"noise of shape \(2, 6\) does not fit"):
        pass_dense(0.1, public, jnp.zeros((2, SIZE)), jnp.zeros((1, 12)))


def test_a_module_that_changes_the_shape_of_a_value_is_refused():
    params, stats_ = random_weights(network())
    images = random_images(1, *SHAPE)
    for module, said in (
        (lambda x: (x[:, :3], jnp.zeros(())), r"gives shape \(1, 3\)"),
        (lambda x: (x, jnp.zeros(2)), r"a loss of shape \(2,\)"),
    ):
        with pytest.raises(ValueError, match=f"inserted at 'fc:input' {said}|{said}"):
            network().apply(
                params, stats_, images, gates={"fc:input": module}, train=True
            )


# --- the client ------------------------------------------------------------------


def test_the_noise_of_a_step_is_drawn_for_each_example_and_forgotten():
    update = upload(bottleneck(), network(), SHAPE, examples=3)
    noise = update.private.secret
    assert noise.shape == (3, SIZE) and len(np.unique(noise)) == 3 * SIZE
    other = upload(bottleneck(), network(), SHAPE, examples=3, seed=1)
    assert differences(noise, other.private.secret)
    # Its weights are public, and their gradients sent.
    assert update.sent.defence["encoder"]["kernel"].shape == (12, 2 * SIZE)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(update.sent))


def test_the_divergence_is_a_term_of_the_client_s_loss():
    none, some = (
        upload(bottleneck(beta=beta), network(), SHAPE).sent for beta in (0.0, 0.3)
    )
    np.testing.assert_allclose(none.model["fc/kernel"], some.model["fc/kernel"])
    assert differences(none.defence["encoder"], some.defence["encoder"])
    assert differences(none.model["layers/0/kernel"], some.model["layers/0/kernel"])


def test_local_training_draws_in_every_step_and_keeps_nothing():
    model, defence = network(), bottleneck()
    params, stats_ = random_weights(model)
    public, private = defence.init(jax.random.key(0), params)
    training = clients.local_training(model, cross_entropy, defence, optax.sgd(0.1))
    image = random_images(1, *SHAPE)
    batches = clients.Batches(
        np.stack([image, image]), np.array([[1], [1]]), np.array([True, True])
    )
    received = Public(params, public)
    state = training.init(received, private)
    run = quick_jit(training.run)

    def change(rng, valid):
        batch = batches._replace(valid=np.array(valid))
        sent, kept, progress = run(rng, 0, received, stats_, state, batch)
        assert not jax.tree.leaves(kept.private) and progress.finite
        return sent.delta

    first, second = (
        change(jax.random.key(1), (True, False)),
        change(jax.random.key(1), (False, True)),
    )
    # The same image from the same weights: only the noise tells the steps apart.
    assert differences(first, second)
    assert not differences(first, change(jax.random.key(1), (True, False)))


def test_each_example_keeps_its_own_noise_where_examples_are_looked_at_alone():
    """Clipping at infinity changes nothing."""
    alone = defences.chain(bottleneck(), defences.example_clipping(jnp.inf))
    together = upload(bottleneck(), network(), SHAPE, examples=3).sent
    apart = upload(alone, network(), SHAPE, examples=3).sent
    for one, other in zip(*map(jax.tree.leaves, (together, apart)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


# --- the attackers ---------------------------------------------------------------


def test_every_strategy_has_its_function():
    assert SECRETS.keys() == OWN_NAMES


def test_the_noise_of_one_example_is_read_off_exactly():
    update = upload(bottleneck(), network(), SHAPE)
    ground = setting("read_noise", bottleneck(), network(), SHAPE)
    view = threat.observe(ground.threat, update)
    np.testing.assert_allclose(
        bottleneck_noise(view), update.private.secret, rtol=1e-3, atol=1e-3
    )
    with pytest.raises(ValueError, match="'read_noise' inverts the gradient of one"):
        secret_of(setting("read_noise", bottleneck(), network(), SHAPE, examples=2))


def test_only_who_has_the_noise_explains_what_is_sent():
    update = upload(bottleneck(), network(), SHAPE)

    def at_truth(strategy):
        return loss_at_truth(strategy, bottleneck(), network(), SHAPE, update)

    assert at_truth("known") < 1e-5 and at_truth("read_noise") < 1e-3
    assert at_truth("mean") > 0.1 and at_truth("random_noise") > 0.1


@pytest.mark.slow
def test_who_omits_noisy_gradients_compares_the_layers_in_front_alone():
    for defence, model, shape, kept in (
        (bottleneck(), network(), SHAPE, ["layers/0/bias", "layers/0/kernel"]),
        (cvb(), convolutional(), (8, 8, 1), ["conv1/bias", "conv1/kernel"]),
    ):
        update = upload(defence, model, shape)
        ground = setting("omit", defence, model, shape)
        view = threat.observe(ground.threat, update)
        truth = Candidate(update.inputs, update.targets, Private())
        simulated, observed = replay(ground, defence.gates)(view, truth)
        assert sorted(simulated.model) == sorted(observed.model) == kept
        assert not jax.tree.leaves((simulated.defence, observed.defence))
        np.testing.assert_array_equal(
            observed.model[kept[0]], update.sent.model[kept[0]]
        )


@pytest.mark.slow
def test_who_omits_everything_is_told_so():
    model, shape = convolutional(), (8, 8, 1)
    behind = functools.partial(layers_behind, model, "conv1:input", shape)
    first = defences.convolutional_bottleneck("conv1", shape, behind=behind)
    update = upload(first, model, shape)
    with pytest.raises(ValueError, match="leaves out the gradients of all layers"):
        loss_at_truth("omit", first, model, shape, update)


@pytest.mark.parametrize("strategy", sorted(BOTTLENECKS))
def test_no_strategy_touches_what_is_hidden(strategy):
    update = upload(bottleneck(), network(), SHAPE)
    ground = setting(strategy, bottleneck(), network(), SHAPE)
    attack = quick_jit(matching(ground, adam(), steps=3, restarts=1))

    def found(update):
        view = threat.observe(ground.threat, update)
        return attack(jax.random.key(0), view)

    facts = {"private_key": ground.threat.knowledge.private_key, "labels": "known"}
    given, blind = found(update), found(poisoned(update, facts))
    assert np.all(np.isfinite(given.inputs))
    assert not differences(given.inputs, blind.inputs)


def attacked(strategy, defence, update, steps=300):
    """Measures the squared error of what is found, per pixel."""
    ground = setting(strategy, defence, network(), SHAPE, len(update.targets))
    attack = quick_jit(
        matching(ground, lbfgs(), steps=steps, restarts=1, variation=0.0)
    )
    found = attack(jax.random.key(0), threat.observe(ground.threat, update))
    return float(np.mean((found.inputs - update.inputs) ** 2))


@pytest.mark.slow
def test_the_attack_succeeds_with_the_noise_that_it_reads_and_fails_without():
    update = upload(bottleneck(beta=0.0), network(), SHAPE)
    grey = float(np.mean((0.5 - update.inputs) ** 2))
    assert attacked("read_noise", bottleneck(beta=0.0), update) < 0.01 * grey
    assert attacked("random_noise", bottleneck(beta=0.0), update) > 0.5 * grey


def test_a_dense_first_layer_leaks_behind_no_bottleneck():
    """PRECODE protects nothing in front of it: the input is there in closed form."""
    update = upload(bottleneck(), network(), SHAPE)
    ground = setting("mean", bottleneck(), network(), SHAPE, labels="recovered")
    found = dense_layer(ground, "layers/0")(
        jax.random.key(0), threat.observe(ground.threat, update)
    )
    np.testing.assert_allclose(found.inputs, update.inputs, atol=1e-4)


def test_label_rules_look_at_the_network_with_its_bottleneck():
    """Decoded features have signs, where those of a sigmoid have none."""
    update = upload(bottleneck(), network(), SHAPE)
    ground = setting("mean", bottleneck(), network(), SHAPE, labels="recovered")
    view = threat.observe(ground.threat, update)
    unsigned = CONDITIONS["wainakh_simple"].holds
    assert not unsigned(ground, view)
    without = ground.defence._replace(gates=lambda public, private: {})
    assert unsigned(ground._replace(defence=without), view)


# --- the jobs --------------------------------------------------------------------


def test_an_update_has_the_strategies_that_need_no_noise():
    with pytest.raises(
        threat.IllegalThreat, match="'regress_noise' needs upload='grad"
    ):
        threat.least_knowledge(
            threat.Strategy(secret="regress_noise", labels="given"),
            BOTTLENECKS,
            upload="update",
        )


def test_closed_forms_that_walk_a_chain_refuse_a_module_in_it():
    with pytest.raises(ValueError, match="peeling walks a chain of layers"):
        build_study(
            tiny(
                model="lenet",
                attack="peeling",
                optimiser=None,
                arms=("precode=4/mean",),
            )
        )


@pytest.mark.slow
def test_arms_of_bottlenecks_run_side_by_side():
    result = study(
        arms=("precode=8/read_noise", "precode=8,0.5/read_noise", "precode=8/mean"),
        victims=2,
    )
    exact, other, mean = (arm.attacked for arm in result.arms)
    assert np.all(exact.replay_is_exact) and np.all(other.replay_is_exact)
    assert np.all(mean.loss_at_truth < 1e-6)  # at the client's own noise
    # The weight is data, and does something.
    assert differences(exact.reconstruction.loss, other.reconstruction.loss)
