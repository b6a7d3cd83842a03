"""Objectives, and their gradients, against slow formulas in NumPy."""

import functools

import jax
import numpy as np
import pytest
from slopes import assert_is_formula
from toys import quick_jit, setting, threat, toy_model

from kljax.attacks.objectives import (
    OBJECTIVES,
    cosine,
    l1,
    norm,
    squared_l2,
)
from kljax.attacks.presets.federated import layered_l2
from kljax.attacks.tensors import (
    exponential,
    first,
    largest,
    last,
    linear,
    mask,
    weighted,
)
from kljax.core.types import Public
from kljax.defences import none

# In forward order, which is not that of the names; last what a defence adds.
SHAPES = {
    "first/kernel": (4, 3),
    "first/bias": (3,),
    "fc/kernel": (3, 3),
    "fc/bias": (3,),
    "gate": (3,),
}
SIZE = sum(int(np.prod(shape)) for shape in SHAPES.values())
DEPTHS = {name: depth for depth, name in enumerate(list(SHAPES)[:4])}
GENERATOR = np.random.default_rng(0)
SIMULATED = GENERATOR.standard_normal(SIZE).astype(np.float32)
OBSERVED = GENERATOR.standard_normal(SIZE).astype(np.float32)


def tensors(numbers):
    """Cuts one row of numbers into tensors by name."""
    ends = np.cumsum([int(np.prod(shape)) for shape in SHAPES.values()])
    parts = np.split(numbers, ends[:-1])
    return {
        name: part.reshape(shape)
        for (name, shape), part in zip(SHAPES.items(), parts, strict=True)
    }


def upload(numbers):
    *model, gate = tensors(numbers).items()
    return Public(dict(model), dict([gate]))


def numbers_of(upload):
    named = upload.model | upload.defence
    return np.concatenate([np.ravel(named[name]) for name in SHAPES])


def square(a, b):
    return sum((x - y) ** 2 for x, y in zip(a.flat, b.flat, strict=True))


def length(a, b):
    return square(a, b) ** 0.5


def absolute(a, b):
    return sum(abs(x - y) for x, y in zip(a.flat, b.flat, strict=True))


def dot(a, b):
    return sum(x * y for x, y in zip(a.flat, b.flat, strict=True))


def total(term, weights=lambda o: {}):
    """Sums a term over the tensors; those that no weight is said of weigh 1."""

    def formula(g, o):
        return sum(weights(o).get(name, 1) * term(g[name], o[name]) for name in g)

    return formula


def angle(weights=lambda o: {}):
    inner = total(dot, weights)

    def formula(g, o):
        lengths = total(dot, lambda _: weights(o))
        return 1 - inner(g, o) / (lengths(g, g) * lengths(o, o)) ** 0.5

    return formula


def not_rounding(o):
    """Names the tensors longer than a millionth of the whole."""
    whole = total(dot)(o, o) ** 0.5
    return [name for name in o if dot(o[name], o[name]) ** 0.5 > 1e-6 * whole]


def mean_angle(g, o):
    names = not_rounding(o)
    return np.mean([angle()({n: g[n]}, {n: o[n]}) for n in names])


def balanced(g, o):
    whole = total(dot)(o, o) ** 0.5
    terms = [
        whole / dot(o[name], o[name]) ** 0.5 * square(g[name], o[name])
        for name in not_rounding(o)
    ]
    return sum(terms) / len(SHAPES)


def two_longest(o):
    names = sorted(DEPTHS, key=lambda name: dot(o[name], o[name]))
    return {name: float(name in names[2:]) for name in names}


def always(weights):
    return lambda o: dict(zip(DEPTHS, weights, strict=True))


