"""Private descent: what is clipped and noised, and what a guarantee survives."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats
from tiny_studies import sites_of

from kljax import defences
from kljax.core.types import Public
from kljax.defences import Context, Mechanism, chain, dp_fedavg, dp_sgd, pre_clip_noise
from kljax.defences.accounting import epsilon
from kljax.defences.arms import parse_arm

RNG = jax.random.key(3)
BATCH = 4


def examples(count=BATCH):
    """Gradients of single examples, some longer than 1 and some shorter."""
    generator = np.random.default_rng(0)

    def draw(size, *shape):
        return np.float32(size * generator.standard_normal(shape))

    sizes = 0.1 * 3.0 ** np.arange(count)
    return [Public({"kernel": draw(s, 3, 2), "bias": draw(s, 2)}) for s in sizes]


def context(count=BATCH):
    return Context(None, None, None, np.zeros((count, 5)))


def send(defence, grads, rng=RNG):
    """Does to the gradients of a batch what a client does, one after another."""
    rng_examples, rng_release = jax.random.split(rng)
    if defence.per_example is not None:
        rngs = jax.random.split(rng_examples, len(grads))
        grads = list(map(defence.per_example, rngs, grads))
    mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *grads)
    state = defence.init_state(mean)
    return defence.release(rng_release, state, mean, context(len(grads)))[0]


def flat(tree):
    return np.concatenate(
        [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)]
    )


def clipped_by_hand(vectors, bound):
    """The mean of shortened vectors, in loops."""
    total = np.zeros_like(vectors[0])
    for vector in vectors:
        length = np.sqrt(sum(float(x) ** 2 for x in vector))
        for place, entry in enumerate(vector):
            total[place] += entry * (bound / length if length > bound else 1)
    return total / len(vectors)


# --- clipping and noise ----------------------------------------------------------


def test_examples_are_noised_and_then_clipped_one_by_one():
    grads, bound = examples(), 0.7
    wide = dp_sgd(1e6, 0.0, 0.3, batch=BATCH)
    rngs = jax.random.split(jax.random.split(RNG)[0], BATCH)
    noisy = [flat(wide.per_example(*pair)) for pair in zip(rngs, grads, strict=True)]
    drawn = np.array(noisy) - np.array(list(map(flat, grads)))
    # Every example has noise of its own, in every entry.
    assert len(np.unique(np.round(drawn, 6))) == drawn.size
    assert np.std(drawn) == pytest.approx(0.3, rel=0.3)
    sent = send(dp_sgd(bound, 0.0, 0.3, batch=BATCH), grads)
    np.testing.assert_allclose(flat(sent), clipped_by_hand(noisy, bound), rtol=1e-5)
    unclipped = np.mean(noisy, axis=0)
    assert np.linalg.norm(flat(sent) - unclipped) > 0.3 * np.linalg.norm(unclipped)


def test_without_noise_it_is_optax_dp_aggregate():
    grads, bound = examples(), 0.7
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *grads)
    peer = optax.contrib.differentially_private_aggregate(bound, 0.0, key=0)
    wanted, _ = peer.update(stacked, peer.init(grads[0]))
    sent = send(dp_sgd(bound, 0.0, batch=BATCH), grads)
    np.testing.assert_allclose(flat(sent), flat(wanted), rtol=1e-5)


@pytest.mark.parametrize("examples_each", (1, 8))
def test_the_noise_of_the_mean_has_one_scale(examples_each):
    """The multiplier times the bound over B, and neither half of it nor twice."""
    bound, multiplier = 0.5, 1.5
    zero = [Public({"w": np.zeros(3000, np.float32)})] * examples_each
    sent = flat(send(dp_sgd(bound, multiplier, batch=examples_each), zero))
    right = multiplier * bound / examples_each
    assert stats.kstest(sent / right, "norm").pvalue > 1e-3
    for wrong in (0.85, 1.15):
        assert stats.kstest(sent / (wrong * right), "norm").pvalue < 1e-3
    again = flat(send(dp_sgd(bound, multiplier, batch=examples_each), zero))
    np.testing.assert_array_equal(again, sent)


def test_a_client_is_clipped_as_a_whole_and_has_its_noise_at_home():
    grads = examples()[-1:]
    clipped = flat(send(dp_fedavg(0.5, 0.0), grads))
    np.testing.assert_allclose(clipped, clipped_by_hand([flat(grads[0])], 0.5), 1e-5)
    zero = [Public({"w": np.zeros(3000, np.float32)})]
    noise = flat(send(dp_fedavg(0.5, 3.0), zero))
    assert stats.kstest(noise / 1.5, "norm").pvalue > 1e-3
    assert stats.kstest(noise / 3.0, "norm").pvalue < 1e-3
    moved = defences.at_update(dp_fedavg(0.5, 3.0))
    assert moved.mechanism == Mechanism(3.0, "client", "update")
    assert moved.release is defences.none().release


@pytest.mark.parametrize(
    "defence",
    (
        dp_sgd(np.inf, 0.0, batch=BATCH),
        dp_sgd(1e9, 0.0, 0.0, batch=BATCH),
        dp_fedavg(np.inf, 0.0),
        pre_clip_noise(0.0),
    ),
)
def test_no_noise_and_no_bound_is_the_identity(defence):
    grads = examples()
    np.testing.assert_array_equal(
        flat(send(defence, grads)), flat(send(defences.none(), grads))
    )
    assert defence.mechanism is None or epsilon(defence.mechanism, 1, 1e-5) is None


def test_a_gradient_that_is_not_finite_is_none():
    grads = examples()
    broken = jax.tree.map(lambda g: np.where(g > 0, np.nan, g), grads[1])
    infinite = jax.tree.map(lambda g: np.full_like(g, np.inf), grads[1])
    nothing = jax.tree.map(np.zeros_like, grads[1])
    defence, client = dp_sgd(0.7, 0.0, batch=BATCH), dp_fedavg(0.7, 0.0)
    wanted = flat(send(defence, [grads[0], nothing, *grads[2:]]))
    for spoilt in (broken, infinite):
        sent = flat(send(defence, [grads[0], spoilt, *grads[2:]]))
        np.testing.assert_array_equal(sent, wanted)
        assert not np.any(flat(send(client, [spoilt])))


def test_strengths_are_data_of_one_compilation():
    traced = []

    @jax.jit
    def run(bound, multiplier, pre_clip):
        traced.append(1)
        return send(dp_sgd(bound, multiplier, pre_clip, batch=BATCH), grads)

    grads = examples()
    strengths = [(0.5, 1.0, 0.0), (2.0, 0.0, 0.1), (np.inf, 0.0, 0.0), (1.0, 4.0, 1.0)]
    strengths.append((0.1, 0.1, 0.0))
    for strength in strengths:
        wanted = send(dp_sgd(*strength, batch=BATCH), grads)
        np.testing.assert_allclose(
            flat(run(*strength)), flat(wanted), rtol=1e-4, atol=1e-6
        )
    assert len(traced) == 1


# --- who knows it ----------------------------------------------------------------


def test_its_density_is_that_of_the_noise_around_the_clipped_mean():
    grads, other = examples(), examples()[::-1]
    bound, multiplier = 0.7, 1.5
    defence = dp_sgd(bound, multiplier, batch=BATCH)
    seen = send(defence, grads)
    for candidate in (grads, other[:1] * BATCH):
        each = list(map(defence.simulate_example, candidate))
        mean = jax.tree.map(lambda *leaves: sum(leaves) / BATCH, *each)
        around = clipped_by_hand(list(map(flat, candidate)), bound)
        np.testing.assert_allclose(flat(mean), around, rtol=1e-4, atol=1e-7)
        scale = multiplier * bound / BATCH
        wanted = stats.norm.logpdf(flat(seen), around, scale).sum()
        found = defence.log_prob(seen, defence.simulate(mean, seen, None, None))
        assert found == pytest.approx(wanted, rel=1e-4)
    # Inside a chain, and behind gates, too; not if noise comes before the clipping.
    chained = chain(defences.none(), defence)
    assert chained.log_prob is not None and chained.log_prob_degree == 2
    before = dp_sgd(bound, multiplier, 0.1, batch=BATCH)
    assert before.log_prob is None
    by_hand = defences.example_clipping(1.0), defences.gaussian_noise(1.0)
    assert chain(*by_hand).log_prob is not None
    assert chain(pre_clip_noise(1.0), *by_hand).log_prob is None


# --- errors ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        ((0.0, 1.0), "bound must be > 0, got 0.0"),
        ((-1.0, 1.0), "bound must be > 0"),
        ((np.nan, 1.0), "bound must be > 0, got nan"),
        ((np.inf, 1.0), "bound must be finite under noise"),
        ((1.0, -0.5), "noise_multiplier must be finite and >= 0, got -0.5"),
        ((1.0, np.nan), "noise_multiplier must be .* got nan"),
        ((1.0, np.inf), "noise_multiplier must be .* got inf"),
    ),
)
def test_impossible_strengths_are_named(arguments, message):
    for make in (lambda *a: dp_sgd(*a, batch=2), dp_fedavg):
        with pytest.raises(ValueError, match=message):
            make(*arguments)


def test_other_impossible_things_are_named():
    for wrong in (-0.1, np.nan, np.inf):
        with pytest.raises(ValueError, match="pre_clip_std must be finite and >= 0"):
            dp_sgd(1.0, 1.0, wrong, batch=2)
        with pytest.raises(ValueError, match="^std must be finite and >= 0"):
            pre_clip_noise(wrong)
    with pytest.raises(ValueError, match="batch must be >= 1"):
        dp_sgd(1.0, 1.0, batch=0)
    with pytest.raises(ValueError, match="batch=4 examples, and this one is of 3"):
        send(dp_sgd(1.0, 1.0, batch=4), examples()[:3])


# --- what the guarantee survives -------------------------------------------------


@pytest.mark.parametrize(
    "arm",
    (
        "dp-sgd=1,2",
        "none+dp-sgd=1,2+top-k=0.1+quantise=4",
        "dp-sgd=1,2+adadefense",
        "dp-sgd=1,2+norm-clipping@update=1",
        "keylock+dp-sgd=1,2/known",
        "precode+dp-sgd=1,2/mean",
        "censor+dp-fedavg=1,2",
        "dp-fedavg@update=1,2",
    ),
)
def test_what_comes_after_may_do_what_it_likes_to_what_is_sent(arm):
    made = parse_arm(arm, sites_of("layers/0"), {})
    assert made.defence.mechanism.noise_multiplier == 2
    assert made.changes_uploads


@pytest.mark.parametrize(
    ("arm", "message"),
    (
        ("dp-sgd=1,2+censor", "defence 1 .* looks at more than what is released"),
        ("dp-sgd=1,2+example-clipping=1", "defence 1 .* looks at more"),
        ("dp-sgd=1,2+pre-clip-noise=1", "defence 1 .* looks at more"),
        ("dp-fedavg=1,2+censor", "put it in front where a whole client"),
        ("dp-sgd=1,2+selective-magnitude", "defence 1 .* hides entries"),
        ("obscured-inputs+dp-sgd=1,2", "defence 0 .* replaces inputs"),
        ("top-k=0.1+dp-sgd=1,2", "defence 0 .* before noise is added .* put it behind"),
        ("pre-clip-noise=1+dp-sgd=1,2", "an option of dp-sgd, pre_clip_std"),
        ("dp-sgd=1,2+dp-fedavg=1,2", "two defences of the chain have a guarantee"),
        ("dp-sgd@update=1,2", "only what changes each gradient"),
    ),
)
def test_what_breaks_the_guarantee_is_refused_by_name(arm, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_arm(arm, sites_of("layers/0"), {})
    assert repr(arm) in str(caught.value)


@pytest.mark.parametrize(
    "arm", ("pre-clip-noise=1", "example-clipping=1+gaussian-noise=1", "norm-clipping")
)
def test_parts_alone_have_no_epsilon(arm):
    mechanism = parse_arm(arm, sites_of("layers/0"), {}).defence.mechanism
    assert mechanism is None and epsilon(mechanism, 1, 1e-5) is None


# --- accounting ------------------------------------------------------------------


def mechanism(multiplier):
    return Mechanism(multiplier, "example", "gradients")


@pytest.mark.parametrize(
    ("multiplier", "releases", "delta"), ((1.0, 1, 1e-5), (3.0, 20, 1e-6))
)
def test_epsilon_is_that_of_two_accountants_that_compose(multiplier, releases, delta):
    dp_accounting = pytest.importorskip("dp_accounting", reason="needs kljax[dp]")
    from dp_accounting import pld, rdp

    event = dp_accounting.GaussianDpEvent(multiplier)
    relation = dp_accounting.NeighboringRelation.REPLACE_SPECIAL
    tight = pld.PLDAccountant(relation)
    loose = rdp.RdpAccountant(neighboring_relation=relation)
    for accountant in (tight, loose):
        accountant.compose(event, releases)
    found = epsilon(mechanism(multiplier), releases, delta)
    assert found == pytest.approx(tight.get_epsilon(delta), rel=1e-3)
    assert found < loose.get_epsilon(delta) < 1.2 * found


def test_the_epsilon_of_next_to_no_noise_is_a_bound_close_above_the_exact_one():
    pytest.importorskip("dp_accounting", reason="needs kljax[dp]")
    # Where the exact one can still be found by who looks for it.
    exact = epsilon(mechanism(1e-6), 1, 1e-5)
    assert exact < epsilon(mechanism(1e-6 * (1 - 1e-12)), 1, 1e-5) < exact * (1 + 1e-5)
    # The square of the bound over the noise leads: four times as much of half of it.
    small, half = (epsilon(mechanism(m), 1, 1e-5) for m in (2e-100, 1e-100))
    assert half == pytest.approx(4 * small, rel=1e-6)
    for multiplier in (1e-200, 1e-320):
        assert epsilon(mechanism(multiplier), 3, 1e-5) == np.inf


def test_epsilon_is_monotone():
    pytest.importorskip("dp_accounting", reason="needs kljax[dp]")

    def of(multiplier=1.0, releases=4, delta=1e-5):
        return epsilon(mechanism(multiplier), releases, delta)

    by_noise = [of(multiplier=m) for m in (0.01, 0.1, 1.0, 10.0, 1e3, 1e6)]
    by_releases = [of(releases=n) for n in (0, 1, 2, 10, 1000)]
    by_delta = [of(delta=d) for d in (1e-12, 1e-5, 0.1, 0.9)]
    for falling in (by_noise, by_releases[::-1], by_delta):
        assert np.all(np.diff(falling) <= 0) and falling[0] > falling[-1] >= 0
    assert by_releases[0] == 0


@pytest.mark.parametrize("delta", (0, 1, -0.1, 1.5, np.nan, None, True))
def test_a_delta_outside_of_0_and_1_is_refused(delta):
    with pytest.raises(ValueError, match="delta must be a number > 0 and < 1"):
        epsilon(mechanism(1.0), 1, delta)


def test_without_the_accountant_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ImportError, match=r"pip install 'kljax\[dp\]'"):
        epsilon(mechanism(1.0), 1, 1e-5)
    assert epsilon(None, 1, 1e-5) is None


def test_an_unknown_release_is_tried_before_it_is_believed():
    """One looks for a tensor of its own, one looks around, and one does neither."""

    def picky(rng, state, grads, context):
        return grads.model["nowhere"], state

    def curious(rng, state, grads, context):
        return jax.tree.map(lambda g: g + jnp.sum(context.inputs), grads), state

    def plain(rng, state, grads, context):
        return jax.tree.map(lambda g: 2 * g, grads), state

    private = dp_sgd(1.0, 1.0, batch=BATCH)
    for release in (picky, curious):
        with pytest.raises(ValueError, match="looks at more than what is released"):
            chain(private, defences.Defence(release=release))
    assert chain(private, defences.Defence(release=plain)).mechanism == mechanism(1.0)
