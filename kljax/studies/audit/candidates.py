"""Candidates for what an upload was computed on, ranked by how well they give it.

All are measured alike: the upload that a candidate would have given is compared with
the one that is there, tensor by tensor, whatever the attack's own loss is. Random
images are measured, too: what a wrong image reaches without any search.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from kljax.attacks import Attack, Candidate, Setting, dense_layer, targets_of
from kljax.attacks.presets import PRESETS, find_preset
from kljax.attacks.secrets import secret_of
from kljax.attacks.simulation import replay
from kljax.core.trees import named
from kljax.core.types import Array, Rng
from kljax.models.flattening import flattened_inputs
from kljax.threat import View

PAIRED = 4  # images at most of which all orders of labels are tried


class Misfit(NamedTuple):
    """How far the upload of a candidate is from the one that is there.

    Attributes:
      whole: [] length of the difference, as a share of the upload's length.
      worst: [] the same of the tensor that is worst, as a share of its own length.
    """

    whole: float
    worst: float


class Found(NamedTuple):
    """One candidate.

    Attributes:
      source: how it was found, such as ``matching, start 2``.
      images: [B, H, W, C].
      labels: [B].
      loss: the attack's own.
      misfit: of its upload.
      searched: whether a search from a start of its own found it.
    """

    source: str
    images: np.ndarray
    labels: np.ndarray
    loss: float
    misfit: Misfit
    searched: bool


class ClosedForm(NamedTuple):
    """A closed form, and why it does not apply, if so.

    Attributes:
      name: of the preset, or ``dense_layer`` with its path.
      attack: that it is; None where it does not apply.
      why_not: in words.
    """

    name: str
    attack: Attack | None
    why_not: str = ""


def closed_forms(setting: Setting) -> list[ClosedForm]:
    """Lists the closed forms of an honest server, whether they apply or not.

    Args:
      setting: its labels are given or recovered.
    """
    found = []
    for path, shape in flattened_inputs(
        setting.task.model, setting.task.inputs
    ).items():
        if shape == tuple(setting.task.image_shape):
            layer = path.removesuffix("/kernel")
            name = f"dense_layer {layer}"
            found.append(_tried(name, functools.partial(dense_layer, setting, layer)))
    for name, preset in PRESETS.items():
        # What has to learn of a client's data first is no closed form of an upload.
        if preset.objective is None and preset.inserts is None and not preset.learn:
            make = functools.partial(preset.build, setting, None, steps=1, restarts=1)
            found.append(_tried(name, make))
    return found


def _tried(name: str, build: Callable[[], Attack]) -> ClosedForm:
    try:
        return ClosedForm(name, build())
    except ValueError as error:
        return ClosedForm(name, None, str(error))


class Ruler:
    """Measures candidates of one setting and view; compiled once."""

    def __init__(self, setting: Setting, view: View):
        secret = secret_of(setting)
        simulate = replay(setting, secret.gates)
        classes = setting.task.num_classes

        def differences(view: View, images: Array, labels: Array) -> dict[str, Any]:
            rng = jax.random.key(0)
            part = secret.unknown.decode(*secret.unknown.start(rng, view))
            targets = targets_of(labels, classes)
            pair = simulate(view, Candidate(images, targets, part))
            made, seen = (named(side) for side in pair)
            return {
                name: (
                    jnp.linalg.norm(made[name] - seen[name]),
                    jnp.linalg.norm(seen[name]),
                )
                for name in seen
            }

        self._view, self._differences = view, jax.jit(differences)

    def measure(self, images: ArrayLike, labels: ArrayLike) -> Misfit:
        """Measures one candidate, images [B, H, W, C] and labels [B]."""
        found = self._differences(self._view, jnp.asarray(images), jnp.asarray(labels))
        off = np.asarray([d for d, _ in found.values()], np.float64)
        length = np.asarray([s for _, s in found.values()], np.float64)
        if not np.isfinite(off).all():
            return Misfit(float("inf"), float("inf"))
        whole = float(np.sqrt(np.sum(off**2) / np.sum(length**2)))
        there = length > 0  # of a tensor of zeros nothing is a share
        return Misfit(whole, float(np.max(off[there] / length[there])))


def measure_wrong(
    setting: Setting, ruler: Ruler, labels: ArrayLike, count: int, seed: int
) -> list[Misfit]:
    """Measures images that are none of the private ones, under some labels [B].

    The first are grey, the others random, uniform on [0, 1].
    """
    draws = np.random.default_rng(seed)
    shape = (setting.threat.knowledge.examples, *setting.task.image_shape)
    images = [np.full(shape, 0.5, np.float32)]
    images += [draws.random(shape, np.float32) for _ in range(count)]
    return [ruler.measure(one, labels) for one in images]


def solve(setting: Setting, view: View, ruler: Ruler, rng: Rng) -> Iterator[Found]:
    """Runs the closed forms that apply, see `pair_labels`."""
    for form in closed_forms(setting):
        if form.attack is not None:
            run = jax.jit(form.attack)
            found = _run(form.name, run, view, ruler, rng, searched=False)
            yield pair_labels(found, ruler.measure)


def pair_labels(
    found: Found, measure: Callable[[ArrayLike, ArrayLike], Misfit]
) -> Found:
    """Gives the images of a candidate its labels in the order that fits best.

    A closed form that reads a batch does not say which image has which label. Of more
    than `PAIRED` images the order stays as it is.

    Args:
      found: images and labels [B].
      measure: misfit of images and labels.
    """
    if len(found.labels) > PAIRED:
        return found
    orders = sorted({*itertools.permutations(np.ravel(found.labels).tolist())})
    if len(orders) < 2:
        return found
    tried = [
        found._replace(labels=labels, misfit=measure(found.images, labels))
        for labels in (np.array(order, found.labels.dtype) for order in orders)
    ]
    return min([found, *tried], key=lambda one: one.misfit.whole)


def search(
    setting: Setting,
    view: View,
    ruler: Ruler,
    attack: str,
    *,
    starts: int,
    steps: int,
    rng: Rng,
) -> Iterator[Found]:
    """Runs one attack from several starts, each a search of its own.

    Raises:
      ValueError: for an attack that cannot work on the setting.
    """
    build = find_preset(attack).build
    run = jax.jit(build(setting, None, steps=steps, restarts=1))
    for number, one in enumerate(jax.random.split(rng, starts), 1):
        name = f"{attack}, start {number}"
        yield _run(name, run, view, ruler, one, searched=True)


def _run(
    name: str, run: Attack, view: View, ruler: Ruler, rng: Rng, *, searched: bool
) -> Found:
    made = run(rng, view)
    images, labels = np.asarray(made.inputs), np.asarray(made.labels)
    misfit = ruler.measure(images, labels)
    return Found(name, images, labels, float(made.loss), misfit, searched)
