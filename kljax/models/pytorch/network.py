"""A network of NNX that runs a graph of PyTorch: steps, and layers at their paths."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from kljax.core.types import Array
from kljax.models.adapters import Frozen
from kljax.models.pytorch.functions import DROPOUT, FUNCTIONS, entrywise
from kljax.models.pytorch.layers import Attention
from kljax.models.pytorch.pictures import Picture, first, last


class Step(NamedTuple):
    """One node of a graph, with the names of others in its arguments (`Ref`)."""

    name: str
    op: str
    target: Any
    args: tuple
    kwargs: dict


class Ref(NamedTuple):
    """The value of another node."""

    name: str


class Graph:
    """The steps of a forward pass; opaque to NNX."""

    def __init__(self, steps: list[Step], fed: dict[str, str]):
        self.steps, self.fed = steps, fed


class TorchNetwork(nnx.Module):
    """Layers at the paths that they have in PyTorch, and the graph between them."""

    def __init__(self, graph: Graph, layers: Mapping[str, Any]):
        """Takes the graph, and layers and variables by PyTorch's dotted names."""
        self.kljax_graph = graph
        for name, child in _nested(layers).items():
            setattr(self, name, child)

    def __call__(self, x: Array) -> Array:
        """Maps images [B, H, W, C], or other inputs, to logits."""
        with jax.numpy_rank_promotion("allow"):  # as PyTorch does
            return self._run(x)

    def _run(self, x: Array) -> Array:
        values: dict[str, Any] = {}

        def settled(value: Any) -> Any:
            if isinstance(value, Ref):
                return values[value.name]
            if isinstance(value, (list, tuple)):
                return [settled(one) for one in value]
            if isinstance(value, slice):
                ends = (value.start, value.stop, value.step)
                return slice(*map(settled, ends))
            return value

        for step in self.kljax_graph.steps:
            args = [settled(value) for value in step.args]
            kwargs = {name: settled(value) for name, value in step.kwargs.items()}
            if step.op == "output":
                return first(args[0])
            values[step.name] = self._made(step, x, args, kwargs)
        raise AssertionError("a graph has an output")

    def _made(self, step: Step, x: Array, args: list, kwargs: dict) -> Any:
        if step.op == "placeholder":
            return Picture(x) if jnp.ndim(x) == 4 else x
        if step.op == "get_attr":
            return _found(self, step.target)[...]
        if step.op == "call_module":
            return self._called(step, args, kwargs)
        if step.op == DROPOUT:
            return entrywise(_found(self, step.target))(args[0])
        return FUNCTIONS[step.target](*args, **kwargs)

    def _called(self, step: Step, args: list, kwargs: dict) -> Any:
        layer, fed = _found(self, step.target), self.kljax_graph.fed[step.target]
        if isinstance(layer, Attention):
            return layer(*map(first, args)), None
        (value,) = [*args, *kwargs.values()]
        ndim = jnp.ndim(first(value))
        if fed in ("picture", "channels") and ndim == 4:
            return Picture(layer(last(value)))
        if fed == "picture":
            raise ValueError(
                f"layer {step.target!r} is fed {jnp.shape(value)}, expected a batch of "
                "pictures [B, C, H, W]"
            )
        if fed == "channels":
            return jnp.moveaxis(layer(jnp.moveaxis(value, 1, -1)), -1, 1)
        if fed == "same" and isinstance(value, Picture):
            return Picture(layer(value.array))
        return layer(first(value))


def freeze_weight(layer: nnx.Module, path: str) -> None:
    """Makes a parameter of a layer, such as ``out_proj/kernel``, a constant."""
    *parents, own = path.split("/")
    owner = functools.reduce(getattr, parents, layer)
    setattr(owner, own, Frozen(getattr(owner, own)[...]))


def _found(network: Any, target: str) -> Any:
    for part in target.split("."):
        is_dict = isinstance(network, nnx.Dict)
        network = network[part] if is_dict else getattr(network, part)
    return network


def _nested(layers: Mapping[str, Any]) -> dict[str, Any]:
    """Puts layers by dotted names into dictionaries of NNX."""
    tree: dict[str, Any] = {}
    for name, layer in layers.items():
        *parents, own = name.split(".")
        at = tree
        for part in parents:
            at = at.setdefault(part, {})
        at[own] = layer

    def held(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return nnx.Dict({name: held(one) for name, one in value.items()})

    return {name: held(one) for name, one in tree.items()}
