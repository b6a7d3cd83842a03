"""Gives the pseudo-reconstructions an attacker has without the gradient.

A metric value means little until one knows what no attack at all would score. A floor
is an image made without the victim's gradient; some read the victim itself (oracle)
and bound what brightness and colour alone are worth. Letters: N reference examples;
H, W, C of one image. Runs on the host; images are float32 in [0, 1].

| floor           | what it uses                                             | oracle |
|-----------------|----------------------------------------------------------|--------|
| grey            | nothing: .5 everywhere                                   | no     |
| data_mean       | the reference's mean image                               | no     |
| class_mean      | the reference's mean image of the victim's label         | no     |
| same_class      | another reference example of the victim's label          | no     |
| own_mean_colour | the victim's mean per channel                            | yes    |
| noise_affine    | normal noise, after the best affine fit to the victim    | yes    |

The victim is never part of what represents it: its index is left out of the means and
the choice. A floor with no other example to use is absent, never the victim. A copy of
the victim under another index stays in: the attacker has it.

>>> reference = Reference(np.zeros((2, 1, 1, 1), np.float32), [3, 3], [10, 11])
>>> victim = np.ones((1, 1, 1), np.float32)
>>> list(floor_images(victim, 4, 99, reference, seed=0))
['grey', 'data_mean', 'own_mean_colour', 'noise_affine']
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from kljax.metrics.image import affine_fit

GREY = 0.5


class Victim(NamedTuple):
    """The example a floor stands for."""

    image: np.ndarray  # [H, W, C] float32 in [0, 1]
    label: int
    index: int  # in the data set the reference was drawn from


@dataclass(frozen=True, eq=False)
class Reference:
    """A sample of data-set examples, known to the attacker, that floors draw from.

    images [N, H, W, C] floating in [0, 1]; labels [N] integers; indices [N] distinct
    positions in the data set, by which a victim is told from the rest. Sums per class
    are taken once, so that a mean without the victim costs one subtraction.

    Raises ValueError if N is 0, lengths differ or an index repeats; TypeError if the
    images are not floating.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    class_sums: dict[int, np.ndarray] = field(init=False, repr=False)
    class_counts: dict[int, int] = field(init=False, repr=False)
    positions: dict[int, int] = field(init=False, repr=False)

    def __post_init__(self):
        images, labels, indices = (
            np.asarray(array) for array in (self.images, self.labels, self.indices)
        )
        if not np.issubdtype(images.dtype, np.floating):
            raise TypeError(
                f"Reference: images are {images.dtype}; they must be floating in [0, 1]"
            )
        if images.ndim != 4 or len(images) == 0:
            raise ValueError(
                f"Reference: images have shape {images.shape}; they must be "
                "[N, H, W, C] with N >= 1"
            )
        for name, array in (("labels", labels), ("indices", indices)):
            if array.shape != (len(images),):
                raise ValueError(
                    f"Reference: {name} have shape {array.shape}; "
                    f"{len(images)} images need ({len(images)},)"
                )
        positions = {int(index): place for place, index in enumerate(indices)}
        if len(positions) < len(indices):
            values, counts = np.unique(indices, return_counts=True)
            raise ValueError(
                f"Reference: index {values[counts > 1][0]} occurs more than once"
            )
        sums, counts = {}, {}
        for label in np.unique(labels):
            members = images[labels == label]
            # float64: taking one image out of a float32 sum would leave its rounding.
            sums[int(label)] = members.sum(axis=0, dtype=np.float64)
            counts[int(label)] = len(members)
        for name, value in (
            ("images", images),
            ("labels", labels),
            ("indices", indices),
            ("class_sums", sums),
            ("class_counts", counts),
            ("positions", positions),
        ):
            object.__setattr__(self, name, value)

    def mean_without(self, index: int, labels: list[int]) -> np.ndarray | None:
        """Averages the examples of labels without index: [H, W, C], None if none."""
        known = [label for label in labels if label in self.class_counts]
        count = sum(self.class_counts[label] for label in known)
        total = sum(
            (self.class_sums[label] for label in known),
            start=np.zeros(self.images.shape[1:]),
        )
        place = self.positions.get(index)
        if place is not None and int(self.labels[place]) in known:
            count -= 1
            total = total - self.images[place]
        # The difference of sums may round to just below 0.
        return np.clip(total / count, 0.0, 1.0) if count else None

    def others_of(self, label: int, index: int) -> np.ndarray:
        """Lists the positions of label's examples without index, in index order."""
        places = np.flatnonzero((self.labels == label) & (self.indices != index))
        return places[np.argsort(self.indices[places])]


