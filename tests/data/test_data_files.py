"""Datasets from a file or a folder, and what is refused of them."""

import re
import zipfile

import numpy as np
import pytest
from PIL import Image

from kljax import data
from kljax.data import is_path, load, resize, stamp

COUNT = 6
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 12, 10, 3), np.uint8)
LABELS = np.arange(COUNT) % 3
SHAPE = (8, 8, 3)


def npz(tmp_path, name="mine.npz", **changes):
    arrays = {"images": PIXELS, "labels": LABELS} | changes
    file = tmp_path / name
    np.savez(file, **{k: v for k, v in arrays.items() if v is not None})
    return str(file)


def folder(tmp_path):
    """Writes the pictures, one folder per class, losslessly."""
    for n, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        place = tmp_path / "pictures" / "abc"[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{n}.png")
    return tmp_path / "pictures"


def test_an_npz_file_gives_its_images_resized(tmp_path):
    dataset = load(npz(tmp_path), shape=SHAPE)
    assert (len(dataset), dataset.num_classes, dataset.shape) == (COUNT, 3, SHAPE)
    images, labels = dataset.fetch([4, 1])
    np.testing.assert_array_equal(images, [resize(PIXELS[n], SHAPE) for n in (4, 1)])
    assert labels.tolist() == [1, 1]


def test_an_npz_file_may_say_more(tmp_path):
    name = npz(
        tmp_path,
        images=PIXELS[..., 0] / 255.0,  # grey, in [0, 1]
        class_names=np.array(["one", "two", "three", "none of it"]),
        groups=np.arange(COUNT) // 2,
        licence=np.array("mine"),
    )
    dataset = load(name, shape=(8, 8, 1))
    assert dataset.class_names == ("one", "two", "three", "none of it")
    assert dataset.num_classes == 4
    assert dataset.groups_of([0, 1, 5]).tolist() == [0, 0, 2]
    assert dataset.licence == "mine"
    np.testing.assert_allclose(
        dataset.fetch([2])[0][0], resize(PIXELS[2, ..., 0], (8, 8, 1)), atol=1e-6
    )


@pytest.mark.parametrize("dtype", ("uint8", "uint16", "uint64", "int8"))
def test_labels_may_be_of_any_integer_type(tmp_path, dtype):
    dataset = load(npz(tmp_path, labels=LABELS.astype(dtype)), shape=SHAPE)
    assert dataset.num_classes == 3
    assert dataset.labels.dtype == np.int32
    assert dataset.labels.tolist() == [0, 1, 2, 0, 1, 2]
    largest = np.array([0, 255, 0, 1, 2, 3], np.uint8)
    assert load(npz(tmp_path, labels=largest), shape=SHAPE).num_classes == 256


def test_a_folder_has_a_class_per_subfolder(tmp_path):
    place = folder(tmp_path)
    (place / "b" / "notes.txt").write_text("no picture")
    (place / ".hidden").mkdir()
    dataset = load(str(place), shape=SHAPE)
    assert dataset.class_names == ("a", "b", "c")
    # Class by class, each in the order of names: 0, 3; 1, 4; 2, 5.
    images, labels = dataset.fetch(np.arange(COUNT))
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    expected = [resize(PIXELS[n], SHAPE) for n in (0, 3, 1, 4, 2, 5)]
    np.testing.assert_array_equal(images, expected)


@pytest.mark.parametrize("mode", ("L", "LA", "P", "RGBA", "CMYK", "1"))
def test_pictures_of_any_mode_are_read(tmp_path, mode):
    place = tmp_path / "pictures" / "a"
    place.mkdir(parents=True)
    picture = Image.fromarray(PIXELS[0]).convert(mode)
    picture.save(place / ("x.tif" if mode == "CMYK" else "x.png"))
    pixels = load(str(place.parent), shape=SHAPE).fetch([0])[0][0]
    grey = mode in ("L", "LA", "1")
    read = np.asarray(picture.convert("L" if grey else "RGB"))
    np.testing.assert_array_equal(pixels, resize(read, SHAPE))


def test_a_picture_is_turned_as_its_camera_says(tmp_path):
    place = tmp_path / "pictures" / "a"
    place.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(PIXELS[0]).save(place / "x.png", exif=exif)
    pixels = load(str(place.parent), shape=SHAPE).fetch([0])[0][0]
    np.testing.assert_array_equal(pixels, resize(PIXELS[0][::-1, ::-1], SHAPE))


@pytest.mark.parametrize("mode", ("F", "I", "LAB"))
def test_a_mode_without_a_fixed_white_is_refused(tmp_path, mode):
    place = tmp_path / "pictures" / "a"
    place.mkdir(parents=True)
    if mode == "LAB":
        picture = Image.new(mode, (10, 12), (50, 10, 10))
    else:
        values = {"F": np.float32, "I": np.int32}[mode]
        picture = Image.fromarray(PIXELS[0, ..., 0].astype(values))
    picture.save(place / "x.tif")
    dataset = load(str(place.parent), shape=SHAPE)
    message = rf"x\.tif is a picture of Pillow's mode {mode}, .*save it with 8 bits"
    with pytest.raises(ValueError, match=message):
        dataset.fetch([0])


def transparent(mode):
    """Makes a picture one pixel of which is not opaque, and how to save it."""
    if mode in ("LA", "RGBA"):
        picture = Image.fromarray(PIXELS[0]).convert(mode)
        alpha = Image.new("L", picture.size, 255)
        alpha.putpixel((3, 2), 254)
        picture.putalpha(alpha)
        return picture, {}
    if mode == "I;16":
        return Image.fromarray(np.arange(120, dtype=np.uint16).reshape(12, 10)), {
            "transparency": 7
        }
    picture = Image.fromarray(PIXELS[0]).convert(mode)
    return picture, {"transparency": picture.getpixel((3, 2))}


@pytest.mark.parametrize("mode", ("LA", "RGBA", "P", "L", "RGB", "I;16"))
def test_a_transparent_picture_is_refused(tmp_path, mode):
    place = tmp_path / "pictures" / "a"
    place.mkdir(parents=True)
    picture, options = transparent(mode)
    picture.save(place / "x.png", **options)
    dataset = load(str(place.parent), shape=SHAPE)
    with pytest.raises(ValueError, match=r"x\.png is transparent somewhere; save it"):
        dataset.fetch([0])


def test_sixteen_bits_are_kept(tmp_path):
    place = tmp_path / "pictures" / "a"
    place.mkdir(parents=True)
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(deep).save(place / "x.png")
    pixels = load(str(place.parent), shape=(8, 8, 1)).fetch([0])[0][0]
    np.testing.assert_allclose(pixels[..., 0], deep / 65535, atol=1e-7)


def test_what_is_a_path_is_told_by_its_spelling(tmp_path, monkeypatch):
    for name in ("a.npz", "./a", "../a", "/a", "~/a", "a/"):
        assert is_path(name) and not data.has_splits(name)
    for name in ("mnist", "imagenet_resized/32x32", "digits", "mine:function"):
        assert not is_path(name)
    folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"meant, write './pictures'"):
        load("pictures")
    assert len(load("./pictures")) == len(load("pictures/")) == COUNT


