"""Secrets: what the attacker does about what a defence hides.

A search knows one part of its candidate as the secret, and nothing of what it is. A
defence brings its strategies along (`kljax.threat.SecretStrategy`). Those here are
about the key-lock, whose gates the attacker cannot see, about the noise of a
variational bottleneck, and about what a client draws to replace its inputs: one factory
per name in `kljax.threat.secrets.OWN_NAMES`. Each takes the `Setting` and gives the
unknown part of the candidate and the function that makes gates of it. None touches more
of the view than its strategy needs.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kljax.attacks.attack import Unknown
from kljax.attacks.closed_form import (
    bottleneck_noise,
    missing_paths,
    patch_peeling,
    peeling,
    private_key_from_lock_grads,
    sentence_peeling,
)
from kljax.attacks.closed_form.refusals import refuse_batches
from kljax.attacks.replaced_inputs import unknown_concealing, unknown_mixing
from kljax.attacks.setting import Setting, of_one_client
from kljax.attacks.simulation import move_by_gradient, of_each_client
from kljax.core.decompositions import one_at_a_time
from kljax.core.types import Array, Gate, Gates, Path, Private, Rng
from kljax.threat import View


class Secret(NamedTuple):
    """A strategy about what a defence hides.

    Attributes:
      unknown: the secret of a `Candidate`.
      gates: ``(public, that part) -> gates``: the defence's, unless the part is
        something else than a client's `Private`.
    """

    unknown: Unknown
    gates: Callable[..., Any]


def _fix_private(setting: Setting, private: Callable[[Rng, View], Private]) -> Secret:
    """Settles the private part at the start; nothing is optimised."""
    unknown = Unknown(
        start=lambda rng, view: ((), private(rng, view)),
        decode=lambda free, fixed: fixed,
    )
    return Secret(unknown, setting.defence.gates)


def unit(setting: Setting) -> Secret:
    """Runs the network without the lock's gates."""
    return _fix_private(setting, lambda rng, view: Private())


def known(setting: Setting) -> Secret:
    """Uses the true private key and lock weights."""
    return _fix_private(
        setting, lambda rng, view: Private(view.private_key, view.lock_weights)
    )


def extract(setting: Setting) -> Secret:
    """Reads the private key off the shared lock gradients, in closed form.

    Of an update, what weight decay did to the lock weights is taken out first: exactly
    where they are known, and as it was in round 0 where only the initial ones are.
    """

    def private(rng: Rng, view: View) -> Private:
        grads = view.lock_grads
        if setting.protocol is not None:
            start = (view.public, view.lock_weights)
            _, decay = move_by_gradient(setting.protocol, start, 0.0)
            grads = jax.tree.map(jnp.subtract, grads, decay)
        return Private(private_key_from_lock_grads(grads), view.lock_weights)

    return _fix_private(setting, private)


def _draw_private_key(rng: Rng, view: View):
    # The first site's kernel [K, C] says how long the private key is.
    return jax.random.uniform(rng, view.lock_weights[0]["scale"]["kernel"].shape[:1])


def fixed_random(setting: Setting) -> Secret:
    """Guesses a private key at random, U(0, 1) as the client draws it."""
    return _fix_private(
        setting,
        lambda rng, view: Private(_draw_private_key(rng, view), view.lock_weights),
    )


def fixed_mean(setting: Setting) -> Secret:
    """Guesses the mean private key: 0.5 throughout."""

    def private(rng: Rng, view: View) -> Private:
        guess = jnp.full_like(_draw_private_key(rng, view), 0.5)
        return Private(guess, view.lock_weights)

    return _fix_private(setting, private)


def regress_private_key(setting: Setting) -> Secret:
    """Optimises the private key with the image, from a random one, unconstrained.

    Reference: FedKL, DLG_test.py, flag gen_key.
    """
    unknown = Unknown(
        start=lambda rng, view: (_draw_private_key(rng, view), view.lock_weights),
        decode=Private,
    )
    return Secret(unknown, setting.defence.gates)


def live_channels(setting: Setting, view: View) -> dict[Path, Array]:
    """Tells which channels of each site have a scale that is not 0.

    A scale of 0 lets no gradient through: the layer below the gate has a kernel
    gradient of exact zeros for that channel. Only exact zeros are read, so that behind
    a defence which adds noise every channel counts as live. Pruning can make zeros of
    its own, and weight decay can hide those of an update. Of a kernel that is hidden in
    part the visible entries tell; a channel that is hidden throughout counts as live.

    Returns:
      site -> [C] bool, true throughout for a site of which `Task.feeds` says
      nothing.
    """
    feeds = dict(setting.task.feeds)
    live = {}
    for site, width in setting.defence.sites:
        if site not in feeds:
            live[site] = jnp.ones(width, bool)
            continue
        kernel = view.grads.model[f"{feeds[site]}/kernel"]
        axes, hidden = tuple(range(kernel.ndim - 1)), jnp.isnan(kernel)
        live[site] = jnp.any((kernel != 0) & ~hidden, axes) | jnp.all(hidden, axes)
    return live


