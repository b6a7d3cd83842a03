"""What the attacker of an arm makes of what the defence does to what is sent."""

from collections.abc import Callable
from typing import Any

import jax

from kljax.attacks import Setting
from kljax.attacks.visibility import zeros_for_hidden
from kljax.core.types import Params, Public
from kljax.defences import SEND_ALL, Defence, as_sent
from kljax.defences.arms import Arm
from kljax.threat import View


def assumed(arm: Arm, defence: Defence) -> dict[str, Callable[..., Any]]:
    """Gives what the attacker of an arm assumes the defence does, for a `Setting`."""
    found = {
        "gates": defence.gates,
        "simulate": defence.simulate,
        "simulate_update": defence.update.simulate,
    }
    if arm.release_strategy == "unaware":
        found |= {"simulate": as_sent, "simulate_update": as_sent}
    elif arm.release_strategy == "undo":  # of what is done last
        last = "simulate" if defence.update == SEND_ALL else "simulate_update"
        found[last] = as_sent
    return found


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
        jax.eval_shape(simulate, setting.shapes()[0])
    except Exception as error:  # whatever a user's function raises
        raise ValueError(
            f"arm {arm.name!r}: what its defence does to the gradient of a local step "
            "cannot be simulated, since the attacker sees the whole change alone: "
            f"simulate(grads, None, None) raises {type(error).__name__}. Give the "
            "defence a simulate that takes None, or let it act on the whole, as "
            "NAME@update"
        ) from error
