"""Residual networks: ResNet-20 and -32 of CIFAR, ResNet-18 and -34 of ImageNet.

With and without a lock it is the same network: what FedKL changes together with the
lock (shortcut, max-pool, activation) are arguments here, and its lock block is a norm
layer without scale and shift (`lockable`) that is given gates.

Widths and depths are those of He et al., "Deep Residual Learning for Image
Recognition" (2016), sections 4.1 and 4.2; details follow torchvision's resnet.py for
the ImageNet networks and Idelbayev's pytorch_resnet_cifar10 for the CIFAR ones.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from kljax.core.types import Array, Path
from kljax.models.initialisers import Initialiser, kaiming, torch_uniform
from kljax.models.norm_layers import Norms, norms

Conv = Callable[..., nnx.Conv]  # (channels in, channels, window, stride)


class Stem(NamedTuple):
    """The first convolution of a family, and how the family's weights are drawn."""

    window: int
    stride: int
    convolutions: Initialiser
    classifier: Initialiser | None  # the kernel's; None for PyTorch's default


STEMS = {
    "small": Stem(3, 1, kaiming("fan_in"), kaiming("fan_in")),
    "large": Stem(7, 2, kaiming("fan_out"), None),
}
SHORTCUTS = ("pad", "conv")


class Block(nnx.Module):
    """Adds two 3x3 convolutions, each with a norm, to its input."""

    def __init__(
        self,
        path: Path,
        channels_in: int,
        channels: int,
        stride: int,
        *,
        conv: Conv,
        norm: Norms,
        activation: Callable[[Array], Array],
        shortcut: str,
    ):
        """Builds the block that will be at `path`; see `ResNet`.

        Where the shape stays, the shortcut is the identity, of either kind.
        """
        changes = changes_shape(channels_in, channels, stride)
        convolved = changes and shortcut == "conv"
        self.padded = changes and shortcut == "pad"
        self.activation = activation
        self.stride = stride
        self.widening = channels - channels_in
        self.conv1 = conv(channels_in, channels, 3, stride)
        self.norm1 = norm(f"{path}/norm1", channels)
        self.conv2 = conv(channels, channels, 3, 1)
        self.norm2 = norm(f"{path}/norm2", channels)
        self.shortcut_conv = (
            conv(channels_in, channels, 1, stride) if convolved else None
        )
        self.shortcut_norm = (
            norm(f"{path}/shortcut_norm", channels) if convolved else None
        )

    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, channels_in] to [B, H / stride, W / stride, channels]."""
        y = self.activation(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.shortcut_conv is not None:
            x = self.shortcut_norm(self.shortcut_conv(x))
        elif self.padded:  # zeros on both sides of the channels, as Idelbayev has it
            before = self.widening // 2
            channels = (before, self.widening - before)
            x = x[:, :: self.stride, :: self.stride]
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), channels))
        return self.activation(x + y)


class ResNet(nnx.Module):
    """A stem, stages of residual blocks, a mean over space, one dense layer.

    The first block of each stage but the first halves the sides. Convolutions have no
    bias. Paths are ``conv1``, ``norm1``, ``blocks/0/conv1``, ..., ``fc``; blocks are
    numbered through all stages.

    Edge: BatchNorm over one example of a 1x1 map gives zeros, which hides everything
    and is no merit of a lock. At 32x32 the last stage of ResNet-18 and -34 is 1x1 with
    max-pool and 2x2 without; that of ResNet-20 and -32 is 8x8.

    Differs from FedKL: there ResNet-20's lock comes with shortcuts by convolution and
    ResNet-18's without max-pool, while their twins without lock have it the other way.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        depths: tuple[int, ...],
        widths: tuple[int, ...],
        stem: str,
        image_shape: tuple[int, int, int],
        norm: str = "batch",
        activation: Callable[[Array], Array] = jax.nn.relu,
        shortcut: str,
        max_pool: bool,
        lockable: tuple[Path, ...] = (),
        initialiser: Initialiser | None = None,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          num_classes: Kc.
          depths: blocks in each stage.
          widths: channels of each stage; the stem has those of the first.
          stem: ``small`` (window 3, stride 1) or ``large`` (window 7, stride 2).
          image_shape: [H, W, C] of one image; only C matters.
          norm: kind of the norms, ``batch`` or ``group``.
          activation: after the stem, and inside and after each block.
          shortcut: where the shape changes, ``pad`` (option A: every other pixel, and
            zeros for the new channels) or ``conv`` (option B: 1x1 and norm).
          max_pool: whether the stem's output is pooled (window 3, stride 2).
          lockable: paths of norms without scale and shift.
          initialiser: of convolutions and of the dense layer with its bias. None: for
            the small stem Idelbayev's (kernels N(0, 2 / fan_in), the classifier's
            too), for the large one torchvision's (convolutions N(0, 2 / fan_out));
            the rest is PyTorch's default. Norms always start as 1 and 0.
          rngs: random streams.

        Raises:
          ValueError: for an unknown norm, shortcut, stem or lockable path.
        """
        for name, value, known in (
            ("stem", stem, STEMS),
            ("shortcut", shortcut, SHORTCUTS),
        ):
            if value not in known:
                raise ValueError(
                    f"unknown {name} {value!r}: expected one of "
                    f"{', '.join(map(repr, known))}"
                )
        if len(depths) != len(widths):
            raise ValueError(f"{depths=} and {widths=} name different stages")
        make_norm = norms(norm, lockable, norm_paths(depths, widths, shortcut))
        family = STEMS[stem]

        def conv(channels_in, channels, window, stride):
            # Explicit: where the stride is 2, SAME would pad even sides unevenly.
            pad = (window // 2, window // 2)
            return nnx.Conv(
                channels_in,
                channels,
                (window, window),
                strides=(stride, stride),
                padding=(pad, pad),
                use_bias=False,
                kernel_init=initialiser or family.convolutions,
                rngs=rngs,
            )

        self.activation = activation
        self.max_pool = max_pool
        self.conv1 = conv(image_shape[-1], widths[0], family.window, family.stride)
        self.norm1 = make_norm("norm1", widths[0])
        parts = {"conv": conv, "norm": make_norm, "activation": activation}
        self.blocks = nnx.List(
            [
                Block(f"blocks/{i}", *shape, shortcut=shortcut, **parts)
                for i, shape in enumerate(block_shapes(depths, widths))
            ]
        )
        default = torch_uniform(widths[-1])
        self.fc = nnx.Linear(
            widths[-1],
            num_classes,
            kernel_init=initialiser or family.classifier or default,
            bias_init=initialiser or default,
            rngs=rngs,
        )

    def __call__(self, images: Array) -> Array:
        """Maps images [B, H, W, C] to logits [B, Kc]."""
        x = self.activation(self.norm1(self.conv1(images)))
        if self.max_pool:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for block in self.blocks:
            x = block(x)
        return self.fc(jnp.mean(x, axis=(1, 2)))


def changes_shape(channels_in: int, channels: int, stride: int) -> bool:
    """Tells whether a block needs more of a shortcut than the identity."""
    return stride != 1 or channels_in != channels


def block_shapes(
    depths: tuple[int, ...], widths: tuple[int, ...]
) -> list[tuple[int, int, int]]:
    """Lists (channels in, channels, stride) of every block."""
    shapes, before = [], widths[0]
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        for i in range(depth):
            shapes.append((before, width, 2 if stage > 0 and i == 0 else 1))
            before = width
    return shapes


def main_sites(depths: tuple[int, ...]) -> tuple[Path, ...]:
    """Lists the norms of the main path in forward order; shortcuts' are not among them.

    These are the sites of FedKL's chained networks (``resnet20_kl_all``).
    """
    blocks = (f"blocks/{i}/norm{n}" for i in range(sum(depths)) for n in (1, 2))
    return ("norm1", *blocks)


def norm_paths(
    depths: tuple[int, ...], widths: tuple[int, ...], shortcut: str
) -> tuple[Path, ...]:
    """Lists all norms of a `ResNet`, those of shortcuts last."""
    extra = (
        f"blocks/{i}/shortcut_norm"
        for i, shape in enumerate(block_shapes(depths, widths))
        if shortcut == "conv" and changes_shape(*shape)
    )
    return (*main_sites(depths), *extra)


# ``(num_classes, *, rngs, ...) -> ResNet``; every argument can be given anew. Defaults
# are those of FedKL's twins without lock: option A and no max-pool for CIFAR,
# torchvision's networks for ImageNet.
_cifar = functools.partial(
    ResNet,
    image_shape=(32, 32, 3),
    widths=(16, 32, 64),
    stem="small",
    shortcut="pad",
    max_pool=False,
)
_imagenet = functools.partial(
    ResNet,
    image_shape=(224, 224, 3),
    widths=(64, 128, 256, 512),
    stem="large",
    shortcut="conv",
    max_pool=True,
)
resnet20 = functools.partial(_cifar, depths=(3, 3, 3))
# ReLU has no second derivative to search with; DLG (Zhu et al. 2019, experimental
# setup) replaces it for that reason, by a sigmoid.
resnet20_tanh = functools.partial(resnet20, activation=jnp.tanh)
resnet32 = functools.partial(_cifar, depths=(5, 5, 5))
resnet18 = functools.partial(_imagenet, depths=(2, 2, 2, 2))
resnet34 = functools.partial(_imagenet, depths=(3, 4, 6, 3))
