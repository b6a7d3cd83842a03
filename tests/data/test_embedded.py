"""Every embedded data set against every property, and what is special to each."""

import functools
import socket

import numpy as np
import pytest

from kljax.data import EMBEDDED, load
from kljax.data.catalogue import TABLES, TEXTS
from kljax.data.photos import PHOTOGRAPHS, deviation, read, squares

SHAPES = [(32, 32, 3), (16, 20, 1)]
PICTURES = sorted({*EMBEDDED} - TEXTS - {*TABLES})


@functools.cache
def loaded(name, shape=(32, 32, 3)):
    return load(name, shape=shape)


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("shape", SHAPES)
class TestEveryEmbeddedSet:
    def test_images_are_what_was_asked_for(self, name, shape):
        data = loaded(name, shape)
        assert data.shape == shape
        assert data.inputs.shape == (len(data), *shape)
        assert data.inputs.dtype == np.float32
        assert data.inputs.min() >= 0 and data.inputs.max() <= 1
        # The range is used, not just respected.
        assert data.inputs.min() < 0.01 and data.inputs.max() > 0.95

    def test_every_class_has_examples_and_a_name(self, name, shape):
        data = loaded(name, shape)
        assert data.labels.dtype == np.int32
        assert sorted(set(data.labels.tolist())) == list(range(data.num_classes))
        assert len(data.class_names) == data.num_classes

    def test_groups_cluster_every_example(self, name, shape):
        data = loaded(name, shape)
        assert data.groups.shape == (len(data),)
        assert data.groups.dtype == np.int32

    def test_name_and_licence_are_given(self, name, shape):
        data = loaded(name, shape)
        assert data.name == name
        assert len(data.licence) > 20


@pytest.mark.parametrize("name", PICTURES)
def test_loading_twice_gives_the_same(name):
    first, second = loaded(name), load(name)
    np.testing.assert_array_equal(first.inputs, second.inputs)
    np.testing.assert_array_equal(first.labels, second.labels)


@pytest.mark.parametrize("name", PICTURES)
def test_shape_changes_neither_examples_nor_order(name):
    small, large = loaded(name), load(name, shape=(48, 48, 3))
    np.testing.assert_array_equal(small.labels, large.labels)
    # The same pictures: block means agree better with their own than with a neighbour.
    means = [data.inputs[:, :16, :16].mean((1, 2)) for data in (small, large)]
    halves = large.inputs[:, :24, :24].mean((1, 2))
    np.testing.assert_allclose(means[0], halves, atol=0.05)


@pytest.mark.parametrize("name", PICTURES)
def test_embedded_sets_have_no_splits(name):
    with pytest.raises(ValueError, match=f"'{name}' has no splits.*'test'"):
        load(name, split="test")


@pytest.mark.parametrize("name", PICTURES)
def test_nothing_is_downloaded(name, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    assert len(load(name)) > 0


def test_digits_are_all_there_grey_and_upright():
    data = loaded("digits")
    assert (len(data), data.num_classes, data.untrained_only) == (1797, 10, False)
    np.testing.assert_array_equal(data.inputs[..., 0], data.inputs[..., 2])
    assert data.groups.tolist() == list(range(1797))
    # A seven is heavier at the top than an L would be: its bar is up there.
    sevens = data.inputs[data.labels == 7].mean((0, 3))
    assert sevens[4:10, 8:24].mean() > 1.3 * sevens[22:28, 8:24].mean()


def test_photos_come_from_many_photographs_and_only_suit_untrained_networks():
    data = loaded("photos")
    assert len(PHOTOGRAPHS) == data.num_classes == 10
    assert data.untrained_only
    assert len(data) == 362
    assert np.bincount(data.labels).min() >= 10
    np.testing.assert_array_equal(data.groups, data.labels)
    assert np.all(np.diff(data.labels) >= 0)


def test_photos_have_structure():
    data = loaded("photos")
    structure = np.array([deviation(image) for image in data.inputs])
    assert structure.min() >= 0.08
    assert data.inputs.std(axis=(1, 2, 3)).min() >= 0.08
    # The threshold is at work: some squares of these photographs were dropped.
    assert sum(len(list(squares(read(photo)))) for photo in PHOTOGRAPHS) > len(data)


def test_photos_have_their_colours_and_stand_upright():
    data = loaded("photos")
    names = list(data.class_names)
    red, _, blue = np.moveaxis(data.inputs, -1, 0)

    def mean(plane, name):
        return plane[data.labels == names.index(name)].mean()

    for warm in ("retina", "flower", "coffee", "chelsea"):
        assert mean(red, warm) > 1.2 * mean(blue, warm), warm
    assert mean(blue, "rocket") > mean(red, "rocket")
    sky, trees = np.split(read(PHOTOGRAPHS[names.index("china")])[:426], 2)
    assert sky.mean() > 1.3 * trees.mean()


def test_plain_colour_is_no_structure():
    red = np.zeros((32, 32, 3), np.float32)
    red[..., 0] = 1
    assert red.std() > 0.08
    assert deviation(red) == 0


@pytest.mark.parametrize("photo", PHOTOGRAPHS, ids=lambda photo: photo.name)
def test_every_photograph_is_coloured_and_its_licence_named(photo):
    pixels = read(photo)
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
    assert pixels.std(axis=2).mean() > 2  # channels differ: not a grey picture
    known = ("CC0", "CC BY", "public domain", "no known copyright", "see http")
    assert any(words in photo.licence for words in known)
    assert f"{photo.name}: {photo.licence}" in loaded("photos").licence


@pytest.mark.parametrize("size", [(70, 100), (101, 77), (49, 49)])
def test_squares_touch_and_never_overlap(size):
    numbers = np.arange(size[0] * size[1]).reshape(*size, 1)
    found = list(squares(numbers))
    side = min(size) // 7
    assert {square.shape for square in found} == {(side, side, 1)}
    assert len(found) == (size[0] // side) * (size[1] // side)
    pixels = np.concatenate([square.ravel() for square in found])
    assert len(set(pixels.tolist())) == len(pixels)
    # Centred: what is lost differs by a pixel at most between opposite ends.
    rows, columns = np.unravel_index([pixels.min(), pixels.max()], size)
    for (first, last), length in zip((rows, columns), size, strict=True):
        assert 0 <= (length - 1 - last) - first <= 1


def test_a_photograph_that_left_its_package_is_named():
    gone = PHOTOGRAPHS[2]._replace(path="data/gone.png")
    with pytest.raises(FileNotFoundError, match="'astronaut'.*'skimage'.*gone.png"):
        read(gone)
    with pytest.raises(FileNotFoundError, match="'no_such_package'.*not installed"):
        read(gone._replace(package="no_such_package"))
