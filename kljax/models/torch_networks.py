"""A PyTorch network as two pure functions: traced by torch.fx, computed by JAX.

The graph of a module's forward pass is read by `torch.fx`; each of its layers becomes
one of NNX at the same path, with its weights, and what stands between the layers is
computed as PyTorch defines it. So gates and taps, norm statistics, dropout and kljax's
own convolutions are those of any NNX network (`kljax.models.from_nnx`). What is not in
the tables below is refused by its name, before anything is computed.

Pictures are channels first in PyTorch and last here. A picture is kept channels last
(`Picture`) as long as layers allow; whatever looks at its axes sees PyTorch's order.
Rows behind a flattening are therefore in PyTorch's order, and no kernel is permuted.
"""

import copy
import functools
import inspect
import math
import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kljax.core.types import Array, Model, Path
from kljax.models.adapters import Frozen
from kljax.models.model import from_nnx

if TYPE_CHECKING:
    import torch

FIRST, LAST = (0, 3, 1, 2), (0, 2, 3, 1)  # axes from one order into the other
KERNEL = (2, 3, 1, 0)  # of a convolution: [F, C, kh, kw] into [kh, kw, C, F]
DENSE = (1, 0)


def from_torch(module: "torch.nn.Module", *, convolution: str = "auto") -> Model:
    """Makes a `Model` of a PyTorch network; the module itself is not edited.

    Its forward pass maps images [B, C, H, W] (or tokens [B, T]) to logits; the `Model`
    takes images [B, H, W, C], as all of kljax. Parameters are those that the module has
    now, at the paths of its layers: ``layer1.0.conv1.weight`` is
    ``layer1/0/conv1/kernel``; buffers of batch norms are statistics, others constants.

    Parameters that need no gradient are constants, too: no client sends their gradient.

    Differs from PyTorch: the running variance of a batch norm moves towards the
    variance of the batch, not its unbiased estimate. All is computed in float32.

    Args:
      module: layers of the table `LAYERS`, with functions of `FUNCTIONS` between.
      convolution: form of the convolutions, see `from_nnx`.

    Returns:
      The `Model`; `tensors_from_torch` gives weights and gradients in its layout.

    Raises:
      ImportError: without PyTorch.
      ValueError: for a forward pass that depends on values, takes several arguments or
        gives several outputs; for layers, functions and options that are not covered,
        hooks, tied parameters, and in-place operations on what is used afterwards (all
        are named); for a pass that does something else in evaluation than in training,
        dropout and norms apart; and for a network of which nothing needs a gradient.
    """
    network, _ = _converted(module)
    return from_nnx(network, convolution=convolution)


def tensors_from_torch(
    module: "torch.nn.Module", tensors: Mapping[str, Any]
) -> dict[Path, Array]:
    """Puts tensors of a module's names into the layout of its `Model`.

    Args:
      module: as given to `from_torch`.
      tensors: by PyTorch's names, such as ``module.state_dict()``, or gradients of
        ``module.named_parameters()``. What the `Model` has not, such as a counter of
        batches, is left out.

    Returns:
      By the paths of the `Model`: parameters, and statistics where they are given.

    Raises:
      ValueError: if none of them is a tensor of the network.
    """
    _, names = _converted(module)
    found = {}
    for path, (name, axes) in names.items():
        if name in tensors:
            array = _numpy(tensors[name])
            found[path] = jnp.asarray(array if axes is None else array.transpose(axes))
    if not found:
        raise ValueError(
            f"none of {', '.join(tensors)} is a tensor of this network, which has "
            f"{', '.join(name for name, _ in names.values())}"
        )
    return found


class Picture(NamedTuple):
    """A value that is [B, C, H, W] in PyTorch.

    Attributes:
      array: [B, H, W, C].
    """

    array: Array


def first(value: Any) -> Any:
    """Gives a value in PyTorch's order of axes."""
    return jnp.transpose(value.array, FIRST) if isinstance(value, Picture) else value


def last(value: Any) -> Array:
    """Gives a picture channels last."""
    return value.array if isinstance(value, Picture) else jnp.transpose(value, LAST)


# --- layers -------------------------------------------------------------------------


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


class Attention(nnx.Module):
    """`torch.nn.MultiheadAttention` without masks: self-attention, or across."""

    def __init__(self, module: Any):
        size, self.heads = module.embed_dim, module.num_heads
        self.batch_first = module.batch_first
        self.in_proj_weight = nnx.Param(jnp.asarray(_numpy(module.in_proj_weight).T))
        bias = module.in_proj_bias
        self.in_proj_bias = None if bias is None else nnx.Param(_array(bias))
        self.out_proj = _dense(module.out_proj)
        self.drop = nnx.Dropout(module.dropout, rngs=nnx.Rngs(0))
        self.size = size

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