KEPT = {"first/kernel": True, "first/bias": False, "fc/kernel": True, "fc/bias": False}
MASK = always((1, 0, 1, 0))
LINEAR = always((1, 0.75, 0.5, 0.25))
LAYERS = always((1, 1, np.exp(-1), np.exp(-1)))
GROUND = setting(threat(), none())
PLAIN = {
    "squared_l2": total(square),
    "mean_squared_l2": lambda g, o: total(square)(g, o) / len(SHAPES),
    "l1": total(absolute),
    "norm": total(length),
    "l2_norm": lambda g, o: total(square)(g, o) + total(square)(g, o) ** 0.5,
    "tag": lambda g, o: total(square)(g, o) + 0.01 * total(absolute)(g, o),
    "cosine": angle(),
    "cosine_per_tensor": mean_angle,
    "balanced_l2": balanced,
}
# name -> objective, and its formula of two {name: tensor}
DISTANCES = {name: (OBJECTIVES[name](), PLAIN[name]) for name in PLAIN} | {
    "layered_l2": (layered_l2(GROUND), total(square, LAYERS)),
    "first": (
        weighted(squared_l2(), first(DEPTHS, 2)),
        total(square, always((1, 1, 0, 0))),
    ),
    "last": (
        weighted(squared_l2(), last(DEPTHS, 3)),
        total(square, always((0, 1, 1, 1))),
    ),
    "largest": (weighted(squared_l2(), largest(2)), total(square, two_longest)),
    "mask": (weighted(cosine(), mask(KEPT)), angle(MASK)),
    "linear": (weighted(squared_l2(), linear(DEPTHS)), total(square, LINEAR)),
    "linear, of norms": (
        weighted(norm(), linear(DEPTHS), degree=1),
        total(length, LINEAR),
    ),
    "linear, of absolutes": (
        weighted(l1(), linear(DEPTHS), degree=1),
        total(absolute, LINEAR),
    ),
    "linear, of a cosine": (weighted(cosine(), linear(DEPTHS)), angle(LINEAR)),
    "exponential": (
        weighted(squared_l2(), exponential(DEPTHS, 0.5)),
        total(square, always((1, 0.5, 0.25, 0.125))),
    ),
}


@functools.cache
def distance(name):
    """Compiles the value of an objective, and its gradient by the simulated."""
    both = jax.value_and_grad(DISTANCES[name][0])
    return quick_jit(lambda g, o: both(upload(g), upload(o)))


def test_every_objective_is_here():
    assert set(PLAIN) == set(OBJECTIVES)
    shapes, _ = jax.eval_shape(toy_model().init, jax.random.key(0))
    assert {name: leaf.shape for name, leaf in shapes.items()} == {
        name: SHAPES[name] for name in DEPTHS
    }


@pytest.mark.parametrize("faint", (False, True), ids=("all", "one is rounding"))
@pytest.mark.parametrize("name", DISTANCES)
def test_an_objective_is_its_formula_and_so_is_its_gradient(name, faint):
    observed = OBSERVED.copy()
    if faint:
        observed[12:15] *= 1e-8
    value, slopes = distance(name)(SIMULATED, observed)
    truth = tensors(observed.astype(np.float64))
    assert_is_formula(
        value,
        numbers_of(slopes),
        lambda numbers: DISTANCES[name][1](tensors(numbers), truth),
        SIMULATED,
    )


@pytest.mark.parametrize("name", ("l1", "tag", "norm", "l2_norm", "linear, of norms"))
def test_nothing_pulls_where_nothing_is_apart(name):
    """Of |x| and of a norm at 0 there is no derivative: it is taken for 0."""
    value, slopes = distance(name)(OBSERVED, OBSERVED)
    assert value == 0
    np.testing.assert_array_equal(numbers_of(slopes), 0)


@pytest.mark.parametrize("name", ("cosine_per_tensor", "balanced_l2"))
@pytest.mark.parametrize("share", (0.8, 1.25))
def test_a_millionth_of_the_whole_is_where_rounding_ends(name, share):
    observed = OBSERVED.astype(np.float64)
    rest = np.delete(observed, slice(12, 15))
    faint = observed[12:15] / np.linalg.norm(observed[12:15])
    observed[12:15] = share * 1e-6 * np.linalg.norm(rest) * faint
    assert len(not_rounding(tensors(observed))) == (5 if share > 1 else 4)
    value, _ = distance(name)(SIMULATED, observed.astype(np.float32))
    expected = PLAIN[name](tensors(SIMULATED.astype(np.float64)), tensors(observed))
    np.testing.assert_allclose(value, expected, rtol=1e-4)
