"""The catalogue of defences: what a name stands for, and the numbers it takes.

To add a defence, write it in a file of its own and give it a row in `KINDS`; or name
your own function as ``package.module:function``, which needs no row.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import NamedTuple

from kljax import defences
from kljax.core.registry import call_named, check_callable, resolve
from kljax.core.types import Path
from kljax.defences import Defence
from kljax.defences.lock import KeyLock
from kljax.defences.selective import SCORES


class Sites(NamedTuple):
    """Where defences of this study sit in its network.

    Attributes:
      paths, widths: of the layers that a lock gates, and their channels.
      lock: on them.
      classifier: path of the last layer.
      value_shape, layers_behind: ``name -> shape`` of a value, and ``name -> paths`` of
        the layers that are fed by it, see `kljax.models.value_shape`. Where no network
        is, no shape is right.
    """

    paths: tuple[Path, ...]
    widths: tuple[int, ...]
    lock: KeyLock
    classifier: Path = "classifier"
    value_shape: Callable[[str], tuple[int, ...]] = lambda name: (1, 1, 1)
    layers_behind: Callable[[str], tuple[Path, ...]] = lambda name: ()


class Kind(NamedTuple):
    """A defence by name.

    Attributes:
      make: ``(Sites, **options) -> Defence``. The options are numbers, by name; in a
        compiled study they are data, which Python cannot look at
        (`kljax.defences.is_concrete`).
      options: the value of each option if none is written, in the order in which they
        are written; None where one has to be. An option whose value is a word takes
        words.
      fixed: the options that are part of the program, and no data: words, and numbers
        that shapes depend on.
      norm, gated: see `kljax.defences.arms.Arm`.
      why_not_adaptive: why there is nothing more to do for an attacker who knows the
        defence, where it has no `simulate`, `log_prob`, `strategies` or
        `simulate_inputs`; None where it has one.
    """

    make: Callable[..., Defence]
    options: Mapping[str, float | str | None] = {}
    fixed: tuple[str, ...] = ()
    norm: bool = False
    gated: bool = False
    why_not_adaptive: str | None = None


def _without_sites(make: Callable[..., Defence], **options: float | None) -> Kind:
    """Makes the row of a defence that gates nothing."""
    return Kind(lambda sites, **numbers: make(**numbers), options)


def _mixed(redrawn: bool) -> Kind:
    """Makes the row of a quantisation in bits that are drawn from three numbers."""

    def make(low, middle, high) -> Defence:
        return defences.quantise_mixed((low, middle, high), redrawn=redrawn)

    return _without_sites(make, low=4.0, middle=8.0, high=16.0)


NO_DEFENCE = "there is no defence to know"
PUBLIC_GATES = "its gates are public parameters, which every attacker applies"
PUBLIC_MASK = "every attack compares what can be read alone, and the mask is public"
CLASSIFIER = "classifier"  # in an arm: the study's classifier, whatever its path


def _in_front(make: Callable[..., Defence], layer: str, **options: float) -> Kind:
    """Makes the row of a defence that puts a module in front of a layer.

    In an arm, a layer's path has points in place of slashes.
    """

    def made(sites: Sites, *, layer: str, **numbers) -> Defence:
        path = sites.classifier if layer == CLASSIFIER else layer.replace(".", "/")
        name = f"{path}:input"
        behind = functools.partial(sites.layers_behind, name)
        return make(path, sites.value_shape(name), behind=behind, **numbers)

    return Kind(made, {**options, "layer": layer}, fixed=("size", "layer"))


KINDS: dict[str, Kind] = {
    "none": _without_sites(defences.none)._replace(why_not_adaptive=NO_DEFENCE),
    "bn-control": _without_sites(defences.none)._replace(
        norm=True, why_not_adaptive=NO_DEFENCE
    ),
    "plaintext-gates": Kind(
        lambda sites: defences.plaintext_gates(
            defences.unit_gates(sites.paths, sites.widths)
        ),
        norm=True,
        gated=True,
        why_not_adaptive=PUBLIC_GATES,
    ),
    # From the very values that the key-lock of the same victim gives.
    "plaintext-gates-as-lock": Kind(
        lambda sites: defences.plaintext_gates(
            defences.gates_of(defences.keylock(sites.lock))
        ),
        norm=True,
        gated=True,
        why_not_adaptive=PUBLIC_GATES,
    ),
    "keylock": Kind(
        lambda sites: defences.keylock(sites.lock),
        norm=True,
        gated=True,
    ),
    "fedbn": Kind(
        lambda sites: defences.private_norms(sites.paths, sites.widths),
        norm=True,
        gated=True,
    ),
    "fedpass": Kind(
        lambda sites, **options: defences.gates_by_passports(
            sites.paths, sites.widths, **options
        ),
        {"size": 64.0},
        ("size",),
        norm=True,
        gated=True,
    ),
    # Default strengths: those of CENSOR (Zhang et al., NDSS 2025), its comparison arms.
    "gaussian-noise": _without_sites(defences.gaussian_noise, std=0.01),
    "laplace-noise": _without_sites(defences.laplace_noise, std=0.01),
    "magnitude-pruning": _without_sites(defences.magnitude_pruning, fraction=0.2),
    # Its last share in Deep Gradient Compression.
    "top-k": _without_sites(defences.top_k, share=0.001),
    "quantise": _without_sites(defences.quantise, bits=8.0),
    **{
        f"quantise-{mode}": _without_sites(
            functools.partial(defences.quantise, mode=mode), bits=8.0
        )
        for mode in ("affine", "stochastic")
    },
    "quantise-float16": _without_sites(
        functools.partial(defences.quantise, 16.0, mode="float16")
    ),
    "quantise-mixed": _mixed(redrawn=False),
    "quantise-mixed-redrawn": _mixed(redrawn=True),
    # The numbers of the official code, defense.py and configs_gan_free.yml.
    "censor": _without_sites(defences.censor, trials=20.0, rate=1e-4),
    "censor-fallback": _without_sites(
        functools.partial(defences.censor, fallback=True), trials=20.0, rate=1e-4
    ),
    # As the official code computes it.
    "censor-official": _without_sites(
        functools.partial(defences.censor, fallback=True, single_division=True),
        trials=20.0,
        rate=1e-4,
    ),
    "norm-clipping": _without_sites(defences.norm_clipping, bound=4.0),
    "example-clipping": _without_sites(defences.example_clipping, bound=4.0),
    "obscured-inputs": _without_sites(
        defences.obscure_inputs, steps=50.0, rate=0.05, weight=0.5
    ),
    # The values of the official code, utils/AdaDefense in Rand2AI/AdaDefense.
    "adadefense": _without_sites(
        defences.adam_stand_in, size=1e-3, b1=0.9, b2=0.999, eps=1e-8
    ),
    # The paper's size and weight.
    "precode": _in_front(defences.dense_bottleneck, CLASSIFIER, size=256.0, beta=1e-3),
    # In LeNet what comes after the first activation. Size 0 is half of the channels.
    "cvb": _in_front(defences.convolutional_bottleneck, "conv2", size=0.0, beta=1e-3),
    **{
        f"selective-{score}": _without_sites(
            functools.partial(defences.selective_encryption, score=score), share=0.1
        )._replace(why_not_adaptive=PUBLIC_MASK)
        for score in SCORES
    },
}


def find_kind(name: str) -> Kind:
    """Finds a defence by its name in `KINDS`, or ``package.module:function``.

    A user's function makes a `Defence`. Its parameters are the options: those that have
    a number as their default, and those that have none. A user's `Kind` is taken as it
    is.

    Raises:
      ValueError: for an unknown name, with the nearest known one, and for what is no
        function.
    """
    found = resolve("defence", name, KINDS)
    if isinstance(found, Kind):
        return found
    function = check_callable("defence", name, found)

    def make(sites: Sites, **options) -> Defence:
        del sites
        defence = call_named("defence", name, function, **options)
        if not isinstance(defence, Defence):
            raise ValueError(
                f"defence {name!r} gave {type(defence).__name__}, expected a "
                "kljax.defences.Defence"
            )
        return defence

    return Kind(make, _numbers_of(function))


def _numbers_of(function: Callable[..., Defence]) -> dict[str, float | None]:
    """Lists the parameters of a user's function that take a number."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # what is not written in Python may not say what it takes
        return {}
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    options: dict[str, float | None] = {}
    for parameter in parameters:
        default = parameter.default
        if parameter.kind not in named:
            continue
        if default is parameter.empty:
            options[parameter.name] = None
        elif isinstance(default, (int, float)) and not isinstance(default, bool):
            options[parameter.name] = float(default)
    return options
