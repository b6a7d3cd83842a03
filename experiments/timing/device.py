"""The device that ours runs on."""

import os

import jax


def on_gpu():
    """Tells whether ours runs on a GPU, and so the peers."""
    return jax.default_backend() == "gpu"


def describe_device():
    """Writes down what a line was measured on."""
    return (
        f"{jax.default_backend()}: {jax.devices()[0].device_kind}, "
        f"{jax.local_device_count()} devices, {os.cpu_count()} cores"
    )
