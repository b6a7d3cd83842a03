"""Layers of PyTorch as those of NNX, with their weights: the table `LAYERS`."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from kljax.core.types import Array
from kljax.models.pytorch.functions import (
    AVG_POOL,
    MAX_POOL,
    NONE,
    OFF,
    Allowed,
    adaptive_avg_pool,
    attend,
    avg_pool,
    flatten,
    gelu,
    is_given,
    leaky_relu,
    log_softmax,
    max_pool,
    pair,
    softmax,
)

Axes = tuple[int, ...] | None  # None: as they are
KERNEL = (2, 3, 1, 0)  # of a convolution: [F, C, kh, kw] into [kh, kw, C, F]
DENSE = (1, 0)


class Layer(NamedTuple):
    """How a layer of PyTorch is made, and what it is fed.

    Attributes:
      make: ``module -> nnx.Module``, of a module in the mode that it trains in; raises
        ValueError for options, and names them.
      fed: ``picture`` (channels last), ``channels`` (whatever has channels at axis 1,
        put last), ``same`` (each entry by itself) or ``torch``.
      axes: of its parameters, by PyTorch's name: (name here, axes).
      allowed: rules that options of the module keep to.
    """

    make: Callable[[Any], nnx.Module]
    fed: str
    axes: Mapping[str, tuple[str, Axes]] = {}
    allowed: Allowed = {}


def to_array(tensor: Any, axes: Axes = None) -> Array:
    """Copies a tensor of PyTorch, or an array, and puts its axes into an order."""
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
        # NumPy has no bfloat16.
        tensor = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    array = jnp.asarray(tensor)
    return array if axes is None else jnp.transpose(array, axes)


# --- layers that NNX has not --------------------------------------------------------


class Plain(nnx.Module):
    """A layer without parameters."""

    def __init__(self, function: Callable[[Array], Array]):
        self.function = function

    def __call__(self, x: Array) -> Array:
        """Applies the function."""
        return self.function(x)


class PaddedEmbed(nnx.Embed):
    """An embedding of which one row gets no gradient, as `padding_idx` of PyTorch's."""

    padding: int = 0

    def __call__(self, inputs: Array) -> Array:
        """Looks tokens [...] up, [..., E]."""
        rows = super().__call__(inputs)
        is_padding = (inputs == self.padding)[..., None]
        return jnp.where(is_padding, jax.lax.stop_gradient(rows), rows)


class FrozenBatchNorm(nnx.BatchNorm):
    """A batch norm in evaluation mode, whatever the mode of its network is."""

    def __call__(self, x: Array) -> Array:
        """Scales x [..., C] by its constant mean and variance."""
        return super().__call__(x, use_running_average=True)


class Attention(nnx.Module):
    """`torch.nn.MultiheadAttention` without masks: self-attention, or across."""

    def __init__(self, module: Any):
        self.size, self.heads = module.embed_dim, module.num_heads
        self.batch_first = module.batch_first
        self.in_proj_weight = nnx.Param(to_array(module.in_proj_weight, DENSE))
        bias = module.in_proj_bias
        self.in_proj_bias = None if bias is None else nnx.Param(to_array(bias))
        self.out_proj = _dense(module.out_proj)
        rate = module.dropout if module.training else 0.0
        self.drop = nnx.Dropout(rate, rngs=nnx.Rngs(0))

    def __call__(self, query: Array, key: Array, value: Array) -> Array:
        """Attends: [B, T, E], or [T, B, E] where the batch is not first."""
        if not self.batch_first:
            query, key, value = (jnp.swapaxes(x, 0, 1) for x in (query, key, value))
        kernels = jnp.split(self.in_proj_weight[...], 3, axis=1)
        biases = [0.0] * 3
        if self.in_proj_bias is not None:
            biases = jnp.split(self.in_proj_bias[...], 3)
        q, k, v = (
            jnp.reshape(x @ w + b, (*x.shape[:2], self.heads, -1))
            for x, w, b in zip((query, key, value), kernels, biases, strict=True)
        )
        found = attend(*(jnp.swapaxes(x, 1, 2) for x in (q, k, v)), drop=self.drop)
        found = jnp.swapaxes(found, 1, 2)
        out = self.out_proj(jnp.reshape(found, (*found.shape[:2], self.size)))
        return out if self.batch_first else jnp.swapaxes(out, 0, 1)