def grey(victim: Victim, reference: Reference, seed: int) -> np.ndarray:
    """Paints the middle of the range."""
    del reference, seed
    return np.full(victim.image.shape, GREY)


def data_mean(victim: Victim, reference: Reference, seed: int) -> np.ndarray | None:
    """Averages the reference without the victim."""
    del seed
    return reference.mean_without(victim.index, list(reference.class_counts))


def class_mean(victim: Victim, reference: Reference, seed: int) -> np.ndarray | None:
    """Averages the reference examples of the victim's label without the victim."""
    del seed
    return reference.mean_without(victim.index, [victim.label])


def same_class(victim: Victim, reference: Reference, seed: int) -> np.ndarray | None:
    """Picks another example of the victim's label, by (seed, victim index) alone."""
    places = reference.others_of(victim.label, victim.index)
    if len(places) == 0:
        return None
    return reference.images[_generator(seed, victim, "same_class").choice(places)]


def own_mean_colour(victim: Victim, reference: Reference, seed: int) -> np.ndarray:
    """Paints the victim's mean colour: the best any constant image can do (oracle)."""
    del reference, seed
    colour = victim.image.mean(axis=(0, 1), keepdims=True, dtype=np.float64)
    return np.broadcast_to(colour, victim.image.shape)


def noise_affine(victim: Victim, reference: Reference, seed: int) -> np.ndarray:
    """Draws normal noise and fits it to the victim per channel (oracle)."""
    del reference
    noise = _generator(seed, victim, "noise_affine").standard_normal(victim.image.shape)
    return np.asarray(affine_fit(noise, victim.image))


Floor = Callable[[Victim, Reference, int], np.ndarray | None]

FLOORS: dict[str, Floor] = {
    "grey": grey,
    "data_mean": data_mean,
    "class_mean": class_mean,
    "same_class": same_class,
    "own_mean_colour": own_mean_colour,
    "noise_affine": noise_affine,
}

ORACLE_FLOORS = ("own_mean_colour", "noise_affine")


def floor_images(
    victim_image: np.ndarray,
    victim_label: int,
    victim_index: int,
    reference: Reference,
    seed: int,
) -> dict[str, np.ndarray]:
    """Makes every floor of one victim: name -> float32 [H, W, C], in FLOORS order.

    The result depends on the victim, the reference and the seed only, not on other
    victims. A floor without another example to use is left out.

    Raises ValueError if the image's shape is not the reference's, or if the
    reference holds another image or label under victim_index: the two are then
    numbered by different data sets, and leaving out that index would not leave out
    the victim.
    """
    victim_image = np.asarray(victim_image, np.float32)
    victim = Victim(victim_image, int(victim_label), int(victim_index))
    _check_victim(victim, reference)
    images = {name: floor(victim, reference, seed) for name, floor in FLOORS.items()}
    return {
        name: np.asarray(image, np.float32)
        for name, image in images.items()
        if image is not None
    }


def best_floor_mse(victim_image: np.ndarray, floors: dict[str, np.ndarray]) -> float:
    """Gives the lowest MSE of floors (from `floor_images`) to the victim [H, W, C].

    Oracle floors count: a recovery must beat them too. Raises ValueError without any.
    """
    if not floors:
        raise ValueError("best_floor_mse: floors is empty; pass floor_images(...)")
    truth = np.asarray(victim_image, np.float64)
    return min(float(np.mean((image - truth) ** 2)) for image in floors.values())


def _generator(seed: int, victim: Victim, floor: str) -> np.random.Generator:
    # The name, not its place in FLOORS: a new floor must not change the old ones.
    return np.random.default_rng([seed, victim.index, zlib.crc32(floor.encode())])


def _check_victim(victim: Victim, reference: Reference) -> None:
    if victim.image.shape != reference.images.shape[1:]:
        raise ValueError(
            f"floors: the victim has shape {victim.image.shape}, the reference's "
            f"images have {reference.images.shape[1:]}"
        )
    place = reference.positions.get(victim.index)
    if place is None:
        return
    same_label = int(reference.labels[place]) == victim.label
    if same_label and np.allclose(reference.images[place], victim.image, atol=1e-6):
        return
    raise ValueError(
        f"floors: the reference holds another example under index {victim.index} than "
        "the victim; number both by the same data set"
    )
