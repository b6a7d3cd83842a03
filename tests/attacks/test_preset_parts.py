"""What presets ask of a candidate: every weight, against NumPy.

A preset hands `descend` its parts. They are caught on the way and held against the
papers' formulas, written anew here, with the papers' numbers. Whether an attack
succeeds says little about a weight.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_hand import convolve
from caught import STEPS, here, of_two_epochs, parts_of
from test_statistics import apart
from toys import quick_jit, random_images
from victims import IMAGE_SHAPE, digits, update

from kljax.attacks import RESTARTS, Candidate
from kljax.attacks.presets import PRESETS, federated
from kljax.attacks.priors import order_invariance, random_convolution
from kljax.core.types import Public
from kljax.threat import observe

# --- priors ----------------------------------------------------------------------

GUESS = 1.5 * random_images(2, *IMAGE_SHAPE, seed=6) - 0.2  # some of it out of the box


def steps_along(images, axis):
    return np.diff(images.astype(np.float64), axis=axis)


def plain_variation(images):
    """Mean absolute difference along both axes, each averaged by itself."""
    return sum(np.mean(np.abs(steps_along(images, axis))) for axis in (1, 2))


def relative_variation(images):
    return np.mean([plain_variation(x[None]) / x.std() for x in images])


def squared_variation(images):
    """GRNN's: twice the mean squared differences (its divisors are their numbers)."""
    return 2 * sum(np.mean(steps_along(images, axis) ** 2) for axis in (1, 2))


def four_directions(images):
    x = images.astype(np.float64)
    differences = (
        x[:, 1:] - x[:, :-1],
        x[:, :, 1:] - x[:, :, :-1],
        x[:, 1:, 1:] - x[:, :-1, :-1],
        x[:, 1:, :-1] - x[:, :-1, 1:],
    )
    return sum(np.linalg.norm(d) for d in differences)


def mean_norm(images):
    return np.mean([np.linalg.norm(x) for x in images])


def around_the_edge(images):
    """Sum of dx^2 + dy^2 + 1e-7 that wraps around, mean over images."""
    x = images.astype(np.float64)
    squares = sum((x - np.roll(x, -1, axis)) ** 2 for axis in (1, 2)) + 1e-7
    return np.sum(squares) / len(x)


def out_of_the_box(images):
    x = images.astype(np.float64)
    return np.sum(np.maximum(0, -x) ** 2 + np.maximum(0, x - 1) ** 2) / len(x)


def statistics(first=1.0):
    """Distance of the batch statistics in front of the only norm, the first."""
    return lambda images: first * apart(images, digits(2)[0], truth().public)


def falling(start, end):
    return lambda progress: start * (end / start) ** progress


@functools.cache
def truth():
    return update(2, train=True)


def weighted(*terms):
    """Adds terms up: (weight, or its function of progress) x (function of images)."""

    def prior(images, progress):
        return sum(
            (weight(progress) if callable(weight) else weight) * term(images)
            for weight, term in terms
        )

    return prior


# preset -> its prior, as its paper or its code has it (see the docstrings of presets;
# those of `matching`, `april-optimisation` and `gate-regression` are kljax's own).
PRIORS = {
    "matching": weighted((1e-2, relative_variation)),
    "dlg": weighted(),
    "idlg": weighted(),
    "tag": weighted(),
    # Geiping et al., reconstruct_image.py: --tv 1e-4; the notebook on updates: 1e-6.
    "inverting-gradients": weighted((1e-4, plain_variation)),
    "fedleak": weighted((1e-4, plain_variation)),
    "ig-fedavg": weighted((1e-6, plain_variation)),
    # Rand2AI/GRNN: tvloss of 1e-3 for LeNet.
    "grnn": weighted((1e-3, squared_variation)),
    # cswbyu/GI-NAS, config.py: tv_value 0.
    "deep-image-prior": weighted(),
    "gi-nas": weighted(),
    # breaching, seethroughgradients.yaml; the norm per pixel as GIFD divides it.
    "gradinversion": weighted(
        (1e-4, plain_variation),
        (1e-6, lambda images: mean_norm(images) / 64),
        (0.1, statistics(first=10.0)),
    ),
    # NVFlare, quantifying-data-leakage: bn .1, tv l2 1e-4, l2 1e-5.
    "bn-updates": weighted(
        (0.1, statistics()), (1e-4, four_directions), (1e-5, mean_norm)
    ),
    "gate-regression": weighted(
        (falling(0.1, 0.01), relative_variation), (1e-2, statistics())
    ),
}


