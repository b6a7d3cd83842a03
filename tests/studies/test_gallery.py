"""The gallery of a run: every picture as it is scored, with its own caption below."""

import dataclasses

import matplotlib.figure
import numpy as np
import pytest
from tiny_studies import close, pretended, scored, tiny, wrong

from kljax.data import Dataset
from kljax.studies import input_scores
from kljax.studies.gallery import displayed, draw_gallery


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws a gallery; gives its rows of (picture as colours, caption), by name."""
    figures = []
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda self, *_, **__: figures.append(self)
    )

    def draw(result, **options):
        draw_gallery(result, scored(result), tmp_path / "gallery.png", **options)
        lines, name = {}, ""
        for axis in figures[-1].axes:
            name = axis.get_ylabel().replace("\n", "") or name
            (picture,) = axis.images
            colours = picture.to_rgba(picture.get_array(), norm=True)[..., :3]
            lines.setdefault(name, []).append((colours, axis.get_xlabel()))
        return lines

    return draw


def grey(shape):
    """Gives grey images of little contrast: around .3, .4, .5, ..."""
    values = np.linspace(0.3, 0.8, 6)[:, None, None, None]
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (6, *shape[:2], 1))
    images = (values + noise).astype(np.float32)
    return Dataset(
        "grey", images, np.arange(6) % 2, 2, groups=None, licence="none needed"
    )


def test_grey_images_are_drawn_in_grey_on_one_scale(drawn):
    result = pretended(tiny(victims=4, data=f"{__name__}:grey"), close)
    lines = drawn(result)
    for (colours, _), truth in zip(lines["truth"], result.victims.inputs, strict=True):
        assert colours.shape == (8, 8, 3)
        np.testing.assert_allclose(colours, truth[0].repeat(3, -1), atol=1 / 255)


def test_classes_are_named_and_the_best_floor_is_beside_them(drawn):
    result = pretended(tiny(victims=3, data="photos"), wrong)
    rows, lines = scored(result), drawn(result)
    names = [result.dataset.class_names[n] for n in result.victims.labels[:, 0]]
    assert [caption for _, caption in lines["truth"]] == names
    means = {}
    for row in rows:
        if row["arm"].startswith("floor/"):
            means.setdefault(row["arm"], []).append(row["ssim"])
    best = max(means, key=lambda name: np.mean(means[name]))
    assert list(lines) == ["truth", best, "none"]
    assert [caption for _, caption in lines[best]] == [
        f"SSIM {ssim:.2f}" for ssim in means[best]
    ]
    made = input_scores.floor_images(
        result.dataset,
        result.victims.inputs[:, 0],
        result.victims.labels[:, 0],
        result.victims.indices[:, 0],
        result.config.seed,
    )
    for (colours, _), floors in zip(lines[best], made, strict=True):
        expected = floors[best.removeprefix("floor/")]
        np.testing.assert_allclose(colours, expected, atol=1e-6)


def test_classes_without_names_have_their_numbers(drawn):
    lines = drawn(pretended(tiny(victims=2, data=f"{__name__}:grey"), close))
    assert {caption for _, caption in lines["truth"]} <= {"class 0", "class 1"}


def named(shape):
    """Gives images of two classes whose names are awkward to write."""
    names = ("costs $1 or \\foo$ or more", "a name of more words than fit")
    return dataclasses.replace(grey(shape), class_names=names)


def test_names_are_written_as_they_are_and_below_their_own_picture(tmp_path, drawn):
    result = pretended(tiny(victims=4, data=f"{__name__}:named"), close)
    expected = {
        0: "costs $1 or \\foo$ or\nmore",
        1: "a name of more words\nthan fit",
    }
    captions = [caption for _, caption in drawn(result)["truth"]]
    assert captions == [expected[n] for n in result.victims.labels[:, 0]]
    assert set(captions) == {*expected.values()}


def test_a_name_that_is_no_formula_costs_no_picture(tmp_path):
    result = pretended(tiny(victims=4, data=f"{__name__}:named"), close)
    draw_gallery(result, scored(result), tmp_path / "gallery.png")
    assert (tmp_path / "gallery.png").stat().st_size > 1000


def test_images_of_a_batch_have_a_picture_and_a_score_each(drawn):
    def mixed(arm, victims):
        images = close(arm, victims)
        images[:, 1] = wrong(arm, victims)[:, 1]
        return images[:, [2, 0, 1]]  # in another order than the truths

    result = pretended(tiny(victims=4, examples=3), mixed)
    lines, rows = drawn(result, most=7), scored(result)
    mine = [row for row in rows if row["arm"] == "none"][:7]
    assert {len(line) for line in lines.values()} == {7}
    assert [caption for _, caption in lines["none"]] == [
        f"SSIM {row['ssim']:.2f}" for row in mine
    ]
    truths = result.victims.inputs.reshape(-1, 8, 8, 3)
    for n, (colours, caption) in enumerate(lines["truth"]):
        np.testing.assert_allclose(colours, truths[n], atol=1e-6)
        label = result.victims.labels.ravel()[n]
        assert caption == f"{label}\nupload {n // 3}, image {n % 3}"
    for n, (colours, _) in enumerate(lines["none"]):
        error = np.mean((colours - truths[n]) ** 2)
        assert error == pytest.approx(mine[n]["mse"], rel=1e-4)


def test_what_is_not_finite_is_black_and_what_is_out_of_range_is_clipped():
    image = np.array([np.nan, -1.0, 0.5, 2.0, np.inf]).reshape(1, 5, 1)
    assert displayed(image).tolist() == [[0.0, 0.0, 0.5, 1.0, 1.0]]
    assert displayed(np.ones((2, 2, 4))).shape == (2, 2)
    assert displayed(np.ones((2, 2, 3))).shape == (2, 2, 3)
