"""Insertions: what a malicious server puts in front of a network.

A client trains whatever network the server sends. Whoever may choose the network needs
no search: one layer whose gradient keeps the examples of a batch apart is enough. That
is outside FedKL's threat model, where the server follows the protocol; and what is put
in front of the first layer is in front of every lock.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from kljax.core.types import Array, Model, Output, Params, PyTree, Stats


class Insertion(NamedTuple):
    """A module for the front of a network.

    Attributes:
      survey: ``images [P, H, W, C] -> statistics``, small arrays: what the server must
        know of images before it sees any client's, measured on public ones.
      insert: ``(Model, image_shape, statistics) -> Model``. Paths, parameters and
        statistics of the network stay, parameters of the module are added. Nothing
        but ``init`` looks at the statistics.
    """

    survey: Callable[[np.ndarray], PyTree]
    insert: Callable[[Model, tuple[int, int, int], PyTree], Model]


KERNEL, BIAS = "imprint/kernel", "imprint/bias"
BACK_KERNEL, BACK_BIAS = "imprint/back_kernel", "imprint/back_bias"
LOWEST = -10.0  # standard deviations: every image is above it


def imprint(
    bins: int = 64,
    *,
    measurement: str = "mean",
    mode: int = 32,
    distribution: str | None = None,
    connection: str = "linear",
    gain: float = 1.0,
    target: float | None = None,
    known: tuple[float, float] | None = None,
) -> Insertion:
    """Makes the imprint module: a dense layer with ReLU whose rows all measure alike.

    Row i is active for images whose measurement is above the i-th of `bins` quantiles,
    so two neighbouring rows differ in the images of one bin alone
    (`kljax.attacks.closed_form.imprint_reading` reads them).

    Args:
      bins: n, of equal mass.
      measurement: a linear function of an image: its ``mean``, a ``random`` direction
        (the same for everybody), or one mode of its discrete cosine transform, ``dct``
        (over all values, channel by channel).
      mode: of ``dct``.
      distribution: whose quantiles the bins have, ``normal`` or ``laplace``; None for
        laplace with ``dct`` and normal with the others.
      connection: how the network goes on. ``linear``: a dense layer back to the size
        of an image; with weights that are all alike the network sees a flat image,
        and every row has the same signal from above. ``addition``: the rows' mean is
        added to the image, which the network then still sees.
      gain: of the rows; the layer back takes it out again.
      target: for one shot: the measurement, in standard deviations from the mean, of
        the one image that is wanted. Two rows are left, the bounds of its bin.
      known: mean and standard deviation of the measurement, if the server has them
        from elsewhere; None to measure them on public images.

    Raises:
      ValueError: for numbers out of range, and names that do not exist.

    Reference: Fowl et al., "Robbing the Fed" (ICLR 2022); code JonasGeiping/breaching,
    malicious-model-rtf.yaml, whose values these are but for the measurement (``dct``
    there) and the bins: there they are for images that are standardised.
    """
    least = 1 if target is None else 2
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < least:
        raise ValueError(f"bins must be an integer >= {least}, got {bins!r}")
    if not 0 < gain < math.inf:
        raise ValueError(f"gain must be a positive number, got {gain!r}")
    _check_name("measurement", measurement, MEASUREMENTS)
    _check_name("connection", connection, ("linear", "addition"))
    if distribution is None:
        distribution = "laplace" if measurement == "dct" else "normal"
    _check_name("distribution", distribution, QUANTILES)
    if known is not None and not (math.isfinite(known[0]) and 0 < known[1] < math.inf):
        raise ValueError(
            f"known must be a mean and a positive standard deviation, got {known!r}"
        )
    lowest = np.concatenate(
        [[LOWEST], QUANTILES[distribution](np.arange(1, bins) / bins)]
    )
    if target is not None:
        # The bin that holds the target; the topmost has no upper bound.
        below = int(np.clip(np.searchsorted(lowest, target) - 1, 0, bins - 2))
        lowest = lowest[below : below + 2]

    def survey(images: np.ndarray) -> np.ndarray:
        mean, deviation = known or _moments(images, measurement, mode)
        return (mean + deviation * lowest).astype(np.float32)

    def insert(model: Model, image_shape: tuple[int, int, int], bounds: PyTree):
        direction = MEASUREMENTS[measurement](image_shape, mode)

        def own() -> Params:
            size, rows = len(direction), len(lowest)
            found = {
                KERNEL: jnp.tile(gain * direction[:, None], (1, rows)),
                BIAS: -gain * jnp.asarray(bounds),
            }
            if connection == "linear":
                found[BACK_KERNEL] = jnp.full((rows, size), 1 / gain, jnp.float32)
                found[BACK_BIAS] = jnp.full(size, -jnp.mean(jnp.asarray(bounds)))
            return found

        def forward(params: Params, images: Array) -> Array:
            flat = images.reshape(images.shape[0], -1)
            rows = jax.nn.relu(flat @ params[KERNEL] + params[BIAS][None])
            if connection == "linear":
                flat = rows @ params[BACK_KERNEL] + params[BACK_BIAS][None]
            else:
                flat = flat + jnp.mean(rows, axis=1, keepdims=True)
            return flat.reshape(images.shape)

        return in_front(model, own, forward)

    return Insertion(survey, insert)


def in_front(
    model: Model,
    own: Callable[[], Params],
    forward: Callable[[Params, Array], Array],
) -> Model:
    """Puts a module in front of a network whose parameters are listed by path.

    Args:
      model: the network.
      own: makes the parameters of the module.
      forward: ``(parameters of the module, images) -> what the network is fed``.

    Raises:
      ValueError: for a network that has parameters of the same names, or whose
        parameters are no dictionary.
    """
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    names = set(jax.eval_shape(own))
    if not isinstance(params, dict) or names & set(params):
        raise ValueError(
            "the network's parameters must be a dictionary by path, without "
            f"{', '.join(sorted(names))}"
        )

    def init(rng) -> tuple[Params, Stats]:
        params, stats = model.init(rng)
        return {**params, **own()}, stats

    def apply(params: Params, stats: Stats, images: Array, **options: Any) -> Output:
        mine = {name: params[name] for name in names}
        rest = {name: value for name, value in params.items() if name not in names}
        return model.apply(rest, stats, forward(mine, images), **options)

    return Model(init, apply)


def _mean(image_shape: tuple[int, int, int], mode: int) -> np.ndarray:
    del mode
    size = math.prod(image_shape)
    return np.full(size, 1 / size, np.float32)


def _random(image_shape: tuple[int, int, int], mode: int) -> np.ndarray:
    del mode
    drawn = np.random.RandomState(0).standard_normal(math.prod(image_shape))
    drawn = (drawn - drawn.mean()) / drawn.std()
    return (drawn / math.sqrt(len(drawn))).astype(np.float32)


def _dct(image_shape: tuple[int, int, int], mode: int) -> np.ndarray:
    height, width, channels = image_shape
    size = math.prod(image_shape)
    wave = np.cos(math.pi / size * (np.arange(size) + 0.5) * mode)
    wave *= 4 * max(mode, 0.33) / size
    # The order of channels is PyTorch's, where they come first.
    wave = wave.reshape(channels, height, width).transpose(1, 2, 0)
    return wave.reshape(-1).astype(np.float32)


MEASUREMENTS = {"mean": _mean, "random": _random, "dct": _dct}
# Of mean 0 and standard deviation 1.
QUANTILES = {
    # scipy.stats takes a second to import: SciPy does it where it is first named.
    "normal": scipy.special.ndtri,
    "laplace": lambda shares: scipy.stats.laplace.ppf(shares, scale=1 / math.sqrt(2)),
}


def _moments(
    images: np.ndarray, measurement: str, mode: int
) -> tuple[np.floating, np.floating]:
    """Measures public images [P, H, W, C]: mean and standard deviation."""
    images = np.asarray(images)
    if images.ndim != 4 or len(images) < 2:
        raise ValueError(
            "a server who measures public images needs two or more [P, H, W, C], got "
            f"shape {images.shape}"
        )
    direction = MEASUREMENTS[measurement](images.shape[1:], mode).astype(np.float64)
    values = images.reshape(len(images), -1) @ direction
    # A wave that three equal colours cancel leaves rounding.
    rounding = np.finfo(np.float32).eps * np.abs(direction).sum()
    if not np.isfinite(values).all() or not values.std() > 10 * rounding:
        raise ValueError(
            f"the measurement {measurement!r} tells none of {len(images)} public "
            "images apart: take another, or other images"
        )
    return values.mean(), values.std()


def _check_name(kind: str, name: str, known) -> None:
    if name not in known:
        raise ValueError(f"{kind} must be one of {', '.join(known)}, got {name!r}")
