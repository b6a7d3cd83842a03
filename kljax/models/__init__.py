"""Networks, and the adapters by which any network becomes a `Model`."""

from kljax.models.adapters import adapted, add_adapters
from kljax.models.catalogue import NETWORKS, Network
from kljax.models.cnn6 import CNN6
from kljax.models.convnet import ConvNet
from kljax.models.dense import Dense
from kljax.models.dense_relu import DenseReLU
from kljax.models.initialisers import Initialiser, uniform
from kljax.models.lenet import LeNet
from kljax.models.linen import from_linen
from kljax.models.model import feeding_layers, from_nnx, site_widths
from kljax.models.norm_layers import NORMS
from kljax.models.normalisation import FEDKL_STATISTICS, ChannelStatistics, normalised
from kljax.models.perceptron import Perceptron
from kljax.models.pooling import avg_pool, max_pool
from kljax.models.pretrained import load_pretrained
from kljax.models.pytorch import from_torch, tensors_from_torch
from kljax.models.redrawing import redrawn
from kljax.models.resnet import (
    ResNet,
    resnet18,
    resnet20,
    resnet20_tanh,
    resnet32,
    resnet34,
)
from kljax.models.transformer import Transformer, bert, gpt, gpt_classifier
from kljax.models.values import layers_behind, value_shape
from kljax.models.vgg import VGG
from kljax.models.vit import VisionTransformer

__all__ = [
    "from_nnx",
    "from_linen",
    "from_torch",
    "tensors_from_torch",
    "site_widths",
    "feeding_layers",
    "value_shape",
    "layers_behind",
    "max_pool",
    "avg_pool",
    "normalised",
    "redrawn",
    "ChannelStatistics",
    "FEDKL_STATISTICS",
    "LeNet",
    "ConvNet",
    "Dense",
    "DenseReLU",
    "Perceptron",
    "CNN6",
    "ResNet",
    "resnet20",
    "resnet20_tanh",
    "resnet32",
    "resnet18",
    "resnet34",
    "VGG",
    "VisionTransformer",
    "Transformer",
    "bert",
    "gpt",
    "gpt_classifier",
    "adapted",
    "add_adapters",
    "load_pretrained",
    "NORMS",
    "Initialiser",
    "uniform",
    "Network",
    "NETWORKS",
]
