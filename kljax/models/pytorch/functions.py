"""What stands for PyTorch's functions and methods, by their names.

Arguments have the names that they have in PyTorch, since a forward pass may use them as
keywords. Those that are not read are allowed the values of `ALLOWED` alone.
"""

import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kljax.core.types import Array
from kljax.models import pooling
from kljax.models.pytorch.pictures import Picture, first, last

# --- what an option may be ----------------------------------------------------------

Allowed = Mapping[str, Callable[[Any], bool]]


def one_of(*values: Any) -> Callable[[Any], bool]:
    """Makes a rule: an option is one of these values."""
    return lambda value: value in values


def is_given(value: Any) -> bool:
    """Is a rule: an option is not None."""
    return value is not None


ONE, OFF, NONE = one_of(1, (1, 1), [1, 1]), one_of(False), one_of(None)
MAX_POOL = {"dilation": ONE, "ceil_mode": OFF, "return_indices": OFF}
AVG_POOL = {"ceil_mode": OFF, "divisor_override": NONE}

ALLOWED: dict[str, Allowed] = {
    "max_pool2d": MAX_POOL,
    "avg_pool2d": AVG_POOL,
    "softmax": {"dim": is_given, "dtype": NONE},
    "log_softmax": {"dim": is_given, "dtype": NONE},
    "div": {"rounding_mode": NONE},
    "mean": {"dtype": NONE},
    "scaled_dot_product_attention": {
        "attn_mask": NONE,
        "dropout_p": one_of(0),
        "scale": NONE,
        "enable_gqa": OFF,
    },
}


def not_allowed(rules: Allowed, options: Mapping[str, Any]) -> str:
    """Writes which options of a layer or function break a rule; empty for none."""
    return ", ".join(
        f"{name}={options[name]!r}"
        for name, allowed in rules.items()
        if name in options and not allowed(options[name])
    )


# --- of entries ---------------------------------------------------------------------


def entrywise(function: Callable) -> Callable:
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


def gelu(input: Array, approximate: str = "none") -> Array:
    """Computes GELU, or its form by tanh."""
    return jax.nn.gelu(input, approximate=approximate == "tanh")


# Where these have a kink, at 0, which black pixels are, PyTorch and JAX take
# derivatives of different sides.
def leaky_relu(input: Array, negative_slope: float = 0.01) -> Array:
    """Computes a leaky ReLU; its slope at 0 is `negative_slope`."""
    return jnp.where(input > 0, input, negative_slope * input)


def _abs(input: Array) -> Array:
    return input * jnp.sign(input)


def _hardtanh(input: Array, min_val: float = -1.0, max_val: float = 1.0) -> Array:
    inside = (input > min_val) & (input < max_val)
    return jnp.where(inside, input, jnp.where(input <= min_val, min_val, max_val))


def _softplus(input: Array, beta: float = 1, threshold: float = 20) -> Array:
    soft = jax.nn.softplus(beta * input) / beta
    return jnp.where(beta * input > threshold, input, soft)


def _divided(input, other, rounding_mode=None):
    del rounding_mode
    return input / other


def _as_float(x: Array) -> Array:
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)


# --- of pictures --------------------------------------------------------------------


def _of_picture(function: Callable) -> Callable:
    @functools.wraps(function)
    def call(input, *rest, **options):
        return Picture(function(last(input), *rest, **options))

    return call


def pair(value: Any) -> tuple[int, int]:
    """Gives an option of rows and columns, which may be one number for both."""
    return (value, value) if isinstance(value, int) else tuple(value)


def max_pool(
    input: Array, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False,
    return_indices=False,
):  # fmt: skip
    """Takes the largest of each window: [B, H, W, C] to [B, H', W', C]."""
    del dilation, ceil_mode, return_indices
    size, pads = pair(kernel_size), tuple((p, p) for p in pair(padding))
    return pooling.max_pool(input, size, pair(stride or size), pads)


def avg_pool(
    input: Array, kernel_size, stride=None, padding=0, ceil_mode=False,
    count_include_pad=True, divisor_override=None,
):  # fmt: skip
    """Takes the mean of each window: [B, H, W, C] to [B, H', W', C]."""
    del ceil_mode, divisor_override
    size, pads = pair(kernel_size), tuple((p, p) for p in pair(padding))
    return pooling.avg_pool(input, size, pair(stride or size), pads, count_include_pad)