def prior_at(parts, images, progress, view=None):
    view = observe(here().threat, truth()) if view is None else view
    prior = parts["prior"]

    def value(images):
        return prior(view, Candidate(images, None, None), jnp.float32(progress))

    return float(quick_jit(value)(images))


@pytest.mark.parametrize("progress", [0.0, 0.6])
@pytest.mark.parametrize("name", PRIORS)
def test_priors_have_the_papers_weights(name, progress):
    parts = parts_of(name, of_two_epochs() if name == "ig-fedavg" else here())
    expected = PRIORS[name](GUESS, progress)
    assert prior_at(parts, GUESS, progress) == pytest.approx(expected, rel=2e-4)


def test_every_searching_preset_has_its_prior_here():
    searching = {name for name, preset in PRESETS.items() if preset.objective}
    assert searching == PRIORS.keys() | {
        "fedavg-inversion",
        "april-optimisation",  # `matching` but for its objective: test_april.py
        "ggl",  # that of its latents: test_ggl.py
        "gias",  # those of GIFD's code: test_staged_latents.py
        "gifd",
        "lamp",  # that of embeddings: test_lamp.py
        "lamp-l1l2",
        "tableak",  # none: test_tableak.py
        "sme",  # on standardised images: test_sme.py
        "likelihood",  # none, its objective is a density: test_noise_density.py
    }


# eth-sri/fedavg_leakage, reconstruct_{cifar,femnist}_table1.sh, on standardised images:
# (attack factor at the start and in the end, reg_tv, reg_clip, reg_reorder)
FEDAVG = {
    "CIFAR100": ((4.0, 2.0), 2e-4, 10.0, 6.075),
    "FEMNIST": ((1.0, 2.0), 1e-3, 2.0, 1000.0),
}


@pytest.mark.parametrize("variant", ["full", "full_many"])
@pytest.mark.parametrize("name", FEDAVG)
def test_fedavg_inversion_has_the_papers_weights(name, variant):
    """Images are standardised there: what is squared is 1 / deviation^2 as large."""
    (start, end), variation, box, order = FEDAVG[name]
    deviation = 0.25
    parts = parts_of(
        "fedavg-inversion",
        of_two_epochs(),
        variant=variant,
        numbers=getattr(federated, name),
        deviation=deviation,
    )
    images = GUESS if variant == "full" else np.concatenate([GUESS, GUESS[::-1] ** 2])
    expected = variation / deviation**2 * around_the_edge(images)
    expected += box * out_of_the_box(images)
    if variant == "full_many":
        expected += order / deviation**2 * between_epochs(images, name)
    for progress in (0.0, 0.25, 0.75):
        share = min(2 * (progress + 1 / STEPS), 1)
        factor = start * (end / start) ** share
        found = prior_at(parts, images, progress)
        assert found == pytest.approx(expected / factor, rel=2e-4)


def between_epochs(images, name):
    """Section 4's mean over all E^2 ordered pairs of epochs, and over the entries."""
    if name == "FEMNIST":
        reduced = [epoch.mean(axis=0) for epoch in np.split(images, 2)]
    else:
        features = np.asarray(random_convolution(1)(jnp.asarray(images)))
        assert features.shape[-1] == 96
        reduced = [epoch.max(axis=0) for epoch in np.split(features, 2)]
    return np.mean([np.mean((a - b) ** 2) for a in reduced for b in reduced])


def test_pairs_of_three_epochs_are_a_loop():
    """Over all ordered pairs, E^2 of them; those of an epoch with itself count 0."""
    images = random_images(6, 4, 4, 1)
    epochs = images.reshape(3, 2, 4, 4, 1)
    means = epochs.mean(axis=1)
    pairs = [np.mean((a - b) ** 2) for a in means for b in means]
    found = order_invariance(3.0, 3, "l2_mean")(
        None, Candidate(images, None, None), jnp.zeros(())
    )
    assert float(found) == pytest.approx(3.0 * np.mean(pairs), rel=1e-5)


