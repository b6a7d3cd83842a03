"""The maps of a convolution on a CPU, without patches where XLA's library allows it.

All three maps (`kljax.models.convolution_maps`, which explains the letters) are
convolutions in the layout that XLA's CPU library takes (YNNPACK: images
[B, H, W, C], kernel [kh, kw, C, F], no dilation of the images, more than 16 channels on
one side), which multiplies without writing patches to memory. What does not fit is
brought into that form:

- few channels: some columns of the result side by side (`_group`) count as channels,
  and the kernel is repeated for each of them, shifted;
- a strided convolution of images with few colours, and the gradient in the images of
  any strided one: with stride 1, the pixels of a stride x stride square as channels;
- the gradient in the kernel: the result's gradient is the kernel, channels the batch,
  in blocks of few examples. With fewer it is a product over patches instead, gathered
  with the channels first.

Infinities are not kept as `lax.conv_general_dilated` keeps them. Repeated and filled
kernels have zeros, and zero times infinity is NaN: an infinity in images or gradients
makes NaN of entries nearby that do not depend on it.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kljax.core.types import Array
from kljax.models.convolution_maps import CHANNELS_LAST, FOLDED, make_maps

# All measured on one core (experiments/speed/forms.md). The library refuses
# convolutions with no more channels than this on both sides, and is fast from so many
# features on.
FEW, ENOUGH = 16, 24
# Numbers of channels with which it is slow below `MORE` features: five to ten times
# with the last two, such as three colours.
THIN, ODD, MORE = (1, 3, 5), (3, 5), 36
# Examples from which on the gradient in the kernel is a convolution, in blocks of at
# least so many: with 8 it was 1.1 to 4 times as fast as with 32 or 50 at once.
MANY = 8
# What a strided map may cost in multiplications by zero: 1.8 of a 3x3 kernel are faster
# than what XLA makes of a gradient, which within a network is not its library's.
WASTE = 2.0
# Channels up to which a strided convolution is one of squares: colours.
COLOURS = 3


def _convolve_form(images, kernel, *, geometry):
    strides, padding = geometry.strides, geometry.padding
    if kernel.shape[2] <= COLOURS and max(strides) > 1:
        squares = _find_squares(geometry)
        if _waste(squares) <= WASTE:
            images = _join_squares(images, squares)
            kernel = _cut_kernel(kernel, squares)
            strides, padding = (1, 1), tuple(axis.padding for axis in squares)
    return _convolve_in_groups(images, kernel, strides, padding, geometry.precision)


def _join_squares(images, squares):
    """Makes squares of pixels [B, H, W, C] channels: [B, H / sh, W / sw, sh sw C]."""
    down, across = squares
    filled = [
        (0, axis.pixels - n) for axis, n in zip(squares, images.shape[1:3], strict=True)
    ]
    x = jnp.pad(images, ((0, 0), *filled, (0, 0)))
    count, channels = len(x), x.shape[3]
    x = x.reshape(count, down.count, down.stride, across.count, across.stride, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(count, down.count, across.count, -1)


def _cut_kernel(kernel, squares):
    """Cuts a kernel [kh, kw, C, F] into squares: [th, tw, sh sw C, F]."""
    down, across = squares
    channels, features = kernel.shape[2:]
    kernel = jnp.pad(kernel, (down.filled, across.filled, (0, 0), (0, 0)))
    kernel = kernel.reshape(
        down.taps, down.stride, across.taps, across.stride, channels, features
    )
    return kernel.transpose(0, 2, 1, 3, 4, 5).reshape(
        down.taps, across.taps, -1, features
    )


def _convolve_in_groups(images, kernel, strides, padding, precision):
    """Convolves with `_group` columns of the result as one, of more channels."""
    height, width, channels, features = kernel.shape
    columns = (images.shape[2] + sum(padding[1]) - width) // strides[1] + 1
    group, stride = _group(channels, features, columns), strides[1]
    if group > 1:
        # Pads and joins are one loop of XLA's, where a product with zeros and ones took
        # three. What the kernel comes from is computed in that loop, for each weight: a
        # sum over all tensors has to be in memory (kljax.attacks.objectives does so).
        reach = stride * (group - 1)
        shifts = [(stride * i, reach - stride * i) for i in range(group)]
        kernel = jnp.concatenate(
            [jnp.pad(kernel, ((0, 0), shift, (0, 0), (0, 0))) for shift in shifts], 3
        )
    y = lax.conv_general_dilated(
        images,
        kernel,
        (strides[0], stride * group),
        padding,
        dimension_numbers=CHANNELS_LAST,
        precision=precision,
    )
    return y.reshape(*y.shape[:2], columns, features)


def _group(channels, features, columns):
    """Chooses how many columns of a result count as one; it divides their number."""
    enough = MORE if channels in THIN else ENOUGH
    if channels > FEW or features >= (enough if channels in ODD else FEW + 1):
        return 1
    least = max(2, -(-enough // features))
    return next((n for n in range(least, 3 * least) if columns % n == 0), 1)


def _image_gradient_form(grads, kernel, *, geometry):
    squares = down, across = _find_squares(geometry)
    paddings = [axis.gradient_padding for axis in squares]
    if _waste(squares) > WASTE or min(n for pads in paddings for n in pads) < 0:
        return _transposed(grads, kernel, geometry)
    channels = kernel.shape[2]
    kernel = _cut_kernel(kernel, squares)[::-1, ::-1].transpose(0, 1, 3, 2)
    x = _convolve_in_groups(grads, kernel, (1, 1), paddings, geometry.precision)
    count, rows, columns, _ = x.shape
    x = x.reshape(count, rows, columns, down.stride, across.stride, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(
        count, down.pixels, across.pixels, channels
    )
    return x[:, : geometry.image[0], : geometry.image[1]]


class _Squares(NamedTuple):
    """One axis of a strided convolution, as one with stride 1 over squares of pixels.

    Pixel stride * q + r of the image is met by weight stride * t + r of the filled
    kernel, and is then of result q - t + first.

    Attributes:
      stride: pixels of a square.
      size: pixels of the kernel.
      taps: squares of the kernel.
      filled: zeros before and after the kernel, so that it is stride * taps long.
      first: squares before the image that the first result sees.
      count: squares of the image, the last of which may be filled.
      result: pixels of the result.
    """

    stride: int
    size: int
    taps: int
    filled: tuple[int, int]
    first: int
    count: int
    result: int

    @property
    def pixels(self) -> int:
        """Counts the pixels of the image with its last square full."""
        return self.count * self.stride

    @property
    def padding(self) -> tuple[int, int]:
        """Gives squares before and after the image; fewer than 0: not read."""
        return self.first, self.result - 1 + self.taps - self.first - self.count

    @property
    def gradient_padding(self) -> tuple[int, int]:
        """Gives the pixels before and after the result's gradient."""
        return self.taps - 1 - self.first, self.count + self.first - self.result


