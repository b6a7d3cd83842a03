"""Names what one attack on one victim showed.

A wrong image alone is no evidence for a defence: the optimiser may simply not have
finished. Only when the matching loss (the gradient distance, without priors) has
reached the least value that means anything, and the image is still wrong, did the
gradient fail to say which image it came from.

Where a norm layer normalises a single example in train mode, brightness and contrast of
each channel are hidden from the gradient, and many images that differ in nothing else
match it. An image that is right but for them is no evidence for a defence either; it
has an outcome of its own, judged after the best affine map per channel
(`kljax.metrics.affine_fit`).

| outcome          | gradient matched | image right   | reads as                      |
|------------------|------------------|---------------|-------------------------------|
| recovered        | any              | yes           | the gradient leaks            |
| recovered_affine | any              | up to contrast| the gradient leaks all but    |
|                  |                  |               | brightness and contrast       |
| unsolved         | no, or not known | no            | the attack failed; says       |
|                  |                  |               | nothing                       |
| ambiguous        | yes              | no            | matched but wrong: evidence   |
|                  |                  |               | for a defence only where the  |
|                  |                  |               | same cell without it is       |
|                  |                  |               | recovered                     |
| diverged         | any              | not finite    | the attack broke, or got      |
|                  |                  |               | zeros; says nothing           |

>>> numbers = {"mse": 0.04, "best_floor_mse": 0.05, "matching_loss": 1.0,
...            "loss_floor": 1e-6, "finite": True}
>>> outcome(ssim=0.5, ssim_affine=0.9, mse_affine=1e-3, best_floor_mse_affine=0.03,
...         **numbers)
'recovered_affine'
"""

import math

OUTCOMES = ("recovered", "recovered_affine", "unsolved", "ambiguous", "diverged")

# The only success threshold FedKL names: "SSIM >= 0.6", a comment in its evaluation
# code. Kept for comparison; it is a convention, not a limit of what an eye can read.
SUCCESS_SSIM = 0.6

# A recovery must beat what an attacker reaches without the gradient by more than
# luck. SSIM alone can pass on flat images; half the floor's MSE is 3 dB. Our choice.
SUCCESS_FLOOR_SHARE = 0.5

# A gradient is matched where no tensor is off by more than this share of its norm.
# Our choice; float32 gets an exact gradient's tensors to about 1e-6.
RESOLUTION = 1e-3


def success(ssim: float) -> bool:
    """Tells whether SSIM reaches FedKL's threshold of .6; NaN does not."""
    return bool(ssim >= SUCCESS_SSIM)


def loss_floor(
    loss_at_truth: float, loss_scale: float, degree: int | None = 2
) -> float:
    """Gives the matching loss at or below which the gradient counts as matched.

    max(loss_at_truth, RESOLUTION**degree * loss_scale). `loss_at_truth` is the
    objective at the true inputs (above 0 under noise or pruning); `loss_scale` is the
    objective when the faintest tensor of the gradient is missed altogether; `degree`
    says with which power of what is missed the objective falls to 0: 2 for squared
    distances and cosines, 1 for norms. A sum of both is of degree 1, which is lenient
    where the squares are the larger part. Of an objective without a known degree (None)
    nothing above loss_at_truth counts.

    Raises ValueError if a loss is not finite, the scale is negative, or the degree is
    not positive.
    """
    for name, value in (
        ("loss_at_truth", loss_at_truth),
        ("loss_scale", loss_scale),
    ):
        if not math.isfinite(value):
            raise ValueError(f"loss_floor: {name} is {value}; it must be finite")
    # A cosine distance at the truth may round to just below 0; the scale may not.
    if loss_scale < 0:
        raise ValueError(f"loss_floor: loss_scale is {loss_scale}; it must be >= 0")
    if degree is None:
        return float(loss_at_truth)
    if degree <= 0:
        raise ValueError(f"loss_floor: degree is {degree}; it must be > 0")
    return max(float(loss_at_truth), RESOLUTION**degree * float(loss_scale))


def outcome(
    *,
    ssim: float,
    mse: float,
    best_floor_mse: float,
    ssim_affine: float,
    mse_affine: float,
    best_floor_mse_affine: float,
    matching_loss: float | None,
    loss_floor: float | None,
    finite: bool,
) -> str:
    """Names the outcome of one image: one of `OUTCOMES`.

    The first that holds: diverged if ssim, mse or matching_loss is not finite;
    recovered if ssim >= .6 and mse is at most half of best_floor_mse; recovered_affine
    if the same is true of ssim_affine, mse_affine and best_floor_mse_affine, which are
    those after the best affine map per channel of guess and floors (floors must have
    the fit, too, or it would flatter the guess; its scale may be negative, so that a
    negative counts); diverged if `finite` is false (the search broke off, and the best
    image before that is no recovery); unsolved if matching_loss > loss_floor; else
    ambiguous. Without a loss (None: a closed-form attack matches nothing) a wrong image
    is unsolved, since nothing shows that the gradient was matched.

    Raises ValueError if a best_floor_mse or the loss_floor is NaN or infinite, or a
    matching_loss comes without a loss_floor.
    """
    for name, value in (
        ("best_floor_mse", best_floor_mse),
        ("best_floor_mse_affine", best_floor_mse_affine),
    ):
        if not math.isfinite(value):
            raise ValueError(f"outcome: {name} is {value}; it must be finite")
    if loss_floor is not None and not math.isfinite(loss_floor):
        raise ValueError(f"outcome: loss_floor is {loss_floor}; it must be finite")
    if matching_loss is not None and loss_floor is None:
        raise ValueError("outcome: matching_loss needs a loss_floor to be held against")
    if not (math.isfinite(ssim) and math.isfinite(mse)):
        return "diverged"
    return judge(
        right=_is_right(ssim, mse, best_floor_mse),
        nearly=_is_right(ssim_affine, mse_affine, best_floor_mse_affine),
        matching_loss=matching_loss,
        loss_floor=loss_floor,
        finite=finite,
    )


def judge(
    *,
    right: bool,
    nearly: bool = False,
    matching_loss: float | None,
    loss_floor: float | None,
    finite: bool,
) -> str:
    """Names the outcome of an input of any kind, once it is known whether it is right.

    Args:
      right: the input itself.
      nearly: up to what its kind of network hides.
      matching_loss, loss_floor, finite: see `outcome`.
    """
    if matching_loss is not None and not math.isfinite(matching_loss):
        return "diverged"
    if right:
        return "recovered"
    if nearly:
        return "recovered_affine"
    if not finite:
        return "diverged"
    if matching_loss is None or matching_loss > loss_floor:
        return "unsolved"
    return "ambiguous"


def _is_right(ssim: float, mse: float, best_floor_mse: float) -> bool:
    return success(ssim) and mse <= SUCCESS_FLOOR_SHARE * best_floor_mse
