"""Memory of a computation: on the devices, and of this process on the host."""

import gc
from pathlib import Path

import jax

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Watch:
    """Samples memory from when it is made until its `report`.

    Where the device keeps count (GPU, TPU) its own peak is reported, which holds what
    a compiled program needs meanwhile, and can only rise in a process. On a CPU it is
    the largest sum of living arrays among the samples; what programs need meanwhile is
    then seen in the process's peak alone.
    """

    def __init__(self):
        gc.collect()
        self.live = 0
        # "5" forgets the peak so far (man 5 proc).
        _CLEAR.write_text("5")
        self.before = _status("VmRSS")

    def sampling(self, fn):
        """Makes `fn` take a sample whenever it is called."""

        def sampled(*args):
            self.live = max(self.live, sum(x.nbytes for x in jax.live_arrays()))
            return fn(*args)

        return sampled

    def report(self):
        """Returns bytes: of the devices at most, and by how much the process grew."""
        stats = [device.memory_stats() for device in jax.local_devices()]
        if all(stats):
            peak = sum(own["peak_bytes_in_use"] for own in stats)
            source = "memory_stats"
        else:
            peak, source = self.live, "live_arrays"
        return {
            "peak_device_bytes": peak,
            "peak_device_bytes_from": source,
            "process_growth_bytes": _status("VmHWM") - self.before,
        }


def _status(name):
    """Reads a size of this process in bytes."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"{_STATUS} has no {name}")
