"""Defences: a table of all of them times properties, then what each alone promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from kljax import defences
from kljax.core.types import Gate, Private, Public
from kljax.defences import (
    Context,
    chain,
    gates_of,
    gaussian_noise,
    keylock,
    laplace_noise,
    magnitude_pruning,
    none,
    norm_clipping,
    plaintext_gates,
    unit_gates,
)
from kljax.defences.lock import key_lock

RNG = jax.random.key(11)
LOCK = key_lock(("b", "a"), (3, 2), size=4)
# Nothing here looks at it; a defence that does must say so in a test of its own.
CONTEXT = Context(None, None, None, None)

DEFENCES = {
    "none": none(),
    "keylock": keylock(LOCK),
    "plaintext_gates": plaintext_gates(unit_gates(("b", "a"), (3, 2))),
    "plaintext_gates from a lock": plaintext_gates(gates_of(keylock(LOCK))),
    "gaussian_noise": gaussian_noise(0.1),
    "laplace_noise": laplace_noise(0.1),
    "magnitude_pruning": magnitude_pruning(0.3),
    "norm_clipping": norm_clipping(0.5),
    "adam_stand_in": defences.adam_stand_in(),
    "example_clipping": defences.example_clipping(0.5),
    "obscure_inputs": defences.obscure_inputs(),
    "top_k": defences.top_k(0.3),
    "quantise": defences.quantise(4),
    "quantise affine": defences.quantise(4, mode="affine"),
    "quantise float16": defences.quantise(16, mode="float16"),
    "chain": chain(keylock(LOCK), norm_clipping(0.5), magnitude_pruning(0.3)),
    "chain with noise": chain(none(), magnitude_pruning(0.3), gaussian_noise(0.1)),
}
NOISY = {"gaussian_noise", "laplace_noise", "chain with noise"}
ALL = pytest.mark.parametrize("defence", DEFENCES.values(), ids=DEFENCES)


def gradient(scale=1.0):
    """A public gradient with tensors of several ranks and two precisions."""
    generator = np.random.default_rng(0)

    def draw(*shape, dtype=jnp.float32):
        return jnp.asarray(scale * generator.standard_normal(shape), dtype)

    model = {
        "conv/kernel": draw(2, 2, 1, 3),
        "fc/bias": draw(7),
        "half": draw(7, dtype=jnp.bfloat16),
    }
    return Public(model, {"norm": Gate(draw(7), draw(7))})


def released(defence, grads, rng=RNG):
    """What is sent of the gradient of one example."""
    if defence.per_example is not None:
        grads = defence.per_example(jax.random.fold_in(rng, 0), grads)
    sent, _ = defence.release(rng, defence.init_state(grads), grads, CONTEXT)
    return sent


def simulated(defence, grads, sent, private=None):
    """What an attacker who knows the defence makes of its candidate's one example."""
    if defence.simulate_example is not None:
        grads = defence.simulate_example(grads)
    return defence.simulate(grads, sent, None, private)


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def flat(tree):
    leaves = jax.tree.leaves(tree)
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in leaves])


def test_the_table_holds_every_factory():
    helpers = {"Defence", "Context", "Transform", "Mechanism", "SEND_ALL"}
    helpers |= {
        "unit_gates",
        "gates_of",
        "everything",
        "as_sent",
        "as_given",
        "is_concrete",
        "at_update",
        "step_transform",
        "without_release",
        "without_changes",
        "inserts_modules",
        "changes_gradients",
    }
    # Those of tests of their own: test_selective.py, test_quantisation.py, ...
    elsewhere = {"selective_encryption", "quantise_mixed", "censor", "soteria"}
    elsewhere |= {"svd_truncation", "outpost", "slice_noise"}
    elsewhere |= {"dense_bottleneck", "convolutional_bottleneck"}  # test_bottlenecks.py
    elsewhere |= {"dp_sgd", "dp_fedavg", "pre_clip_noise"}  # test_private_sgd.py
    elsewhere |= {"private_norms", "gates_by_passports"}  # test_private_gates.py
    elsewhere |= {"mix_up", "insta_hide", "insta_hide_cross"}  # test_mixing.py
    elsewhere |= {"transform_images", "read_policies", "write_policies"}  # test_ats.py
    elsewhere |= {"search_policies", "privacy_score", "accuracy_score"}  # the same
    elsewhere |= {"refine_inputs", "conceal_samples"}  # test_concealed.py
    assert set(defences.__all__) - helpers - elsewhere <= set(DEFENCES)