DRAWS = 16  # of freshly drawn gates, to see how large gates are


def regress_gates(setting: Setting) -> Secret:
    """Optimises scale and shift per channel: neither private key nor lock weights.

    Scales are positive, and looked for as logarithms; those of channels that are seen
    to be dead are 0 and stay so. Shifts are free. All channels of a site start alike,
    at the means of the gates that a freshly drawn lock of the same make could have
    (`AssumedDefence.draw_gates`, dead scales left out); where nobody knows how locks
    are initialised, at those of |N(0, 1)|. The mean scale is also the unit that shifts
    are measured in. This is kljax's own attack; its start was chosen on victims of
    their own by the attacker's own loss: experiments/gate_regression.py.

    A freshly drawn lock with negative scales says that scales have signs. They are then
    looked for as they are, from those of one draw: signs are guessed, and restarts
    guess anew.
    """

    def start(rng: Rng, view: View):
        live, drawn = live_channels(setting, view), _draw_gates(setting, rng)
        free, fixed = {}, {}
        for site, width in setting.defence.sites:
            draws = drawn[site]
            sizes, signed = jnp.abs(draws.scale), jnp.any(draws.scale < 0)
            alive = sizes > 0
            unit = jnp.sum(sizes, where=alive) / jnp.maximum(jnp.sum(alive), 1)
            unit = jnp.where(unit > 0, unit, 1.0)
            shift = jnp.mean(draws.shift) / unit
            scale = jnp.where(signed, draws.scale[0] / unit, 0.0)
            free[site] = Gate(scale, jnp.full(width, shift))
            fixed[site] = (live[site], unit, signed)
        return free, fixed

    def decode(free, fixed):
        gates = {}
        for site, (scale, shift) in free.items():
            live, unit, signed = fixed[site]
            # The exponent of what is none could overflow, and its derivative with it.
            sized = jnp.exp(jnp.where(signed, 0.0, scale))
            scale = unit * jnp.where(signed, scale, sized)
            gates[site] = Gate(jnp.where(live, scale, 0.0), unit * shift)
        return gates

    return Secret(Unknown(start, decode), lambda public, guess: guess)


def regress_passports(setting: Setting) -> Secret:
    """Optimises passports within the plane of the gradient of their weights.

    What a client sends of a site's W [K, C] is ``s d^T + s' d'^T`` over sqrt(K), for
    its passports s and s': its first two left singular vectors span their plane. Two
    numbers are looked for of each passport, from N(0, K/2), as many as say how long
    passports are; they give the gates through W, and the gradient of W, which is
    compared with the others. A row of W that is hidden is taken for 0 in both. This is
    kljax's own attack.
    """

    def start(rng: Rng, view: View):
        free, fixed = {}, {}
        for i, (site, _) in enumerate(setting.defence.sites):
            plane = _plane(jnp.nan_to_num(view.grads.defence[site]))
            own = jax.random.fold_in(rng, i)
            free[site] = jax.random.normal(own, (2, plane.shape[1]))
            fixed[site] = plane
        return free, fixed

    def decode(free, fixed):
        return Private(
            {
                site: Gate(*(math.sqrt(plane.shape[0] / 2) * free[site] @ plane.T))
                for site, plane in fixed.items()
            }
        )

    return Secret(Unknown(start, decode), setting.defence.gates)


@one_at_a_time
def _plane(sent: Array) -> Array:
    """Finds the plane [K, 2] that the columns of what is sent [K, C] lie in."""
    return jnp.linalg.svd(sent, full_matrices=False)[0][:, :2]


def peel(setting: Setting) -> Secret:
    """Reads the gates off the layers above the lock, in closed form, and keeps them.

    This is kljax's own attack. The secret of the candidate is a
    `kljax.attacks.Peeled`, which says how far its gates can be trusted. A vision
    transformer's patch embedding is peeled by `kljax.attacks.patch_peeling`, what a
    transformer of sentences has in front of its first attention by
    `kljax.attacks.sentence_peeling`, chains of layers by `kljax.attacks.peeling`.

    Raises:
      ValueError: where the network, its lock or the upload cannot be peeled.
    """
    if setting.task.inputs.kind == "text":
        find = sentence_peeling
    else:
        find = peeling if missing_paths(setting) else patch_peeling
    attack = find(setting)
    unknown = Unknown(
        start=lambda rng, view: ((), attack(view)),
        decode=lambda free, fixed: fixed,
    )
    return Secret(unknown, lambda public, peeled: peeled.gates)


