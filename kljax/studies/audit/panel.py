"""The panels of a network's audit: which attackers try inputs of a kind.

A panel is a row of `PANELS`. To it come the presets that look for inputs of its kind
without a search (closed forms, what learns first, malicious servers), by themselves:
`kljax.attacks.presets.PRESETS` says which kinds those are. Every attacker is a leakage
study of its own (`kljax.leak`) on the same uploads, without a defence. One that cannot
work on a network is told with its reason, and tries nothing.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax.numpy as jnp

from kljax.attacks import Attack, Reconstruction, Setting, dense_layer
from kljax.attacks.labels.catalogue import RULES, find_rule
from kljax.attacks.presets import PRESETS, find_preset
from kljax.core.inputs import InputSpec
from kljax.core.types import Rng
from kljax.models.flattening import flattened_inputs
from kljax.threat import View

LABELS_ALONE = f"{__name__}:labels_alone"
FED_LAYER = f"{__name__}:fed_layer"
# Kinds of attackers, in the order in which a page lists them.
LABEL_RULES, CLOSED_FORM, SEARCH = "label rules", "closed form", "search"
MALICIOUS_SERVER, LEARNED = "malicious server", "learned"
KINDS = (LABEL_RULES, CLOSED_FORM, SEARCH, MALICIOUS_SERVER, LEARNED)


class Member(NamedTuple):
    """One attacker of a panel.

    Attributes:
      name: as it is told.
      attack: preset, or ``package.module:function``.
      kind: out of `KINDS`.
      labels: strategy instead of the preset's; None for that.
      starts: of its search, at least.
    """

    name: str
    attack: str
    kind: str
    labels: str | None = None
    starts: int = 1


class Panel(NamedTuple):
    """Who tries inputs of one kind, beside the presets that come by themselves.

    Attributes:
      searches: presets of an honest server: kljax's default and the field's.
      closed_forms: that are no presets.
      starts: of a search, at least: a preset whose answer is made of many.
      open: attackers that kljax has not for inputs of this kind, a sentence each.
    """

    searches: tuple[str, ...]
    closed_forms: tuple[Member, ...] = ()
    starts: Mapping[str, int] = MappingProxyType({})
    open: tuple[str, ...] = ()


DENSE_LAYER = Member("dense layer", FED_LAYER, CLOSED_FORM)
PANELS = {
    "image": Panel(
        ("matching", "inverting-gradients"),
        (DENSE_LAYER,),
        open=(
            "Malicious servers beyond those of the table, such as crafted weights that "
            "single an example out.",
        ),
    ),
    "text": Panel(
        ("dlg", "tag", "lamp"),
        open=(
            "Malicious servers: kljax has none for sentences, and crafted weights of a "
            "transformer are known to read whole batches (Decepticons, Fowl et al., "
            "ICLR 2023).",
            "Which tokens there are: a server that sees the gradient of embeddings "
            "knows it without a search, and here it is a floor (`own_tokens`).",
        ),
    ),
    "table": Panel(
        ("dlg", "tableak"),
        (DENSE_LAYER,),
        {"tableak": 30},  # its paper's
        open=(
            "Malicious servers: kljax has none for rows, and a layer in front that "
            "singles inputs out is known (Robbing the Fed, Fowl et al., ICLR 2022).",
            "Closed forms for batches of rows: those of kljax read images.",
        ),
    ),
}
OTHERS = Panel(
    ("dlg",),
    open=("Attackers made for inputs of this kind: kljax has none.",),
)


def find_panel(spec: InputSpec) -> Panel:
    """Finds the panel of a kind of input; kinds without one have `OTHERS`."""
    return PANELS.get(spec.kind, OTHERS)


def panel_of(spec: InputSpec, searches: tuple[str, ...] | None) -> list[Member]:
    """Lists the attackers that try.

    Searches are tried with labels that are read off, and with labels that are given:
    a server often knows or guesses them.

    Args:
      spec: of what is looked for.
      searches: presets that search; None for those of the kind of input.

    Raises:
      ValueError: for a preset that does not exist, or does not search.
    """
    panel = find_panel(spec)
    if searches is None:
        searches = panel.searches
    for name in searches:
        preset = find_preset(name)
        if ":" not in name and (preset.objective is None or preset.inserts is not None):
            raise ValueError(
                f"attack {name!r} does not search, and closed forms and malicious "
                "servers are tried anyway: leave it out of attacks"
            )
    members = [Member("labels", LABELS_ALONE, LABEL_RULES), *panel.closed_forms]
    fitting = {
        name: preset
        for name, preset in PRESETS.items()
        if preset.inputs is None or spec.kind in preset.inputs
    }
    for name, preset in fitting.items():
        if preset.objective is None and preset.inserts is None:
            kind = LEARNED if preset.learn else CLOSED_FORM
            members.append(Member(name, name, kind))
    for name in searches:
        own, starts = find_preset(name).labels, panel.starts.get(name, 1)
        read_off = "recovered" if own == "given" else own
        for labels in dict.fromkeys((read_off, "given")):
            told = f"{name}, labels {labels}"
            members.append(Member(told, name, SEARCH, labels, starts))
    for name, preset in fitting.items():
        if preset.inserts is not None:
            members.append(Member(name, name, MALICIOUS_SERVER))
    return members


def fed_layer(
    setting: Setting, optimiser: None = None, *, steps: int, restarts: int
) -> Attack:
    """Makes the closed form of a dense layer that is fed the whole input, wherever.

    Raises:
      ValueError: for a network that has none, and what `dense_layer` raises.
    """
    del optimiser, steps, restarts
    task = setting.task
    for path, shape in flattened_inputs(task.model, task.inputs).items():
        if shape == tuple(task.inputs.shape):
            return dense_layer(setting, path.removesuffix("/kernel"))
    raise ValueError("no dense layer of this network is fed a whole input")


def labels_alone(
    setting: Setting, optimiser: None = None, *, steps: int, restarts: int
) -> Attack:
    """Makes the attack that reads labels by every rule, and guesses no input.

    Its reconstruction's ``info`` has the labels [B] of each rule that can be asked.

    Raises:
      ValueError: where no rule can be asked, with the reason of the first.
    """
    del optimiser, steps, restarts
    rules, refused = {}, []
    for name in RULES:
        attacker = setting.attacker._replace(label_rule=name)
        try:
            rules[name] = find_rule(setting._replace(attacker=attacker))
        except ValueError as error:
            refused.append(str(error))
    if not rules:
        raise ValueError(refused[0])
    examples = setting.threat.knowledge.examples

    def attack(rng: Rng, view: View) -> Reconstruction:
        del rng
        found = {name: rule(setting, view) for name, rule in rules.items()}
        return Reconstruction(
            inputs=setting.task.inputs.zeros(examples),
            labels=next(iter(found.values())),
            loss=jnp.zeros(()),
            finite=jnp.array(True),
            info=found,
        )

    return attack