def adaptive_avg_pool(input: Array, output_size) -> Array:
    """Takes means of equal windows: [B, H, W, C] to [B, *output_size, C].

    Raises:
      ValueError: if the windows would differ in size.
    """
    x = input
    rows, columns = (
        have if want is None else want
        for want, have in zip(pair(output_size), x.shape[1:3], strict=True)
    )
    if x.shape[1] % rows or x.shape[2] % columns:
        raise ValueError(
            f"adaptive_avg_pool2d to {(rows, columns)} of {x.shape[1:3]} pixels has "
            "windows of several sizes"
        )
    tiles = (len(x), rows, x.shape[1] // rows, columns, x.shape[2] // columns, -1)
    return jnp.mean(jnp.reshape(x, tiles), axis=(2, 4))


def _joined(tensors, dim: int = 0, axis: int | None = None):
    dim = dim if axis is None else axis
    if all(isinstance(x, Picture) for x in tensors) and dim in (1, -3):
        return Picture(jnp.concatenate([x.array for x in tensors], axis=-1))
    return jnp.concatenate([first(x) for x in tensors], axis=dim)


# --- of axes ------------------------------------------------------------------------


def _ordered(function: Callable) -> Callable:
    """Makes a function of axes see PyTorch's order."""

    @functools.wraps(function)
    def call(*values, **options):
        values = jax.tree.map(first, values, is_leaf=lambda v: isinstance(v, Picture))
        return function(*values, **options)

    return call


def flatten(input: Array, start_dim: int = 0, end_dim: int = -1) -> Array:
    """Makes one axis of those from `start_dim` to `end_dim`, both included."""
    x = input
    end = end_dim % x.ndim
    shape = (*x.shape[:start_dim], -1, *x.shape[end + 1 :])
    # In two steps: `flattened_inputs` would take it for a row in Flax's order.
    if x.ndim == 4 and (start_dim, end) == (1, 3):
        x = jnp.reshape(x, (*x.shape[:2], -1))
    return jnp.reshape(x, shape)


def softmax(input: Array, dim: int, _stacklevel=3, dtype=None) -> Array:
    """Computes a softmax over one axis."""
    del _stacklevel, dtype
    return jax.nn.softmax(input, axis=dim)


def log_softmax(input: Array, dim: int, _stacklevel=3, dtype=None) -> Array:
    """Computes the logarithm of a softmax over one axis."""
    del _stacklevel, dtype
    return jax.nn.log_softmax(input, axis=dim)


def attend(q: Array, k: Array, v: Array, *, drop: Any = None, causal=False) -> Array:
    """Computes ``softmax(q k^T / sqrt(d)) v`` over [..., T, d]."""
    scores = q @ jnp.swapaxes(k, -1, -2) / math.sqrt(q.shape[-1])
    if causal:
        below = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        scores = jnp.where(below, scores, -jnp.inf)
    shares = jax.nn.softmax(scores)
    return (shares if drop is None else drop(shares)) @ v


def _attended(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None,
    enable_gqa=False,
):  # fmt: skip
    del attn_mask, dropout_p, scale, enable_gqa
    return attend(query, key, value, causal=is_causal)


def _sizes(values: tuple) -> tuple[int, ...]:
    flat = values[0] if len(values) == 1 and not isinstance(values[0], int) else values
    return tuple(int(value) for value in flat)


def _reshaped(x: Array, *sizes) -> Array:
    return jnp.reshape(x, _sizes(sizes))


def _mean(input: Array, dim=None, keepdim: bool = False, dtype=None) -> Array:
    del dtype
    axes = tuple(dim) if isinstance(dim, (list, tuple)) else dim
    return jnp.mean(input, axis=axes, keepdims=keepdim)


def _squeeze(input: Array, dim=None) -> Array:
    if dim is None:
        return jnp.squeeze(input)
    axes = dim if isinstance(dim, (list, tuple)) else (dim,)
    return jnp.squeeze(input, tuple(a for a in axes if input.shape[a] == 1))


def _expanded(x: Array, *sizes) -> Array:
    wanted = _sizes(sizes)
    have = (1,) * (len(wanted) - x.ndim) + x.shape
    pairs = zip(wanted, have, strict=True)
    return jnp.broadcast_to(x, tuple(h if w == -1 else w for w, h in pairs))


def _split(x: Array, size, dim: int = 0) -> list[Array]:
    whole = isinstance(size, int)
    at = range(size, x.shape[dim], size) if whole else np.cumsum(size)[:-1]
    return jnp.split(x, list(at), axis=dim)


def _chunk(x: Array, count: int, dim: int = 0) -> list[Array]:
    return _split(x, -(-x.shape[dim] // count), dim)


# --- the tables ---------------------------------------------------------------------

_ENTRYWISE = {
    "add": lambda input, other, alpha=1: input + alpha * other,
    "iadd": operator.add,
    "sub": lambda input, other, alpha=1: input - alpha * other,
    "isub": operator.sub,
    "mul": operator.mul,
    "imul": operator.mul,
    "div": _divided,
    "truediv": operator.truediv,
    "itruediv": operator.truediv,
    "floordiv": operator.floordiv,
    "pow": operator.pow,
    "neg": operator.neg,
    "relu": jax.nn.relu,
    "relu_": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "gelu": gelu,
    "elu": jax.nn.elu,
    "leaky_relu": leaky_relu,
    "hardtanh": _hardtanh,
    "hardswish": jax.nn.hard_swish,
    "softplus": _softplus,
    "exp": jnp.exp,
    "log": jnp.log,
    "sqrt": jnp.sqrt,
    "rsqrt": jax.lax.rsqrt,
    "abs": _abs,
    "contiguous": lambda x: x,
    "clone": lambda x: x,
    "float": _as_float,
}
_OF_AXES = {
    "flatten": flatten,
    "view": _reshaped,
    "reshape": _reshaped,
    "permute": lambda x, *dims: jnp.transpose(x, _sizes(dims)),
    "transpose": lambda input, dim0, dim1: jnp.swapaxes(input, dim0, dim1),
    "unsqueeze": lambda input, dim: jnp.expand_dims(input, dim),
    "squeeze": _squeeze,
    "expand": _expanded,
    "chunk": _chunk,
    "split": _split,
    "mean": _mean,
    "matmul": jnp.matmul,
    "bmm": jnp.matmul,
    "softmax": softmax,
    "log_softmax": log_softmax,
    "scaled_dot_product_attention": _attended,
    "size": lambda x, dim=None: x.shape if dim is None else x.shape[dim],
    "dim": lambda x: x.ndim,
    "getitem": lambda x, at: x[tuple(at) if isinstance(at, list) else at],
    "getattr": lambda x, name: getattr(x, name),
}
FUNCTIONS: dict[str, Callable] = {
    **{name: entrywise(function) for name, function in _ENTRYWISE.items()},
    **{name: _ordered(function) for name, function in _OF_AXES.items()},
    "cat": _joined,
    "concat": _joined,
    "max_pool2d": _of_picture(max_pool),
    "avg_pool2d": _of_picture(avg_pool),
    "adaptive_avg_pool2d": _of_picture(adaptive_avg_pool),
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
