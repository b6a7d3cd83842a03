"""Rules: the labels of an upload, in closed form off the classifier's gradient.

Each is ``(Setting, View) -> labels [B] int32``, of fixed shape, and says nothing about
the order of the examples. Under cross-entropy averaged over B examples with one-hot
targets y, softmax p and features f, the classifier's gradients are, for class c,

    bias_c = mean_i (p_ic - y_ic)        kernel_c = mean_i (p_ic - y_ic) f_i

so a class that is there pulls its own entries down. The classifier sits above every
lock: no rule notices one. Of an update the rules see the mean gradient of its steps,
see `kljax.attacks.labels.classifier_grads`. Where what a rule reads is zero throughout,
not finite, or hidden in part, every label is `kljax.attacks.UNKNOWN`.
"""

import jax
import jax.numpy as jnp

from kljax.attacks.labels.classifier import ClassifierGrads, classifier_grads
from kljax.attacks.setting import Setting
from kljax.core.targets import UNKNOWN
from kljax.core.types import Array
from kljax.threat import View


def idlg(setting: Setting, view: View) -> Array:
    """Reads the label of one example off the sign of the classifier's gradient.

    Under cross-entropy with a one-hot target only the true class's bias gradient is
    negative. Without a bias the weight gradient's column sums serve; that needs
    features that are nowhere negative. An update goes downhill, so there it is the
    only class whose bias has grown, whatever the number of steps on that example;
    momentum from before can drown that.

    Where what it reads is hidden in part, the visible entries of weights and bias are
    read by sign: the class is told if it is the only one seen to be pulled down, or
    the only one not seen to be pushed up. That needs features that are nowhere
    negative, and is kljax's own.

    Returns:
      labels [1] int32.

    Reference: iDLG (Zhao, Mopuri, Bilen 2020, arXiv 2001.02610), section 3.
    """
    grads = classifier_grads(setting, view)
    score = jnp.sum(grads.kernel, axis=0) if grads.bias is None else grads.bias
    label = or_unknown(jnp.argmin(score)[None].astype(jnp.int32), score)
    if view.visible is None:
        return label
    return jnp.where(jnp.any(jnp.isnan(score)), _by_visible_signs(grads), label)


def _by_visible_signs(grads: ClassifierGrads) -> Array:
    columns = grads.kernel
    if grads.bias is not None:
        columns = jnp.concatenate([columns, grads.bias[None]])
    # What is hidden is NaN, which is neither.
    down, up = jnp.any(columns < 0, axis=0), jnp.any(columns > 0, axis=0)
    seen = jnp.where(jnp.sum(down & ~up) == 1, jnp.argmax(down & ~up), UNKNOWN)
    left = jnp.where(jnp.sum(~up) == 1, jnp.argmin(up), UNKNOWN)
    mixed = jnp.any(down & up)  # features of both signs
    label = jnp.where(jnp.any(down), seen, left)
    return jnp.where(mixed, UNKNOWN, label)[None].astype(jnp.int32)


def opposite_sign(setting: Setting, view: View) -> Array:
    """Reads the label of one example off the column that points away from all others.

    The weight gradient's columns are multiples of the features, and the true class's
    alone is a negative one: its inner product with every other column is negative,
    whatever signs the features have. Columns of zeros (probabilities too small for
    float32) say nothing. Where no single column differs, as where all but two are
    zero, the column sums are read, which needs features that are nowhere negative.

    Returns:
      labels [1] int32.

    Reference: iDLG (Zhao, Mopuri, Bilen 2020, arXiv 2001.02610), section 3, the
    criterion by products of gradients; its code reads sums.
    """
    kernel = classifier_grads(setting, view).kernel
    unlike = columns_unlike_all_others(kernel)
    sums = jnp.sum(kernel, axis=0)
    label = jnp.where(jnp.sum(unlike) == 1, jnp.argmax(unlike), jnp.argmin(sums))
    return or_unknown(label[None].astype(jnp.int32), kernel)


def columns_unlike_all_others(kernel: Array) -> Array:
    """Finds the columns [Kc] bool that point away from all other columns not zero.

    Args:
      kernel: [F, Kc].
    """
    sizes = jnp.max(jnp.abs(kernel), axis=0)
    there = sizes > 0
    # Lengths do not matter, and products of faint columns would vanish.
    columns = kernel / jnp.where(there, sizes, 1.0)[None]
    apart = columns.T @ columns < 0
    alone = ~there[None] | jnp.eye(len(there), dtype=bool)  # nothing to differ from
    return there & jnp.all(apart | alone, axis=1) & (jnp.sum(there) > 1)


def columns_of_one_sign(kernel: Array) -> Array:
    """Tells [] whether no column [F, Kc] has entries of both signs."""
    return jnp.all(jnp.all(kernel >= 0, axis=0) | jnp.all(kernel <= 0, axis=0))


