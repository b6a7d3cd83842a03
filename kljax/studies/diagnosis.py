"""Diagnosis: what is true of an attacked upload, and never shown to the attack."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kljax.attacks import (
    Candidate,
    Objective,
    Setting,
    classifier_inputs,
    dense_input,
    find_rule,
    replay,
    rule_holds,
    targets_of,
)
from kljax.attacks.attack import Simulation
from kljax.attacks.closed_form.features import MOST
from kljax.attacks.objectives import FAINT
from kljax.attacks.pooling import POOLINGS
from kljax.attacks.presets import Preset
from kljax.core.randomness import fixed_rng
from kljax.core.types import Array, Gate, Params, Private, PyTree
from kljax.metrics.outcomes import RESOLUTION
from kljax.threat import Update, View, as_sent, observe


class Diagnosis(NamedTuple):
    """What there is to hold a matching loss against.

    Attributes:
      loss_at_truth: [] of the attack's objective at the client's own images; NaN for an
        attack without an objective.
      loss_scale: [] objective if the faintest tensor is missed; NaN the same.
      live_channels: [] gated channels whose scale is not 0, of all clients.
      feature_error: [] how far what the classifier was fed is from what its released
        gradient says of it, over the length of the former; NaN but for one step on at
        most eight examples, fewer than there are classes, and a classifier with a
        bias.
      replay_is_exact: [] bool, see `replay_is_exact`; false for an attack without an
        objective, which replays nothing.
      label_rule_holds: [] 1 where what can be seen of the label rule's conditions is
        so, 0 where it is not; NaN where labels are not recovered, or nothing can be
        seen of them.
      visible_share: [] of the entries of the upload, the share that can be read.
    """

    loss_at_truth: Array
    loss_scale: Array
    live_channels: Array
    feature_error: Array
    replay_is_exact: Array
    label_rule_holds: Array
    visible_share: Array


def diagnose(setting: Setting, preset: Preset, update: Update, view: View) -> Diagnosis:
    """Diagnoses one victim.

    Args:
      setting: of the attack, with the victim's own defence.
      preset: the attack.
      update: all that is true about the upload.
      view: what the attack was shown of it.
    """
    gates = _gates_of_all(setting, update)
    scales = [gate.scale for gate in gates.values() if isinstance(gate, Gate)]
    live = sum((jnp.sum(scale != 0) for scale in scales), jnp.array(0))
    error, holds = feature_error(setting, update), label_rule_holds(setting, view)
    readable = visible_share(setting, update)
    if preset.objective is None:
        nothing, exact = jnp.asarray(jnp.nan), jnp.asarray(False)
        return Diagnosis(nothing, nothing, live, error, exact, holds, readable)
    objective = preset.objective(setting)
    if "lock_weights" not in setting.threat.about_secret.needs:
        # Who has no lock weights of its own cannot compare their gradients.
        view = view._replace(lock_grads=None)
    truth = Candidate(update.inputs, update.targets, update.private)
    simulate = preset.simulation or replay
    simulation = simulate(setting, setting.defence.gates)
    simulated, observed = simulation(view, truth)
    lost = None
    if setting.protocol is not None:
        # Weight decay and momentum move tensors that no image moves.
        grey = jax.tree.map(lambda x: jnp.full_like(x, 0.5), update.inputs)
        blank = truth._replace(inputs=grey)
        without, _ = simulation(view, blank)
        lost = jax.tree.map(jnp.subtract, simulated, without)
    return Diagnosis(
        jnp.asarray(objective(simulated, observed)),
        jnp.asarray(weakest_tensor(objective, observed, lost)),
        live,
        error,
        replay_is_exact(
            setting, update, view, (simulated, observed), simulate=simulate
        ),
        holds,
        readable,
    )


def diagnose_pooled(
    setting: Setting, preset: Preset, updates: Update, views: View, pooling: str
) -> Diagnosis:
    """Diagnoses several observations of one victim.

    Args:
      setting, preset: see `diagnose`.
      updates, views: with a leading axis [K].
      pooling: how the attacker puts their losses together.

    Returns:
      Losses put together in the same way, whether all replays are exact, and the rest
      of the first.
    """
    pairs = updates, views
    each = jax.lax.map(lambda pair: diagnose(setting, preset, *pair), pairs)
    pool = POOLINGS[pooling]
    return jax.tree.map(lambda leaf: leaf[0], each)._replace(
        loss_at_truth=pool(each.loss_at_truth),
        loss_scale=pool(each.loss_scale),
        replay_is_exact=jnp.all(each.replay_is_exact),
    )


def _gates_of_all(setting: Setting, update: Update) -> PyTree:
    """Makes the gates of the client, or of each of an average, side by side."""

    def gates(private: Private) -> PyTree:
        return setting.defence.gates(update.public.defence, private)

    hides = bool(jax.tree.leaves(update.private))
    several = hides and update.average is not None
    return jax.lax.map(gates, update.private) if several else gates(update.private)


def visible_share(setting: Setting, update: Update) -> Array:
    """Tells [] which share of the entries of an upload can be read."""
    visible = observe(setting.threat, update).visible
    if visible is None:
        return jnp.ones(())
    masks = jax.tree.leaves(visible)
    return sum(jnp.sum(mask) for mask in masks) / sum(mask.size for mask in masks)


def replay_is_exact(
    setting: Setting,
    update: Update,
    view: View,
    replayed: tuple[PyTree, PyTree] | None = None,
    *,
    simulate: Callable[..., Simulation] = replay,
) -> Array:
    """Tells whether the attacker with the truth replays what was done before release.

    The attacker replays the client's step, or steps, at the client's own images,
    targets and private part. Where that gives the gradient, or the change, as it was
    before release, the loss at the truth is the release's doing: noise, pruning. Where
    it does not (another norm mode, dropout masks, momentum from before, ...), that loss
    is the replay's own error, and no match.

    Two forms of one computation differ by rounding. A tensor is the same here if its
    error is at most `kljax.metrics.RESOLUTION` of its norm: an error that counts as
    matched wherever it comes from, and far above rounding. (Between two forms of the
    convolution, one step of LeNet or ResNet-20 differs by up to 4e-6 of a tensor's
    norm, and ten steps of LeNet by up to 3e-4.) A tensor below `FAINT` of the whole
    gradient's norm holds nothing but rounding, such as a bias in front of a norm
    layer, and is the same if the other is as faint.

    Args:
      setting, update, view: see `diagnose`.
      replayed: simulated and observed, of the view as it is; None: not yet.
      simulate: ``(Setting, gates) -> Simulation`` of what the attack compares with.

    Returns:
      [] bool; false where anything is not finite.
    """
    # One by one all the same: norm layers have the statistics of one example then.
    alone = None if setting.defence.simulate_example is None else lambda grads: grads
    plain = setting._replace(
        defence=setting.defence._replace(
            simulate=as_sent, simulate_update=as_sent, simulate_example=alone
        )
    )
    unreleased = view._replace(
        grads=update.before_release, lock_grads=None, visible=None
    )
    truth = Candidate(update.inputs, update.targets, update.private)
    untouched = setting.defence.leaves_alone and _is(unreleased, view)
    if replayed is not None and untouched:
        simulated, observed = replayed  # nothing to be traced again
    else:
        simulation = simulate(plain, setting.defence.gates)
        simulated, observed = simulation(unreleased, truth)
    errors, norms = (
        jnp.stack([jnp.linalg.norm(leaf.ravel()) for leaf in jax.tree.leaves(tree)])
        for tree in (jax.tree.map(jnp.subtract, simulated, observed), observed)
    )
    least = FAINT * jnp.linalg.norm(norms)
    allowed = jnp.where(norms <= least, 2 * least, RESOLUTION * norms)
    return jnp.all((errors <= allowed) & jnp.isfinite(errors))


def _is(one: PyTree, other: PyTree) -> bool:
    """Tells whether two trees hold the very same arrays."""
    leaves, tree = jax.tree.flatten(one)
    others, other_tree = jax.tree.flatten(other)
    pairs = zip(leaves, others, strict=False)
    return tree == other_tree and all(a is b for a, b in pairs)


def label_rule_holds(setting: Setting, view: View) -> Array:
    """Tells [] whether the setting's label rule can be believed, see `Diagnosis`."""
    if setting.threat.strategy.labels != "recovered":
        return jnp.asarray(jnp.nan)
    try:
        return rule_holds(setting, view).astype(jnp.float32)
    except ValueError:  # the classifier's input cannot be tapped
        return jnp.asarray(jnp.nan)


