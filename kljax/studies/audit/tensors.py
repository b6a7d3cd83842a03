"""Which tensor of a file is which of a network: by name rules, then by shape.

PyTorch calls a kernel ``weight`` and has its outputs first; Flax calls it ``kernel``
and has them last. A layer that is fed a flattened picture sees channels first in
PyTorch and last in Flax, so that its rows are in another order. What is done to a
tensor is told with it (`Match.moved`).
"""

import re
from collections.abc import Iterable, Mapping, Set
from typing import NamedTuple, TypeAlias

import numpy as np

# What a name of the network may be called in a file.
CALLED = {
    "kernel": ("kernel", "weight"),
    "scale": ("scale", "weight"),
    "embedding": ("embedding", "weight"),
    "bias": ("bias",),
    "mean": ("mean", "running_mean"),
    "var": ("var", "running_var"),
}
PREFIXES = ("model", "params", "module", "network", "net", "grads", "state_dict")
LAYOUTS = ("flax", "torch")
# Of a tensor in PyTorch's order: the axes in Flax's, by how many there are.
AXES = {1: (0,), 2: (1, 0), 3: (2, 1, 0), 4: (2, 3, 1, 0), 5: (2, 3, 4, 1, 0)}


Arrays: TypeAlias = Mapping[str, np.ndarray]  # of a file, by name
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]  # of a network, by path
Given: TypeAlias = Mapping[str, str]  # name in a file, by path


class Match(NamedTuple):
    """A tensor of the network, found in a file.

    Attributes:
      array: in the network's layout, in the file's type.
      source: its name in the file.
      how: by what it was found: ``name``, ``shape`` or ``map``.
      moved: what was done to its axes; empty for nothing.
    """

    array: np.ndarray
    source: str
    how: str
    moved: str


def match_tensors(
    found: Mapping[str, np.ndarray],
    wanted: Mapping[str, tuple[int, ...]],
    *,
    what: str,
    flattened: Mapping[str, tuple[int, ...]] | None = None,
    given: Mapping[str, str] | None = None,
) -> dict[str, Match]:
    """Finds every tensor of a network among those of a file.

    Args:
      found: of the file, by name.
      wanted: shape of each of the network, by path.
      what: the file, for errors.
      flattened: [H, W, C] that the input of a kernel was flattened from, by path; its
        rows are put into Flax's order where the file is in PyTorch's.
      given: names in the file by path, as the user says.

    Raises:
      ValueError: for a tensor that nothing fits, one that two fit, a name that is
        there twice, and tensors that are left over.
    """
    layout = guess_layout(found)
    given = given or {}
    _check_given(given, found, wanted, what)
    chosen = {path: (name, "map") for path, name in given.items()}
    for path in wanted.keys() - chosen.keys():
        names = _called(path, found)
        if len(names) > 1:
            raise ValueError(
                f"{what}: {path!r} of the network may be any of {', '.join(names)}: "
                f"say which, --map {path}={names[0]}"
            )
        if names:
            chosen[path] = (names[0], "name")
    taken = {name for name, _ in chosen.values()}
    for path, name in _by_shape(found, wanted, chosen, taken, layout, what).items():
        chosen[path] = (name, "shape")
    left = found.keys() - {name for name, _ in chosen.values()}
    left -= {name for name in left if _is_statistic(name)}
    if left:
        raise ValueError(
            f"{what}: {', '.join(sorted(left))} is no tensor of this network, which "
            f"has {', '.join(wanted)}"
        )
    return {
        path: _fitted(path, *chosen[path], found, wanted, layout, what, flattened or {})
        for path in wanted
    }


def guess_layout(names: Iterable[str]) -> str:
    """Tells whose layout names speak of: PyTorch's where kernels are weights."""
    leaves = {re.split(r"[./]", name)[-1] for name in names}
    return "torch" if "weight" in leaves and "kernel" not in leaves else "flax"


