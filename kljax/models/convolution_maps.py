"""A convolution and its two gradients: maps that differentiate into each other.

The gradient of a convolution in its images is bilinear in the other gradient and the
kernel, that in its kernel in images and the other gradient, and each of the three has
the other two as its gradients. As primitives of JAX they stay what they are however
often they are differentiated: nothing is ever differentiated through slices and pads,
and each of the three can have the form that is fastest for it on a backend
(`kljax.models.bilinear` on a CPU, `kljax.models.implicit` on a GPU).

Letters: B examples, H x W pixels of an image, C channels, kh x kw pixels of a kernel,
F features, h x w pixels of the result.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from kljax.core.types import Array

# Of images, kernel and result: the layout of Flax.
CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")

# (left, right, *, geometry) -> result
Form: TypeAlias = Callable[..., Array]
# (primitive, (left, right), axes of victims or None, geometry) -> result, victims first
Batch: TypeAlias = Callable[[Any, tuple[Array, Array], tuple, Any], Array]


class Geometry(NamedTuple):
    """What is fixed of a convolution.

    Attributes:
      strides: of rows and columns.
      padding: (before, after) of rows and of columns, zero or more.
      image: H and W.
      kernel: kh and kw.
      precision: of products, as `lax.dot_general` takes it.
    """

    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    image: tuple[int, int]
    kernel: tuple[int, int]
    precision: object = None

    @property
    def result(self) -> tuple[int, int]:
        """Computes h and w."""
        height, width = (
            (size + sum(pads) - k) // stride + 1
            for size, pads, k, stride in zip(
                self.image, self.padding, self.kernel, self.strides, strict=True
            )
        )
        return height, width


class ConvolutionMaps(NamedTuple):
    """The three maps, each ``(left, right, geometry) -> result``.

    Attributes:
      convolve: images [B, H, W, C] and kernel [kh, kw, C, F] -> [B, h, w, F].
      image_gradient: the result's gradient [B, h, w, F] and kernel -> [B, H, W, C].
      kernel_gradient: images and the result's gradient -> [kh, kw, C, F].
    """

    convolve: Callable[[Array, Array, Geometry], Array]
    image_gradient: Callable[[Array, Array, Geometry], Array]
    kernel_gradient: Callable[[Array, Array, Geometry], Array]


# Of left and right operand. Axes before the four letters are those of a form.
SHAPES: dict[str, Callable[[tuple, tuple, Geometry], tuple]] = {
    "convolve": lambda x, w, geometry: (*x[:-3], *geometry.result, w[-1]),
    "image_gradient": lambda g, w, geometry: (*g[:-3], *geometry.image, w[-2]),
    "kernel_gradient": lambda x, g, geometry: (
        *x[:-4],
        *geometry.kernel,
        x[-1],
        g[-1],
    ),
}

# Maps in which victims that share the right operand are but more examples.
FOLDED = ("convolve", "image_gradient")


def make_maps(
    forms: Mapping[str, Form],
    batch: Batch,
    prefix: str = "",
    kernels: Mapping[str, Mapping[str, Form]] | None = None,
) -> ConvolutionMaps:
    """Makes three primitives that have each other as gradients.

    Args:
      forms: how each is computed, by its name of `SHAPES`.
      batch: how victims, a leading axis of one operand or both, are computed.
      prefix: of the primitives' names in a traced program.
      kernels: forms for a platform alone: its name in XLA -> map -> form.

    Returns:
      The maps. Each takes one victim's arrays, in the shapes that a form takes.
    """

    def make(name: str) -> Callable[[Array, Array, Geometry], Array]:
        primitive, form = Primitive(prefix + name), forms[name]

        def bind(left, right, geometry):
            return primitive.bind(left, right, geometry=geometry)

        # One function, so that eager calls share what is compiled for a geometry.
        primitive.def_impl(jax.jit(primitive.bind, static_argnames="geometry"))

        def abstract(left, right, *, geometry):
            return ShapedArray(
                SHAPES[name](left.shape, right.shape, geometry), left.dtype
            )

        def batch_rule(operands, axes, *, geometry):
            return batch(primitive, operands, axes, geometry), 0

        primitive.def_abstract_eval(abstract)
        batching.primitive_batchers[primitive] = batch_rule
        own = {platform: by_map[name] for platform, by_map in (kernels or {}).items()}
        for platform, each in {None: form, **own}.items():
            lowering = mlir.lower_fun(each, multiple_results=False)
            mlir.register_lowering(primitive, lowering, platform=platform)
        primitives.append(primitive)
        return bind

    primitives: list[Primitive] = []
    maps = ConvolutionMaps(*map(make, SHAPES))
    # The gradient in the left operand and in the right one.
    rules: tuple[tuple[Form, Form], ...] = (
        (
            lambda grads, x, w, geometry: maps.image_gradient(grads, w, geometry),
            lambda grads, x, w, geometry: maps.kernel_gradient(x, grads, geometry),
        ),
        (
            lambda x, grads, w, geometry: maps.convolve(x, w, geometry),
            lambda x, grads, w, geometry: maps.kernel_gradient(x, grads, geometry),
        ),
        (
            lambda w, x, grads, geometry: maps.image_gradient(grads, w, geometry),
            lambda w, x, grads, geometry: maps.convolve(x, w, geometry),
        ),
    )
    for primitive, rule in zip(primitives, rules, strict=True):
        ad.defbilinear(primitive, *rule)
    return maps
