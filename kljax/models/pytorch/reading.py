"""PyTorch networks are read: converted node by node, or refused by name."""

import copy
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from flax import nnx

from kljax.core.types import Array, Model, Path
from kljax.models.adapters import Frozen
from kljax.models.model import from_nnx
from kljax.models.pytorch.functions import (
    ALLOWED,
    ATTRIBUTES,
    DROPOUT,
    FUNCTIONS,
    not_allowed,
)
from kljax.models.pytorch.layers import LAYERS, Axes, to_array
from kljax.models.pytorch.network import Graph, Ref, Step, TorchNetwork, freeze_weight
from kljax.models.pytorch.tracing import (
    find_hooks,
    find_overwritten,
    frozen_modules,
    is_same_pass,
    name_of,
    step_of,
    tensor_of,
    trace,
)

if TYPE_CHECKING:
    import torch


def from_torch(module: "torch.nn.Module", *, convolution: str = "auto") -> Model:
    """Makes a `Model` of a PyTorch network; the module itself is not edited.

    Its forward pass maps images [B, C, H, W] (or tokens [B, T]) to logits; the `Model`
    takes images [B, H, W, C], as all of kljax. Parameters are those that the module has
    now, at the paths of its layers: ``layer1.0.conv1.weight`` is
    ``layer1/0/conv1/kernel``; buffers of batch norms are statistics, others constants.

    Parameters that need no gradient are constants, too: no client sends their gradient.
    So are mean and variance of a frozen batch norm: one that is in evaluation mode
    while the module is in training mode, or that the module's own ``train()`` puts into
    it. It does the same in both modes of the `Model`; a dropout that is frozen drops
    nothing. A module of which all is in evaluation mode is frozen nowhere: whether a
    client trains in that mode is said elsewhere, as by ``norm="eval"`` of an audit. A
    batch norm whose scale and shift need no gradient still trains its statistics, as in
    PyTorch.

    Differs from PyTorch: the running variance of a batch norm moves towards the
    variance of the batch, not its unbiased estimate. All is computed in float32.

    Args:
      module: layers of the table `LAYERS`, with functions of `FUNCTIONS` between.
      convolution: form of the convolutions, see `from_nnx`.

    Returns:
      The `Model`; `tensors_from_torch` gives weights and gradients in its layout.

    Raises:
      ImportError: without PyTorch.
      ValueError: for a forward pass that depends on values, takes several arguments or
        gives several outputs; for layers, functions and options that are not covered,
        hooks, tied parameters, and in-place operations on what is used afterwards (all
        are named); for a pass that does something else in evaluation than in training,
        dropout and norms apart; and for a network of which nothing needs a gradient.
    """
    return from_nnx(network_from_torch(module), convolution=convolution)


def network_from_torch(module: "torch.nn.Module") -> TorchNetwork:
    """Makes the NNX network of `from_torch`, where a network is asked for.

    Raises:
      ImportError, ValueError: as `from_torch`.
    """
    return _read(module)[0]


def tensors_from_torch(
    module: "torch.nn.Module", tensors: Mapping[str, Any]
) -> dict[Path, Array]:
    """Puts tensors of a module's names into the layout of its `Model`.

    Args:
      module: as given to `from_torch`.
      tensors: by PyTorch's names, such as ``module.state_dict()``, or gradients of
        ``module.named_parameters()``. What the `Model` has not, such as a counter of
        batches, is left out.

    Returns:
      By the paths of the `Model`: parameters, and statistics where they are given.

    Raises:
      ValueError: if none of them is a tensor of the network, and for one that has
        another shape than the module's, or is None.
    """
    _, names = _read(module)
    own, found = module.state_dict(), {}
    for path, (name, axes) in names.items():
        if name in tensors:
            _check_shape(name, tensors[name], tuple(own[name].shape))
            found[path] = to_array(tensors[name], axes)
    if not found:
        raise ValueError(
            f"none of {', '.join(tensors)} is a tensor of this network, which has "
            f"{', '.join(name for name, _ in names.values())}"
        )
    return found


