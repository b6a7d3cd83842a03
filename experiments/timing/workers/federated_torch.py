"""Federated averaging as users of PyTorch write it: clients one after another.

One network object; every client loads the server's state into it, makes a fresh
`torch.optim.SGD`, takes its steps, and is added to a weighted sum. Networks have the
attribute names of kljax's, so that weights are transplanted by name: ``conv1/kernel``
here is ``conv1.weight`` there.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .machine import DEVICE, clock, kernels, placed
from .serving import serve_object

LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


class LeNet(nn.Module):
    """DLG's LeNet for images [B, 3, 32, 32]."""

    # The first dense layer's inputs [C, H, W], numbered by kljax in the order H, W, C.
    flattened = (12, 8, 8)

    def __init__(self, num_classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(12, 12, 5, stride=2, padding=2)
        self.conv3 = nn.Conv2d(12, 12, 5, padding=2)
        self.fc = nn.Linear(768, num_classes)

    def forward(self, x):
        for conv in (self.conv1, self.conv2, self.conv3):
            x = torch.sigmoid(conv(x))
        return self.fc(x.flatten(1))


class Block(nn.Module):
    """Adds two 3x3 convolutions to the input, whose new channels are zeros."""

    def __init__(self, channels_in, channels, stride):
        super().__init__()
        self.stride, self.widening = stride, channels - channels_in
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.widening:
            before = self.widening // 2
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, before, self.widening - before))
        return F.relu(x + y)


class ResNet20(nn.Module):
    """CIFAR's ResNet-20 for images [B, 3, H, W]; shortcuts of option A."""

    flattened = None

    def __init__(self, num_classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        widths = (16,) * 4 + (32,) * 3 + (64,) * 3
        self.blocks = nn.Sequential(
            *(
                Block(before, after, 1 if before == after else 2)
                for before, after in zip(widths, widths[1:], strict=False)
            )
        )
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x):
        x = self.blocks(F.relu(self.norm1(self.conv1(x))))
        return self.fc(x.mean((2, 3)))


class TutorialCNN(nn.Module):
    """The network of PyTorch's tutorial for images [B, 3, 32, 32]."""

    flattened = (16, 5, 5)

    def __init__(self, num_classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x):
        for conv in (self.conv1, self.conv2):
            x = F.max_pool2d(F.relu(conv(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))


NETWORKS = {"lenet": LeNet, "resnet20": ResNet20, "tutorial-cnn": TutorialCNN}


def named(name):
    """Returns torch's name of a parameter or statistic of kljax."""
    *path, leaf = name.split("/")
    return ".".join((*path, LEAVES[leaf]))


def _follows_maps(network, inputs):
    """Tells whether a dense layer with so many inputs is the one behind the maps."""
    return network.flattened is not None and inputs == np.prod(network.flattened)


def transplanted(network, value, name):
    """Turns kljax's array into torch's layout."""
    if value.ndim == 4:  # HWIO -> OIHW
        value = value.transpose(3, 2, 0, 1)
    elif value.ndim == 2:
        if _follows_maps(network, len(value)):  # [H * W * C, Kc] -> [C * H * W, Kc]
            channels, height, width = network.flattened
            value = value.reshape(height, width, channels, -1).transpose(2, 0, 1, 3)
            value = value.reshape(channels * height * width, -1)
        value = value.T
    return torch.tensor(np.ascontiguousarray(value))


def given_back(network, value, name):
    """Turns torch's tensor into kljax's layout."""
    value = value.cpu().numpy()
    if value.ndim == 4:
        value = value.transpose(2, 3, 1, 0)
    elif value.ndim == 2:
        value = value.T
        if _follows_maps(network, len(value)):
            value = value.reshape(*network.flattened, -1).transpose(1, 2, 0, 3)
            value = value.reshape(-1, value.shape[-1])
    return np.ascontiguousarray(value)


class Federation:
    """What the server and the clients hold; see `federated_peer.FederatedPeer.load`."""

    def __init__(self, network, rate, path):
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        images = arrays.pop("images").transpose(0, 3, 1, 2)
        self.images = placed(np.ascontiguousarray(images))
        self.labels = placed(arrays.pop("labels"), torch.int64)
        self.batches = placed(arrays.pop("batches"))  # [N, T, B]
        self.weights = arrays.pop("weights").tolist()  # [N]
        self.rate = rate
        self.network = NETWORKS[network](int(self.labels.max()) + 1).to(DEVICE)
        self.names = {named(name): name for name in arrays}
        self.start = {
            theirs: transplanted(self.network, arrays[ours], ours).to(DEVICE)
            for theirs, ours in self.names.items()
        }

    def round(self, setting, first, last, steps=None, path=None):
        """Runs the clients first..last-1; their mean goes to `path`, if there is one.

        Returns the clock before and after, and the sum of the clients' weights.
        """
        torch.set_num_threads(setting["threads"])
        self.network.train()
        with kernels(setting["kernels"]):
            start = clock()
            mean = self._mean(range(first, last), steps, setting["fused"])
            stop = clock()
        if path:
            ours = {
                ours: given_back(self.network, mean[theirs], ours)
                for theirs, ours in self.names.items()
            }
            np.savez(path, **ours)
        return {"start": start, "stop": stop, "weight": sum(self.weights[first:last])}

    def _mean(self, clients, steps, fused):
        total = {name: torch.zeros_like(value) for name, value in self.start.items()}
        for client in clients:
            self._train(client, steps, fused)
            trained = self.network.state_dict()
            for name in total:
                total[name].add_(trained[name], alpha=self.weights[client])
        weight = sum(self.weights[client] for client in clients)
        return {name: value / weight for name, value in total.items()}

    def _train(self, client, steps, fused):
        # Not strict: BatchNorm also counts its batches, which nobody uses.
        self.network.load_state_dict(self.start, strict=False)
        optimiser = torch.optim.SGD(
            self.network.parameters(), self.rate, fused=fused or None
        )
        for batch in self.batches[client, :steps]:
            optimiser.zero_grad()
            logits = self.network(self.images[batch])
            F.cross_entropy(logits, self.labels[batch]).backward()
            optimiser.step()


if __name__ == "__main__":
    serve_object("round", load=Federation)