def test_other_files_have_another_stamp(tmp_path):
    place = folder(tmp_path)
    before = stamp(str(place))
    assert len(before) == COUNT
    Image.fromarray(PIXELS[0]).save(place / "a" / "9.png")
    assert set(before) < set(stamp(str(place)))
    file = npz(tmp_path)
    assert [path for path, _, _ in stamp(file)] == [file]


FILES = {
    "no array 'labels'; it has images": {"labels": None},
    r"images has shape \(6, 12\); give \[N, h, w\]": {"images": PIXELS[:, :, 0, 0]},
    r"labels has shape \(6, 1\)": {"labels": LABELS[:, None]},
    "labels has .* type float64; give .* integers": {"labels": LABELS / 1},
    r"label of example 2 is 2, and labels must lie in \[0, 2\)": {
        "class_names": np.array(["a", "b"])
    },
    "label of example 0 is -1": {"labels": LABELS - 1},
    "6 images and 5 labels": {"labels": LABELS[:5]},
    "6 images and 2 groups": {"groups": np.arange(2)},
    r"images has shape \(6, 0, 32\); give": {"images": np.zeros((6, 0, 32))},
    r"class_names has shape \(\); give \[Kc\]": {"class_names": np.array("x")},
    r"label of example 3 is 2147483648, .* in \[0, 2147483648\)": {
        "labels": np.array([0, 1, 2, 2**31, 1, 2], np.uint64)
    },
    "no sound .npz file": {"class_names": np.array([None, "a", "b"])},  # pickled
}


