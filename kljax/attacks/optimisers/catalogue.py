"""Which optimisers there are, by name."""

from collections.abc import Callable

from kljax.attacks.attack import Evolution, Optimiser
from kljax.attacks.optimisers.evolutionary import cma_es
from kljax.attacks.optimisers.first_order import adam, rmsprop, sign_adam
from kljax.attacks.optimisers.quasi_newton import lbfgs, lbfgs_torch
from kljax.core.registry import resolve
from kljax.core.types import Array

OPTIMISERS: dict[str, Callable[..., Optimiser | Evolution]] = {
    "lbfgs": lbfgs,
    "lbfgs_torch": lbfgs_torch,
    "adam": adam,
    "sign_adam": sign_adam,
    "rmsprop": rmsprop,
    "cma_es": cma_es,
}
# The argument that is a step size, of those who have one.
STEPPED = {
    "lbfgs_torch": "learning_rate",
    "adam": "learning_rate",
    "sign_adam": "learning_rate",
    "rmsprop": "learning_rate",
    "cma_es": "spread",
}


def make_optimiser(
    name: str, step_size: float | Array | None = None
) -> Optimiser | Evolution:
    """Makes an optimiser by name, with its own step size if none is given.

    Args:
      name: out of `OPTIMISERS`, or ``package.module:function`` of your own, which is
        called with the step size if there is one.
      step_size: first step size, in units of the unknowns; it may be traced.

    Raises:
      ValueError: for an unknown name, a step size where none is taken, and a function
        of your own that takes none, needs one, or gives no `Optimiser` or `Evolution`.
      ImportError: for one whose library is not installed.
    """
    make = resolve("optimiser", name, OPTIMISERS)
    if name not in OPTIMISERS:
        given = () if step_size is None else (step_size,)
        try:
            made = make(*given)
        except TypeError as error:
            raise ValueError(
                f"optimiser {name!r} cannot be made of step_size={step_size}: {error}"
            ) from error
        if not isinstance(made, Optimiser | Evolution):
            raise ValueError(
                f"optimiser {name!r} gave no kljax.attacks.Optimiser or Evolution, but "
                f"a {type(made).__name__}; kljax.attacks.from_optax makes one of an "
                "optax transformation"
            )
        return made
    if step_size is None:
        return make()
    if name in STEPPED:
        return make(**{STEPPED[name]: step_size})
    raise ValueError(
        f"optimiser {name!r} finds its own step sizes: leave step_size out, or "
        f"take one of {', '.join(STEPPED)}"
    )


def refuse_optimiser(optimiser: Optimiser | Evolution | None, attack: str) -> None:
    """Refuses an optimiser for a closed form, which would be ignored.

    Raises:
      ValueError: for any; the attack is named.
    """
    if optimiser is not None:
        raise ValueError(
            f"{attack} is a closed form and has no optimiser: leave it out"
        )
