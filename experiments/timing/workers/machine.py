"""Where a PyTorch peer runs, and how its work is timed there.

On the first GPU where PyTorch sees one (the driver hides it when ours does not use
it), else on the CPU. In float32 as ours: cuDNN would round products of convolutions to
TF32, which changes results and not speed alone.
"""

import time

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.backends.cudnn.allow_tf32 = False
torch.backends.cuda.matmul.allow_tf32 = False
# Lets cuDNN try its kernels at the first call of a shape and keep the fastest.
torch.backends.cudnn.benchmark = True


def clock():
    """Reads the clock once the device has done all that it was asked for, in s.

    perf_counter is one clock for all processes of a Linux machine.
    """
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def placed(array, dtype=None):
    """Puts a NumPy array on the device."""
    return torch.from_numpy(array).to(DEVICE, dtype)


def kernels(name):
    """Chooses a CPU's convolutions: oneDNN's ("onednn"), or PyTorch's own."""
    return torch.backends.mkldnn.flags(enabled=name == "onednn", allow_tf32=None)
