"""The main job: what a study draws, and what is measured beside its attacks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_studies import quick_compilation, scored, study, tiny

from kljax import data
from kljax.attacks import cosine, squared_l2
from kljax.core.types import Public
from kljax.defences.lock import key_lock
from kljax.parallel import Layout
from kljax.studies.builder import task
from kljax.studies.builder.drawn_client import Source, draw_rng
from kljax.studies.builder.victims import choose_victims
from kljax.studies.diagnosis import weakest_tensor
from kljax.studies.leakage import leak

# Attacks that answer with what they were shown, see outside_package.py.
REVEAL = "outside_package:reveal"
MEASURED_REVEAL = "outside_package:measured_reveal"
USERS = {"model": "outside_package:Tiny", "classifier": "head"}


def arms_of(result):
    return {arm.arm.name: arm for arm in result.arms}


def views(arm):
    return arm.attacked.reconstruction.info["view"]


# ---- What a study draws --------------------------------------------------------------


@pytest.fixture(scope="module")
def revealed():
    """One study of everything that is drawn and sent, seen through open doors."""
    arms = (
        "none",
        "keylock/known",
        "keylock/fixed_mean",
        "plaintext-gates-as-lock",
        "gaussian-noise=0.1",
        "magnitude-pruning=0.3+norm-clipping=0.5",
        "outside_package:half_gradient",
    )
    return study(attack=MEASURED_REVEAL, arms=arms, victims=4, labels="given")


def test_fresh_weights_are_each_victims_own(revealed):
    kernels = views(revealed.arms[0]).public.model["fc/kernel"]
    assert kernels.shape == (4, 64, 10)
    assert len(np.unique(kernels.reshape(4, -1)[:, 0])) == 4
    assert 0.49 < np.max(np.abs(kernels)) <= 0.5


@pytest.fixture(scope="module")
def shared():
    return study(attack=REVEAL, weights="shared", victims=3)


def test_shared_weights_are_the_same_for_all(shared):
    kernels = views(shared.arms[0]).public.model["fc/kernel"]
    np.testing.assert_array_equal(kernels, np.broadcast_to(kernels[0], kernels.shape))
    # The rest stays each victim's own.
    assert len(np.unique(shared.arms[0].attacked.reconstruction.info["draw"])) == 3


def test_arms_differ_in_nothing_but_the_defence(revealed):
    first = revealed.arms[0]
    for arm in revealed.arms[1:]:
        for name, kernel in views(first).public.model.items():
            np.testing.assert_array_equal(kernel, views(arm).public.model[name])
        for one, other in zip(
            first.attacked.reconstruction.info["draw"],
            arm.attacked.reconstruction.info["draw"],
            strict=True,
        ):
            assert one == other


def test_the_public_control_starts_from_the_locks_own_gates(revealed):
    arms = arms_of(revealed)
    lock = key_lock(("layers/0",), (64,), size=16)
    seen = views(arms["keylock/known"])
    gates = jax.vmap(lock.gates)(seen.lock_weights, seen.private_key)["layers/0"]
    public = views(arms["plaintext-gates-as-lock"]).public.defence["layers/0"]
    np.testing.assert_allclose(gates.scale, public.scale, atol=1e-6)
    np.testing.assert_allclose(gates.shift, public.shift, atol=1e-6)
    # And its gradient is uploaded, with which the lock's is not.
    assert jax.tree.leaves(views(arms["plaintext-gates-as-lock"]).grads.defence)
    assert not jax.tree.leaves(seen.grads.defence)
    live = np.sum(np.asarray(gates.scale) != 0, axis=1)
    assert 0 < live.min() and live.max() < 64
    for name in ("keylock/known", "plaintext-gates-as-lock"):
        np.testing.assert_array_equal(arms[name].attacked.live_channels, live)
    np.testing.assert_array_equal(arms["none"].attacked.live_channels, 0)


def test_an_attack_sees_what_its_threat_model_grants(revealed):
    arms = arms_of(revealed)
    known, mean = views(arms["keylock/known"]), views(arms["keylock/fixed_mean"])
    assert known.private_key.shape == (4, 16)
    assert mean.private_key is None
    assert mean.lock_weights is not None and mean.lock_grads is None
    assert views(arms["none"]).lock_weights is None
    np.testing.assert_array_equal(
        np.argmax(mean.targets[:, 0], axis=-1), revealed.victims.labels[:, 0]
    )
    assert arms["keylock/known"].threat.knowledge.labels == "known"


def test_a_victim_does_not_depend_on_how_many_there_are(revealed):
    fewer = study(attack=MEASURED_REVEAL, victims=2, labels="given")
    np.testing.assert_array_equal(fewer.victims.indices, revealed.victims.indices[:2])
    one, other = (views(r.arms[0]) for r in (fewer, revealed))
    for few, many in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(few, many[:2], atol=1e-6)


def test_another_seed_is_another_study():
    digits = data.load("digits", shape=(8, 8, 3))
    chosen = [
        choose_victims(tiny(victims=4, seed=seed), digits)[0].indices[:, 0]
        for seed in (0, 1)
    ]
    assert set(chosen[0]) != set(chosen[1])
    # The same six victims under both seeds: an index alone does not say everything.
    studies = [
        study(attack=REVEAL, data="outside_package:ramps", victims=6, seed=seed)
        for seed in (0, 1)
    ]
    order = [np.argsort(s.victims.indices[:, 0]) for s in studies]
    assert all(sorted(s.victims.indices[:, 0]) == list(range(6)) for s in studies)
    kernels, draws = [], []
    for found, rows in zip(studies, order, strict=True):
        arm = found.arms[0]
        kernels.append(views(arm).public.model["fc/kernel"][rows, 0, 0])
        draws.append(np.ravel(arm.attacked.reconstruction.info["draw"][rows]))
    assert len(np.unique(kernels)) == 12
    assert len(np.unique(draws)) == np.size(draws)


def source_of(seed, index):
    rng_data = jax.random.key_data(jax.random.key(seed))
    return Source(index, rng_data)


def test_what_is_drawn_for_one_purpose_says_nothing_of_another():
    drawn = {
        np.asarray(
            jax.random.key_data(draw_rng(source_of(seed, index), purpose))
        ).tobytes()
        for seed in (0, 1)
        for index in (0, 1, 2)
        for purpose in ("weights", "defence", "step", "attack")
    }
    assert len(drawn) == 24


def test_victims_are_examples_of_the_dataset(revealed):
    digits = data.load("digits", shape=(8, 8, 3))
    indices = revealed.victims.indices[:, 0]
    images, labels = digits.fetch(indices)
    np.testing.assert_array_equal(revealed.victims.inputs[:, 0], images)
    np.testing.assert_array_equal(revealed.victims.labels[:, 0], labels)
    np.testing.assert_array_equal(revealed.victims.groups, indices)


def test_initial_weights_are_an_option():
    # Sites in chain order: the second lock layer is fed by the first's 64 gates.
    own = study(
        attack=REVEAL,
        init=0,
        lock_init=0.75,
        sites=("layers/0", "fc"),
        chained=True,
        arms=("keylock/known",),
    )
    seen = views(own.arms[0])
    # Flax's default for a dense layer: no bias, and a kernel of small variance.
    np.testing.assert_array_equal(seen.public.model["layers/0/bias"], 0)
    assert np.std(seen.public.model["layers/0/kernel"]) == pytest.approx(
        192**-0.5, rel=0.1
    )
    first, second = seen.lock_weights
    assert first["scale"]["kernel"].shape == (3, 16, 64)
    assert second["shift"]["kernel"].shape == (3, 64, 10)
    assert 0.74 < np.max(np.abs(second["scale"]["kernel"])) <= 0.75


@pytest.mark.slow
def test_every_arm_of_lenet_is_the_same_network():
    # The norm that a lock brings along has no weights and changes nobody else's.
    arms = ("none", "bn-control")
    lenet = study(model="lenet", attack=REVEAL, arms=arms, victims=2)
    none, control = (views(arm) for arm in lenet.arms)
    assert none.public.model.keys() == control.public.model.keys()
    for name, weight in none.public.model.items():
        np.testing.assert_array_equal(weight, control.public.model[name])
    assert not none.stats and control.stats.keys() == {"norm1/mean", "norm1/var"}
    # The norm is at work: without it the gradient is another one.
    kernels = [view.grads.model["conv1/kernel"] for view in (none, control)]
    assert np.max(np.abs(kernels[0] - kernels[1])) > 1e-4


@pytest.mark.parametrize(
    ("model", "sites", "expected"),
    [
        ("lenet", (), {"norm1": 12}),
        ("lenet", ("all",), {"norm1": 12, "norm2": 12, "norm3": 12}),
        ("lenet", ("norm3", "norm1"), {"norm3": 12, "norm1": 12}),
        ("resnet20", ("single",), {"norm1": 16}),
    ],
)
def test_a_lock_sits_where_it_is_told(
    model, sites, expected, monkeypatch, nothing_runs
):
    seen = []

    def recorded(paths, widths, **options):
        seen.append(list(zip(paths, widths, strict=True)))
        return key_lock(paths, widths, **options)

    monkeypatch.setattr(task, "key_lock", recorded)
    with pytest.raises(AssertionError, match="the study has begun"):
        leak(tiny(model=model, sites=sites, arms=("bn-control", "keylock/known")))
    assert seen == [list(expected.items())]


def test_a_users_own_everything():
    own = study(
        **USERS,
        sites=("body",),
        data="outside_package:ramps",
        attack=REVEAL,
        optimiser=None,
        loss="kljax.models.losses:squared_error",
        arms=("keylock+outside_package:half_gradient/known",),
        victims=3,
    )
    lock = views(own.arms[0])
    assert lock.grads.model["body/kernel"].shape == (3, 192, 5)
    assert lock.lock_weights[0]["scale"]["kernel"].shape == (3, 16, 5)


def test_studies_report_their_progress():
    events, waiting = [], []
    leak_arms = ("none", "outside_package:half_gradient")
    with quick_compilation():
        result = leak(
            tiny(attack=REVEAL, arms=leak_arms, victims=5, layout=Layout("chunked", 2)),
            on_arm=events.append,
            on_compile=waiting.append,
            on_block=events.append,
        )
    assert waiting == [[*leak_arms], [leak_arms[1]], []]
    assert events == ["none", 2, 4, 5, "outside_package:half_gradient", 2, 4, 5]
    # Weights are drawn alike in both arms, and compiled once, by whichever is first.
    assert sum(arm.timing.compilations for arm in result.arms) == 5


# ---- Diagnostics ---------------------------------------------------------------------


UNMATCHED = ("gaussian-noise=0.1", "outside_package:half_gradient")


def squared_norm(grads):
    """Sums the squares of each victim's gradient: [N]."""
    return sum(
        np.sum(np.square(np.asarray(leaf, np.float64)), axis=tuple(range(1, leaf.ndim)))
        for leaf in jax.tree.leaves(grads)
    )


