"""CKKS by TenSEAL: uploads are added up as ciphertexts (extra ``he``).

Degree N = 8192, coefficient moduli of 60, 40, 40 and 60 bits, scale 2^40: TenSEAL's
own setting of that degree, at 128-bit security. A ciphertext has N / 2 = 4096 slots.
The mean of a round is additions and one product with a plaintext, the client's share:
depth 1. CKKS is approximate: values lose about 1e-8, or 2^-40 of the largest of their
4096, whichever is more.

All clients share one HE secret key; the server has the public context alone. A server
and one client together read every upload.

The 128 bits hold against who sees ciphertexts alone, and a server is given means, too.
What CKKS loses follows from the HE secret key: two full ciphertexts of a sum, and their
means with that loss, give the key by linear equations (Li and Micciancio, "On the
Security of Homomorphic Encryption on Approximate Numbers", EUROCRYPT 2021). So who
decrypts rounds the mean to multiples of 2^-24 before a server gets it, which is coarser
than the loss. The equations then give no key; that nothing else does is not proven.
Proven is noise many times the loss (Li et al., "Securing Approximate Homomorphic
Encryption Using Differential Privacy", CRYPTO 2022), for which N = 8192 has no room.

In the spirit of Najjar et al., "Levelled Homomorphic Encryption for Connected Vehicles"
(arXiv 2506.07894): of its setting only the scheme, the library and N = 8192 are known
to us. CKKS: Cheon et al., "Homomorphic Encryption for Arithmetic of Approximate
Numbers" (ASIACRYPT 2017).
"""

import functools
import hashlib
from typing import Any, NamedTuple

import numpy as np

from kljax.federated.encryption.encryption import AddHidden, Cost, Encryption, Watch

DEGREE = 8192
MODULI = (60, 40, 40, 60)
SCALE = 2**40
SLOTS = DEGREE // 2
STEP = 2.0**-24  # of the means that a server is given
# After one product, whose modulus of 40 bits is gone, 100 bits are left: 59 for a
# value of scale 2^40 with its sign, of which one is for rounding.
LARGEST = 2.0**58
PUBLIC_ALONE = {
    "save_public_key": True,
    "save_secret_key": False,
    "save_galois_keys": False,
    "save_relin_keys": False,
}


class HeContext(NamedTuple):
    """A context of CKKS: with the HE secret key, of clients, or without.

    Attributes:
      tenseal: `tenseal.Context`.
      name: of the key pair: a hash of its public key.
    """

    tenseal: Any
    name: str


class Ciphertexts(NamedTuple):
    """Encrypted numbers as they are on the wire."""

    blocks: tuple[bytes, ...]  # of SLOTS numbers each, the last one of the rest
    size: int  # how many numbers
    context: str  # name of the key pair
    products: int = 0  # with plaintexts that were made of it

    @property
    def nbytes(self) -> int:
        """Counts the bytes on the wire."""
        return sum(len(block) for block in self.blocks)


def ckks() -> Encryption:
    """Makes encryption by CKKS, with keys that are drawn from the system's randomness.

    A round is then not repeated bit by bit, but to 2^-24, or 6e-8.

    Raises:
      ImportError: if TenSEAL is not installed.
    """
    _tenseal()
    return Encryption("ckks", lambda: adding_with(new_context()))


def new_context() -> HeContext:
    """Draws an HE key pair; the context has both keys, and is for clients alone."""
    tenseal = _tenseal()
    made = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS, DEGREE, coeff_mod_bit_sizes=list(MODULI)
    )
    made.global_scale = SCALE
    return HeContext(made, _name(made.serialize(**PUBLIC_ALONE)))


def public_context(context: HeContext) -> HeContext:
    """Makes the server's context, through the bytes that are sent to it."""
    sent = context.tenseal.serialize(**PUBLIC_ALONE)
    return HeContext(_tenseal().context_from(sent), _name(sent))


def encrypt(context: HeContext, values: np.ndarray) -> Ciphertexts:
    """Encrypts numbers, with the public key.

    Args:
      context: any.
      values: [d] within +-2^58 (`LARGEST`).

    Raises:
      ValueError: for numbers that are not finite, or too large for what is left of the
        moduli after the product: beyond them a sum would wrap around unnoticed.
    """
    values = np.asarray(values, np.float64)
    if not np.all(np.isfinite(values)):
        raise ValueError("only finite numbers can be encrypted, and some are not")
    largest = np.max(np.abs(values), initial=0.0)
    if not largest <= LARGEST:
        raise ValueError(
            f"the scale of 2^40 is exceeded: a number of size {largest:.3g} does not "
            f"fit the moduli, which hold up to 2^58 ({LARGEST:.3g})"
        )
    vector = _tenseal().ckks_vector
    blocks = [
        vector(context.tenseal, values[first : first + SLOTS]).serialize()
        for first in range(0, values.size, SLOTS)
    ]
    return Ciphertexts(tuple(blocks), values.size, context.name)


