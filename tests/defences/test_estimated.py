"""An attacker who reads off the upload what was done to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kljax.core.types import Public
from kljax.defences import magnitude_pruning, norm_clipping
from kljax.defences.arms import parse_arm, unplaced_sites
from kljax.defences.estimated import estimated_release, noise_scale
from kljax.studies.builder.attacker import assume_defence
from kljax.studies.reports.attackers import attacker_of

FEATURES, CLASSES, STD = 400, 10, 0.05


def gradient(seed=0):
    """Gives a gradient as cross entropy has it: the classifier's rows sum to 0."""
    generator = np.random.default_rng(seed)
    slopes = generator.dirichlet(np.ones(CLASSES)) - np.eye(CLASSES)[2]
    fed = generator.normal(size=FEATURES)
    model = {
        "conv/kernel": generator.normal(size=(3, 3, 1, 4)),
        "fc/kernel": np.outer(fed, slopes),
        "fc/bias": slopes,
    }
    return Public({name: jnp.float32(leaf) for name, leaf in model.items()})


def length(grads):
    return np.sqrt(sum(np.nansum(np.float64(x) ** 2) for x in jax.tree.leaves(grads)))


def noisy(grads, std=STD):
    generator = np.random.default_rng(9)
    return jax.tree.map(
        lambda x: x + jnp.float32(std * generator.normal(size=x.shape)), grads
    )


ESTIMATED = jax.jit(
    lambda grads, sent: estimated_release("fc")(grads, sent, None, None)
)


def close(found, wanted, rtol=1e-5):
    for name, leaf in wanted.model.items():
        np.testing.assert_allclose(found.model[name], leaf, rtol=rtol, atol=1e-6)


def test_nothing_is_done_to_a_gradient_that_nothing_was_done_to():
    close(ESTIMATED(gradient(), gradient()), gradient())


def test_a_gradient_is_clipped_to_the_norm_that_is_seen():
    sent = jax.tree.map(lambda x: 0.2 * x, gradient())
    assert length(sent) < length(gradient())
    close(ESTIMATED(gradient(), sent), sent)  # as clipping at that bound does
    close(norm_clipping(length(sent)).simulate(gradient(), sent, None, None), sent)
    short = jax.tree.map(lambda x: x / 10, sent)  # stays as it is
    close(ESTIMATED(short, sent), short)


def test_what_is_left_out_is_left_out():
    """Pruned entries of all tensors; features of the classifier, as by Soteria."""
    pruned = jax.tree.map(lambda x: jnp.where(jnp.abs(x) < 0.2, 0.0, x), gradient())
    close(ESTIMATED(gradient(), pruned), pruned)
    knows = magnitude_pruning(0.2).simulate(gradient(), pruned, None, None)
    close(ESTIMATED(gradient(), pruned), knows)
    without = gradient()
    without.model["fc/kernel"] = without.model["fc/kernel"].at[::3].set(0.0)
    close(ESTIMATED(gradient(), without), without)
    other = ESTIMATED(gradient(1), without).model["fc/kernel"]
    assert not np.any(other[::3]) and np.all(other[1::3] != 0)


def test_noise_is_measured_in_rows_that_would_sum_to_zero():
    found = float(noise_scale(noisy(gradient()), "fc"))
    # By loops, and against what was added.
    kernel = np.float64(noisy(gradient()).model["fc/kernel"])
    sums = [sum(row) ** 2 for row in kernel]
    assert found == pytest.approx((sum(sums) / len(sums) / CLASSES) ** 0.5, rel=1e-4)
    assert found == pytest.approx(STD, rel=4 / np.sqrt(2 * FEATURES))
    assert float(noise_scale(gradient(), "fc")) < 1e-6
    assert float(noise_scale(noisy(gradient()), "other")) == 0
    zeros = noisy(gradient())
    zeros.model["fc/kernel"] = zeros.model["fc/kernel"].at[0, 0].set(0.0)
    assert float(noise_scale(zeros, "fc")) == 0


def test_the_bound_is_that_of_what_is_under_the_noise():
    clipped = jax.tree.map(lambda x: 0.2 * x, gradient())
    sent = noisy(clipped)
    found, plain = (
        length(estimated_release("fc", zero_sum=own)(gradient(), sent, None, None))
        for own in (True, False)
    )
    assert abs(found - length(clipped)) < abs(plain - length(clipped)) / 3
    assert plain == pytest.approx(length(sent), rel=1e-5)
    # Nothing but noise says nothing of a bound.
    alone = noisy(jax.tree.map(jnp.zeros_like, gradient()), 1.0)
    alone.model["fc/kernel"] = 10 * alone.model["fc/kernel"]
    close(ESTIMATED(gradient(), alone), gradient())


def test_hidden_entries_have_no_say():
    sent = jax.tree.map(lambda x: 0.2 * x, gradient())
    hidden = jax.tree.map(lambda x: x.at[..., 0].set(jnp.nan), sent)
    found = ESTIMATED(gradient(), hidden)
    for name, leaf in sent.model.items():
        np.testing.assert_allclose(
            found.model[name][..., 1:], leaf[..., 1:], rtol=1e-5, atol=1e-6
        )
    # Of a local step nobody sees anything.
    unseen = estimated_release("fc")(gradient(), None, None, None)
    close(unseen, gradient())


def test_an_arm_says_that_its_attacker_estimates():
    arm = parse_arm("norm-clipping=4/estimate", unplaced_sites(), {})
    assert arm.release_strategy == "estimate"
    assert attacker_of(arm.name, "matching") == "adaptive"
    sites = unplaced_sites()._replace(classifier="fc")
    assumed = assume_defence(arm, arm.defence, sites, 1, gradient().model)
    sent = jax.tree.map(lambda x: 0.2 * x, gradient())
    close(assumed.simulate(gradient(), sent, None, None), sent)  # not to 4
    assert not assumed.leaves_alone
    with pytest.raises(ValueError, match="changes nothing that is sent.*'/estimate'"):
        parse_arm("none/estimate", unplaced_sites(), {})
