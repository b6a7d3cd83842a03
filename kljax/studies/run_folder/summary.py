"""The end of a run: ``accuracy.json``, ``summary.json``, ``summary.md``, the curves."""

import os
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
from tabulate import tabulate

from kljax.core.files import read_json, write_json, write_text
from kljax.core.folders import optional
from kljax.core.provenance import device
from kljax.federated import evaluation
from kljax.studies import figures
from kljax.studies.run_folder.configuration import SCHEMA_VERSION
from kljax.studies.run_folder.rows import Row

ACCURACY = "accuracy"
MEASURES = {
    ACCURACY: "Accuracy",
    "token accuracy": "Token accuracy",
    "R2": "R2 (the share of the targets' variance that is explained)",
}
# Lines of the table beside the tests.
SUCCESS, FLOOR = "attack_success", "attack_success_floor"
EPSILON = "epsilon"
REMAKE = "remove it and run the training again: it is made anew from the checkpoints"


class Accuracy(TypedDict):
    """What one test of one arm says, as `kljax.evaluation.evaluate` writes it.

    Of a model that answers NaN there is no R2, which JSON has as null.
    """

    mean: float | None
    std: float | None
    values: list[float | None]


class AttackSuccess(Accuracy):
    """How often triggered images are taken for the target class in one arm."""

    floor: float | None  # the same of honest clients' model; None if not trained


class Throughput(TypedDict):
    """What a run took."""

    clients_per_s: float
    examples_per_s: float
    compile_s: float
    run_s: float
    device: str


class Summary(TypedDict):
    """What ``summary.json`` holds."""

    accuracy: dict[str, dict[str, Accuracy]]  # by arm and test
    measure: NotRequired[str]
    attack_success: NotRequired[dict[str, AttackSuccess]]  # by arm, with attackers
    epsilon: NotRequired[dict[str, float | None]]  # by arm, with a private one
    throughput: Throughput
    config: dict[str, Any]


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Reads the summary of a finished run; None if it is not finished.

    Raises:
      DamagedFile: if it is not what was written.
    """
    return read_json(folder / "summary.json", Summary, remedy=REMAKE)


def read_accuracy(folder: Path) -> dict[str, Accuracy] | None:
    """Reads what the tests of an arm said; None if they have not been made.

    Raises:
      DamagedFile: if it is not what was written.
    """
    path = folder / "accuracy.json"
    return read_json(path, dict[str, Accuracy], remedy=REMAKE)


def summarise(
    config: dict[str, Any],
    rows: list[Row],
    accuracy: dict[str, Any],
    attack_success: dict[str, Any] | None = None,
    measure: str = ACCURACY,
    epsilon: dict[str, float | None] | None = None,
) -> dict[str, Any]:
    """Summarises a finished run, as written to ``summary.json``.

    Args:
      config: what `describe` says.
      rows: of all arms.
      accuracy: by arm, what `kljax.evaluation.evaluate` says.
      attack_success: by arm, as `AttackSuccess`; None without attackers.
      measure: what accuracies are, see `kljax.core.targets.TargetSpec.measure`; a
        summary says it where it is no accuracy.
      epsilon: by arm, at the end of the rounds; None for an arm without a guarantee. A
        summary says it where any arm has one.
    """
    run_s = sum(row["run_s"] for row in rows)

    def per_second(column: str) -> float:
        # Without ``metrics.csv`` there may be no row, and no second, either.
        return sum(row[column] for row in rows) / run_s if run_s else 0.0

    return {
        "schema_version": SCHEMA_VERSION,
        "accuracy": accuracy,
        **({} if measure == ACCURACY else {"measure": measure}),
        **({} if attack_success is None else {"attack_success": attack_success}),
        **({"epsilon": epsilon} if any(_numbers(epsilon)) else {}),
        "throughput": {
            "clients_per_s": per_second("clients"),
            "examples_per_s": per_second("examples"),
            "compile_s": sum(row["compile_s"] for row in rows),
            "run_s": run_s,
            "device": device(),
        },
        "config": config,
    }


def _numbers(epsilon: dict[str, float | None] | None) -> list[bool]:
    return [number is not None for number in (epsilon or {}).values()]


def write_summary(folder: Path, summary: dict[str, Any], rows: list[Row]) -> None:
    """Writes picture, table and summary; the summary last, it marks the end."""
    aside = folder / ".curves.png"
    with optional("curves.png"):
        if not rows:
            raise ValueError("metrics.csv is lost, and all rounds were run before")
        figures.draw_curves(rows, aside, measured(summary))
        os.replace(aside, folder / "curves.png")
    write_text(folder / "summary.md", markdown(summary))
    write_json(folder / "summary.json", summary)


def measured(summary: dict[str, Any]) -> str:
    """Names what the accuracies of a summary are, see `summarise`."""
    return summary.get("measure", ACCURACY)


def table(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Lays the accuracies out: one line per test, one column per arm, in per cent.

    With attackers, two lines more: their success, and its floor. With a private arm one
    more: epsilon, which is no share.
    """
    accuracy = summary["accuracy"]
    header = ["test", *accuracy]
    lines = [
        [test, *(_cell(of_arm.get(test)) for of_arm in accuracy.values())]
        for test in evaluation.TESTS
        if any(test in of_arm for of_arm in accuracy.values())
    ]
    success = summary.get("attack_success")
    if success:
        lines += [
            [SUCCESS, *(_cell(success[arm]) for arm in accuracy)],
            [FLOOR, *(_cell_of_floor(success[arm]["floor"]) for arm in accuracy)],
        ]
    epsilon = summary.get("epsilon")
    if epsilon:
        lines.append([EPSILON, *(_cell_of_epsilon(epsilon[arm]) for arm in accuracy)])
    return header, lines


