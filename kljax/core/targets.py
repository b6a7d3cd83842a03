"""What a network is trained towards: classes, distributions, sequences, or numbers.

A `TargetSpec` stands beside the `InputSpec` of a dataset. It says how a target that is
stored (a label, a row of numbers) becomes the target that a loss compares with what the
network gives, how it is looked for by who does not know it, and how a guess is scored.

| kind          | stored            | trained towards, and what a network gives |
|---------------|-------------------|-------------------------------------------|
| classes       | label []          | [Kc], one-hot                             |
| distributions | probabilities [Kc]| [Kc]                                      |
| sequences     | tokens [T]        | [T, V], one-hot; of padding zeros         |
| numbers       | numbers [D]       | [D]                                       |

Letters: n examples, B in one upload, Kc classes, T tokens out of V, D numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from kljax.core.array_checks import check_integers, refuse_rows
from kljax.core.types import Array

UNKNOWN = -1  # a class, or a token, of which an upload says nothing; and padding
TOLERANCE = 1e-4  # of the sum of probabilities, which float32 rounds

Check: TypeAlias = Callable[[np.ndarray, np.ndarray, str], np.ndarray]
Scores: TypeAlias = dict[str, np.ndarray]  # by column of the rows, each [n]


def _as_they_are(targets: Array) -> Array:
    return targets


@dataclass(frozen=True, kw_only=True)
class TargetSpec:
    """The targets of a study: what stands beside each input of a dataset.

    Attributes:
      kind: ``classes``, ``distributions``, ``sequences`` or ``numbers``.
      stored: shape of one target as a dataset has it.
      dtype: of its entries there.
      shape: of one target as a loss has it, which is that of what the network gives
        for one example. The network's factory is told the last side of it.
      check: ``(targets [n, *stored], rows [n], name) -> targets`` in `dtype`; refuses
        what is no target, and names the row and the value.
      score: ``(guesses [n, *stored], truths [n, *stored]) -> Scores``, columns of
        `kljax.metrics.COLUMNS`.
      encode: ``stored [..., *stored] -> targets [..., *shape]`` of the loss.
      decode: ``targets [B, *shape] -> [B, *stored]``, what a finished search has found.
      constrain: ``[B, *shape] -> targets``, of what is looked for from N(0, 1) by who
        does not know the targets: a softmax makes probabilities of any numbers.
      class_of: ``stored [n, *stored] -> [n]``, the class of each, or its likeliest one;
        None where there are no classes.
      classes: Kc, of targets that say classes; None of others.
      right: ``(outputs [B, *shape], stored [B, *stored]) -> [B]``, which share of each
        target the network gets right; None where nothing is right or wrong.
    """

    kind: str
    stored: tuple[int, ...]
    dtype: Any
    shape: tuple[int, ...]
    check: Check
    score: Callable[[np.ndarray, np.ndarray], Scores]
    encode: Callable[[Array], Array] = _as_they_are
    decode: Callable[[Array], Array] = _as_they_are
    constrain: Callable[[Array], Array] = _as_they_are
    class_of: Callable[[np.ndarray], np.ndarray] | None = None
    classes: int | None = None
    right: Callable[[Array, Array], Array] | None = None

    @property
    def measure(self) -> str:
        """Names what a model's answers are measured by; more is better, 1 the best.

        The share that is right: ``accuracy``, or ``token accuracy`` of sequences. Where
        nothing is right or wrong ``R2``: the share of the targets' variance that is
        explained, which is 0 for their mean, and below 0 for worse.
        """
        if self.right is None:
            return "R2"
        return "token accuracy" if self.kind == "sequences" else "accuracy"

    @property
    def outputs(self) -> int:
        """Gives what a network's factory is told: Kc, V or D."""
        return self.shape[-1]

    def require_classes(self, what: str) -> int:
        """Gives Kc to what is made for classes alone.

        Raises:
          ValueError: where targets are no classes, with `what` as the subject.
        """
        if self.kind != "classes" or self.classes is None:
            raise ValueError(
                f"{what} needs targets that are classes, and these are {self.kind} of "
                f"shape {self.shape}"
            )
        return self.classes


def classes_of(num_classes: int) -> TargetSpec:
    """Makes the spec of labels in [0, num_classes), trained towards as one-hot.

    Raises:
      ValueError: for no class.
    """
    _require_positive(num_classes, "the number of classes")

    def check(labels: np.ndarray, rows: np.ndarray, name: str) -> np.ndarray:
        labels = check_integers(labels, "labels", name)
        refuse_rows(
            (labels < 0) | (labels >= num_classes),
            rows,
            f"example {{}} of {name}",
            lambda i: f"has label {labels[i]}; labels must lie in [0, {num_classes})",
        )
        return labels

    return TargetSpec(
        kind="classes",
        stored=(),
        dtype=np.int32,
        shape=(num_classes,),
        check=check,
        score=lambda guesses, truths: {"label_accuracy": _same(guesses, truths)},
        encode=lambda labels: jax.nn.one_hot(labels, num_classes),
        decode=likeliest,
        constrain=jax.nn.softmax,
        class_of=lambda labels: labels,
        classes=num_classes,
        right=lambda outputs, labels: jnp.argmax(outputs, axis=-1) == labels,
    )


