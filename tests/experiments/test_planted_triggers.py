"""experiments/planted_triggers.py: overlaps and shares, on masks made by hand."""

import flip
import numpy as np
import planted_triggers as planted
import pytest

from kljax.data.triggers import Overlay
from kljax.federated.trigger_inversion import Inverted

CLASSES, SIDE = 10, 8


def test_searches_are_those_of_the_trainings():
    for name, numbers in planted.SEARCHES.items():
        written = ",".join(map(str, numbers.values()))
        assert flip.FLIPS[name] == f"flip={written}@10-14"


def test_a_mask_is_compared_with_the_patch():
    mask = np.zeros((SIDE, SIDE))
    mask[-1, -3:] = 0.75  # two of the patch's four pixels, and one outside
    mask[0, 0] = 0.25
    assert planted.overlap(mask) == pytest.approx(2 / 5)
    assert planted.in_patch(mask) == pytest.approx(1.5 / 2.5)
    assert planted.overlap(np.zeros((SIDE, SIDE))) == 0


def found(sizes, masks):
    overlay = Overlay(masks[..., None], masks[..., None])
    return Inverted(overlay, sizes, np.ones(sizes.shape))


def test_the_trigger_of_class_0_is_told_from_others():
    masks = np.full((CLASSES, SIDE, SIDE), 0.2)
    masks[0] = 0
    masks[0, -2:, -2:] = 1
    sizes = np.array([4.0, 12, 13, 14, 12, 13, 14, 12, np.inf, 14])
    size, others, share, iou, own, highest = planted.line_of_classes(
        found(sizes, masks)
    )
    assert (size, others, share, iou) == ("4.0", "13.0", "100", "1.00")
    assert float(own) > 2 > float(highest)


def test_pairs_are_stamped_that_are_small():
    masks = np.full((CLASSES, CLASSES, SIDE, SIDE), 0.05)
    sizes = np.full((CLASSES, CLASSES), 9.0)
    np.fill_diagonal(sizes, 0.0)  # nothing is looked for there
    assert planted.line_of_pairs(found(sizes, masks)) == ["0", "0", "none"]
    sizes[1:4, 0] = 8.0
    sizes[2, 5:7] = 1.0
    masks[1:4, 0] = 0
    masks[1:4, 0, -2:, -4:] = 1  # half of it in the patch
    assert planted.line_of_pairs(found(sizes, masks)) == ["33", "2", "50"]