def feature_error(setting: Setting, update: Update) -> Array:
    """Computes how exactly the classifier's gradient gives its inputs away.

    No lock hides them: the layers above a lock are trained as they are. A defence that
    changes the released gradient does. Dropout's masks are the client's, and another
    draw of them counts as an error. Of a batch, each example's input is compared with
    the nearest that was found (`kljax.attacks.classifier_inputs`), by the labels that
    the setting's rule recovers.

    Returns:
      [], see `Diagnosis`; NaN, too, for a classifier that is called more than once or
      is not dense, and, behind a batch, for one without a column for each class.
    """
    examples, upload = (
        setting.threat.knowledge.examples,
        setting.threat.knowledge.upload,
    )
    fits = examples <= min(MOST, setting.task.targets.outputs - 1)
    parts = _classifier_parts(setting, observe(setting.threat, update).grads.model)
    if not fits or upload != "gradient" or parts is None:
        return jnp.asarray(jnp.nan)
    true = _classifier_input(setting, update)
    if true is None or true.size != examples * len(parts[0]):
        return jnp.asarray(jnp.nan)
    true = true.reshape(examples, -1)
    if examples == 1:
        found = dense_input(*parts)[None]
    else:
        labels = _recovered_labels(setting, update)
        outputs = setting.task.targets.outputs
        if labels is None or len(parts[1]) != outputs:
            return jnp.asarray(jnp.nan)
        targets = targets_of(labels, outputs)
        weights = _classifier_parts(setting, update.public.model)
        found = classifier_inputs(*parts, *weights, targets, loss=setting.task.loss)
        found = found.inputs.mean
    errors = jnp.linalg.norm(found[None] - true[:, None], axis=-1)  # [true, found]
    return jnp.linalg.norm(jnp.min(errors, axis=1)) / jnp.linalg.norm(true)