# --- properties of all -----------------------------------------------------------


@ALL
def test_what_is_sent_has_structure_shape_and_dtype_of_the_gradient(defence):
    grads = gradient()
    state = defence.init_state(grads)

    def release():
        return defence.release(RNG, state, grads, CONTEXT)

    sent, new_state = jax.eval_shape(release)
    assert sent == jax.eval_shape(lambda: grads)
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    replayed = jax.eval_shape(functools.partial(simulated, defence), grads, grads)
    assert replayed == jax.eval_shape(lambda: grads)


@pytest.mark.parametrize("name", DEFENCES)
def test_simulation_at_the_truth_gives_what_was_sent(name):
    defence, grads = DEFENCES[name], gradient()
    sent = released(defence, grads)
    replayed = simulated(defence, grads, sent)
    if name in NOISY:  # the noise is what the attacker cannot know
        assert np.std(flat(replayed) - flat(sent)) == pytest.approx(0.1, rel=0.5)
    else:
        assert_equal(replayed, sent)


@pytest.mark.parametrize("name", DEFENCES)
def test_randomness_comes_from_the_rng_alone(name):
    defence, grads = DEFENCES[name], gradient()
    sent, again = released(defence, grads), released(defence, grads)
    assert_equal(sent, again)
    other = released(defence, grads, jax.random.key(12))
    assert np.any(flat(sent) != flat(other)) == (name in NOISY)


IDENTITIES = {
    "none": none(),
    "no noise": gaussian_noise(0),
    "nothing pruned": magnitude_pruning(0),
    "no bound": norm_clipping(float("inf")),
    "no bound of an example": defences.example_clipping(float("inf")),
    "wide bound": norm_clipping(1e6),
    "all entries": defences.top_k(1),
    "all bits": defences.quantise(32),
    "all bits, affine": defences.quantise(32, mode="affine"),
    "all bits, stochastic": defences.quantise(32, mode="stochastic"),
    "all bits, mixed": defences.quantise_mixed((32,)),
    "all of them": chain(
        none(), gaussian_noise(0.0), magnitude_pruning(0.0), norm_clipping(np.inf)
    ),
}


@pytest.mark.parametrize("defence", IDENTITIES.values(), ids=IDENTITIES)
def test_strength_zero_is_the_identity(defence):
    grads = gradient()
    assert_equal(released(defence, grads), grads)


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (gaussian_noise, -0.1),
        (gaussian_noise, float("nan")),
        (magnitude_pruning, -0.1),
        (magnitude_pruning, 1),
        (magnitude_pruning, float("nan")),
        (norm_clipping, 0),
        (defences.example_clipping, 0),
        (norm_clipping, -1.0),
        (norm_clipping, float("nan")),
        (defences.top_k, 0),
        (defences.top_k, -0.1),
        (defences.top_k, 1.5),
        (defences.top_k, float("nan")),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_impossible_strengths_are_named(make, value):
    with pytest.raises(
        ValueError, match=rf"(std|fraction|bound|share) must be .*{value}"
    ):
        make(value)


# --- noise -----------------------------------------------------------------------


def noise_of(defence, size=4000):
    grads = {"one": jnp.zeros(size), "two": jnp.ones(size)}
    sent = released(defence, grads)
    return {name: np.asarray(sent[name] - grads[name], np.float64) for name in grads}


NOISES = pytest.mark.parametrize(
    ("noise", "peer", "scale"),
    (
        (gaussian_noise, stats.norm, lambda std: std),
        (laplace_noise, stats.laplace, lambda std: std / np.sqrt(2)),
    ),
    ids=("gaussian", "laplace"),
)


@NOISES
def test_noise_has_its_scale_and_no_other(noise, peer, scale):
    drawn = noise_of(noise(0.3), size=8000)["two"]
    assert np.std(drawn) == pytest.approx(0.3, rel=0.05)
    assert stats.kstest(drawn / scale(0.3), peer.cdf).pvalue > 0.01
    for wrong in (0.26, 0.34):
        assert stats.kstest(drawn / scale(wrong), peer.cdf).pvalue < 1e-4


@NOISES
def test_noise_has_the_density_that_it_says(noise, peer, scale):
    grads = gradient()
    del grads.model["half"]
    seen = released(noise(0.3), grads)
    wanted = peer.logpdf(flat(seen), flat(grads), scale(0.3)).sum()
    found = noise(0.3).log_prob(seen, grads)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    # Alone in a chain it still does.
    assert chain(none(), noise(0.3)).log_prob(seen, grads) == found