def test_the_truth_matches_what_the_attacker_can_simulate(revealed):
    # Also under pruning and clipping, which it repeats, and behind a lock: the truth
    # has the right private key, whatever the strategy.
    arms = arms_of(revealed)
    for name in arms.keys() - UNMATCHED:
        arm = arms[name]
        whole = squared_norm(views(arm).grads)
        np.testing.assert_array_less(arm.attacked.loss_at_truth, 1e-10 * whole)


def test_noise_keeps_the_truth_from_matching(revealed):
    arm = arms_of(revealed)["gaussian-noise=0.1"]
    entries = sum(x[0].size for x in jax.tree.leaves(views(arm).grads))
    np.testing.assert_allclose(
        arm.attacked.loss_at_truth, 0.1**2 * entries, rtol=5 * (2 / entries) ** 0.5
    )


def test_what_is_not_simulated_keeps_the_truth_from_matching(revealed):
    arm = arms_of(revealed)["outside_package:half_gradient"]
    # |g - g/2|^2 where g/2 was sent.
    whole = squared_norm(views(arm).grads)
    assert np.all(whole < squared_norm(views(revealed.arms[0]).grads))
    np.testing.assert_allclose(arm.attacked.loss_at_truth, whole, rtol=1e-5)


def test_the_scale_of_the_loss_is_that_of_the_faintest_tensor(revealed):
    for arm in revealed.arms:
        leaves = jax.tree.leaves(views(arm).grads)
        powers = np.stack([squared_norm(leaf) for leaf in leaves])
        counts = powers > 1e-12 * powers.sum(axis=0)
        faintest = np.min(np.where(counts, powers, np.inf), axis=0)
        np.testing.assert_allclose(arm.attacked.loss_scale, faintest, rtol=1e-5)


