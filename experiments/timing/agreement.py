"""Whether two rounds of federated averaging ended at the same parameters."""

import jax
import numpy as np


def by_name(server):
    """Parameters and norm statistics of the server as NumPy arrays."""
    return jax.device_get({**server.public.model, **server.stats})


def agreement(work, start, ours, theirs, biased):
    """How far apart two rounds ended: |ours - theirs| / |ours - start|.

    Largest over parameters and over norm statistics, each taken as one vector.
    `biased` says whether the peer keeps running variances as we do; PyTorch averages
    in the unbiased ones, which is undone here.
    """

    def size(arrays):
        squares = [np.sum(np.square(a, dtype=np.float64)) for a in arrays]
        return np.sqrt(sum(squares))

    apart, moved = {}, {}
    for name, begin in start.items():
        kind = "stats" if name.endswith(("/mean", "/var")) else "params"
        other = theirs[name]
        if name.endswith("/var") and not biased:
            # 16, 32 and 64 channels are maps of 32, 16 and 8 pixels a side.
            count = work.batch * (512 // len(other)) ** 2
            kept = 0.9**work.checked * begin
            other = kept + (other - kept) * (count - 1) / count
        apart.setdefault(kind, []).append(ours[name] - other)
        moved.setdefault(kind, []).append(ours[name] - begin)
    return max(float(size(apart[kind]) / size(moved[kind])) for kind in moved)
