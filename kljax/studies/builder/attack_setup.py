"""A study's attacker: the attack, its options and optimiser, and what it has learnt.

Numbers that a study varies are data of one compiled function: `Dials`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from kljax.attacks import Attack, Attacker, Setting
from kljax.attacks.denoising import denoised
from kljax.attacks.optimisers import make_optimiser
from kljax.attacks.presets import PRESETS, Preset
from kljax.core.denoiser import Denoiser
from kljax.core.generator import Generator
from kljax.core.language_model import LanguageModel
from kljax.core.registry import call_named
from kljax.core.types import Array, PyTree
from kljax.defences.arms import Arm
from kljax.models.decoders import list_decoders
from kljax.studies.builder.attack_options import RATES, parse_options, split_options
from kljax.studies.builder.denoiser import parse_denoise
from kljax.studies.builder.generator import find_generator
from kljax.studies.config import LeakConfig


class Dials(NamedTuple):
    """Numbers that one compiled function takes as data."""

    options: tuple[Array, ...]  # [] each: of the arm's defences, in order
    step_size: Array | None  # [] of the attack's optimiser; None for its own
    attack: dict[str, Array] = {}  # name -> [], of the attack's options
    generator: PyTree = ()  # weights of the attacker's generator
    language_model: PyTree = ()  # and of their language model
    denoiser: PyTree = ()  # and of their denoiser
    strength: Array | None = None  # [] of the noise it takes off, if it is a number


def make_dials(
    config: LeakConfig,
    arm: Arm,
    preset: Preset,
    attacker: Attacker,
    count: int,
) -> Dials:
    """Makes the dials of an arm, with a leading axis [N]."""

    def each(value: ArrayLike, dtype: DTypeLike = np.float32) -> np.ndarray:
        value = np.asarray(value, dtype)
        return np.broadcast_to(value, (count, *value.shape))

    def learnt(model: Generator | LanguageModel | Denoiser | None) -> PyTree:
        if model is None:
            return ()
        return jax.tree.map(lambda x: each(x, jnp.result_type(x)), model.weights)

    given = parse_options(config.attack_options, config.attack, preset)
    strength = None
    if config.denoise is not None:
        strength = parse_denoise(config.denoise).strength
    return Dials(
        tuple(each(option) for option in arm.options),
        None if config.step_size is None else each(config.step_size),
        {name: each(value) for name, value in split_options(given, preset)[1].items()},
        learnt(attacker.generator),
        learnt(attacker.language_model),
        learnt(attacker.denoiser),
        None if strength is None or isinstance(strength, str) else each(strength),
    )


def build_attack(
    config: LeakConfig, setting: Setting, preset: Preset, dialled: Dials | None = None
) -> Attack:
    """Makes the attack of a study.

    Args:
      config: of the study.
      setting: the ground.
      preset: of the attack's name.
      dialled: what is data of the compiled function; None for the numbers themselves.

    Raises:
      ValueError: for whatever the attack cannot work on, for options that it does not
        have, and for a rate of an optimiser that another takes the place of.
    """
    optimiser = None
    if config.optimiser is not None:
        step_size = config.step_size if dialled is None else dialled.step_size
        optimiser = make_optimiser(config.optimiser, step_size)
    options = parse_options(config.attack_options, config.attack, preset)
    ignored = [name for name in RATES if name in options]
    if config.optimiser is not None and ignored and config.attack in PRESETS:
        raise ValueError(
            f"attack option {ignored[0]!r} is of the optimiser that attack "
            f"{config.attack!r} has, and optimiser={config.optimiser!r} takes its "
            "place: leave one of the two out, and give step_size for a rate"
        )
    options |= {} if dialled is None else dialled.attack
    options |= {"steps": config.steps, "restarts": config.restarts}
    attack = call_named(
        "attack", config.attack, preset.build, setting, optimiser, **options
    )
    if config.denoise is None:
        return attack
    strength = parse_denoise(config.denoise).strength
    if dialled is not None and dialled.strength is not None:
        strength = dialled.strength
    objective = None if preset.objective is None else preset.objective(setting)
    return denoised(attack, setting, objective, strength)


def require_generator(config: LeakConfig, preset: Preset) -> Generator | None:
    """Finds the generator of a study, and asks for one where the attack needs it.

    Raises:
      ValueError: if the attack needs one and the study names none.
    """
    if preset.generator and config.generator is None:
        raise ValueError(
            f"attack {config.attack!r} looks among the images of a trained generator: "
            f"give generator, such as {' or '.join(list_decoders())}"
        )
    return find_generator(config)