def _cell_of_epsilon(number: float | None) -> str:
    return "-" if number is None else f"{number:.2f}"


def _cell_of_floor(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.1f}"


def _explained(config: dict[str, Any], line: str) -> str:
    if line in evaluation.TESTS:
        return evaluation.TESTS[line].words
    if line == EPSILON:
        return (
            f"of differential privacy at delta {config['delta']:g}, after all rounds, "
            "against who sees each upload: of an example under `dp-sgd`, of a client "
            "under `dp-fedavg`; without what sampling would gain"
        )
    who = "honest clients alone" if line == FLOOR else "attackers among the clients"
    return (
        f"share of test images of other classes that, with the trigger "
        f"`{config['trigger']}`, are taken for class {config['target_class']}, with "
        f"{who}"
    )


def _attackers(config: dict[str, Any]) -> str:
    """Says who attacks and who withstands, if that is not as ever."""
    said = ""
    if config.get("aggregator", "mean") != "mean":
        said += f" Aggregator `{config['aggregator']}`."
    if config.get("encryption", "none") != "none":
        said += f" Encryption `{config['encryption']}`."
    if config.get("server_optimiser", "sgd") != "sgd":
        said += f" Server optimiser `{config['server_optimiser']}`."
    if config.get("roles"):
        said += f" Roles {', '.join(f'`{role}`' for role in config['roles'])}."
    if config.get("hardening", "none") != "none":
        said += f" Hardening `{config['hardening']}`."
    if config.get("reject_below"):
        said += f" Answers below a confidence of {config['reject_below']} are rejected."
    return said


def _cell(accuracy: dict[str, Any] | None) -> str:
    if accuracy is None or accuracy["mean"] is None or np.isnan(accuracy["mean"]):
        return "-"
    mean = f"{100 * accuracy['mean']:.1f}"
    several = len(accuracy["values"]) > 1
    return f"{mean} ± {100 * accuracy['std']:.1f}" if several else mean


def markdown(summary: dict[str, Any]) -> str:
    """Writes the summary down as Markdown."""
    config, speed = summary["config"], summary["throughput"]
    header, lines = table(summary)
    words = "\n".join(f"- `{line[0]}`: {_explained(config, line[0])}" for line in lines)
    cohort = config["cohort"] or "all"
    return f"""\
# Federated training of `{config["model"]}` on `{config["data"]}`

{config["clients"]} clients ({cohort} in each round), partition `{config["partition"]}`,
{config["rounds"]} rounds, batch {config["batch"]}, seed {config["seed"]}, matmul
precision `{config["precision"]}`.{_attackers(config)}

{MEASURES[measured(summary)]} on test examples in %:
mean ± sample standard deviation over clients and random draws, one number where there
is only one. A test without a meaning for an arm is `-`.

{tabulate(lines, header, tablefmt="github", disable_numparse=True)}

{words}

Throughput: {speed["clients_per_s"]:.2f} clients/s, {speed["examples_per_s"]:.0f}
examples/s on {speed["device"]} ({speed["run_s"]:.1f} s running,
{speed["compile_s"]:.1f} s compiling; without evaluation).

Data: {config["data_licence"]}
"""