def ggl(setting: Setting, view: View) -> Array:
    """Takes the B classes whose weight gradients have the lowest sums.

    For features that are nowhere negative, and labels that differ from each other.
    More than Kc examples go through the same ranks again.

    Reference: GGL (Li et al., CVPR 2022), official code; GIFD uses the same.
    """
    return _lowest(setting, jnp.sum(classifier_grads(setting, view).kernel, axis=0))


def yin(setting: Setting, view: View) -> Array:
    """Takes the B classes whose weight gradients have the lowest single entries.

    For features that are nowhere negative, and labels that differ from each other.
    More than Kc examples go through the same ranks again.

    Reference: GradInversion (Yin et al., CVPR 2021), section 3.2.
    """
    return _lowest(setting, jnp.min(classifier_grads(setting, view).kernel, axis=0))


def bias_corrected(setting: Setting, view: View) -> Array:
    """Takes classes with a negative bias gradient, then whatever is still lowest.

    Each label taken gives its class back what one example pulls on average: the sum of
    the negative entries over B. So a class can be taken more than once.

    Raises:
      ValueError: for a classifier without a bias.

    Reference: breaching (Geiping), attacks/base_attack.py, label_strategy
    bias-corrected, its default. Differs where noise makes more than B classes
    negative: there breaching returns them all, here the B lowest are taken.
    """
    bias = _bias("bias_corrected", setting, view)
    negative = bias < 0
    impact = jnp.sum(jnp.where(negative, bias, 0.0)) / _examples(setting)
    return or_unknown(_greedy(bias, impact, negative, _examples(setting)), bias)


def wainakh_simple(setting: Setting, view: View) -> Array:
    """Does the same on the sums of the weight gradients, with another impact.

    One example pulls ``sum of the negative entries * (1 + 1/Kc) / B``. For features
    that are nowhere negative.

    Reference: Wainakh et al., "User-Level Label Leakage from Gradients in Federated
    Learning" (PoPETs 2022), algorithm 1. breaching's form of it gives the impact back
    to a class that is not the one taken, which is not followed.
    """
    score = jnp.sum(classifier_grads(setting, view).kernel, axis=0)
    negative = score < 0
    impact = jnp.sum(jnp.where(negative, score, 0.0)) / _examples(setting)
    impact *= 1 + 1 / setting.task.num_classes
    return or_unknown(_greedy(score, impact, negative, _examples(setting)), score)


def labels_of_counts(counts: Array, examples: int) -> Array:
    """Turns estimated counts [Kc] into labels [B], sorted.

    The whole numbers >= 0 that sum to B and are nearest to `counts` in the square.
    Where those are >= 0 and sum to B, that is their floor, and one more for the
    largest remainders.
    """
    none_waits = jnp.zeros(counts.shape, bool)
    return jnp.sort(_greedy(-counts, jnp.array(-1.0), none_waits, examples))


def or_unknown(labels: Array, score: Array) -> Array:
    """Gives labels [B], or `UNKNOWN` where the score they were read off says nothing.

    Args:
      labels: [B].
      score: zero throughout, or not finite, it says nothing.
    """
    says = jnp.all(jnp.isfinite(score)) & jnp.any(score != 0)
    return jnp.where(says, labels, UNKNOWN)


def _greedy(score: Array, impact: Array, waiting: Array, examples: int) -> Array:
    """Takes B times the class of the lowest score, which then gets `impact` back.

    Args:
      score: [Kc].
      impact: [] negative; subtracted from the score of a class that is taken.
      waiting: [Kc] bool; these are taken before all others, once each.
      examples: B.
    """

    def take(i, carry):
        score, waiting, labels = carry
        first = jnp.argmin(jnp.where(waiting, score, jnp.inf))
        chosen = jnp.where(jnp.any(waiting), first, jnp.argmin(score))
        return (
            score.at[chosen].add(-impact),
            waiting.at[chosen].set(False),
            labels.at[i].set(chosen.astype(jnp.int32)),
        )

    labels = jnp.zeros(examples, jnp.int32)
    return jax.lax.fori_loop(0, examples, take, (score, waiting, labels))[2]


def _lowest(setting: Setting, score: Array) -> Array:
    ranks = jnp.arange(_examples(setting)) % setting.task.num_classes
    return or_unknown(jnp.argsort(score)[ranks].astype(jnp.int32), score)


def _bias(rule: str, setting: Setting, view: View) -> Array:
    bias = classifier_grads(setting, view).bias
    if bias is None:
        raise ValueError(
            f"label rule {rule!r} reads the classifier's bias, and "
            f"{setting.task.classifier!r} has none: take 'wainakh_simple'"
        )
    return bias


def _examples(setting: Setting) -> int:
    return setting.threat.knowledge.examples
