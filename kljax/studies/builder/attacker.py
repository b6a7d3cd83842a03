"""What the attacker of an arm makes of what the defence does to what is sent."""

from collections.abc import Callable

import jax

from kljax.attacks import AssumedDefence, Setting
from kljax.attacks.presets import PRESETS, Preset
from kljax.attacks.visibility import without_gaps, zeros_for_hidden
from kljax.core.drawing import draw_jointly
from kljax.core.files import brief
from kljax.core.inputs import InputSpec
from kljax.core.randomness import fixed_rng
from kljax.core.types import Array, Gates, Params, Private, Public, Rng, Stats
from kljax.defences import SEND_ALL, Context, Defence, as_sent, step_transform
from kljax.defences.arms import Arm, Sites, last_transform
from kljax.defences.defence import keep_private
from kljax.defences.estimated import estimated_release
from kljax.studies.builder.observing import remembers
from kljax.studies.config import LeakConfig
from kljax.threat import KEYLOCK_STRATEGIES, View
from kljax.threat.parts import ALL, list_readable
from kljax.threat.secrets import by_name

CROSS_ENTROPY = "cross_entropy"


def assume_defence(
    arm: Arm,
    defence: Defence,
    sites: Sites,
    examples: int,
    params: Params,
    loss: str = CROSS_ENTROPY,
) -> AssumedDefence:
    """Gives what the attacker of an arm assumes the defence to do.

    Args:
      arm: how its attacker goes about it.
      defence: of the arm, at the numbers of a victim.
      sites: of a lock.
      examples: of one upload.
      params: of the network, or their shapes.
      loss: of the clients, by name.
    """
    assumed = AssumedDefence(
        defence.gates,
        defence.simulate,
        defence.update.simulate,
        tuple(zip(sites.paths, sites.widths, strict=True)),
        _draw_gates(defence, sites, params) if arm.gated else None,
        log_prob=_density(arm, defence),
        simulate_example=defence.simulate_example,
        simulate_inputs=_replaced_inputs(defence) if arm.simulates_inputs else None,
        draw_private=_draw_private(defence, examples),
    )
    if arm.release_strategy == "unaware":
        return assumed._replace(
            simulate=as_sent, simulate_update=as_sent, simulate_example=None
        )
    if arm.release_strategy == "estimate":
        softmax = loss == CROSS_ENTROPY
        simulate = estimated_release(sites.classifier, zero_sum=softmax)
        return assumed._replace(
            simulate=simulate, simulate_update=simulate, simulate_example=None
        )
    if arm.release_strategy == "undo":  # of what is done last
        last = "simulate" if defence.update == SEND_ALL else "simulate_update"
        return assumed._replace(**{last: as_sent})
    return assumed


def check_labels(config: LeakConfig, arm: Arm, labels: str) -> None:
    """Refuses labels that are read where memory and encryption leave nothing to read.

    Rules read signs of the gradient. What is sent of one that is remembered has signs
    of earlier ones mixed in, and what is left of them under an encryption tells no
    class from another: the search would begin without labels, at an infinite loss.

    Args:
      config, arm: of the study.
      labels: strategy of the attacker.

    Raises:
      ValueError: with the arm.
    """
    mixed = config.earlier and remembers(arm.defence) and arm.hides_entries
    if mixed and labels == "recovered" and arm.release_strategy == "simulate":
        undone = f"{arm.name.removesuffix('/simulate')}/undo"
        raise ValueError(
            f"arm {arm.name!r}: labels='recovered' reads signs of the gradient, which "
            "this defence mixes with those of earlier uploads, and hides in part: "
            f"write labels='joint' or 'given', earlier=0, or, where it can be undone, "
            f"the arm {undone!r}"
        )


def check_visible(arm: Arm, setting: Setting) -> None:
    """Refuses a part of an upload that is not there, or that no label can be read off.

    Raises:
      ValueError: for tensors that the network does not have, and for labels that are to
        be recovered from a classifier whose gradient is not in the part.
    """
    visible = setting.threat.knowledge.visible
    if visible == ALL:
        return
    params = setting.task.shapes()[0]

    def sent(rng: Rng) -> Public:
        return Public(params, arm.defence.init(rng, params)[0])

    names = list_readable(jax.eval_shape(sent, jax.random.key(0)), visible)
    classifier = setting.task.classifier
    if setting.threat.strategy.labels == "recovered" and not any(
        name.startswith(f"{classifier}/") for name in names
    ):
        raise ValueError(
            f"labels='recovered' reads the gradient of the classifier {classifier!r}, "
            f"which is no part of visible={visible!r}: write labels='given' or 'joint'"
        )


def check_density(
    config: LeakConfig, arm: Arm, preset: Preset, inputs: InputSpec | None = None
) -> None:
    """Refuses an attack by likelihood where what is uploaded has no density.

    Args:
      config: the study.
      arm: that is attacked.
      preset: the attack.
      inputs: of the dataset, once it is known.

    Raises:
      ValueError: with the arm.
    """
    if not preset.density:
        return
    of_step = step_transform(arm.defence).log_prob
    of_steps = config.upload == "update" and of_step is not None
    if _density(arm, arm.defence) is None or of_steps:
        where = "@update" if config.upload == "update" else ""
        raise ValueError(
            f"arm {arm.name!r}: attack {config.attack!r} needs the density of what is "
            "uploaded, and there is none for this attacker: take an arm that may clip, "
            "prune or quantise a computed gradient, and then adds one noise above 0, "
            f"such as gaussian-noise{where}=0.01, or another attack"
        )
    unexplained = inputs.search.unexplained if inputs is not None else ()
    changed = last_transform(arm.defence).simulate is not as_sent
    changed |= arm.defence.per_example is not None
    if changed and (arm.gated or unexplained):
        which = ", ".join(unexplained) or "the lock weights"
        raise ValueError(
            f"arm {arm.name!r}: attack {config.attack!r} needs the density of what is "
            "uploaded, and what is done before the noise is a function of all tensors: "
            f"a candidate does not explain the gradient of {which}. Take an arm that "
            "adds noise alone, or another attack"
        )


