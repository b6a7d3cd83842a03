"""The catalogue of defences: what a name stands for, and the numbers it takes.

To add a defence, write it in a file of its own and give it a row in `KINDS`; or name
your own function as ``package.module:function``, which needs no row. Of a row's numbers
one at least is written as three strengths, ``std=(0.001, 0.01, 0.1)``: the second is
its value if none is written, and the table of all defences
(``experiments/defences.py``) has all three.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

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
      batch: examples in a gradient.
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
    batch: int = 1


Value = float | str | None
Strengths = tuple[float, float, float]


class Kind(NamedTuple):
    """A defence by name.

    Attributes:
      make: ``(Sites, **options) -> Defence``. The options are numbers, by name; in a
        compiled study they are data, which Python cannot look at
        (`kljax.defences.is_concrete`).
      options: the value of each option if none is written, in the order in which they
        are written; None where one has to be. An option whose value is a word takes
        words.
      strengths: of the options that make it strong or weak, three values each, from
        weak to strong: the table of all defences has it at the first of each, at the
        second of each, which are the values of `options`, and at the third. Empty for a
        defence without numbers.
      fixed: the options that are part of the program, and no data: words, and numbers
        that shapes depend on.
      norm, gated: see `kljax.defences.arms.Arm`.
      about: the function whose docstring says what it is; None for `make` itself.
      why_not_adaptive: why there is nothing more to do for an attacker who knows the
        defence, where it has no `simulate`, `log_prob`, `strategies` or
        `simulate_inputs`; None where it has one.
    """

    make: Callable[..., Defence]
    options: Mapping[str, Value] = {}
    fixed: tuple[str, ...] = ()
    norm: bool = False
    gated: bool = False
    why_not_adaptive: str | None = None
    strengths: Mapping[str, Strengths] = {}
    about: Callable[..., Defence] | None = None


def _without_sites(make: Callable[..., Defence], **options: Value | Strengths) -> Kind:
    """Makes the row of a defence that gates nothing; see `_kind`."""
    return _kind(lambda sites, **numbers: make(**numbers), options, about=make)


def _kind(make: Callable[..., Defence], options: Mapping[str, Any], **others) -> Kind:
    """Makes a row; three values in place of one are the option's strengths."""
    strengths = {n: value for n, value in options.items() if isinstance(value, tuple)}
    middle = {name: values[1] for name, values in strengths.items()}
    return Kind(make, {**options, **middle}, strengths=strengths, **others)


def _mixed(redrawn: bool) -> Kind:
    """Makes the row of a quantisation in bits that are drawn from three numbers."""

    def make(low, middle, high) -> Defence:
        return defences.quantise_mixed((low, middle, high), redrawn=redrawn)

    return _without_sites(
        make, low=(8.0, 4.0, 2.0), middle=(12.0, 8.0, 4.0), high=(16.0, 16.0, 8.0)
    )._replace(about=defences.quantise_mixed)


NO_DEFENCE = "there is no defence to know"
PUBLIC_GATES = "its gates are public parameters, which every attacker applies"
PUBLIC_MASK = "every attack compares what can be read alone, and the mask is public"
CLASSIFIER = "classifier"  # in an arm: the study's classifier, whatever its path


def _path_of(sites: Sites, layer: str) -> Path:
    """Reads a layer's path, which in an arm has points in place of slashes."""
    return sites.classifier if layer == CLASSIFIER else layer.replace(".", "/")


def _at_layer(
    make: Callable[..., Defence], layer: str, **options: float | Strengths
) -> Kind:
    """Makes the row of a defence of what a layer is fed."""

    def made(sites: Sites, *, layer: str, **numbers) -> Defence:
        path = _path_of(sites, layer)
        sites.value_shape(f"{path}:input")  # which refuses an unknown layer
        return make(path, **numbers)

    return _kind(made, {**options, "layer": layer}, fixed=("layer",), about=make)


