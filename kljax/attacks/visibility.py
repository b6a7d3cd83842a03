"""Visibility: what an attacker does about the entries of an upload that are hidden.

An upload may be encrypted in part (`kljax.threat.View.visible`). What is hidden is NaN
in the view; everything here looks at the mask first.
"""

import jax
import jax.numpy as jnp

from kljax.core.types import Array, Public
from kljax.threat import View


def comparable(view: View, simulated: Public) -> tuple[Public, Public]:
    """Pairs a simulated upload with the observed one, as far as that can be read.

    Hidden entries become 0 on both sides, once the mask has been looked at: no
    difference, no length and no product comes of them, so every objective is that of
    the visible entries alone. A tensor that is hidden throughout counts like one that
    is too faint to count.

    Args:
      view: what was observed.
      simulated: the upload that a candidate would have given.

    Returns:
      (simulated, observed), two trees alike.
    """
    if view.visible is None:
        return simulated, view.grads
    mine, theirs = (
        jax.tree.map(lambda seen, x: jnp.where(seen, x, 0.0), view.visible, tree)
        for tree in (simulated, view.grads)
    )
    return mine, theirs


def without_gaps(view: View) -> View:
    """Hides each entry that any earlier upload hides.

    What a defence remembers of it nobody can follow, and so nobody can undo there what
    the defence did.
    """
    if view.visible is None or view.earlier is None:
        return view
    visible = jax.tree.map(
        lambda seen, record: seen & ~jnp.any(jnp.isnan(record), axis=0),
        view.visible,
        view.earlier,
    )
    grads = jax.tree.map(
        lambda seen, x: jnp.where(seen, x, jnp.nan), visible, view.grads
    )
    return view._replace(grads=grads, visible=visible)


def says_something(view: View) -> Array:
    """Tells [] whether anything but zeros can be read of an upload; NaN is something.

    Of one that is hidden throughout nothing can.
    """
    told = jax.tree.map(lambda x: x != 0, view.grads)
    if view.visible is not None:
        told = jax.tree.map(jnp.logical_and, told, view.visible)
    return jnp.stack([jnp.any(leaf) for leaf in jax.tree.leaves(told)]).any()


def zeros_for_hidden(view: View) -> View:
    """Makes the view of an attacker who overlooks the mask: zeros, read as facts.

    This is the non-adaptive attacker (arms ``.../unaware``). It says how much of a
    defence is only its not being known.
    """
    if view.visible is None:
        return view
    return view._replace(
        grads=jax.tree.map(
            lambda seen, x: jnp.where(seen, x, 0.0), view.visible, view.grads
        ),
        visible=None,
    )