def _check_shape(name: str, tensor: Any, wanted: tuple[int, ...]) -> None:
    if tensor is None:
        raise ValueError(
            f"tensor {name!r} is None, as a gradient is that was not computed: give "
            f"one of shape {wanted}, or leave it out"
        )
    shape = tuple(np.shape(tensor))
    if shape != wanted:
        raise ValueError(
            f"tensor {name!r} has shape {shape}, and the module's has {wanted}: give "
            "it in PyTorch's layout"
        )


def _read(
    module: "torch.nn.Module",
) -> tuple[TorchNetwork, dict[Path, tuple[str, Axes]]]:
    """Makes the network; and PyTorch's name and axes of each tensor by its path."""
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "kljax.from_torch needs PyTorch, which is not installed: pip install "
            "'kljax[torch]'"
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise ValueError(f"expected a torch.nn.Module, got {type(module).__name__}")
    kind = type(module).__name__
    hooked = find_hooks(module)
    if hooked:
        told = ", ".join(f"hooks of {name!r}" for name in hooked)
        raise ValueError(
            f"{kind} cannot be taken over from PyTorch: {told}; no graph shows what "
            "they do"
        )
    conversion = _Conversion(copy.deepcopy(module).cpu())
    conversion.convert()
    if conversion.refused:
        told = ", ".join(dict.fromkeys(conversion.refused))
        raise ValueError(
            f"{kind} cannot be taken over from PyTorch: {told}; layers that can are "
            f"{', '.join(LAYERS)}"
        )
    graph = Graph(conversion.steps, conversion.fed)
    return TorchNetwork(graph, conversion.layers), conversion.names


