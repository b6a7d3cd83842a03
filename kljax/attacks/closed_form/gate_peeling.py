"""Peeling: a lock's gates, found by walking a network backwards from its classifier.

The classifier's input follows from its gradient (for a batch: `features`), and the
derivative by it from its weights. Then layer by layer the input is solved for (`walk`),
down to the output of the layer that is locked. A batch norm in train mode is
standardised in every channel: the mean of what came out of the lock is the shift, and
its standard deviation the scale. Neither private key nor lock weights are needed. A
lock that may give negative scales hides their signs from this; the first layer's weight
gradient says them, all but one for all of them. This is kljax's own attack.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kljax.attacks.closed_form.below_lock import EPSILON, solve_below
from kljax.attacks.closed_form.features import MOST
from kljax.attacks.closed_form.layer_input import (
    ROUNDING,
    float64,
    through,
    to_float64,
)
from kljax.attacks.closed_form.refusals import refuse_no_bias, refuse_no_chain
from kljax.attacks.closed_form.walk import (
    Place,
    Step,
    as_rows,
    below_batch,
    below_classifier,
    steps_of,
    undo,
    walk_down,
)
from kljax.attacks.labels import find_rule, targets_of
from kljax.attacks.setting import Setting
from kljax.core.decompositions import one_at_a_time
from kljax.core.randomness import fixed_rng
from kljax.core.types import Array, Gate, Gates, Params, Path
from kljax.threat import View


class Peeled(NamedTuple):
    """What peeling found.

    Attributes:
      gates: of the site. A scale is found without the norm's epsilon: ``scale *
        sqrt(v / (v + epsilon))``, v the variance of what is normalised. Signs, where
        the lock's scales have any, are found for one example and a norm of the first
        layer, up to one for all channels together: the negative of an image, under the
        opposite scales, has the same gradient. Elsewhere under a norm no scale is
        negative.
      deviation: the standard deviation that the attack itself expects of each number,
        the epsilon and doubts about signs apart. Infinite for a saturated channel
        of a dense layer, whose scale is given as 0.
      residuals: {layer: []}, share of the layer's weight gradient, in squared norm,
        that what was found leaves unexplained: about 1e-12 where the gradient is
        exact, of the order of 1 where nothing was found. Of the classifier for a batch.
      ranks: {layer: []}, share of the layer's inputs that the equations determine.
    """

    gates: Gates
    deviation: Gates
    residuals: dict[Path, Array]
    ranks: dict[Path, Array]


def peeling(setting: Setting) -> Callable[[View], Peeled]:
    """Makes the attack on the gates of a lock with one site.

    Args:
      setting: with a chain; its lock's site is a norm in train mode, or a layer of the
        chain itself.

    Guarantees: for one example indifferent to the length of the gradient, so that
    clipping changes nothing. A channel whose filter has a gradient of exactly zero is
    dead: scale 0 (a defence that makes zeros, such as pruning, makes dead channels). A
    batch whose layers hold more inputs than there are equations is
    taken for what it most likely is, and `Peeled.ranks` and `Peeled.deviation` say so.

    Raises:
      ValueError: for a network that is no chain, a lock of several sites, a site that
        is not in the chain or is the classifier, norm layers above it, no bias in the
        classifier or in a locked layer without a norm, as many examples per upload as
        classes or more, anything but a gradient, and norm layers of the victim in eval
        mode.
    """
    bottom, *above = _from_the_lock(setting)
    layer, examples = bottom.layer, setting.threat.knowledge.examples
    site = layer.norm or layer.path
    given = setting.threat.strategy.labels == "given"
    # One example's signal is the bias gradient: no label is needed.
    rule = find_rule(setting) if examples > 1 and not given else None
    first = bottom.below is None and layer.norm is not None and examples == 1
    signed = first and _may_be_negative(setting)

    @one_at_a_time
    def peel(grads: Params, params: Params, targets: Array) -> Peeled:
        residuals = {}
        with float64(True):
            grads, params, targets = to_float64((grads, params, targets))
            if examples == 1:
                place = below_classifier(above[-1], grads, params)
            else:
                place, unexplained = below_batch(
                    above[-1], grads, params, targets, setting.task.loss
                )
                residuals[above[-1].layer.path] = unexplained
            place, left = walk_down(above[:-1], place, grads, params)
            residuals |= left.residuals
            if layer.norm is None:
                found = _by_gradient(bottom, place, grads, params)
            else:
                found = _by_moments(bottom, place, grads)
            if signed:
                found = (_with_signs(bottom, place, found[0], grads, params), found[1])
            gate, deviation, residuals, ranks = jax.tree.map(
                lambda x: x.astype(jnp.float32), (*found, residuals, left.ranks)
            )
        return Peeled({site: gate}, {site: deviation}, residuals, ranks)

    def attack(view: View) -> Peeled:
        targets = jnp.zeros((examples, setting.task.num_classes))
        if examples > 1 and given:
            targets = view.targets
        elif rule is not None:
            targets = targets_of(rule(setting, view), setting.task.num_classes)
        return peel(view.grads.model, view.public.model, targets)

    return attack


def pooled_gates(peeled: Peeled) -> Gates:
    """Joins what was peeled from several uploads of one client: other data, one lock.

    Args:
      peeled: with a leading axis [N] of uploads.

    Returns:
      Their mean, each weighted by one over its variance: a channel that was saturated
      in one upload is taken from the others, and so is one that is NaN there. NaN where
      no upload says anything. The lock is believed to stay the same; it drifts as its
      weights are trained.
    """

    # Each upload's signs are known up to one for all of them.
    gates = {
        site: gate._replace(scale=gate.scale * _sign_like_first(gate.scale))
        for site, gate in peeled.gates.items()
    }

    def join(values: Array, deviation: Array) -> Array:
        # What is called exact is so up to float32's rounding.
        weights = 1 / (deviation**2 + (ROUNDING * values) ** 2 + 1e-16)
        weights = jnp.where(jnp.isfinite(weights), weights, 0)
        values = jnp.where(weights > 0, values, 0)
        return jnp.sum(weights * values, axis=0) / jnp.sum(weights, axis=0)

    return jax.tree.map(join, gates, peeled.deviation)


def _sign_like_first(scales: Array) -> Array:
    """Gives 1 or -1 for each row [N, C], [N, 1]: that of its product with the first.

    Rows that say nothing, of zeros and NaN, do not count as the first.
    """
    told = jnp.nan_to_num(scales)
    first = told[jnp.argmax(jnp.any(told != 0, axis=1))]
    along = jnp.sum(told * first[None], axis=-1, keepdims=True)
    return jnp.where(along < 0, -1.0, 1.0)


def _from_the_lock(setting: Setting) -> tuple[Step, ...]:
    """Finds the chain from the locked layer on; refuses what cannot be peeled."""
    knows = setting.threat.knowledge
    refuse_no_chain(setting, "secret strategy 'peel'")
    refuse_no_bias(setting, "secret strategy 'peel'", setting.task.chain[-1].path)
    if len(setting.defence.sites) != 1:
        raise ValueError(
            "secret strategy 'peel' needs a lock of one site, got the sites "
            f"{[path for path, _ in setting.defence.sites]}"
        )
    most = min(MOST, setting.task.num_classes - 1)
    if knows.examples > most or knows.upload != "gradient":
        raise ValueError(
            f"secret strategy 'peel' needs the gradient of at most {most} examples "
            f"(fewer than there are classes, and {MOST} for the work's sake), the "
            f"threat model has examples={knows.examples}, upload={knows.upload!r}"
        )
    ((site, _),) = setting.defence.sites
    steps = steps_of(setting)
    paths = [step.layer.norm or step.layer.path for step in steps[:-1]]
    paths += [step.layer.path for step in steps[:-1]]
    if site not in paths:
        raise ValueError(
            f"secret strategy 'peel': the site {site!r} is not below the classifier of "
            f"this chain; those are {', '.join(dict.fromkeys(paths))}"
        )
    steps = steps[paths.index(site) % (len(steps) - 1) :]
    layer = steps[0].layer
    _, stats = setting.task.shapes()
    norms = [step.layer.norm for step in steps[1:] if step.layer.norm]
    above = [n for n in norms if any(path.startswith(f"{n}/") for path in stats)]
    if above:
        raise ValueError(
            "secret strategy 'peel' cannot walk through norm layers above the lock, "
            f"and there are {', '.join(above)}"
        )
    if layer.norm == site and knows.victim_norm != "train":
        raise ValueError(
            "secret strategy 'peel' needs victim_norm='train': in eval mode what is "
            "gated is not standardised"
        )
    if layer.norm != site and len(steps[0].kernel) != 2:
        raise ValueError(
            f"secret strategy 'peel' needs a norm at the locked layer {site!r}, or a "
            "dense layer"
        )
    if layer.norm != site:
        refuse_no_bias(setting, "secret strategy 'peel'", site)
        steps = (steps[0]._replace(layer=layer._replace(norm=None)), *steps[1:])
    return steps


def _by_moments(bottom: Step, place: Place, grads: Params) -> tuple[Gate, Gate]:
    """Reads scale and shift off what the lock gave out, [B, h, w, C]."""
    out = as_rows(undo(bottom.layer.activation, place.value), bottom.kernel[-1])
    shift = jnp.mean(out.mean, axis=0)
    centred = out.mean - shift[None]
    scale = jnp.sqrt(jnp.mean(centred**2, axis=0))
    # Errors of neighbours, and those of saturated units, are alike: they do not
    # average out. A unit of which nothing is known is as far off as others spread.
    wide = jnp.maximum(scale, jnp.abs(shift))
    errors = jnp.minimum(jnp.sqrt(out.variance), wide[None])
    deviation = Gate(
        jnp.mean(errors * jnp.abs(centred), axis=0) / jnp.maximum(scale, 1e-30),
        jnp.mean(errors, axis=0),
    )
    kernel = grads[f"{bottom.layer.path}/kernel"]
    dead = jnp.all(kernel == 0, axis=tuple(range(kernel.ndim - 1)))
    return (
        Gate(jnp.where(dead, 0, scale), shift),
        deviation._replace(scale=jnp.where(dead, 0, deviation.scale)),
    )


def _may_be_negative(setting: Setting) -> bool:
    """Tells whether locks of this make have negative scales: a fresh draw shows it."""
    if setting.defence.draw_gates is None:
        return False
    with jax.ensure_compile_time_eval():
        gates = setting.defence.draw_gates(fixed_rng("lock signs"))
        return any(bool(jnp.any(gate.scale < 0)) for gate in gates.values())


def _with_signs(
    bottom: Step, place: Place, gate: Gate, grads: Params, params: Params
) -> Gate:
    """Gives scales the signs under which no channel's deviation is negative."""
    tensors = (tree[f"{bottom.layer.path}/kernel"] for tree in (grads, params))
    deviation = solve_below(bottom, place, gate, *tensors, EPSILON).deviation
    return gate._replace(scale=jnp.where(deviation < 0, -gate.scale, gate.scale))


