"""GRNN's generator and torch.optim.RMSprop (torch 2.13.0), float64.

Weights are not stored but follow a formula, `formula(shape, number)` here and in
tests/attacks/test_generators.py. The generator has 5 inputs, images of 16x16x3 and 4
classes; its tensors in torch's layout, by their number in the formula:
  0 transposed convolution [5, 128, 4, 4], 1 its bias; of block i = 0, 1: 2 + 3i
  convolution [2 out, in, 3, 3], 3 + 3i norm scale (1 + .3 formula), 4 + 3i norm bias;
  8 label weights [4, 5], 9 their bias. 10 is the noise [2, 5], 11 the images [2, 3,
  16, 16] that the descent looks for. Widths are 64, 32, 3.

Arrays of grnn.npz:
  images [2, 3, 16, 16]   of the generator, norm layers in train mode
  labels [2, 4]           softmax of its label layer
  variation []            GRNN's total variation of images, as its code computes it
  x0 [3]                  start of the RMSprop run on sum_i a_i (x_i^4 / 4 - x_i)
  a [3]                   its slopes: 1, 100, .01
  iterates [40, 3]        after each step: lr .01, alpha .99, eps 1e-8, momentum .99
  losses [15]             mean squared error of the generator's images from tensor 11
                          before each of 15 steps of RMSprop, lr 1e-3, momentum .9, on
                          all its tensors but the labels'
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

INPUTS, CLASSES, WIDTHS = 5, 4, (64, 32, 3)


def formula(shape, number):
    """Gives numbers in [-1, 1] that are the same everywhere."""
    index = np.arange(np.prod(shape), dtype=np.float64)
    return np.sin(1.7 * index + 0.9 * number + 0.001 * index**2).reshape(shape)


class Block(nn.Module):
    """Doubles, convolves, norms, and halves the channels."""

    def __init__(self, before, after):
        super().__init__()
        self.conv = nn.Conv2d(before, 2 * after, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(2 * after)

    def forward(self, x):
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return F.glu(self.norm(self.conv(x)), dim=1)


class Generator(nn.Module):
    """The generator of Rand2AI/GRNN at 16x16."""

    def __init__(self):
        super().__init__()
        self.first = nn.ConvTranspose2d(INPUTS, 2 * WIDTHS[0], 4, 1, 0)
        pairs = zip(WIDTHS[:-1], WIDTHS[1:], strict=True)
        self.blocks = nn.ModuleList([Block(*pair) for pair in pairs])
        self.label = nn.Linear(INPUTS, CLASSES)

    def images(self, noise):
        x = F.glu(self.first(noise[:, :, None, None]), dim=1)
        for block in self.blocks:
            x = block(x)
        return torch.sigmoid(x)

    def labels(self, noise):
        return F.softmax(self.label(noise), dim=-1)


def generator():
    """Makes it with the weights of the formula, in train mode."""
    made = Generator().double()
    with torch.no_grad():
        for number, (name, tensor) in enumerate(made.named_parameters()):
            values = torch.from_numpy(formula(tuple(tensor.shape), number))
            one = 1.0 if name.endswith("norm.weight") else 0.0
            tensor.copy_(one + 0.3 * values)
    return made.train()


def total_variation(x):
    """Computes it as GRNN's TVLoss does."""
    batch, channels, height, width = x.shape
    rows = (x[:, :, 1:] - x[:, :, :-1]).pow(2).sum()
    columns = (x[:, :, :, 1:] - x[:, :, :, :-1]).pow(2).sum()
    count_rows = channels * (height - 1) * width
    count_columns = channels * height * (width - 1)
    return 2 * (rows / count_rows + columns / count_columns) / batch


def grnn_goldens():
    """Makes grnn.npz."""
    made = generator()
    noise = torch.from_numpy(formula((2, INPUTS), 10))
    with torch.no_grad():
        images, labels = made.images(noise), made.labels(noise)

    slopes = torch.tensor([1.0, 100.0, 0.01], dtype=torch.float64)
    start = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    x = start.clone().requires_grad_()
    options = {"alpha": 0.99, "eps": 1e-8}
    optimiser = torch.optim.RMSprop([x], lr=0.01, momentum=0.99, **options)
    iterates = []
    for _ in range(40):
        optimiser.zero_grad()
        (slopes * (x**4 / 4 - x)).sum().backward()
        optimiser.step()
        iterates.append(x.detach().numpy().copy())

    target = torch.from_numpy(formula((2, 3, 16, 16), 11))
    weights = [p for n, p in made.named_parameters() if not n.startswith("label")]
    optimiser = torch.optim.RMSprop(weights, lr=1e-3, momentum=0.9, **options)
    losses = []
    for _ in range(15):
        optimiser.zero_grad()
        loss = (made.images(noise) - target).pow(2).mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return {
        "images": images.numpy(),
        "labels": labels.numpy(),
        "variation": total_variation(images).numpy(),
        "x0": start.numpy(),
        "a": slopes.numpy(),
        "iterates": np.array(iterates),
        "losses": np.array(losses),
    }
