"""All that has a name, in one table, made of the catalogues themselves.

What a thing does is the first sentence of its docstring, and where it comes from is the
paragraph *Reference* there, or in its module's. Nothing is written a second time.
"""

import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kljax.attacks.labels.catalogue import RULES
from kljax.attacks.labels.conditions import CONDITIONS
from kljax.attacks.labels.strategies import LABELS
from kljax.attacks.optimisers.catalogue import OPTIMISERS
from kljax.attacks.presets.catalogue import PRESETS, Preset
from kljax.core.registry import nearest, notations
from kljax.data.augmentation import AUGMENTATIONS
from kljax.data.catalogue import EMBEDDED, PREPARED, SIZES
from kljax.data.partitioning import PARTITIONS
from kljax.data.partitioning import notations as partition_notations
from kljax.data.triggers import TRIGGERS
from kljax.defences.catalogue import KINDS, Kind
from kljax.federated.aggregation import AGGREGATORS
from kljax.federated.encryption import ENCRYPTIONS
from kljax.federated.hardening import HARDENINGS
from kljax.federated.optimisers import CLIENT_OPTIMISERS, SERVER_OPTIMISERS
from kljax.federated.roles import ROLES
from kljax.metrics.column_table import VALUES
from kljax.models import decoders, flows
from kljax.models.catalogue import NETWORKS
from kljax.models.losses import LOSSES
from kljax.threat import (
    BOTTLENECK_STRATEGIES,
    CONCEALING_STRATEGIES,
    KEYLOCK_STRATEGIES,
    LABEL_STRATEGIES,
    MIXING_STRATEGIES,
    PASSPORT_STRATEGIES,
    POLICY_STRATEGIES,
    PRIVATE_GATES_STRATEGIES,
)

# What is called so in a catalogue, in words.
INPUTS = {"image": "images", "text": "sentences", "table": "rows of a table"}


class Entry(NamedTuple):
    """One thing that has a name.

    Attributes:
      name: as it is given on the command line.
      written: with the options that it takes; the name alone if it takes none.
      does: a sentence.
      needs: what it cannot do without; empty for nothing.
      source: the paper and the code that it follows; empty where its docstring and its
        module's name none.
    """

    name: str
    written: str
    does: str
    needs: str
    source: str


OF_SECRETS = {
    "a key-lock": KEYLOCK_STRATEGIES,
    "private norms": PRIVATE_GATES_STRATEGIES,
    "passports": PASSPORT_STRATEGIES,
    "a bottleneck": BOTTLENECK_STRATEGIES,
    "mixed inputs": MIXING_STRATEGIES,
    "concealed inputs": CONCEALING_STRATEGIES,
    "transformed inputs": POLICY_STRATEGIES,
}


def entries(kind: str) -> list[Entry]:
    """Lists the things of one kind.

    Args:
      kind: a name in `LISTS`.

    Raises:
      ValueError: for another, with the nearest one.
    """
    if kind not in LISTS:
        raise ValueError(
            f"unknown list {kind!r}{nearest(kind, LISTS)}; known: {', '.join(LISTS)}"
        )
    return list(LISTS[kind]())


def explain(thing: Any) -> tuple[str, str]:
    """Reads ``does, source`` off a docstring.

    Args:
      thing: a function, class or module, or a `functools.partial` of one.
    """
    while isinstance(thing, functools.partial):
        thing = thing.func
    text = inspect.getdoc(thing) or ""
    module = sys.modules.get(getattr(thing, "__module__", ""))
    source = _reference(text) or _reference(inspect.getdoc(module) or "")
    return _one_line(text.partition("\n\n")[0]), source


def _reference(text: str) -> str:
    found = re.search(r"^References?:\s*(.*?)(?=\n\s*\n|\Z)", text, re.M | re.S)
    return _one_line(found[1]) if found else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _functions(
    table: Mapping[str, Any], notation: Iterable[str] = ()
) -> Iterator[Entry]:
    written = dict(zip(table, notation, strict=bool(notation)))
    for name, thing in table.items():
        does, source = explain(thing) if thing is not None else ("Changes nothing.", "")
        yield Entry(name, written.get(name, name), does, "", source)


def _needs(needs: Mapping[str, Any]) -> str:
    values = {n: v if isinstance(v, str) else " or ".join(v) for n, v in needs.items()}
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _attacks() -> Iterator[Entry]:
    for name, preset in PRESETS.items():
        does, source = explain(preset.build)
        yield Entry(name, name, does, _needs_of_attack(preset), source)


