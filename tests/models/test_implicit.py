"""The implicit products, interpreted, against XLA's convolution; lowered for a GPU."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

from kljax.models import implicit
from kljax.models.convolution import implicit_convolution, lax_convolution
from kljax.models.convolution_maps import CHANNELS_LAST, SHAPES, Geometry

# name: images [B, H, W, C], kernel [kh, kw], features, strides, padding
CASES = {
    "lenet": ((2, 8, 8, 3), (5, 5), 12, (2, 2), ((2, 2), (2, 2))),
    "more than a tile of each side": ((2, 7, 7, 5), (3, 3), 70, (1, 1), "SAME"),
    "strides and sides of their own": ((2, 7, 6, 2), (3, 4), 3, (2, 3), "SAME"),
    "stride skips the rest": ((1, 8, 9, 2), (3, 3), 3, (2, 2), "VALID"),
    "windows that do not overlap": ((1, 6, 7, 2), (2, 2), 3, (3, 2), "VALID"),
    "unequal padding": ((3, 6, 6, 4), (3, 3), 5, (1, 1), ((0, 2), (2, 0))),
    "a kernel larger than the image": ((1, 2, 5, 3), (3, 3), 4, (1, 1), "SAME"),
}


def arrays(case, dtype=np.float64):
    """Images, kernel and one direction for each."""
    images, kernel, features, _, _ = case
    draw = np.random.default_rng(len(str(case))).standard_normal
    shapes = images, (*kernel, images[-1], features)
    images, kernel, *directions = (
        jnp.asarray(draw(shape), dtype) for shape in (*shapes, *shapes)
    )
    return (images, kernel), tuple(directions)


def gradient(convolution, case):
    """Makes the gradient of a scalar that is curved in images and kernel."""

    def scalar(at):
        out = convolution(*at, *case[3:], dimension_numbers=CHANNELS_LAST)
        return jnp.sum(jnp.sin(0.3 * out))

    return jax.grad(scalar)


def inner(left, right):
    return sum(jnp.sum(a * b) for a, b in zip(left, right, strict=True))


# Interpreted kernels take many seconds to compile.
QUICK = ("windows that do not overlap",)


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES],
)
def test_values_and_two_derivatives_equal_those_of_lax(name):
    case = CASES[name]

    def derivatives(convolution):
        @quick_jit
        def compute(at, direction):
            slope = gradient(convolution, case)
            curvature = jax.grad(lambda at: inner(slope(at), direction))
            value = convolution(*at, *case[3:], dimension_numbers=CHANNELS_LAST)
            return value, slope(at), curvature(at)

        return compute

    with jax.enable_x64(True):
        at, direction = arrays(case)
        fast, slow = (
            derivatives(form)(at, direction)
            for form in (implicit_convolution, lax_convolution)
        )
        assert fast[0].dtype == jnp.float64
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10),
        fast,
        slow,
    )


def looped(name, left, right, geometry):
    """Computes a map of one victim entry by entry, as the definition has it."""
    out = np.zeros(SHAPES[name](left.shape, right.shape, geometry))
    images, kernel, grads = {
        "convolve": (left, right, out),
        "image_gradient": (out, right, left),
        "kernel_gradient": (left, out, right),
    }[name]
    (down, across), ((top, _), (before, _)) = geometry.strides, geometry.padding
    for b, h, w, f in np.ndindex(grads.shape):
        for i, j, c in np.ndindex(kernel.shape[:3]):
            y, x = down * h + i - top, across * w + j - before
            if 0 <= y < geometry.image[0] and 0 <= x < geometry.image[1]:
                if name == "convolve":
                    out[b, h, w, f] += images[b, y, x, c] * kernel[i, j, c, f]
                elif name == "image_gradient":
                    out[b, y, x, c] += grads[b, h, w, f] * kernel[i, j, c, f]
                else:
                    out[i, j, c, f] += images[b, y, x, c] * grads[b, h, w, f]
    return out


@pytest.mark.parametrize("name", implicit.PRODUCTS)
def test_each_map_is_its_sum(name):
    geometry = Geometry((2, 1), ((1, 0), (1, 2)), (5, 4), (3, 2))
    letters = {
        "images": (2, *geometry.image, 2),
        "kernel": (*geometry.kernel, 2, 3),
        "grads": (2, *geometry.result, 3),
    }
    sides = {
        "convolve": ("images", "kernel"),
        "image_gradient": ("grads", "kernel"),
        "kernel_gradient": ("images", "grads"),
    }[name]
    draw = np.random.default_rng(0).standard_normal
    left, right = (draw((2, *letters[side])) for side in sides)
    made = implicit.multiply(
        name,
        jnp.asarray(left, jnp.float32),
        jnp.asarray(right, jnp.float32),
        geometry=geometry,
        interpret=True,
    )
    for victim in range(2):
        wanted = looped(name, left[victim], right[victim], geometry)
        np.testing.assert_allclose(made[victim], wanted, atol=2e-5)


# Which of images and kernel each of three victims has of its own.
AXES = {"both": (0, 0), "images": (0, None), "kernels": (None, 0)}


@pytest.mark.slow
@pytest.mark.parametrize("axes", AXES.values(), ids=AXES)
def test_victims_together_are_victims_one_by_one(axes):
    """Inside of `vmap`, and differentiated again outside of it."""
    case = CASES["unequal padding"]
    factors = jnp.array([1.0, -0.5, 2.0])
    with jax.enable_x64(True):
        at, _ = arrays(case)
        many = tuple(
            x if axis is None else jnp.stack([f * x for f in factors])
            for x, axis in zip(at, axes, strict=True)
        )

        def summed(form):
            each = jax.vmap(lambda *at: inner(gradient(form, case)(at), at), axes)
            return lambda at: jnp.sum(each(*at) * jnp.arange(1, 4))

        fast, slow = (
            quick_jit(jax.value_and_grad(summed(form)))(many)
            for form in (implicit_convolution, lax_convolution)
        )
    for a, b in zip(jax.tree.leaves(fast), jax.tree.leaves(slow), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_two_axes_of_victims_equal_those_of_lax():
    """Images have both, at different places, and kernels the outer one alone."""
    case = CASES["lenet"]
    factors = jnp.array([[1.0, -0.5, 2.0], [0.3, 1.5, -1.0]])
    with jax.enable_x64(True):
        (image, kernel), _ = arrays(case)
        images = jnp.einsum("ij,bhwc->bihwjc", factors, image)
        kernels = jnp.stack([kernel, -0.7 * kernel])

        def each(form):
            one = gradient(form, case)
            inside = jax.vmap(lambda x, w: one((x, w)), (3, None))
            return quick_jit(jax.vmap(inside, (1, 0)))

        fast, slow = (
            each(form)(images, kernels)
            for form in (implicit_convolution, lax_convolution)
        )
    assert [x.shape[:2] for x in fast] == [(2, 3)] * 2
    for a, b in zip(fast, slow, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_sums_of_short_numbers_are_long():
    """512 products of 16 bits: their sum is rounded once, to 2**-8 of itself."""
    case = ((1, 16, 32, 1), (16, 32), 3, (1, 1), "VALID")
    (images, kernel), _ = arrays(case, jnp.bfloat16)
    made = implicit_convolution(
        images, kernel, *case[3:], dimension_numbers=CHANNELS_LAST
    )
    assert made.dtype == jnp.bfloat16
    images, kernel, made = (np.asarray(x, np.float64) for x in (images, kernel, made))
    wanted = np.einsum("bhwc,hwcf->bf", images, kernel)
    np.testing.assert_allclose(made[:, 0, 0], wanted, rtol=2.0**-8)


@pytest.mark.parametrize("platform", ["cuda", "rocm"])
def test_victims_are_one_kernel_of_triton_for_each_map(platform):
    """Second derivatives of victims with kernels of their own, lowered for a GPU."""
    case = CASES["lenet"]

    def curvature(at, direction):
        slope = gradient(implicit_convolution, case)
        return jax.grad(lambda at: inner(slope(at), direction))(at)

    many = jax.tree.map(lambda x: jnp.stack([x, x, x]), arrays(case, np.float32))
    lowered = jax.jit(jax.vmap(curvature)).trace(*many)
    text = lowered.lower(lowering_platforms=(platform,)).as_text()
    grids = re.findall(r"grid_x = (\d+) .*?grid_y = (\d+) .*?grid_z = (\d+) ", text)
    assert len(grids) == text.count("xla.gpu.triton(")
    # The convolution, its two gradients, and the gradients of these, all victims each.
    assert len(grids) == 7 and all("3" in grid for grid in grids)
    for other in ("convolution", "dot_general", "while"):
        assert f"stablehlo.{other}" not in text
