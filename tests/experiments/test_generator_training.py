"""The training of a generator: public data alone, and resumed where it was cut off."""

import jax
import numpy as np
import pytest
import train_generator
from training import resumable

from kljax.models.decoders import Account

ACCOUNT = Account(
    dataset="toy",
    split=None,
    examples=9,
    shape=(2, 2, 1),
    num_classes=3,
    latents=2,
    widths=(4,),
    seed=3,
    steps=6,
)


def test_what_is_looked_at_is_public():
    public, ours, held_out = resumable.split(1797, seed=0)
    assert public.sum() == 898 and len(ours) == 809 and len(held_out) == 89
    both = np.concatenate([ours, held_out])
    assert len(np.unique(both)) == 898 and public[both].all()
    other, *_ = resumable.split(1797, seed=1)
    assert not np.array_equal(public, other)


@pytest.mark.slow
def test_a_run_that_was_cut_off_ends_where_it_would_have_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(resumable, "SEGMENT", 2)
    images = np.random.default_rng(0).random((9, 2, 2, 1), np.float32)
    data = ACCOUNT, images, np.arange(9) % 3
    whole = train_generator.train(*data, tmp_path / "whole")
    cut = train_generator.train(*data, tmp_path / "cut", until=2)
    gone_on = train_generator.train(*data, tmp_path / "cut")
    jax.tree.map(np.testing.assert_array_equal, whole, gone_on)
    with pytest.raises(AssertionError):
        jax.tree.map(np.testing.assert_array_equal, whole, cut)


def test_the_bound_by_hand():
    """In NumPy, with the same noise: cross-entropy plus divergence, in nats."""
    generator = np.random.default_rng(1)
    images = generator.random((3, 2, 2, 1))
    targets = np.eye(3)[[2, 0, 0]]
    init, bound = train_generator.make_bound(ACCOUNT)
    shapes = jax.eval_shape(init, jax.random.key(0))
    params = jax.tree.map(lambda s: generator.standard_normal(s.shape), shapes)
    rng = jax.random.key(9)

    def dense(layers, *parts):
        x = np.concatenate([part.reshape(3, -1) for part in parts], axis=1)
        x = x @ layers["layers/0/kernel"] + layers["layers/0/bias"]
        x = x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        return x @ layers["fc/kernel"] + layers["fc/bias"]

    mean, log_variance = np.split(dense(params["encoder"], images, targets), 2, 1)
    noise = np.asarray(jax.random.normal(rng, mean.shape))
    latents = mean + np.exp(log_variance / 2) * noise
    made = 1 / (1 + np.exp(-dense(params["decoder"], latents, targets)))
    pixels = images.reshape(3, -1)
    entropy = -pixels * np.log(made) - (1 - pixels) * np.log(1 - made)
    divergence = (np.exp(log_variance) + mean**2 - 1 - log_variance) / 2
    wanted = np.mean(entropy.sum(1) + divergence.sum(1))
    found = bound(params, rng, images, targets)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