def _in_front(
    make: Callable[..., Defence], layer: str, **options: float | Strengths
) -> Kind:
    """Makes the row of a defence that puts a module in front of a layer."""

    def made(sites: Sites, *, layer: str, **numbers) -> Defence:
        path = _path_of(sites, layer)
        name = f"{path}:input"
        behind = functools.partial(sites.layers_behind, name)
        return make(path, sites.value_shape(name), behind=behind, **numbers)

    return _kind(made, {**options, "layer": layer}, fixed=("size", "layer"), about=make)


# Strengths of several rows: CENSOR's trial step, and the weight of a divergence.
CENSOR_RATES = (1e-5, 1e-4, 1e-2)
BETAS = (1e-4, 1e-3, 1e-2)

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
        about=defences.plaintext_gates,
        why_not_adaptive=PUBLIC_GATES,
    ),
    # From the very values that the key-lock of the same victim gives.
    "plaintext-gates-as-lock": Kind(
        lambda sites: defences.plaintext_gates(
            defences.gates_of(defences.keylock(sites.lock))
        ),
        norm=True,
        gated=True,
        about=defences.plaintext_gates,
        why_not_adaptive=PUBLIC_GATES,
    ),
    "keylock": Kind(
        lambda sites: defences.keylock(sites.lock),
        norm=True,
        gated=True,
        about=defences.keylock,
    ),
    "fedbn": Kind(
        lambda sites: defences.private_norms(sites.paths, sites.widths),
        norm=True,
        gated=True,
        about=defences.private_norms,
    ),
    "fedpass": _kind(
        lambda sites, **options: defences.gates_by_passports(
            sites.paths, sites.widths, **options
        ),
        {"size": (16.0, 64.0, 256.0)},
        fixed=("size",),
        norm=True,
        gated=True,
        about=defences.gates_by_passports,
    ),
    # Default strengths: those of CENSOR (Zhang et al., NDSS 2025), its comparison arms.
    "gaussian-noise": _without_sites(defences.gaussian_noise, std=(0.001, 0.01, 0.1)),
    "laplace-noise": _without_sites(defences.laplace_noise, std=(0.001, 0.01, 0.1)),
    "magnitude-pruning": _without_sites(
        defences.magnitude_pruning, fraction=(0.1, 0.2, 0.9)
    ),
    # Its last share in Deep Gradient Compression.
    "top-k": _without_sites(defences.top_k, share=(0.1, 0.001, 0.0001)),
    "quantise": _without_sites(defences.quantise, bits=(16.0, 8.0, 2.0)),
    **{
        f"quantise-{mode}": _without_sites(
            functools.partial(defences.quantise, mode=mode), bits=(16.0, 8.0, 2.0)
        )
        for mode in ("affine", "stochastic")
    },
    "quantise-float16": _without_sites(
        functools.partial(defences.quantise, 16.0, mode="float16")
    ),
    "quantise-mixed": _mixed(redrawn=False),
    "quantise-mixed-redrawn": _mixed(redrawn=True),
    # The numbers of the official code, defense.py and configs_gan_free.yml.
    "censor": _without_sites(defences.censor, trials=20.0, rate=CENSOR_RATES),
    "censor-fallback": _without_sites(
        functools.partial(defences.censor, fallback=True),
        trials=20.0,
        rate=CENSOR_RATES,
    ),
    # As the official code computes it.
    "censor-official": _without_sites(
        functools.partial(defences.censor, fallback=True, single_division=True),
        trials=20.0,
        rate=CENSOR_RATES,
    ),
    "norm-clipping": _without_sites(defences.norm_clipping, bound=(16.0, 4.0, 1.0)),
    "example-clipping": _without_sites(
        defences.example_clipping, bound=(16.0, 4.0, 1.0)
    ),
    # Shares of its DLG notebook, of CENSOR and GGL, and of GI-NAS.
    "soteria": _at_layer(defences.soteria, CLASSIFIER, fraction=(0.01, 0.1, 0.8)),
    "svdefense": _without_sites(defences.svd_truncation, energy=(0.99, 0.9, 0.5)),
    # The middle ones, and the other numbers, are those of TL-System/plato.
    "outpost": _without_sites(
        defences.outpost, beta=0.125, noise=(0.2, 0.8, 3.2), fraction=0.8, share=0.4
    ),
    "graddefense": _without_sites(
        defences.slice_noise, slices=10.0, perturbed=5.0, std=(0.001, 0.01, 0.1)
    ),
    "pre-clip-noise": _without_sites(defences.pre_clip_noise, std=(0.01, 0.1, 1.0)),
    "dp-sgd": _kind(
        lambda sites, **options: defences.dp_sgd(**options, batch=sites.batch),
        {"bound": 1.0, "noise_multiplier": (0.1, 1.0, 4.0), "pre_clip_std": 0.0},
        about=defences.dp_sgd,
    ),
    "dp-fedavg": _without_sites(
        defences.dp_fedavg, bound=1.0, noise_multiplier=(0.01, 0.1, 1.0)
    ),
    "obscured-inputs": _without_sites(
        defences.obscure_inputs, steps=50.0, rate=0.05, weight=(0.25, 0.5, 1.0)
    ),
    "refined-inputs": _without_sites(
        defences.refine_inputs,
        steps=50.0,
        rate=0.05,
        weight=(0.1, 0.5, 2.0),
        share=0.5,
    ),
    # The official constants, but for 1,000 steps and proxies of the same data.
    "dcs": _without_sites(
        defences.conceal_samples,
        steps=(20.0, 50.0, 200.0),
        rate=0.1,
        weight_x=0.01,
        weight_z=0.01,
        weight_y=0.7,
        threshold=300.0,
        proxy="noise",
    )._replace(fixed=("proxy",)),
    # Zhang et al.'s ImageNet models take alpha of 0.1 to 0.4, their CIFAR ones 1.
    "mixup": _without_sites(defences.mix_up, count=2.0, alpha=(0.2, 1.0, 4.0))._replace(
        fixed=("count",)
    ),
    # The values of the official code, Hazelsuko07/InstaHide, but for the centre.
    "instahide": _without_sites(
        defences.insta_hide, count=(2.0, 4.0, 6.0), upper=0.65, centre=0.5
    )._replace(fixed=("count",)),
    "instahide-cross": _without_sites(
        defences.insta_hide_cross,
        count=(4.0, 6.0, 8.0),
        upper=0.65,
        least=0.3,
        centre=0.5,
        public="photos",
    )._replace(fixed=("count", "public")),
    # The paper's random choice of two, for CIFAR-100 and ResNet-20.
    "ats": Kind(
        lambda sites, policies: defences.transform_images(
            defences.read_policies(policies)
        ),
        {"policies": "3-1-7+43-18-18"},
        fixed=("policies",),
        about=defences.transform_images,
    ),
    # The values of the official code, utils/AdaDefense in Rand2AI/AdaDefense.
    "adadefense": _without_sites(
        defences.adam_stand_in, size=1e-3, b1=0.9, b2=0.999, eps=(1e-3, 1e-8, 1e-12)
    ),
    # The paper's size and weight.
    "precode": _in_front(defences.dense_bottleneck, CLASSIFIER, size=256.0, beta=BETAS),
    # In LeNet what comes after the first activation. Size 0 is half of the channels.
    "cvb": _in_front(defences.convolutional_bottleneck, "conv2", size=0.0, beta=BETAS),
    **{
        f"selective-{score}": _without_sites(
            functools.partial(defences.selective_encryption, score=score),
            share=(0.01, 0.1, 0.5),
        )._replace(why_not_adaptive=PUBLIC_MASK)
        for score in SCORES
    },
}


def write_strengths(name: str) -> tuple[str, ...]:
    """Writes a defence of `KINDS` at each of its strengths, as an arm has it.

    Returns:
      Three arms without a strategy; the name alone for a defence without numbers.
    """
    kind = KINDS[name]
    places = {option: place for place, option in enumerate(kind.options)}
    leading = [places[option] for option in kind.strengths] == [*range(len(places))]
    written = [
        ",".join(
            f"{value:g}" if leading else f"{option}={value:g}"
            for option, value in zip(kind.strengths, values, strict=True)
        )
        for values in zip(*kind.strengths.values(), strict=True)
    ]
    return tuple(f"{name}={options}" for options in written) or (name,)


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