def clipped_by_hand(grads, bound=0.5):
    values = {name: np.asarray(x, np.float64) for name, x in grads.model.items()}
    length = np.sqrt(sum((x**2).sum() for x in values.values()))
    return {name: x * min(1, bound / length) for name, x in values.items()}


def pruned_by_hand(grads, fraction=0.4):
    made = {}
    for name, leaf in grads.model.items():
        values = np.asarray(leaf, np.float64)
        sizes = np.sort(np.abs(values).ravel())
        place = fraction * (len(sizes) - 1)
        low, part = int(place), place - int(place)
        limit = sizes[low] + part * (sizes[low + 1] - sizes[low])
        made[name] = np.where(np.abs(values) < limit, 0, values)
    return made


def quantised_by_hand(grads):
    made = {}
    for name, leaf in grads.model.items():
        values = np.asarray(leaf, np.float64)
        step = np.abs(values).max() / 7  # of 4 bits, symmetric
        made[name] = step * np.round(values / step)
    return made


@NOISES
@pytest.mark.parametrize(
    ("first", "by_hand"),
    (
        ((norm_clipping(0.5),), clipped_by_hand),
        ((defences.example_clipping(0.5),), clipped_by_hand),
        ((magnitude_pruning(0.4),), pruned_by_hand),
        ((defences.quantise(4),), quantised_by_hand),
        (
            (magnitude_pruning(0.4), norm_clipping(0.5)),
            lambda grads: clipped_by_hand(Public(pruned_by_hand(grads))),
        ),
    ),
    ids=("clipped", "of one example", "pruned", "quantised", "both"),
)
def test_noise_after_what_is_deterministic_has_its_density_around_it(
    noise, peer, scale, first, by_hand
):
    """Of what is sent given another candidate's gradient, too."""
    grads, other = (
        Public({k: v for k, v in gradient(size).model.items() if k != "half"})
        for size in (1.0, 2.5)
    )
    defence = chain(none(), *first, noise(0.3))
    seen = released(defence, grads)
    for candidate in (grads, other):
        around = by_hand(candidate)
        wanted = sum(
            peer.logpdf(np.asarray(seen.model[name]), around[name], scale(0.3)).sum()
            for name in around
        )
        replayed = simulated(defence, candidate, seen, Private())
        assert defence.log_prob(seen, replayed) == pytest.approx(wanted, rel=1e-4)
    assert defence.log_prob_degree == noise(0.3).log_prob_degree
    zero = jax.tree.map(jnp.zeros_like, grads)
    assert_equal(defence.simulate(zero, seen, None, Private()), zero)


@NOISES
def test_what_draws_or_follows_the_noise_leaves_no_density(noise, peer, scale):
    for members in (
        (noise(0.3), noise(0.3)),
        (noise(0.3), norm_clipping(0.5)),
        (noise(0.3), magnitude_pruning(0.4)),
        (defences.adam_stand_in(), noise(0.3)),
    ):
        assert chain(none(), *members).log_prob is None


@NOISES
def test_what_is_hidden_has_no_part_in_a_density(noise, peer, scale):
    grads = gradient()
    del grads.model["half"]
    seen = released(noise(0.3), grads)
    kernel = seen.model["conv/kernel"]
    hidden = kernel.at[0].set(jnp.nan)
    partly = {"conv/kernel": hidden, "fc/bias": None}
    seen = seen._replace(model=partly, defence=())
    grads = grads._replace(defence=())
    wanted = peer.logpdf(kernel[1], grads.model["conv/kernel"][1], scale(0.3)).sum()
    value, slope = jax.value_and_grad(lambda g: noise(0.3).log_prob(seen, g))(grads)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    assert not np.any(slope.model["fc/bias"]) and not np.any(
        slope.model["conv/kernel"][0]
    )
    assert np.all(slope.model["conv/kernel"][1] != 0)


@NOISES
def test_no_noise_has_no_density(noise, peer, scale):
    assert noise(0).log_prob is None and noise(0.0).log_prob is None


def test_tensors_draw_for_themselves():
    noise = noise_of(gaussian_noise(0.3))
    assert abs(np.corrcoef(noise["one"], noise["two"])[0, 1]) < 0.05


# --- clipping --------------------------------------------------------------------


