"""Networks, and the doors by which any network becomes a `Model`."""

from kljax.models.catalogue import NETWORKS, Network
from kljax.models.dense import Dense
from kljax.models.lenet import LeNet, uniform
from kljax.models.linen import from_linen
from kljax.models.model import from_nnx, site_widths

__all__ = [
    "from_nnx",
    "from_linen",
    "site_widths",
    "LeNet",
    "Dense",
    "uniform",
    "Network",
    "NETWORKS",
]
