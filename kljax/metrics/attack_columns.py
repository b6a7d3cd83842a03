"""Columns of what is found out in the course of an attack, and of its upload."""

from kljax.metrics.columns import DECIBEL, SHARE, SIMILARITY, Column

LOSS = {"unit": "of the attack's objective", "form": ".1e"}


def _reported(name: str, words: str, meaning: str, **more) -> Column:
    return Column(name=name, words=words, meaning=meaning, **{"rows": "attack"} | more)


def _risks() -> tuple[Column, ...]:
    """Makes the columns of `kljax.studies.risk`."""
    meanings = {
        "largest": ("largest eigenvalue of J^T J, J the upload's by the inputs", 1),
        "least": ("least eigenvalue of J^T J", 1),
        "i2f_bound": (
            "lower bound of the error by the inversion influence function, root mean "
            "square of an entry",
            -1,
        ),
        "cramer_rao": (
            "lower bound of the mean squared error of an entry, if what was done to "
            "the upload were Gaussian noise",
            -1,
        ),
        "curvature_largest": (
            "largest eigenvalue of the Hessian of the attack's objective at the truth",
            0,
        ),
        "curvature_least": ("least eigenvalue of that Hessian", 0),
        "upload_norm": ("length of the upload, simulated at the truth", 0),
    }
    return tuple(
        _reported(
            f"risk_{name}",
            f"risk: {name.replace('_', ' ')}",
            f"{meaning}; needs the truth",
            form=".2e",
            leaks=leaks,
            shown="summary",
        )
        for name, (meaning, leaks) in meanings.items()
    )


