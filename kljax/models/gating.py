"""Gates and taps at apply time: nothing else touches the structure of a network.

A user's network is never edited. For the length of one forward pass a *copy* of it is
changed: modules named by a path get a `Gate` on their output or a tap on their values,
and every `nnx.Conv` convolves by the fast formulation. The copy is thrown away after
the pass, so parameters, statistics and their trees stay those of the plain network.

A gate or tap changes an instance's class to a subclass whose ``__call__`` does the
extra work. Unlike a wrapper module this keeps every path and every attribute of the
layer, so code that looks at ``self.conv1.kernel_size`` still runs.
"""

import contextlib
import difflib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.errors import FlaxError
from jax import lax

from kljax.core.trees import map_columns
from kljax.core.types import Array, Gate, Gates, Path, PyTree
from kljax.models.convolution import Convolution

WATCH = "_kljax_watch"  # attribute by which a gated or tapped module finds its watch
TAP = "_kljax_tap"
# What raises errors that name a site.
OWN = ("kljax.models.gating", "kljax.models.linen", "kljax.models.calling")
# What code that is not ours raises when it is called in a way it was not made for.
FAILURES = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    NotImplementedError,
    FlaxError,
)


def module_paths(network: nnx.Module) -> dict[Path, nnx.Module]:
    """Lists the callable modules inside `network` by path, outermost left out."""
    return {
        "/".join(map(str, parts)): module
        for parts, module in nnx.iter_modules(network)
        if parts and callable(module)
    }


def hold_arrays(network: nnx.Module) -> None:
    """Makes leaves of the plain arrays that a network holds as attributes, in place.

    NNX does so itself, but not while it is traced: there an array that the network
    makes for itself would be taken for a static value, and escape the trace.
    """
    for _, module in nnx.iter_modules(network):
        for name, value in list(vars(module).items()):
            own = not isinstance(value, (nnx.Variable, nnx.Pytree))
            leaves = jax.tree.leaves(value) if own else ()
            if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
                setattr(module, name, nnx.data(value))


def find_sites(
    network: nnx.Module | Callable[[nnx.Rngs], nnx.Module],
    where: Callable[[Path, nnx.Module], bool],
    *,
    count: int,
) -> tuple[Path, ...]:
    """Finds the paths of the layers to lock, in the order of definition.

    Args:
      network: a network, or a builder ``nnx.Rngs -> network``.
      where: called with (path, module); true for the layers wanted.
      count: how many must match: a lock that silently misses its layer protects
        nothing.

    Returns:
      The paths. The order of this tuple is the order of a chained lock; modules are
      listed as `nnx.iter_modules` visits them (attributes by name, list items by
      position), so order the tuple yourself where that is not the order of the
      forward pass.

    Raises:
      ValueError: if another number of modules matches; names all paths there are.
    """
    if not isinstance(network, nnx.Module):
        build = network
        network = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    modules = module_paths(network)
    sites = tuple(path for path, module in modules.items() if where(path, module))
    if len(sites) != count:
        raise ValueError(
            f"{len(sites)} sites match {list(sites)}, expected {count}; "
            f"the network's modules are {sorted(modules)}"
        )
    return sites


class _Watch:
    """What happens at one gated or tapped module; opaque to NNX, lives for one pass."""

    def __init__(self, path: Path, module: nnx.Module):
        self.path = path
        self.gate: Gate | None = None
        self.input = self.output = False  # which values to tap
        self.shapes = _leaf_shapes(module)
        self.module = module
        self.calls = 0

    def check_call(self, module: nnx.Module) -> None:
        # Inside nnx.scan or nnx.vmap the module is rebuilt from slices of its
        # leaves: one gate would silently hit every layer of the stack. nnx.remat
        # and nnx.jit rebuild it too, with the same leaves, and are fine.
        shapes = _leaf_shapes(module)
        if not shapes and module is not self.module:
            raise ValueError(
                f"site {self.path!r} has no parameters and is called inside nnx.scan, "
                "nnx.vmap, nnx.remat or nnx.jit, where it cannot be told from a stack "
                "of layers; gate or tap a layer with parameters next to it"
            )
        if shapes != self.shapes:
            raise ValueError(
                f"site {self.path!r} is a scanned or vmapped stack: its parameters "
                f"{self.shapes} are sliced to {shapes} when it is called, so one gate "
                "or tap cannot name a single layer; unroll the stack into an nnx.List"
            )
        self.calls += 1
        if self.calls > 1:
            raise ValueError(
                f"site {self.path!r} is shared: it is called more than once in one "
                "pass, and a gate or tap belongs to one place; give each use a module"
            )


def gated(path: Path, gate: Gate, output: Any) -> Array:
    """Applies a gate to the output [..., C] of the layer at `path`.

    Raises:
      TypeError: if the output is not one array.
      ValueError: if the gate has another width.
    """
    if not isinstance(output, jax.Array):
        raise TypeError(
            f"site {path!r} returns {type(output).__name__}, a gate needs one array; "
            "gate a layer inside it"
        )
    width = output.shape[-1]
    for name, value in gate._asdict().items():
        if jnp.shape(value) != (width,):
            raise ValueError(
                f"gate {name} of site {path!r} has shape {jnp.shape(value)}, the layer "
                f"has {width} channels: expected ({width},)"
            )
    # Spelled out, so that strict rank promotion (a JAX setting) is no obstacle.
    shape = (1,) * (output.ndim - 1) + (width,)
    scale, shift = (jnp.reshape(value, shape) for value in gate)
    return scale * output + shift


