"""Columns that hold a guess against the truth, and what is shown of both."""

from kljax.metrics.columns import DECIBEL, SHARE, SIMILARITY, Column

ROUGE = {"unit": "[0, 1]", "form": ".2f", "leaks": 1, "shown": "summary"}
SQUARED = {"unit": "[0, 1]", "form": ".4f", "leaks": -1}


def _score(name: str, words: str, meaning: str, **more) -> Column:
    return Column(name=name, words=words, meaning=meaning, **more)


SCORES = (
    _score(
        "ssim",
        "SSIM",
        "structural similarity, uniform window of 7, as FedKL scores",
        **SIMILARITY,
        shown="terminal",
    ),
    _score(
        "ssim_minmax",
        "SSIM min-max",
        "SSIM after the guess is stretched to [0, 1], which needs no truth",
        **SIMILARITY,
        shown="summary",
    ),
    _score(
        "ssim_affine_oracle",
        "SSIM affine oracle",
        "SSIM after the best brightness and contrast per channel. It reads the truth: "
        "a bound, and no attack",
        **SIMILARITY,
        shown="terminal",
    ),
    _score(
        "psnr", "PSNR dB", "peak signal-to-noise ratio", **DECIBEL, shown="terminal"
    ),
    _score(
        "psnr_affine_oracle",
        "PSNR affine oracle dB",
        "PSNR after the best brightness and contrast per channel",
        **DECIBEL,
    ),
    _score("mse", "squared error", "mean squared error of the pixels", **SQUARED),
    _score(
        "mse_affine_oracle",
        "squared error affine oracle",
        "mean squared error after the best brightness and contrast per channel",
        **SQUARED,
    ),
    _score(
        "lpips_alex",
        "LPIPS Alex",
        "perceptual distance by AlexNet's features",
        unit="from 0",
        form=".3f",
        leaks=-1,
        shown="report",
    ),
    _score(
        "lpips_vgg",
        "LPIPS VGG",
        "perceptual distance by VGG-16's features",
        unit="from 0",
        form=".3f",
        leaks=-1,
    ),
    _score(
        "rmse255",
        "RMSE of 255",
        "root of the squared error, as FedKL reports it",
        unit="[0, 255]",
        form=".1f",
        leaks=-1,
    ),
    _score("psnr_fedkl", "FedKL's PSNR", "PSNR by FedKL's formula", **DECIBEL),
    _score(
        "success",
        "SSIM >= .6",
        "SSIM at or above .6, a convention and no limit of what an eye can read; of a "
        "sentence, all tokens right; of a row of a table, all cells",
        dtype="bool",
        form=".0%",
        leaks=1,
        rate=True,
    ),
    _score(
        "token_accuracy",
        "tokens",
        "share of a sentence's tokens that are right in their place",
        **SHARE,
        leaks=1,
        shown="terminal",
    ),
    _score(
        "exact_match",
        "all tokens",
        "whether all tokens of a sentence are right in their place, or all cells of a "
        "row",
        dtype="bool",
        form=".0%",
        leaks=1,
        rate=True,
        shown="summary",
    ),
    _score("rouge_1", "ROUGE-1", "F-measure of common words", **ROUGE),
    _score("rouge_2", "ROUGE-2", "F-measure of common pairs of neighbours", **ROUGE),
    _score(
        "rouge_l",
        "ROUGE-L",
        "F-measure of the longest common subsequence of words",
        **ROUGE | {"shown": "terminal"},
    ),
    _score(
        "cell_accuracy",
        "cells",
        "share of a row's cells that are right: categories, and numbers within the "
        "tolerance of their column",
        **SHARE,
        leaks=1,
        shown="terminal",
    ),
    _score(
        "discrete_accuracy",
        "categories",
        "the same of a row's discrete columns alone",
        **SHARE,
        leaks=1,
        shown="summary",
    ),
    _score(
        "continuous_accuracy",
        "numbers",
        "the same of a row's continuous columns alone",
        **SHARE,
        leaks=1,
        shown="summary",
    ),
    _score(
        "continuous_error",
        "error of numbers",
        "mean absolute error of a row's continuous columns, in ranges of each",
        unit="from 0",
        form=".3f",
        leaks=-1,
        shown="summary",
    ),
    Column(name="text", dtype="string", meaning="true sentence, or row of a table"),
    Column(
        name="text_guess",
        dtype="string",
        meaning="sentence, or row, that was found, or that a floor guesses",
        knows="attacker",
    ),
    Column(
        name="cells_right",
        dtype="string",
        meaning="of a row of a table, 1 for each cell that is right, 0 for the others",
    ),
    Column(
        name="floor_cell_accuracy",
        meaning="share of right cells of the row's best floor",
        unit="[0, 1]",
    ),
    Column(
        name="floor_token_accuracy",
        meaning="token accuracy of the sentence's best floor",
        unit="[0, 1]",
    ),
    Column(
        name="floor_mse",
        meaning="mean squared error of the image's best floor",
        unit="[0, 1]",
    ),
    Column(
        name="floor_mse_affine",
        meaning="the same after the best affine map per channel of each floor",
        unit="[0, 1]",
    ),
)
