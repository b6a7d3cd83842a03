"""A Flax NNX network as two pure functions.

`from_nnx` splits a network into what is trained (params), what norm layers remember
(stats) and the rest (constants, dropout's random state), all flat dictionaries
``{"conv1/kernel": array}``, and puts them together again inside each `apply`. Gates,
taps and the fast convolution are put on there, by `kljax.models.gating`.
"""

import contextlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen, nnx

from kljax.core.inputs import InputSpec, zeros_of
from kljax.core.types import Array, Gates, Model, Output, Params, Path, Rng, Stats
from kljax.models.calling import Call, check_output, find_call
from kljax.models.convolution import fastest_convolution
from kljax.models.gating import (
    FAILURES,
    apply_gates_and_taps,
    describe,
    hold_arrays,
    layers_named,
    module_paths,
    sum_added,
)

GROUPS = (nnx.Param, nnx.BatchStat, nnx.RngState, ...)  # how a network is split


def from_nnx(
    network: nnx.Module | Callable[[nnx.Rngs], nnx.Module],
    *,
    convolution: str = "auto",
    call: Call | None = None,
) -> Model:
    """Turns an NNX network into a `Model`; the network itself is not edited.

    Args:
      network: a builder ``nnx.Rngs -> network`` (such as a module class), or an
        instance, whose present (trained) values ``init`` then gives back whatever
        its ``rng``. The network maps images [B, H, W, C], or another kind of input
        (`kljax.core.inputs`), to logits [B, Kc].
      convolution: a speed option, see `kljax.models.convolution`.
      call: ``(network, images, train) -> logits``, where more than images and mode has
        to be passed, or less be taken. None for ``network(images)``, with the mode in
        every argument of `kljax.models.calling.TRAIN` and ``EVALUATION`` that the
        network has.

    Returns:
      The `Model`. Its params and stats are flat dictionaries by path. ``apply`` raises
      ValueError where the network fails, which names the layer, and where it gives
      anything but one array with a row per image.

    Raises:
      TypeError: if `network` is neither a module nor a builder of one.
      ValueError: if the builder fails, for parameters that are no floating-point
        numbers, and for a call that needs an argument which cannot be guessed.
    """
    if isinstance(network, linen.Module) or (
        inspect.isclass(network) and issubclass(network, linen.Module)
    ):
        raise TypeError(_linen(network))
    if not isinstance(network, nnx.Module) and not callable(network):
        raise TypeError(f"expected an nnx.Module or a builder of one, got {network!r}")
    instance = network if isinstance(network, nnx.Module) else None
    build = (lambda rngs: network) if instance is not None else network
    classes: list[type] = [] if instance is None else [type(instance)]

    def groups(rng: Rng):
        built = _built(build, rng)
        classes.append(type(built))
        return nnx.split(built, *GROUPS)

    graphdef, *templates = (
        nnx.split(instance, *GROUPS)
        if instance is not None
        else nnx.eval_shape(lambda: groups(jax.random.key(0)))
    )
    kind = classes[0]
    call = find_call(kind) if call is None else call
    _check_trainable(templates[0])
    # Read now: an instance that is trained on does not change the model.
    present = None if instance is None else tuple(map(_flat, templates[:2]))
    # Neither trained nor a statistic nor random: constants, the same in every pass.
    # jit drops the rest of the network, which is then never built in memory.
    constants = (
        _flat(templates[3])
        if instance is not None
        else jax.jit(lambda: _flat(groups(jax.random.key(0))[4]))()
    )

    def init(rng: Rng) -> tuple[Params, Stats]:
        if instance is not None:
            return dict(present[0]), dict(present[1])
        _, params, stats, _, _ = groups(rng)
        return _flat(params), _flat(stats)

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
        streams = _random_state(templates[2], rngs, train)
        values = (params, stats, streams, constants)
        net = nnx.merge(
            graphdef,
            *(_filled(t, v) for t, v in zip(templates, values, strict=True)),
            copy=True,
        )
        net.train() if train else net.eval()
        collect = apply_gates_and_taps(
            net, gates or {}, taps, fastest_convolution(convolution)
        )
        paths = {id(layer): path for path, layer in module_paths(net).items()}
        with layers_named(kind.__name__, images, lambda it: paths.get(id(it))):
            logits = call(net, images, train)
        check_output(kind.__name__, images, logits)
        found = collect()
        tapped = {name: found[name] for name in taps}
        stats = _flat(nnx.state(net, nnx.BatchStat))
        return Output(logits, stats, tapped, sum_added(found))

    return Model(init, apply)


def site_widths(
    model: Model, sites: tuple[Path, ...], inputs: InputSpec | tuple[int, ...]
) -> tuple[int, ...]:
    """Finds the number of channels at each site, without computing anything.

    Args:
      model: the network.
      sites: paths of the layers to be gated.
      inputs: what the network takes in; of images the shape [H, W, C] of one will do.

    Raises:
      ValueError: for an unknown, shared or scanned site.
    """

    def taps() -> dict[str, Array]:
        params, stats = model.init(jax.random.key(0))
        images = zeros_of(inputs, 1)
        return model.apply(params, stats, images, taps=sites, train=False).taps

    shapes = jax.eval_shape(taps)
    return tuple(shapes[site].shape[-1] for site in sites)


