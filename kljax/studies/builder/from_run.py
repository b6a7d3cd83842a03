"""What a study of a run settles: model, data, arms and sizes are the run's.

`kljax.studies.builder.run_client` reads the states that are attacked.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kljax import data
from kljax.core.registry import own_functions
from kljax.defences.arms import parse_training_arm, unplaced_sites
from kljax.studies import run_folder
from kljax.studies.builder import run_setup, task
from kljax.studies.builder.run_setup import RunSetup
from kljax.studies.config import LeakConfig, TrainConfig, default
from kljax.studies.config.leak import weights_limit, weights_limit_of
from kljax.threat import KEYLOCK_STRATEGIES, NOTHING_HIDDEN

# What a run has settled, by the same name in both configurations.
SETTLED = (
    "model",
    "data",
    "sites",
    "chained",
    "private_key_size",
    "init",
    "lock_init",
    "lock_activation",
    "loss",
    "image_size",
    "image_width",
    "channels",
    "tokens",
)
# What is done about a lock if nothing is said: an upper bound, the strongest attack
# that needs no secret, and a guess. Of another defence that hides something, all that
# it brings along.
STRATEGIES = ("known", "regress_gates", "fixed_random")


def settle(
    config: LeakConfig, load: Callable[[], data.Dataset] | None = None
) -> LeakConfig:
    """Fills in what follows from the run; without one, how weights are drawn.

    Settling twice changes nothing, so that a study can be repeated from what its own
    folder says.

    Args:
      config: of a study.
      load: gives its dataset, where it is asked for what inputs there are; None to
        load it here.

    Raises:
      FileNotFoundError: if the folder holds no run.
      ValueError: for an option that contradicts the run, an arm that it does not have,
        and sizes of an update that fit neither the client nor each other.
    """
    if config.from_run is None:
        if config.init is not None:
            return config
        limit = weights_limit(config.model, config.data)
        if limit is None:
            dataset = load() if load else task.load_dataset(config, config.split)
            limit = weights_limit_of(dataset.input_spec.primary_spec.kind)
        return dataclasses.replace(config, init=limit)
    if config.earlier:
        raise ValueError(
            f"earlier={config.earlier}: a client of a run has sent what it has sent, "
            "and the run has no record of it; leave it out"
        )
    run = read_run(config)
    changes = {name: _settle_field(config, run, name) for name in SETTLED}
    if config.split not in (None, run.train_split):
        raise _contradiction(config, "split", run.train_split)
    changes |= {
        # The same data may lie elsewhere on this machine.
        "data_dir": config.data_dir or run.data_dir,
        "arms": _arms(config, run),
        "weights": "shared",
    }
    config = dataclasses.replace(config, **changes)
    if config.upload == "gradient":
        return config
    setup = prepare_run(config, run)
    return dataclasses.replace(
        config, **_sizes(config, run, min(map(len, own_examples(config, setup))))
    )


def prepare_run(config: LeakConfig, run: TrainConfig) -> RunSetup:
    """Prepares the run of a study, unless it is the one that was prepared before.

    A study asks more than once, and every cell of a sweep does. What is the same is
    told by the folder, by the files that data are read from, and by the users' own
    functions themselves: a name can stand for another function by now.
    """
    folder = Path(config.from_run).resolve()
    written = (folder / "config.json").stat()
    return _prepare_once(
        run,
        (str(folder), written.st_mtime_ns, written.st_size),
        data.stamp(run.data, run.data_dir) if ":" not in run.data else (),
        own_functions(dataclasses.astuple(run)),
    )


@functools.lru_cache(maxsize=1)
def _prepare_once(run: TrainConfig, *read_from) -> RunSetup:
    del read_from
    # Attacked is what whoever holds the keys reads: no cipher is needed for that.
    return run_setup.build_run_setup(dataclasses.replace(run, encryption="none"))


def read_run(config: LeakConfig) -> TrainConfig:
    """Reads the configuration of the run that a study names."""
    return run_folder.read_config(Path(config.from_run))


def attacked_clients(config: LeakConfig) -> range:
    """Lists the clients of a run whose uploads are seen, or averaged."""
    return range(config.client, config.client + (config.average_clients or 1))


def own_examples(config: LeakConfig, setup: RunSetup) -> list[np.ndarray]:
    """Finds the examples [n] of each client under attack, in the run's dataset.

    Raises:
      ValueError: for a client that the run does not have, or one that attacks.
    """
    count, attacked = len(setup.partition), attacked_clients(config)
    several = ""
    if config.average_clients is not None:
        several = f" with average_clients={config.average_clients}"
    if attacked[-1] >= count:
        missing = f"client={config.client}{several} does not exist"
        raise ValueError(
            f"{missing}: run {config.from_run!r} has clients 0 to {count - 1}"
        )
    for client in attacked:
        if client in setup.roles:
            raise ValueError(
                f"client={client} of run {config.from_run!r} is an attacker itself "
                f"({', '.join(setup.config.roles)}): attack an honest client"
            )
    if setup.config.hardening != "none":
        raise ValueError(
            f"clients of run {config.from_run!r} train on other images than their own, "
            f"by hardening={setup.config.hardening!r}, and no attack knows of it: "
            "attack a run without"
        )
    return [setup.partition[client] for client in attacked]


def _settle_field(config: LeakConfig, run: TrainConfig, name: str):
    given, theirs = getattr(config, name), getattr(run, name)
    if given not in (default(LeakConfig, name), theirs):
        raise _contradiction(config, name, theirs)
    return theirs


def _contradiction(config: LeakConfig, name: str, theirs) -> ValueError:
    return ValueError(
        f"{name}={getattr(config, name)!r} contradicts run {config.from_run!r}, which "
        f"has {theirs!r}: leave it out"
    )


def describe(config: LeakConfig) -> str:
    """Says in a sentence who is attacked and when."""
    sent = "the gradient of one step"
    if config.upload == "update":
        sent = (
            f"an update of {config.local_steps} local steps, batch {config.batch}, "
            f"{config.client_optimiser} optimiser, in an order the attacker knows"
        )
    who = f"client {config.client}"
    if config.average_clients is not None:
        attacked = attacked_clients(config)
        who = f"each of clients {attacked[0]} to {attacked[-1]}, seen as an average,"
    after = ""
    if config.observations > 1:
        after = (
            f" and before the {config.observations - 1} rounds that were kept after it"
        )
    return (
        f"{who} of run {config.from_run}, at the state before round "
        f"{config.round}{after}, uploads {sent}; it trains as the run says, with "
        "augmentation and fresh private keys where the run has them"
    )


def trained_name(arm: str) -> str:
    """Gives an attacked arm's name in the run: the same without a secret strategy."""
    return arm.partition("/")[0]


