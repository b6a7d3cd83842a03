"""Provenance: on what machine, and with which versions, a result was made."""

import importlib.metadata
import platform
from typing import Any

import jax

PACKAGES = ("kljax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def collect_provenance() -> dict[str, Any]:
    """Says what made a result, besides its configuration."""
    return {
        "device": device(),
        "local_devices": jax.local_device_count(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def device() -> str:
    """Names the device that runs."""
    return f"{jax.default_backend()}: {jax.devices()[0].device_kind}"
