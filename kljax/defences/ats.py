"""ATS: training on transformed images, by policies that were searched for."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljax.core.types import Array, Private, Rng
from kljax.defences.context import Context, drawn_secret
from kljax.defences.defence import Defence
from kljax.defences.image_operations import OPERATIONS
from kljax.threat import POLICY_STRATEGIES, HiddenParts

LONGEST = 3  # operations of a policy
Policy = tuple[int, ...]  # places in `NUMBERED`

# Magnitudes 0 to 9 of the official code, by operation; of others there is none.
RANGES = {
    "shear_y": np.linspace(0, 0.3, 10),
    "translate_x": np.linspace(0, 150 / 331, 10),
    "translate_y": np.linspace(0, 150 / 331, 10),
    "rotate": np.linspace(0, 30, 10),
    "colour": np.linspace(0, 0.5, 10),
    "contrast": np.linspace(0, 0.5, 10),
    "brightness": np.linspace(0, 0.5, 10),
    "sharpness": np.linspace(0, 0.5, 10),
    "solarise": np.linspace(256, 0, 10),
    "posterise": np.round(np.linspace(8, 4, 10)),
}
# The numbering of the official code, policy.py: operation and place of its magnitude.
# Some are there twice, and some do nothing (28 and 39).
NUMBERED: tuple[tuple[str, int], ...] = (
    *(("invert", 7), ("contrast", 6), ("rotate", 2), ("translate_x", 9)),
    *(("sharpness", 1), ("sharpness", 3), ("shear_y", 2), ("translate_y", 2)),
    *(("autocontrast", 5), ("equalise", 2), ("shear_y", 5), ("posterise", 5)),
    *(("colour", 3), ("brightness", 5), ("sharpness", 9), ("brightness", 9)),
    *(("equalise", 5), ("equalise", 1), ("contrast", 7), ("sharpness", 5)),
    *(("colour", 5), ("translate_x", 5), ("equalise", 7), ("autocontrast", 8)),
    *(("translate_y", 3), ("sharpness", 6), ("brightness", 6), ("colour", 8)),
    *(("solarise", 0), ("invert", 0), ("equalise", 0), ("autocontrast", 0)),
    *(("equalise", 8), ("equalise", 4), ("colour", 5), ("equalise", 5)),
    *(("autocontrast", 4), ("solarise", 4), ("brightness", 3), ("colour", 0)),
    *(("solarise", 1), ("autocontrast", 0), ("translate_y", 3), ("translate_y", 3)),
    *(("autocontrast", 1), ("solarise", 1), ("equalise", 5), ("invert", 0)),
    *(("translate_y", 3), ("autocontrast", 1)),
)
# Of the paper: CIFAR-100 and ResNet-20, then Fashion-MNIST; and random choices of two.
PUBLISHED = ("3-1-7", "43-18-18", "3-1-7+43-18-18", "19-15-45", "2-43-21")


class Choice(NamedTuple):
    """What a client draws to transform a batch, for each of its B examples."""

    policy: Array  # [B] int32, place in the list of policies
    signs: Array  # [B, `LONGEST`] of -1 and 1, of each operation


def read_policies(text: str) -> tuple[Policy, ...]:
    """Reads policies as the official code writes them: ``3-1-7+43-18-18``.

    Raises:
      ValueError: for another form, an empty policy, one of more than `LONGEST`
        operations, and a number that `NUMBERED` has not.
    """
    if not re.fullmatch(r"\d+(-\d+)*(\+\d+(-\d+)*)*", text):
        raise ValueError(
            f"policies {text!r}: write numbers of operations with '-' between them, "
            "and '+' between policies, such as 3-1-7+43-18-18"
        )
    return tuple(tuple(map(int, one.split("-"))) for one in text.split("+"))


def write_policies(policies: Sequence[Policy]) -> str:
    """Writes policies as `read_policies` reads them."""
    return "+".join("-".join(map(str, policy)) for policy in policies)


def check_policies(policies: Sequence[Policy]) -> None:
    """Refuses policies that there are not.

    Raises:
      ValueError: see `read_policies`.
    """
    for policy in policies:
        if not 1 <= len(policy) <= LONGEST:
            raise ValueError(
                f"policy {write_policies([policy])!r} has {len(policy)} operations: "
                f"give 1 to {LONGEST}"
            )
        for number in policy:
            if not 0 <= number < len(NUMBERED):
                raise ValueError(
                    f"policy {write_policies([policy])!r} has operation {number}: they "
                    f"are numbered from 0 to {len(NUMBERED) - 1}"
                )


def transform_images(policies: Sequence[Policy]) -> Defence:
    """Trains on transformed images: each passes up to three operations (ATS).

    Each image draws one of the policies, and the sign of every operation that goes
    either way. Magnitudes are fixed. `kljax.defences.search_policies` finds policies
    for a network; `PUBLISHED` are those of the paper.

    An attacker who does not know the defence finds what was trained on
    (``ats/trained_on``). Who knows the policies transforms its candidates, by draws of
    its own in each restart (``random_draws``: of two policies of three operations at
    most 16, and fewer where operations have no sign), or by the client's (``known``).
    What an operation takes away, such as pixels that are moved out, no attacker finds
    by the gradient.

    Args:
      policies: numbers of operations, see `NUMBERED`; () leaves the batch as it is.

    Raises:
      ValueError: see `read_policies`; from ``inputs`` for what is no image [H, W, C] of
        real numbers with 1 or 3 channels.

    Reference: Gao et al., "Privacy-preserving Collaborative Learning with Automatic
    Transformation Search" (CVPR 2021), code gaow0007/ATSPrivacy, policy.py and
    autoaugment.py, which is Pillow's on 8 bits (`kljax.defences.image_operations`).
    Differs from it: the code crops and mirrors before, which is left to a client's
    augmentation.
    """
    policies = tuple(tuple(policy) for policy in policies)
    check_policies(policies)

    def draw_private(rng: Rng, private: Private, examples: int) -> Private:
        rng_policy, rng_signs = jax.random.split(rng)
        policy = jax.random.randint(rng_policy, (examples,), 0, max(1, len(policies)))
        signs = jax.random.rademacher(rng_signs, (examples, LONGEST), jnp.float32)
        return private._replace(secret=Choice(policy, signs))

    def inputs(rng: Rng, context: Context) -> tuple[Array, Array]:
        del rng
        choice = drawn_secret(context, Choice, "how ats transforms")
        images = context.inputs
        _check_images(images)
        chosen = images
        for place, policy in enumerate(policies):
            changed = apply_policy(policy, images, choice.signs)
            here = (choice.policy == place)[:, None, None, None]
            chosen = jnp.where(here, changed, chosen)
        return chosen, context.targets

    return Defence(
        draw_private=draw_private,
        inputs=inputs,
        simulate_inputs=inputs,
        strategies=tuple(POLICY_STRATEGIES.values()),
        hidden_parts=HiddenParts("the draws of the client's policies", None),
    )


def apply_policy(policy: Policy, images: Array, signs: Array) -> Array:
    """Applies the operations of one policy to images [B, H, W, C], in their order.

    Args:
      policy: numbers of operations.
      images: in [0, 1].
      signs: [B, `LONGEST`], of each operation.
    """
    for place, number in enumerate(policy):
        name, magnitude = NUMBERED[number]
        amount = float(RANGES[name][magnitude]) if name in RANGES else 0.0
        images = OPERATIONS[name](images, signs[:, place], amount)
    return images


def _check_images(images: Array) -> None:
    shape, dtype = getattr(images, "shape", ()), getattr(images, "dtype", None)
    is_image = len(shape) == 4 and shape[-1] in (1, 3)
    if not is_image or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            "ats transforms images [B, H, W, C] of real numbers with 1 or 3 channels, "
            f"and these inputs have shape {shape}, dtype {dtype}"
        )
