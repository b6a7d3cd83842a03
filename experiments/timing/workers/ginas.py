"""Untrained encoder-decoders judged by PyTorch, the gradient of LeNet that each gives.

Two ways, as users write it: eager, one network after another, each with what its
architecture uses and nothing else, as the code of GI-NAS does; and func, masked
networks side by side under `torch.func.vmap`. Weights come with the networks, by
kljax's names and in its layouts, brought into PyTorch's before anything is timed.
"""

import torch
import torch.nn.functional as F
from torch.func import grad, vmap

from .lenet import logits
from .machine import DEVICE, clock
from .serving import serve_object

EPSILON, SLOPE, GROUPS = 1e-5, 0.2, 4
BILINEAR, BICUBIC, NEAREST, SHUFFLED, TRANSPOSED = range(5)
DENSE, STACKED, SEPARABLE, DEPTHWISE, NONE = range(5)
ARCHITECTURE = ("skips", "width", "doubling", "convolution", "kernel", "slope")


class Networks:
    """N networks of one space, and one victim's gradient.

    arrays: noise [B, H, W, c], images, onehots, LeNet's weights ``victim/NAME`` in
    PyTorch's layout, ``architecture/NAME`` [N, ...], ``weights/PATH`` [N, ...], and the
    interpolations' matrices ``matrix/SIDE`` [5, 2 SIDE, SIDE].
    """

    def __init__(self, path):
        import numpy as np

        with np.load(path) as file:
            arrays = {n: torch.from_numpy(file[n]).to(DEVICE) for n in file.files}

        def under(prefix):
            start = len(prefix) + 1
            return {n[start:]: x for n, x in arrays.items() if n.startswith(prefix)}

        self.noise = arrays["noise"].permute(0, 3, 1, 2).contiguous()
        images = arrays["images"].permute(0, 3, 1, 2).contiguous()
        self.onehots, self.victim = arrays["onehots"], under("victim")
        self.matrices = {int(n): x for n, x in under("matrix").items()}
        self.architectures = under("architecture")
        self.weights = {n: in_torch(n, x) for n, x in under("weights").items()}
        self.scales = self.architectures["skips"].shape[-1]
        self.observed = self._gradient(self.victim, images)

    def _gradient(self, params, images):
        grads = grad(self._loss)(params, images)
        return {name: x.detach() for name, x in grads.items()}

    def _loss(self, params, images):
        return F.cross_entropy(logits("onednn", params, images), self.onehots)

    def judge(self, form, chunk, threads, first, last):
        """Judges the networks first, ..., last - 1, and times it."""
        torch.set_num_threads(threads)
        start, share = clock(), (first, last)
        values = self._eager(*share) if form == "eager" else self._func(chunk, *share)
        values = values.tolist()
        return {"start": start, "stop": clock(), "values": values}

    def _eager(self, first, last):
        leaves = {n: x.requires_grad_() for n, x in self.victim.items()}
        found = []
        for n in range(first, last):
            one = {name: x[n].tolist() for name, x in self.architectures.items()}
            weights = {name: x[n] for name, x in self.weights.items()}
            with torch.no_grad():
                images = self._built(one, weights)
            value = self._loss(leaves, images)
            grads = torch.autograd.grad(value, list(leaves.values()))
            found.append(distance(grads, self.observed.values()))
        return torch.stack(found).detach()

    def _func(self, chunk, first, last):
        victim = {n: x.detach() for n, x in self.victim.items()}

        def judged(one, weights):
            images = self._masked(one, weights)
            grads = grad(self._loss)(victim, images)
            return distance(grads.values(), self.observed.values())

        found = []
        for n in range(first, last, chunk):
            part = slice(n, min(n + chunk, last))
            found.append(
                vmap(judged)(
                    {name: x[part] for name, x in self.architectures.items()},
                    {name: x[part] for name, x in self.weights.items()},
                )
            )
        return torch.cat(found)

    # --- what is used, and nothing else -----------------------------------------------

    def _built(self, one, weights):
        skips, sources = one["skips"], [self.noise]
        for k in range(self.scales):
            x = block(weights, f"encoder/{k}/first", sources[-1], stride=2)
            sources.append(block(weights, f"encoder/{k}/second", x))
        below = sources.pop()
        for i in reversed(range(self.scales)):
            x = self._cell(one, weights, f"up/{i}", below)
            for j, source in enumerate(sources):
                if not skips[i][j]:
                    continue
                if i == j:
                    source = block(weights, f"same/{i}", source)
                for k in range(j, i):
                    source = block(weights, f"down/{k}", source, stride=2)
                for k in reversed(range(i, j)):
                    source = self._cell(one, weights, f"rise/{k}", source)
                x = x + source
            below = decode(weights, i, x, 1.0)
        out = F.conv2d(below, weights["output/kernel"], weights["output/bias"])
        return torch.sigmoid(out)

    def _cell(self, one, weights, name, x):
        slope, side = one["slope"], int(one["kernel"])
        doubling, convolution = int(one["doubling"]), int(one["convolution"])
        if doubling == SHUFFLED:
            x = F.pixel_shuffle(x, 2)
        elif doubling == TRANSPOSED:
            x = stuffed(x)
        else:
            mode = ("bilinear", "bicubic", "nearest")[doubling]
            x = F.interpolate(x, scale_factor=2, mode=mode)
        if doubling != TRANSPOSED:
            x = F.leaky_relu(x, slope)
        if convolution == NONE:
            return x
        fed = x.shape[1]
        if convolution in (DENSE, STACKED):
            kernel = centre(weights[f"{name}/dense"], side)
            if convolution == STACKED:
                x = x.unflatten(1, (GROUPS, fed // GROUPS)).sum(1)
            x = F.conv2d(x, kernel[:, : x.shape[1]], padding=side // 2)
        else:
            kernel = centre(weights[f"{name}/depth"], side)[:fed]
            x = F.conv2d(x, kernel, padding=side // 2, groups=fed)
            if convolution == SEPARABLE:
                x = F.conv2d(x, weights[f"{name}/point"][:, :fed])
        return F.leaky_relu(x, slope)

    # --- everything, times zeros and ones ---------------------------------------------

    def _masked(self, one, weights):
        skips, sources = one["skips"], [self.noise]
        channels = weights["output/kernel"].shape[1]
        on = (torch.arange(channels, device=DEVICE) < one["width"]).float()
        on = on[:, None, None]
        for k in range(self.scales):
            x = block(weights, f"encoder/{k}/first", sources[-1], on, stride=2)
            sources.append(block(weights, f"encoder/{k}/second", x, on))
        below = sources.pop()
        brought = {}
        for i in range(1, self.scales):
            for j in range(i):
                before = sources[j] if j == i - 1 else brought[i - 1, j]
                brought[i, j] = block(weights, f"down/{i - 1}", before, on, stride=2)
        for i in reversed(range(self.scales - 1)):
            before = [
                sources[j] if j == i + 1 else brought[i + 1, j]
                for j in range(i + 1, self.scales)
            ]
            parts = self._masked_cell(one, weights, f"rise/{i}", torch.cat(before), on)
            parts = parts.chunk(len(before))
            brought |= {(i, i + 1 + n): part for n, part in enumerate(parts)}
        for i in range(self.scales):
            brought[i, i] = block(weights, f"same/{i}", sources[i], on)
        for i in reversed(range(self.scales)):
            x = self._masked_cell(one, weights, f"up/{i}", below, on)
            for j in range(self.scales):
                x = x + skips[i, j] * brought[i, j]
            below = decode(weights, i, x, on)
        out = F.conv2d(below, weights["output/kernel"], weights["output/bias"])
        return torch.sigmoid(out)

    def _masked_cell(self, one, weights, name, x, on):
        channels = x.shape[1]
        doubling, convolution = one["doubling"], one["convolution"]
        place = doubling.long()
        down = self.matrices[x.shape[2]].index_select(0, place[None])[0]
        across = self.matrices[x.shape[3]].index_select(0, place[None])[0]
        shuffled = F.pixel_shuffle(x, 2)
        rest = channels - shuffled.shape[1]
        shuffled = F.pad(shuffled, (0, 0, 0, 0, 0, rest))
        x = torch.where(doubling == SHUFFLED, shuffled, down @ x @ across.T)
        x = leaky(x, torch.where(doubling == TRANSPOSED, 1.0, one["slope"]))
        dense, depth = weights[f"{name}/dense"], weights[f"{name}/depth"]
        steps = torch.arange(dense.shape[-1], device=DEVICE) - dense.shape[-1] // 2
        far = torch.maximum(steps.abs()[:, None], steps.abs()[None])
        within = (far <= one["kernel"] // 2).float()
        dense, depth = dense * within, depth * within
        fed = torch.where(doubling == SHUFFLED, one["width"] / GROUPS, one["width"])
        group = (fed // GROUPS).long().clamp(min=1)
        index = torch.arange(channels, device=DEVICE)
        stacked = dense.index_select(1, index % group)
        stacked = stacked * (index < GROUPS * group)[None, :, None, None]
        eye = torch.eye(channels, device=DEVICE)[..., None, None]
        kernel = dense
        for number, other in (
            (STACKED, stacked),
            # [F, C] of the point, [C] of the depth
            (SEPARABLE, weights[f"{name}/point"] * depth.transpose(0, 1)),
            (DEPTHWISE, eye * depth.transpose(0, 1)),
            (NONE, eye * (far == 0)),
        ):
            kernel = torch.where(convolution == number, other, kernel)
        x = F.conv2d(x, kernel, padding=kernel.shape[-1] // 2)
        return leaky(x, torch.where(convolution == NONE, 1.0, one["slope"])) * on


def in_torch(name, x):
    """Brings weights [N, ...] from kljax's layout into PyTorch's."""
    last = name.rsplit("/", 1)[-1]
    if last in ("kernel", "dense"):
        x = x.permute(0, 4, 3, 1, 2)
    elif last == "depth":
        x = x.permute(0, 3, 1, 2)[:, :, None]
    elif last == "point":
        x = x.permute(0, 2, 1)[..., None, None]
    return x.contiguous()


def block(weights, name, x, on=1.0, stride=1):
    """Convolves, normalises, activates."""
    kernel = weights[f"{name}/kernel"]
    x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
    return F.leaky_relu(norm(weights, f"{name}/norm", x, on), SLOPE)


def norm(weights, name, x, on):
    """Normalises over the examples at hand."""
    scale, bias = weights[f"{name}/scale"], weights[f"{name}/bias"]
    return F.batch_norm(x, None, None, scale, bias, True, 0.0, EPSILON) * on


def decode(weights, i, x, on):
    """Runs one block of the decoder."""
    x = norm(weights, f"decoder/{i}/norm", x, on)
    for part in ("first", "second", "third"):
        x = block(weights, f"decoder/{i}/{part}", x, on)
    return x


def stuffed(x):
    """Puts zeros between pixels."""
    wide = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    wide[:, :, ::2, ::2] = x
    return wide


def centre(kernel, side):
    """Cuts the middle out of kernels [..., K, K]."""
    start = (kernel.shape[-1] - side) // 2
    return kernel[..., start : start + side, start : start + side]


def leaky(x, slope):
    """Activates with a slope that is data."""
    return torch.where(x >= 0, x, slope * x)


def distance(grads, observed):
    """Computes 1 - cos of two gradients."""
    one = torch.cat([g.flatten() for g in grads])
    other = torch.cat([g.flatten() for g in observed])
    return 1 - one @ other / (one.norm() * other.norm())


if __name__ == "__main__":
    serve_object("judge", load=Networks)