def attend(q: Array, k: Array, v: Array, *, drop: Any = None, causal=False) -> Array:
    """Computes ``softmax(q k^T / sqrt(d)) v`` over [..., T, d]."""
    scores = q @ jnp.swapaxes(k, -1, -2) / math.sqrt(q.shape[-1])
    if causal:
        below = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        scores = jnp.where(below, scores, -jnp.inf)
    shares = jax.nn.softmax(scores)
    return (shares if drop is None else drop(shares)) @ v


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _numpy(tensor: Any) -> np.ndarray:
    if not hasattr(tensor, "detach"):
        return np.asarray(tensor)
    tensor = tensor.detach().cpu()
    # NumPy has no bfloat16.
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _array(tensor: Any) -> Array:
    return jnp.asarray(_numpy(tensor))


def _dense(module: Any) -> nnx.Module:
    layer = nnx.Linear(
        module.in_features,
        module.out_features,
        use_bias=module.bias is not None,
        rngs=nnx.Rngs(0),
    )
    layer.kernel = nnx.Param(jnp.asarray(_numpy(module.weight).T))
    if module.bias is not None:
        layer.bias = nnx.Param(_array(module.bias))
    return layer


def _conv(module: Any) -> nnx.Module:
    if module.padding_mode != "zeros":
        raise ValueError(f"padding_mode={module.padding_mode!r}")
    padding = module.padding
    if isinstance(padding, str):
        padding = padding.upper()
    else:
        padding = tuple((p, p) for p in _pair(padding))
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
    layer.kernel = nnx.Param(jnp.asarray(_numpy(module.weight).transpose(KERNEL)))
    if module.bias is not None:
        layer.bias = nnx.Param(_array(module.bias))
    return layer


def _scaled(layer: Any, module: Any) -> nnx.Module:
    """Gives a norm layer of NNX the scale and shift of PyTorch's."""
    if module.weight is not None:
        layer.scale = nnx.Param(_array(module.weight))
    if module.bias is not None:
        layer.bias = nnx.Param(_array(module.bias))
    return layer


def _batch_norm(module: Any) -> nnx.Module:
    if not module.track_running_stats or module.momentum is None:
        raise ValueError("track_running_stats=False or momentum=None")
    layer = nnx.BatchNorm(
        module.num_features,
        momentum=1 - module.momentum,
        epsilon=module.eps,
        use_scale=module.affine,
        use_bias=module.affine,
        use_fast_variance=False,
        rngs=nnx.Rngs(0),
    )
    layer.mean = nnx.BatchStat(_array(module.running_mean))
    layer.var = nnx.BatchStat(_array(module.running_var))
    return _scaled(layer, module)


def _layer_norm(module: Any) -> nnx.Module:
    if len(module.normalized_shape) != 1:
        raise ValueError(f"normalized_shape={module.normalized_shape} of several axes")
    layer = nnx.LayerNorm(
        module.normalized_shape[0],
        epsilon=module.eps,
        use_scale=module.weight is not None,
        use_bias=module.bias is not None,
        use_fast_variance=False,
        rngs=nnx.Rngs(0),
    )
    return _scaled(layer, module)


def _group_norm(module: Any) -> nnx.Module:
    layer = nnx.GroupNorm(
        module.num_channels,
        num_groups=module.num_groups,
        epsilon=module.eps,
        use_scale=module.affine,
        use_bias=module.affine,
        use_fast_variance=False,
        rngs=nnx.Rngs(0),
    )
    return _scaled(layer, module)


def _embedding(module: Any) -> nnx.Module:
    padding = module.padding_idx
    kind = nnx.Embed if padding is None else PaddedEmbed
    layer = kind(module.num_embeddings, module.embedding_dim, rngs=nnx.Rngs(0))
    layer.embedding = nnx.Param(_array(module.weight))
    if padding is not None:
        layer.padding = padding
    return layer


def _attention(module: Any) -> nnx.Module:
    if module.in_proj_weight is None:
        raise ValueError("kdim or vdim")
    return Attention(module)


# Arguments of what stands for a function of PyTorch's have its names. Those that are
# not read are allowed the values of `ALLOWED` alone.
def _max_pool(
    input: Array, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False,
    return_indices=False,
):  # fmt: skip
    del dilation, ceil_mode, return_indices
    size, pads = _pair(kernel_size), tuple((p, p) for p in _pair(padding))
    return nnx.max_pool(input, size, _pair(stride or size), pads)


def _avg_pool(
    input: Array, kernel_size, stride=None, padding=0, ceil_mode=False,
    count_include_pad=True, divisor_override=None,
):  # fmt: skip
    del ceil_mode, divisor_override
    size, pads = _pair(kernel_size), tuple((p, p) for p in _pair(padding))
    return nnx.avg_pool(input, size, _pair(stride or size), pads, count_include_pad)