def feeding_layers(
    model: Model,
    sites: tuple[Path, ...],
    inputs: InputSpec | tuple[int, ...],
    *,
    train: bool = True,
) -> tuple[tuple[Path, Path], ...]:
    """Finds the layer whose output each site takes in, without computing anything.

    Where a gate's scale is 0, the kernel of that layer has a gradient of zeros for
    that channel: dead channels of a lock can be seen from outside.

    Args:
      model: the network.
      sites: paths of the gated layers.
      inputs: what the network takes in; of images the shape [H, W, C] of one will do.
      train: norm mode of the pass that is looked at.

    Returns:
      (site, path of a layer with a kernel) for every site that is fed by one directly,
      or that has a kernel itself. Sites behind anything else are left out, and so are
      layers that cannot be tapped (shared or scanned ones).
    """
    params, stats = jax.eval_shape(model.init, jax.random.key(0))
    layers = [path.removesuffix("/kernel") for path in params if "/kernel" in path]
    itself = tuple((site, site) for site in sites if site in layers)
    behind = [site for site in sites if site not in layers]
    feeds: dict[Path, Path] = {}

    def look(names: list[Path]) -> None:
        def forward(params: Params, stats: Stats, rng: Rng) -> None:
            below = [f"{site}:input" for site in behind]
            taps = model.apply(
                params,
                stats,
                zeros_of(inputs, 1),
                taps=(*names, *below),
                train=train,
                rngs=rng,
            ).taps
            # While a function is traced, the same value is the same object.
            for site in behind:
                for name in names:
                    if taps[f"{site}:input"] is taps[name]:
                        feeds[site] = name

        jax.eval_shape(forward, params, stats, jax.random.key(0))

    if behind:
        try:
            look(layers)
        except ValueError:  # one of them is shared, scanned or unused: which?
            for name in layers:
                with contextlib.suppress(ValueError):
                    look([name])
    return itself + tuple(feeds.items())


def _linen(given: Any) -> str:
    kind = given if inspect.isclass(given) else type(given)
    return (
        "expected an nnx.Module or a builder of one, got the Linen module "
        f"{kind.__name__}: kljax.models.from_linen(module, image_shape) makes a Model "
        "of one; studies by name take the module itself, or a function without "
        "arguments that gives it"
    )


def _built(build: Callable[[nnx.Rngs], nnx.Module], rng: Rng) -> nnx.Module:
    """Builds a network; says so where the user's builder is what fails."""
    try:
        built = build(nnx.Rngs(rng))
    except FAILURES as error:
        hint = ""
        if "static attribute" in str(error):
            hint = "; hold layers in an nnx.List or nnx.Dict, not in a plain container"
        raise ValueError(
            f"building the network by {getattr(build, '__qualname__', build)}, called "
            f"with one nnx.Rngs, failed: {describe(error)}{hint}"
        ) from error
    if isinstance(built, linen.Module):
        raise TypeError(_linen(built))
    if not isinstance(built, nnx.Module):
        raise TypeError(f"the builder returned {built!r}, not an nnx.Module")
    hold_arrays(built)
    return built


def _check_trainable(params: Any) -> None:
    for parts, variable in nnx.to_flat_state(params):
        if not jax.numpy.issubdtype(variable.dtype, jax.numpy.floating):
            raise ValueError(
                f"parameter {'/'.join(map(str, parts))!r} is of type {variable.dtype}, "
                "which has no gradient: hold it in an nnx.Variable, not an nnx.Param"
            )


def _flat(state: Any) -> dict[Path, Array]:
    # A plain array in an attribute is a leaf without a variable around it.
    return {
        "/".join(map(str, parts)): leaf.get_value()
        if isinstance(leaf, nnx.Variable)
        else jax.numpy.asarray(leaf)
        for parts, leaf in nnx.to_flat_state(state)
    }


def _filled(template: Any, values: dict[Path, Array]) -> Any:
    """Puts `values` into the variables of `template`; names what does not fit."""
    flat = {"/".join(map(str, p)): (p, leaf) for p, leaf in nnx.to_flat_state(template)}
    if flat.keys() != values.keys():
        raise ValueError(
            f"the tree does not fit the network: missing "
            f"{sorted(flat.keys() - values.keys())}, unknown "
            f"{sorted(values.keys() - flat.keys())}"
        )
    # As JAX arrays: NNX writes into a variable, and would into the caller's NumPy.
    filled = []
    for name, (parts, leaf) in flat.items():
        value = jax.numpy.asarray(values[name])
        held = isinstance(leaf, nnx.Variable)
        filled.append((parts, leaf.replace(value) if held else value))
    return nnx.from_flat_state(filled)


def _random_state(
    template: Any, rngs: Mapping[str, Rng] | Rng | None, train: bool
) -> dict[Path, Array]:
    """Gives every random stream of the network its state for this pass.

    Each stream gets a random key of its own: two dropouts that share a tag must not
    share a mask. Evaluation draws nothing, so any state will do.
    """
    filled = {}
    for index, (parts, variable) in enumerate(nnx.to_flat_state(template)):
        name, tag = "/".join(map(str, parts)), getattr(variable, "tag", "default")
        if not isinstance(variable, nnx.RngKey):
            filled[name] = jax.numpy.zeros(variable.shape, variable.dtype)
            continue
        rng = rngs.get(tag, rngs.get("default")) if isinstance(rngs, Mapping) else rngs
        if rng is None and train:
            raise ValueError(
                f"{name!r} draws from the random stream {tag!r} when train=True: pass "
                f"rngs={{{tag!r}: rng}} (got {rngs!r})"
            )
        rng = jax.random.key(0) if rng is None else rng
        rng = jax.random.fold_in(rng, index)
        # A stack of layers (nnx.vmap, nnx.scan) has a random key for each.
        filled[name] = jax.random.split(rng, variable.shape) if variable.shape else rng
    return filled
