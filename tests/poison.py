"""The boundary between a server and what is hidden from it, which is NaN instead."""

import functools
from collections.abc import Mapping

import jax
import numpy as np

from kljax.threat import Update

# Every leaf of an update: how to put another value there, and the knowledge under
# which the server holds it.
LEAVES = {
    "inputs": (lambda u, new: u._replace(inputs=new(u.inputs)), {}),
    "targets": (lambda u, new: u._replace(targets=new(u.targets)), {"labels": "known"}),
    "secret": (
        lambda u, new: u._replace(
            private=u.private._replace(secret=new(u.private.secret))
        ),
        {"private_key": "known"},
    ),
    "trainable": (
        lambda u, new: u._replace(
            private=u.private._replace(trainable=new(u.private.trainable))
        ),
        {"lock_weights": "known"},
    ),
    "initial_lock_weights": (
        lambda u, new: u._replace(initial_lock_weights=new(u.initial_lock_weights)),
        {"lock_weights": "initial"},
    ),
    "lock_grads": (
        lambda u, new: u._replace(lock_grads=new(u.lock_grads)),
        {"lock_grads": "shared"},
    ),
    "new_stats": (
        lambda u, new: u._replace(new_stats=new(u.new_stats)),
        {"stats": "visible"},
    ),
    "before_release": (
        lambda u, new: u._replace(before_release=new(u.before_release)),
        {},
    ),
    "remembered": (lambda u, new: u._replace(remembered=new(u.remembered)), {}),
    "public": (lambda u, new: u._replace(public=new(u.public)), None),
    "stats": (lambda u, new: u._replace(stats=new(u.stats)), None),
    "sent": (lambda u, new: u._replace(sent=new(u.sent)), None),
    "earlier": (lambda u, new: u._replace(earlier=new(u.earlier)), None),
}


def is_granted(leaf: str, facts: Mapping[str, object]) -> bool:
    """Tells whether the server holds a leaf; None is for always, {} for never."""
    wanted = LEAVES[leaf][1]
    return wanted is None or (wanted != {} and wanted.items() <= facts.items())


def hidden(facts: Mapping[str, object]) -> list[str]:
    """Lists the leaves that the server does not hold."""
    return [leaf for leaf in LEAVES if not is_granted(leaf, facts)]


def poison(update: Update, leaf: str) -> Update:
    """Puts NaN into a leaf."""

    def nothing_but_nan(tree):
        return jax.tree.map(lambda x: np.full(x.shape, np.nan, x.dtype), tree)

    return LEAVES[leaf][0](update, nothing_but_nan)


def poisoned(update: Update, facts: Mapping[str, object]) -> Update:
    """Puts NaN into everything that is hidden from who knows these facts."""
    return functools.reduce(poison, hidden(facts), update)


def differences(a, b) -> bool:
    """Tells whether two trees differ in any number, NaN being equal to itself."""
    same = jax.tree.map(lambda x, y: np.array_equal(x, y, equal_nan=True), a, b)
    return not all(jax.tree.leaves(same))
