"""The three bilinear maps against XLA's own convolution, up to third derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

from kljax.models.bilinear import (
    FEW,
    MANY,
    convolve,
    image_gradient,
    kernel_gradient,
)
from kljax.models.convolution import bilinear_convolution, lax_convolution
from kljax.models.convolution_maps import CHANNELS_LAST, Geometry

# name: images [B, H, W, C], kernel [kh, kw], features, strides, padding
CASES = {
    "lenet, one example": ((1, 8, 8, 3), (5, 5), 12, (2, 2), ((2, 2), (2, 2))),
    "few channels, many examples": ((10, 6, 6, 12), (3, 3), 12, (1, 1), "SAME"),
    "columns that no group divides": ((2, 5, 7, 4), (3, 3), 5, (1, 1), "SAME"),
    "wide": ((MANY, 4, 4, FEW + 1), (3, 3), 2, (1, 1), "SAME"),
    "more examples than channels": ((FEW + 1, 4, 4, 2), (3, 3), 3, (1, 1), "SAME"),
    "strides and sides of their own": ((2, 7, 6, 2), (3, 4), 3, (2, 3), "SAME"),
    "stride of rows alone": ((1, 6, 6, 1), (4, 2), 9, (2, 1), "SAME_LOWER"),
    "stride skips the rest": ((2, 8, 9, 2), (3, 3), 3, (2, 2), "VALID"),
    "odd side, even stride": ((9, 7, 9, 4), (5, 5), 5, (2, 2), ((2, 2), (1, 2))),
    "unequal padding": ((9, 6, 6, 4), (3, 3), 5, (1, 1), ((0, 2), (2, 0))),
    "three colours, more features than few": ((1, 4, 6, 3), (3, 3), 20, (1, 1), "SAME"),
    "two blocks of examples, strides": (
        (2 * MANY, 7, 8, 5),
        (3, 3),
        20,
        (2, 2),
        "SAME",
    ),
    "blocks of a third": ((3 * (MANY + 1), 5, 6, 3), (3, 3), FEW, (1, 1), "VALID"),
    "no blocks fit": ((2 * MANY + 1, 5, 6, 3), (2, 2), 6, (1, 1), "SAME"),
    "many examples, few features": ((FEW + 1, 7, 8, 2), (3, 3), 6, (1, 1), "SAME"),
    "one colour, strides": ((2, 7, 6, 1), (3, 3), 4, (2, 2), "SAME"),
    "strided columns of colours": ((1, 5, 9, 3), (2, 5), 13, (1, 2), ((1, 0), (3, 0))),
    "mostly zeros": ((2, 9, 9, 3), (4, 4), 4, (3, 3), "SAME"),
}


def arrays(case):
    """Images, kernel and one direction for each."""
    images, kernel, features, _, _ = case
    generator = np.random.default_rng(len(str(case)))
    shapes = images, (*kernel, images[-1], features)
    draws = [generator.standard_normal(shape) for shape in (*shapes, *shapes)]
    images, kernel, *directions = map(jnp.asarray, draws)
    return (images, kernel), tuple(directions)


def convolved(convolution, case):
    def function(images, kernel):
        return convolution(images, kernel, *case[3:], dimension_numbers=CHANNELS_LAST)

    return function


def gradients(convolution, case):
    function = convolved(convolution, case)
    return jax.grad(lambda *at: jnp.sum(jnp.sin(function(*at))), (0, 1))


def inner(left, right):
    return sum(map(jnp.vdot, left, right))


def derivatives(convolution, case):
    """Makes the value and first to third derivatives, in both modes, one program."""
    function = convolved(convolution, case)

    def gradient(at):
        return jax.grad(lambda at: jnp.sum(jnp.sin(0.3 * function(*at))))(at)

    @quick_jit
    def compute(at, direction):
        def curvature(at):
            return jax.grad(lambda at: inner(gradient(at), direction))(at)

        third = jax.grad(lambda at: sum(jnp.sum(jnp.sin(x)) for x in curvature(at)))
        forward = jax.jvp(gradient, (at,), (direction,))[1]
        return function(*at), gradient(at), curvature(at), forward, third(at)

    return compute


def used(function, *args):
    return {str(e.primitive) for e in jax.make_jaxpr(function)(*args).eqns}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_three_derivatives_equal_those_of_lax(case):
    with jax.enable_x64(True):
        at, direction = arrays(case)
        assert "convolve" in used(convolved(bilinear_convolution, case), *at)
        fast, slow = (
            derivatives(form, case)(at, direction)
            for form in (bilinear_convolution, lax_convolution)
        )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), fast, slow
    )


def test_nothing_but_the_three_maps_is_differentiated():
    """However often: no slices, no pads, no other convolution."""
    case = CASES["few channels, many examples"]
    at, direction = arrays(case)

    def gradient(at):
        return jax.grad(
            lambda at: inner(
                [convolved(bilinear_convolution, case)(*at)], [jnp.ones((10, 6, 6, 12))]
            )
        )(at)

    def curvature(at):
        return jax.grad(lambda at: inner(gradient(at), gradient(at)))(at)

    names = used(curvature, at)
    assert {"image_gradient", "kernel_gradient", "convolve"} <= names
    assert not names & {"slice", "pad", "concatenate", "conv_general_dilated"}


# Which of images and kernel each of three victims has of its own.
AXES = {"both": (0, 0), "images": (0, None), "kernels": (None, 0)}


@pytest.mark.parametrize("axes", AXES.values(), ids=AXES)
def test_victims_together_are_victims_one_by_one(axes):
    with jax.enable_x64(True):
        compare_victims(CASES["lenet, one example"], axes)


def compare_victims(case, axes):
    at, _ = arrays(case)
    factors = jnp.array([1.0, -0.5, 2.0])
    many = tuple(
        x if axis is None else jnp.stack([f * x for f in factors])
        for x, axis in zip(at, axes, strict=True)
    )

    both = gradients(bilinear_convolution, case)
    together = quick_jit(jax.vmap(both, axes))(*many)
    for i in range(len(factors)):
        one = (x if axis is None else x[i] for x, axis in zip(many, axes, strict=True))
        for a, b in zip(together, both(*one), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-9, atol=1e-9)


# name: image [H, W], kernel, strides, dilation
OTHERS = {
    "windows that do not overlap": ((6, 6), (2, 2), (2, 2), (1, 1)),
    "one pixel": ((6, 6), (1, 1), (1, 1), (1, 1)),
    "a kernel larger than the image": ((2, 6), (3, 3), (1, 1), (1, 1)),
    "dilated": ((6, 6), (3, 3), (1, 1), (2, 1)),
}


@pytest.mark.parametrize("case", OTHERS.values(), ids=OTHERS)
def test_the_rest_is_the_plain_product(case):
    image, kernel, strides, dilation = case

    def function(images, kernel):
        return bilinear_convolution(
            images,
            kernel,
            strides,
            "SAME",
            rhs_dilation=dilation,
            dimension_numbers=CHANNELS_LAST,
        )

    names = used(function, jnp.zeros((1, *image, 3)), jnp.zeros((*kernel, 3, 4)))
    assert "dot_general" in names and "convolve" not in names


def count_compilations(call, shapes):
    """Counts what each of several eager calls compiles, by the shape of its images."""
    counts = []

    def count(event, duration, **_):
        del duration
        counts[-1] += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        for shape in shapes:
            images = np.ones(shape, np.float32)
            geometry = Geometry((1, 1), ((1, 1), (1, 1)), shape[-3:-1], (3, 3))
            counts.append(0)
            call(images, geometry)
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    return counts


# Sides that no other test has: what is compiled stays for the whole process.
def test_eager_calls_share_what_is_compiled():
    """The second call of one geometry compiles nothing; another geometry does."""
    kernel = jnp.ones((3, 3, 3, 5))

    def call(images, geometry):
        grads = convolve(images, kernel, geometry)
        kernel_gradient(images, grads, geometry)
        image_gradient(grads, kernel, geometry)

    shapes = (2, 6, 10, 3), (2, 6, 10, 3), (2, 6, 11, 3)
    assert count_compilations(call, shapes) == [3, 0, 3]


def test_eager_calls_over_victims_share_what_is_compiled():
    """The same of `vmap` over victims, each with a kernel of its own."""
    kernels = jnp.ones((4, 3, 3, 3, 5))

    def call(images, geometry):
        jax.vmap(lambda x, kernel: convolve(x, kernel, geometry))(images, kernels)

    shapes = (4, 2, 7, 10, 3), (4, 2, 7, 10, 3), (4, 2, 7, 11, 3)
    first, again, other = count_compilations(call, shapes)
    assert first > 0 and again == 0 and other > 0


def test_jacobians_forward_equal_those_of_lax():
    case = ((1, 4, 4, 1), (3, 3), 2, (1, 1), "SAME")
    with jax.enable_x64(True):
        at, _ = arrays(case)
        fast, slow = (
            quick_jit(jax.jacfwd(convolved(form, case), (0, 1)))(*at)
            for form in (bilinear_convolution, lax_convolution)
        )
    # [B, h, w, F] and the shape of images, then of the kernel.
    assert [x.shape for x in fast] == [(1, 4, 4, 2, *x.shape) for x in at]
    for a, b in zip(fast, slow, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_two_axes_of_victims_equal_those_of_lax():
    """Images have both, at different places, and kernels the outer one alone."""
    case = CASES["lenet, one example"]
    factors = jnp.array([[1.0, -0.5, 2.0], [0.3, 1.5, -1.0]])
    with jax.enable_x64(True):
        (image, kernel), _ = arrays(case)
        images = jnp.einsum("ij,bhwc->bihwjc", factors, image)
        kernels = jnp.stack([kernel, -0.7 * kernel])
        fast, slow = (
            quick_jit(jax.vmap(jax.vmap(gradients(form, case), (3, None)), (1, 0)))(
                images, kernels
            )
            for form in (bilinear_convolution, lax_convolution)
        )
    assert [x.shape[:2] for x in fast] == [(2, 3)] * 2
    for a, b in zip(fast, slow, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


# A result of 8 bits is rounded by half a unit in its last place, at most 2**-8 of it.
# The gradient in a kernel adds up parts that were rounded before (two, in the second
# case). So: a whole unit of the largest entry; 0.53 of it was the most that was seen.
BFLOAT16 = 2.0**-7


@pytest.mark.parametrize("name", ["lenet, one example", "few channels, many examples"])
def test_bfloat16_is_right_to_its_rounding(name):
    case = CASES[name]
    with jax.enable_x64(True):
        at, _ = arrays(case)
        small = tuple(x.astype(jnp.bfloat16) for x in at)
        wide = tuple(x.astype(jnp.float64) for x in small)
        y = convolved(bilinear_convolution, case)(*small)
        found = (y, *jax.vjp(convolved(bilinear_convolution, case), *small)[1](y))
        assert {x.dtype for x in found} == {jnp.dtype(jnp.bfloat16)}
        cotangent = y.astype(jnp.float64)
        expected, back = jax.vjp(convolved(lax_convolution, case), *wide)
        expected = (expected, *back(cotangent))
        found = [np.asarray(x, np.float64) for x in found]
        expected = [np.asarray(x) for x in expected]
    for a, b in zip(found, expected, strict=True):
        scale = np.abs(b).max()
        np.testing.assert_allclose(a, b, rtol=0, atol=BFLOAT16 * scale)


def test_larger_precision_is_kept_for_the_derivatives():
    case = CASES["lenet, one example"]
    at, _ = arrays(case)
    with jax.default_matmul_precision("highest"):
        jaxpr = jax.make_jaxpr(
            jax.grad(lambda *at: jnp.sum(convolved(bilinear_convolution, case)(*at)))
        )(*at)
    found = [
        e.params["geometry"].precision for e in jaxpr.eqns if "geometry" in e.params
    ]
    assert found and set(found) == {"highest"}


@pytest.mark.parametrize(
    ("images", "features", "kernel"),
    [
        # Three colours: 36 features at least, of a number of columns that divides all.
        ((1, 32, 32, 3), 6, "5x11x3x42"),
        ((1, 20, 20, 3), 12, "5x8x3x48"),
        ((1, 20, 20, 3), 20, "5x6x3x40"),
        ((1, 20, 20, 3), 36, "5x5x3x36"),
        # Elsewhere 24, and none side by side where channels or features are enough.
        ((1, 14, 14, 6), 16, "5x6x6x32"),
        ((1, 14, 14, 6), 20, "5x5x6x20"),
        ((1, 14, 14, FEW + 1), 6, f"5x5x{FEW + 1}x6"),
        # Seven columns, of which two or three are not a divisor.
        ((1, 11, 11, 12), 12, "5x5x12x12"),
    ],
)
def test_columns_side_by_side_are_as_many_as_the_library_wants(
    images, features, kernel
):
    geometry = Geometry((1, 1), ((0, 0), (0, 0)), images[1:3], (5, 5))
    filters = np.ones((5, 5, images[-1], features), np.float32)
    program = jax.jit(lambda x, k: convolve(x, k, geometry)).lower(
        np.ones(images, np.float32), filters
    )
    line = next(x for x in program.as_text().splitlines() if "convolution(" in x)
    assert f"tensor<{kernel}xf32>" in line
