"""Threat models in words: who attacks, what it sees, knows and does."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from kljax.attacks.presets import PRESETS, of_user
from kljax.defences import Defence, as_given
from kljax.defences.arms import (
    Arm,
    parse_arm,
    read_strategies,
    split_combination,
    unplaced_sites,
)
from kljax.studies.builder.threat_model import declare_threat
from kljax.studies.config import LeakConfig
from kljax.studies.reports.kinds import find_words
from kljax.studies.reports.pools import Pool
from kljax.studies.reports.tables import at_words
from kljax.threat import KEYLOCK_STRATEGIES, HiddenParts, SecretStrategy
from kljax.threat.parts import ALL

EVERY = "every attacker"

# field of kljax.threat.Knowledge -> value -> what that means
KNOWS: dict[str, dict[str, str]] = {
    "upload": {
        "gradient": "It sees the network and the gradient of one step",
        "update": "It sees the network before and after a local training",
        "average": "It sees the average upload of several clients",
    },
    "private_key": {
        "known": "It knows {secret}.",
        "hidden": "It does not know {secret}.",
    },
    "lock_weights": {
        "known": "It knows {trainable}.",
        "initial": "It knows {trainable} as they were in the first round; the client's "
        "have moved on.",
        "hidden": "It does not know {trainable}.",
    },
    "lock_grads": {
        "hidden": "It does not see the gradient of {trainable}.",
        "shared": "It sees the gradient of {trainable}.",
    },
    "labels": {
        "known": "It knows the labels.",
        "hidden": "The labels are hidden from it.",
    },
    "stats": {
        "visible": "It sees the norm statistics of the upload.",
        "hidden": "The norm statistics of the upload are hidden from it.",
    },
    "victim_norm": {
        "train": "The victim's norm layers are in train mode.",
        "eval": "The victim's norm layers use their running statistics.",
    },
    "attacker_norm": {
        "train": "In its replay, norm layers are in train mode.",
        "eval": "In its replay, norm layers use their running statistics.",
    },
    "server": {
        "honest": "It sends the network that was agreed on, and only looks.",
        "malicious": "It sends a network that it has modified.",
    },
}
# field of kljax.threat.Strategy -> value -> what it does
DOES: dict[str, dict[str, str]] = {
    "secret": {name: plan.does for name, plan in KEYLOCK_STRATEGIES.items()},
    "labels": {
        "given": "It is given the labels.",
        "joint": "It optimises the labels along with the {noun}.",
        "recovered": "It reads the labels off the gradient of the last layer.",
    },
}
# What can be said of an arm that hides something only: field of `HiddenParts` -> facts;
# and what is said of one that does not.
OF_HIDDEN = {"secret": ("private_key",), "trainable": ("lock_weights", "lock_grads")}
UNLOCKED = "There is no lock. It replays what the client does, as far as it is public."
# Of `kljax.defences.arms.RELEASE_STRATEGIES`, where one is written.
ABOUT_RELEASES = {
    "simulate": "It does to its candidate's gradient what the defence does.",
    "unaware": "It does not know that the defence changes or hides anything: what is "
    "hidden it takes for zeros.",
    "undo": "It undoes what the defence did, and matches the gradient that it finds.",
    "estimate": "It is not told the defence. What zeros, norm and noise of the upload "
    "show of it, it does to its candidate's gradient.",
}

# By whether it simulates what the defence trains on in place of inputs.
ABOUT_INPUTS = {
    True: "It replaces its candidate as the defence replaces inputs, with draws of its "
    "own, and matches the gradient of that.",
    False: "It does not know that the defence replaces inputs.",
}
# About a user's defence that is not there: whether it changes what is sent, or
# replaces inputs, its arm does not say.
ABOUT_EITHER = ABOUT_RELEASES | {"simulate": "It simulates what the defence does."}
PARTS = "Of the upload it reads the tensors {} alone."
OF_ITS_OWN = "About what is hidden it does what its defence calls {name!r}."


def threat_facts(config: LeakConfig, noun: str = "image") -> dict[str, str]:
    """Words the threat model of a cell, one sentence by each fact.

    Args:
      config: of the cell.
      noun: what one of its inputs is called.

    Raises:
      ValueError: if `config` has more than one arm, or an attacker who cannot be.
    """
    if len(config.arms) != 1:
        raise ValueError(f"a cell has one arm, got {config.arms}")
    # A user's attack need not be importable where its report is written.
    preset = PRESETS.get(config.attack, of_user(None))
    arm, whole = read_arm(config.arms[0])
    about_release = read_strategies(config.arms[0])[1]
    declared = declare_threat(config, arm, preset)
    knowledge = dataclasses.asdict(declared.knowledge)
    strategy = dataclasses.asdict(declared.strategy)
    known = {name: words[knowledge[name]] for name, words in KNOWS.items()}
    known = _of_hidden(known, arm.defence)
    done = {
        "does secret": declared.about_secret.does.format(noun=noun),
        "does labels": DOES["labels"][strategy["labels"]].format(noun=noun),
    }
    facts = known | done | {"upload": _upload(config, knowledge)}
    if knowledge["visible"] != ALL:
        facts["visible"] = PARTS.format(", ".join(knowledge["visible"].split("+")))
    if not arm.defence.strategies:
        facts["does secret"] = UNLOCKED
    if not whole:
        release = {"does release": ABOUT_EITHER[about_release]} if about_release else {}
        return facts | release
    # A strategy that replays inputs says so itself.
    says_so = declared.about_secret.replays_inputs
    if arm.defence.inputs is not as_given and not (says_so and arm.simulates_inputs):
        facts["does inputs"] = ABOUT_INPUTS[arm.simulates_inputs]
    if about_release and (arm.changes_uploads or arm.hides_entries):
        facts["does release"] = ABOUT_RELEASES[about_release]
    return facts


def _of_hidden(known: dict[str, str], defence: Defence) -> dict[str, str]:
    """Says by its name what a defence hides, and nothing of what it does not."""
    parts = defence.hidden_parts._asdict() if defence.strategies else {}
    part_of = {name: part for part, names in OF_HIDDEN.items() for name in names}
    return {
        name: words.format(**parts)
        for name, words in known.items()
        if name not in part_of or parts.get(part_of[name]) is not None
    }


def read_arm(text: str) -> tuple[Arm, bool]:
    """Reads an arm; of one with a user's defence that is not there, what is written.

    Returns:
      The arm, and whether it is whole. One that is not has the strategies of its first
      defence, or the one that is named, and nothing else.

    Raises:
      ValueError: for an arm of kljax's own defences that cannot be read.
    """
    parts = split_combination(text.partition("/")[0])
    own = [":" in part.partition("=")[0] for part in parts]
    try:
        return parse_arm(text, unplaced_sites(), {}), True
    except Exception:  # whatever a user's module raises
        if not any(own):
            raise
    about_secret = read_strategies(text)[0]
    if not own[0]:
        first = "/".join([parts[0], *filter(None, [about_secret])])
        arm = parse_arm(first, unplaced_sites(), {})
        bare = Defence(
            strategies=arm.defence.strategies, hidden_parts=arm.defence.hidden_parts
        )
        return arm._replace(defence=bare), False
    arm = parse_arm("none", unplaced_sites(), {})
    if not about_secret:
        return arm, False
    does = OF_ITS_OWN.format(name=about_secret)
    # What else its attacker has to know is not there to be read.
    named = Defence(
        strategies=(SecretStrategy(about_secret, does),),
        hidden_parts=HiddenParts(None, None),
    )
    return arm._replace(defence=named, secret_strategy=about_secret), False


def threat_words(config: LeakConfig) -> list[str]:
    """Words the threat model of a cell, one sentence each."""
    return list(threat_facts(config).values())


def _upload(config: LeakConfig, knowledge: dict[str, Any]) -> str:
    examples = knowledge["examples"]
    of = "1 example" if examples == 1 else f"{examples} examples"
    words = f"{KNOWS['upload'][knowledge['upload']]} on {of} per victim"
    if config.average_clients is not None:
        several = config.average_clients > 1
        words += f", of {config.average_clients} client{'s' if several else ''}"
    if config.observations > 1:
        words += (
            f", and {config.observations - 1} more on the same, one after the other, "
            f"which it pools by the {config.pooling} of their losses"
        )
    if config.from_run is None:
        weights = "drawn for each victim" if config.weights == "fresh" else "the same"
        return f"{words}. The network is untrained, with weights {weights}" + (
            "." if config.weights == "fresh" else " for all victims."
        )
    return (
        f"{words}. {_who(config)} of a federated training, before round {config.round}."
    )


def _who(config: LeakConfig) -> str:
    if (config.average_clients or 1) == 1:
        return f"The victim is client {config.client}"
    last = config.client + config.average_clients - 1
    return f"The victims are clients {config.client} to {last}"


def threat_models(pools: Sequence[Pool]) -> list[tuple[str, list[str]]]:
    """Words the threat models of a study: what all share, then the rest.

    What is not shared is said of the points of those axes that it depends on.
    Configurations that this kljax cannot read are said to be such.

    Returns:
      Who, and sentences about them.
    """
    points, models, unread = [], [], {}
    for pool in pools:
        try:
            config = LeakConfig(**pool.cells[0]["config"])
            models.append(threat_facts(config, find_words(pool.kind).noun))
            points.append(pool.point)
        except (TypeError, ValueError, KeyError) as error:
            # A study outlives the names of its options.
            unread[at_words(pool.point)] = [f"Not readable by this kljax: {error}"]
    arms_of_facts: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for fact in dict.fromkeys(fact for model in models for fact in model):
        words = [model.get(fact, "") for model in models]
        names = _deciding(points, words)
        for point, sentence in zip(points, words, strict=True):
            sentences = arms_of_facts.setdefault(
                tuple((n, point[n]) for n in names), []
            )
            if sentence and sentence not in sentences:
                sentences.append(sentence)
    return [*_gathered(arms_of_facts), *unread.items()]


def _gathered(
    arms_of_facts: dict[tuple[tuple[str, str], ...], list[str]],
) -> list[tuple[str, list[str]]]:
    """Says at once what is said of several points; of all points first."""
    together: dict[tuple[str, ...], list[str]] = {}
    for where, sentences in arms_of_facts.items():
        if where and sentences:
            together.setdefault(tuple(sentences), []).append(at_words(dict(where)))
    gathered = [(EVERY, arms_of_facts[()])] if arms_of_facts.get(()) else []
    return gathered + [("; ".join(who), list(what)) for what, who in together.items()]


def _deciding(points: list[dict[str, str]], words: list[str]) -> tuple[str, ...]:
    """Lists the axes that decide a sentence: few if few do, else all."""
    if len(set(words)) == 1:
        return ()
    names = tuple(points[0])
    for count in range(1, len(names) + 1):
        for chosen in itertools.combinations(names, count):
            said: dict[tuple[str, ...], str] = {}
            at = [tuple(point[name] for name in chosen) for point in points]
            if all(
                said.setdefault(place, sentence) == sentence
                for place, sentence in zip(at, words, strict=True)
            ):
                return chosen
    return names
