"""The product forms of convolution against XLA's own, up to second derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from toys import quick_jit

from kljax.models import convolution as forms
from kljax.models.convolution import (
    CHANNELS_LAST,
    CONVOLUTIONS,
    fastest_convolution,
    lax_convolution,
    matmul_convolution,
    winograd_convolution,
)

# name: image [H, W], kernel [kh, kw], strides, padding, dilation of the kernel
CASES = {
    "same": ((5, 6), (3, 3), (1, 1), "SAME", None),
    "same strided": ((7, 6), (3, 4), (2, 3), "SAME", (1, 1)),
    "same lower": ((6, 6), (4, 2), (2, 2), "SAME_LOWER", None),
    "valid, stride skips the rest": ((8, 9), (1, 3), (3, 3), "VALID", None),
    "lenet": ((8, 8), (5, 5), (2, 2), ((2, 2), (2, 2)), None),
    "dilated": ((8, 7), (3, 2), (1, 1), "SAME", (2, 3)),
    "all at once": ((9, 8), (2, 3), (2, 1), ((1, 0), (2, 2)), (3, 1)),
}
COVERED = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def arrays(case, dtype=np.float64):
    """Images [2, H, W, 2], kernel [kh, kw, 2, 3] and one direction for each."""
    generator = np.random.default_rng(len(str(case)))
    shapes = ((2, *case[0], 2), (*case[1], 2, 3))
    draws = [generator.standard_normal(shape) for shape in (*shapes, *shapes)]
    images, kernel, *directions = (jnp.asarray(draw, dtype) for draw in draws)
    return (images, kernel), tuple(directions)


def energy(convolution, case):
    """A scalar function of images and kernel that is curved in both."""
    _, _, strides, padding, dilation = case

    def function(images, kernel):
        out = convolution(
            images,
            kernel,
            strides,
            padding,
            rhs_dilation=dilation,
            dimension_numbers=lax.conv_dimension_numbers(
                images.shape, kernel.shape, CHANNELS_LAST
            ),
        )
        return jnp.sum(jnp.sin(out)), out

    return function


def derivatives(convolution, case):
    """Computes output, gradient and a Hessian-vector product in one compilation."""
    function = energy(convolution, case)

    @quick_jit
    def compute(at, direction):
        def gradient(at):
            return jax.grad(lambda at: function(*at)[0])(at)

        grads, curvature = jax.jvp(gradient, (at,), (direction,))
        return function(*at)[1], grads, curvature

    return compute


@COVERED
def test_value_gradient_and_curvature_equal_lax(case):
    with jax.enable_x64(True):
        at, direction = arrays(case)
        fast = derivatives(matmul_convolution, case)(at, direction)
        slow = derivatives(lax_convolution, case)(at, direction)
        assert fast[0].dtype == jnp.float64
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11),
            fast,
            slow,
        )


# name: image [H, W], padding of a 3x3 kernel
WINOGRAD_CASES = {
    "whole tiles": ((8, 4), "SAME"),
    "parts of tiles": ((5, 6), ((1, 1), (1, 1))),
    "unequal padding": ((6, 7), ((0, 2), (1, 0))),
    "valid": ((9, 6), "VALID"),
}


@pytest.fixture
def no_size_is_too_small(monkeypatch):
    monkeypatch.setattr(forms, "WIDE", 1)
    monkeypatch.setattr(forms, "LARGE", 1)


@pytest.mark.usefixtures("no_size_is_too_small")
@pytest.mark.parametrize("case", WINOGRAD_CASES.values(), ids=WINOGRAD_CASES)
def test_winograd_has_the_values_and_derivatives_of_lax(case):
    case = (case[0], (3, 3), (1, 1), case[1], None)
    with jax.enable_x64(True):
        at, direction = arrays(case)
        fast = derivatives(winograd_convolution, case)(at, direction)
        slow = derivatives(lax_convolution, case)(at, direction)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10),
            fast,
            slow,
        )


def products(convolution, images, kernel, **options):
    """Shapes of the results of the matrix products that a convolution makes."""
    options = {"dimension_numbers": CHANNELS_LAST} | options
    jaxpr = jax.make_jaxpr(lambda x, k: convolution(x, k, (1, 1), "SAME", **options))(
        jnp.zeros(images), jnp.zeros(kernel)
    )
    found = [e for e in jaxpr.eqns if str(e.primitive) == "dot_general"]
    return [e.outvars[0].aval.shape for e in found]


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_without_dimension_numbers_the_layout_is_that_of_lax(name):
    """Channels second: 2 of images of 5x5, where channels last would be 5 of 2x5."""
    images, kernel = jnp.ones((1, 2, 5, 5)), jnp.ones((3, 2, 3, 3))
    out = CONVOLUTIONS[name](images, kernel, (1, 1), "VALID")
    assert out.shape == (1, 3, 3, 3) and (out == 18).all()


def test_winograd_takes_wide_kernels_and_large_images():
    """A tile of 6x6 numbers for 4x4 pixels: 64 tiles in an image of 32x32."""
    made = products(winograd_convolution, (1, 32, 32, 64), (3, 3, 64, 80))
    assert made == [(36, 64, 80)]


@pytest.mark.parametrize(
    ("images", "kernel", "options"),
    [
        ((1, 32, 32, 63), (3, 3, 63, 64), {}),
        ((1, 32, 32, 64), (3, 3, 64, 63), {}),
        ((1, 32, 31, 64), (3, 3, 64, 64), {}),
        ((1, 32, 32, 64), (5, 5, 64, 64), {}),
        ((1, 40, 40, 64), (3, 3, 64, 64), {"rhs_dilation": (2, 2)}),
    ],
    ids=["few channels", "few features", "few pixels", "large kernel", "dilated"],
)
def test_the_rest_is_the_plain_product(images, kernel, options):
    made = products(winograd_convolution, images, kernel, **options)
    assert made == products(matmul_convolution, images, kernel, **options)
    assert [len(shape) for shape in made] == [2]


@pytest.mark.slow
def test_winograd_in_float32_is_near_the_plain_form():
    generator = np.random.default_rng(0)
    # Images as after a ReLU: what does not cancel shows errors of the mapping best.
    images = np.abs(generator.standard_normal((1, 32, 32, 128)))
    kernel = generator.standard_normal((3, 3, 128, 64)) / 34
    options = {"dimension_numbers": CHANNELS_LAST, "precision": "highest"}
    with jax.enable_x64(True):
        exact = lax_convolution(jnp.asarray(images), kernel, (1, 1), "SAME", **options)
        exact = np.asarray(exact)
    at = jnp.asarray(images, jnp.float32), jnp.asarray(kernel, jnp.float32)
    error = {
        name: np.sqrt(
            np.mean((np.asarray(form(*at, (1, 1), "SAME", **options)) - exact) ** 2)
        )
        for name, form in CONVOLUTIONS.items()
    }
    spread = np.sqrt(np.mean(exact**2))
    assert error["matmul"] < 2e-6 * spread and error["winograd"] < 6e-6 * spread


def test_derivatives_equal_finite_differences():
    with jax.enable_x64(True):
        case = CASES["all at once"]
        at, direction = arrays(case)
        compute = derivatives(matmul_convolution, case)
        step = 1e-5
        ahead, behind = (
            compute(
                jax.tree.map(lambda a, d, s=s: a + s * step * d, at, direction),
                direction,
            )
            for s in (1, -1)
        )
        _, grads, curvature = compute(at, direction)
        energies = [np.sum(np.sin(out)) for out, _, _ in (ahead, behind)]
        slope = sum(np.vdot(g, d) for g, d in zip(grads, direction, strict=True))
        assert (energies[0] - energies[1]) / (2 * step) == pytest.approx(slope, 1e-7)
        for a, b, c in zip(ahead[1], behind[1], curvature, strict=True):
            np.testing.assert_allclose((a - b) / (2 * step), c, rtol=1e-6, atol=1e-7)


def test_float32_agrees_to_rounding():
    at, _ = arrays(CASES["lenet"], np.float32)
    fast, slow = (
        energy(convolution, CASES["lenet"])(*at)[1]
        for convolution in (matmul_convolution, lax_convolution)
    )
    assert fast.dtype == slow.dtype == jnp.float32
    np.testing.assert_allclose(fast, slow, atol=2e-5)


def primitives(function, *args):
    return {str(e.primitive) for e in jax.make_jaxpr(function)(*args).eqns}


@COVERED
def test_covered_cases_contain_no_convolution(case):
    at, _ = arrays(case, np.float32)
    used = primitives(energy(matmul_convolution, case), *at)
    assert "conv_general_dilated" not in used and "dot_general" in used


FALLBACKS = {
    "groups": ((1, 5, 5, 4), (3, 3, 2, 6), {"feature_group_count": 2}),
    "batch groups": ((2, 4, 4, 2), (3, 3, 2, 4), {"batch_group_count": 2}),
    "one dimension": ((1, 5, 2), (3, 2, 3), {}),
    "three dimensions": ((1, 3, 3, 3, 2), (2, 2, 2, 2, 3), {}),
    "input dilation": ((1, 4, 4, 2), (3, 3, 2, 3), {"lhs_dilation": (2, 1)}),
}


@pytest.mark.parametrize(
    ("shape", "kernel_shape", "options"), FALLBACKS.values(), ids=FALLBACKS
)
def test_what_is_not_covered_is_passed_on(shape, kernel_shape, options):
    ranks = len(shape) - 2
    letters = "DHW"[-ranks:]
    layout = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    arguments = ((1,) * ranks, ((1, 1),) * ranks)

    def jaxpr(convolution):
        return str(
            jax.make_jaxpr(
                lambda x, k: convolution(
                    x, k, *arguments, dimension_numbers=layout, **options
                )
            )(jnp.zeros(shape), jnp.zeros(kernel_shape))
        )

    assert "conv_general_dilated" in jaxpr(matmul_convolution)
    assert jaxpr(matmul_convolution) == jaxpr(lax.conv_general_dilated)


def test_per_victim_weight_gradients_stay_matrix_products():
    """What the product form is for: no grouped convolution under vmap."""
    case = CASES["same"]
    at, _ = arrays(case, np.float32)
    many = jax.tree.map(lambda a: jnp.stack([a, a]), at)

    def kernel_gradients(convolution):
        function = energy(convolution, case)
        return jax.vmap(jax.grad(lambda x, k: function(x, k)[0], argnums=1))

    assert "conv_general_dilated" in primitives(
        kernel_gradients(lax_convolution), *many
    )
    assert "conv_general_dilated" not in primitives(
        kernel_gradients(matmul_convolution), *many
    )


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_are_found_by_name(name, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert fastest_convolution(name) is CONVOLUTIONS[name]
    assert fastest_convolution("auto") in CONVOLUTIONS.values()


@pytest.mark.parametrize("backend", ["cpu", "tpu"])
def test_a_kernel_for_a_gpu_is_refused_elsewhere(backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    with pytest.raises(
        ValueError, match=f"'implicit' is a kernel.*'{backend}'.*'auto'"
    ):
        fastest_convolution("implicit")
    assert fastest_convolution("auto") in CONVOLUTIONS.values()


def test_unknown_convolution_names_the_legal_ones():
    with pytest.raises(
        ValueError, match="'im2col'.*'auto'.*'matmul', 'bilinear', 'winograd', 'lax'"
    ):
        fastest_convolution("im2col")


# name: image shape, kernel shape, further arguments, all of which lax refuses
REFUSED = {
    "one channel for three": ((2, 5, 5, 1), (3, 3, 3, 4), {}),
    "three channels for one": ((3, 5, 5, 3), (3, 3, 1, 4), {}),
    "groups that do not divide": ((2, 5, 5, 3), (3, 3, 1, 4), {"groups": 2}),
    "features that no group has": ((2, 5, 5, 4), (3, 3, 2, 3), {"groups": 2}),
    "a rank of its own": ((5, 5, 3), (3, 3, 3, 4), {}),
    "another stride for each of three axes": (
        (2, 5, 5, 3),
        (3, 3, 3, 4),
        {"strides": (1, 1, 1)},
    ),
    "dilation of nothing": ((2, 5, 5, 3), (3, 3, 3, 4), {"dilation": (0, 1)}),
    "integers by floats": ((2, 5, 5, 3), (3, 3, 3, 4), {"dtype": np.int32}),
}


@pytest.mark.usefixtures("no_size_is_too_small")
@pytest.mark.parametrize("form", CONVOLUTIONS)
@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_every_form_refuses_what_lax_refuses(form, case):
    image, kernel, options = case

    def convolve(convolution):
        return convolution(
            jnp.zeros(image, options.get("dtype", np.float32)),
            jnp.zeros(kernel),
            options.get("strides", (1, 1)),
            "SAME",
            rhs_dilation=options.get("dilation"),
            dimension_numbers=CHANNELS_LAST,
            feature_group_count=options.get("groups", 1),
        )

    with pytest.raises((TypeError, ValueError)) as wanted:
        convolve(lax.conv_general_dilated)
    with pytest.raises(wanted.type) as found:
        convolve(CONVOLUTIONS[form])
    assert str(found.value) == str(wanted.value)


@pytest.mark.parametrize("form", CONVOLUTIONS)
@pytest.mark.parametrize("image", [(2, 2, 5, 3), (0, 5, 5, 3)], ids=("small", "none"))
def test_every_form_gives_nothing_where_lax_does(form, image):
    def convolve(convolution):
        kernel = jnp.ones((3, 3, 3, 4))
        return convolution(
            jnp.ones(image), kernel, (1, 1), "VALID", dimension_numbers=CHANNELS_LAST
        )

    assert convolve(CONVOLUTIONS[form]).shape == convolve(lax_convolution).shape
