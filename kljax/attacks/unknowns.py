"""Unknown inputs: what is optimised, and how it becomes an image, or a sentence."""

from collections.abc import Callable, Mapping

import jax

from kljax.attacks.attack import Unknown
from kljax.attacks.setting import Setting
from kljax.attacks.starts import Start
from kljax.core.types import Array, Params, PyTree, Rng
from kljax.threat import View


def searched(setting: Setting, start: Start) -> Unknown:
    """Looks in the search space of the inputs, unbounded: of images, for pixels.

    Of several inputs, each begins from a draw of its own. What an upload says of inputs
    in plain sight is used where no defence is assumed to change it.
    """
    space, examples = setting.task.inputs.search, setting.threat.knowledge.examples
    hold = space.hold if setting.defence.leaves_alone else None

    def begin(rng: Rng, view: View) -> tuple[PyTree, tuple[Params, Params]]:
        params = view.public.model
        upload = {} if hold is None else view.grads.model
        return draw(rng, space.shape(params)), (params, upload)

    def draw(rng: Rng, shapes: PyTree) -> PyTree:
        if not isinstance(shapes, Mapping):
            return start(rng, (examples, *shapes))
        rngs = jax.random.split(rng, len(shapes))
        pairs = zip(shapes.items(), rngs, strict=True)
        return {name: draw(own, shape) for (name, shape), own in pairs}

    def decode(free: PyTree, fixed: tuple[Params, Params]) -> PyTree:
        params, upload = fixed
        fed = space.decode(params, free)
        return fed if hold is None else hold(upload, fed)

    return Unknown(begin, decode, read=lambda fed, fixed: space.read(fixed[0], fed))


def boxed(setting: Setting, unknown: Unknown) -> Unknown:
    """Keeps what is optimised where inputs can be, after every move."""

    def project(free: PyTree) -> PyTree:
        return setting.task.inputs.search.project(unknown.project(free))

    return unknown._replace(project=project)


def decoded(
    setting: Setting,
    decoder: Callable[[PyTree], Array],
    shape: tuple[int, ...],
    start: Start,
) -> Unknown:
    """Looks for latents which `decoder` turns into images.

    Args:
      setting: gives the number B of examples.
      decoder: latents [B, *shape] -> images [B, H, W, C].
      shape: shape of one example's latent.
      start: draws the first latents.
    """
    full = (setting.threat.knowledge.examples, *shape)
    return Unknown(
        start=lambda rng, view: (start(rng, full), ()),
        decode=lambda free, fixed: decoder(free),
    )


def upsampled(setting: Setting, factor: int, start: Start) -> Unknown:
    """Looks for a coarse image, enlarged `factor` times by linear interpolation.

    Fewer unknowns than pixels, for gradients that say little about detail.

    Raises:
      ValueError: if `factor` is below 1 or does not divide the image's sides.
    """
    height, width, channels = setting.task.image_shape
    if factor < 1 or height % factor or width % factor:
        raise ValueError(
            f"factor={factor} does not divide the image's sides {height} x {width}"
        )
    coarse = (height // factor, width // factor, channels)

    def decoder(latents: Array) -> Array:
        shape = (latents.shape[0], height, width, channels)
        return jax.image.resize(latents, shape, "linear")

    return decoded(setting, decoder, coarse, start)