class _Conversion:
    """What has been made of a module so far.

    Attributes:
      module: a copy, of which the mode of training is changed.
      steps: those of the forward pass, in its order.
      layers: layers and variables of NNX by their names in PyTorch.
      fed: how each layer is fed, see `Layer`.
      names: PyTorch's name and axes of each tensor of the network, by its path.
      refused: what stands in the way, in words.
    """

    def __init__(self, module: "torch.nn.Module"):
        self.module, self.modules = module, dict(module.named_modules())
        self.steps: list[Step] = []
        self.layers: dict[str, Any] = {}
        self.fed: dict[str, str] = {}
        self.names: dict[Path, tuple[str, Axes]] = {}
        self.refused: list[str] = []

    def convert(self) -> None:
        """Converts all nodes of the forward pass."""
        frozen = frozen_modules(self.module)
        self.module.train()
        for name in frozen:
            self.modules[name].training = False
        tested = copy.deepcopy(self.module).eval()
        train, test = trace(self.module), trace(tested)
        self.refused += find_overwritten(train, self.modules)
        if not is_same_pass(train, test, self.module, tested):
            self.refused.append(
                "a forward pass that differs between training and evaluation"
            )
        for node, other in zip(train, test, strict=False):
            step = step_of(node)
            if node.op == "call_module":
                step = self.convert_layer(step, node)
            elif node.op == "get_attr":
                self.take_tensor(node.target)
            elif node.op == "placeholder" and node is not train[0]:
                self.refused.append(f"the argument {node.target!r} beside the first")
            elif node.op == "output" and not hasattr(node.args[0], "op"):
                self.refused.append(f"an output that is no tensor ({node.args[0]})")
            elif node.op in ("call_function", "call_method"):
                if name_of(node.target) == DROPOUT:
                    step = self.convert_dropout(step, node, other)
                else:
                    step = self.convert_function(step)
            self.steps.append(step)
        self.find_shared()
        trained = any(p.requires_grad for p in self.module.parameters())
        if not self.refused and not trained:
            self.refused.append("no parameter of it needs a gradient")

    def convert_layer(self, step: Step, node: Any) -> Step:
        """Makes a layer; its tensors that nobody trains become constants."""
        target = step.target
        module = self.modules[target]
        kind = type(module).__name__
        if kind == "MultiheadAttention":
            step = self.feed_attention(step, module, node)
        if kind not in LAYERS:
            self.refused.append(f"layer {target!r} ({kind})")
            return step
        layer = LAYERS[kind]
        try:
            wrong = not_allowed(layer.allowed, vars(module))
            if wrong:
                raise ValueError(wrong)
            made = layer.make(module)
        except ValueError as error:
            self.refused.append(f"layer {target!r} ({kind} with {error})")
            return step
        self.layers[target], self.fed[target] = made, layer.fed
        tensors = module.state_dict(keep_vars=True)
        for name, (ours, axes) in layer.axes.items():
            if name not in tensors:
                continue
            trains = module.training
            if _is_parameter(tensors[name]):
                trains = tensors[name].requires_grad
            if not trains:
                freeze_weight(made, ours)
            else:
                path = f"{target.replace('.', '/')}/{ours}"
                self.names[path] = (f"{target}.{name}", axes)
        return step

    def feed_attention(self, step: Step, module: Any, node: Any) -> Step:
        """Leaves query, key and value to an attention, if nothing else matters."""
        try:
            bound = inspect.signature(module.forward).bind(*step.args, **step.kwargs)
        except TypeError as error:
            self.refused.append(f"attention {step.target!r} ({error})")
            return step
        given = bound.arguments
        fed = tuple(given.pop(name) for name in ("query", "key", "value"))
        masks = [n for n, v in given.items() if isinstance(v, Ref)]
        masks += [n for n in ("is_causal",) if given.get(n)]
        if masks:
            self.refused.append(f"attention {step.target!r} with {', '.join(masks)}")
        if any(getattr(user, "args", ())[1:] != (0,) for user in node.users):
            self.refused.append(
                f"attention {step.target!r} of which more is used than [0]"
            )
        return step._replace(args=fed, kwargs={})

    def take_tensor(self, target: str) -> None:
        """Takes over a parameter or buffer that the forward pass uses itself."""
        tensor = tensor_of(self.module, target)
        trained = _is_parameter(tensor) and tensor.requires_grad
        self.layers[target] = (nnx.Param if trained else Frozen)(to_array(tensor))
        if trained:
            self.names[target.replace(".", "/")] = (target, None)

    def convert_dropout(self, step: Step, node: Any, other: Any) -> Step:
        """Makes a layer of a dropout; `other` is the same node in evaluation."""
        if not node.args:
            self.refused.append(f"dropout {node.name!r}, whose input has a keyword")
            return step
        rate = _option(node, 1, "p", 0.5)
        modes = [_option(one, 2, "training", True) for one in (node, other)]
        if modes == [True, True] or not isinstance(rate, (int, float)):
            self.refused.append(f"dropout {node.name!r}, which evaluation does not end")
            return step
        rate = rate if modes[0] else 0.0
        self.layers[node.name] = nnx.Dropout(rate, rngs=nnx.Rngs(0))
        return step._replace(op=DROPOUT, target=node.name)

    def convert_function(self, step: Step) -> Step:
        """Settles a function's name, if its arguments are covered."""
        name = name_of(step.target)
        is_other_attribute = name == "getattr" and step.args[1] not in ATTRIBUTES
        if name not in FUNCTIONS or is_other_attribute:
            self.refused.append(f"function {name or step.target!r}")
            return step
        kwargs = {n: v for n, v in step.kwargs.items() if n != "inplace"}
        try:
            bound = inspect.signature(FUNCTIONS[name]).bind(*step.args, **kwargs)
        except TypeError as error:
            self.refused.append(f"function {name!r} ({error})")
            return step
        bound.apply_defaults()
        wrong = not_allowed(ALLOWED.get(name, {}), bound.arguments)
        if wrong:
            self.refused.append(f"function {name!r} with {wrong}")
        return step._replace(target=name, kwargs=kwargs)

    def find_shared(self) -> None:
        """Refuses parameters of two names, of which PyTorch sends one, or two users."""
        used, seen = {name for name, _ in self.names.values()}, {}
        for name, parameter in self.module.named_parameters(remove_duplicate=False):
            one = seen.setdefault(id(parameter), name) if name in used else name
            if one != name:
                self.refused.append(f"parameter {name!r}, which is {one!r}, too")
        for name in self.layers:
            owner = name.rpartition(".")[0]
            if owner in self.layers:
                self.refused.append(
                    f"parameter {name!r}, which layer {owner!r} uses, too"
                )


def _is_parameter(tensor: Any) -> bool:
    import torch

    return isinstance(tensor, torch.nn.Parameter)


def _option(node: Any, place: int, name: str, default: Any) -> Any:
    """Reads an argument of a node, which is given by its name, its place or not."""
    placed = node.args[place] if len(node.args) > place else default
    return node.kwargs.get(name, placed)
