"""Observation: what of a client's upload the server holds.

A client's `Update` holds everything that is true about one step, or about several;
`observe` turns it into the `View` that the server holds. A part that is hidden is
*absent*. Of an upload that is partly encrypted the server adds up everything and reads
the rest: a hidden entry is NaN, and never a zero that could be read as a fact. Attacks
see views and nothing else.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kljax.core.trees import named
from kljax.core.types import (
    Array,
    LockWeights,
    Private,
    PrivateKey,
    Public,
    PyTree,
    Stats,
)
from kljax.threat.knowledge import ThreatModel
from kljax.threat.parts import join_masks, readable_tensors


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class LocalSteps:
    """How many local steps an update was made of; no array, so it survives jit.

    Attributes:
      steps: T.
      batch: B examples in each.
    """

    steps: int
    batch: int


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Average:
    """Of how many clients an update is the average; no array, as `LocalSteps`.

    Attributes:
      clients: K.
    """

    clients: int


class Update(NamedTuple):
    """All that is true about one client's upload. Stays with the client.

    Letters: n distinct examples, B of them in one step. What is called a gradient
    here is a change of the parameters, trained minus received, where `local` is there.
    """

    public: Public  # what the first step started from
    stats: Stats
    sent: Public  # the released gradient, or the released change
    # The same draws, and nothing done on release or to an example's gradient
    before_release: Public
    new_stats: Stats
    inputs: PyTree  # [n, H, W, C] of images, or of another kind
    targets: Array  # [n, Kc], or others of `kljax.core.targets`
    private: Private  # before the first step
    initial_lock_weights: LockWeights  # of round 0, as the server drew them
    lock_grads: PyTree  # their gradient, or their change
    local: LocalSteps | None = None  # None: the gradient of one step
    visible: PyTree | None = None  # like sent, of bool: what can be read; None: all
    # [t, ...] what the same client has sent before, oldest first; None: not recorded
    earlier: Public | None = None
    remembered: PyTree = ()  # by the release, after it
    # [m, H, W, C], m >= n, trained on in place of the images; of a gradient alone
    substitute: Array | None = None
    # None: of one client. Otherwise what is sent is a mean over clients, and private
    # has a leading axis [K] (`kljax.threat.average_updates`).
    average: Average | None = None


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("views",),
    meta_fields=("pooling", "own_secrets"),
)
@dataclasses.dataclass(frozen=True)
class Observations:
    """Several uploads of one client on the same examples, the attacked one first.

    Attributes:
      views: `View` with a leading axis [K] on every array.
      pooling: how the attacker puts the matching losses of the K together, a name in
        `kljax.attacks.pooling.POOLINGS`.
      own_secrets: whether each upload has a secret of its own, which the client drew
        anew; else what is looked for of it is the same in all.
    """

    views: "View"
    pooling: str = "mean"
    own_secrets: bool = False


class View(NamedTuple):
    """All that the server can read of one upload; a part that is hidden is None."""

    public: Public
    stats: Stats
    # Under upload=update: released parameters minus received ones; under average the
    # mean of gradients, or of such changes, over clients. A hidden entry is NaN, so
    # that whoever overlooks `visible` computes nothing.
    grads: Public
    new_stats: Stats | None
    targets: Array | None  # [n, Kc], see `Update`
    private_key: PrivateKey | None  # [K]; under average each client's
    lock_weights: LockWeights | None
    lock_grads: PyTree | None
    visible: PyTree | None = None  # like grads, of bool; None: nothing is hidden
    # [t, ...] like grads, oldest first; entries that are hidden now are hidden there
    earlier: Public | None = None
    # Of the same examples; only searches pool them, others read this one upload
    observations: Observations | None = None


def as_sent(
    grads: PyTree, sent: PyTree | None, earlier: PyTree | None, private: PyTree
) -> PyTree:
    """Assumes that a gradient, or a change, was sent as it is.

    It stands for what a defence does where that is nothing, or unknown.
    """
    del sent, earlier, private
    return grads


def observe(threat: ThreatModel, update: Update) -> View:
    """Shows what the threat model grants, and nothing else.

    Raises:
      ValueError: if the update is not what the threat model declares: its number of
        examples and of clients, one gradient, the change of several steps or an average
        (`kljax.threat.average_updates`); for a mask that does not fit what was sent;
        and for tensors that are not in it.
    """
    knows = threat.knowledge
    recorded = "gradient" if update.local is None else "update"
    clients = 1
    if update.average is not None:
        recorded, clients = "average", update.average.clients
    if knows.upload != recorded:
        raise ValueError(
            f"the threat model declares upload={knows.upload!r}, the update records "
            f"upload={recorded!r}"
        )
    if knows.clients != clients:
        raise ValueError(
            f"the threat model declares clients={knows.clients}, the update is the "
            f"average of {clients}"
        )
    if update.targets.shape[0] != knows.examples:
        raise ValueError(
            f"the threat model declares examples={knows.examples}, the update was "
            f"made from {update.targets.shape[0]}"
        )
    lock_weights = {
        "known": update.private.trainable,
        "initial": update.initial_lock_weights,
        "hidden": None,
    }[knows.lock_weights]
    if update.visible is not None:
        check_mask(update.sent, update.visible)
    visible = join_masks(update.visible, readable_tensors(update.sent, knows.visible))
    return View(
        public=update.public,
        stats=update.stats,
        grads=_readable(update.sent, visible),
        new_stats=update.new_stats if knows.stats == "visible" else None,
        targets=update.targets if knows.labels == "known" else None,
        private_key=update.private.secret if knows.private_key == "known" else None,
        lock_weights=lock_weights,
        lock_grads=update.lock_grads if knows.lock_grads == "shared" else None,
        visible=visible,
        earlier=_readable_before(update.earlier, visible),
    )


def _readable(sent: Public, visible: PyTree | None) -> Public:
    """Puts NaN in place of what is hidden."""
    if visible is None:
        return sent
    return jax.tree.map(lambda x, seen: jnp.where(seen, x, jnp.nan), sent, visible)


def check_mask(sent: Public, visible: PyTree) -> None:
    """Refuses a mask of what is visible that is not like what is sent.

    Raises:
      ValueError: naming the first tensor that does not fit.
    """
    values, masks = named(sent), named(visible)
    for name in sorted(values.keys() | masks.keys()):
        wanted = f"bool {jnp.shape(values[name])}" if name in values else "no mask"
        given = "none"
        if name in masks:
            given = f"{masks[name].dtype} {jnp.shape(masks[name])}"
        # Left alone, a mask of another shape would broadcast.
        if wanted != given:
            raise ValueError(
                "the mask of what is visible does not fit what is sent: tensor "
                f"{name!r} needs {wanted}, got {given}"
            )


def _readable_before(earlier: Public | None, visible: PyTree | None) -> Public | None:
    """Puts NaN in place of what is hidden of each earlier upload."""
    if earlier is None or visible is None:
        return earlier
    return jax.tree.map(lambda x, seen: jnp.where(seen, x, jnp.nan), earlier, visible)