def _adaptive_avg_pool(input: Array, output_size) -> Array:
    x = input
    rows, columns = (
        have if want is None else want
        for want, have in zip(_pair(output_size), x.shape[1:3], strict=True)
    )
    if x.shape[1] % rows or x.shape[2] % columns:
        raise ValueError(
            f"adaptive_avg_pool2d to {(rows, columns)} of {x.shape[1:3]} pixels has "
            "windows of several sizes"
        )
    tiles = (len(x), rows, x.shape[1] // rows, columns, x.shape[2] // columns, -1)
    return jnp.mean(jnp.reshape(x, tiles), axis=(2, 4))


def _gelu(input: Array, approximate: str = "none") -> Array:
    return jax.nn.gelu(input, approximate=approximate == "tanh")


# Where these have a kink, at 0, which black pixels are, PyTorch and JAX take
# derivatives of different sides.
def _leaky_relu(input: Array, negative_slope: float = 0.01) -> Array:
    return jnp.where(input > 0, input, negative_slope * input)


def _abs(input: Array) -> Array:
    return input * jnp.sign(input)


def _hardtanh(input: Array, min_val: float = -1.0, max_val: float = 1.0) -> Array:
    inside = (input > min_val) & (input < max_val)
    return jnp.where(inside, input, jnp.where(input <= min_val, min_val, max_val))


def _softplus(input: Array, beta: float = 1, threshold: float = 20) -> Array:
    soft = jax.nn.softplus(beta * input) / beta
    return jnp.where(beta * input > threshold, input, soft)


def _flatten(input: Array, start_dim: int = 0, end_dim: int = -1) -> Array:
    x = input
    end = end_dim % x.ndim
    shape = (*x.shape[:start_dim], -1, *x.shape[end + 1 :])
    if x.ndim == 4:  # in two steps: no row of a picture in Flax's order, see the audit
        x = jnp.reshape(x, (*x.shape[:2], -1)) if (start_dim, end) == (1, 3) else x
    return jnp.reshape(x, shape)


class Layer(NamedTuple):
    """How a layer of PyTorch is made, and what it is fed.

    Attributes:
      make: ``module -> nnx.Module``; raises ValueError for options, and names them.
      fed: ``picture`` (channels last), ``channels`` (whatever has channels at axis 1,
        put last), ``same`` (each entry by itself) or ``torch``.
      axes: of its parameters, by PyTorch's name: (name here, axes or None).
    """

    make: Callable[[Any], nnx.Module]
    fed: str
    axes: Mapping[str, tuple[str, tuple[int, ...] | None]] = {}


_SCALE = {"weight": ("scale", None), "bias": ("bias", None)}
_STATS = {"running_mean": ("mean", None), "running_var": ("var", None)}
_LINEAR = {"weight": ("kernel", DENSE), "bias": ("bias", None)}


def _plain(make: Callable[[Any], Callable[[Array], Array]]) -> Callable:
    return lambda module: Plain(make(module))


def _same(function: Callable[[Array], Array]) -> Layer:
    return Layer(_plain(lambda module: function), "same")


LAYERS: dict[str, Layer] = {
    "Conv2d": Layer(
        _conv, "picture", {"weight": ("kernel", KERNEL), "bias": ("bias", None)}
    ),
    "Linear": Layer(_dense, "torch", _LINEAR),
    "BatchNorm1d": Layer(_batch_norm, "channels", _SCALE | _STATS),
    "BatchNorm2d": Layer(_batch_norm, "picture", _SCALE | _STATS),
    "LayerNorm": Layer(_layer_norm, "torch", _SCALE),
    "GroupNorm": Layer(_group_norm, "channels", _SCALE),
    "Embedding": Layer(_embedding, "torch", {"weight": ("embedding", None)}),
    "MultiheadAttention": Layer(
        _attention,
        "torch",
        {
            "in_proj_weight": ("in_proj_weight", DENSE),
            "in_proj_bias": ("in_proj_bias", None),
            "out_proj.weight": ("out_proj/kernel", DENSE),
            "out_proj.bias": ("out_proj/bias", None),
        },
    ),
    "MaxPool2d": Layer(
        _plain(
            lambda m: functools.partial(
                _max_pool,
                kernel_size=m.kernel_size,
                stride=m.stride,
                padding=m.padding,
            )
        ),
        "picture",
    ),
    "AvgPool2d": Layer(
        _plain(
            lambda m: functools.partial(
                _avg_pool,
                kernel_size=m.kernel_size,
                stride=m.stride,
                padding=m.padding,
                count_include_pad=m.count_include_pad,
            )
        ),
        "picture",
    ),
    "AdaptiveAvgPool2d": Layer(
        _plain(
            lambda m: functools.partial(_adaptive_avg_pool, output_size=m.output_size)
        ),
        "picture",
    ),
    "Flatten": Layer(
        _plain(
            lambda m: functools.partial(
                _flatten, start_dim=m.start_dim, end_dim=m.end_dim
            )
        ),
        "torch",
    ),
    "Dropout": Layer(lambda m: nnx.Dropout(m.p, rngs=nnx.Rngs(0)), "same"),
    "Dropout2d": Layer(
        lambda m: nnx.Dropout(m.p, broadcast_dims=(1, 2), rngs=nnx.Rngs(0)), "picture"
    ),
    "Identity": _same(lambda x: x),
    "ReLU": _same(jax.nn.relu),
    "ReLU6": _same(jax.nn.relu6),
    "Sigmoid": _same(jax.nn.sigmoid),
    "Tanh": _same(jnp.tanh),
    "SiLU": _same(jax.nn.silu),
    "Hardswish": _same(jax.nn.hard_swish),
    "Hardsigmoid": _same(jax.nn.hard_sigmoid),
    "Mish": _same(jax.nn.mish),
    "GELU": Layer(
        _plain(lambda m: functools.partial(_gelu, approximate=m.approximate)), "same"
    ),
    "LeakyReLU": Layer(
        _plain(
            lambda m: functools.partial(_leaky_relu, negative_slope=m.negative_slope)
        ),
        "same",
    ),
    "ELU": Layer(
        _plain(lambda m: functools.partial(jax.nn.elu, alpha=m.alpha)), "same"
    ),
    "Softmax": Layer(
        _plain(lambda m: functools.partial(jax.nn.softmax, axis=m.dim)), "torch"
    ),
    "LogSoftmax": Layer(
        _plain(lambda m: functools.partial(jax.nn.log_softmax, axis=m.dim)), "torch"
    ),
}


def _one_of(*values: Any) -> Callable[[Any], bool]:
    return lambda value: value in values


def _given(value: Any) -> bool:
    return value is not None


_ONE, _OFF, _NONE = _one_of(1, (1, 1), [1, 1]), _one_of(False), _one_of(None)
_MAX_POOL = {"dilation": _ONE, "ceil_mode": _OFF, "return_indices": _OFF}
_AVG_POOL = {"ceil_mode": _OFF, "divisor_override": _NONE}
# What options of layers, and of functions, are allowed to be.
ALLOWED: dict[str, Mapping[str, Callable[[Any], bool]]] = {
    "MaxPool2d": _MAX_POOL,
    "max_pool2d": _MAX_POOL,
    "AvgPool2d": _AVG_POOL,
    "avg_pool2d": _AVG_POOL,
    "Embedding": {"max_norm": _NONE, "scale_grad_by_freq": _OFF},
    "MultiheadAttention": {"bias_k": _NONE, "add_zero_attn": _OFF},
    "Softmax": {"dim": _given},
    "LogSoftmax": {"dim": _given},
    "softmax": {"dim": _given, "dtype": _NONE},
    "log_softmax": {"dim": _given, "dtype": _NONE},
    "div": {"rounding_mode": _NONE},
    "mean": {"dtype": _NONE},
    "scaled_dot_product_attention": {
        "attn_mask": _NONE,
        "dropout_p": _one_of(0),
        "scale": _NONE,
        "enable_gqa": _OFF,
    },
}

# --- functions ----------------------------------------------------------------------


def _each(function: Callable) -> Callable:
    """Makes a function of entries keep pictures as they are."""

    @functools.wraps(function)
    def call(*values, **options):
        pictures = any(isinstance(value, Picture) for value in values)
        whole = [first(value) for value in values]
        if pictures and all(jnp.ndim(value) in (0, 4) for value in whole):
            values = [last(v) if jnp.ndim(first(v)) == 4 else v for v in values]
            return Picture(function(*values, **options))
        return function(*whole, **options)

    return call


def _ordered(function: Callable) -> Callable:
    """Makes a function of axes see PyTorch's order."""

    @functools.wraps(function)
    def call(*values, **options):
        values = jax.tree.map(first, values, is_leaf=lambda v: isinstance(v, Picture))
        return function(*values, **options)

    return call


def _of_picture(function: Callable) -> Callable:
    @functools.wraps(function)
    def call(input, *rest, **options):
        return Picture(function(last(input), *rest, **options))

    return call


def _joined(tensors, dim: int = 0, axis: int | None = None):
    dim = dim if axis is None else axis
    if all(isinstance(x, Picture) for x in tensors) and dim in (1, -3):
        return Picture(jnp.concatenate([x.array for x in tensors], axis=-1))
    return jnp.concatenate([first(x) for x in tensors], axis=dim)


def _sizes(values: tuple) -> tuple[int, ...]:
    flat = values[0] if len(values) == 1 and not isinstance(values[0], int) else values
    return tuple(int(value) for value in flat)


def _mean(input: Array, dim=None, keepdim: bool = False, dtype=None) -> Array:
    del dtype
    axes = tuple(dim) if isinstance(dim, (list, tuple)) else dim
    return jnp.mean(input, axis=axes, keepdims=keepdim)


def _squeeze(input: Array, dim=None) -> Array:
    if dim is None:
        return jnp.squeeze(input)
    axes = dim if isinstance(dim, (list, tuple)) else (dim,)
    return jnp.squeeze(input, tuple(a for a in axes if input.shape[a] == 1))


def _softmax(function: Callable) -> Callable:
    return lambda input, dim, _stacklevel=3, dtype=None: function(input, axis=dim)


def _divided(input, other, rounding_mode=None):
    del rounding_mode
    return input / other


def _as_float(x: Array) -> Array:
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)


