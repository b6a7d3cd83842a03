"""Compares one guessed image with the true one, pixel by pixel and by structure.

Letters: H rows, W columns, C channels. Every image is [H, W, C], floating, in [0, 1].

A metric takes (guess [H, W, C], truth [H, W, C]) and gives one float32 scalar. All are
pure, may be jitted, and map over a victim axis with `jax.vmap`. The truth is used as
it is; the guess is first made publishable: **clipped to [0, 1]**. The two
transformations (`stretch`, `affine_fit`) look at the guess before clipping, since
bringing it into range is their purpose.

Edge cases, the same for every metric:

| guess                          | result                                       |
|--------------------------------|----------------------------------------------|
| equal to the truth             | mse 0, psnr +inf dB, ssim 1, psnr_fedkl +inf |
| a pixel that is NaN or +-inf   | NaN (clipping an inf would hide a divergence) |
| integer pixels                 | TypeError (0..255 read as 0..1 is nonsense)  |
| another shape than the truth   | ValueError                                   |

>>> import jax.numpy as jnp
>>> truth = jnp.linspace(0.0, 1.0, 192).reshape(8, 8, 3)
>>> round(float(psnr(truth + 0.1 * (truth < 0.5), truth)), 1)
23.0
>>> round(float(ssim(truth, truth)), 4)
1.0
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

SSIM_WINDOW = 7
_SSIM_LUMINANCE = 0.01**2  # Wang et al. 2004, K1 = .01 at data range 1
_SSIM_CONTRAST = 0.03**2  # Wang et al. 2004, K2 = .03 at data range 1


def mse(guess: ArrayLike, truth: ArrayLike) -> jax.Array:
    """Averages the squared pixel error of guess and truth [H, W, C]; in [0, 1]."""
    guess, truth = _pair(guess, truth)
    return _mean(jnp.square(_publish(guess) - truth))


def psnr(guess: ArrayLike, truth: ArrayLike) -> jax.Array:
    """Gives the peak signal-to-noise ratio in dB, -10 log10(mse), for data range 1.

    At mse 0 it is +inf, as in scikit-image; summarise victims by the median or the
    success rate, since one exact recovery makes a mean infinite.
    """
    return -10.0 * jnp.log10(mse(guess, truth))


@jax.jit
def ssim(guess: ArrayLike, truth: ArrayLike) -> jax.Array:
    """Compares local means, variances and covariance; 1 for equal images, in [-1, 1].

    The default variant of scikit-image's `structural_similarity`: uniform 7x7 window,
    sample covariance (divided by 48), data range 1, only windows that lie inside the
    image, and the mean over windows and channels. FedKL scores with the same variant.

    Raises ValueError if H or W is below 7.
    Reference: Wang et al., IEEE TIP 2004; skimage/metrics/_structural_similarity.py.
    """
    guess, truth = _pair(guess, truth)
    for letter, side in zip("HW", guess.shape, strict=False):
        if side < SSIM_WINDOW:
            raise ValueError(
                f"ssim: {letter} is {side} in an image of shape {guess.shape}; the "
                f"window needs at least {SSIM_WINDOW}"
            )
    mean_x, mean_y, var_x, var_y, cov = _window_moments(_publish(guess), truth)
    luminance = (2 * mean_x * mean_y + _SSIM_LUMINANCE) / (
        mean_x**2 + mean_y**2 + _SSIM_LUMINANCE
    )
    structure = (2 * cov + _SSIM_CONTRAST) / (var_x + var_y + _SSIM_CONTRAST)
    return _mean(luminance * structure)


def rmse255(guess: ArrayLike, truth: ArrayLike) -> jax.Array:
    """Gives the root mean squared error on the 0..255 scale.

    FedKL prints this under the name MSE. Differs from its code, which rounds to bytes
    without clipping, so that pixels outside [0, 1] wrap around: here they are clipped.
    """
    return 255.0 * jnp.sqrt(mse(guess, truth))


def psnr_fedkl(guess: ArrayLike, truth: ArrayLike) -> jax.Array:
    """Gives FedKL's own "PSNR", 10 log10(255**2 / rmse255): not a PSNR.

    The root was put where the mean square belongs, so that
    psnr_fedkl = (psnr + 48.13) / 2, and white against black scores 24.07 "dB". For use
    beside the paper's tables only. Source: FedKL's published evaluation code.
    """
    return 20.0 * jnp.log10(255.0) - 10.0 * jnp.log10(rmse255(guess, truth))


def relative_leakage(
    ssim_reconstruction: ArrayLike, ssim_prior: ArrayLike
) -> jax.Array:
    """Gives RDLV: by which share a reconstruction is nearer than a prior image.

    (ssim_reconstruction - ssim_prior) / ssim_prior, both against the truth. 0 where an
    attack gained nothing on what it started from. NaN where the prior's is not
    positive: a share of it says nothing then. The paper reports the largest over
    reconstructions.

    Reference: Hatamizadeh et al., "Do Gradient Inversion Attacks Make Federated
    Learning Unsafe?" (IEEE TMI 2023), equation 10.
    """
    found, prior = jnp.asarray(ssim_reconstruction), jnp.asarray(ssim_prior)
    positive = prior > 0
    gain = (found - prior) / jnp.where(positive, prior, 1.0)
    return jnp.where(positive, gain, jnp.nan)


def stretch(image: ArrayLike) -> jax.Array:
    """Maps the smallest value of image [H, W, C] to 0 and the largest to 1.

    One map for all channels, so that colours keep their relation. Uses nothing but the
    image: an attacker can do it. A constant image has no contrast to stretch and is
    clipped to [0, 1] instead.
    """
    image = _floating("image", image)
    low = jnp.min(image)
    span = jnp.max(image) - low
    flat = ~(span > jnp.finfo(jnp.float32).tiny)  # NaN counts as flat and stays NaN
    return jnp.where(flat, _publish(image), (image - low) / jnp.where(flat, 1.0, span))


@jax.jit
def affine_fit(guess: ArrayLike, truth: ArrayLike) -> jax.Array:
    """Replaces each channel of guess by the a * guess + b nearest to truth, clipped.

    Least squares per channel over H and W, then clipped to [0, 1]; the scale a may be
    negative. A constant channel becomes the mean of the truth's channel. This reads
    the truth: an *oracle*, an upper bound on what rescaling can add, never an attack.
    """
    guess, truth = _pair(guess, truth)
    centred = guess - _channel_mean(guess)
    size = jnp.max(jnp.abs(centred), axis=(0, 1), keepdims=True)
    # An exactly constant channel has a rounding error for a centred value, not zero.
    spread = jnp.max(guess, axis=(0, 1), keepdims=True) > jnp.min(
        guess, axis=(0, 1), keepdims=True
    )
    # Unit size first: the squares of a diverging or vanishing guess leave float32.
    unit = jnp.where(spread, centred / jnp.where(spread, size, 1.0), 0.0)
    truth_mean = _channel_mean(truth)
    power = jnp.sum(unit**2, axis=(0, 1), keepdims=True)
    product = jnp.sum(unit * (truth - truth_mean), axis=(0, 1), keepdims=True)
    fitted = truth_mean + unit * product / jnp.where(power > 0, power, 1.0)
    finite = jnp.all(jnp.isfinite(guess), axis=(0, 1), keepdims=True)
    return _publish(jnp.where(finite, fitted, jnp.nan))


@jax.jit
def score(guess: ArrayLike, truth: ArrayLike) -> dict[str, jax.Array]:
    """Scores guess [H, W, C] against truth [H, W, C] by every metric of this file.

    Names: mse, psnr, ssim, ssim_minmax, ssim_affine_oracle, psnr_affine_oracle,
    rmse255, psnr_fedkl; each a float32 scalar, higher is better but for mse, rmse255.

    ssim_minmax is ssim(stretch(guess), truth), with the truth as it is. A model that
    normalises its input (batch norm over one image) hides brightness and contrast
    from the gradient; a guess may then be right up to an affine map, which plain ssim
    punishes. Stretching the guess is what an attacker can do and publish without the
    truth, so the number is one it reaches. Stretching the truth too would grade
    against an image nobody has, and lift low-contrast victims. The price: an exact
    guess of a truth that does not span [0, 1] scores below 1 here. Read it beside
    ssim, never instead. *_affine_oracle says what the best rescaling could give.

    Raises: as `ssim`.
    """
    fitted = affine_fit(guess, truth)
    return {
        "mse": mse(guess, truth),
        "psnr": psnr(guess, truth),
        "ssim": ssim(guess, truth),
        "ssim_minmax": ssim(stretch(guess), truth),
        "ssim_affine_oracle": ssim(fitted, truth),
        "psnr_affine_oracle": psnr(fitted, truth),
        "rmse255": rmse255(guess, truth),
        "psnr_fedkl": psnr_fedkl(guess, truth),
    }


def _floating(name: str, image: ArrayLike) -> jax.Array:
    image = jnp.asarray(image)
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise TypeError(
            f"{name} is {image.dtype}; images are floating in [0, 1] (divide bytes by "
            "255)"
        )
    if image.ndim != 3:
        raise ValueError(
            f"{name} has shape {image.shape}; one image is [H, W, C] (use jax.vmap for "
            "several)"
        )
    return image.astype(jnp.float32)


def _pair(guess: ArrayLike, truth: ArrayLike) -> tuple[jax.Array, jax.Array]:
    guess, truth = _floating("guess", guess), _floating("truth", truth)
    if guess.shape != truth.shape:
        raise ValueError(
            f"guess has shape {guess.shape}, truth has shape {truth.shape}; they must "
            "be equal"
        )
    return guess, truth


def _publish(image: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(image), jnp.clip(image, 0.0, 1.0), jnp.nan)


def _mean(values: jax.Array) -> jax.Array:
    # Twice: a float32 sum of thousands of nearly equal values drifts by up to 1e-4 of
    # itself where it is taken one by one, and the second pass takes that back.
    first = jnp.mean(values)
    return first + jnp.mean(values - first)


def _channel_mean(image: jax.Array) -> jax.Array:
    first = jnp.mean(image, axis=(0, 1), keepdims=True)
    return first + jnp.mean(image - first, axis=(0, 1), keepdims=True)


def _window_moments(x: jax.Array, y: jax.Array) -> tuple[jax.Array, ...]:
    """Gives means, sample variances and covariance of all windows [H-6, W-6, C].

    First down the rows, then along the columns, joining the spread within columns and
    the spread between them. Only differences are squared: E[x^2] - E[x]^2 loses 1e-4
    of an ssim in float32 on flat bright regions.
    """
    mean_x, mean_y = x, y
    scatter_xx = scatter_yy = scatter_xy = jnp.zeros_like(x)
    points = 1
    for axis in (0, 1):
        parts_x, parts_y = _shifted(mean_x, axis), _shifted(mean_y, axis)
        mean_x, mean_y = _total(parts_x) / SSIM_WINDOW, _total(parts_y) / SSIM_WINDOW
        off_x = [part - mean_x for part in parts_x]
        off_y = [part - mean_y for part in parts_y]
        scatter_xx = _join(scatter_xx, off_x, off_x, points, axis)
        scatter_yy = _join(scatter_yy, off_y, off_y, points, axis)
        scatter_xy = _join(scatter_xy, off_x, off_y, points, axis)
        points *= SSIM_WINDOW
    scatters = (scatter_xx, scatter_yy, scatter_xy)
    return (mean_x, mean_y, *(scatter / (points - 1) for scatter in scatters))


def _join(
    scatter: jax.Array,
    off_x: list[jax.Array],
    off_y: list[jax.Array],
    points: int,
    axis: int,
) -> jax.Array:
    between = _total([x * y for x, y in zip(off_x, off_y, strict=True)])
    return _total(_shifted(scatter, axis)) + points * between


def _shifted(values: jax.Array, axis: int) -> list[jax.Array]:
    """Lists the 7 shifted views of values [H, W, C] along axis."""
    length = values.shape[axis] - SSIM_WINDOW + 1
    return [
        lax.slice_in_dim(values, start, start + length, axis=axis)
        for start in range(SSIM_WINDOW)
    ]


def _total(parts: list[jax.Array]) -> jax.Array:
    # One by one: reduced over a stack, XLA's CPU code is ten times slower (jax 0.10).
    return functools.reduce(jnp.add, parts)