def _needs_of_attack(preset: Preset) -> str:
    needs = [
        f"labels {preset.labels}",
        _needs(preset.needs),
        " or ".join(INPUTS[kind] for kind in preset.inputs or ()),
        "a trained generator" if preset.generator else "",
        "a language model" if preset.language_model else "",
        "evosax: kljax[evolution]" if preset.evolution else "",
        "the density of what is sent" if preset.density else "",
    ]
    return "; ".join(filter(None, needs))


def _defences() -> Iterator[Entry]:
    for name, kind in KINDS.items():
        does, source = explain(kind.about or kind.make)
        yield Entry(name, _written(name, kind), does, _needs_of_defence(kind), source)


def _written(name: str, kind: Kind) -> str:
    options = (
        option.upper() if value is None else f"{option}={_number(value)}"
        for option, value in kind.options.items()
    )
    return f"{name}[={','.join(options)}]" if kind.options else name


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _needs_of_defence(kind: Kind) -> str:
    return "a network with norm layers" if kind.norm else ""


def _models() -> Iterator[Entry]:
    for name, network in NETWORKS.items():
        does, source = explain(network.factory)
        needs = INPUTS[network.inputs] if network.inputs else ""
        yield Entry(name, name, does, needs, source)


def _data() -> Iterator[Entry]:
    for name, load in (EMBEDDED | PREPARED).items():
        does, source = explain(load)
        needs = f"kljax data prepare {name}" if name in PREPARED else ""
        size = f" ({SIZES[name]} images)" if name in SIZES else ""
        yield Entry(name, name, does + size, needs, source)


def _metrics() -> Iterator[Entry]:
    for name, column in VALUES.items():
        does = f"{column.meaning} ({column.unit})" if column.unit else column.meaning
        needs = "the truth" if column.knows == "scorer" else ""
        yield Entry(name, name, f"{does}.", needs, "")


def _strategies() -> Iterator[Entry]:
    for of, table in OF_SECRETS.items():
        for name, strategy in table.items():
            does = strategy.does.format(noun="input")
            needs = "; ".join(filter(None, (f"arms with {of}", _needs(strategy.needs))))
            yield Entry(name, f"ARM/{name}", does, needs, "")
    for name, facts in LABEL_STRATEGIES.items():
        does, source = explain(LABELS[name])
        yield Entry(name, f"--labels {name}", does, _needs(facts), source)


def _label_rules() -> Iterator[Entry]:
    for name, rule in RULES.items():
        does, source = explain(rule)
        needs = CONDITIONS[name].text if name in CONDITIONS else ""
        yield Entry(name, name, does, needs, source)


def _learnt(
    folder: Path, read: Callable[[Path], Any], verb: str, module: str
) -> Iterator[Entry]:
    """Lists files of what was trained on a public part of a dataset."""
    source = _reference(inspect.getdoc(sys.modules[module]) or "")
    for path in sorted(folder.glob("*.npz")):
        thing = read(path)
        shape = " x ".join(map(str, thing.shape))
        does = f"{verb} images {shape} like those of {thing.origin.dataset}"
        seen = f"{int(thing.origin.public.sum())} of {len(thing.origin.public)}"
        needs = f"victims that it has not seen: it was trained on {seen}"
        yield Entry(path.stem, path.stem, f"{does}.", needs, source)


LISTS: dict[str, Callable[[], Iterator[Entry]]] = {
    "attacks": _attacks,
    "defences": _defences,
    "models": _models,
    "data": _data,
    "generators": lambda: _learnt(
        decoders.FOLDER, decoders.read_decoder, "Makes", "kljax.models.decoders"
    ),
    "denoisers": lambda: _learnt(
        flows.FOLDER, flows.read_flow, "Takes noise off", "kljax.models.flows"
    ),
    "metrics": _metrics,
    "strategies": _strategies,
    "label-rules": _label_rules,
    "optimisers": functools.partial(_functions, OPTIMISERS),
    "losses": functools.partial(_functions, LOSSES),
    "aggregators": lambda: _functions(AGGREGATORS, notations(AGGREGATORS)),
    "encryptions": lambda: _functions(ENCRYPTIONS, notations(ENCRYPTIONS)),
    "roles": lambda: _functions(ROLES, notations(ROLES, given=1)),
    "triggers": lambda: _functions(TRIGGERS, notations(TRIGGERS)),
    "hardenings": lambda: _functions(HARDENINGS, notations(HARDENINGS)),
    "partitions": lambda: _functions(PARTITIONS, partition_notations()),
    "augmentations": functools.partial(_functions, AUGMENTATIONS),
    "client-optimisers": functools.partial(_functions, CLIENT_OPTIMISERS),
    "server-optimisers": lambda: _functions(
        SERVER_OPTIMISERS, notations(SERVER_OPTIMISERS, given=1)
    ),
}
