"""Tensors of files that somebody else wrote: ``.npz`` and ``.safetensors``.

Nothing is unpickled: neither format can run anything.
"""

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from kljax.core.files import DamagedFile, brief, read_arrays

REMEDY = "write it by numpy.savez or safetensors, a tensor per name"
PICKLED = (".pt", ".pth", ".bin", ".pkl", ".ckpt")
INTEGERS = "num_batches_tracked"  # what PyTorch's norms count, and nothing needs


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a file, in their own types.

    Raises:
      FileNotFoundError: if it is not there.
      ValueError: for a file of another kind, a damaged one, one without tensors, and
        tensors that are not of floating point.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there (here is {Path.cwd()})")
    if path.suffix in PICKLED:
        raise ValueError(
            f"{path} may run code when it is read, and is not: write its tensors by "
            "safetensors.torch.save_file, or by numpy.savez"
        )
    if path.suffix == ".npz":
        arrays = read_arrays(path, remedy=REMEDY) or {}
    elif path.suffix == ".safetensors":
        arrays = _read_safetensors(path)
    else:
        raise ValueError(
            f"{path} ends in {path.suffix!r}: expected .npz or .safetensors"
        )
    arrays = {n: x for n, x in arrays.items() if not n.endswith(INTEGERS)}
    if not arrays:
        raise ValueError(f"{path} holds no tensors")
    for name, array in arrays.items():
        if not np.issubdtype(array.dtype, np.floating):
            raise ValueError(
                f"{path}: tensor {name!r} is of type {array.dtype}; gradients and "
                "weights are of floating point"
            )
    return arrays


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DamagedFile(path, brief(error), remedy=REMEDY) from error
    except (KeyError, TypeError) as error:  # a type that NumPy has not
        raise ValueError(
            f"{path} holds a type that NumPy has not ({brief(error)}): write it as "
            "float16 or float32"
        ) from error


def coarsest(arrays: dict[str, np.ndarray]) -> np.dtype:
    """Gives the type with the fewest digits among some tensors."""
    return max((x.dtype for x in arrays.values()), key=lambda t: np.finfo(t).eps)
