"""Help texts: what they list is what the catalogues have."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kljax
from kljax import LeakConfig, TrainConfig
from kljax.attacks.labels.catalogue import RULES
from kljax.attacks.labels.strategies import LABELS
from kljax.attacks.optimisers.catalogue import OPTIMISERS
from kljax.attacks.presets.catalogue import PRESETS
from kljax.data.augmentation import AUGMENTATIONS
from kljax.data.catalogue import EMBEDDED
from kljax.data.partitioning import PARTITIONS, notations, partition
from kljax.data.triggers import TRIGGERS
from kljax.defences.arms import KINDS
from kljax.federated.aggregation import AGGREGATORS
from kljax.federated.encryption import ENCRYPTIONS
from kljax.federated.hardening import HARDENINGS
from kljax.federated.optimisers import CLIENT_OPTIMISERS, SERVER_OPTIMISERS
from kljax.federated.roles import ROLES
from kljax.models.catalogue import NETWORKS
from kljax.models.decoders import list_decoders
from kljax.models.flows import list_flows
from kljax.models.losses import LOSSES
from kljax.studies.config.listing import fill_lists
from kljax.threat.secrets import OWN_NAMES

SOURCE = Path(kljax.__file__).parent
LISTED = {
    LeakConfig: {
        "model": NETWORKS,
        "data": EMBEDDED,
        "arms": (*KINDS, *OWN_NAMES),
        "attack": PRESETS,
        "generator": list_decoders(),
        "denoise": list_flows(),
        "optimiser": OPTIMISERS,
        "labels": LABELS,
        "label_rule": ("auto", *RULES),
        "loss": LOSSES,
    },
    TrainConfig: {
        "model": NETWORKS,
        "data": EMBEDDED,
        "arms": KINDS,
        "partition": PARTITIONS,
        "optimiser": CLIENT_OPTIMISERS,
        "server_optimiser": SERVER_OPTIMISERS,
        "augment": AUGMENTATIONS,
        "loss": LOSSES,
        "aggregator": AGGREGATORS,
        "encryption": ENCRYPTIONS,
        "roles": ROLES,
        "trigger": TRIGGERS,
        "hardening": HARDENINGS,
    },
}


def words(text):
    return set(re.findall(r"[\w+-]+", text))


def of_field(kind, field):
    """Cuts the text of one field out of a docstring."""
    found = re.search(
        rf"^      {field}: (.*?)(?=^      \w+: |\Z)", kind.__doc__, re.M | re.S
    )
    return found[1]


@pytest.mark.parametrize(
    ("kind", "field"), [(kind, field) for kind in LISTED for field in LISTED[kind]]
)
def test_a_field_lists_its_catalogue(kind, field):
    text = of_field(kind, field)
    assert [n for n in LISTED[kind][field] if n not in words(text)] == []
    assert "{" not in kind.__doc__
    assert max(map(len, kind.__doc__.splitlines())) <= 88


@pytest.mark.parametrize("command", ("leak", "train"))
def test_the_command_line_shows_the_lists(command):
    shown = subprocess.run(
        [sys.executable, "-m", "kljax", command, "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert [name for name in (*NETWORKS, *KINDS) if name not in words(shown)] == []
    assert "{models}" not in shown


def test_a_choice_has_the_names_of_its_catalogue():
    with pytest.raises(ValueError, match="'counts_bias'"):
        LeakConfig(label_rule="nothing")
    for rule in ("auto", *RULES):
        LeakConfig(label_rule=rule)


def test_lists_are_filled_in():
    class Job:
        """Does something.

        Attributes:
          kind: of work: {kinds}.
          long: {long}.
        """

    long = [f"name-{i}" for i in range(20)]
    fill_lists(kinds=["one"], long=long)(Job)
    assert "kind: of work: one.\n" in Job.__doc__
    assert "name-18 or name-19." in Job.__doc__
    continued = Job.__doc__.partition("name-0")[2].splitlines()[1]
    assert continued.startswith(" " * 12 + "name-")
    with pytest.raises(ValueError, match="Job has no {kinds}"):
        fill_lists(kinds=["one"])(Job)


def test_a_partition_is_written_as_it_is_listed():
    assert [name.split("=")[0].split("[")[0] for name in notations()] == [*PARTITIONS]
    for written in notations():
        for text in {written.replace("[", "").replace("]", ""), written.split("[")[0]}:
            assert len(partition(text, [0, 1, 2] * 5, 3, 0)) == 3


# What tells them apart, or who is allowed what, and no list of all.
EXPLAINS = {"attacks/labels/catalogue.py", "defences/arms.py", "threat/knowledge.py"}
CATALOGUES = (NETWORKS, KINDS, PRESETS, OPTIMISERS, RULES, OWN_NAMES)


def copied(source):
    """Lists paragraphs of strings which name most of a catalogue."""
    strings = (
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    paragraphs = (
        part for text in strings for part in re.split(r"\n\s*\n|\n\s+\w+: ", text)
    )
    return [
        part
        for part in paragraphs
        if any(
            4 * len(words(part) & {*names}) >= 3 * len(names) for names in CATALOGUES
        )
    ]


def test_no_string_copies_a_catalogue():
    found = {
        name
        for path in SOURCE.rglob("*.py")
        if copied(path.read_text(encoding="utf-8"))
        and (name := str(path.relative_to(SOURCE)))
    }
    assert found <= EXPLAINS


def test_a_copied_list_is_found():
    assert copied("'''Optimisers: lbfgs, lbfgs_torch, adam, rmsprop, sign_adam.'''")
    assert not copied("'''The best is adam.'''")
