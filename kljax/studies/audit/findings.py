"""What follows from an upload without a search, and which facts it contradicts.

Under cross-entropy the gradient of the classifier's bias is the mean of ``p - y``, with
probabilities p and one-hot labels y. So its entries sum to 0, their magnitudes to 2 at
most, and an entry is negative only where an example is of that class. The gradient of
its weights is a sum of one product per example, so that its rank is at most their
number. Of one example the two give what the classifier was fed, and that must give the
same ``p - y`` again through the classifier's weights. Whatever breaks one of these is
no mean gradient of so many examples at these weights.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljax.attacks.closed_form import dense_input
from kljax.attacks.labels.catalogue import find_rule, rule_holds, settle_rule
from kljax.attacks.labels.classifier import classifier_grads
from kljax.attacks.setting import Setting
from kljax.models.losses import cross_entropy
from kljax.studies.label_search import PROBE, Choice
from kljax.threat import View

ROUNDING = 1e-4  # of float32 sums over a layer; relative, our choice
SHARE = 1e-2  # of the classifier's signal that one example may leave unexplained


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that follows.

    Attributes:
      about: what it is about: ``labels``, ``rank``, ...
      says: a sentence.
      contradicts: which facts cannot be so; empty where nothing is contradicted.
    """

    about: str
    says: str
    contradicts: str = ""


class Read(NamedTuple):
    """The classifier's part of an upload, as NumPy arrays of float64.

    Attributes:
      kernel: [F, Kc], bias: [Kc] or None, of the mean gradient.
      rounding: relative rounding of the type in which the upload was written.
    """

    kernel: np.ndarray
    bias: np.ndarray | None
    rounding: float


def find_without_search(setting: Setting, view: View, eps: float) -> list[Finding]:
    """Reads off an upload whatever needs no search.

    Args:
      setting: of the attacker.
      view: what it sees.
      eps: relative rounding of the type in which the upload was written.

    Raises:
      ValueError: for an upload of zeros, which says nothing.
    """
    grads = classifier_grads(setting, view)
    bias = None if grads.bias is None else np.asarray(grads.bias, np.float64)
    read = Read(np.asarray(grads.kernel, np.float64), bias, max(ROUNDING, 4 * eps))
    found = [*_zeros(view)]
    if not np.any(read.kernel):
        found.append(Finding("classifier", "Its gradient is 0: no label is told."))
        return found
    if setting.task.loss is cross_entropy and read.bias is not None:
        found += _signs(setting, read.bias, read.rounding)
    found.append(_rank(setting, read))
    labels = _labels(setting, view)
    found.append(labels)
    if _one_step_of_one(setting) and read.bias is not None:
        found.append(_features(setting, view, read.kernel, read.bias, read.rounding))
    return found


def find_tried(choice: Choice, attack: str, setting: Setting) -> Finding:
    """Says in words which labels were tried, and which an attack's loss chose."""
    protocol = setting.protocol
    examples = setting.threat.knowledge.examples
    batch = examples if protocol is None else protocol.batch
    read = " | ".join(
        " ".join(map(str, choice.labels[at : at + batch].tolist()))
        for at in range(0, len(choice.labels), batch)
    )
    return Finding(
        "labels tried",
        f"{choice.tried} of {choice.there} label sequences were tried by {attack}, "
        f"{PROBE} evaluations each at most: {read} (a step between bars) has the "
        f"least own loss, {choice.loss:.2g}, and the next {choice.next:.2g}.",
    )


def _zeros(view: View) -> list[Finding]:
    tensors = {name: np.asarray(x) for name, x in view.grads.model.items()}
    zero = [name for name, x in tensors.items() if not np.any(x)]
    if len(zero) == len(tensors):
        raise ValueError("the upload is 0 in every tensor, and says nothing")
    zeros = sum(int(np.sum(x == 0)) for x in tensors.values())
    share = zeros / sum(x.size for x in tensors.values())
    says = f"{share:.1%} of the entries are 0"
    says += f", and {', '.join(zero)} throughout." if zero else "."
    return [Finding("zeros", says)] if share > 0 else []


