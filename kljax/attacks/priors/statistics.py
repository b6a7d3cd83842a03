"""Norm statistics: what they say of the images, as a prior.

A client in train mode uploads new running statistics of its norm layers. They are ``m
old + (1 - m) batch``, so they say what mean and variance the private batch had in front
of every norm; in front of a locked one, too, where no gate has touched them yet.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kljax.attacks.attack import Candidate, Prior
from kljax.attacks.objectives import root
from kljax.attacks.priors.sums import check_weight
from kljax.attacks.setting import Setting
from kljax.core.dependence import trace_dependence
from kljax.core.randomness import fixed_rng
from kljax.core.types import Array, Path, Stats
from kljax.threat import View


def batch_statistics(
    setting: Setting,
    gates: Callable[..., Any],
    weight: float,
    *,
    emphasis: Mapping[Path, float] | None = None,
    updated: bool = False,
) -> Prior:
    """Adds the distance of batch statistics, ``|mean - mean*| + |var - var*|``.

    Summed over the norm layers, not squared; 0 for a network without any. The client's
    own are recovered from the running ones it uploads: nobody need know the momentum,
    which says where between old and batch statistics the new ones lie. Several local
    steps leave a mean over their batches, the last weighing most; that is compared.
    Norm layers that keep their statistics in train mode say nothing, and are left out.

    Args:
      setting: its protocol says which batches a client makes several steps on.
      gates: ``(public, Candidate.secret) -> gates`` of the secret's strategy.
      weight: 0 or more.
      emphasis: factors by path of a norm layer, where they are not 1.
      updated: whether candidates go through the network as the client's update left
        it, rather than as it was received. One step was made on the latter: there,
        it is exact.

    Raises:
      ValueError: for a negative weight; for hidden statistics, or others than a mean
        and a variance, or such as no image changes; for an average of clients; for an
        `updated` network under upload=gradient, and, from the prior, where the update
        is hidden in part.

    Reference: Yin et al., "GradInversion" (CVPR 2021), equation 8; Hatamizadeh et al.
    (IEEE TMI 2023), section III, for statistics recovered, and the updated network.
    """
    knows, protocol = setting.threat.knowledge, setting.protocol
    check_weight(weight)
    if knows.stats != "visible":
        raise ValueError(
            "batch statistics are read off the statistics a client uploads: the "
            f"threat model says stats={knows.stats!r}, and 'visible' is needed"
        )
    if knows.upload == "average":
        raise ValueError(
            "batch statistics are those of one client's batch, and of an average the "
            "server sees means over clients: the threat model says upload='average'"
        )
    if updated and knows.upload != "update":
        raise ValueError(
            f"updated=True needs upload='update', the threat model says "
            f"upload={knows.upload!r}"
        )
    steps, batch = (
        (1, knows.examples) if protocol is None else (protocol.steps, protocol.batch)
    )
    emphasis = emphasis or {}
    _, stats = setting.task.shapes()
    layers = sorted({name.rpartition("/")[0] for name in stats})
    wanted = {f"{layer}/{part}" for layer in layers for part in ("mean", "var")}
    if stats.keys() != wanted:
        raise ValueError(
            f"statistics {sorted(stats.keys() ^ wanted)}: each norm layer is expected "
            "to have a mean and a var, and nothing else"
        )
    layers = _moving(setting, layers)
    moving = [f"{layer}/{part}" for layer in layers for part in ("mean", "var")]
    taps = tuple(f"{layer}:input" for layer in layers)

    def prior(view: View, candidate: Candidate, progress: Array) -> Array:
        del progress
        public = view.public
        if updated and view.visible is not None:
            raise ValueError(
                "batch statistics of the updated network need the whole update, and "
                "this one is hidden in part: take updated=False"
            )
        if updated:
            public = jax.tree.map(jnp.add, public, view.grads)
        old = {name: view.stats[name] for name in moving}
        cut = candidate.inputs.reshape(-1, batch, *candidate.inputs.shape[1:])

        def go(carry, step):
            mine, running, kept = carry
            before = {name: running[name] for name in moving}
            out = setting.task.model.apply(
                public.model,
                running,
                cut[step % len(cut)],
                gates=gates(public.defence, candidate.secret),
                taps=taps,
                train=True,
                # The victim's dropout masks are unknown: one fixed guess.
                rngs=jax.random.fold_in(fixed_rng("dropout"), step),
            )
            batches = {}
            for layer in layers:
                batches |= _moments(layer, out.taps[f"{layer}:input"])
            after = {name: out.stats[name] for name in moving}
            momentum = jax.tree.map(_momentum, before, batches, after)
            mine = jax.tree.map(
                lambda m, s, b: m * s + (1 - m) * b, momentum, mine, batches
            )
            kept = jax.tree.map(jnp.multiply, momentum, kept)
            return (mine, jax.lax.stop_gradient(out.stats), kept), None

        # Not the network's own new statistics: Flax lets no derivative through them.
        carry = (old, view.stats, jax.tree.map(jnp.ones_like, old))
        if steps == 1:  # without a loop, which XLA would work less well on
            (mine, _, kept), _ = go(carry, 0)
        else:
            (mine, _, kept), _ = jax.lax.scan(go, carry, jnp.arange(steps))
        total = jnp.zeros(())
        for name, value in mine.items():
            apart = (value - view.new_stats[name]) / (1 - kept[name])
            factor = emphasis.get(name.rpartition("/")[0], 1.0)
            total += factor * root(jnp.sum(apart**2))
        return weight * total

    return prior


def _moving(setting: Setting, layers: list[Path]) -> list[Path]:
    """Picks the norm layers whose statistics follow the images in train mode.

    Raises:
      ValueError: where there are norm layers, and none of them does.
    """
    images = setting.task.inputs.zeros(1)

    def updated(images: Array, params: Any, stats: Stats) -> Stats:
        rng = fixed_rng("dropout")
        return setting.task.model.apply(
            params, stats, images, train=True, rngs=rng
        ).stats

    found = trace_dependence(updated, images, *setting.task.shapes()).outputs
    moving = [layer for layer in layers if found[f"{layer}/mean"]]
    if layers and not moving:
        raise ValueError(
            f"batch statistics: norm layers {', '.join(layers)} keep their running "
            "statistics in train mode, so that a client's say nothing of its images; "
            "take an attack without them, or a network whose norm layers are updated"
        )
    return moving


def _moments(layer: Path, inputs: Array) -> Stats:
    """Gives mean and biased variance of a norm's inputs [..., C], as Flax has them."""
    axes = tuple(range(inputs.ndim - 1))
    return {
        f"{layer}/mean": jnp.mean(inputs, axes),
        f"{layer}/var": jnp.var(inputs, axes),
    }


def _momentum(old: Array, batch: Array, new: Array) -> Array:
    """Finds the momentum [] of ``new = m old + (1 - m) batch``, by least squares."""
    along, moved = jax.lax.stop_gradient((old - batch, new - batch))
    power = jnp.sum(along**2)
    # Where the batch is what was there already, nothing moves at any momentum.
    return jnp.sum(moved * along) / jnp.where(power == 0, 1.0, power)
