"""Images as a kind of input: scores in blocks, floors, and when one is recovered."""

import warnings

import jax
import numpy as np

from kljax import metrics
from kljax.core.folders import LeftOut, optional
from kljax.core.inputs import InputSpec
from kljax.metrics.kinds.kind import Having, Kind, Row, Scores

PIXELS_PER_CALL = 2**13  # of images, in one call of the compiled function
_score = jax.jit(jax.vmap(metrics.score))


def score_images(guesses: np.ndarray, truths: np.ndarray, spec: InputSpec) -> Scores:
    """Scores guesses [n, H, W, C] against truths, see `kljax.metrics.score`.

    LPIPS, which is an extra, is among the scores where it can be computed.
    """
    del spec
    table = _score_blocks(guesses, truths)
    ratio = table["psnr_affine_oracle"].astype(np.float64)
    table["mse_affine_oracle"] = 10 ** (-ratio / 10)  # data range 1
    if metrics.lpips_available():
        table |= _lpips(guesses, truths)
    return table


def _lpips(guesses: np.ndarray, truths: np.ndarray) -> Scores:
    """Computes LPIPS, which is optional; leaves out, with a warning, what fails."""
    found, channels = {}, truths.shape[-1]
    if channels not in metrics.LPIPS_CHANNELS:
        words = (
            f"LPIPS is left out: it compares images of 1 or 3 channels, not {channels}"
        )
        warnings.warn(words, LeftOut, stacklevel=2)
        return found
    for network in ("alex", "vgg"):
        column = f"lpips_{network}"
        with optional(column):  # other scores are not lost for it
            found[column] = metrics.lpips_distances(guesses, truths, network)
    return found


def _score_blocks(guesses: np.ndarray, truths: np.ndarray) -> Scores:
    count, height, width, _ = guesses.shape
    size = max(1, PIXELS_PER_CALL // (height * width))
    calls = []
    for start in range(0, count, size):
        # Filled up with the last pair: one shape, one compilation.
        places = np.minimum(np.arange(start, start + size), count - 1)
        calls.append(_score(guesses[places], truths[places]))
    return {
        name: np.concatenate([call[name] for call in calls])[:count]
        for name in calls[0]
    }


def _reference(images, labels, indices, spec: InputSpec) -> metrics.Reference:
    del spec
    return metrics.Reference(images, labels, indices)


def _best_floors(
    truths: np.ndarray,
    made: list[dict[str, np.ndarray]],
    scores: dict[str, Having],
) -> Scores:
    """Gives squared errors, as they are and after the affine fit of each floor."""
    pairs = zip(truths, made, strict=True)
    best = [metrics.best_floor_mse(truth, floors) for truth, floors in pairs]
    fitted = np.full(len(truths), np.inf)
    for having, its in scores.values():
        fitted[having] = np.minimum(fitted[having], its["mse_affine_oracle"])
    return {"floor_mse": np.asarray(best), "floor_mse_affine": fitted}


def _outcome(
    row: Row, matching_loss: float | None, loss_floor: float | None, finite: bool
) -> str:
    return metrics.outcome(
        ssim=row["ssim"],
        mse=row["mse"],
        best_floor_mse=row["floor_mse"],
        ssim_affine=row["ssim_affine_oracle"],
        mse_affine=row["mse_affine_oracle"],
        best_floor_mse_affine=row["floor_mse_affine"],
        matching_loss=matching_loss,
        loss_floor=loss_floor,
        finite=finite,
    )


READING = """\
How to read it. *recovered*: SSIM >= .6 and at most half the squared error of the best
floor. *recovered_affine*: the same after the best brightness and contrast per channel,
of the image and of its floors; a norm in train mode hides those of a single example.
*unsolved*: the attack did not match the gradient, which says nothing for a defence.
*ambiguous*: matched but wrong, whatever the contrast; that is evidence for a defence
only where the undefended arm of the same cell is recovered.
Floors are images made without any gradient; `class_mean` and `same_class` know the true
label, `own_mean_colour` and `noise_affine` the image itself, and the best floor of an
image is chosen by the truth. A success rate below its floor's proves nothing. Means
hide spread: `rows.csv` has every image."""

MEANINGS = {
    "floor": "what the best of the floors reaches on the same victims: images made "
    "without any gradient, such as the mean image of the class; some know the true "
    "label, and some the image's own mean",
    "recovered": "success, and at most half the squared error of the image's best "
    "floor",
    "recovered_affine": "recovered up to brightness and contrast: the same after the "
    "best affine map per channel, of the image and of its floors. It reads the truth, "
    "and says what the gradient gave away",
    "ambiguous": "matched but wrong: the gradient is matched and the image is wrong, "
    "whatever its contrast. Evidence for a defence only where the undefended arm of "
    "the same cell is recovered; verdicts count those images",
}

IMAGES = Kind(
    score=score_images,
    primary="ssim",
    caption=lambda ssim: f"SSIM {ssim:.2f}",
    reference=_reference,
    floors=tuple(metrics.FLOORS),
    make_floors=metrics.floor_images,
    best_floors=_best_floors,
    success=lambda row: metrics.success(row["ssim"]),
    success_words=metrics.COLUMNS["success"].heading,
    reading=READING,
    outcome=_outcome,
    noun="image",
    success_share="images with SSIM at or above .6",
    meanings=MEANINGS,
)
