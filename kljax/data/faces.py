"""Faces of Labeled Faces in the Wild, out of a file that scikit-image carries."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from kljax.data.dataset import Dataset
from kljax.data.resizing import check_shape, resize

FACES = 100  # the first ones of the file
LICENCE = (
    "100 faces of Labeled Faces in the Wild (Huang et al. 2007), and 100 crops of the "
    "same photographs' surroundings, as carried by scikit-image (data/lfw_subset.npy), "
    "which states no licence for them; see http://vis-www.cs.umass.edu/lfw/"
)


def load_faces(shape: tuple[int, int, int] = (32, 32, 3)) -> Dataset:
    """Loads 200 grey pictures of 25 x 25 pixels, of which 100 are faces.

    Args:
      shape: (H, W, C) of the images; with C = 3 the grey value is repeated.

    Reference: `skimage.data.lfw_subset`; Huang et al., "Labeled Faces in the Wild"
    (2007).
    """
    shape = check_shape(shape)
    package = Path(find_spec("skimage").origin).parent
    # Opened where it is installed: the loader of its package wants another library.
    images = np.load(package / "data" / "lfw_subset.npy").astype(np.float32)
    return Dataset(
        name="faces",
        inputs=np.stack([resize(image, shape) for image in images]),
        labels=(np.arange(len(images)) < FACES).astype(np.int32),
        num_classes=2,
        groups=np.arange(len(images)),
        licence=LICENCE,
        class_names=("background", "face"),
    )