def _expanded(x: Array, *sizes) -> Array:
    wanted = _sizes(sizes)
    have = (1,) * (len(wanted) - x.ndim) + x.shape
    pairs = zip(wanted, have, strict=True)
    return jnp.broadcast_to(x, tuple(h if w == -1 else w for w, h in pairs))


def _cut(x: Array, count: int, dim: int = 0) -> list[Array]:
    size = -(-x.shape[dim] // count)
    return jnp.split(x, list(range(size, x.shape[dim], size)), axis=dim)


def _split(x: Array, size, dim: int = 0) -> list[Array]:
    at = (
        range(size, x.shape[dim], size)
        if isinstance(size, int)
        else np.cumsum(size)[:-1]
    )
    return jnp.split(x, list(at), axis=dim)


def _attended(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None,
    enable_gqa=False,
):  # fmt: skip
    del attn_mask, dropout_p, scale, enable_gqa
    return attend(query, key, value, causal=is_causal)


FUNCTIONS: dict[str, Callable] = {
    **{
        name: _each(function)
        for name, function in {
            "add": lambda input, other, alpha=1: input + alpha * other,
            "iadd": operator.add,
            "isub": operator.sub,
            "itruediv": operator.truediv,
            "sub": lambda input, other, alpha=1: input - alpha * other,
            "mul": operator.mul,
            "imul": operator.mul,
            "div": _divided,
            "truediv": operator.truediv,
            "floordiv": operator.floordiv,
            "pow": operator.pow,
            "neg": operator.neg,
            "relu": jax.nn.relu,
            "relu_": jax.nn.relu,
            "relu6": jax.nn.relu6,
            "tanh": jnp.tanh,
            "sigmoid": jax.nn.sigmoid,
            "silu": jax.nn.silu,
            "gelu": _gelu,
            "elu": jax.nn.elu,
            "leaky_relu": _leaky_relu,
            "hardtanh": _hardtanh,
            "hardswish": jax.nn.hard_swish,
            "softplus": _softplus,
            "exp": jnp.exp,
            "log": jnp.log,
            "sqrt": jnp.sqrt,
            "abs": _abs,
            "contiguous": lambda x: x,
            "clone": lambda x: x,
            "float": _as_float,
        }.items()
    },
    "cat": _joined,
    "concat": _joined,
    "max_pool2d": _of_picture(_max_pool),
    "avg_pool2d": _of_picture(_avg_pool),
    "adaptive_avg_pool2d": _of_picture(_adaptive_avg_pool),
    **{
        name: _ordered(function)
        for name, function in {
            "flatten": _flatten,
            "view": lambda x, *sizes: jnp.reshape(x, _sizes(sizes)),
            "reshape": lambda x, *sizes: jnp.reshape(x, _sizes(sizes)),
            "permute": lambda x, *dims: jnp.transpose(x, _sizes(dims)),
            "transpose": lambda input, dim0, dim1: jnp.swapaxes(input, dim0, dim1),
            "unsqueeze": lambda input, dim: jnp.expand_dims(input, dim),
            "squeeze": _squeeze,
            "expand": _expanded,
            "chunk": _cut,
            "split": _split,
            "mean": _mean,
            "matmul": jnp.matmul,
            "bmm": jnp.matmul,
            "softmax": _softmax(jax.nn.softmax),
            "log_softmax": _softmax(jax.nn.log_softmax),
            "scaled_dot_product_attention": _attended,
            "size": lambda x, dim=None: x.shape if dim is None else x.shape[dim],
            "dim": lambda x: x.ndim,
            "getitem": lambda x, at: x[tuple(at) if isinstance(at, list) else at],
            "getattr": lambda x, name: getattr(x, name),
        }.items()
    },
}
ATTRIBUTES = ("shape", "ndim")  # of a tensor, that a forward pass may look at
DROPOUT = "dropout"
# What gives in PyTorch the same memory as it is given, always or sometimes; and what
# writes into the memory that it is given.
VIEWS = {"flatten", "view", "reshape", "permute", "transpose", "unsqueeze", "squeeze"}
VIEWS |= {"expand", "chunk", "split", "getitem", "contiguous", "float", DROPOUT}
VIEWS |= {"Flatten", "Identity", "Dropout", "Dropout2d"}
ASSIGNED = ("iadd", "isub", "imul", "itruediv")  # x += y, ...
IN_PLACE = {*ASSIGNED, "relu_"}


# --- the graph ----------------------------------------------------------------------


class Step(NamedTuple):
    """One node of a graph, with the names of others in its arguments (`Ref`)."""

    name: str
    op: str
    target: Any
    args: tuple
    kwargs: dict


class Ref(NamedTuple):
    """The value of another node."""

    name: str


class Graph:
    """The steps of a forward pass; opaque to NNX."""

    def __init__(self, steps: list[Step], fed: dict[str, str]):
        self.steps, self.fed = steps, fed


class TorchNetwork(nnx.Module):
    """Layers at the paths that they have in PyTorch, and the graph between them."""

    def __init__(self, graph: Graph, children: Mapping[str, Any]):
        self.kljax_graph = graph
        for name, child in children.items():
            setattr(self, name, child)

    def __call__(self, x: Array) -> Array:
        """Maps images [B, H, W, C], or other inputs, to logits."""
        with jax.numpy_rank_promotion("allow"):  # as PyTorch does
            return self._run(x)

    def _run(self, x: Array) -> Array:
        values: dict[str, Any] = {}

        def settled(value: Any) -> Any:
            if isinstance(value, Ref):
                return values[value.name]
            if isinstance(value, (list, tuple)):
                return [settled(one) for one in value]
            if isinstance(value, slice):
                ends = (value.start, value.stop, value.step)
                return slice(*map(settled, ends))
            return value

        for step in self.kljax_graph.steps:
            args = [settled(value) for value in step.args]
            kwargs = {name: settled(value) for name, value in step.kwargs.items()}
            values[step.name] = self._made(step, x, args, kwargs)
            if step.op == "output":
                return first(values[step.name])
        raise AssertionError("a graph has an output")

    def _made(self, step: Step, x: Array, args: list, kwargs: dict) -> Any:
        if step.op == "placeholder":
            return Picture(x) if jnp.ndim(x) == 4 else x
        if step.op == "get_attr":
            return _found(self, step.target)[...]
        if step.op == "call_module":
            return self._called(step, args, kwargs)
        if step.op == "output":
            return args[0]
        if step.op == DROPOUT:
            drop = _found(self, step.target)
            return _each(drop)(args[0])
        return FUNCTIONS[step.target](*args, **kwargs)

    def _called(self, step: Step, args: list, kwargs: dict) -> Any:
        layer, fed = _found(self, step.target), self.kljax_graph.fed[step.target]
        if isinstance(layer, Attention):
            return layer(*map(first, args)), None
        (value,) = [*args, *kwargs.values()]
        ndim = jnp.ndim(first(value))
        if fed in ("picture", "channels") and ndim == 4:
            return Picture(layer(last(value)))
        if fed == "picture":
            raise ValueError(
                f"layer {step.target!r} is fed {jnp.shape(value)}, expected a batch of "
                "pictures [B, C, H, W]"
            )
        if fed == "channels":
            return jnp.moveaxis(layer(jnp.moveaxis(value, 1, -1)), -1, 1)
        if fed == "same" and isinstance(value, Picture):
            return Picture(layer(value.array))
        return layer(first(value))


def _found(network: Any, target: str) -> Any:
    for part in target.split("."):
        is_dict = isinstance(network, nnx.Dict)
        network = network[part] if is_dict else getattr(network, part)
    return network


def _converted(
    module: "torch.nn.Module",
) -> tuple[TorchNetwork, dict[Path, tuple[str, tuple[int, ...] | None]]]:
    """Makes the network; and PyTorch's name and axes of each tensor by its path."""
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "kljax.from_torch needs PyTorch, which is not installed: pip install "
            "'kljax[torch]'"
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise ValueError(f"expected a torch.nn.Module, got {type(module).__name__}")
    kind = type(module).__name__
    refused = [
        f"hooks of {name or kind!r}"
        for name, one in module.named_modules()
        if any(getattr(one, hooks) for hooks in HOOKS)
    ]
    if refused:
        raise ValueError(
            f"{kind} cannot be taken over from PyTorch: {', '.join(refused)}; no graph "
            "shows what they do"
        )
    module = copy.deepcopy(module).cpu()
    train, test = (_traced(module.train(mode)) for mode in (True, False))
    modules = dict(module.named_modules())
    refused = _find_overwritten(train, modules)
    steps, fed, layers, names = [], {}, {}, {}
    if list(map(_shape_of, train)) != list(map(_shape_of, test)):
        refused.append("a forward pass that differs between training and evaluation")
    for node, other in zip(train, test, strict=False):
        step = _step_of(node)
        if node.op == "call_module":
            _convert(modules[node.target], node.target, fed, layers, names, refused)
            if type(modules[node.target]).__name__ == "MultiheadAttention":
                step = _attention_of(step, modules[node.target], node, refused)
        elif node.op == "get_attr":
            _take(module, node.target, layers, names)
        elif node.op == "placeholder" and node is not train[0]:
            refused.append(f"the argument {node.target!r} beside the first")
        elif node.op == "output" and not hasattr(node.args[0], "op"):
            refused.append(f"an output that is no tensor ({node.args[0]})")
        elif node.op in ("call_function", "call_method"):
            step = _function_of(step, node, other, layers, refused)
        steps.append(step)
    refused += _find_tied(module, names)
    owners = {name: name.rpartition(".")[0] for name in layers}
    refused += [
        f"parameter {name!r}, which layer {owner!r} uses, too"
        for name, owner in owners.items()
        if owner in layers
    ]
    if not refused and not any(p.requires_grad for p in module.parameters()):
        refused.append("no parameter of it needs a gradient")
    if refused:
        told = ", ".join(dict.fromkeys(refused))
        raise ValueError(
            f"{kind} cannot be taken over from PyTorch: {told}; layers that can are "
            f"{', '.join(LAYERS)}"
        )
    return TorchNetwork(Graph(steps, fed), _nested(layers)), names


def _traced(module: "torch.nn.Module") -> list:
    import torch.fx

    class Tracer(torch.fx.Tracer):
        """Goes into a user's modules, and into containers of PyTorch's."""

        def is_leaf_module(self, found, name):
            own = type(found).__module__.startswith("torch.nn")
            return own and not isinstance(found, torch.nn.Sequential)

        def proxy(self, node):
            return Assigned(node, self)

    class Assigned(torch.fx.Proxy):
        """Keeps ``x += y`` apart from ``x + y``, which torch.fx takes it for."""

    for name in ASSIGNED:
        setattr(Assigned, f"__{name}__", _assigned(getattr(operator, name)))

    try:
        return list(Tracer().trace(module).nodes)
    except Exception as error:  # whatever a forward pass raises on stand-ins
        raise ValueError(
            f"{type(module).__name__} cannot be traced by torch.fx: its forward pass "
            f"depends on values, or fails on stand-ins for tensors "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from error


def _assigned(function: Callable) -> Callable:
    return lambda x, other: x.tracer.create_proxy(
        "call_function", function, (x, other), {}
    )


def _shape_of(node: Any) -> tuple:
    """Says what of a node may not differ between training and evaluation."""
    name = getattr(node.target, "__name__", str(node.target))
    more = () if name == DROPOUT else (str(node.args), str(node.kwargs))
    return (node.op, name, *more)


def _step_of(node: Any) -> Step:
    def taken(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(taken(one) for one in value)
        if isinstance(value, slice):
            return slice(*map(taken, (value.start, value.stop, value.step)))
        return Ref(value.name) if hasattr(value, "op") else value

    kwargs = {name: taken(value) for name, value in node.kwargs.items()}
    return Step(node.name, node.op, node.target, taken(tuple(node.args)), kwargs)


def _convert(
    module: Any, target: str, fed: dict, layers: dict, names: dict, refused: list
) -> None:
    kind = type(module).__name__
    if kind not in LAYERS:
        refused.append(f"layer {target!r} ({kind})")
        return
    layer = LAYERS[kind]
    wrong = _not_allowed(kind, vars(module))
    try:
        if wrong:
            raise ValueError(wrong)
        layers[target] = layer.make(module)
    except ValueError as error:
        refused.append(f"layer {target!r} ({kind} with {error})")
        return
    fed[target] = layer.fed
    there = module.state_dict(keep_vars=True)
    for name, (ours, axes) in layer.axes.items():
        if name not in there:
            continue
        if _is_constant(there[name]):
            *parents, own = ours.split("/")
            owner = functools.reduce(getattr, parents, layers[target])
            setattr(owner, own, Frozen(getattr(owner, own)[...]))
        else:
            path = f"{target.replace('.', '/')}/{ours}"
            names[path] = (f"{target}.{name}", axes)


def _is_constant(tensor: Any) -> bool:
    """Tells whether a tensor is a parameter that nobody trains."""
    import torch

    return isinstance(tensor, torch.nn.Parameter) and not tensor.requires_grad


def _not_allowed(kind: str, options: Mapping[str, Any]) -> str:
    """Writes which options of a layer or function are not covered; empty for none."""
    return ", ".join(
        f"{name}={options[name]!r}"
        for name, allowed in ALLOWED.get(kind, {}).items()
        if name in options and not allowed(options[name])
    )


def _find_tied(module: Any, names: Mapping[Path, tuple]) -> list[str]:
    """Finds parameters that are used by two names, of which PyTorch sends one."""
    used, seen, found = {name for name, _ in names.values()}, {}, []
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if name in used and seen.setdefault(id(parameter), name) != name:
            found.append(f"parameter {name!r}, which is {seen[id(parameter)]!r}, too")
    return found


def _find_overwritten(nodes: list, modules: Mapping[str, Any]) -> list[str]:
    """Finds values that are used after something in place has written over them."""
    groups: dict[Any, set] = {}  # of nodes that may be the same memory
    written: dict[Any, Any] = {}  # values that are gone, and by which node
    found = []
    for node in nodes:
        for given in node.all_input_nodes:
            if given in written:
                found.append(
                    f"{node.name!r} of {given.name!r}, which {written[given].name!r} "
                    "has overwritten in place"
                )
        layer = modules[node.target] if node.op == "call_module" else None
        target = node.target if layer is None else type(layer)
        name = target if isinstance(target, str) else getattr(target, "__name__", "")
        groups[node] = {node}
        if node.op in ("get_attr", "placeholder", "output") or not node.args:
            continue
        given = node.args[0]
        if given not in groups:
            continue
        in_place = getattr(layer, "inplace", False) or node.kwargs.get("inplace")
        if in_place or name in IN_PLACE:
            written |= dict.fromkeys(groups[given], node)
        elif name in VIEWS:
            groups[given].add(node)
            groups[node] = groups[given]
    return found


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
HOOKS += ("_backward_pre_hooks",)


def _attention_of(step: Step, module: Any, node: Any, refused: list) -> Step:
    """Leaves query, key and value to an attention, if nothing else matters."""
    try:
        bound = inspect.signature(module.forward).bind(*step.args, **step.kwargs)
    except TypeError as error:
        refused.append(f"attention {node.target!r} ({error})")
        return step
    given = bound.arguments
    fed = tuple(given.pop(name) for name in ("query", "key", "value"))
    masks = [n for n, v in given.items() if isinstance(v, Ref)]
    masks += [n for n in ("is_causal",) if given.get(n)]
    if masks:
        refused.append(f"attention {node.target!r} with {', '.join(masks)}")
    if any(getattr(user, "args", ())[1:] != (0,) for user in node.users):
        refused.append(f"attention {node.target!r} of which more is used than [0]")
    return step._replace(args=fed, kwargs={})


def _take(module: Any, target: str, layers: dict, names: dict) -> None:
    """Takes over a parameter or buffer that the forward pass uses itself."""
    import torch

    owner = module
    for part in target.split("."):
        owner = getattr(owner, part)
    trained = isinstance(owner, torch.nn.Parameter) and owner.requires_grad
    layers[target] = (nnx.Param if trained else Frozen)(_array(owner))
    if trained:
        names[target.replace(".", "/")] = (target, None)


def _function_of(
    step: Step, node: Any, other: Any, layers: dict, refused: list
) -> Step:
    """Settles a function's name; a dropout becomes a layer of its own."""
    target = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    if name == DROPOUT:
        if not node.args:
            refused.append(f"dropout {node.name!r}, whose input has a keyword")
            return step
        rate = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
        modes = [
            one.kwargs.get("training", one.args[2] if len(one.args) > 2 else True)
            for one in (node, other)
        ]
        if modes == [True, True] or not isinstance(rate, (int, float)):
            refused.append(f"dropout {node.name!r}, which evaluation does not end")
            return step
        if not modes[0]:
            rate = 0.0
        layers[node.name] = nnx.Dropout(rate, rngs=nnx.Rngs(0))
        return step._replace(op=DROPOUT, target=node.name)
    known = name in FUNCTIONS
    if name == "getattr" and node.args[1] not in ATTRIBUTES:
        known = False
    if not known:
        refused.append(f"function {name or target!r}")
        return step
    kwargs = {n: v for n, v in step.kwargs.items() if n != "inplace"}
    try:
        bound = inspect.signature(FUNCTIONS[name]).bind(*step.args, **kwargs)
    except TypeError as error:
        refused.append(f"function {name!r} ({error})")
        return step
    bound.apply_defaults()
    wrong = _not_allowed(name, bound.arguments)
    if wrong:
        refused.append(f"function {name!r} with {wrong}")
    return step._replace(target=name, kwargs=kwargs)


def _nested(layers: Mapping[str, Any]) -> dict[str, Any]:
    """Puts layers by dotted names into dictionaries of NNX."""
    tree: dict[str, Any] = {}
    for name, layer in layers.items():
        *parents, own = name.split(".")
        at = tree
        for part in parents:
            at = at.setdefault(part, {})
        at[own] = layer

    def held(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return nnx.Dict({name: held(one) for name, one in value.items()})

    return {name: held(one) for name, one in tree.items()}