def _by_gradient(
    bottom: Step, place: Place, grads: Params, params: Params
) -> tuple[Gate, Gate]:
    """Finds the gates of a dense layer without a norm.

    Its bias gradient is scale times the signals above the gate, and its inputs, which
    no gate touches, follow from its gradients.
    """
    layer = bottom.layer
    kernel, bias = (grads[f"{layer.path}/{name}"] for name in ("kernel", "bias"))
    signal = through(layer.activation.slope, place.value, place.above)  # [B, C]
    total = jnp.sum(signal.mean, axis=0)
    # Through a saturated channel nothing comes back, and nothing is known of its gate:
    # a constant output of the right size explains all that was seen.
    silent = total == 0
    total = jnp.where(silent, 1, total)
    scale = jnp.where(silent, 0, bias / total)
    weights, offset = (params[f"{layer.path}/{name}"] for name in ("kernel", "bias"))
    inner = _inputs(kernel, scale[None] * signal.mean) @ weights + offset[None]
    inner = jnp.where(silent[None], 0, inner)  # NaN where all channels are
    out = undo(layer.activation, place.value)
    error = jnp.abs(scale / total) * jnp.sqrt(jnp.sum(signal.variance, axis=0))
    # The surest of the examples says what the shift is.
    surest = 1 / (out.variance + (error[None] * inner) ** 2)
    power = jnp.sum(surest, axis=0)
    shift = jnp.sum(surest * (out.mean - scale[None] * inner), axis=0) / power
    deviation = (
        jnp.where(silent, jnp.inf, each) for each in (error, jnp.sqrt(1 / power))
    )
    return Gate(scale, shift), Gate(*deviation)


def _inputs(kernel_grad: Array, signals: Array) -> Array:
    """Finds a dense layer's inputs [B, F] from its gradient and its signals [B, C]."""
    size = jnp.max(jnp.abs(signals))  # so that no square underflows
    square = (signals / size) @ (signals / size).T
    return jnp.linalg.solve(square, (signals / size) @ (kernel_grad / size).T)
