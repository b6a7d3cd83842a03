"""Images to attack: named, checked, in [0, 1].

The NumPy side of kljax; nothing here knows of networks or gradients.
"""

from kljax.data.catalogue import EMBEDDED, load
from kljax.data.checks import check_batch
from kljax.data.dataset import Dataset, LazyColumn, select
from kljax.data.prepare import PREPARERS, prepare_fashion_mnist
from kljax.data.resize import resize

__all__ = [
    "load",
    "select",
    "check_batch",
    "Dataset",
    "LazyColumn",
    "EMBEDDED",
    "PREPARERS",
    "prepare_fashion_mnist",
    "resize",
]
