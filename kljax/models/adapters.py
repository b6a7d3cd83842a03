"""Low-rank adapters: a network of which clients train, and upload, a small part.

Letters: r rank of an adapter.

A dense layer ``x W + b`` becomes ``x W + b + (alpha / r) (x A) B``. W and b stay what
they are, A [in, r] and B [r, out] are trained. In the tree of parameters there are A
and B alone, as ``LAYER/down/kernel`` and ``LAYER/up/kernel``.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx

from kljax.core.types import Array, Path
from kljax.models.catalogue import signature_of
from kljax.models.gating import module_paths

PROJECTIONS = ("query", "value")  # of an attention: the paper's choice


class Frozen(nnx.Variable):
    """A weight that nobody trains, and that is the same for all clients."""


class Adapted(nnx.Module):
    """A dense layer and its adapter."""

    def __init__(
        self,
        layer: nnx.Linear | nnx.LinearGeneral,
        *,
        rank: int,
        alpha: float,
        rngs: nnx.Rngs,
    ):
        """Puts an adapter beside a layer, which it leaves as it was: B starts as 0."""
        kernel, general = layer.kernel.shape, isinstance(layer, nnx.LinearGeneral)
        self.axes = len(layer.in_features) if general else 1
        self.outputs = kernel[self.axes :]
        inputs = math.prod(kernel[: self.axes])
        outputs = math.prod(self.outputs)
        self.layer, self.scale = layer, alpha / rank
        self.down = nnx.Linear(inputs, rank, use_bias=False, rngs=rngs)
        self.up = nnx.Linear(
            rank,
            outputs,
            use_bias=False,
            kernel_init=nnx.initializers.zeros_init(),
            rngs=rngs,
        )

    def __call__(self, x: Array, **options) -> Array:
        """Maps x [..., in] to [..., out], each of one axis or several."""
        flat = jnp.reshape(x, (*x.shape[: x.ndim - self.axes], -1))
        added = self.scale * self.up(self.down(flat))
        return self.layer(x, **options) + jnp.reshape(
            added, (*added.shape[:-1], *self.outputs)
        )


def add_adapters(
    network: nnx.Module,
    *,
    rank: int,
    projections: tuple[str, ...] = PROJECTIONS,
    alpha: float | None = None,
    trained: tuple[Path, ...] = (),
    rngs: nnx.Rngs,
) -> nnx.Module:
    """Puts an adapter beside dense layers of a network, and freezes all the rest.

    What is frozen is a constant of the `Model` that `from_nnx` makes: of a builder, the
    same whatever random key is drawn from, as a pretrained network is the same for all.

    Args:
      network: that is changed in place.
      rank: r.
      projections: last names of the layers' paths, such as ``query`` and ``expand``.
      alpha: an adapter is multiplied by ``alpha / rank``; None for `rank`.
      trained: paths of layers that are trained as they are, such as a classifier.
      rngs: random streams, of A.

    Returns:
      The network.

    Raises:
      ValueError: for a rank below 1, and for layers that the network has not.

    Reference: Hu et al., "LoRA" (ICLR 2022): A is random, B is 0. Differs: A is drawn
    as Flax's layers are.
    """
    if rank < 1:
        raise ValueError(f"the rank of adapters is {rank}; give 1 or more")
    modules = module_paths(network)
    chosen = {
        path: module
        for path, module in modules.items()
        if path.split("/")[-1] in projections
        and isinstance(module, nnx.Linear | nnx.LinearGeneral)
    }
    names = {path.split("/")[-1] for path in chosen}
    lacking = [*(set(projections) - names), *(set(trained) - modules.keys())]
    if lacking or not chosen:
        dense = sorted(
            path
            for path, module in modules.items()
            if isinstance(module, nnx.Linear | nnx.LinearGeneral)
        )
        raise ValueError(
            f"no dense layers {', '.join(map(repr, sorted(lacking))) or 'at all'} of "
            f"this network to adapt or train; it has {', '.join(dense)}"
        )
    kept = {id(m) for p in trained for _, m in nnx.iter_modules(modules[p])}
    for _, module in nnx.iter_modules(network):
        for name, value in list(vars(module).items()):
            if isinstance(value, nnx.Param) and id(module) not in kept:
                setattr(module, name, Frozen(value.get_value()))
    for path, layer in chosen.items():
        *parents, last = path.split("/")
        owner = network
        for part in parents:
            owner = owner[int(part)] if part.isdigit() else getattr(owner, part)
        adapted = Adapted(layer, rank=rank, alpha=alpha or rank, rngs=rngs)
        setattr(owner, last, adapted)
    return network


def adapted(
    factory: Callable[..., nnx.Module],
    *,
    rank: int,
    projections: tuple[str, ...] = PROJECTIONS,
    alpha: float | None = None,
    trained: tuple[Path, ...] = (),
) -> Callable[..., nnx.Module]:
    """Makes a factory of networks with adapters, see `add_adapters`.

    Of a factory in `kljax.models.NETWORKS`, or one of your own, which is called alike.
    """

    def build(*arguments, rngs: nnx.Rngs, **options) -> nnx.Module:
        return add_adapters(
            factory(*arguments, rngs=rngs, **options),
            rank=rank,
            projections=projections,
            alpha=alpha,
            trained=trained,
            rngs=rngs,
        )

    # By its arguments a study knows what to tell it.
    build.__signature__ = signature_of(factory)
    return build
