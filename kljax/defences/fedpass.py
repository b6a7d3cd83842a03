"""Passports: private vectors that public weights make scale and shift of."""

import dataclasses

import jax

from kljax.core.types import Gate, Gates, Params, Path, Private, PyTree, Rng
from kljax.defences.bottleneck import check_size
from kljax.defences.defence import Defence
from kljax.threat import PASSPORT_STRATEGIES, HiddenParts, SecretStrategy


def gates_by_passports(
    sites: tuple[Path, ...], widths: tuple[int, ...], *, size: float = 64
) -> Defence:
    """Scales and shifts layers by what public weights make of private passports.

    Site i with C_i channels has public weights W [K, C_i] and two passports of N(0, 1),
    [K] each: ``scale = s W / sqrt(K)`` and ``shift = s' W / sqrt(K)``. The passports
    are never trained and never sent (``Private.secret``); W is trained, sent and
    aggregated like any parameter. Scales have signs.

    What is sent of W is ``s d^T + s' d'^T`` over sqrt(K): it spans the plane of the two
    passports of a site. Strategy ``regress_passports`` looks for them there;
    ``regress_gates`` and ``peel`` take the gates for free numbers, and leave what is
    sent of W, of which they say nothing, out of the comparison. To someone without
    passports (an empty ``Private()``) the network has unit gates.

    Args:
      sites: paths of the gated layers.
      widths: their channels.
      size: K of a passport.

    Raises:
      ValueError: for widths that do not match, and a size that is no whole number
        from 1.

    Reference: Gu et al., "FedPass" (IJCAI 2023, arXiv 2301.12623), in the spirit of: it
    convolves passports with the layer's own weights, passes them through an
    autoencoder, and averages; those formulas were not checked against the paper, and
    here are none of them.
    """
    if len(widths) != len(sites):
        raise ValueError(f"{len(sites)} sites {sites} need as many widths: {widths}")
    size = check_size("size", size)

    def init(rng: Rng, params: Params) -> tuple[PyTree, Private]:
        del params
        rng_weights, rng_passports = jax.random.split(rng)
        weights, secret = {}, {}
        for i, (site, width) in enumerate(zip(sites, widths, strict=True)):
            own = jax.random.fold_in(rng_weights, i)
            weights[site] = jax.random.normal(own, (size, width))
            own = jax.random.fold_in(rng_passports, i)
            secret[site] = Gate(*jax.random.normal(own, (2, size)))
        return weights, Private(secret)

    def gates(public: PyTree, private: Private) -> Gates:
        if not jax.tree.leaves(private):
            return {}
        return {
            site: Gate(
                *(part @ public[site] / size**0.5 for part in private.secret[site])
            )
            for site in sites
        }

    return Defence(
        init=init,
        gates=gates,
        strategies=tuple(map(_strategy, PASSPORT_STRATEGIES.values())),
        hidden_parts=HiddenParts("the passports", None),
    )


# Whose gates are no function of W.
_FREE_GATES = ("regress_gates", "peel")


def _strategy(strategy: SecretStrategy) -> SecretStrategy:
    if strategy.name not in _FREE_GATES:
        return strategy
    return dataclasses.replace(strategy, omits=_is_of_weights)


def _is_of_weights(name: str) -> bool:
    return name.startswith("defence/")
