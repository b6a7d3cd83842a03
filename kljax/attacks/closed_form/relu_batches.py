"""SPEAR: a batch, read exactly off the gradient of a dense layer before a ReLU.

The gradient has the rank of the batch (`low_rank`), and the derivatives by the layer's
outputs are zero wherever a ReLU is shut, which tells the examples apart
(`sparse_directions`). Length and sign of each follow from the bias, whose input is a
one in every example.

A gate behind the layer multiplies columns of the derivatives: the zeros stay where they
are, and so does everything here.

Reference: Dimitrov, Baader, Müller, Vechev, "SPEAR: Exact Gradient Inversion of Batches
in Federated Learning" (NeurIPS 2024). Differs: directions are made exact by all columns
at which they vanish, and accepted by tests of their own instead of chosen by a score;
scale and sign are read off the bias; the images found must open the units that they
are found to open, from some output on, or, of several clients, whose gates may differ,
lie in [0, 1]; and nothing is given where one is missing.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from kljax.attacks.attack import Attack, Reconstruction
from kljax.attacks.closed_form.layer_input import float64, to_float64
from kljax.attacks.closed_form.low_rank import split
from kljax.attacks.closed_form.refusals import refuse_no_bias
from kljax.attacks.closed_form.sparse_directions import (
    NOISES,
    Proposal,
    learned,
    noise_of,
    rows_of,
    sampled,
    search,
)
from kljax.attacks.labels import settled_labels
from kljax.attacks.optimisers import refuse_optimiser
from kljax.attacks.priors import refuse_feature
from kljax.attacks.setting import Setting
from kljax.core.decompositions import one_at_a_time
from kljax.core.types import Array, Path, Rng
from kljax.threat import View

CHUNK = 4096  # candidates of a compiled step, sampled
STARTS = 8  # per example, learned
MISSING = 0.5  # grey: what stands for an image that was not found
ORDERED = 0.9  # of the units; by chance far fewer
BEYOND = 0.01  # [0, 1], by which a pixel may be found
WAYS = ("sampled", "learned")


def spear(
    setting: Setting,
    optimiser=None,
    *,
    steps=None,
    restarts=None,
    directions: str = "sampled",
    candidates: int = 2**20,
    layer: str = "",
) -> Attack:
    """Makes the attack; a closed form has no optimiser, no steps and no restarts.

    All examples of a batch are found or none: inputs follow from the derivatives of all
    of them together. A batch of whose rank some are missing (they have the same input,
    or no ReLU is open for them) is found as far as the rank goes.

    Args:
      setting: of the attack.
      optimiser: must be None.
      steps, restarts: without meaning here.
      directions: ``sampled``, as SPEAR does, whose work doubles with each example at
        least, or ``learned`` in the spirit of SPEAR++ (`sparse_directions.learned`).
      candidates: budget of directions that are tried, per victim. The search ends
        before if all are found.
      layer: path of the dense layer; nothing for the one that is fed the image.

    Returns:
      The attack. Its loss is the share of the layer's gradient, in squared norm, that
      the images leave unexplained with derivatives that are zero where they should be;
      1 where nothing is found, and images are grey then. Its ``numbers`` have
      ``gradient_rank``, ``rows_found``, ``examples_read`` and ``candidates_tried``.
      Labels are those of the batch; which image has which is not known.

    Raises:
      ValueError: for an optimiser, anything but the gradient of one step, a network
        without a dense layer with bias that is fed the image and has a ReLU behind it,
        a batch that the layer or the budget is too small for, gates that are replayed,
        and an unknown way.
    """
    refuse_optimiser(optimiser, "spear")
    del steps, restarts
    layer = _check(setting, directions, candidates, layer)
    examples = setting.threat.knowledge.examples
    alone = setting.threat.knowledge.clients == 1
    labels = settled_labels(setting, "spear")
    proposal = _proposal(directions, examples)
    chunks = max(1, candidates // proposal.count)

    @one_at_a_time
    def find(rng: Rng, gradient: Array, weights: Array) -> tuple[Array, ...]:
        with float64(True):
            arrays = to_float64((gradient, weights))
            return _find(rng, *arrays, examples, proposal, chunks, alone)

    def attack(rng: Rng, view: View) -> Reconstruction:
        kernel, bias = (view.grads.model[f"{layer}/{x}"] for x in ("kernel", "bias"))
        gradient = jnp.concatenate([kernel, bias[None]])
        x, loss, rank, found, read, done = find(
            rng, gradient, view.public.model[f"{layer}/kernel"]
        )
        images = jnp.where(
            (jnp.arange(examples) < read)[:, None], jnp.clip(x, 0, 1), MISSING
        )
        said = jnp.all(jnp.isfinite(gradient)) & jnp.any(gradient != 0)
        return Reconstruction(
            inputs=images.reshape(examples, *setting.task.image_shape),
            labels=labels(rng, view),
            loss=loss,
            finite=said & jnp.isfinite(loss),
            numbers={
                "gradient_rank": rank,
                "rows_found": found,
                "examples_read": read,
                "candidates_tried": done * proposal.count,
                "evaluations": jnp.asarray(0),
            },
        )

    return attack


def _proposal(directions: str, examples: int) -> Proposal:
    if directions == "sampled":
        return sampled(CHUNK)
    return learned(STARTS * examples)


def _find(
    rng: Rng,
    gradient: Array,
    weights: Array,
    examples: int,
    proposal: Proposal,
    chunks: int,
    alone: bool,
) -> tuple[Array, ...]:
    """Finds images [B, d], the share that they leave, rank, how many, and chunks.

    `alone` says that all examples are one client's.
    """
    factors = split(gradient, examples)
    rows = rows_of(*factors[1:])
    fits = (factors.rank >= 1) & (factors.rank <= examples)
    fits &= jnp.all(jnp.isfinite(gradient))
    found, done = search(rng, rows, proposal, chunks=jnp.where(fits, chunks, 0))
    read = jnp.sum(found.zeros >= 0, dtype=jnp.int32)
    places = jax.lax.iota(jnp.int32, examples)
    # Beyond the rank any direction will do that is not one of the space.
    directions = jnp.where((places < read)[:, None], found.direction, jnp.eye(examples))
    inputs = jnp.linalg.solve(directions.T, factors.left.T)  # [B, d + 1]
    signals = directions @ rows.right
    lit = jnp.abs(signals) >= NOISES * noise_of(rows, directions)[:, None]
    within = (places < rows.rank)[:, None]
    explained = jnp.where(within, inputs, 0.0).T @ (signals * lit)
    left = jnp.sum((gradient - explained) ** 2) / jnp.sum(gradient**2)
    complete = fits & (read == factors.rank)
    images = inputs[:, :-1] / inputs[:, -1:]
    sound = _order_share(images @ weights, lit, within[:, 0]) > ORDERED
    if not alone:
        # A unit opens from another output on where a client has a gate of its own.
        inside = (images > -BEYOND) & (images < 1 + BEYOND)
        sound |= jnp.all(jnp.where(within, inside, True))
    complete &= sound
    complete &= jnp.all(jnp.isfinite(jnp.where(within, images, 0.0)))
    return (
        images.astype(jnp.float32),
        jnp.where(complete, left, 1.0).astype(jnp.float32),
        factors.rank,
        read,
        jnp.where(complete, read, 0).astype(jnp.int32),
        done,
    )


def _order_share(outputs: Array, lit: Array, within: Array) -> Array:
    """Computes the share of units that are open from, or up to, some output on.

    Whatever scale and shift of its own a unit has, that is what a ReLU makes of it.

    Args:
      outputs: [B, m], of the layer for the images found, without bias.
      lit: [B, m] bool, which units are open.
      within: [B] bool, which images count.

    Returns:
      [], of those units that are open for some and shut for others; 1 where none is.
    """
    on, off = lit & within[:, None], ~lit & within[:, None]

    def parted(one: Array, other: Array) -> Array:
        highest = jnp.max(jnp.where(one, outputs, -jnp.inf), axis=0)
        return highest <= jnp.min(jnp.where(other, outputs, jnp.inf), axis=0)

    mixed = jnp.any(on, axis=0) & jnp.any(off, axis=0)
    good = mixed & (parted(off, on) | parted(on, off))
    total = jnp.sum(mixed, dtype=jnp.int32)
    share = jnp.sum(good, dtype=jnp.int32) / jnp.maximum(total, 1)
    return jnp.where(total > 0, share, 1.0)


def _check(setting: Setting, directions: str, candidates: int, layer: str) -> Path:
    """Refuses what the attack cannot be for; finds its layer."""
    refuse_feature(setting, "spear")
    knows, strategy = setting.threat.knowledge, setting.threat.strategy
    if not setting.sees_gradient:
        raise ValueError(
            "spear reads the gradient of one step, of one client or the mean over "
            f"several, the threat model has upload={knows.upload!r}"
        )
    if strategy.secret != "unit":
        raise ValueError(
            "spear reads what is in front of any lock and replays none, the threat "
            f"model says secret={strategy.secret!r}: write 'unit'"
        )
    if directions not in WAYS:
        raise ValueError(f"directions must be sampled or learned, got {directions!r}")
    layer, units = first_dense_layer(setting, "spear", layer)
    refuse_no_bias(setting, "spear", layer)
    check_rank(setting, "spear", units)
    if directions == "sampled" and 2 ** (knows.examples - 1) > candidates:
        raise ValueError(
            f"spear samples about 2^{knows.examples - 1} directions for each of "
            f"{knows.examples} examples, and candidates={candidates} is fewer: raise "
            "it, lower examples, or write directions=learned"
        )
    if not _has_relu(setting, units):
        raise ValueError(
            f"spear needs a ReLU behind the layer {layer!r}: nothing in this network "
            f"sets what is below 0 of {units} units to 0 (the network 'dense-relu' "
            "has one)"
        )
    return layer


def first_dense_layer(
    setting: Setting, attack: str, layer: Path = ""
) -> tuple[Path, int]:
    """Finds the dense layer that is fed the flattened image: its path, its units.

    Args:
      setting: with the network.
      attack: who needs it, for the message.
      layer: its path, where several could be it.

    Raises:
      ValueError: where none is, or several could be.
    """
    params, _ = setting.task.shapes()
    pixels = math.prod(setting.task.image_shape)
    fed = {
        path.removesuffix("/kernel"): leaf.shape[1]
        for path, leaf in params.items()
        if path.endswith("/kernel") and leaf.ndim == 2 and leaf.shape[0] == pixels
    }
    if layer in fed:
        return layer, fed[layer]
    if layer or len(fed) != 1:
        raise ValueError(
            f"{attack} needs one dense layer that is fed the {pixels} numbers of an "
            f"image of shape {setting.task.image_shape}, and this network has "
            f"{', '.join(fed) or 'none'}: name one as layer=PATH, or take a network "
            "such as 'dense-relu'"
        )
    ((layer, units),) = fed.items()
    return layer, units


def check_rank(setting: Setting, attack: str, units: int) -> None:
    """Refuses batches that are not of lower rank than the gradient has room for."""
    examples, pixels = setting.threat.knowledge.examples, setting.task.image_shape
    most = min(math.prod(pixels) + 1, units) - 1
    if examples > most:
        raise ValueError(
            f"{attack} tells at most {most} examples apart by a layer of {units} units "
            f"that is fed images of shape {pixels}, got examples={examples}"
        )


def _has_relu(setting: Setting, units: int) -> bool:
    """Tells whether the network takes the larger of 0 and values [B, units]."""
    task, train = setting.task, setting.threat.knowledge.victim_norm == "train"
    params, stats = task.shapes()
    traced = jax.make_jaxpr(
        lambda params, stats, images: (
            task.model.apply(params, stats, images, train=train).logits
        )
    )(params, stats, jax.ShapeDtypeStruct((1, *task.image_shape), jnp.float32))
    return any(
        equation.primitive.name == "max"
        and equation.outvars[0].aval.shape == (1, units)
        and any(getattr(value, "val", None) == 0 for value in equation.invars)
        for equation in _equations(traced.jaxpr)
    )


def _equations(program: Any) -> Iterator[Any]:
    """Goes through the equations of a program, and of those that it calls."""
    for equation in program.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)