@pytest.mark.parametrize("scale", (1e-3, 1.0, 1e4))
def test_clipping_bounds_the_norm_and_keeps_the_direction(scale):
    grads = gradient(scale)
    del grads.model["half"]  # whose rounding is a matter of its own
    sent = flat(released(norm_clipping(0.5), grads))
    before = flat(grads)
    length = np.linalg.norm(before)
    assert np.linalg.norm(sent) == pytest.approx(min(length, 0.5), rel=1e-5)
    cosine = sent @ before / (np.linalg.norm(sent) * length)
    assert cosine == pytest.approx(1, abs=1e-6)


def test_lengths_are_taken_as_a_millionth_and_more():
    """What keeps the derivative finite counts where a gradient is as short."""
    grads = {"a": 1e-6 * jnp.array([0.6, 0.8])}
    sent = released(norm_clipping(1e-7), grads)["a"]
    np.testing.assert_allclose(sent, 1e-7 / 2**0.5 * np.array([0.6, 0.8]), rtol=1e-4)


def test_clipping_a_zero_gradient_has_a_derivative():
    def length(scale):
        grads = {"a": scale * jnp.ones(3)}
        sent = norm_clipping(0.5).simulate(grads, grads, None, None)
        return jnp.sum(sent["a"])

    assert jax.grad(length)(0.0) == pytest.approx(3.0)


# --- pruning ---------------------------------------------------------------------


@pytest.mark.parametrize("fraction", (0.1, 0.5, 0.9, 0.99))
def test_pruning_drops_what_numpys_quantile_says(fraction):
    grads = gradient()
    del grads.model["half"]  # NumPy has no such type
    grads.model["large"] = jnp.asarray(
        np.random.default_rng(1).standard_normal(1000), jnp.float32
    )
    sent = released(magnitude_pruning(fraction), grads)

    def prune(leaf):
        size = np.abs(np.asarray(leaf))
        return np.where(size < np.quantile(size, fraction), 0, leaf)

    assert_equal(sent, jax.tree.map(prune, grads))
    assert np.mean(sent.model["large"] == 0) == pytest.approx(fraction, abs=1e-3)


def test_pruning_shows_the_attacker_what_to_compare():
    sent = {"a": jnp.array([0.0, 3.0, 0.0, -4.0])}
    candidate = {"a": jnp.array([9.0, 1.0, -9.0, 0.5])}
    simulated = magnitude_pruning(0.5).simulate(candidate, sent, None, None)
    np.testing.assert_array_equal(simulated["a"], [0, 1, 0, 0.5])


# --- top-k -----------------------------------------------------------------------


def releases(defence, many):
    """Sends several gradients of one client; gives what is sent, and what is left."""
    state, sent = defence.init_state(many[0]), []
    for grads in many:
        out, state = defence.release(RNG, state, grads, CONTEXT)
        sent.append(out)
    return sent, state


def draws(count, *shape):
    generator = np.random.default_rng(8)
    return [
        {
            "a": jnp.asarray(generator.standard_normal(shape), jnp.float32),
            "b": jnp.ones(1),
        }
        for _ in range(count)
    ]


@pytest.mark.parametrize("share", (0.004, 0.1, 0.5))
def test_top_k_sends_the_largest_and_the_rest_later(share):
    many = draws(6, 100)
    sent, left = releases(defences.top_k(share), many)
    memory = np.zeros(100)
    for grads, out in zip(many, sent, strict=True):
        memory = memory + np.asarray(grads["a"])
        largest = np.argsort(-np.abs(memory))[: max(round(share * 100), 1)]
        wanted = np.zeros(100)
        wanted[largest] = memory[largest]
        np.testing.assert_allclose(out["a"], wanted, atol=1e-6)
        np.testing.assert_array_equal(out["b"], [1])  # of a single entry all
        memory -= wanted
    # All that was sent, and what is left, are all gradients.
    total = sum(np.asarray(g["a"], np.float64) for g in many)
    found = sum(np.asarray(x["a"], np.float64) for x in (*sent, left))
    np.testing.assert_allclose(found, total, atol=1e-5)
    assert np.linalg.norm(left["a"]) > 1


def test_pruning_forgets_what_top_k_keeps():
    many = draws(6, 100)
    total = sum(np.asarray(g["a"]) for g in many)
    sent, _ = releases(magnitude_pruning(0.9), many)
    assert np.linalg.norm(sum(x["a"] for x in sent) - total) > 1


