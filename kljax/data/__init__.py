"""Images to attack and to train on: named, checked, in [0, 1], and who holds which.

The NumPy side of kljax; nothing here knows of networks or gradients.
"""

from kljax.data.batches import (
    cohort,
    fetch_batches,
    local_batches,
    local_steps,
    stacked,
)
from kljax.data.catalogue import EMBEDDED, has_splits, load, stamp
from kljax.data.checks import check_batch, check_local_batches
from kljax.data.dataset import Dataset, LazyColumn, select
from kljax.data.files import is_path, load_path
from kljax.data.holdouts import holdout
from kljax.data.partitioning import (
    PARTITIONS,
    Partition,
    by_size,
    dirichlet,
    iid,
    part_examples,
    partition,
    shards,
)
from kljax.data.prepare import PREPARERS, prepare_fashion_mnist
from kljax.data.resizing import resize
from kljax.data.subsets import subset

__all__ = [
    "load",
    "stamp",
    "has_splits",
    "is_path",
    "load_path",
    "select",
    "subset",
    "holdout",
    "check_batch",
    "check_local_batches",
    "Dataset",
    "LazyColumn",
    "EMBEDDED",
    "PREPARERS",
    "prepare_fashion_mnist",
    "resize",
    "partition",
    "part_examples",
    "Partition",
    "PARTITIONS",
    "iid",
    "dirichlet",
    "shards",
    "by_size",
    "cohort",
    "local_steps",
    "local_batches",
    "stacked",
    "fetch_batches",
]
