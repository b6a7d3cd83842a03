"""PyTorch LeNet victims and the objective of one DLG evaluation, in several forms.

One victim is a dict of torch parameters (`timing.torch_layouts`), an unknown image
[1, 3, 32, 32] in [0, 1], a one-hot label [10] and the observed gradient, all tensors
flattened and joined [15826]. One *evaluation* is the squared-l2 distance between the
gradient at the guess and the observed one, and its derivative with respect to the
guessed image only. V victims at once have a leading axis V on everything.

CONVOLUTIONS holds ways to write the same convolution. At this size PyTorch's own
kernels spend most of their time on overheads, so the fastest way depends on the form:
  onednn     F.conv2d as shipped; under vmap a grouped convolution, good in chunks of 32
  native     F.conv2d with oneDNN switched off: fastest for one victim at a time
  unfold     F.unfold and a matrix product: good under vmap in smaller chunks
  separable  patches cut first along the width, then along the height, and a matrix
             product: fastest when compiled
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch.func import grad, grad_and_value, vmap

from .machine import DEVICE, kernels

KERNEL, PADDING = 5, 2


def by_kernel(images, weight, bias, stride):
    """Convolves images [B, C, H, W] with torch's own kernel."""
    return F.conv2d(images, weight, bias, stride, PADDING)


def by_product(cut, images, weight, bias, stride):
    """Convolves images [B, C, H, W] as a matrix product with the patches of `cut`."""
    size = (images.shape[-1] + 2 * PADDING - KERNEL) // stride + 1
    patches = cut(images, stride, size)
    out = weight.flatten(1) @ patches + bias[:, None]
    return out.unflatten(-1, (size, size))


def unfold_patches(images, stride, size):
    """Cuts patches [B, C*25, size*size] with torch's own kernel."""
    del size
    return F.unfold(images, KERNEL, padding=PADDING, stride=stride)


def separable_patches(images, stride, size):
    """Cuts patches [B, C*25, size*size] along the width, then along the height.

    Ten slices instead of 25: a compiler turns their adjoint into ten shifted sums,
    where that of F.unfold is a scatter.
    """
    span = stride * (size - 1) + 1
    images = F.pad(images, (PADDING,) * 4)
    rows = [images[..., j : j + span : stride] for j in range(KERNEL)]
    rows = torch.stack(rows, 2)
    patches = [rows[..., i : i + span : stride, :] for i in range(KERNEL)]
    return torch.stack(patches, 2).flatten(-2).flatten(1, 3)


CONVOLUTIONS = {
    "onednn": by_kernel,
    "native": by_kernel,
    "unfold": partial(by_product, unfold_patches),
    "separable": partial(by_product, separable_patches),
}


def logits(conv, params, images):
    """Returns LeNet's logits [B, 10] for images [B, 3, 32, 32]."""
    convolve = CONVOLUTIONS[conv]
    h = convolve(images, params["conv1/weight"], params["conv1/bias"], 2)
    h = convolve(torch.sigmoid(h), params["conv2/weight"], params["conv2/bias"], 2)
    h = convolve(torch.sigmoid(h), params["conv3/weight"], params["conv3/bias"], 1)
    h = torch.sigmoid(h).flatten(1)
    return F.linear(h, params["fc/weight"], params["fc/bias"])


def loss(conv, params, image, onehot):
    """Returns the cross-entropy of one image [1, 3, 32, 32]."""
    return F.cross_entropy(logits(conv, params, image), onehot[None])


def flat(grads):
    """Joins gradients into one vector [15826]; one subtraction instead of eight."""
    return torch.cat([g.flatten() for g in grads.values()])


def observed_gradients(params, images, onehots):
    """Returns the victims' gradients [V, 15826] at their true images."""
    with kernels("unfold"):
        one = grad(partial(loss, "unfold"))
        return vmap(lambda p, x, t: flat(one(p, x, t)))(params, images, onehots)


def eager_evaluation(conv, params, image, onehot, observed):
    """Evaluates one victim by two backward passes; returns objective and gradient.

    `params` must require gradients; the image need not.
    """
    guess = image.detach().requires_grad_()
    value = loss(conv, params, guess, onehot)
    grads = torch.autograd.grad(value, list(params.values()), create_graph=True)
    grads = torch.cat([g.flatten() for g in grads])
    objective = (grads - observed).square().sum()
    (image_grad,) = torch.autograd.grad(objective, guess)
    return objective.detach(), image_grad


def func_evaluation(conv, compiled):
    """Returns the evaluation of V victims at once, torch.func style.

    The function takes (params, images, onehots, observed), each with a leading V, and
    returns objectives [V] and image gradients [V, 1, 3, 32, 32]. torch.compile cannot
    differentiate its result twice, but it can compile a function that holds both
    derivatives, as this one does, and that is the strongest peer.
    """

    def objective(image, params, onehot, observed):
        grads = grad(partial(loss, conv))(params, image, onehot)
        return (flat(grads) - observed).square().sum()

    batched = vmap(grad_and_value(objective))

    def evaluate(params, images, onehots, observed):
        image_grads, objectives = batched(images, params, onehots, observed)
        return objectives, image_grads

    if not compiled:
        return evaluate
    if DEVICE.type != "cuda":
        return torch.compile(evaluate, dynamic=False)
    graph = torch.compile(evaluate, dynamic=False, mode="reduce-overhead")

    def replay(*args):
        # A CUDA graph writes its next results over these.
        return tuple(x.clone() for x in graph(*args))

    return replay