def test_of_equal_entries_the_first_are_sent():
    sent = released(defences.top_k(0.5), {"a": jnp.array([1.0, -1.0, 1.0, 0.5])})
    np.testing.assert_array_equal(sent["a"], [1, -1, 0, 0])


def test_an_attacker_compares_what_had_nothing_left_over():
    defence, many = defences.top_k(0.4), draws(3, 100)
    (*before, last), _ = releases(defence, many)
    record = jax.tree.map(lambda *x: jnp.stack(x), *before)
    at_truth = defence.simulate(many[-1], last, record, None)
    np.testing.assert_allclose(at_truth["a"], last["a"], atol=1e-6)
    other = defence.simulate(
        {"a": jnp.full(100, 9.0), "b": many[0]["b"]}, last, record, None
    )
    sent_twice = (np.asarray(last["a"]) != 0) & (np.asarray(before[-1]["a"]) != 0)
    assert 5 < sent_twice.sum() < 40
    np.testing.assert_array_equal(other["a"], np.where(sent_twice, 9, last["a"]))
    # An entry that was hidden then may have something left over.
    hidden = {"a": record["a"].at[-1].set(jnp.nan), "b": record["b"]}
    unread = defence.simulate(
        {"a": jnp.full(100, 9.0), "b": many[0]["b"]}, last, hidden, None
    )
    np.testing.assert_array_equal(unread["a"], last["a"])
    # Nobody sees a local step: the attacker keeps the largest of its own.
    own = defence.simulate(many[0], None, None, None)
    np.testing.assert_array_equal(own["a"], before[0]["a"])


def test_top_k_under_noise_is_that_of_the_candidate():
    """No entry of what is seen is zero, and which were sent is not seen."""
    defence = chain(none(), defences.top_k(0.1), gaussian_noise(1e-3))
    (before, last), _ = releases(defence, draws(2, 100))
    record = jax.tree.map(lambda x: x[None], before)
    other = np.asarray(draws(3, 100)[-1]["a"])
    largest = np.argsort(-np.abs(other))[:10]
    wanted = np.zeros(100)
    wanted[largest] = other[largest]
    for earlier in (None, record):
        made = defence.simulate({"a": other, "b": jnp.ones(1)}, last, earlier, None)
        np.testing.assert_array_equal(made["a"], wanted)
        np.testing.assert_array_equal(made["b"], [1])


def test_an_entry_that_is_hidden_spoils_nothing_after_top_k():
    defence, many = chain(none(), defences.top_k(0.4), norm_clipping(1)), draws(3, 100)
    (*before, last), _ = releases(defence, many)
    record = jax.tree.map(lambda *x: jnp.stack(x), *before)
    # One that was sent now and not before, of which something may be left over.
    place = np.flatnonzero((last["a"] != 0) & (before[-1]["a"] == 0))[0]
    last["a"] = last["a"].at[place].set(jnp.nan)
    record["a"] = record["a"].at[:, place].set(jnp.nan)
    made = defence.simulate(many[-1], last, record, None)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(made))


# --- chains ----------------------------------------------------------------------


def test_a_chain_applies_its_members_in_order():
    grads = gradient()
    members = (none(), norm_clipping(0.5), gaussian_noise(0.2), magnitude_pruning(0.4))
    step_by_step = functools.reduce(
        lambda sent, i: released(members[i], sent, jax.random.fold_in(RNG, i)),
        range(len(members)),
        grads,
    )
    assert_equal(released(chain(*members), grads), step_by_step)
    # Clipping last would bound the noise, too.
    other = released(chain(none(), gaussian_noise(0.2), norm_clipping(0.5)), grads)
    assert np.linalg.norm(flat(other)) <= 0.51 < np.linalg.norm(flat(step_by_step))


def test_members_of_a_chain_draw_independently():
    twice = noise_of(chain(none(), gaussian_noise(0.3), gaussian_noise(0.3)))["two"]
    # Independent draws add in squares; the same draw twice would have scale 0.6.
    assert stats.kstest(twice / (0.3 * np.sqrt(2)), "norm").pvalue > 0.01
    assert stats.kstest(twice / 0.6, "norm").pvalue < 1e-4


def test_a_chain_has_the_gates_of_its_first():
    parts = DEFENCES["chain"].init(RNG, None)
    assert_equal(parts, keylock(LOCK).init(RNG, None))
    assert_equal(DEFENCES["chain"].gates(*parts), keylock(LOCK).gates(*parts))


