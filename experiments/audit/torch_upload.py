"""Writes a gradient, an update and their weights as a PyTorch user has them.

It imports no kljax: this is the client of ``kljax audit``, of which the auditor gets
files alone. The network is the LeNet of DLG, at 8x8 and its weights U(-0.5, 0.5) as
its attack scripts draw them; the images are smooth patterns of three colours, made
here. Run with any PyTorch:

    python experiments/audit/torch_upload.py FOLDER

It writes ``weights.npz``, ``gradient.safetensors`` and ``gradient.npz`` (one image),
``half.npz`` (the same in float16), ``update.npz`` (one step of SGD at rate 0.1),
``truth.npz``; ``pair.npz``, the gradient of two images, with ``pair_truth.npz``; and
``four.npz``, the change after two steps of SGD at rate 0.1 on two images each, with
``four_truth.npz``.
"""

import sys
from pathlib import Path

import numpy as np
import torch

SIDE, CLASSES, LABEL, RATE = 8, 10, 3, 0.1


class LeNet(torch.nn.Module):
    """Three convolutions with sigmoids, and a classifier."""

    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 12, 5, stride=2, padding=2)
        self.conv2 = torch.nn.Conv2d(12, 12, 5, stride=2, padding=2)
        self.conv3 = torch.nn.Conv2d(12, 12, 5, stride=1, padding=2)
        self.fc = torch.nn.Linear(12 * (SIDE // 4) ** 2, CLASSES)

    def forward(self, x):
        """Maps images [B, 3, H, W] to logits [B, 10]."""
        for layer in (self.conv1, self.conv2, self.conv3):
            x = torch.sigmoid(layer(x))
        return self.fc(x.flatten(1))


def pattern():
    """Makes an image [3, H, W] in [0, 1]: a disc on a slope, another colour each."""
    y, x = np.mgrid[:SIDE, :SIDE] / (SIDE - 1)
    disc = ((x - 0.6) ** 2 + (y - 0.4) ** 2 < 0.08).astype(np.float32)
    return np.stack([0.2 + 0.6 * x, 0.8 * disc + 0.1, 0.9 - 0.7 * y]).astype(np.float32)


def main(folder):
    """Writes all files."""
    torch.manual_seed(0)
    net = LeNet()
    for weight in net.parameters():
        torch.nn.init.uniform_(weight, -0.5, 0.5)
    image = torch.tensor(pattern())[None]
    loss = torch.nn.functional.cross_entropy(net(image), torch.tensor([LABEL]))
    names = [name for name, _ in net.named_parameters()]
    grads = torch.autograd.grad(loss, list(net.parameters()))
    gradient = {n: g.numpy() for n, g in zip(names, grads, strict=True)}
    weights = {name: p.detach().numpy().copy() for name, p in net.named_parameters()}
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "weights.npz", **weights)
    np.savez(folder / "gradient.npz", **gradient)
    half = {name: g.astype(np.float16) for name, g in gradient.items()}
    np.savez(folder / "half.npz", **half)
    np.savez(folder / "update.npz", **{n: -RATE * g for n, g in gradient.items()})
    np.savez(
        folder / "truth.npz",
        images=image.numpy().transpose(0, 2, 3, 1),
        labels=np.array([LABEL]),
    )
    pair = torch.tensor(np.stack([pattern(), 1 - pattern()[::-1, ::-1]]))
    loss = torch.nn.functional.cross_entropy(net(pair), torch.tensor([LABEL, 5]))
    grads = torch.autograd.grad(loss, list(net.parameters()))
    np.savez(
        folder / "pair.npz",
        **{name: g.numpy() for name, g in zip(names, grads, strict=True)},
    )
    np.savez(folder / "pair_truth.npz", images=pair.numpy().transpose(0, 2, 3, 1))
    four = np.stack(
        [
            pattern(),
            1 - pattern()[::-1, ::-1],
            pattern().transpose(0, 2, 1)[[2, 0, 1]],
            1 - pattern()[:, ::-1][[1, 2, 0]],
        ]
    )
    labels = np.array([LABEL, 5, 1, 7])
    descent = torch.optim.SGD(net.parameters(), lr=RATE)
    for step in (slice(0, 2), slice(2, 4)):
        descent.zero_grad()
        logits = net(torch.tensor(four[step]))
        torch.nn.functional.cross_entropy(logits, torch.tensor(labels[step])).backward()
        descent.step()
    change = {n: p.detach().numpy() - weights[n] for n, p in net.named_parameters()}
    np.savez(folder / "four.npz", **change)
    np.savez(
        folder / "four_truth.npz", images=four.transpose(0, 2, 3, 1), labels=labels
    )
    try:
        from safetensors.torch import save_file
    except ImportError:
        return
    tensors = {n: torch.tensor(g) for n, g in gradient.items()}
    save_file(tensors, folder / "gradient.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
