"""Augmentation: what torchvision's crop and flip do, image by image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from toys import random_images

from kljax.data.augmentation import AUGMENTATIONS, crop_and_flip

PADDING = 2
SIDES = 2 * PADDING + 1
SHAPE = (6, 5, 2)  # H, W, C


def candidates(image, padding=PADDING):
    """All that may become of an image [H, W, C]: (down, right, mirrored) -> image."""
    height, width = image.shape[:2]
    framed = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    return {
        (down, right, mirrored): framed[down : down + height, right : right + width][
            :, :: -1 if mirrored else 1
        ]
        for down in range(2 * padding + 1)
        for right in range(2 * padding + 1)
        for mirrored in (False, True)
    }


@pytest.fixture(scope="module")
def seen():
    """How often each (down, right, mirrored) came, of 4,000 copies of one image."""
    image = random_images(*SHAPE)
    augment = jax.jit(crop_and_flip(PADDING))
    images = augment(jax.random.key(0), jnp.broadcast_to(image, (4000, *SHAPE)))
    table = {made.tobytes(): name for name, made in candidates(image).items()}
    assert len(table) == 2 * SIDES**2  # all different, or counting would mean nothing
    # A KeyError here is an image that is none of the candidates.
    return np.array([table[image.tobytes()] for image in np.asarray(images)], int)


def test_positions_and_mirroring_are_uniform_and_independent(seen):
    counts = np.zeros((SIDES, SIDES, 2), int)
    np.add.at(counts, tuple(seen.T), 1)
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3
    # Positions 0 to 2 * padding - 1, as from a range that is one short, would not do.
    short = np.random.default_rng(0).integers(0, SIDES - 1, 4000)
    assert stats.chisquare(np.bincount(short, minlength=SIDES)).pvalue < 1e-6


def test_neighbours_in_a_batch_draw_for_themselves(seen):
    places = seen[:, 0] * SIDES + seen[:, 1]
    table = np.zeros((SIDES**2, SIDES**2), int)
    np.add.at(table, (places[::2], places[1::2]), 1)
    assert stats.chi2_contingency(table.reshape(SIDES**2, -1)).pvalue > 1e-3


@pytest.mark.parametrize("padding", [1, 3, 4])
def test_every_image_of_a_batch_becomes_one_of_its_own_candidates(padding):
    images = random_images(7, *SHAPE)
    out = np.asarray(crop_and_flip(padding)(jax.random.key(1), images))
    assert out.dtype == np.float32 and out.shape == images.shape
    for before, after in zip(images, out, strict=True):
        made = candidates(before, padding).values()
        assert any(np.array_equal(one, after) for one in made)
    # At the edge there is the frame, and it is black.
    assert (out == 0).any() and not (images == 0).any()


def test_by_hand():
    image = jnp.array([[1.0, 2.0], [3.0, 4.0]])[None, :, :, None]
    augment = crop_and_flip(1, flip=False)
    made = {
        tuple(np.asarray(augment(jax.random.key(n), image)).ravel().tolist())
        for n in range(100)
    }
    assert made == {
        (0, 0, 0, 1),
        (0, 0, 1, 2),
        (0, 0, 2, 0),
        (0, 1, 0, 3),
        (1, 2, 3, 4),
        (2, 0, 4, 0),
        (0, 3, 0, 0),
        (3, 4, 0, 0),
        (4, 0, 0, 0),
    }


def test_parts_may_be_switched_off(rng):
    images = random_images(8, *SHAPE)
    np.testing.assert_array_equal(crop_and_flip(0, flip=False)(rng, images), images)
    out = np.asarray(crop_and_flip(0)(rng, images))
    mirrored = [not np.array_equal(a, b) for a, b in zip(out, images, strict=True)]
    assert 0 < sum(mirrored) < 8
    np.testing.assert_array_equal(out[mirrored], images[mirrored][:, :, ::-1])


def test_the_random_key_decides(rng):
    images = random_images(8, *SHAPE)
    augment = jax.jit(crop_and_flip())
    once = augment(rng, images)
    np.testing.assert_array_equal(once, augment(rng, images))
    other = augment(jax.random.fold_in(rng, 1), images)
    assert np.abs(np.asarray(once) - np.asarray(other)).max() > 0.1


def test_inside_a_scan_and_under_a_map_it_is_the_same(rng):
    # As in a round: clients by vmap, steps by scan.
    images = random_images(2, 3, 4, *SHAPE)
    rngs = jax.random.split(rng, (2, 3))
    augment = crop_and_flip(PADDING)

    def steps(rngs, images):
        return jax.lax.scan(lambda _, x: (None, augment(*x)), None, (rngs, images))[1]

    out = jax.jit(jax.vmap(steps))(rngs, images)
    for client in range(2):
        for step in range(3):
            alone = augment(rngs[client, step], images[client, step])
            np.testing.assert_array_equal(out[client, step], alone)


def test_the_table(rng):
    assert AUGMENTATIONS["none"] is None
    images = random_images(2, 32, 32, 3)
    np.testing.assert_array_equal(
        AUGMENTATIONS["crop_flip"](rng, images), crop_and_flip(4, True)(rng, images)
    )


def test_a_negative_padding_is_refused():
    with pytest.raises(ValueError, match="padding of crop_and_flip is -1"):
        crop_and_flip(-1)
