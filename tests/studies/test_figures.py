"""Figures: what is drawn is what was counted."""

import numpy as np
import pytest
from PIL import Image

from kljax.data import dirichlet, iid
from kljax.studies.figures import draw_curves, draw_partition, label_counts


def pixels(path):
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def share_of(image, colour):
    return (np.abs(image - colour).sum(axis=-1) < 12).mean()


def test_labels_are_counted():
    labels = np.array([0, 2, 2, 1, 0])
    counts = label_counts(
        [np.array([0, 1, 2]), np.array([3]), np.array([4])], labels, 4
    )
    assert counts.tolist() == [[1, 0, 2, 0], [0, 1, 0, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize("clients", [1, 3, 100, 300])
@pytest.mark.parametrize("classes", [2, 10, 20, 100])
def test_any_numbers_fit_on_a_page(clients, classes, tmp_path):
    labels = np.arange(6000) % classes
    path = tmp_path / "partition.png"
    draw_partition(iid(labels, clients, 0), labels, classes, path)
    image = pixels(path)
    assert image.shape[1] == 960 and 200 < image.shape[0] < 1000
    assert 0.1 < np.mean(image.std(axis=-1) > 5) < 0.9  # coloured: bars


ORANGE = (255, 127, 14)  # the second colour of "tab10"


def test_areas_are_numbers_of_examples(tmp_path):
    path = tmp_path / "partition.png"

    def orange(share):
        labels = (np.arange(1000) < 1000 * share).astype(int)
        draw_partition(iid(labels, 4, 0), labels, 2, path)
        return share_of(pixels(path), ORANGE)

    legend, quarter, half = orange(0), orange(0.25), orange(0.5)
    assert 0 < legend < quarter < half
    assert (half - legend) / (quarter - legend) == pytest.approx(2, rel=0.05)


def test_names_of_classes_are_shown(tmp_path):
    labels = np.arange(100) % 3
    parts = dirichlet(labels, 3, 0, alpha=5)
    ordinary, named = tmp_path / "1.png", tmp_path / "2.png"
    draw_partition(parts, labels, 3, ordinary)
    draw_partition(parts, labels, 3, named, class_names=("shirt", "shoe", "bag"))
    assert np.abs(pixels(ordinary) - pixels(named)).max() > 100


@pytest.mark.parametrize("classes", (2, 30))
def test_names_are_no_formulas(classes, tmp_path):
    labels = np.arange(90) % classes
    names = (r"from $\foo$",) * classes
    parts = dirichlet(labels, 2, 0, alpha=5)
    draw_partition(parts, labels, classes, tmp_path / "parts.png", class_names=names)
    row = {"arm": names[0], "round": 0, "loss": 1.0, "excluded": ()}
    row |= {"train_accuracy": 0.5, "test_accuracy": None}
    draw_curves([row], tmp_path / "curves.png")


@pytest.mark.parametrize(
    "parts, labels, names, message",
    [
        ([], [0, 1], None, "no client"),
        ([[0, 1]], [0, 2], None, r"labels span \[0, 2\].*\[0, 2\)"),
        ([[0, 1]], [0, -1], None, r"labels span \[-1, 0\]"),
        ([[0, 1]], [0, 1], ("a",), "2 classes and 1 class_names"),
    ],
)
def test_bad_input_is_named(parts, labels, names, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        draw_partition(parts, np.array(labels), 2, tmp_path / "p.png", names)
    assert list(tmp_path.iterdir()) == []
