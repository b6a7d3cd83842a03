"""Memory: what surely does not fit is refused before it is asked for.

Estimates are from below: arrays that must be there at one time, and nothing of what a
compiler adds. So nothing is refused that could run; what is let through may still be
too large, and fails where the memory is asked for.
"""

import jax
import psutil

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def machine_memory() -> float:
    """Gives the bytes of the machine's memory."""
    return psutil.virtual_memory().total


def device_memory() -> float:
    """Gives the bytes of one device; those of the machine where it has none itself."""
    stats = jax.local_devices()[0].memory_stats()
    return (
        stats["bytes_limit"] if stats and "bytes_limit" in stats else machine_memory()
    )


def check_fits(needed: int, what: str, lower: str, have: float | None = None) -> None:
    """Refuses what needs more memory than there is.

    Args:
      needed: bytes, estimated from below.
      what: needs them.
      lower: the options to lower, and to what end.
      have: bytes that there are; None for the machine's.

    Raises:
      ValueError: with both numbers and the options.
    """
    have = machine_memory() if have is None else have
    if needed > have:
        raise ValueError(
            f"{what} would take at least {written(needed)} of memory, and there are "
            f"{written(have)}: lower {lower}"
        )


def written(size: float) -> str:
    """Writes a number of bytes, such as ``1.5 GiB``."""
    unit = 0
    while size >= 1024 and unit < len(UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.0f} {UNITS[unit]}" if not unit else f"{size:.1f} {UNITS[unit]}"