def test_the_faintest_tensor_by_hand():
    observed = {
        "strong": jnp.array([30.0, -40.0]),
        "faint": jnp.array([[0.3], [0.4]]),
        "rounding": jnp.array([1e-6]),
        "nothing": jnp.zeros(3),
    }
    assert weakest_tensor(squared_l2(), observed) == pytest.approx(0.25, rel=1e-6)
    # Without it, the strong one is the faintest that counts.
    alone = observed | {"faint": jnp.zeros((2, 1))}
    assert weakest_tensor(squared_l2(), alone) == pytest.approx(2500, rel=1e-6)
    # 1 - cos of the angle that missing it makes: 0.25 / (2 * 2500) to first order.
    two = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    assert weakest_tensor(cosine(), two) == pytest.approx(1 - 4 / 5, rel=1e-5)
    # Decay moves "faint" by .5 and the images move it by nothing: it does not count.
    lost = {name: 0.1 * leaf for name, leaf in observed.items()}
    lost["faint"] = jnp.zeros_like(observed["faint"])
    assert weakest_tensor(squared_l2(), observed, lost) == pytest.approx(25, rel=1e-5)
    public = Public({"w": jnp.array([2.0])}, {"gate": jnp.array([1.0])})
    assert weakest_tensor(squared_l2(), public) == pytest.approx(1)


def test_of_nothing_nothing_can_be_missed():
    """A gradient of zeros, or an update that no image moves, has scale 0."""
    observed = {"w": jnp.array([2.0])}
    nothing = jax.tree.map(jnp.zeros_like, observed)
    for objective in (squared_l2(), cosine()):
        assert weakest_tensor(objective, nothing) == 0
        assert weakest_tensor(objective, observed, nothing) == 0


def test_what_rounding_hides_is_worth_nothing_and_not_less():
    """A distance may round to below 0 where the faintest tensor is hardly there."""

    def rounded(simulated, observed):
        return squared_l2()(simulated, observed) - 1e-9

    observed = {"w": jnp.array([1.0]), "faint": jnp.array([1e-5])}
    assert rounded(observed | {"faint": jnp.zeros(1)}, observed) < 0
    assert weakest_tensor(rounded, observed) == 0


def test_attacks_without_an_objective_have_no_loss_to_compare(shared):
    assert np.all(np.isnan(shared.arms[0].attacked.loss_at_truth))
    row = scored(shared)[-1]
    assert row["matching_loss_at_truth"] is row["matching_loss_floor"] is None
    assert row["outcome"] == "unsolved"  # a grey image, and nothing that it matched
