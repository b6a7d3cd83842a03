"""Which attacks there are, by name."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from kljax.attacks import insertions, objectives
from kljax.attacks.attack import Attack, Evolution, Objective, Simulation
from kljax.attacks.closed_form import imprint, rgap, spear
from kljax.attacks.insertions import Insertion
from kljax.attacks.objectives import (
    balanced_l2,
    cosine,
    cosine_per_tensor,
    mean_squared_l2,
    squared_l2,
)
from kljax.attacks.optimisers import cma_es
from kljax.attacks.presets.federated import fedavg_inversion, ig_fedavg, layered_l2
from kljax.attacks.presets.generative import (
    deep_image_prior,
    ggl,
    gi_nas,
    grnn,
)
from kljax.attacks.presets.inverters import learn_inverter, learned
from kljax.attacks.presets.noise_density import likelihood, negative_log_likelihood
from kljax.attacks.presets.partial import fedleak, fedleak_objective
from kljax.attacks.presets.peeling import peeled_image
from kljax.attacks.presets.plain import dlg, matching, tag
from kljax.attacks.presets.signed import inverting_gradients
from kljax.attacks.presets.spans_of_text import dager
from kljax.attacks.presets.staged_latents import gias, gifd
from kljax.attacks.presets.statistical import (
    bn_updates,
    bn_updates_objective,
    gradinversion,
    gradinversion_objective,
)
from kljax.attacks.presets.surrogate import sme
from kljax.attacks.presets.tabular import tableak
from kljax.attacks.presets.text import lamp, lamp_l1l2
from kljax.attacks.presets.unknown_gates import gate_regression
from kljax.attacks.presets.unmixed_batches import cocktail_party
from kljax.attacks.presets.vision_transformers import (
    april,
    april_objective,
    april_optimisation,
)
from kljax.attacks.setting import Setting
from kljax.attacks.simulation import closest_surrogate
from kljax.core.registry import check_callable, resolve
from kljax.core.types import PyTree


class Preset(NamedTuple):
    """An attack by name.

    Attributes:
      build: ``(Setting, optimiser=None, *, steps, restarts) -> Attack``.
      labels: the label strategy the attack is known for.
      objective: ``Setting -> Objective`` of the attack, for diagnostics; None where an
        attack has none.
      needs: facts about the wire, fields of `kljax.threat.Knowledge`, without which
        the attack cannot be.
      inserts: what a malicious server puts in front of the network, of every arm;
        None for the network as it was agreed on.
      inputs: kinds of input that the attack looks for; None for any kind.
      degree: of the objective near its lowest value, see `kljax.metrics.loss_floor`;
        None for that of the density of what is sent (`Transform.log_prob_degree`).
      columns: `kljax.metrics.Column` of each of its ``numbers`` that kljax has none of.
      dials: options of `build`, numbers, that one compiled attack takes as data; others
        are part of the program.
      generator: whether it needs a trained one.
      language_model: whether it needs one, which studies make of sentences that are no
        victim's.
      evolution: makes the optimiser that it has where none is named, if that tries
        populations (`kljax.attacks.Evolution`).
      density: whether it needs that of what is sent (`AssumedDefence.log_prob`).
      replays_steps: whether a search on an update goes through all local steps, and
        has the parameters of each.
      simulation: ``(Setting, gates) -> Simulation`` of what it compares, for diagnosis;
        None where that is the client's own computation (`kljax.attacks.replay`).
      pools_restarts: whether its answer is made of those of all restarts; it cannot
        pool several observations as well.
      learn: ``(Setting, draw, rng, *, steps, restarts) -> tree of arrays``, with the
        options of `build`: what is learned of an arm, once, before any upload is seen;
        `build` finds it as ``setting.attacker.learned``. ``draw(rng, part)`` simulates
        an upload of examples that are public, under the defence in force, with draws of
        its own of what clients draw, and gives what is seen of it and its inputs;
        ``part`` is ``training`` or ``validation``, which share no example. None for an
        attack that learns nothing.
      no_curve: why it records no losses on the way (``info`` of a reconstruction), as
        the end of a sentence about it; empty where it does.
      gives_labels: whether it says anything of labels: rows score none of one that
        does not.
    """

    build: Callable[..., Attack]
    labels: str
    objective: Callable[[Setting], Objective] | None
    needs: Mapping[str, str] = MappingProxyType({})
    inserts: Insertion | None = None
    degree: int | None = 2
    columns: tuple[Any, ...] = ()
    inputs: tuple[str, ...] | None = ("image",)
    dials: tuple[str, ...] = ()
    generator: bool = False
    language_model: bool = False
    evolution: Callable[[], Evolution] | None = None
    density: bool = False
    replays_steps: bool = True
    simulation: Callable[..., Simulation] | None = None
    pools_restarts: bool = False
    learn: Callable[..., PyTree] | None = None
    no_curve: str = ""
    gives_labels: bool = True


def anywhere(make: Callable[[], Objective]) -> Callable[[Setting], Objective]:
    """Makes the ``objective`` of a preset whose distance is the same in any setting."""
    return lambda setting: make()


STATISTICS = {"stats": "visible"}  # what reads norm statistics needs
ANY = None  # kinds of input: the attack looks in whatever space the spec names
MALICIOUS = {"server": "malicious"}
IN_CLOSED_FORM = {
    "no_curve": "is a closed form, which has no candidate before its answer, so that "
    "nothing is iterated towards it"
}
TRAINED_BEFORE = {
    "no_curve": "is trained before it sees an upload and answers in one pass, so that "
    "nothing is iterated on a victim"
}
OF_SENTENCES = {
    "inputs": ("text",),
    "dials": ("regulariser", "perplexity"),
    "language_model": True,
}
PRESETS: dict[str, Preset] = {
    "matching": Preset(
        matching, "recovered", anywhere(squared_l2), dials=("variation",)
    ),
    "dlg": Preset(dlg, "joint", anywhere(squared_l2), inputs=ANY),
    # iDLG (Zhao, Mopuri, Bilen 2020) is DLG with the label read off first.
    "idlg": Preset(dlg, "recovered", anywhere(squared_l2), inputs=ANY),
    "gate-regression": Preset(gate_regression, "recovered", anywhere(balanced_l2)),
    "likelihood": Preset(
        likelihood,
        "recovered",
        negative_log_likelihood,
        degree=None,
        dials=("variation",),
        density=True,
    ),
    "tag": Preset(tag, "recovered", anywhere(objectives.tag), degree=1, inputs=ANY),
    "lamp": Preset(lamp, "given", anywhere(cosine_per_tensor), **OF_SENTENCES),
    # For BERT-base the paper's second variant has these weights.
    "lamp-l1l2": Preset(
        functools.partial(
            lamp, objective=lamp_l1l2(), regulariser=25.0, perplexity=60.0
        ),
        "given",
        anywhere(lamp_l1l2),
        degree=1,
        **OF_SENTENCES,
    ),
    "inverting-gradients": Preset(inverting_gradients, "recovered", anywhere(cosine)),
    "grnn": Preset(grnn, "joint", anywhere(objectives.l2_norm), degree=1),
    "deep-image-prior": Preset(
        deep_image_prior,
        "recovered",
        anywhere(cosine),
        dials=("variation", "learning_rate"),
    ),
    "gi-nas": Preset(
        gi_nas, "given", anywhere(cosine), dials=("variation", "learning_rate")
    ),
    "ggl": Preset(
        ggl,
        "recovered",
        anywhere(mean_squared_l2),
        dials=("divergence",),
        generator=True,
        evolution=cma_es,
    ),
    "gias": Preset(
        gias,
        "recovered",
        anywhere(cosine),
        dials=("learning_rate", "weight_rate", "variation"),
        generator=True,
    ),
    "gifd": Preset(
        gifd,
        "recovered",
        anywhere(cosine),
        dials=("radius", "growth", "learning_rate", "variation"),
        generator=True,
    ),
    "gradinversion": Preset(
        gradinversion,
        "recovered",
        anywhere(gradinversion_objective),
        STATISTICS,
    ),
    "bn-updates": Preset(
        bn_updates, "joint", anywhere(bn_updates_objective), STATISTICS, degree=1
    ),
    "ig-fedavg": Preset(ig_fedavg, "given", anywhere(cosine)),
    "fedleak": Preset(
        fedleak,
        "recovered",
        anywhere(fedleak_objective),
        dials=("share", "radius", "penalty", "variation", "learning_rate"),
    ),
    "fedavg-inversion": Preset(fedavg_inversion, "recovered", layered_l2),
    "sme": Preset(
        sme,
        "given",
        anywhere(cosine),
        dials=("variation", "learning_rate"),
        replays_steps=False,
        simulation=functools.partial(closest_surrogate, objective=cosine()),
    ),
    "tableak": Preset(
        tableak, "given", anywhere(cosine), inputs=("table",), pools_restarts=True
    ),
    "april-optimisation": Preset(
        april_optimisation, "recovered", anywhere(april_objective)
    ),
    "rgap": Preset(rgap, "recovered", None, **IN_CLOSED_FORM),
    "peeling": Preset(peeled_image, "recovered", None, **IN_CLOSED_FORM),
    "april": Preset(april, "recovered", None, **IN_CLOSED_FORM),
    "dager": Preset(
        dager,
        "recovered",
        None,
        inputs=("text",),
        gives_labels=False,
        **IN_CLOSED_FORM,
    ),
    "spear": Preset(spear, "recovered", None, **IN_CLOSED_FORM),
    "spear++": Preset(
        functools.partial(spear, directions="learned"),
        "recovered",
        None,
        **IN_CLOSED_FORM,
    ),
    "cocktail-party": Preset(
        cocktail_party,
        "recovered",
        None,
        dials=("decorrelation", "variation", "sharpness", "learning_rate"),
    ),
    "learned": Preset(
        learned, "recovered", None, learn=learn_inverter, **TRAINED_BEFORE
    ),
    "imprint": Preset(
        imprint,
        "recovered",
        None,
        MALICIOUS,
        insertions.imprint(bins=64),
        **IN_CLOSED_FORM,
    ),
    # As many virtual bins as there are images, in all uploads that are added up.
    "imprint-one-shot": Preset(
        functools.partial(imprint, one_shot=True),
        "recovered",
        None,
        MALICIOUS,
        insertions.imprint(bins=64, target=0.0),
        **IN_CLOSED_FORM,
    ),
}


def find_preset(name: str) -> Preset:
    """Finds an attack by name, or as ``package.module:function`` of your own.

    Raises:
      ValueError: for an unknown name, with the nearest one.
    """
    found = resolve("attack", name, PRESETS)
    if isinstance(found, Preset):
        return found
    return of_user(check_callable("attack", name, found))


def of_user(build: Callable[..., Attack] | None) -> Preset:
    """Makes a preset of a user's function, of which nothing else is known."""
    return Preset(build, "recovered", None, inputs=None)
