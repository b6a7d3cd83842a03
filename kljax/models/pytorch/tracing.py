"""What torch.fx finds in a module: the nodes of its forward pass, read as steps.

Also what of a graph cannot be computed by pure functions: values that are used after
something in place has written over them.
"""

import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from kljax.models.pytorch.functions import ASSIGNED, DROPOUT, IN_PLACE, VIEWS
from kljax.models.pytorch.network import Ref, Step

if TYPE_CHECKING:
    import torch

HOOKS = ("_forward_hooks", "_forward_pre_hooks")
HOOKS += ("_backward_hooks", "_backward_pre_hooks")


def trace(module: "torch.nn.Module") -> list:
    """Lists the nodes of a forward pass, in their order.

    Raises:
      ValueError: if the pass depends on values, or fails on stand-ins for tensors.
    """
    import torch.fx

    class Tracer(torch.fx.Tracer):
        """Goes into a user's modules, and into containers of PyTorch's."""

        def is_leaf_module(self, found, name):
            own = type(found).__module__.startswith("torch.nn")
            return own and not isinstance(found, torch.nn.Sequential)

        def proxy(self, node):
            return Assigned(node, self)

    # Keeps ``x += y`` apart from ``x + y``, which torch.fx takes it for.
    operators = {f"__{name}__": _assigned(getattr(operator, name)) for name in ASSIGNED}
    Assigned = type("Assigned", (torch.fx.Proxy,), operators)

    try:
        return list(Tracer().trace(module).nodes)
    except Exception as error:  # whatever a forward pass raises on stand-ins
        raise ValueError(
            f"{type(module).__name__} cannot be traced by torch.fx: its forward pass "
            f"depends on values, or fails on stand-ins for tensors "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from error


def _assigned(function: Callable) -> Callable:
    return lambda x, other: x.tracer.create_proxy(
        "call_function", function, (x, other), {}
    )


def name_of(target: Any) -> str:
    """Gives the name of a function, method or kind of layer that a node calls."""
    return target if isinstance(target, str) else getattr(target, "__name__", "")


def find_hooks(module: "torch.nn.Module") -> list[str]:
    """Finds the modules that have hooks, which no graph shows."""
    return [
        name or type(module).__name__
        for name, one in module.named_modules()
        if any(getattr(one, hooks) for hooks in HOOKS)
    ]


def frozen_modules(module: "torch.nn.Module") -> list[str]:
    """Lists the modules in evaluation mode of a module in training mode."""
    if not module.training:
        return []
    return [name for name, one in module.named_modules() if not one.training]


def tensor_of(module: "torch.nn.Module", target: str) -> "torch.Tensor":
    """Gives the parameter, buffer or constant of a module at a dotted name."""
    owner, _, name = target.rpartition(".")
    return getattr(module.get_submodule(owner), name)


def is_same_pass(
    train: list, test: list, trained: "torch.nn.Module", tested: "torch.nn.Module"
) -> bool:
    """Tells whether training and evaluation differ in rates of dropout alone.

    Args:
      train, test: nodes of either pass.
      trained, tested: the module that each was traced of, which has its constants: what
        a pass computes of buffers is one for torch.fx.
    """
    import torch

    if list(map(_fixed_part, train)) != list(map(_fixed_part, test)):
        return False
    names = [node.target for node in train if node.op == "get_attr"]
    return all(
        torch.equal(*(tensor_of(one, name).nan_to_num() for one in (trained, tested)))
        for name in names
    )


def _fixed_part(node: Any) -> tuple:
    """Says what of a node may not differ between training and evaluation."""
    name = name_of(node.target) or str(node.target)
    more = () if name == DROPOUT else (str(node.args), str(node.kwargs))
    return (node.op, name, *more)


def step_of(node: Any) -> Step:
    """Reads a node of torch.fx as a step; other nodes in its arguments are `Ref`s."""

    def taken(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(taken(one) for one in value)
        if isinstance(value, slice):
            return slice(*map(taken, (value.start, value.stop, value.step)))
        return Ref(value.name) if hasattr(value, "op") else value

    kwargs = {name: taken(value) for name, value in node.kwargs.items()}
    return Step(node.name, node.op, node.target, taken(tuple(node.args)), kwargs)


def find_overwritten(nodes: list, modules: Mapping[str, Any]) -> list[str]:
    """Finds values that are used after something in place has written over them."""
    groups: dict[Any, set] = {}  # of nodes that may be the same memory
    written: dict[Any, Any] = {}  # values that are gone, and by which node
    found = []
    for node in nodes:
        for given in node.all_input_nodes:
            if given in written:
                found.append(
                    f"{node.name!r} of {given.name!r}, which {written[given].name!r} "
                    "has overwritten in place"
                )
        layer = modules[node.target] if node.op == "call_module" else None
        name = name_of(node.target if layer is None else type(layer))
        groups[node] = {node}
        if node.op in ("get_attr", "placeholder", "output") or not node.args:
            continue
        given = node.args[0]
        if given not in groups:
            continue
        in_place = getattr(layer, "inplace", False) or node.kwargs.get("inplace")
        if in_place or name in IN_PLACE:
            written |= dict.fromkeys(groups[given], node)
        elif name in VIEWS:
            groups[given].add(node)
            groups[node] = groups[given]
    return found
