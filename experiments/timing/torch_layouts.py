"""Arrays of our networks in the layouts that PyTorch has for them."""

import math

import numpy as np

CHANNELS = 12  # of LeNet's last convolution


def lenet_in_torch(params):
    """Turns LeNet's arrays, with any leading axes, to PyTorch's layouts and names.

    Args:
      params: ``LAYER/kernel`` [..., h, w, in, out], of ``fc`` [..., h * w * c, Kc] with
        rows in the order of [h, w, c], and ``LAYER/bias``.

    Returns:
      ``LAYER/weight`` [..., out, in, h, w], of ``fc`` [..., Kc, c * h * w] with columns
      in the order of [c, h, w], and ``LAYER/bias``; in the order of a PyTorch module.
    """
    turned = {}
    for layer in ("conv1", "conv2", "conv3", "fc"):
        kernel = np.asarray(params[f"{layer}/kernel"])
        *some, rows, last = kernel.shape
        if layer == "fc":
            side = math.isqrt(rows // CHANNELS)
            kernel = kernel.reshape(*some, side, side, CHANNELS, last)
        weight = np.moveaxis(kernel, (-1, -2), (-4, -3))
        if layer == "fc":
            weight = weight.reshape(*some, last, rows)
        turned[f"{layer}/weight"] = np.ascontiguousarray(weight)
        turned[f"{layer}/bias"] = np.asarray(params[f"{layer}/bias"])
    return turned