def _signs(setting: Setting, bias: np.ndarray, rounding: float) -> list[Finding]:
    knows = setting.threat.knowledge
    size = np.sum(np.abs(bias))
    below = int(np.sum(bias < -rounding * size))
    above = int(np.sum(bias > rounding * size))
    found = []
    if below > knows.examples:
        reading = "no gradient of so few examples is so"
        if above <= knows.examples:
            other = "update" if knows.upload == "gradient" else "gradient"
            reading += f": the signs are those of the other kind, upload={other!r}"
        found.append(
            Finding(
                "signs",
                f"{below} entries of the classifier's bias are negative and {above} "
                f"positive, and {knows.examples} example(s) make at most "
                f"{knows.examples} negative: {reading}.",
                "upload, examples or loss",
            )
        )
    total = abs(float(np.sum(bias))) / size
    if total > rounding:
        found.append(
            Finding(
                "sum",
                f"The entries of the classifier's bias sum to {total:.1e} of their "
                "magnitudes, and to 0 under cross-entropy: noise was added, entries "
                "were left out, or another loss was trained by.",
                "defence or loss",
            )
        )
    if size > 2 * (1 + rounding):
        found.append(
            Finding(
                "size",
                f"Magnitudes of the classifier's bias sum to {size:.3g}, and to 2 at "
                "most in a mean gradient: a sum over examples, a change of weights, or "
                "another scale.",
                "upload, or the mean over examples",
            )
        )
    return found or [
        Finding(
            "signs",
            "Signs, sum and size of the classifier's bias are those of a mean gradient "
            "of cross-entropy.",
        )
    ]


def _rank(setting: Setting, read: Read) -> Finding:
    knows = setting.threat.knowledge
    values = np.linalg.svd(read.kernel, compute_uv=False)
    rank = int(np.sum(values > read.rounding * values[0]))
    protocol = setting.protocol
    most = knows.examples if protocol is None else protocol.steps * protocol.batch
    says = f"The gradient of the classifier's weights has rank {rank}"
    if rank > most:
        return Finding(
            "rank",
            f"{says}, and {most} example(s) make at most {most}: it is of more "
            "examples, of several steps, or noise was added.",
            "examples, upload or defence",
        )
    return Finding("rank", f"{says}: it is of {rank} example(s) or more.")


def _labels(setting: Setting, view: View) -> Finding:
    if setting.threat.strategy.labels == "given":
        return Finding("labels", "They are known, and not read off.")
    try:
        name = settle_rule(setting)
        labels = np.asarray(find_rule(setting)(setting, view))
        holds = bool(rule_holds(setting, view))
    except ValueError as error:
        return Finding("labels", f"No rule reads them off: {error}.")
    trust = "hold" if holds else "do not hold, and they may be wrong"
    read = ", ".join(map(str, labels.tolist()))
    return Finding("labels", f"{read} by the rule {name!r}, whose conditions {trust}.")


def _one_step_of_one(setting: Setting) -> bool:
    knows = setting.threat.knowledge
    return knows.examples == 1 and knows.upload == "gradient"


def _features(
    setting: Setting,
    view: View,
    kernel: np.ndarray,
    bias: np.ndarray,
    rounding: float,
) -> Finding:
    """Checks that what the classifier was fed gives the signal that came back."""
    path = setting.task.classifier
    inputs = np.asarray(dense_input(jnp.asarray(kernel), jnp.asarray(bias)), np.float64)
    left = np.sum((kernel - np.outer(inputs, bias)) ** 2)
    left = float(np.sqrt(left / np.sum(kernel**2)))
    if left > max(SHARE, rounding):
        return Finding(
            "features",
            f"One example leaves {left:.1%} of the classifier's gradient unexplained, "
            "whatever it is.",
            "examples or defence",
        )
    weights = view.public.model
    logits = inputs @ np.asarray(weights[f"{path}/kernel"], np.float64)
    logits = logits + np.asarray(weights[f"{path}/bias"], np.float64)
    probabilities = np.asarray(jax.nn.softmax(logits), np.float64)
    label = int(np.argmin(bias))
    signal = probabilities - np.eye(len(probabilities))[label]
    off = float(np.linalg.norm(signal - bias) / np.linalg.norm(bias))
    says = (
        f"What the classifier was fed, [{len(inputs)}] numbers, is read off exactly "
        f"(up to {left:.1e}), and gives back its signal up to {off:.1e}"
    )
    if setting.task.loss is cross_entropy and off > max(SHARE, 10 * rounding):
        return Finding(
            "features",
            f"{says}: these are not the classifier's weights, its rows are in another "
            "order, or another loss was trained by.",
            "weights, model or loss",
        )
    return Finding("features", f"{says}: the classifier's weights are right.")