@pytest.mark.parametrize("name", ("keylock", "plaintext_gates"))
def test_only_the_first_of_a_chain_may_have_gates(name):
    with pytest.raises(ValueError, match="defence 2 of the chain has gates"):
        chain(none(), gaussian_noise(0.1), DEFENCES[name])


@pytest.mark.parametrize(
    "own",
    ({"init": lambda rng, params: (params, Private())}, {"gates": lambda *_: {"a": 1}}),
    ids=("parts", "gates"),
)
def test_parts_or_gates_alone_are_enough_to_be_the_first(own):
    member = none()._replace(**own)
    assert chain(member, gaussian_noise(0.1)).init is member.init
    with pytest.raises(ValueError, match="defence 1 of the chain has gates or parts"):
        chain(none(), member)


def counting(step):
    """A defence that adds how much it has added so far, from `step` on."""

    def release(rng, state, grads, context):
        return jax.tree.map(lambda leaf: leaf + state, grads), state + step

    return none()._replace(release=release, init_state=lambda grads: step)


def test_members_of_a_chain_remember_for_themselves():
    defence = chain(none(), counting(1.0), counting(10.0))
    grads = {"a": jnp.zeros(2)}
    state = defence.init_state(grads)
    for expected in (11.0, 22.0, 33.0):
        sent, state = defence.release(RNG, state, grads, CONTEXT)
        np.testing.assert_array_equal(sent["a"], expected)
    assert state == ((), 4.0, 40.0)


# --- gates -----------------------------------------------------------------------


def test_a_lock_keeps_everything_private():
    public, private = keylock(LOCK).init(RNG, None)
    assert public == ()
    assert private.secret.shape == (4,)
    assert len(private.trainable) == 2
    expected = LOCK.gates(private.trainable, private.secret)
    assert_equal(keylock(LOCK).gates(public, private), expected)


def test_a_lock_draws_its_weights_and_its_private_key_apart():
    """Whoever has the one learns nothing of the other, nor from what the rng gives."""
    drawn = {}

    def keep(name):
        return lambda rng: drawn.setdefault(name, jax.random.key_data(rng).tolist())

    lock = LOCK._replace(init=keep("lock weights"), private_key=keep("private key"))
    keylock(lock).init(RNG, None)
    drawn["rng"] = jax.random.key_data(RNG).tolist()
    assert len(drawn) == len(set(map(tuple, drawn.values()))) == 3


@pytest.mark.parametrize("name", ("none", "keylock", "gaussian_noise"))
def test_to_an_outsider_there_are_no_gates(name):
    assert DEFENCES[name].gates((), Private()) == {}


def test_plaintext_gates_are_public_and_start_where_they_are_told():
    public, private = DEFENCES["plaintext_gates"].init(RNG, None)
    assert private == Private()
    unit = {"b": Gate(np.ones(3), np.zeros(3)), "a": Gate(np.ones(2), np.zeros(2))}
    assert_equal(public, unit)
    assert_equal(DEFENCES["plaintext_gates"].gates(public, private), unit)
    # From a lock: the very gates that this lock makes of the same rng.
    matched, private = DEFENCES["plaintext_gates from a lock"].init(RNG, None)
    assert private == Private()
    assert_equal(matched, keylock(LOCK).gates(*keylock(LOCK).init(RNG, None)))
    assert np.any(flat(matched) != flat(unit))


# --- what can be read ------------------------------------------------------------


def hiding(*hidden):
    """A defence of which the entries at `hidden` cannot be read."""

    def visible(rng, sent, context):
        return jax.tree.map(
            lambda leaf: jnp.ones(leaf.shape, bool).at[jnp.array(hidden)].set(False),
            sent,
        )

    return defences.Defence(visible=visible)


@ALL
def test_all_of_what_is_sent_can_be_read(defence):
    grads = gradient()
    visible = defence.visible(RNG, grads, CONTEXT)
    assert_equal(visible, jax.tree.map(lambda x: np.ones(x.shape, bool), grads))


def test_what_one_of_a_chain_hides_is_hidden():
    sent = {"a": jnp.zeros(5)}
    defence = chain(hiding(0, 3), gaussian_noise(0.1), hiding(3, 4))
    np.testing.assert_array_equal(
        defence.visible(RNG, sent, CONTEXT)["a"], [False, True, True, False, False]
    )
    assert chain(none(), gaussian_noise(0.1)).visible is none().visible
