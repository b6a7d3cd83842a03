"""Names for what travels between the rooms of kljax.

Letters, the same everywhere: B examples in one gradient, H W image sides, C channels,
Kc classes, K length of a private key, R restarts. Arrays are float32 unless a
docstring says otherwise; images are [B, H, W, C] in [0, 1]. Where inputs are of another
kind (`kljax.core.inputs`), they stand in the place of images, and of several inputs a
tree of arrays does; targets of another kind (`kljax.core.targets`) stand in that of
targets [B, Kc].

Nothing here has a victim or client axis: every type describes ONE client and ONE
victim; `kljax.parallel` adds the axis.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax

Array: TypeAlias = jax.Array
Rng: TypeAlias = jax.Array  # a typed JAX random key; every function consumes its own
PyTree: TypeAlias = Any

Path: TypeAlias = str  # "blocks/0/norm": where a module sits in a network
Params: TypeAlias = PyTree  # trainable weights of a network: public, uploaded
Stats: TypeAlias = PyTree  # running statistics of norm layers: public, uploaded
PrivateKey: TypeAlias = Array  # [K]: the client's secret, never leaves the client
LockWeights: TypeAlias = PyTree  # trainable, private: never leaves the client
Loss: TypeAlias = Callable[[Array, Array], Array]  # (outputs, targets) -> scalar


class Gate(NamedTuple):
    """What a lock does to one layer: ``scale * output + shift``, channel by channel."""

    scale: Array  # [C]
    shift: Array  # [C]


# A module that a defence puts into a network: ``value -> (what takes its place, of the
# same shape, what it adds to the client's loss [])``. A pytree, by
# `jax.tree_util.Partial`, so that its arrays can be data.
InsertedModule: TypeAlias = Callable[[Array], tuple[Array, Array]]
# Of a layer's output by its path, of its input by "path:input"; {} = no gates
Gates: TypeAlias = Mapping[Path, Gate | InsertedModule]


class Output(NamedTuple):
    """What one forward pass of a `Model` gives back."""

    logits: Array  # [B, Kc], or outputs of the shape of other targets
    stats: Stats  # the norm statistics after this pass
    taps: dict[str, Array]  # the values asked for, by the name they were asked by
    added_loss: Array | float = 0.0  # [] what inserted modules add to the loss


class Model(NamedTuple):
    """A network as two pure functions, so that any library can provide one.

    Attributes:
      init: ``rng -> (params, stats)``.
      apply: ``(params, stats, images, *, gates={}, taps=(), train, rngs=None) ->
        Output``. ``gates`` maps the path of a layer to the `Gate` put on its output,
        or to an `InsertedModule`; ``taps`` names the values to return (``"path"`` for
        a layer's output, ``"path:input"`` for its input; a gate by such a name acts on
        that value, before it is tapped), ``train`` chooses batch statistics over
        running ones and switches dropout on, ``rngs`` is one `Rng` for all random
        streams, or maps a stream's name (``"default"``, ``"dropout"``) to its own.
    """

    init: Callable[[Rng], tuple[Params, Stats]]
    apply: Callable[..., Output]


class Public(NamedTuple):
    """Everything trainable that the server holds and clients upload gradients for."""

    model: Params
    defence: PyTree = ()  # public part of a defence, such as plaintext gates


class Private(NamedTuple):
    """Everything of a defence that stays with the client."""

    secret: PyTree = ()  # never trained, such as the private key
    trainable: PyTree = ()  # trained by the client alone, such as the lock weights


# Parts of a client's round, see `kljax.local_training`.
Augment: TypeAlias = Callable[[Rng, Array], Array]
Penalty: TypeAlias = Callable[[Public, Public], Array]
Renew: TypeAlias = Callable[[Rng, Private], Private]
