"""Which networks there are, by name, and where they are locked."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

from kljax.core.types import Path
from kljax.models import (
    cnn6,
    convnet,
    dense,
    dense_relu,
    lenet,
    perceptron,
    resnet,
    transformer,
    vgg,
    vit,
)
from kljax.models.chain import Layer


class Network(NamedTuple):
    """A network as a study uses it.

    Attributes:
      factory: ``(num_classes, *, image_shape, rngs, ...) -> nnx.Module``. With an
        argument ``lockable`` it is told at which paths a lock's gates take the place
        of a norm's scale and shift; with an argument ``initialiser``, its weights can
        be drawn otherwise; with one that is named in `InputSpec.sizes`, it is told
        that. ``image_shape`` is the shape of one input, of whatever kind.
      sites: paths of the layers to lock, in chain order.
      classifier: path of the last dense layer; "" where its weights are another
        layer's.
      all_sites: every layer that the paper's chained lock gates, in forward order.
      chain: its layers in forward order, if they simply follow each other and their
        activations have an inverse; () otherwise.
      inputs: kind of input that it takes (`InputSpec.kind`); None if nobody says.
    """

    factory: Callable[..., nnx.Module]
    sites: tuple[Path, ...]
    classifier: str
    all_sites: tuple[Path, ...] = ()
    chain: tuple[Layer, ...] = ()
    inputs: str | None = "image"

    def accepts(self, argument: str) -> bool:
        """Tells whether the factory has an argument of this name."""
        return argument in signature_of(self.factory).parameters


def signature_of(factory: Callable[..., nnx.Module]) -> inspect.Signature:
    """Finds what a network's factory can be told."""
    while isinstance(factory, functools.partial):
        factory = factory.func
    # NNX classes are called through their metaclass, which hides __init__.
    return inspect.signature(factory.__init__ if inspect.isclass(factory) else factory)


def _residual(factory: functools.partial) -> Network:
    sites = resnet.main_sites(factory.keywords["depths"])
    return Network(factory, sites[:1], "fc", sites)


def _sentences(
    factory: Callable[..., nnx.Module], size: str | None = None, **options: Any
) -> Network:
    """Makes a row of a transformer, of a size in `transformer.SIZES` or its own."""
    options |= transformer.SIZES[size] if size else {}
    factory = functools.partial(factory, **options) if options else factory
    said = getattr(factory, "keywords", {})
    paths = transformer.norm_paths(
        said.get("depth", transformer.DEPTH), post_norm=said.get("post_norm", False)
    )
    classifier = "" if said.get("tied") else "fc"
    return Network(factory, paths[:1], classifier, paths, inputs="text")


# The paper's single site is the norm after the first convolution.
NETWORKS: dict[str, Network] = {
    "lenet": Network(lenet.LeNet, ("norm1",), "fc", lenet.NORM_PATHS, lenet.CHAIN),
    "dense": Network(dense.Dense, ("layers/0",), "fc", ("layers/0",), dense.CHAIN),
    # ReLUs: with a norm where it is locked, and without any, gated as it is.
    "dense-relu": Network(
        dense_relu.DenseReLU,
        dense_relu.norm_paths()[:1],
        "fc",
        dense_relu.norm_paths(),
    ),
    "dense-relu-plain": Network(
        functools.partial(
            dense.Dense, widths=dense_relu.WIDTHS, activation=jax.nn.relu
        ),
        ("layers/0",),
        "fc",
        ("layers/0", "layers/1"),
    ),
    # R-GAP's: no norm, and so no site for a lock.
    "cnn6": Network(cnn6.CNN6, (), "fc", (), cnn6.chain(cnn6.WINDOWS)),
    "resnet20": _residual(resnet.resnet20),
    "resnet20-tanh": _residual(resnet.resnet20_tanh),
    "resnet32": _residual(resnet.resnet32),
    "resnet18": _residual(resnet.resnet18),
    "resnet34": _residual(resnet.resnet34),
    "convnet64": Network(
        convnet.ConvNet, convnet.NORM_PATHS[:1], "fc", convnet.NORM_PATHS
    ),
    "vgg16": Network(vgg.VGG, ("layers/0/norm",), "fc", vgg.norm_paths(vgg.STAGES)),
    # The gate is on the patch embedding itself, there is no norm.
    "vit": Network(vit.VisionTransformer, ("patch",), "fc", ("patch",)),
    "perceptron": Network(
        perceptron.Perceptron,
        perceptron.NORM_PATHS,
        "fc",
        perceptron.NORM_PATHS,
        inputs="table",
    ),
    "transformer": _sentences(transformer.Transformer),
    "causal-transformer": _sentences(transformer.Transformer, causal=True),
    "language-model": _sentences(transformer.Transformer, causal=True, per_token=True),
    **{
        f"bert-{size}": _sentences(transformer.bert, size) for size in transformer.SIZES
    },
    # Towards the next token; classifiers read a sentence's last.
    **{f"gpt-{size}": _sentences(transformer.gpt, size) for size in transformer.SIZES},
    **{
        f"gpt-{size}-classifier": _sentences(transformer.gpt_classifier, size)
        for size in transformer.SIZES
    },
}
