"""Threat models in words: who attacks, what it sees, knows and does."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from kljax.attacks.presets import PRESETS, of_user
from kljax.defences.arms import read_strategies
from kljax.studies.builder.threat_model import declare_threat
from kljax.studies.config import LeakConfig
from kljax.studies.reports.kinds import find_words
from kljax.studies.reports.pools import Pool
from kljax.studies.reports.tables import at_words

EVERY = "every attacker"

# field of kljax.threat.Knowledge -> value -> what that means
KNOWS: dict[str, dict[str, str]] = {
    "upload": {
        "gradient": "It sees the network and the gradient of one step",
        "update": "It sees the network before and after a local training",
        "average": "It sees the average upload of several clients",
    },
    "private_key": {
        "known": "It knows the private key.",
        "hidden": "The private key is hidden from it.",
    },
    "lock_weights": {
        "known": "It knows the lock weights.",
        "initial": "It knows the lock weights of the first round; the client's have "
        "moved on.",
        "hidden": "The lock weights are hidden from it.",
    },
    "lock_grads": {
        "hidden": "Gradients of the lock weights are not shared.",
        "shared": "Gradients of the lock weights are shared.",
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
    "secret": {
        "unit": "It replays the network without a lock's gates.",
        "known": "It replays the network with the true gates, which the private key "
        "and the lock weights give it.",
        "extract": "It computes the private key from the shared gradients of the lock "
        "weights.",
        "fixed_random": "It guesses a private key at random, and believes its guess.",
        "fixed_mean": "It puts the mean private key in place of the true one, and "
        "believes it.",
        "regress_private_key": "It optimises a private key along with the {noun}.",
        "regress_gates": "It optimises two numbers per gated channel along with the "
        "{noun}, and needs neither private key nor lock weights.",
        "peel": "It solves for what the layers above the lock were fed, reads the "
        "gates off what came out of the lock, and believes them.",
    },
    "labels": {
        "given": "It is given the labels.",
        "joint": "It optimises the labels along with the {noun}.",
        "recovered": "It reads the labels off the gradient of the last layer.",
    },
}
# What can be said of an arm with a lock only; and what is said of one without.
OF_LOCKS = ("private_key", "lock_weights", "lock_grads")
UNLOCKED = "There is no lock. It replays what the client does, as far as it is public."
# Of `kljax.defences.arms.RELEASE_STRATEGIES`, where one is written.
ABOUT_RELEASES = {
    "simulate": "It does to its candidate's gradient what the defence does.",
    "unaware": "It does not know that the defence changes or hides anything: what is "
    "hidden it takes for zeros.",
    "undo": "It undoes what the defence did, and matches the gradient that it finds.",
}


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
    about_lock, about_release = read_strategies(config.arms[0])
    declared = declare_threat(config, about_lock or "unit", preset)
    knowledge = dataclasses.asdict(declared.knowledge)
    strategy = dataclasses.asdict(declared.strategy)
    known = {name: words[knowledge[name]] for name, words in KNOWS.items()}
    done = {
        f"does {name}": words[strategy[name]].format(noun=noun)
        for name, words in DOES.items()
    }
    facts = known | done | {"upload": _upload(config, knowledge)}
    if not about_lock:
        facts = {name: words for name, words in facts.items() if name not in OF_LOCKS}
        facts["does secret"] = UNLOCKED
    if about_release:
        facts["does release"] = ABOUT_RELEASES[about_release]
    return facts


def threat_words(config: LeakConfig) -> list[str]:
    """Words the threat model of a cell, one sentence each."""
    return list(threat_facts(config).values())


def _upload(config: LeakConfig, knowledge: dict[str, Any]) -> str:
    examples = knowledge["examples"]
    of = "1 example" if examples == 1 else f"{examples} examples"
    words = f"{KNOWS['upload'][knowledge['upload']]} on {of} per victim"
    if config.from_run is None:
        weights = "drawn for each victim" if config.weights == "fresh" else "the same"
        return f"{words}. The network is untrained, with weights {weights}" + (
            "." if config.weights == "fresh" else " for all victims."
        )
    return (
        f"{words}. The victim is client {config.client} of a federated training, "
        f"before round {config.round}."
    )


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
