"""Faces for the table of all defences, out of a file that scikit-image carries.

    python experiments/faces.py [runs/defences/faces.npz]

200 grey pictures of 25x25 pixels: 100 faces of Labeled Faces in the Wild (label 1), and
100 crops of the same photographs' surroundings (label 0). Nothing is downloaded.

Reference: `skimage.data.lfw_subset`; Huang et al., "Labeled Faces in the Wild" (2007).
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

import numpy as np

FACES = 100  # the first ones of the file


def main():
    """Writes the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, nargs="?", default="runs/defences/faces.npz")
    write_faces(parser.parse_args().file)


def write_faces(file: Path) -> None:
    """Writes images [200, 25, 25, 1] in [0, 1] and their labels."""
    package = Path(find_spec("skimage").origin).parent
    images = np.load(package / "data" / "lfw_subset.npy").astype(np.float32)
    labels = (np.arange(len(images)) < FACES).astype(np.int32)
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, images=images[..., None], labels=labels)


if __name__ == "__main__":
    main()
