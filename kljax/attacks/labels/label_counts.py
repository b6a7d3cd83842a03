"""Counts: how often each label is in an upload, by what the network says on noise.

With means over the n examples and all steps, the sum over the features of the
classifier's weight gradient for class c is about ``(p_c - count_c / n) O``, where p is
the mean softmax and O the mean sum of the features. Neither depends much on the
images, so both are estimated on noise, and ``count_c = n p_c - n dW_c / O``.
"""

import jax
import jax.numpy as jnp

from kljax.attacks.labels.classifier import ClassifierGrads, classifier_grads
from kljax.attacks.labels.rules import labels_of_counts, or_unknown
from kljax.attacks.setting import Setting
from kljax.core.randomness import fixed_rng
from kljax.core.types import Array, Private, Public
from kljax.threat import View

SAMPLES = 3000  # fedavg_leakage's -label_samp
STATES = ("start", "end", "interpolated")
CHUNK = 100  # inputs at once, for memory


def counts(
    setting: Setting,
    view: View,
    *,
    samples: int = SAMPLES,
    at: str = "interpolated",
) -> Array:
    """Estimates how often each label is there, from the classifier's weights.

    Gates are left out of the network, for the attacker does not have them. Of a
    gradient there is one state only, whatever `at` says.

    Args:
      setting: of the attack; an update needs its protocol.
      view: the upload.
      samples: number of inputs from N(0, 1), rounded up to whole hundreds.
      at: state of the network that p and O are taken at: ``start``, ``end``, or
        ``interpolated`` linearly over the steps, and the counts averaged.

    Returns:
      labels [B] int32, sorted; see `kljax.attacks.labels.rules` for `UNKNOWN` ones.

    Raises:
      ValueError: for an unknown `at`.

    Reference: Geng et al., "Towards General Deep Leakage in Federated Learning" (arXiv
    2110.09074), for one state; Dimitrov et al., "Data Leakage in Federated Averaging"
    (TMLR 2022) for several steps; code eth-sri/fedavg_leakage, utils/flax_losses.py,
    restore_labels. There an update is divided by learning rate and steps, which is
    the mean gradient for plain gradient descent alone; see `classifier_grads`.
    """
    return _counts(setting, view, samples, at, by_bias=False)


def counts_bias(
    setting: Setting,
    view: View,
    *,
    samples: int = SAMPLES,
    at: str = "interpolated",
) -> Array:
    """Does the same from the classifier's bias, where O is 1 and need not be guessed.

    This is kljax's own form.

    Raises:
      ValueError: for a classifier without a bias, and an unknown `at`.
    """
    return _counts(setting, view, samples, at, by_bias=True)


def _counts(
    setting: Setting, view: View, samples: int, at: str, *, by_bias: bool
) -> Array:
    found, pull = _estimated(setting, view, samples, at, by_bias)
    examples = setting.threat.knowledge.examples
    # Without a pull the noise alone would speak.
    return or_unknown(
        labels_of_counts(found, examples), jnp.where(jnp.isfinite(found), pull, jnp.nan)
    )


def estimated_counts(setting: Setting, view: View, samples: int = SAMPLES) -> Array:
    """Estimates how often each label is there [Kc], not rounded.

    By the bias where the classifier has one, and by its weights otherwise; see
    `counts`.
    """
    params, _ = setting.task.shapes()
    by_bias = f"{setting.task.classifier}/bias" in params
    return _estimated(setting, view, samples, "interpolated", by_bias)[0]


def _estimated(
    setting: Setting, view: View, samples: int, at: str, by_bias: bool
) -> tuple[Array, Array]:
    """Estimates counts [Kc]; and the upload's pull on each class, see `_pull`."""
    if at not in STATES:
        raise ValueError(f"at must be one of {STATES}, got {at!r}")
    grads, examples = classifier_grads(setting, view), setting.threat.knowledge.examples
    softmax, size = _over_steps(setting, view, samples, at)
    pull = _pull(setting, grads, size, by_bias)
    return examples * (jnp.mean(softmax, axis=0) - pull), pull


def _pull(setting: Setting, grads: ClassifierGrads, size: Array, by_bias: bool):
    """Computes ``mean p_c - count_c / n`` [Kc], for feature sums [T] of T states."""
    if not by_bias:
        return jnp.sum(grads.kernel, axis=0) * jnp.mean(1 / size)
    if grads.bias is None:
        raise ValueError(
            "label rule 'counts_bias' reads the classifier's bias, and "
            f"{setting.task.classifier!r} has none: take 'counts'"
        )
    return grads.bias


def _over_steps(
    setting: Setting, view: View, samples: int, at: str
) -> tuple[Array, Array]:
    """Estimates softmax [T, Kc] and feature sums [T] at the states to average over."""
    first = _on_noise(setting, view, view.public, samples)
    if setting.protocol is None or at == "start":
        return jax.tree.map(lambda x: x[None], first)
    last = _on_noise(
        setting, view, jax.tree.map(jnp.add, view.public, view.grads), samples
    )
    if at == "end":
        return jax.tree.map(lambda x: x[None], last)
    steps = setting.protocol.steps
    share = jnp.arange(steps) / steps

    def between(a: Array, b: Array) -> Array:
        weights = share.reshape(-1, *(1,) * a.ndim)
        return (1 - weights) * a[None] + weights * b[None]

    return jax.tree.map(between, first, last)


def _on_noise(
    setting: Setting, view: View, public: Public, samples: int
) -> tuple[Array, Array]:
    """Averages softmax [Kc] and the sum of the features [] over inputs of N(0, 1)."""
    tap = f"{setting.task.classifier}:input"
    # The rules take no random key: everybody estimates on the same noise.
    rng = fixed_rng("label counts")

    def chunk(index: Array) -> tuple[Array, Array]:
        draw = jax.random.fold_in(rng, index)
        images = setting.task.inputs.draw(draw, CHUNK)
        out = setting.task.model.apply(
            public.model,
            view.stats,
            images,
            gates=setting.defence.gates(public.defence, Private()),
            taps=(tap,),
            train=setting.threat.knowledge.attacker_norm == "train",
            rngs=jax.random.fold_in(fixed_rng("label rule"), index),
        )
        features = out.taps[tap].reshape(CHUNK, -1)
        return (
            jnp.mean(jax.nn.softmax(out.logits), axis=0),
            jnp.mean(jnp.sum(features, axis=-1)),
        )

    found = jax.lax.map(chunk, jnp.arange(-(-samples // CHUNK)))
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), found)
