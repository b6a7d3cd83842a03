"""The encryptions of uploads by name."""

from collections.abc import Callable

from kljax.core.registry import make_named
from kljax.federated.encryption.encryption import Encryption
from kljax.federated.encryption.homomorphic import ckks
from kljax.federated.encryption.masking import pairwise_masks


def none() -> None:
    """Leaves uploads as they are: the server reads them."""


ENCRYPTIONS: dict[str, Callable[..., Encryption | None]] = {
    "none": none,
    "ckks": ckks,
    "pairwise-masks": pairwise_masks,
}


def make_encryption(text: str) -> Encryption | None:
    """Makes an encryption from its name and its numbers, such as ``pairwise-masks=20``.

    Args:
      text: ``NAME[=OPTIONS]``, as in `kljax.core.registry.make_named`; a name of
        `ENCRYPTIONS`, or ``package.module:function`` for a function of the numbers that
        gives an `Encryption`, or None.

    Raises:
      ValueError: for an unknown name, numbers that it does not take, and a function
        that gives something else.
      ImportError: if what it needs is not installed.
    """
    made = make_named("encryption", text, ENCRYPTIONS)
    if made is not None and not isinstance(made, Encryption):
        raise ValueError(
            f"encryption {text!r} gave no kljax.federated.encryption.Encryption, but "
            f"{type(made).__name__}"
        )
    return made