def add_scaled(
    context: HeContext, total: Ciphertexts | None, new: Ciphertexts, share: float
) -> Ciphertexts:
    """Adds ``share * new`` to a total; the server's part.

    Args:
      context: of the key pair; it needs no secret key.
      total: a sum of scaled ciphertexts; None for nothing yet.
      new: as encrypted, not scaled before.
      share: in (0, 1], which every client's share of a mean is.

    Raises:
      ValueError: for ciphertexts of another context or size, and where the depth is
        exceeded: for what was multiplied already, or a total that was not.
    """
    for sent in (new,) if total is None else (new, total):
        _check_context(context, sent)
    if not 0 < share <= 1:
        raise ValueError(f"a share of a mean is in (0, 1], got {share!r}")
    if new.products != 0 or (total is not None and total.products != 1):
        raise ValueError(
            "depth 1 is exceeded: a mean is one product of each fresh ciphertext with "
            f"its share, and this was multiplied {new.products} times, its total "
            f"{'never' if total is None else total.products}"
        )
    if total is not None and total.size != new.size:
        raise ValueError(
            f"ciphertexts of {new.size} and of {total.size} numbers cannot be added up"
        )
    blocks = []
    for place, block in enumerate(new.blocks):
        part = _load(context, block) * share
        if total is not None:
            part += _load(context, total.blocks[place])
        blocks.append(part.serialize())
    return Ciphertexts(tuple(blocks), new.size, new.context, products=1)


def decrypt(context: HeContext, sent: Ciphertexts) -> np.ndarray:
    """Decrypts numbers [d], with the HE secret key.

    Raises:
      ValueError: for ciphertexts of another context, which would decrypt to noise; for
        a context without the HE secret key; and for bytes that are no ciphertext.
    """
    _check_context(context, sent)
    if not context.tenseal.has_secret_key():
        raise ValueError(
            "decrypting needs the HE secret key, which clients have and a server does "
            "not: this context is public"
        )
    parts = [_load(context, block).decrypt() for block in sent.blocks]
    found = np.concatenate([np.zeros(0), *map(np.asarray, parts)])
    # After a product a ciphertext is divided by a prime near 2^40. TenSEAL takes it for
    # 2^40, by which every number would be 1.3e-7 of itself too large.
    found *= (_divisor() / SCALE) ** sent.products
    if found.size != sent.size:
        raise ValueError(
            f"ciphertexts of {sent.size} numbers decrypt to {found.size}: they are "
            "damaged"
        )
    return found


def adding_with(context: HeContext) -> AddHidden:
    """Makes the sum of a round from the context that clients share."""
    server = public_context(context)

    def add(
        number: int, ids: np.ndarray, shares: np.ndarray, values: np.ndarray
    ) -> tuple[np.ndarray, Cost]:
        total, sent_bytes, watch = None, 0, Watch()
        for client, share, own in zip(ids, shares, values, strict=True):
            try:
                sent = watch.timed("encrypt", encrypt, context, own)
            except ValueError as error:
                raise ValueError(f"round {number}, client {client}: {error}") from error
            sent_bytes += sent.nbytes
            # One upload at a time: a ciphertext is some twenty times its numbers.
            total = watch.timed("add", add_scaled, server, total, sent, float(share))
        mean = watch.timed("decrypt", _rounded, context, total)
        seconds = watch.seconds
        return mean, Cost(
            sent_bytes / len(ids),
            seconds["encrypt"] / len(ids),
            seconds["add"],
            seconds["decrypt"],
        )

    return add


def _rounded(context: HeContext, total: Ciphertexts) -> np.ndarray:
    """Decrypts what a server may have of a sum: its numbers without CKKS's own loss."""
    return np.rint(decrypt(context, total) / STEP) * STEP


def _tenseal() -> Any:
    try:
        import tenseal
    except ImportError as error:
        raise ImportError(
            "encryption 'ckks' needs TenSEAL, which is not installed: pip install "
            "'kljax[he]'"
        ) from error
    return tenseal


@functools.cache
def _divisor() -> int:
    """Gives the last prime of the moduli but the one that keys alone have."""
    _tenseal()
    from tenseal import sealapi

    return sealapi.CoeffModulus.Create(DEGREE, list(MODULI))[-2].value()


def _name(public: bytes) -> str:
    return hashlib.sha256(public).hexdigest()[:16]


def _check_context(context: HeContext, sent: Ciphertexts) -> None:
    if sent.context != context.name:
        raise ValueError(
            f"ciphertexts of another context: they are of key pair {sent.context}, and "
            f"this is {context.name}; all clients of a round need the same"
        )


def _load(context: HeContext, block: bytes) -> Any:
    try:
        return _tenseal().ckks_vector_from(context.tenseal, block)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"bytes that are no ciphertext: {error}") from error