def check_simulated_inputs(config: LeakConfig, arm: Arm) -> None:
    """Refuses to simulate what takes the place of inputs where nothing is replayed.

    A closed form solves for what was trained on. Whether a user's attack replays its
    candidates nobody knows.

    Raises:
      ValueError: with the arm.
    """
    preset = PRESETS.get(config.attack)
    if arm.simulates_inputs and preset is not None and preset.objective is None:
        raise ValueError(
            f"arm {arm.name!r}: attack {config.attack!r} is a closed form, which "
            "replays no candidate, and so cannot replace one as the defence does: drop "
            "'/simulate', or take an attack that searches, such as 'matching'"
        )


def _density(arm: Arm, defence: Defence) -> Callable[[Public, Public], Array] | None:
    """Gives the density of what is uploaded, to an attacker who knows the defence."""
    if arm.release_strategy != "simulate":
        return None
    return last_transform(defence).log_prob


def _replaced_inputs(defence: Defence) -> Callable[..., tuple[Array, Array]]:
    """Gives what the attacker trains its candidate's replay on, of one draw for all."""

    def inputs(
        public: Public, stats: Stats, images: Array, targets: Array, gradient, private
    ):
        context = Context(public, stats, images, targets, gradient, private)
        return defence.simulate_inputs(fixed_rng("substitute"), context)

    return inputs


def _draw_private(defence: Defence, examples: int) -> Callable[[Rng], Private] | None:
    """Makes what draws what a client draws anew in each step."""
    if defence.draw_private is keep_private:
        return None
    return lambda rng: defence.draw_private(rng, Private(), examples)


def _draw_gates(
    defence: Defence, sites: Sites, params: Params
) -> Callable[[Rng], Gates]:
    """Makes what draws the gates of a freshly made client, as all are initialised.

    Of an arm that hides nothing these are a lock's, too: its closed forms expect one.
    """
    lock = sites.lock
    if by_name(defence.strategies) not in ({}, KEYLOCK_STRATEGIES):
        return draw_jointly(lambda rng: defence.gates(*defence.init(rng, params)))

    def draw(rng: Rng) -> Gates:
        rng_weights, rng_private_key = jax.random.split(rng)
        return lock.gates(lock.init(rng_weights), lock.private_key(rng_private_key))

    return draw_jointly(draw)


def understood(arm: Arm, defence: Defence, view: View) -> View:
    """Gives what the attacker of an arm takes an upload for.

    Who is unaware of an encryption takes what is hidden for zeros; who undoes a defence
    puts the gradient that it finds in place of what it sees, and nothing where an
    earlier upload hides what the defence remembers.
    """
    if arm.release_strategy == "unaware":
        return zeros_for_hidden(view)
    if arm.release_strategy != "undo":
        return view
    last = defence if defence.update == SEND_ALL else defence.update
    found = view._replace(grads=last.undo(view.grads, view.earlier))
    return without_gaps(found)


def check_simulated(arm: Arm, setting: Setting) -> None:
    """Refuses a defence that an attacker who knows it cannot simulate.

    Of a step of local training nobody sees the gradient, and of one of the clients of
    an average nobody sees what it sends.

    Raises:
      ValueError: with the arm, and what its `simulate` raises.
    """
    average = setting.threat.knowledge.upload == "average"
    seen, defence = setting.protocol is None and not average, arm.defence

    def simulate(params: Params) -> tuple[Public, Public]:
        public, private = defence.init(jax.random.key(0), params)
        grads = Public(params, public)
        sent = grads if seen else None
        if defence.simulate_example is not None:
            grads = defence.simulate_example(grads)
        return (
            defence.simulate(grads, sent, None, private),
            defence.update.simulate(grads, None if average else grads, None, private),
        )

    try:
        jax.eval_shape(simulate, setting.task.shapes()[0])
    except Exception as error:  # whatever a user's function raises
        name = type(error).__name__
        if seen:
            raise ValueError(
                f"arm {arm.name!r}: what its defence does to a gradient cannot be "
                f"simulated: simulate(grads, sent, None, private) raises {name}: "
                f"{brief(error)}"
            ) from error
        if average:
            raise ValueError(
                f"arm {arm.name!r}: what its defence does to the upload of each client "
                "cannot be simulated, since the attacker sees the average of all "
                f"alone: simulate(grads, None, None, private) raises {name}. Take "
                f"'{arm.name.partition('/')[0]}/unaware', or a defence whose simulate "
                "takes None"
            ) from error
        raise ValueError(
            f"arm {arm.name!r}: what its defence does to the gradient of a local step "
            "cannot be simulated, since the attacker sees the whole change alone: "
            f"simulate(grads, None, None, private) raises {name}. Give the defence a "
            "simulate that takes None, or let it act on the whole, as NAME@update"
        ) from error