def distributions_of(num_classes: int) -> TargetSpec:
    """Makes the spec of probabilities [Kc] of classes: soft labels.

    Raises:
      ValueError: for no class.
    """
    _require_positive(num_classes, "the number of classes")

    def check(targets: np.ndarray, rows: np.ndarray, name: str) -> np.ndarray:
        targets = _check_numbers(targets, rows, name, (num_classes,), "probabilities")
        total = targets.sum(axis=1)
        refuse_rows(
            (targets.min(axis=1) < 0) | (np.abs(total - 1) > TOLERANCE),
            rows,
            f"example {{}} of {name}",
            lambda i: (
                f"has probabilities that sum to {total[i]:g}, the lowest "
                f"{targets[i].min():g}; they must be >= 0 and sum to 1"
            ),
        )
        return targets

    def score(guesses: np.ndarray, truths: np.ndarray) -> Scores:
        known = np.isfinite(guesses).all(axis=-1)
        likely = np.where(known, np.argmax(guesses, axis=-1), UNKNOWN)
        right = _same(likely, np.argmax(truths, axis=-1))
        return {"label_accuracy": right, **_errors(guesses, truths)}

    return TargetSpec(
        kind="distributions",
        stored=(num_classes,),
        dtype=np.float32,
        shape=(num_classes,),
        check=check,
        score=score,
        constrain=jax.nn.softmax,
        class_of=lambda targets: np.argmax(targets, axis=-1),
        classes=num_classes,
        right=lambda outputs, targets: (
            jnp.argmax(outputs, axis=-1) == jnp.argmax(targets, axis=-1)
        ),
    )


def sequences_of(length: int, vocabulary: int) -> TargetSpec:
    """Makes the spec of tokens [T] out of V, one for each place of the input.

    A token below 0 is padding: its target is zero throughout, which no loss counts,
    and no score does.

    Raises:
      ValueError: for no place, and no token.
    """
    _require_positive(length, "the length of sequences")
    _require_positive(vocabulary, "the vocabulary")

    def check(tokens: np.ndarray, rows: np.ndarray, name: str) -> np.ndarray:
        tokens = np.asarray(tokens)
        if not np.issubdtype(tokens.dtype, np.integer):
            raise TypeError(f"targets of {name} are {tokens.dtype}; give integers")
        _check_shape(tokens, (length,), name)
        refuse_rows(
            (tokens >= vocabulary).any(axis=1) | (tokens < 0).all(axis=1),
            rows,
            f"example {{}} of {name}",
            lambda i: (
                f"has targets {tokens[i].min()} to {tokens[i].max()}; tokens lie in "
                f"[0, {vocabulary}), what is negative is padding, and one token is "
                "needed"
            ),
        )
        return np.maximum(tokens, UNKNOWN).astype(np.int32)

    def score(guesses: np.ndarray, truths: np.ndarray) -> Scores:
        return {"target_accuracy": _share_right(np, guesses, truths)}

    return TargetSpec(
        kind="sequences",
        stored=(length,),
        dtype=np.int32,
        shape=(length, vocabulary),
        check=check,
        score=score,
        encode=lambda tokens: jax.nn.one_hot(tokens, vocabulary),
        decode=likeliest,
        constrain=jax.nn.softmax,
        right=lambda outputs, tokens: _share_right(
            jnp, jnp.argmax(outputs, axis=-1), tokens
        ),
    )


def numbers_of(size: int = 1) -> TargetSpec:
    """Makes the spec of D real numbers, as a regression has them.

    They are looked for from N(0, 1): numbers of another scale are to be scaled first.

    Raises:
      ValueError: for no number.
    """
    _require_positive(size, "the number of targets")
    return TargetSpec(
        kind="numbers",
        stored=(size,),
        dtype=np.float32,
        shape=(size,),
        check=lambda targets, rows, name: _check_numbers(
            targets, rows, name, (size,), "targets"
        ),
        score=_errors,
    )


def likeliest(targets: Array) -> Array:
    """Takes the likeliest class [...] int32 of targets [..., Kc]; of NaN `UNKNOWN`."""
    known = jnp.all(jnp.isfinite(targets), axis=-1)
    return jnp.where(known, jnp.argmax(targets, axis=-1), UNKNOWN).astype(jnp.int32)


def _share_right(library: Any, guesses: Any, truths: Any) -> Any:
    """Gives the share of tokens [n, T] that are right, without padding."""
    counted = truths >= 0
    right = library.sum((guesses == truths) & counted, axis=-1)
    return right / library.sum(counted, axis=-1)


def _same(guesses: np.ndarray, truths: np.ndarray) -> np.ndarray:
    return (guesses == truths).astype(np.float64)


def _errors(guesses: np.ndarray, truths: np.ndarray) -> Scores:
    apart = np.abs(np.asarray(guesses, np.float64) - truths)
    return {"target_error": np.mean(apart, axis=-1)}


def _check_numbers(
    targets: np.ndarray,
    rows: np.ndarray,
    name: str,
    shape: tuple[int, ...],
    what: str,
) -> np.ndarray:
    targets = np.asarray(targets)
    if not np.issubdtype(targets.dtype, np.floating):
        raise TypeError(f"{what} of {name} are {targets.dtype}; give floating point")
    _check_shape(targets, shape, name)
    with np.errstate(over="ignore"):
        stored = targets.astype(np.float32, copy=False)
    refuse_rows(
        ~np.isfinite(stored).all(axis=1),
        rows,
        f"example {{}} of {name}",
        lambda i: f"has {what} {targets[i].tolist()}; they must be finite in float32",
    )
    return stored


def _check_shape(targets: np.ndarray, shape: tuple[int, ...], name: str) -> None:
    if targets.shape[1:] != shape:
        sides = ", ".join(["n", *map(str, shape)])
        raise ValueError(
            f"targets of {name} have shape {targets.shape}; give [{sides}]"
        )


def _require_positive(number: int, what: str) -> None:
    if number < 1:
        raise ValueError(f"{what} is {number}; give 1 or more")
