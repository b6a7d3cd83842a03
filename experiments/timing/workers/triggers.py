"""Trigger inversion in eager PyTorch: pairs of classes one by one, or side by side.

The descent is that of `kljax.federated.trigger_inversion`: Adam (.1, .5, .9) on
``CE + c |m|``, both through tanh, with c after its schedule, the smallest mask kept.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .federated_torch import LeNet, named, transplanted
from .machine import DEVICE, clock, placed
from .serving import serve_object

COST, DEARER, CHEAPER, PATIENCE, SUCCESS = 1e-3, 1.5, 1.5**1.5, 10, 0.9


class Dense(nn.Module):
    """kljax's dense network for images [B, 3, 8, 8]."""

    # The first layer's inputs [C, H, W], numbered by kljax in the order H, W, C.
    flattened = (3, 8, 8)

    def __init__(self, num_classes):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(192, 64)])
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x):
        return self.fc(torch.sigmoid(self.layers[0](x.flatten(1))))


class Search:
    """Pairs of classes of one network."""

    def __init__(self, network, path):
        """Loads what `trigger_peer.TriggerPeer.load` wrote."""
        arrays = dict(np.load(path))
        weights = {
            name.removeprefix("weights/"): value
            for name, value in arrays.items()
            if name.startswith("weights/")
        }
        kind = {"dense": Dense, "lenet": LeNet}[network]
        net = kind(10)
        state = {named(n): transplanted(net, x, n) for n, x in weights.items()}
        net.load_state_dict(state)
        self.net = net.to(DEVICE).requires_grad_(False)
        # [pairs, m, C, H, W]: examples of each pair's source.
        self.images = placed(np.ascontiguousarray(np.moveaxis(arrays["images"], -1, 2)))
        self.targets = placed(arrays["targets"]).long()
        self.masks = placed(np.ascontiguousarray(np.moveaxis(arrays["masks"], -1, 1)))
        patterns = np.moveaxis(arrays["patterns"], -1, 1)
        self.patterns = placed(np.ascontiguousarray(patterns))

    def search(self, form, steps, threads):
        """Inverts all pairs, one by one or side by side; gives times and sizes."""
        torch.set_num_threads(threads)
        start = clock()
        if form == "batched":
            sizes = self._all(steps).tolist()
        else:
            sizes = [self._one(pair, steps) for pair in range(len(self.targets))]
        return {"start": start, "stop": clock(), "sizes": sizes}

    def _one(self, pair, steps):
        images = self.images[pair]
        mask = self.masks[pair].clone().requires_grad_()
        pattern = self.patterns[pair].clone().requires_grad_()
        optimiser = torch.optim.Adam([mask, pattern], lr=0.1, betas=(0.5, 0.9))
        cost, above, below, best = COST, 0, 0, float("inf")
        best_mask, best_pattern = mask, pattern
        wanted = self.targets[pair].expand(len(images))
        for _ in range(steps):
            m, p = (torch.tanh(mask) + 1) / 2, (torch.tanh(pattern) + 1) / 2
            logits = self.net((1 - m) * images + m * p)
            size = m.sum()
            loss = F.cross_entropy(logits, wanted) + cost * size
            optimiser.zero_grad()
            loss.backward()
            turned = (logits.argmax(1) == wanted).float().mean().item()
            if turned >= SUCCESS and size.item() < best:
                best = size.item()
                best_mask = mask.detach().clone()
                best_pattern = pattern.detach().clone()
            optimiser.step()
            above, below = (above + 1, 0) if turned >= SUCCESS else (0, below + 1)
            if above >= PATIENCE:
                above, cost = 0, cost * DEARER
            elif below >= PATIENCE:
                below, cost = 0, cost / CHEAPER
        self.found = best_mask, best_pattern
        return best

    def _all(self, steps):
        images, targets = self.images, self.targets
        pairs, examples = images.shape[:2]
        mask = self.masks.clone().requires_grad_()
        pattern = self.patterns.clone().requires_grad_()
        optimiser = torch.optim.Adam([mask, pattern], lr=0.1, betas=(0.5, 0.9))
        cost, best = (torch.full((pairs,), x, device=DEVICE) for x in (COST, torch.inf))
        above = torch.zeros(pairs, dtype=int, device=DEVICE)
        below = torch.zeros_like(above)
        best_mask, best_pattern = mask.detach().clone(), pattern.detach().clone()
        wanted = targets[:, None].expand(pairs, examples)
        for _ in range(steps):
            m = ((torch.tanh(mask) + 1) / 2)[:, None]
            p = ((torch.tanh(pattern) + 1) / 2)[:, None]
            stamped = (1 - m) * images + m * p
            logits = self.net(stamped.flatten(0, 1))
            losses = F.cross_entropy(logits, wanted.flatten(), reduction="none")
            size = m.sum(dim=(1, 2, 3, 4))
            loss = losses.view(pairs, examples).mean(1) + cost * size
            optimiser.zero_grad()
            # Pairs share nothing: the gradient of their sum is that of each.
            loss.sum().backward()
            with torch.no_grad():
                turned = (logits.argmax(1).view(pairs, examples) == wanted).float()
                succeeded = turned.mean(1) >= SUCCESS
                better = succeeded & (size < best)
                best = torch.where(better, size, best)
                wide = better[:, None, None, None]
                best_mask = torch.where(wide, mask, best_mask)
                best_pattern = torch.where(wide, pattern, best_pattern)
                above = torch.where(succeeded, above + 1, 0)
                below = torch.where(succeeded, 0, below + 1)
                dearer, cheaper = above >= PATIENCE, below >= PATIENCE
                cost = torch.where(dearer, cost * DEARER, cost)
                cost = torch.where(cheaper, cost / CHEAPER, cost)
                above = torch.where(dearer, 0, above)
                below = torch.where(cheaper, 0, below)
            optimiser.step()
        self.found = best_mask, best_pattern
        return best


if __name__ == "__main__":
    serve_object("search", load=Search)
