"""How presets search: starts, optimisers and choices, with the papers' numbers."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from caught import STEPS, here, of_two_epochs, parts_of
from toys import quick_jit
from victims import IMAGE_SHAPE

from kljax.attacks import adam, lbfgs, lbfgs_torch
from kljax.attacks.optimisers import cosine_adam, rmsprop, sign_adam
from kljax.attacks.presets import PRESETS
from kljax.core.types import Public
from kljax.threat import View

# mean and deviation of the pixels at the start; whether they are kept in the box
STARTS = {
    "matching": (0.5, 0.1, False),  # kljax's own
    "dlg": (0.0, 1.0, False),  # algorithm 1
    "idlg": (0.0, 1.0, False),
    "tag": (0.0, 1.0, False),
    # N(0, 1) of images standardised by about .45 and .25.
    "inverting-gradients": (0.5, 0.25, True),
    "ig-fedavg": (0.5, 0.25, True),
    "fedleak": (0.5, 0.25, True),  # kljax's own, as all of its search
    "gradinversion": (0.5, 0.25, True),
    "bn-updates": (0.5, 0.0, True),
    "fedavg-inversion": (0.5, 0.25, False),  # N(0, 1) of standardised images
    "gate-regression": (0.5, 0.1, False),  # kljax's own
}


@pytest.mark.parametrize("name", STARTS)
def test_searches_start_where_the_papers_do(name):
    mean, deviation, box = STARTS[name]
    federal = name in ("ig-fedavg", "fedavg-inversion", "sme")
    unknown = parts_of(name, of_two_epochs() if federal else here())["unknowns"].inputs
    # Of a view no more is looked at than the parameters, and of images not even those.
    view = View(Public({}), *(7 * [None]))

    def start(rng):
        return unknown.decode(*unknown.start(rng, view))

    drawn = quick_jit(jax.vmap(start))(jax.random.split(jax.random.key(1), 100))
    assert drawn.shape == (100, 2, *IMAGE_SHAPE)
    # Five standard errors.
    assert abs(np.mean(drawn) - mean) <= 5 * deviation / drawn.size**0.5
    assert abs(np.std(drawn) - deviation) <= 5 * deviation / (2 * drawn.size) ** 0.5
    outside = np.array([-0.5, 0.25, 1.5], np.float32)
    kept = unknown.project(outside)
    np.testing.assert_array_equal(kept, np.clip(outside, 0, 1) if box else outside)


OPTIMISERS = {
    "matching": lambda: lbfgs(),
    "dlg": lambda: lbfgs_torch(),
    "idlg": lambda: lbfgs_torch(),
    "tag": lambda: adam(0.1),
    "inverting-gradients": lambda: sign_adam(0.1, steps=STEPS),
    "ig-fedavg": lambda: sign_adam(0.1, steps=STEPS),
    "grnn": lambda: rmsprop(1e-4, 1e-3, 0.99),
    "deep-image-prior": lambda: adam(0.01),
    "gi-nas": lambda: sign_adam(1e-3),
    "gradinversion": lambda: cosine_adam(0.1, steps=STEPS, warm_up=50, noise=0.01),
    "bn-updates": lambda: cosine_adam(0.1, steps=STEPS, warm_up=100, betas=(0.9, 0.9)),
    "gate-regression": lambda: lbfgs(),
}


FIRST = (np.array([0.3, -1.0, 2.0]), (), np.array([0.7, 0.2, -0.4]))


def trajectory(optimiser, steps=STEPS, first=FIRST):
    """Records a descent on a bowl that is steeper along some directions."""
    scale = jnp.array([1.0, 4.0, 0.3])
    first = jax.tree.map(jnp.asarray, first)

    def value(free):
        return sum(jnp.sum(scale * x**2) for x in jax.tree.leaves(free))

    def step(carry, _):
        free, state = carry
        return optimiser.step(free, state, *jax.value_and_grad(value)(free)), free

    return quick_jit(
        lambda: jax.lax.scan(step, (first, optimiser.init(first)), length=steps)[1]
    )()


@pytest.mark.parametrize("name", OPTIMISERS)
def test_presets_descend_as_the_papers_do(name):
    setting = of_two_epochs() if name == "ig-fedavg" else here()
    found = trajectory(parts_of(name, setting)["optimiser"])
    wanted = trajectory(OPTIMISERS[name]())
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        found,
        wanted,
    )


def test_fedavg_inversion_descends_by_a_rate_that_falls():
    """x .997 every 20 steps from .1 on; unknown locks from .05 on."""
    optimiser = parts_of("fedavg-inversion", of_two_epochs())["optimiser"]
    images, _, lock = trajectory(optimiser)
    for found, rate in ((images, 0.1), (lock, 0.05)):
        wanted = numpy_adam(found[0], lambda t, rate=rate: rate * 0.997 ** (t / 20))
        np.testing.assert_allclose(found, wanted, atol=2e-4)


def numpy_adam(first, rate, steps=STEPS, betas=(0.9, 0.999)):
    """Adam (Kingma and Ba, algorithm 1) on the bowl of `trajectory`."""
    x, m, v = np.asarray(first, float), 0.0, 0.0
    places = []
    for t in range(steps):
        places.append(x)
        g = 2 * np.array([1.0, 4.0, 0.3]) * x
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        m_hat, v_hat = (
            s / (1 - b ** (t + 1)) for s, b in zip((m, v), betas, strict=True)
        )
        x = x - rate(t) * m_hat / (np.sqrt(v_hat) + 1e-8)
    return np.array(places)


@pytest.mark.parametrize(
    ("optimiser", "rates", "betas"),
    [
        (adam(0.1), (0.1, 0.05), (0.9, 0.999)),
        (
            cosine_adam(0.1, steps=STEPS, warm_up=100, betas=(0.9, 0.9)),
            None,
            (0.9, 0.9),
        ),
        (cosine_adam(0.1, steps=STEPS), None, (0.9, 0.999)),
    ],
)
def test_adam_is_adam(optimiser, rates, betas):
    images, _, lock = trajectory(optimiser, 60)
    for n, found in enumerate((images, lock)):
        warm_up = 100 if betas == (0.9, 0.9) else 50

        def rate(t, top=(0.1, 0.05)[n], warm_up=warm_up):
            if rates:
                return top
            if t < warm_up:
                return top * t / warm_up
            return top * (1 + np.cos(np.pi * (t - warm_up) / (STEPS - warm_up))) / 2

        wanted = numpy_adam(found[0], rate, 60, betas)
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("name", [n for n in PRESETS if PRESETS[n].objective])
def test_restarts_are_chosen_as_the_papers_do(name):
    """Inverting Gradients scores trials by the gradient's cost alone, without TV."""
    if name == "april-optimisation":
        pytest.skip("needs a transformer; composed as `matching`: test_april.py")
    if name == "tableak":
        pytest.skip("looks for rows of a table: test_tableak.py")
    if name == "ggl":
        pytest.skip("has a generator; all of its searches are alike: test_ggl.py")
    if name in ("gias", "gifd"):
        pytest.skip("have a generator, and stages: test_staged_latents.py")
    if name in ("lamp", "lamp-l1l2"):
        pytest.skip("looks for sentences: test_lamp.py")
    if name == "likelihood":
        pytest.skip("needs a density; composed as `matching`: test_noise_density.py")
    federal = name in ("ig-fedavg", "fedavg-inversion", "sme")
    # bn-updates starts at one image, and takes one restart where labels are given.
    restarts = 1 if name == "bn-updates" else 3
    parts = parts_of(name, of_two_epochs() if federal else here(), restarts)
    by_matching = name in ("inverting-gradients", "ig-fedavg", "fedleak")
    assert parts["choose_by_matching"] == by_matching
    assert (parts["steps"], parts["restarts"]) == (STEPS, restarts)