def _arms(config: LeakConfig, run: TrainConfig) -> tuple[str, ...]:
    if config.arms == default(LeakConfig, "arms"):
        upload = "average" if config.average_clients else config.upload
        return tuple(name for arm in run.arms for name in _attacked(arm, upload))
    for arm in config.arms:
        if trained_name(arm) not in run.arms:
            raise ValueError(
                f"arm {arm!r} was not trained in run {config.from_run!r}, which has "
                f"{', '.join(run.arms)}"
            )
    return config.arms


def _attacked(arm: str, upload: str) -> tuple[str, ...]:
    """Names an arm of a run with each strategy that the upload leaves possible."""
    strategies = parse_training_arm(arm, unplaced_sites(), {}).strategies
    if strategies == NOTHING_HIDDEN:
        return (arm,)
    chosen = STRATEGIES if strategies == KEYLOCK_STRATEGIES else strategies
    chosen = [
        name
        for name in chosen
        if upload in strategies[name].needs.get("upload", (upload,))
    ]
    return tuple(f"{arm}/{strategy}" for strategy in chosen)


def _sizes(config: LeakConfig, run: TrainConfig, count: int) -> dict[str, int]:
    """Works out steps T, batch B and distinct examples n of each update."""
    batch = config.batch or run.batch
    if batch > count:
        raise ValueError(
            f"client {config.client} has {count} examples, less than batch={batch}: "
            "give a smaller batch"
        )
    steps = config.local_steps or data.local_steps(
        count, batch, run.local_epochs, steps=run.local_steps
    )
    if steps % (config.local_epochs or 1):
        raise ValueError(
            f"local_steps={steps} are not local_epochs={config.local_epochs} times a "
            "whole number of batches"
        )
    # A client that makes more steps than it has batches begins again.
    in_epoch = steps // config.local_epochs if config.local_epochs else steps
    examples = min(in_epoch, count // batch) * batch
    if config.examples not in (default(LeakConfig, "examples"), examples):
        raise ValueError(
            f"examples={config.examples}: an update of {steps} steps of {batch} is "
            f"made of {examples} here; leave it out"
        )
    return {"local_steps": steps, "batch": batch, "examples": examples}
