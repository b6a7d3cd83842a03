"""All entries of the speed table."""

from .entries import (
    demo,
    dlg,
    federated,
    federated_scale,
    ginas,
    grnn,
    inversions,
    inverters,
    lamp,
    latents,
    layouts,
    membership,
    sweeps,
    triggers,
)

MODULES = (
    dlg,
    federated,
    federated_scale,
    inversions,
    grnn,
    triggers,
    lamp,
    ginas,
    inverters,
    latents,
    sweeps,
    demo,
    membership,
    layouts,
)
# By their names, in the order in which they are listed and run.
ENTRIES = {entry.name: entry for module in MODULES for entry in module.ENTRIES}
# The names of all peers.
PEERS = tuple(dict.fromkeys(p for entry in ENTRIES.values() for p in entry.peers))