def test_the_random_convolution_is_one():
    """Of 3x3, with zeros around; its weights have variance 1 / (9 C)."""
    images = random_images(2, 5, 6, 2)
    made = random_convolution(2, features=50)
    # What an impulse in the middle becomes is the kernel, turned round.
    impulses = np.zeros((2, 5, 5, 2), np.float32)
    impulses[(0, 1), 2, 2, (0, 1)] = 1
    answers = np.asarray(made(impulses))[:, 1:4, 1:4][:, ::-1, ::-1]
    kernel = np.moveaxis(answers, 0, 2)
    np.testing.assert_allclose(made(images), convolve(images, kernel), atol=1e-5)
    # 900 draws: five standard errors.
    assert abs(kernel.var() * 18 - 1) < 5 * (2 / kernel.size) ** 0.5


def test_gradinversion_draws_restarts_together_after_a_thirtieth():
    """GIFD: .01 per pixel, from step 500 of 15,000 on; one restart has no group."""
    several, alone = (parts_of("gradinversion", restarts=r) for r in (2, 1))
    view = observe(here().threat, truth())
    group = np.stack([GUESS, digits(2)[0]])

    def values(parts, progress):
        def value(images):
            candidate = Candidate(images, None, None)
            return parts["prior"](view, candidate, jnp.float32(progress))

        return np.asarray(quick_jit(jax.vmap(value, axis_name=RESTARTS))(group))

    distance = mean_norm((group[0] - group[1]) / 2) / 64
    for progress, weight in ((0.03, 0.0), (0.034, 0.01)):
        found = values(several, progress) - values(alone, progress)
        np.testing.assert_allclose(found, weight * distance, atol=2e-6)
    assert 0.01 * distance > 1e-4


# --- distances -------------------------------------------------------------------


def squared(a, b):
    return sum(np.sum((x - y) ** 2) for x, y in zip(a, b, strict=True))


def norms(a, b):
    return sum(np.linalg.norm(x - y) for x, y in zip(a, b, strict=True))


def angle(a, b):
    a, b = (np.concatenate([x.ravel() for x in tree]) for tree in (a, b))
    return 1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def absolute(a, b):
    return sum(np.sum(np.abs(x - y)) for x, y in zip(a, b, strict=True))


def balanced(a, b):
    whole = np.sqrt(sum(np.sum(y**2) for y in b))
    ratios = [
        whole / np.linalg.norm(y) * np.sum((x - y) ** 2)
        for x, y in zip(a, b, strict=True)
    ]
    return np.mean(ratios)


DISTANCES = {
    "matching": squared,
    "dlg": squared,
    "idlg": squared,
    "tag": lambda a, b: squared(a, b) + 0.01 * absolute(a, b),
    "inverting-gradients": angle,
    "ig-fedavg": angle,
    "grnn": lambda a, b: squared(a, b) + np.sqrt(squared(a, b)),
    "deep-image-prior": angle,
    "gi-nas": angle,
    # breaching halves the squared distance, and weighs it by 1e-4.
    "gradinversion": lambda a, b: 1e-4 / 2 * squared(a, b),
    "bn-updates": lambda a, b: 1e-3 * norms(a, b),
    "gate-regression": balanced,
}


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_are_the_papers(name):
    """That of the attack, and that which diagnoses are made with."""
    generator = np.random.default_rng(3)
    params, _ = here().task.shapes()
    ours, theirs = (
        {k: generator.standard_normal(v.shape) for k, v in params.items()}
        for _ in range(2)
    )
    wanted = DISTANCES[name]([*ours.values()], [*theirs.values()])
    trees = [
        Public({k: x.astype(np.float32) for k, x in t.items()}) for t in (ours, theirs)
    ]
    setting = of_two_epochs() if name == "ig-fedavg" else here()
    parts = parts_of(name, setting)
    for objective in (parts["objective"], PRESETS[name].objective(setting)):
        assert float(objective(*trees)) == pytest.approx(wanted, rel=1e-4)
