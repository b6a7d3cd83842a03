"""Denoising: a trained flow cleans what an attack has found, whatever the attack.

A denoiser can invent: what it makes of nothing but noise is a look-alike of what it was
trained on. So its result stands beside the floors, and how much noise it takes off is
settled without the truth: said beforehand, estimated from the image, or chosen by the
attacker's own matching loss.

Reference: the idea of a denoiser after an attack is that of GUIDE (arXiv 2510.17621)
and of flow matching in gradient inversion (arXiv 2601.15049); neither's method is
reproduced.
"""

import jax
import jax.numpy as jnp

from kljax.attacks.attack import Attack, Candidate, Objective, Reconstruction
from kljax.attacks.latents import resized
from kljax.attacks.objectives import infinite_if_broken
from kljax.attacks.secrets import secret_of
from kljax.attacks.setting import Setting
from kljax.attacks.simulation import replay
from kljax.core.denoiser import Denoiser, move_to_clean
from kljax.core.types import Array, Rng
from kljax.threat import View

# Deviations among which the matching loss chooses; 0 leaves the image as it is.
STRENGTHS = (0.0, 0.025, 0.05, 0.1, 0.2, 0.4)
# The median of |e|, e from N(0, 1).
MEDIAN = 0.6745
RULES = {
    "estimated": "estimated from the image's finest detail",
    "matching": "of a few the one with the least matching loss",
}


def denoised(
    attack: Attack,
    setting: Setting,
    objective: Objective | None,
    strength: Array | float | str,
) -> Attack:
    """Makes an attack whose images are cleaned by the setting's denoiser.

    The loss that is reported is that of the cleaned images, by `objective` at a replay
    of the client's steps; an attack without an objective keeps the loss it reports.
    Its numbers have ``denoising_strength``, and ``loss_before_denoising`` by the same
    replay; its info has the images ``before_denoising``.

    Args:
      attack: that finds images.
      setting: what it was built on; has the denoiser.
      objective: of the attack; None where it has none.
      strength: [] deviation of the noise, in units of [0, 1], which may be traced; or
        a name in `RULES`.

    Raises:
      ValueError: for no denoiser, inputs that are no images, or are of colours that it
        does not know; a strength that is no rule; ``matching`` without an objective;
        and, once it runs, for an objective and an attack without ``info["secret"]``.
    """
    denoiser = setting.attacker.denoiser
    if denoiser is None:
        raise ValueError("there is no denoiser: name one with the option denoise")
    kind = setting.task.inputs.kind
    if kind != "image":
        raise ValueError(
            f"a denoiser cleans images, and the inputs are {kind}: leave denoise out"
        )
    colours, wanted = denoiser.shape[-1], setting.task.image_shape[-1]
    if colours not in (1, wanted):
        raise ValueError(
            f"the denoiser cleans images of {colours} channels, and the network takes "
            f"in {wanted}"
        )
    if isinstance(strength, str) and strength not in RULES:
        raise ValueError(
            f"strength {strength!r} of a denoiser: give a number, or one of "
            f"{', '.join(RULES)}"
        )
    if objective is None and isinstance(strength, str) and strength == "matching":
        raise ValueError(
            "the strength of a denoiser is chosen by the matching loss, and this "
            "attack matches nothing: give a number, or estimated"
        )

    rule = strength if isinstance(strength, str) else None
    chooses = rule == "matching"

    def clean(rng: Rng, view: View) -> Reconstruction:
        found = attack(rng, view)
        at = estimated_noise(found.inputs) if rule == "estimated" else strength
        # The strength that is taken is one of these.
        tried = jnp.asarray(STRENGTHS) if chooses else jnp.stack([0.0, jnp.asarray(at)])
        before = loss = found.loss
        chosen = 1
        if objective is not None and "secret" not in found.info:
            raise ValueError(
                "the loss of cleaned images is that of a replay, and this attack does "
                "not say the secret that it found: give Reconstruction.info['secret'], "
                "or a Preset without an objective"
            )
        if objective is not None:

            def judge(one: Array) -> Array:
                images = cleaned(denoiser, found.inputs, one)
                return _matching(setting, objective, view, found, images)

            losses = jax.lax.map(judge, tried)  # one after another: flat in memory
            if chooses:
                chosen = jnp.argmin(infinite_if_broken(losses))
            before, loss = losses[0], losses[chosen]
        at = tried[chosen].astype(found.inputs.dtype)
        numbers = {"denoising_strength": at, "loss_before_denoising": before}
        return found._replace(
            inputs=cleaned(denoiser, found.inputs, at),
            loss=loss,
            numbers=found.numbers | numbers,
            info=found.info | {"before_denoising": found.inputs},
        )

    return clean


def cleaned(denoiser: Denoiser, images: Array, strength: Array) -> Array:
    """Cleans images [B, H, W, C]; strength 0 gives them back as they are.

    They are brought to the denoiser's shape and back, of colours to their mean and
    back where it knows grey alone: what does not survive that is lost.
    """
    x = images
    if denoiser.shape[-1] == 1:
        x = jnp.mean(x, axis=-1, keepdims=True)
    x = move_to_clean(denoiser, resized(x, denoiser.shape), strength)
    return jnp.where(strength > 0, resized(x, images.shape[1:]), images)


def estimated_noise(images: Array) -> Array:
    """Estimates the deviation [] of white noise on images [B, H, W, C].

    The median of the absolute diagonal details of Haar's wavelet, over .6745. Edges
    make it too large, and values that were cut off at 0 or 1 too small.

    Reference: Donoho and Johnstone, "Ideal Spatial Adaptation by Wavelet Shrinkage"
    (Biometrika 1994).
    """
    even = images[:, : images.shape[1] // 2 * 2, : images.shape[2] // 2 * 2]
    top, bottom = even[:, ::2], even[:, 1::2]
    detail = top[:, :, ::2] - top[:, :, 1::2] - bottom[:, :, ::2] + bottom[:, :, 1::2]
    return jnp.median(jnp.abs(detail)) / (2 * MEDIAN)


def _matching(
    setting: Setting,
    objective: Objective,
    view: View,
    found: Reconstruction,
    images: Array,
) -> Array:
    """Gives the attacker's own loss [] of other images, with all else as found."""
    targets = setting.task.targets.encode(found.labels)
    candidate = Candidate(images, targets, found.info["secret"])
    simulated, observed = replay(setting, secret_of(setting).gates)(view, candidate)
    return objective(simulated, observed)
