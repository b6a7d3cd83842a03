"""DAGER's membership test of a whole vocabulary, in plain PyTorch.

For every place, the layer norm of all tokens' embeddings with that place's, at length
1; its projection to the span of the gradient; and the length of what is left: written
anew from algorithm 1 of the paper. Letters: V tokens, T places, d width.
"""

import numpy as np
import torch

from .machine import clock, placed
from .serving import serve_object

EPSILON = 1e-5


class Membership:
    """Embeddings, and the gradient of a first attention, on the device."""

    def __init__(self, path, tolerance, nearness):
        """Loads tokens [V, d], positions [T, d], scale, bias, and columns [d, m]."""
        with np.load(path) as arrays:
            self.arrays = {name: placed(arrays[name]) for name in arrays.files}
        self.tolerance, self.nearness = tolerance, nearness

    def test(self, chunk):
        """Tells which tokens fit each place, [V, T] bool, `chunk` tokens at a time."""
        tokens, positions = self.arrays["tokens"], self.arrays["positions"]
        directions, strengths, _ = torch.linalg.svd(
            self.arrays["columns"], full_matrices=False
        )
        basis = directions[:, strengths > self.tolerance * strengths[0]]
        width, fits = tokens.shape[1], []
        for part in tokens.split(chunk):
            columns = []
            for place in positions:
                x = torch.nn.functional.layer_norm(
                    part + place,
                    (width,),
                    self.arrays["scale"],
                    self.arrays["bias"],
                    EPSILON,
                )
                x = x / x.norm(dim=-1, keepdim=True)
                left = x - (x @ basis) @ basis.T
                columns.append(left.norm(dim=-1) < self.nearness)
            fits.append(torch.stack(columns, dim=1))
        return torch.cat(fits)

    @torch.no_grad()
    def run(self, threads, chunk, repeats):
        """Times whole tests, the singular values included."""
        torch.set_num_threads(threads)
        start = clock()
        for _ in range(repeats):
            fits = self.test(chunk)
        stop = clock()
        found = fits.nonzero().cpu().tolist()
        return {"seconds": (stop - start) / repeats, "fits": found}


if __name__ == "__main__":
    serve_object("run", load=Membership)