def _classifier_parts(setting: Setting, model: Params) -> tuple[Array, Array] | None:
    """Finds the classifier's kernel [F, C] and bias [C]; None if it is not dense."""
    paths = [f"{setting.task.classifier}/{name}" for name in ("kernel", "bias")]
    if not model.keys() >= {*paths}:
        return None
    kernel, bias = (model[path] for path in paths)
    *window, inputs, outputs = kernel.shape
    # A convolution of one pixel is a dense layer where the map is one pixel, too.
    if any(side != 1 for side in window) or bias.shape != (outputs,):
        return None
    return kernel.reshape(inputs, outputs), bias


def _classifier_input(setting: Setting, update: Update) -> Array | None:
    """Taps what the classifier was fed; None where no single input can be tapped."""
    tap = f"{setting.task.classifier}:input"
    try:
        out = setting.task.model.apply(
            update.public.model,
            update.stats,
            update.inputs,
            gates=setting.defence.gates(update.public.defence, update.private),
            taps=(tap,),
            train=setting.threat.knowledge.victim_norm == "train",
            rngs=fixed_rng("diagnosis"),
        )
    except ValueError:  # called more than once, scanned, or not called by itself
        return None
    return out.taps[tap]


def _recovered_labels(setting: Setting, update: Update) -> Array | None:
    """Recovers labels [B] by the setting's rule; None where it has none that fits."""
    try:
        rule = find_rule(setting)
    except ValueError:
        return None
    return rule(setting, observe(setting.threat, update))


def weakest_tensor(
    objective: Objective, observed: PyTree, lost: PyTree | None = None
) -> Array:
    """Computes what the objective says when the faintest tensor is missed entirely.

    The classifier's gradient is often a hundred times longer than the first layer's,
    in which the image is written: a loss that is small beside the whole gradient can
    still miss all of that. Tensors below float32 rounding (a millionth of the whole
    gradient's norm), such as a bias in front of a norm layer, do not count.

    Args:
      objective: ``(simulated, observed) -> []``.
      observed: what the server sees.
      lost: what of it is due to the images, and is lost where a tensor is missed;
        None for all of it.

    Returns:
      [], 0 or more; 0 for a gradient of zeros, of which nothing can be missed.
    """
    leaves, tree = jax.tree.flatten(observed)
    parts = leaves if lost is None else jax.tree.leaves(lost)
    powers = jnp.stack([jnp.sum(part**2) for part in parts])

    def without(which: Array) -> Array:
        kept = [
            jnp.where(gone, x - part, x)
            for gone, x, part in zip(which, leaves, parts, strict=True)
        ]
        return objective(jax.tree.unflatten(tree, kept), observed)

    # One after another: written out, a deep network's hundred tensors are ten thousand
    # terms to compile, and side by side they are a hundred gradients to hold.
    missed = jax.lax.map(without, jnp.eye(len(leaves), dtype=bool))
    whole = jnp.sum(powers)
    faintest = jnp.min(jnp.where(powers > FAINT**2 * whole, missed, jnp.inf))
    # A cosine that hardly changes may round to just below 0.
    return jnp.where(whole == 0, 0.0, jnp.maximum(faintest, 0.0))
