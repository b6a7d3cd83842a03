"""The panel of a network's audit: which attackers try, and what each needs.

Every attacker is a leakage study of its own (`kljax.leak`) on the same uploads, without
a defence. One that cannot work on a network is told with its reason, and tries nothing.
"""

from typing import NamedTuple

import jax.numpy as jnp

from kljax.attacks import Attack, Reconstruction, Setting, dense_layer
from kljax.attacks.labels.catalogue import RULES, find_rule
from kljax.attacks.presets import PRESETS, find_preset
from kljax.core.inputs import InputSpec
from kljax.models.flattening import flattened_inputs

LABELS_ALONE = f"{__name__}:labels_alone"
FED_LAYER = f"{__name__}:fed_layer"
# Searches of an honest server, by kind of input; kljax's default and the field's.
SEARCHES = {
    "image": ("matching", "inverting-gradients"),
    "text": ("dlg", "tag"),
    "table": ("dlg", "tableak"),
}
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
    """

    name: str
    attack: str
    kind: str
    labels: str | None = None


def panel_of(spec: InputSpec, searches: tuple[str, ...] | None) -> list[Member]:
    """Lists the attackers of a panel.

    Searches are tried with labels that are read off, and with labels that are given:
    a server often knows or guesses them.

    Args:
      spec: of what is looked for.
      searches: presets that search; None for those of the kind of input.

    Raises:
      ValueError: for a preset that does not exist, or does not search.
    """
    if searches is None:
        searches = SEARCHES.get(spec.kind, ("dlg",))
    for name in searches:
        preset = find_preset(name)
        if ":" not in name and (preset.objective is None or preset.inserts is not None):
            raise ValueError(
                f"attack {name!r} does not search, and closed forms and malicious "
                "servers are tried anyway: leave it out of attacks"
            )
    members = [Member("labels", LABELS_ALONE, LABEL_RULES)]
    if spec.kind == "image":
        members.append(Member("dense layer", FED_LAYER, CLOSED_FORM))
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
        told = find_preset(name).labels
        read_off = "recovered" if told == "given" else told
        for labels in dict.fromkeys((read_off, "given")):
            members.append(Member(f"{name}, labels {labels}", name, SEARCH, labels))
    for name, preset in fitting.items():
        if preset.inserts is not None:
            members.append(Member(name, name, MALICIOUS_SERVER))
    return members


def fed_layer(setting: Setting, optimiser=None, *, steps, restarts) -> Attack:
    """Makes the closed form of a dense layer that is fed the whole image, wherever.

    Raises:
      ValueError: for a network that has none, and what `dense_layer` raises.
    """
    del optimiser, steps, restarts
    task = setting.task
    for path, shape in flattened_inputs(task.model, task.inputs).items():
        if shape == tuple(task.image_shape):
            return dense_layer(setting, path.removesuffix("/kernel"))
    raise ValueError("no dense layer of this network is fed a whole image")


def labels_alone(setting: Setting, optimiser=None, *, steps, restarts) -> Attack:
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

    def attack(rng, view) -> Reconstruction:
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
