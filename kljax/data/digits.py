"""The handwritten digits that scikit-learn carries in its wheel."""

import numpy as np

from kljax.data.dataset import Dataset
from kljax.data.resizing import check_shape, resize

LICENCE = (
    "Optical Recognition of Handwritten Digits, test set (E. Alpaydin and C. Kaynak, "
    "1998), as carried by scikit-learn, which states no licence for it; see "
    "https://archive.ics.uci.edu/ml/datasets/"
    "Optical+Recognition+of+Handwritten+Digits"
)


def load_digits(shape: tuple[int, int, int] = (32, 32, 3)) -> Dataset:
    """Loads 1,797 grey digits of 8 x 8 pixels, enlarged to a shape.

    Enlarged digits are smooth: easy victims beside photographs.

    Args:
      shape: (H, W, C) of the images; with C = 3 the grey value is repeated.
    """
    shape = check_shape(shape)
    # Importing scikit-learn takes a second that users of other data need not wait.
    from sklearn import datasets

    digits = datasets.load_digits()
    pixels = digits.images.astype(np.float32) / 16  # counts of 4 x 4 pixels: 0 to 16
    return Dataset(
        name="digits",
        inputs=np.stack([resize(image, shape) for image in pixels]),
        labels=digits.target,
        num_classes=10,
        groups=np.arange(len(pixels)),
        licence=LICENCE,
        class_names=tuple("0123456789"),
    )
