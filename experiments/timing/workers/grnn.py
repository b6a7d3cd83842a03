"""GRNN by PyTorch: steps of RMSprop on the weights of a generator, eager and func.

The victim's network is DLG's LeNet, every victim with weights of its own; the distance
is GRNN's, ``|g - g*|^2 + |g - g*|``, and its total variation is added.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, grad_and_value, vmap

from .federated_torch import LeNet, named, transplanted
from .inversions import stacked, timed
from .machine import DEVICE, placed

RATE, ALPHA, MOMENTUM, EPSILON = 1e-4, 0.99, 0.99, 1e-8


class Generator(nn.Module):
    """GRNN's generator of 32x32x3 images and of soft labels; its weights are sought."""

    def __init__(self, inputs, num_classes):
        super().__init__()
        widths = (128, 64, 32, 3)
        self.first = nn.ConvTranspose2d(inputs, 2 * widths[0], 4)
        pairs = [*zip(widths, widths[1:], strict=False)]
        self.convs = nn.ModuleList(
            nn.Conv2d(before, 2 * after, 3, padding=1, bias=False)
            for before, after in pairs
        )
        # Batch statistics alone: running ones are not used, and func could not write.
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(2 * after, track_running_stats=False) for _, after in pairs
        )
        self.label = nn.Linear(inputs, num_classes)

    def forward(self, noise):
        x = F.glu(self.first(noise[:, :, None, None]), dim=1)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = F.glu(norm(conv(x)), dim=1)
        return torch.sigmoid(x), F.softmax(self.label(noise), dim=-1)

    def load(self, arrays):
        """Takes weights by kljax's names."""
        names = {
            "first/kernel": (self.first.weight, (0, 3, 1, 2)),
            "first/bias": (self.first.bias, (0,)),
            "label/kernel": (self.label.weight, (1, 0)),
            "label/bias": (self.label.bias, (0,)),
        }
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            names[f"blocks/{i}/kernel"] = (conv.weight, (3, 2, 0, 1))
            names[f"blocks/{i}/scale"] = (norm.weight, (0,))
            names[f"blocks/{i}/bias"] = (norm.bias, (0,))
        with torch.no_grad():
            for name, (tensor, order) in names.items():
                tensor.copy_(torch.from_numpy(arrays[name].transpose(order).copy()))
        return self


def distance(simulated, observed):
    """GRNN's distance."""
    squares = sum(
        ((s - o) ** 2).sum() for s, o in zip(simulated, observed, strict=True)
    )
    return squares + torch.sqrt(squares)


def variation(images):
    """GRNN's total variation, as its code computes it."""
    rows = images[..., 1:, :] - images[..., :-1, :]
    columns = images[..., 1:] - images[..., :-1]
    return 2 * ((rows**2).mean() + (columns**2).mean())


def soft_cross_entropy(logits, targets):
    """Mean over examples."""
    return -(targets * F.log_softmax(logits, dim=-1)).sum(-1).mean()


class Generation:
    """Victims with weights of their own, and a generator each."""

    def __init__(self, weight, path):
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        images = placed(np.moveaxis(arrays.pop("images"), -1, 2).copy())
        labels = placed(arrays.pop("labels"), torch.int64)  # [N, B]
        self.noise = placed(arrays.pop("noise"))  # [N, B, inputs]
        self.weight, self.nets, self.generators = weight, [], []
        generated = {
            name.removeprefix("generator/"): arrays.pop(name)
            for name in [*arrays]
            if name.startswith("generator/")
        }
        inputs = self.noise.shape[-1]
        for i in range(len(images)):
            net = LeNet(10).to(DEVICE)
            state = {named(n): transplanted(LeNet, v[i], n) for n, v in arrays.items()}
            net.load_state_dict(state)
            self.nets.append(net)
            own = {name: value[i] for name, value in generated.items()}
            self.generators.append(Generator(inputs, 10).load(own).to(DEVICE))
        self.observed = [
            [
                g.detach()
                for g in torch.autograd.grad(
                    F.cross_entropy(net(x), y), [*net.parameters()]
                )
            ]
            for net, x, y in zip(self.nets, images, labels, strict=True)
        ]

    def evaluations(self, setting, first, last, repeats):
        """Makes `repeats` steps for victims first..last-1; see `inversion.timed`."""
        make = self._eager if setting["form"] == "eager" else self._func
        return timed(make, setting, first, last, repeats)

    def _eager(self, first, last, chunk):
        del chunk

        def stepper(i):
            net, noise, observed = self.nets[i], self.noise[i], self.observed[i]
            generator = Generator(noise.shape[-1], 10).to(DEVICE)
            generator.load_state_dict(self.generators[i].state_dict())
            params = [*net.parameters()]
            optimiser = torch.optim.RMSprop(
                generator.parameters(), RATE, ALPHA, EPSILON, momentum=MOMENTUM
            )

            def step():
                optimiser.zero_grad()
                images, labels = generator(noise)
                loss = soft_cross_entropy(net(images), labels)
                simulated = torch.autograd.grad(loss, params, create_graph=True)
                value = distance(simulated, observed) + self.weight * variation(images)
                value.backward(inputs=[*generator.parameters()])
                optimiser.step()
                return value.detach()

            return step

        return [stepper(i) for i in range(first, last)]

    def _func(self, first, last, chunk):
        net, generator = self.nets[0], self.generators[0]

        def loss(params, images, labels):
            return soft_cross_entropy(functional_call(net, params, (images,)), labels)

        def objective(weights, params, noise, observed):
            images, labels = functional_call(generator, weights, (noise,))
            simulated = [*grad(loss)(params, images, labels).values()]
            return distance(simulated, observed) + self.weight * variation(images)

        evaluate = vmap(grad_and_value(objective))

        def stepper(part):
            weights = stacked(
                [dict(g.named_parameters()) for g in self.generators[part]]
            )
            params = stacked([dict(n.named_parameters()) for n in self.nets[part]])
            observed = [torch.stack(x) for x in zip(*self.observed[part], strict=True)]
            noise = self.noise[part]
            squares = {n: torch.zeros_like(w) for n, w in weights.items()}
            moves = {n: torch.zeros_like(w) for n, w in weights.items()}

            def step():
                grads, value = evaluate(weights, params, noise, observed)
                for name, g in grads.items():
                    squares[name].mul_(ALPHA).addcmul_(g, g, value=1 - ALPHA)
                    scaled = g / (squares[name].sqrt() + EPSILON)
                    moves[name].mul_(MOMENTUM).add_(scaled)
                    weights[name].sub_(moves[name], alpha=RATE)
                return value

            return step

        return [stepper(slice(i, i + chunk)) for i in range(first, last, chunk)]
