"""What the attacker of an arm makes of what the defence does to what is sent."""

from collections.abc import Callable

import jax

from kljax.attacks import AssumedDefence, Setting
from kljax.attacks.visibility import zeros_for_hidden
from kljax.core.drawing import draw_jointly
from kljax.core.types import Gates, Params, Public, Rng
from kljax.defences import SEND_ALL, Defence, as_sent
from kljax.defences.arms import Arm, Sites
from kljax.threat import View


def assume_defence(arm: Arm, defence: Defence, sites: Sites) -> AssumedDefence:
    """Gives what the attacker of an arm assumes the defence to do."""
    assumed = AssumedDefence(
        defence.gates,
        defence.simulate,
        defence.update.simulate,
        tuple(zip(sites.paths, sites.widths, strict=True)),
        _draw_gates(sites) if arm.gated else None,
    )
    if arm.release_strategy == "unaware":
        return assumed._replace(simulate=as_sent, simulate_update=as_sent)
    if arm.release_strategy == "undo":  # of what is done last
        last = "simulate" if defence.update == SEND_ALL else "simulate_update"
        return assumed._replace(**{last: as_sent})
    return assumed


def _draw_gates(sites: Sites) -> Callable[[Rng], Gates]:
    """Makes what draws the gates of a freshly drawn lock, as all are initialised."""
    lock = sites.lock

    def draw(rng: Rng) -> Gates:
        rng_weights, rng_private_key = jax.random.split(rng)
        return lock.gates(lock.init(rng_weights), lock.private_key(rng_private_key))

    return draw_jointly(draw)


def understood(arm: Arm, defence: Defence, view: View) -> View:
    """Gives what the attacker of an arm takes an upload for.

    Who is unaware of an encryption takes what is hidden for zeros; who undoes a defence
    puts the gradient that it finds in place of what it sees.
    """
    if arm.release_strategy == "unaware":
        return zeros_for_hidden(view)
    if arm.release_strategy != "undo":
        return view
    last = defence if defence.update == SEND_ALL else defence.update
    return view._replace(grads=last.undo(view.grads, view.earlier))


def check_simulated(arm: Arm, setting: Setting) -> None:
    """Refuses a defence that nobody can simulate in a step whose gradient is unseen.

    Raises:
      ValueError: with the arm, and what its `simulate` raises.
    """

    def simulate(params: Params) -> Public:
        public, _ = arm.defence.init(jax.random.key(0), params)
        return arm.defence.simulate(Public(params, public), None, None)

    try:
        jax.eval_shape(simulate, setting.task.shapes()[0])
    except Exception as error:  # whatever a user's function raises
        raise ValueError(
            f"arm {arm.name!r}: what its defence does to the gradient of a local step "
            "cannot be simulated, since the attacker sees the whole change alone: "
            f"simulate(grads, None, None) raises {type(error).__name__}. Give the "
            "defence a simulate that takes None, or let it act on the whole, as "
            "NAME@update"
        ) from error
