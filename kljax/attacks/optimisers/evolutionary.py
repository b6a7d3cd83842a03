"""Evolution strategies: what evosax has, as the driver wants it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from kljax.attacks.attack import Evolution
from kljax.core.types import Array, PyTree, Rng

POPULATION = 50  # GGL's


def cma_es(spread: float | Array = 1.0, *, population: int = POPULATION) -> Evolution:
    """Searches by CMA-ES, from the start of the attack on.

    Args:
      spread: standard deviation of the first generation, in units of the unknowns; it
        may be traced.
      population: P candidates in one generation, 4 or more.

    Raises:
      ValueError: for fewer candidates.
      ImportError: if evosax is not installed.

    Reference: Hansen, "The CMA Evolution Strategy: A Tutorial" (arXiv 1604.00772), as
    evosax has it.
    """
    if population < 4:
        raise ValueError(f"CMA-ES needs a population of 4 or more, got {population!r}")
    make = _algorithms().CMA_ES

    @functools.cache
    def algorithm(size: int):
        # Its constants are made while it is, and must not be traced.
        with jax.ensure_compile_time_eval(), _as_it_is_written():
            made = make(population_size=population, solution=jnp.zeros(size))
            return made, made.default_params

    def of(size: int) -> tuple[Any, PyTree]:
        made, params = algorithm(size)
        return made, params.replace(std_init=jnp.asarray(spread, jnp.float32))

    def init(rng: Rng, start: Array) -> PyTree:
        made, params = of(start.size)
        with _as_it_is_written():
            return made.init(rng, start, params)

    def ask(rng: Rng, state: PyTree) -> tuple[Array, PyTree]:
        made, params = of(state.mean.size)
        with _as_it_is_written():
            return made.ask(rng, state, params)

    def tell(rng: Rng, candidates: Array, values: Array, state: PyTree) -> PyTree:
        made, params = of(state.mean.size)
        with _as_it_is_written():
            return made.tell(rng, candidates, values, state, params)[0]

    return Evolution(population, init, ask, tell)


def _as_it_is_written():
    """Lets evosax add a vector to a matrix, whatever the process thinks of that."""
    return jax.numpy_rank_promotion("allow")


def _algorithms():
    try:
        from evosax import algorithms
    except ImportError as error:
        raise ImportError(
            "evolution strategies need evosax: pip install 'kljax[evolution]'"
        ) from error
    return algorithms