FOUND = (
    Column(
        name="outcome",
        dtype="string",
        meaning="what the attack on the image showed, see below",
        rows="attack",
    ),
    Column(
        name="label_guess",
        dtype="int64",
        meaning="class that the attacker believes in",
        unit="from 0; -1 where the upload says nothing of labels",
        knows="attacker",
        rows="attack",
    ),
    _reported(
        "label_accuracy",
        "label",
        "1 where the guess of this image's label is right, or 0",
        **SHARE,
        leaks=1,
        shown="terminal",
    ),
    _reported(
        "target_accuracy",
        "target tokens",
        "share of the tokens of this example's target that are right in their place",
        **SHARE,
        leaks=1,
        shown="terminal",
    ),
    _reported(
        "target_error",
        "target error",
        "mean absolute error of the numbers of this example's target",
        form=".3f",
        leaks=-1,
        shown="terminal",
    ),
    _reported(
        "label_multiset_accuracy",
        "labels in any order",
        "share of the upload's labels that were found, in whatever order",
        **SHARE,
        leaks=1,
    ),
    _reported(
        "matching_loss",
        "matching loss",
        "attacker's own loss of what was found, without priors",
        **LOSS,
        knows="attacker",
        shown="summary",
    ),
    _reported(
        "matching_loss_at_truth",
        "matching loss at truth",
        "the same loss at the true images",
        **LOSS,
    ),
    Column(
        name="matching_loss_floor",
        meaning="loss at or below which the gradient counts as matched",
        unit=LOSS["unit"],
        rows="attack",
    ),
    Column(
        name="matching_loss_scale",
        meaning="loss where the faintest tensor is missed altogether",
        unit=LOSS["unit"],
        rows="attack",
    ),
    Column(
        name="matching_loss_degree",
        dtype="int64",
        meaning="power of what is missed with which the loss falls to 0",
        knows="attacker",
        rows="attack",
    ),
    _reported(
        "live_channels",
        "live channels",
        "gated channels whose scale is not 0",
        dtype="int64",
        unit="from 0",
        form=".1f",
        shown="summary",
    ),
    _reported(
        "ssim_substitute",
        "SSIM to substitute",
        "SSIM to what was trained on in place of the image",
        **SIMILARITY,
        shown="summary",
    ),
    _reported(
        "psnr_substitute",
        "PSNR to substitute dB",
        "PSNR to what was trained on in place of the image",
        **DECIBEL,
        shown="summary",
    ),
    _reported(
        "feature_error",
        "feature error",
        "how far the classifier's input is from what its gradient says, relative",
        unit="from 0",
        form=".1e",
        leaks=-1,
        shown="report",
    ),
    _reported(
        "bins_read",
        "bins read",
        "bins of the imprint that were hit: at most so many images lie open",
        dtype="int64",
        unit="from 0",
        reported=True,
        knows="attacker",
        form=".1f",
        leaks=1,
        shown="terminal",
    ),
    *(
        _reported(
            f"rank_{which}",
            f"rank {number}",
            f"rank of the gradient of the {which} attention: how many of the tokens "
            "that it was fed differ, by themselves or by their places",
            dtype="int64",
            unit="from 0",
            reported=True,
            knows="attacker",
            form=".1f",
            shown="summary",
        )
        for number, which in enumerate(("first", "second"), start=1)
    ),
    _reported(
        "rank_is_full",
        "rank is full",
        "whether the tokens of the upload fill the width of an attention: then every "
        "token fits, and none is guessed",
        dtype="bool",
        reported=True,
        knows="attacker",
        form=".0%",
        shown="report",
    ),
    _reported(
        "sentences_found",
        "sentences found",
        "sentences of the upload that passed the tests of both attentions",
        dtype="int64",
        unit="from 0",
        reported=True,
        knows="attacker",
        form=".1f",
        leaks=1,
        shown="terminal",
    ),
    _reported(
        "search_is_whole",
        "search is whole",
        "whether no combination of tokens that fit was left out",
        dtype="bool",
        reported=True,
        knows="attacker",
        form=".0%",
        shown="summary",
    ),
    # Of an attack that tells the rows of a layer's gradient apart.
    *(
        _reported(
            name,
            name.replace("_", " "),
            meaning,
            dtype="int64",
            unit="from 0",
            reported=True,
            knows="attacker",
            form=".1f",
            leaks=leaks,
            shown="terminal",
        )
        for name, meaning, leaks in (
            (
                "gradient_rank",
                "examples that the layer's gradient holds above noise",
                0,
            ),
            ("rows_found", "examples whose derivatives were found; all are needed", 0),
            ("examples_read", "examples that were read; the others are grey", 1),
            ("candidates_tried", "directions that were tried for them", 0),
        )
    ),
    # Of an attack that learns from uploads which it simulates.
    *(
        _reported(
            f"{part}_error",
            f"{part} error",
            f"mean squared error of what was learned, on simulated uploads of {whose}, "
            "each batch in its best order; the same for all victims of an arm",
            unit="[0, 1]",
            reported=True,
            knows="attacker",
            form=".4f",
            leaks=leaks,
            shown="terminal",
        )
        for part, whose, leaks in (
            ("training", "the public examples that it was learned from", 0),
            ("validation", "public examples that were held out", -1),
        )
    ),
    _reported(
        "proposals",
        "proposals",
        "candidates that were tried without a step of the descent, by one first-order "
        "gradient each",
        dtype="int64",
        unit="from 0",
        reported=True,
        rows="search",
        knows="attacker",
    ),
    _reported(
        "interpolation",
        "interpolation",
        "where between received parameters, 0, and trained ones, 1, the gradient was "
        "taken that a whole update is held against",
        unit="[0, 1]",
        reported=True,
        rows="search",
        knows="attacker",
        form=".2f",
        shown="summary",
    ),
    _reported(
        "stage",
        "stage",
        "which stage of a search, from 0, the reconstruction is of: the one whose own "
        "loss is lowest",
        dtype="int64",
        unit="from 0",
        reported=True,
        rows="search",
        knows="attacker",
        form=".1f",
        shown="summary",
    ),
    _reported(
        "cell_entropy",
        "cell entropy",
        "how little the restarts of an ensemble agree on a table: entropy of its "
        "pooled categories, over that of a uniform one, mean over discrete cells",
        unit="[0, 1]",
        reported=True,
        knows="attacker",
        form=".2f",
        shown="summary",
    ),
    _reported(
        "label_rule_holds",
        "label rule holds",
        "whether the label rule's conditions do, as far as the upload shows",
        dtype="bool",
        knows="attacker",
        form=".0%",
        shown="summary",
    ),
    *_risks(),
    Column(
        name="replay_is_exact",
        dtype="bool",
        meaning="whether the true images replay to the upload before its release",
        rows="attack",
    ),
    Column(
        name="visible_share",
        words="visible",
        meaning="share of the entries of the upload that the server can read",
        unit="[0, 1]",
        knows="attacker",
        rows="attack",
        form=".1%",
    ),
    _reported(
        "epsilon",
        "epsilon",
        "of differential privacy, of this upload and, of a client as the unit, of its "
        "earlier ones that the server has, at delta; empty where an arm has no "
        "guarantee. See kljax.defences.accounting for what is assumed",
        unit="from 0",
        knows="attacker",
        form=".2f",
        leaks=1,
        shown="terminal",
    ),
    Column(
        name="delta",
        meaning="delta of epsilon",
        unit="(0, 1)",
        knows="attacker",
        rows="attack",
        option="delta",
    ),
    Column(
        name="denoising_strength",
        meaning="deviation of the noise that the denoiser took off, 0 for none",
        unit="from 0",
        reported=True,
        knows="attacker",
        rows="attack",
        form=".3f",
    ),
    Column(
        name="loss_before_denoising",
        meaning="matching loss of what the attack found, before the denoiser",
        reported=True,
        knows="attacker",
        rows="attack",
        form=".1e",
    ),
    Column(
        name="evaluations",
        dtype="int64",
        meaning="evaluations that were made, all restarts together",
        reported=True,
        knows="attacker",
        rows="search",
    ),
)