# --- how layers are made ------------------------------------------------------------


def _with_bias(layer: Any, module: Any) -> nnx.Module:
    if module.bias is not None:
        layer.bias = nnx.Param(to_array(module.bias))
    return layer


def _dense(module: Any) -> nnx.Module:
    layer = nnx.Linear(
        module.in_features,
        module.out_features,
        use_bias=module.bias is not None,
        rngs=nnx.Rngs(0),
    )
    layer.kernel = nnx.Param(to_array(module.weight, DENSE))
    return _with_bias(layer, module)


def _conv(module: Any) -> nnx.Module:
    if module.padding_mode != "zeros":
        raise ValueError(f"padding_mode={module.padding_mode!r}")
    padding = module.padding
    if isinstance(padding, str):
        padding = padding.upper()
    else:
        padding = tuple((p, p) for p in pair(padding))
    layer = nnx.Conv(
        module.in_channels,
        module.out_channels,
        module.kernel_size,
        strides=module.stride,
        padding=padding,
        kernel_dilation=module.dilation,
        feature_group_count=module.groups,
        use_bias=module.bias is not None,
        rngs=nnx.Rngs(0),
    )
    layer.kernel = nnx.Param(to_array(module.weight, KERNEL))
    return _with_bias(layer, module)


def _norm(make: Callable[..., Any], module: Any, features: int, **options) -> Any:
    """Makes a norm layer of NNX with the scale and shift of PyTorch's."""
    layer = make(
        features,
        epsilon=module.eps,
        use_scale=module.weight is not None,
        use_bias=module.bias is not None,
        use_fast_variance=False,
        rngs=nnx.Rngs(0),
        **options,
    )
    if module.weight is not None:
        layer.scale = nnx.Param(to_array(module.weight))
    return _with_bias(layer, module)


def _batch_norm(module: Any) -> nnx.Module:
    if not module.track_running_stats:
        raise ValueError(
            "track_running_stats=False: it has no statistics for the mode of evaluation"
        )
    trains, momentum = module.training, module.momentum
    if trains and momentum is None:
        raise ValueError(
            "momentum=None: its statistics are a mean over all batches so far, which "
            "is not covered; set a momentum, such as 0.1, or freeze it by eval()"
        )
    kind = nnx.BatchNorm if trains else FrozenBatchNorm
    # One that is frozen moves nothing, by whatever momentum.
    options = {"momentum": 1 - momentum} if trains else {}
    layer = _norm(kind, module, module.num_features, **options)
    layer.mean = nnx.BatchStat(to_array(module.running_mean))
    layer.var = nnx.BatchStat(to_array(module.running_var))
    return layer


def _layer_norm(module: Any) -> nnx.Module:
    if len(module.normalized_shape) != 1:
        raise ValueError(f"normalized_shape={module.normalized_shape} of several axes")
    return _norm(nnx.LayerNorm, module, module.normalized_shape[0])


def _group_norm(module: Any) -> nnx.Module:
    groups = module.num_groups
    return _norm(nnx.GroupNorm, module, module.num_channels, num_groups=groups)


def _embedding(module: Any) -> nnx.Module:
    padding = module.padding_idx
    kind = nnx.Embed if padding is None else PaddedEmbed
    layer = kind(module.num_embeddings, module.embedding_dim, rngs=nnx.Rngs(0))
    layer.embedding = nnx.Param(to_array(module.weight))
    if padding is not None:
        layer.padding = padding
    return layer


