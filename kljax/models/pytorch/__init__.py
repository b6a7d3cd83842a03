"""A PyTorch network as two pure functions: traced by torch.fx, computed by JAX.

The graph of a module's forward pass is read by `torch.fx`; each of its layers becomes
one of NNX at the same path, with its weights, and what stands between the layers is
computed as PyTorch defines it. So gates and taps, norm statistics, dropout and kljax's
own convolutions are those of any NNX network (`kljax.models.from_nnx`). What is not in
the tables `LAYERS` and `FUNCTIONS` is refused by its name, before anything is computed.
"""

from kljax.models.pytorch.reading import from_torch, tensors_from_torch

__all__ = ["from_torch", "tensors_from_torch"]
