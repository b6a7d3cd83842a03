"""An audit: from the files of one upload to what they give away."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from kljax import metrics
from kljax.attacks import Protocol, Setting
from kljax.attacks.presets import find_preset
from kljax.core.files import read_arrays
from kljax.core.inputs import images_of
from kljax.core.registry import resolve
from kljax.core.types import Stats
from kljax.models import NETWORKS
from kljax.models.classifier import find_classifier
from kljax.models.flattening import flattened_inputs
from kljax.studies.audit.candidates import (
    ClosedForm,
    Found,
    Misfit,
    Ruler,
    closed_forms,
    measure_wrong,
    search,
    solve,
)
from kljax.studies.audit.facts import AuditConfig
from kljax.studies.audit.findings import Finding, find_tried, find_without_search
from kljax.studies.audit.reading import coarsest, read_tensors
from kljax.studies.audit.tensors import CALLED, Match, match_tensors
from kljax.studies.audit.verdict import Verdict, judge
from kljax.studies.inversion import (
    build_model,
    is_built,
    make_setting,
    make_view,
)
from kljax.studies.label_search import settle_labels
from kljax.threat import View


@dataclasses.dataclass(frozen=True)
class Audit:
    """What came of an audit.

    Attributes:
      config: what was said.
      matches: tensor of the upload by the network's path.
      findings: what follows without a search.
      forms: closed forms, whether they apply or not.
      found: candidates, the best first.
      wrong: misfits of a grey image, then of random ones.
      verdict: in words.
      scores: ``{source: {metric: value}}`` by the truth, of candidates and floors; {}
        without one.
      truth: [B, H, W, C], or None.
      type: of the upload's numbers, as they were written.
      stats: where statistics of norm layers came from, in words; empty for none.
    """

    config: AuditConfig
    matches: dict[str, Match]
    findings: list[Finding]
    forms: list[ClosedForm]
    found: list[Found]
    wrong: list[Misfit]
    verdict: Verdict
    scores: dict[str, dict[str, float]]
    truth: np.ndarray | None
    type: str
    stats: str


def audit(config: AuditConfig, say: Callable[[str], Any] = lambda line: None) -> Audit:
    """Audits one upload.

    Args:
      config: where it is, and what is known of it.
      say: is told what is begun.

    Raises:
      FileNotFoundError: for a file that is not there.
      ValueError: for files that cannot be read, tensors that do not fit the network,
        values that are not finite, facts that do not fit each other, and no attack
        where no closed form applies.
    """
    _check_attacks(config)
    truth = _truth(config)
    resolve("model", config.model, NETWORKS)  # which refuses an unknown name
    sent, weights = read_tensors(config.upload_file), read_tensors(config.weights)
    for path, tensors in ((config.upload_file, sent), (config.weights, weights)):
        _check_finite(str(path), tensors)
    inputs, given = images_of(config.shape), _given(config)
    known = NETWORKS.get(config.model)
    named = config.classifier or (known.classifier if known else None)
    # A network that is there already has its number of classes.
    classes = None if is_built(config.model) else _classes(config, weights, named)
    model, _, _ = build_model(config.model, classes, config.shape)
    shapes, like = jax.eval_shape(model.init, jax.random.key(0))
    wanted = {name: tuple(leaf.shape) for name, leaf in shapes.items()}
    find = functools.partial(
        match_tensors,
        wanted=wanted,
        flattened=flattened_inputs(model, inputs),
        given=given,
    )
    matches = find(sent, what=str(config.upload_file))
    params = find(weights, what=str(config.weights))
    stats, whence = _stats(weights, like, str(config.weights))
    eps = float(np.finfo(coarsest(sent)).eps)

    def setting_of(attack: str, labelled: bool = config.labels is not None) -> Setting:
        return make_setting(
            model,
            inputs,
            named or find_classifier(model, inputs),
            examples=config.fact("examples"),
            known_labels=labelled,
            attack=attack,
            loss=config.fact("loss"),
            protocol=_protocol(config),
            chain=known.chain if known else (),
            norm=config.fact("norm"),
        )

    def view_of(setting: Setting, labels: Any = config.labels) -> View:
        return make_view(
            setting,
            {name: match.array for name, match in params.items()},
            {name: match.array for name, match in matches.items()},
            stats=stats,
            labels=labels,
        )

    settings = {name: setting_of(name) for name in config.attacks}
    base = setting_of("matching")
    view = view_of(base)
    findings = find_without_search(base, view, eps)
    ruler, rng = Ruler(base, view), jax.random.key(config.seed)
    say("closed forms")
    found = list(solve(base, view, ruler, rng))
    for number, attack in enumerate(settings):
        setting, seen = settings[attack], view_of(settings[attack])
        setting, seen, choice = settle_labels(
            setting,
            seen,
            attack,
            functools.partial(setting_of, attack, labelled=True),
            most=config.label_candidates,
            steps=config.steps,
            say=say,
        )
        if choice is not None:
            findings.append(find_tried(choice, attack, setting))
        say(f"{attack}: {config.starts} starts of {config.steps} evaluations")
        found += search(
            setting,
            seen,
            ruler,
            attack,
            starts=config.starts,
            steps=config.steps,
            rng=jax.random.fold_in(rng, number),
        )
    if not found:
        raise ValueError(
            "attacks=(): no closed form applies to this network, and no attack "
            "searches: name one, such as 'matching'"
        )
    found.sort(key=lambda one: one.misfit.whole)
    labels = found[0].labels
    wrong = measure_wrong(base, ruler, labels, config.wrong, config.seed)
    hides = bool(like) and config.fact("norm") == "train"
    verdict = judge(found, wrong, findings, eps=eps, hides_contrast=hides)
    return Audit(
        config,
        matches,
        findings,
        closed_forms(base),
        found,
        wrong,
        verdict,
        {} if truth is None else _scores(found, truth, config.seed),
        truth,
        str(coarsest(sent)),
        whence,
    )


def _check_finite(what: str, tensors: dict[str, np.ndarray]) -> None:
    for name, array in tensors.items():
        bad = int(np.sum(~np.isfinite(array)))
        if bad:
            raise ValueError(
                f"{what}: {bad} of {array.size} entries of {name!r} are not finite: a "
                "training that diverged, or values too large for "
                f"{array.dtype}"
            )


def _given(config: AuditConfig) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in config.map]
    return {path: name for path, _, name in pairs}


def _classes(config: AuditConfig, weights: dict, classifier: str | None) -> int:
    """Finds the number of classes: what is said, or the classifier's outputs.

    Raises:
      ValueError: where neither tells.
    """
    if config.classes is not None:
        return config.classes
    for name, array in weights.items():
        path = name.replace(".", "/")
        if classifier and path.endswith(f"{classifier}/bias"):
            return len(array)
    raise ValueError(
        f"classes: {config.weights} has no bias of the classifier "
        f"{classifier or '(not known)'} by its name to read their number off: give "
        "classes"
    )


def _stats(weights: dict, like: Stats, what: str) -> tuple[dict | None, str]:
    """Finds the statistics of norm layers among the weights, all or none of them."""
    if not like:
        return None, ""
    own = (*CALLED["mean"], *CALLED["var"])
    there = {n: x for n, x in weights.items() if n.replace(".", "/").endswith(own)}
    if not there:
        return None, "not in the file: those of a network just made (assumed)"
    wanted = {name: tuple(leaf.shape) for name, leaf in like.items()}
    matches = match_tensors(there, wanted, what=f"{what}, statistics")
    return {name: match.array for name, match in matches.items()}, "of the file"


def _protocol(config: AuditConfig) -> Protocol | None:
    rate = config.learning_rate
    if rate is None:  # which only an update has, and has to have
        return None
    examples = config.fact("examples")
    batch, steps = config.batch or examples, config.local_steps or 1
    return Protocol(optax.sgd(rate), steps, min(batch, examples), rate)


def _truth(config: AuditConfig) -> np.ndarray | None:
    if config.truth is None:
        return None
    arrays = read_arrays(config.truth, remedy="write it by numpy.savez(images=...)")
    if not arrays or "images" not in arrays:
        raise ValueError(f"{config.truth} is not there, or has no array 'images'")
    images = arrays["images"]
    scale = 255 if images.dtype == np.uint8 else 1
    shape = (config.fact("examples"), *config.shape)
    if images.shape != shape:
        raise ValueError(
            f"{config.truth}: images have shape {images.shape}, expected {shape}"
        )
    return images.astype(np.float32) / scale


def _scores(found: list[Found], truth: np.ndarray, seed: int) -> dict:
    """Scores candidates and images made without any gradient, the mean over images."""
    grey = np.full_like(truth, 0.5)
    mean = np.broadcast_to(truth.mean(axis=(1, 2), keepdims=True), truth.shape)
    noise = np.random.default_rng(seed).random(truth.shape, np.float32)
    rows = {one.source: one.images[metrics.assign(one.images, truth)] for one in found}
    rows |= {"floor/grey": grey, "floor/own mean colour": mean, "floor/noise": noise}
    return {
        name: {
            metric: float(np.mean([*map(function, list(images), list(truth))]))
            for metric, function in _METRICS.items()
        }
        for name, images in rows.items()
    }


_METRICS: dict[str, Callable] = {
    "psnr": metrics.psnr,
    "ssim": metrics.ssim,
    "mse": metrics.mse,
}


def _check_attacks(config: AuditConfig) -> None:
    """Refuses attacks that do not search, before anything is computed.

    Raises:
      ValueError: for a closed form, an attack of a malicious server, and unknown names.
    """
    for name in config.attacks:
        preset = find_preset(name)
        if preset.inserts is not None:
            raise ValueError(f"attack {name!r} is of a malicious server: leave it out")
        if preset.objective is None and ":" not in name:
            raise ValueError(
                f"attack {name!r} is a closed form, which is tried anyway: leave it out"
            )
