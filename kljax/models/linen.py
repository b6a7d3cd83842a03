"""A Flax Linen network as two pure functions.

Linen offers a hook on every call of every submodule, `nn.intercept_methods`; gates and
taps are put on there, by the submodule's path. Parameters and running statistics are
flat dictionaries ``{"conv1/kernel": array}``, as those of `kljax.models.from_nnx`.
"""

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from kljax.core.inputs import InputSpec, zeros_of
from kljax.core.types import Array, Gates, Model, Output, Params, Path, Rng, Stats
from kljax.models.calling import Call, check_output, find_call
from kljax.models.gating import (
    INPUT,
    change_and_tap,
    layers_named,
    refuse_nested,
    sum_added,
    unknown_path,
    with_input,
)

# Numbers the passes: tapped values travel in a collection, so that they come out of
# nn.remat, and a pass has a collection of its own, because nn.jit caches by the names
# of the collections and would run the gates of an earlier pass.
_passes = itertools.count()


def from_linen(
    module: nn.Module,
    image_shape: tuple[int, int, int] | InputSpec,
    *,
    call: Call | None = None,
) -> Model:
    """Turns a Linen module into a `Model`; the module itself is not edited.

    Convolutions stay as the module has them: Linen layers that are to use the fast
    form take ``conv_general_dilated=kljax.models.convolution.fastest_convolution()``.

    Args:
      module: maps images [B, H, W, C] to logits [B, Kc].
      image_shape: [H, W, C] of one image, or the spec of other inputs; Linen needs a
        pass to find its parameters.
      call: ``(module, images, train) -> logits``, see `kljax.models.from_nnx`.

    Returns:
      The `Model`. A bare random key given as ``rngs`` serves every stream.

    Raises:
      TypeError: if `module` is no Linen module.
      ValueError: for variables other than parameters and batch statistics, for images
        that the module fails on, and for a call that needs an argument which cannot
        be guessed.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"expected a flax.linen.Module, got {module!r}")
    kind = type(module).__name__
    call = find_call(type(module)) if call is None else call
    called: set[Path] = set()

    def record(next_call, args, kwargs, context):
        called.add("/".join(context.module.path))
        return next_call(*args, **kwargs)

    def variables(rng: Rng) -> Mapping[str, Any]:
        images = zeros_of(image_shape, 1)
        with layers_named(kind, images, _path_of):
            return module.init(rng, images, False, method=call)

    with nn.intercept_methods(record):
        template = dict(jax.eval_shape(variables, jax.random.key(0)))
    shapes = {
        name: flatten_dict(template.pop(name, {}), sep="/")
        for name in ("params", "batch_stats")
    }
    if template:
        raise ValueError(
            f"the module has variables of the kinds {sorted(template)}; expected only "
            "'params' and 'batch_stats'"
        )
    called.discard("")

    def init(rng: Rng) -> tuple[Params, Stats]:
        drawn = variables(rng)
        params, stats = (flatten_dict(drawn.get(name, {}), sep="/") for name in shapes)
        return params, stats

    def apply(
        params: Params,
        stats: Stats,
        images: Array,
        *,
        gates: Gates | None = None,
        taps: tuple[str, ...] = (),
        train: bool,
        rngs: Mapping[str, Rng] | Rng | None = None,
    ) -> Output:
        given = dict(zip(shapes, (params, stats), strict=True))
        for name, tree in given.items():
            if tree.keys() != shapes[name].keys():
                raise ValueError(
                    f"{name} do not fit the network: missing "
                    f"{sorted(shapes[name].keys() - tree.keys())}, unknown "
                    f"{sorted(tree.keys() - shapes[name].keys())}"
                )
        gates = gates or {}
        sites = {name.removesuffix(INPUT) for name in (*gates, *taps)}
        for path in sites - called:
            raise ValueError(unknown_path(path, called))
        refuse_nested(list(gates))
        reached: list[Path] = []
        collection = f"kljax_taps_{next(_passes)}"

        def gate_and_tap(next_call, args, kwargs, context):
            path = "/".join(context.module.path)
            if path not in sites or context.method_name != "__call__":
                return next_call(*args, **kwargs)
            values: dict[str, Array] = {}
            visit = functools.partial(change_and_tap, gates, taps, values)
            if path + INPUT in {*gates, *taps}:
                first = visit(path + INPUT, [*args, *kwargs.values()][0])
                args, kwargs = with_input(args, kwargs, first)
            output = next_call(*args, **kwargs)
            _check_call(path, context.module, params, reached)
            output = visit(path, output)
            for name in values:
                if not context.module.sow(collection, name, values[name]):
                    raise ValueError(
                        f"the tap {name!r} cannot leave the transformation that it is "
                        "in, which does not carry all variables"
                    )
            return output

        with nn.intercept_methods(gate_and_tap), layers_named(kind, images, _path_of):
            logits, variables_after = module.apply(
                {name: unflatten_dict(tree, sep="/") for name, tree in given.items()},
                images,
                train,
                method=call,
                rngs=rngs,
                mutable=["batch_stats", collection],
            )
        check_output(kind, images, logits)
        if len(reached) < len(sites):
            raise ValueError(
                f"sites {sorted(sites - set(reached))} were never called in this pass"
            )
        tapped = flatten_dict(variables_after.get(collection, {}))
        found = {parts[-1]: values[0] for parts, values in tapped.items()}
        new_stats = flatten_dict(variables_after.get("batch_stats", {}), sep="/")
        wanted = {name: found[name] for name in taps}
        return Output(logits, new_stats, wanted, sum_added(found))

    return Model(init, apply)


def _path_of(module: Any) -> Path | None:
    bound = isinstance(module, nn.Module) and module.scope is not None
    return "/".join(module.path) if bound else None


def _check_call(path: Path, module: nn.Module, params: Params, reached: list) -> None:
    """Notes the call of a site; refuses stacks of layers and shared layers."""
    owner = module  # the nearest module outwards that has parameters
    while "params" not in owner.variables and isinstance(owner.parent, nn.Module):
        owner = owner.parent
    seen = flatten_dict(owner.variables.get("params", {}))
    for parts, leaf in seen.items():
        whole = params["/".join((*owner.path, *parts))]
        if jnp.shape(leaf) != jnp.shape(whole):
            raise ValueError(
                f"site {path!r} is in a scanned or vmapped stack: a parameter of shape "
                f"{jnp.shape(whole)} is sliced to {jnp.shape(leaf)} when it is called, "
                "so one gate or tap cannot name a single layer; unroll the stack"
            )
    if path in reached:
        raise ValueError(
            f"site {path!r} is shared: it is called more than once in one pass, and a "
            "gate or tap belongs to one place; give each use a module"
        )
    reached.append(path)
