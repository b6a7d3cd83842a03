"""Gates and taps at apply time: nothing else touches the structure of a network.

A user's network is never edited. For the length of one forward pass a *copy* of it is
changed: modules named by a path get a `Gate` or an inserted module on their output or
input, or a tap on these values, and every `nnx.Conv` convolves by the fast formulation.
The copy is thrown away after the pass, so parameters, statistics and their trees stay
those of the plain network.

A gate or tap changes an instance's class to a subclass whose ``__call__`` does the
extra work. Unlike a wrapper module this keeps every path and every attribute of the
layer, so code that looks at ``self.conv1.kernel_size`` still runs.
"""

import contextlib
import difflib
import functools
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.errors import FlaxError
from jax import lax

from kljax.core.checks import is_concrete
from kljax.core.trees import map_columns
from kljax.core.types import Array, Gate, Gates, InsertedModule, Path, PyTree
from kljax.models.convolution import Convolution

WATCH = "_kljax_watch"  # attribute by which a gated or tapped module finds its watch
TAP = "_kljax_tap"
INPUT = ":input"  # after a path: the layer's first argument in place of its output
ADDED = ":added loss"  # after the name of a value: what its inserted module adds
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
            if not all(map(is_concrete, leaves)):
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
        self.gates: dict[str, Gate | InsertedModule] = {}  # by name of the value
        self.taps: set[str] = set()  # names of the values to tap
        self.shapes = _leaf_shapes(module)
        self.module = module
        self.calls = 0

    @property
    def reads_input(self) -> bool:
        """Tells whether what the module is fed is changed, or tapped."""
        return self.path + INPUT in self.taps | self.gates.keys()

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


def changed(
    name: str, gate: Gate | InsertedModule, value: Any
) -> tuple[Array, dict[str, Array]]:
    """Puts a gate, or an inserted module, on the value of that name.

    Returns:
      The value in its place, and what is added to the loss, by ``name + ADDED``; a
      `Gate` adds nothing.

    Raises:
      TypeError: as `gated`.
      ValueError: as `gated`, and for a module that gives another shape, or adds no
        scalar.
    """
    if isinstance(gate, Gate):
        return gated(name, gate, value), {}
    if not isinstance(value, jax.Array):
        raise TypeError(
            f"the value at {name!r} is {type(value).__name__}, an inserted module "
            "needs one array; put it at a layer inside"
        )
    given, added = gate(value)
    shapes = jnp.shape(given), jnp.shape(added)
    if shapes != (value.shape, ()):
        raise ValueError(
            f"the module inserted at {name!r} gives shape {shapes[0]} and a loss of "
            f"shape {shapes[1]}: expected {value.shape}, as it is fed, and a scalar"
        )
    return given, {name + ADDED: jnp.asarray(added)}


def change_and_tap(
    gates: Gates, taps: Container[str], found: dict[str, Array], name: str, value: Any
) -> Any:
    """Puts on a value what is there for its name, and taps what comes of it.

    Args:
      gates: by name of the value.
      taps: names of the values that are tapped.
      found: gets what is tapped, and what is added to the loss (`changed`).
      name: of this value.
      value: a layer's output, or its first argument.
    """
    if name in gates:
        value, added = changed(name, gates[name], value)
        found.update(added)
    if name in taps:
        found[name] = value
    return value


def with_input(args: tuple, kwargs: dict, value: Any) -> tuple[tuple, dict]:
    """Puts another value in the place of a call's first argument."""
    if args:
        return (value, *args[1:]), kwargs
    return args, {**kwargs, next(iter(kwargs)): value}


def sum_added(values: dict[str, Array]) -> Array | float:
    """Adds up what inserted modules add to the loss, of all values by name."""
    return sum((x for name, x in values.items() if name.endswith(ADDED)), 0.0)


def _leaf_shapes(module: nnx.Module) -> tuple[tuple[int, ...], ...]:
    state = nnx.state(module, nnx.Not(nnx.Intermediate))
    return tuple(tuple(jnp.shape(leaf)) for leaf in jax.tree.leaves(state))


@functools.cache
def _gated_class(cls: type[nnx.Module]) -> type[nnx.Module]:
    """Makes the subclass of `cls` that gates and taps (one per class, ever)."""

    def __call__(self, *args, **kwargs):
        watch = getattr(self, WATCH)
        watch.check_call(self)
        taps: dict[str, Array] = {}
        visit = functools.partial(change_and_tap, watch.gates, watch.taps, taps)
        if watch.reads_input:
            first = visit(watch.path + INPUT, [*args, *kwargs.values()][0])
            args, kwargs = with_input(args, kwargs, first)
        output = super(subclass, self).__call__(*args, **kwargs)
        output = visit(watch.path, output)
        # nnx.Intermediate carries values out of nnx.remat and nnx.jit, too.
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
      gates: name -> `Gate` or inserted module, applied to the value of that name, as
        ``taps`` has them.
      taps: ``"path"`` for a module's output, ``"path:input"`` for its first argument;
        both after their gate.
      convolution: put into every `nnx.Conv` that still uses `lax`'s own.

    Returns:
      A function to call after the pass: checks that every site was reached and
      returns the tapped values by name, and what inserted modules add to the loss by
      name + `ADDED`.

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
        path = name.removesuffix(INPUT)
        if path not in modules:
            raise ValueError(unknown_path(path, modules))
        watches.setdefault(path, _Watch(path, modules[path]))
    refuse_nested(list(gates))
    for name, gate in gates.items():
        watches[name.removesuffix(INPUT)].gates[name] = gate
    for name in taps:
        watches[name.removesuffix(INPUT)].taps.add(name)
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
        wanted = {name: values[name] for name in taps}
        added = {name: x for name, x in values.items() if name.endswith(ADDED)}
        return wanted | added

    return collect


def unknown_path(path: Path, modules: Iterable[Path]) -> str:
    """Writes the error for a path that does not exist."""
    modules = sorted(modules)
    near = difflib.get_close_matches(path, modules, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"no module at {path!r}{hint}; the network's modules are {modules}"


def refuse_nested(sites: list[Path]) -> None:
    """Raises for a site inside another; those of values of one layer are none."""
    sites = [site.removesuffix(INPUT) for site in sites]
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