def _check_given(given: Given, found: Arrays, wanted: Shapes, what: str) -> None:
    for path, name in given.items():
        if path not in wanted:
            raise ValueError(f"--map {path}={name}: the network has no {path!r}")
        if name not in found:
            raise ValueError(
                f"--map {path}={name}: {what} has no {name!r}; it has "
                f"{', '.join(found)}"
            )


def _called(path: str, found: Mapping[str, np.ndarray]) -> list[str]:
    """Lists the names of a file that a path of the network may have there."""
    *parts, leaf = path.split("/")
    wanted = {(*parts, other) for other in CALLED.get(leaf, (leaf,))}
    return [name for name in found if _parts(name) in wanted]


def _parts(name: str) -> tuple[str, ...]:
    parts = re.split(r"[./]", name)
    while len(parts) > 1 and parts[0] in PREFIXES:
        parts = parts[1:]
    return tuple(parts)


def _is_statistic(name: str) -> bool:
    return _parts(name)[-1] in {*CALLED["mean"], *CALLED["var"]}


def _by_shape(
    found: Arrays,
    wanted: Shapes,
    chosen: Mapping[str, tuple[str, str]],
    taken: Set[str],
    layout: str,
    what: str,
) -> dict[str, str]:
    """Pairs what no name tells, where shapes leave one way."""
    paths = [path for path in wanted if path not in chosen]
    names = [name for name in found if name not in taken and not _is_statistic(name)]
    fits = {
        path: [
            n for n in names if _turned_shape(found[n].shape, layout) == wanted[path]
        ]
        for path in paths
    }
    for path, fitting in fits.items():
        if not fitting:
            have = ", ".join(f"{n} {found[n].shape}" for n in names) or "nothing"
            raise ValueError(
                f"{what}: there is no tensor for {path!r} of the network, of shape "
                f"{wanted[path]} here and {_torch_shape(wanted[path])} in PyTorch; "
                f"left in the file: {have}"
            )
        rivals = [other for other in paths if fits[other] == fitting and other != path]
        if len(fitting) > 1 or rivals:
            raise ValueError(
                f"{what}: {', '.join(fitting)} would fit {', '.join([path, *rivals])} "
                f"of the network by shape alone: say which, --map {path}={fitting[0]}"
            )
    return {path: fitting[0] for path, fitting in fits.items()}


def _turned_shape(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    if layout == "flax" or len(shape) not in AXES:
        return tuple(shape)
    return tuple(shape[axis] for axis in AXES[len(shape)])


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    axes = AXES.get(len(shape), range(len(shape)))
    return tuple(shape[axis] for axis in np.argsort(axes))


def _fitted(
    path: str,
    name: str,
    how: str,
    found: Arrays,
    wanted: Shapes,
    layout: str,
    what: str,
    flattened: Mapping[str, tuple[int, ...]],
) -> Match:
    array, moved = found[name], ""
    if layout == "torch" and array.ndim in AXES and array.ndim > 1:
        array = array.transpose(AXES[array.ndim])
        moved = "axes turned from PyTorch's order into Flax's"
        if path in flattened:
            height, width, channels = flattened[path]
            array = _reordered(array, height, width, channels)
            moved += f", rows from channels, height, width {channels, height, width} "
            moved += "to height, width, channels"
    if array.shape != wanted[path]:
        raise ValueError(
            f"{what}: {name!r} has shape {found[name].shape}, and {path!r} of the "
            f"network would be {wanted[path]} in Flax and "
            f"{_torch_shape(wanted[path])} in PyTorch: another network, number of "
            "classes or image size"
        )
    return Match(array, name, how, moved)


def _reordered(
    kernel: np.ndarray, height: int, width: int, channels: int
) -> np.ndarray:
    """Puts the rows [C H W, F] of a kernel into the order [H W C, F]."""
    if len(kernel) != height * width * channels:
        return kernel  # of another shape, which is told next
    rows = kernel.reshape(channels, height, width, -1).transpose(1, 2, 0, 3)
    return rows.reshape(kernel.shape)