def defaults_of(function):
    parameters = inspect.signature(function).parameters.values()
    empty = inspect.Parameter.empty
    return {p.name: p.default for p in parameters if p.default is not empty}


def test_optimisers_have_their_defaults():
    assert defaults_of(lbfgs) == {"memory": 20, "window": 10, "patience": 8}  # own
    # torch.optim.LBFGS; DLG's history of 100 is torch's.
    assert defaults_of(lbfgs_torch) == {
        "learning_rate": 1.0,
        "max_iter": 20,
        "max_eval": None,
        "history": 100,
        "tolerance_grad": 1e-7,
        "tolerance_change": 1e-9,
    }
    falling = {"learning_rate": 0.1, "secret_rate": 0.05}  # the latter kljax's own
    assert defaults_of(adam) == falling | {"steps": None}
    assert defaults_of(sign_adam) == falling | {"steps": None}
    # Yin et al. (breaching): 50 steps of warm-up; Adam's own betas.
    more = {"warm_up": 50, "betas": (0.9, 0.999), "noise": 0.0}
    assert defaults_of(cosine_adam) == falling | more
    # GRNN's code: RMSprop at 1e-4 with momentum .99.
    assert defaults_of(rmsprop) == {
        "learning_rate": 1e-4,
        "secret_rate": 1e-3,
        "momentum": 0.99,
    }