def _attention(module: Any) -> nnx.Module:
    if module.in_proj_weight is None:
        raise ValueError("kdim or vdim")
    if module.bias_k is not None:
        raise ValueError("add_bias_kv=True")
    return Attention(module)


def _dropout(**options) -> Callable[[Any], nnx.Module]:
    def make(module: Any) -> nnx.Module:
        if not module.training:  # frozen: it draws nothing
            return Plain(lambda x: x)
        return nnx.Dropout(module.p, rngs=nnx.Rngs(0), **options)

    return make


def _plain(
    function: Callable, fed: str, *options: str, allowed: Allowed | None = None
) -> Layer:
    """Makes the row of a function, which is given the module's options."""

    def make(module: Any) -> nnx.Module:
        chosen = {name: getattr(module, name) for name in options}
        return Plain(functools.partial(function, **chosen))

    return Layer(make, fed, allowed=allowed or {})


# --- the table ----------------------------------------------------------------------

_SCALE = {"weight": ("scale", None), "bias": ("bias", None)}
_STATS = {"running_mean": ("mean", None), "running_var": ("var", None)}
_POOL = ("kernel_size", "stride", "padding")

LAYERS: dict[str, Layer] = {
    "Conv2d": Layer(
        _conv, "picture", {"weight": ("kernel", KERNEL), "bias": ("bias", None)}
    ),
    "Linear": Layer(
        _dense, "torch", {"weight": ("kernel", DENSE), "bias": ("bias", None)}
    ),
    "BatchNorm1d": Layer(_batch_norm, "channels", _SCALE | _STATS),
    "BatchNorm2d": Layer(_batch_norm, "picture", _SCALE | _STATS),
    "LayerNorm": Layer(_layer_norm, "torch", _SCALE),
    "GroupNorm": Layer(_group_norm, "channels", _SCALE),
    "Embedding": Layer(
        _embedding,
        "torch",
        {"weight": ("embedding", None)},
        allowed={"max_norm": NONE, "scale_grad_by_freq": OFF},
    ),
    "MultiheadAttention": Layer(
        _attention,
        "torch",
        {
            "in_proj_weight": ("in_proj_weight", DENSE),
            "in_proj_bias": ("in_proj_bias", None),
            "out_proj.weight": ("out_proj/kernel", DENSE),
            "out_proj.bias": ("out_proj/bias", None),
        },
        allowed={"add_zero_attn": OFF},
    ),
    "MaxPool2d": _plain(max_pool, "picture", *_POOL, allowed=MAX_POOL),
    "AvgPool2d": _plain(
        avg_pool, "picture", *_POOL, "count_include_pad", allowed=AVG_POOL
    ),
    "AdaptiveAvgPool2d": _plain(adaptive_avg_pool, "picture", "output_size"),
    "Flatten": _plain(flatten, "torch", "start_dim", "end_dim"),
    "Dropout": Layer(_dropout(), "same"),
    "Dropout2d": Layer(_dropout(broadcast_dims=(1, 2)), "picture"),
    "Identity": _plain(lambda x: x, "same"),
    "ReLU": _plain(jax.nn.relu, "same"),
    "ReLU6": _plain(jax.nn.relu6, "same"),
    "Sigmoid": _plain(jax.nn.sigmoid, "same"),
    "Tanh": _plain(jnp.tanh, "same"),
    "SiLU": _plain(jax.nn.silu, "same"),
    "Hardswish": _plain(jax.nn.hard_swish, "same"),
    "Hardsigmoid": _plain(jax.nn.hard_sigmoid, "same"),
    "Mish": _plain(jax.nn.mish, "same"),
    "GELU": _plain(gelu, "same", "approximate"),
    "LeakyReLU": _plain(leaky_relu, "same", "negative_slope"),
    "ELU": _plain(jax.nn.elu, "same", "alpha"),
    "Softmax": _plain(softmax, "torch", "dim", allowed={"dim": is_given}),
    "LogSoftmax": _plain(log_softmax, "torch", "dim", allowed={"dim": is_given}),
}