def _find_squares(geometry) -> tuple[_Squares, _Squares]:
    down, across = (
        _squares_of_axis(*sizes)
        for sizes in zip(
            geometry.kernel,
            geometry.strides,
            geometry.padding,
            geometry.image,
            geometry.result,
            strict=True,
        )
    )
    return down, across


def _squares_of_axis(kernel, stride, padding, image, result):
    before = -padding[0] % stride
    taps = -(-(kernel + before) // stride)
    return _Squares(
        stride,
        kernel,
        taps,
        (before, taps * stride - kernel - before),
        (padding[0] + before) // stride,
        -(-image // stride),
        result,
    )


def _waste(squares):
    """Tells how many times the multiplications of a convolution its squares have."""
    return math.prod(axis.taps * axis.stride / axis.size for axis in squares)


def _transposed(grads, kernel, geometry):
    """Leaves the gradient to XLA."""
    shape = (len(grads), *geometry.image, kernel.shape[2])
    back = jax.linear_transpose(
        lambda x: lax.conv_general_dilated(
            x,
            kernel,
            geometry.strides,
            geometry.padding,
            dimension_numbers=CHANNELS_LAST,
            precision=geometry.precision,
        ),
        jax.ShapeDtypeStruct(shape, grads.dtype),
    )
    return back(grads)[0]


def _kernel_gradient_form(images, grads, *, geometry):
    count = len(images)
    if count < MANY:
        return _patches_times_grads(images, grads, geometry)
    sizes = range(MANY, count)
    block = next((size for size in sizes if count % size == 0), count)
    if block == count:
        return _correlate(images, grads, geometry)

    def add(total, one):
        return total + _correlate(*one, geometry), None

    blocks = [x.reshape(-1, block, *x.shape[1:]) for x in (images, grads)]
    shape = (*geometry.kernel, images.shape[3], grads.shape[3])
    return lax.scan(add, jnp.zeros(shape, grads.dtype), blocks)[0]


def _correlate(images, grads, geometry):
    """Convolves images with the gradient as kernel: examples count as channels."""
    (height, width), (sh, sw) = geometry.kernel, geometry.strides
    count, rows, columns, features = grads.shape
    # With `FEW` features and as many examples the library is another, and fast alone.
    group = 1 if features == FEW else _group(min(count, FEW), features, columns)
    grads = grads.reshape(count, rows, columns // group, group * features)
    w = lax.conv_general_dilated(
        images.transpose(3, 1, 2, 0),
        grads.transpose(1, 2, 0, 3),
        (1, 1),
        geometry.padding,
        rhs_dilation=(sh, sw * group),
        dimension_numbers=CHANNELS_LAST,
        precision=geometry.precision,
    )
    w = w.reshape(*w.shape[:3], group, features)
    w = sum(w[:, :height, sw * i : sw * i + width, i] for i in range(group))
    return w.transpose(1, 2, 0, 3)


def _patches_times_grads(images, grads, geometry):
    """Gathers patches with the channels first, so that the product reads by rows."""
    (height, width), (sh, sw) = geometry.kernel, geometry.strides
    _, rows, columns, features = grads.shape
    channels = images.shape[3]
    x = jnp.pad(images.transpose(3, 0, 1, 2), ((0, 0), (0, 0), *geometry.padding))
    x = jnp.stack(windows(x, 3, width, sw, 1, columns))
    x = jnp.stack(windows(x, 3, height, sh, 1, rows))
    w = jnp.matmul(
        x.reshape(height * width * channels, -1),
        grads.reshape(-1, features),
        precision=geometry.precision,
    )
    return w.reshape(height, width, channels, features)


def windows(x: Array, axis: int, count: int, stride: int, dilation: int, length: int):
    """Lists `count` shifted views of `x`, each `length` long, along `axis`.

    View j holds the entries ``j * dilation + stride * i``. A stride is taken by
    splitting the axis into (position, phase): contiguous slices, and no interior
    padding in the derivative, which XLA's CPU backend is slow at.
    """
    reach = (count - 1) * dilation + stride * length
    x = lax.pad(
        x,
        jnp.zeros((), x.dtype),
        # Cut or filled up to whole strides; what is filled in is never read.
        [
            (0, -(-reach // stride) * stride - n if i == axis else 0, 0)
            for i, n in enumerate(x.shape)
        ],
    )
    x = x.reshape(*x.shape[:axis], -1, stride, *x.shape[axis + 1 :])
    views = []
    for offset in range(0, count * dilation, dilation):
        start, phase = divmod(offset, stride)
        view = lax.slice_in_dim(x, start, start + length, axis=axis)
        views.append(lax.index_in_dim(view, phase, axis + 1, keepdims=False))
    return views


def _compute_victims(primitive, operands, axes, geometry):
    """Computes victims one after another, or as more examples of one."""
    mapped = [
        x if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(operands, axes, strict=True)
    ]
    if primitive.name in FOLDED and axes[1] is None:
        left, right = mapped
        examples = left.reshape(-1, *left.shape[2:])
        out = primitive.bind(examples, right, geometry=geometry)
        return out.reshape(*left.shape[:2], *out.shape[1:])
    own = tuple(axis is not None for axis in axes)
    return _one_by_one(*mapped, primitive=primitive, own=own, geometry=geometry)


# Compiled once for eager calls, and inlined where a program is traced: a function of
# its own in every call would be compiled in every call.
@functools.partial(
    jax.jit, static_argnames=("primitive", "own", "geometry"), inline=True
)
def _one_by_one(*mapped, primitive, own, geometry):
    def one(victim):
        rows = iter(victim)
        operands = [
            next(rows) if each else x for x, each in zip(mapped, own, strict=True)
        ]
        return primitive.bind(*operands, geometry=geometry)

    return lax.map(one, [x for x, each in zip(mapped, own, strict=True) if each])


# How each map is computed, by its name: `(left, right, *, geometry) -> result`.
FORMS = {
    "convolve": _convolve_form,
    "image_gradient": _image_gradient_form,
    "kernel_gradient": _kernel_gradient_form,
}
convolve, image_gradient, kernel_gradient = make_maps(FORMS, _compute_victims)