def _draw_gates(setting: Setting, rng: Rng) -> Gates:
    """Draws gates of every site, [DRAWS, C], as the public initialiser makes them."""
    if setting.defence.draw_gates is None:
        rngs = jax.random.split(rng, len(setting.defence.sites))
        return {
            site: Gate(*jnp.abs(jax.random.normal(rngs[i], (2, DRAWS, width))))
            for i, (site, width) in enumerate(setting.defence.sites)
        }
    # A draw is of a whole lock: one program for all sites. And one after another:
    # written out, or side by side, they nearly double what an attack takes to compile.
    rngs = jax.random.split(jax.random.fold_in(rng, 0), DRAWS)
    return jax.lax.map(setting.defence.draw_gates, rngs)


def random_noise(setting: Setting) -> Secret:
    """Draws for itself what a client draws in its step, and keeps it."""
    draw = _draw_of_step(setting)
    return _fix_private(setting, lambda rng, view: draw(rng))


def regress_noise(setting: Setting) -> Secret:
    """Optimises what a client draws in its step with the image, from an own draw."""
    draw = _draw_of_step(setting)
    unknown = Unknown(
        start=lambda rng, view: (draw(rng), ()),
        decode=lambda free, fixed: free,
    )
    return Secret(unknown, setting.defence.gates)


def read_noise(setting: Setting) -> Secret:
    """Reads the noise of a dense bottleneck off its gradients, in closed form."""
    refuse_batches(setting, "secret strategy 'read_noise'")
    return _fix_private(setting, lambda rng, view: Private(bottleneck_noise(view)))


def regress_mixing(setting: Setting) -> Secret:
    """Optimises how a batch is mixed, see `kljax.attacks.replaced_inputs`."""
    draw = _draw_of_step(setting)
    return Secret(unknown_mixing(setting, draw), setting.defence.gates)


def regress_concealing(setting: Setting) -> Secret:
    """Optimises what a batch is trained on along with, and the labels of that."""
    draw = _draw_of_step(setting)
    return Secret(unknown_concealing(setting, draw), setting.defence.gates)


def _draw_of_step(setting: Setting) -> Callable[[Rng], Private]:
    draw = setting.defence.draw_private
    if draw is None:
        raise ValueError(
            f"secret strategy {setting.threat.strategy.secret!r} is about what a "
            "client draws in its step, and this defence draws nothing there"
        )
    return draw


SECRETS: dict[str, Callable[[Setting], Secret]] = {
    "unit": unit,
    "known": known,
    "extract": extract,
    "fixed_random": fixed_random,
    "fixed_mean": fixed_mean,
    "regress_private_key": regress_private_key,
    "regress_gates": regress_gates,
    "regress_passports": regress_passports,
    "peel": peel,
    "mean": unit,
    "random_noise": random_noise,
    "regress_noise": regress_noise,
    "read_noise": read_noise,
    "omit": unit,
    "trained_on": unit,
    "random_draws": random_noise,
    "regress_mixing": regress_mixing,
    "regress_concealing": regress_concealing,
}


def secret_of(setting: Setting) -> Secret:
    """Makes the strategy that the threat model names.

    Of an average of K clients each has a secret of its own, and so has the candidate:
    its leaves have a leading axis [K]. ``gates`` are those of one client.

    Raises:
      ValueError: where the setting is not one that the strategy can work on, and for a
        strategy of the defence's own that gives no `Unknown`.
    """
    knows = setting.threat.knowledge
    if knows.upload == "average":
        of_one = secret_of(of_one_client(setting))
        return of_one._replace(unknown=of_each_client(of_one.unknown, knows))
    name, own = setting.threat.strategy.secret, setting.threat.about_secret.unknown
    if own is None:
        return SECRETS[name](setting)
    unknown = own(setting)
    if isinstance(unknown, Unknown):
        return Secret(unknown, setting.defence.gates)
    if not isinstance(unknown, Secret):
        raise ValueError(
            f"secret strategy {name!r} gave {type(unknown).__name__}, expected a "
            "kljax.attacks.Unknown"
        )
    return unknown
