"""Networks that see standardised images, while everybody else's stay in [0, 1]."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from kljax.core.types import Array, Model, Output, Params, Stats


class ChannelStatistics(NamedTuple):
    """Mean and standard deviation of each colour of a dataset, on [0, 1]."""

    mean: tuple[float, ...]  # [C]
    std: tuple[float, ...]  # [C]


IMAGENET = ChannelStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR100 = ChannelStatistics((0.4573, 0.4388, 0.4073), (0.2675, 0.2638, 0.2777))

# FedKL, utils/Data.py, by dataset. CIFAR-10 is given ImageNet's; MNIST none at all.
FEDKL_STATISTICS: dict[str, ChannelStatistics] = {
    "cifar10": IMAGENET,
    "cifar100": CIFAR100,
}


def normalised(model: Model, mean: Sequence[float], std: Sequence[float]) -> Model:
    """Puts ``(images - mean) / std``, channel by channel, in front of a network.

    Data, attacks and metrics keep their images in [0, 1]; weights and statistics, their
    trees and `init` are the network's own. A tap on the first layer's input sees
    standardised values.

    Args:
      model: the network.
      mean: [C], subtracted.
      std: [C], divided by; positive.

    Raises:
      ValueError: for lengths that differ, numbers that are not finite, a std that is
        not positive, and when applied to images of another number of channels.
    """
    mean, std = (np.asarray(values, np.float64) for values in (mean, std))
    if mean.ndim != 1 or mean.shape != std.shape:
        raise ValueError(
            f"mean and std must have one number per channel, got {mean} and {std}"
        )
    if not np.all(np.isfinite(mean)) or not np.all((std > 0) & np.isfinite(std)):
        raise ValueError(f"mean must be finite and std positive, got {mean} and {std}")

    def apply(params: Params, stats: Stats, images: Array, **options: Any) -> Output:
        if images.shape[-1] != len(mean):
            raise ValueError(
                f"images of shape {images.shape} have {images.shape[-1]} channels, "
                f"mean and std are of {len(mean)}"
            )
        shape = (1,) * (images.ndim - 1) + mean.shape
        shift, scale = (
            jnp.asarray(values, images.dtype).reshape(shape) for values in (mean, std)
        )
        return model.apply(params, stats, (images - shift) / scale, **options)

    return model._replace(apply=apply)