def _leaf_shapes(module: nnx.Module) -> tuple[tuple[int, ...], ...]:
    state = nnx.state(module, nnx.Not(nnx.Intermediate))
    return tuple(tuple(jnp.shape(leaf)) for leaf in jax.tree.leaves(state))


@functools.cache
def _gated_class(cls: type[nnx.Module]) -> type[nnx.Module]:
    """Makes the subclass of `cls` that gates and taps (one per class, ever)."""

    def __call__(self, *args, **kwargs):
        watch = getattr(self, WATCH)
        watch.check_call(self)
        output = super(subclass, self).__call__(*args, **kwargs)
        if watch.gate is not None:
            output = gated(watch.path, watch.gate, output)
        # nnx.Intermediate carries values out of nnx.remat and nnx.jit, too.
        taps = {}
        if watch.input:
            taps[f"{watch.path}:input"] = [*args, *kwargs.values()][0]
        if watch.output:
            taps[watch.path] = output
        if taps:
            setattr(self, TAP, nnx.Intermediate(taps))
        return output

    subclass = type(cls.__name__, (cls,), {"__call__": __call__})
    return subclass


def apply_gates_and_taps(
    network: nnx.Module,
    gates: Gates,
    taps: Iterable[str],
    convolution: Convolution,
) -> Callable[[], dict[str, Array]]:
    """Puts gates, taps and a convolution on `network`, in place, for one forward pass.

    Args:
      network: a copy that nobody else uses.
      gates: site -> `Gate`, applied to the output of the module at that path.
      taps: ``"path"`` for a module's output (after its gate), ``"path:input"`` for
        its first argument.
      convolution: put into every `nnx.Conv` that still uses `lax`'s own.

    Returns:
      A function to call after the pass: checks that every site was reached and
      returns the tapped values by name.

    Raises:
      ValueError: for an unknown path (the real ones are listed), a site inside
        another, and during the pass for a shared or scanned site and for a gate of
        the wrong width.
    """
    modules = module_paths(network)
    for module in modules.values():
        plain = getattr(module, "conv_general_dilated", None)
        if isinstance(module, nnx.Conv) and plain is lax.conv_general_dilated:
            module.conv_general_dilated = convolution
    watches: dict[Path, _Watch] = {}
    for name in (*gates, *taps):
        path = name.removesuffix(":input")
        if path not in modules:
            raise ValueError(unknown_path(path, modules))
        watches.setdefault(path, _Watch(path, modules[path]))
    refuse_nested(list(gates))
    for path, gate in gates.items():
        watches[path].gate = gate
    for name in taps:
        watch = watches[name.removesuffix(":input")]
        watch.input |= name.endswith(":input")
        watch.output |= not name.endswith(":input")
    for path, watch in watches.items():
        modules[path].__class__ = _gated_class(type(modules[path]))
        setattr(modules[path], WATCH, watch)

    def collect() -> dict[str, Array]:
        unreached = [path for path, watch in watches.items() if not watch.calls]
        if unreached:
            raise ValueError(
                f"sites {unreached} were never called in the forward pass: the "
                "network reads their attributes, or does not use them"
            )
        values: dict[str, Array] = {}
        for path in watches:
            if hasattr(modules[path], TAP):
                values |= getattr(modules[path], TAP).get_value()
        return {name: values[name] for name in taps}

    return collect


def unknown_path(path: Path, modules: Iterable[Path]) -> str:
    """Writes the error for a path that does not exist."""
    modules = sorted(modules)
    near = difflib.get_close_matches(path, modules, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"no module at {path!r}{hint}; the network's modules are {modules}"


def refuse_nested(sites: list[Path]) -> None:
    """Raises for a site inside another."""
    for inner in sites:
        for outer in sites:
            if inner.startswith(outer + "/"):
                raise ValueError(
                    f"site {inner!r} lies inside site {outer!r}: nested gates would "
                    "act twice on one path; choose one of them"
                )


def describe(error: Exception) -> str:
    """Writes an exception of somebody else's code on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"


@contextlib.contextmanager
def layers_named(
    name: str, images: PyTree, path_of: Callable[[Any], Path | None]
) -> Iterator[None]:
    """Says in which layer a forward pass failed.

    Args:
      name: of the network that is called inside this context.
      images: [B, H, W, C], what it is called with.
      path_of: tells where a module is in the network; None for what is none of its.

    Raises:
      ValueError: for an exception from inside the network: names the innermost layer
        that was at work, and the shape of the images. What is refused there
        names its site already, and stays as it is.
    """
    try:
        yield
    except FAILURES as error:
        path, trace = None, error.__traceback__
        while trace is not None:
            frame, trace = trace.tb_frame, trace.tb_next
            path = path_of(frame.f_locals.get("self")) or path
        if frame.f_globals["__name__"] in OWN:
            raise
        at = f"layer {path!r} of {name}" if path else name
        shapes = map_columns(jnp.shape, images)
        raise ValueError(
            f"{at} fails on images of shape {shapes}: {describe(error)}"
        ) from error
