"""Peeling to the end: the image of a locked network, in closed form."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp

from kljax.attacks.attack import Attack, Reconstruction
from kljax.attacks.closed_form.below_lock import EPSILON, solve_below
from kljax.attacks.closed_form.layer_input import float64, to_float64
from kljax.attacks.closed_form.refusals import (
    refuse_batches,
    refuse_no_bias,
    refuse_no_chain,
    refuse_search,
)
from kljax.attacks.closed_form.walk import below_classifier, down, steps_of, walk_down
from kljax.attacks.labels import settled_labels
from kljax.attacks.optimisers import refuse_optimiser
from kljax.attacks.priors import refuse_feature
from kljax.attacks.secrets import secret_of
from kljax.attacks.setting import Setting
from kljax.core.decompositions import one_at_a_time
from kljax.core.types import Gate, Params, Path, Rng
from kljax.threat import View


def peeled_image(
    setting: Setting, optimiser=None, *, steps=None, restarts=None
) -> Attack:
    """Makes R-GAP through a first layer whose gates are private.

    A closed form has no optimiser, no steps and no restarts.

    Without a norm in the first layer it is R-GAP for networks with biases.

    Returns:
      The attack. Its loss is the share of the layers' weight gradients, in squared
      norm, that is left unexplained, the mean over the layers; ``info["residuals"]``
      has the share of each, {layer: []}, ``info["secret"]`` what the secret strategy
      settled on.

    Raises:
      ValueError: for an optimiser, a network that is no chain of layers, a norm
        elsewhere than in its first layer, a classifier without a bias, gates elsewhere
        than on that norm, norm layers in eval mode, strategies that optimise, and for
        anything but one step on one example.
    """
    refuse_optimiser(optimiser, "peeling")
    del steps, restarts
    _check(setting)
    secret, labels = secret_of(setting), settled_labels(setting, "peeling")
    bottom, *body, top = steps_of(setting)
    site = _norm_below(setting)
    epsilon = EPSILON if setting.threat.strategy.secret == "peel" else 0.0

    @one_at_a_time
    def solve(grads: Params, params: Params, gate: Gate):
        path = bottom.layer.path
        with float64(True):
            grads, params, gate = to_float64((grads, params, gate))
            place = below_classifier(top, grads, params)
            place, (residuals, _) = walk_down(body, place, grads, params)
            if site is None:
                place, solution = down(bottom, place, grads, params)
                image, residuals[path] = place.value.mean[0], solution.residual
            else:
                tensors = (tree[f"{path}/kernel"] for tree in (grads, params))
                below = solve_below(bottom, place, gate, *tensors, epsilon)
                image, residuals[path] = below.image, below.residual
            return jax.tree.map(lambda x: x.astype(jnp.float32), (image, residuals))

    def attack(rng: Rng, view: View) -> Reconstruction:
        part = secret.unknown.decode(*secret.unknown.start(rng, view))
        params = view.public.model
        ones = jnp.ones(params[f"{bottom.layer.path}/kernel"].shape[-1])
        gates = secret.gates(view.public.defence, part)
        _refuse_gates_elsewhere(gates, site)
        gate = gates.get(site, Gate(ones, jnp.zeros_like(ones)))
        image, residuals = solve(view.grads.model, params, gate)
        loss = jnp.mean(jnp.stack([*residuals.values()]))
        return Reconstruction(
            inputs=jnp.clip(image, 0, 1).reshape(1, *setting.task.image_shape),
            labels=labels(rng, view),
            loss=loss,
            finite=jnp.isfinite(loss) & jnp.all(jnp.isfinite(image)),
            info={"secret": part, "residuals": residuals},
            numbers={"evaluations": jnp.asarray(0)},
        )

    return attack


def _norm_below(setting: Setting) -> Path | None:
    """Finds the norm of the first layer; None where there is none."""
    _, stats = setting.task.shapes()
    norm = setting.task.chain[0].norm
    there = norm is not None and any(path.startswith(f"{norm}/") for path in stats)
    return norm if there else None


def _refuse_gates_elsewhere(gated: Iterable[Path], norm: Path | None) -> None:
    for path in gated:
        if path != norm:
            raise ValueError(
                "peeling solves for images below gates on the first layer's norm, and "
                f"{path} is none: take another attack with the secret strategy 'peel'"
            )


def _check(setting: Setting) -> None:
    refuse_feature(setting, "peeling")
    refuse_no_chain(setting, "peeling")
    refuse_batches(setting, "peeling")
    refuse_search(setting, "peeling", "gate-regression")
    hint = "; the attack 'rgap' takes networks without any"
    refuse_no_bias(setting, "peeling", setting.task.chain[-1].path, hint)
    norm = _norm_below(setting)
    _, stats = setting.task.shapes()
    other = sorted(path for path in stats if not path.startswith(f"{norm}/"))
    if other:
        raise ValueError(
            "peeling solves for images below the norm of the first layer alone, and "
            f"this network has {', '.join(other)}"
        )
    if setting.defence.draw_gates is not None:
        _refuse_gates_elsewhere(dict(setting.defence.sites), norm)
    if norm is not None and setting.threat.knowledge.victim_norm != "train":
        raise ValueError(
            "peeling needs victim_norm='train': in eval mode a norm is no function of "
            "the example"
        )