@pytest.mark.parametrize(("message", "changes"), FILES.items(), ids=FILES)
def test_a_wrong_file_is_refused(tmp_path, message, changes):
    with pytest.raises(ValueError, match=message) as caught:
        load(npz(tmp_path, **changes), shape=SHAPE)
    assert "mine.npz" in str(caught.value)


def test_a_value_that_is_no_brightness_is_refused_when_it_is_read(tmp_path):
    images = PIXELS / 255.0
    images[4, 0, 0, 0] = 1.5
    dataset = load(npz(tmp_path, images=images), shape=SHAPE)
    dataset.fetch([0, 3])
    with pytest.raises(ValueError, match=r"image 4: .*spans \[0, 1.5\]"):
        dataset.fetch([0, 4])


def test_what_is_not_there_or_no_dataset_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        load(str(tmp_path / "nothing.npz"))
    (tmp_path / "broken.npz").write_bytes(b"PK and no more")
    with pytest.raises(ValueError, match=r"broken.npz' is no sound .npz file"):
        load(str(tmp_path / "broken.npz"))
    (tmp_path / "page.txt").write_text("no data")
    with pytest.raises(ValueError, match="neither a folder nor a file that ends in"):
        load(str(tmp_path / "page.txt"))
    with pytest.raises(ValueError, match="has no splits, and split is 'test'"):
        load(npz(tmp_path), split="test")


def with_flipped_bytes(path):
    np.savez_compressed(path, images=PIXELS, labels=LABELS)
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(255 - byte for byte in content[200:260])
    path.write_bytes(content)


def as_one_array(path):
    with open(path, "wb") as file:
        np.save(file, PIXELS)


def with_text_inside(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images", "no array")
        archive.writestr("labels", "no array")


DAMAGES = (lambda path: path.touch(), with_flipped_bytes, as_one_array)
DAMAGES += (with_text_inside,)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_with_what_would_be_right(tmp_path, damage):
    damage(tmp_path / "mine.npz")
    message = r"mine.npz' is no sound .npz file: .*write it by numpy.savez"
    with pytest.raises(ValueError, match=message):
        load(str(tmp_path / "mine.npz"))


def test_a_folder_without_pictures_is_refused(tmp_path):
    place = folder(tmp_path)
    (place / "empty").mkdir()
    with pytest.raises(ValueError, match="class folder 'empty' has no pictures"):
        load(str(place))
    with pytest.raises(ValueError, match="no subfolders .* and no pictures either"):
        load(str(place / "empty"))


def test_pictures_without_classes_have_labels_that_teach_nothing(tmp_path):
    place = folder(tmp_path)
    loose = load(str(place / "a"), shape=(8, 12, 1))  # grey, and not square
    images, labels = loose.fetch([0, 1])
    assert images.shape == (2, 8, 12, 1) and labels.tolist() == [0, 1]
    assert loose.untrained_only and loose.num_classes == 10
    Image.fromarray(PIXELS[0]).save(place / "beside.png")
    with pytest.raises(ValueError, match="beside its class folders.*'beside.png'"):
        load(str(place))


def test_grey_pictures_of_bytes_without_a_channel_axis_are_read(tmp_path):
    grey = npz(tmp_path, images=PIXELS[..., 0])
    images, _ = load(grey, shape=(12, 10, 1)).fetch([0])
    np.testing.assert_allclose(images[0, ..., 0], PIXELS[0, ..., 0] / 255, atol=1e-6)
    assert load(grey, shape=(8, 16, 3)).fetch([0])[0].shape == (1, 8, 16, 3)


def test_a_broken_picture_is_named(tmp_path):
    place = folder(tmp_path)
    broken = place / "b" / "1.png"
    broken.write_bytes(broken.read_bytes()[:100])
    dataset = load(str(place), shape=SHAPE)
    dataset.fetch([0, 1])
    with pytest.raises(ValueError, match=re.escape(f"{broken} is no picture")):
        dataset.fetch([2])
