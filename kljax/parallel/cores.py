"""The cores of a CPU as devices of JAX."""

import os

import jax


def use_all_cores() -> None:
    """Gives JAX one host device per core, so that victims are spread over them.

    Called before JAX computes anything. On two cores two devices ran 1.3 to 2 times as
    many evaluations as one (experiments/speed/dlg.md). Left alone where the user has
    chosen already.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
