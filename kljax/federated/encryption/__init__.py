"""Encryption: how a server adds up uploads that it cannot read.

`ENCRYPTIONS` names those of kljax: CKKS, and pairwise masks, its cheap relative. What
of an upload is encrypted a defence says (`Defence.visible`): all of it, where it hides
nothing. What leaks of the rest is measured without any cipher
(`kljax.defences.selective_encryption`); here is what a cipher costs.
"""

from kljax.federated.encryption.catalogue import ENCRYPTIONS, make_encryption
from kljax.federated.encryption.encryption import (
    LEAST,
    Cost,
    Encryption,
    HiddenPart,
    check_encryption,
    mean_of_hidden,
)
from kljax.federated.encryption.homomorphic import ckks
from kljax.federated.encryption.masking import MissingUpload, pairwise_masks

__all__ = [
    "ENCRYPTIONS",
    "LEAST",
    "Cost",
    "Encryption",
    "HiddenPart",
    "MissingUpload",
    "check_encryption",
    "ckks",
    "make_encryption",
    "mean_of_hidden",
    "pairwise_masks",
]
