"""Summaries of a leakage study: means and rates of each arm, and what it was."""

import dataclasses
from typing import Any

import numpy as np

from kljax import metrics
from kljax.core.inputs import InputSpec
from kljax.core.provenance import collect_provenance, device
from kljax.metrics import Column, column_to_dict
from kljax.metrics.kinds import find_kind
from kljax.studies.leakage import LeakResult
from kljax.studies.matched_but_wrong import count_recovered_undefended
from kljax.studies.row_columns import columns_of, own_columns
from kljax.studies.scoring import SCHEMA_VERSION, Row, first_rows
from kljax.studies.sentences import (
    list_cells,
    list_sentences,
    sentence_lines,
    shares_by_column,
)

FLOOR = "floor/"


def summarise(result: LeakResult, rows: list[Row]) -> dict[str, Any]:
    """Summarises the rows of a study, as written to ``summary.json``.

    Means are over images whose value is finite, None where there is none.
    ``success_low`` and ``success_high`` are the 95 % interval of the success rate:
    Wilson's where each image stands for itself, by bootstrap over groups otherwise;
    NaN where it cannot be told. Images of one upload are a group, and
    ``recovered_of_uploads`` and ``recovered_affine_of_uploads`` list how many images of
    each upload have that outcome, where uploads have several.
    ``success_words`` says what success is of other inputs than images, ``noun`` what
    one is called; ``sentences`` lists the first of these and what was found of them,
    and ``texts`` the same, one by one.
    ``ambiguous_recovered_undefended`` counts the ambiguous images of an arm that are
    recovered in the arm ``none``, contrast or not; None without that arm.
    Of several inputs all this is of the one named ``input``, and ``other_inputs`` has
    the same of each other by name.
    """
    # What an attack spent on an upload is said in each of the upload's rows.
    first = [row for row in first_rows(rows) if row["attack"] is not None]
    evaluations = sum(row["evaluations"] or 0 for row in first)
    compile_s = sum(arm.timing.compile_s for arm in result.arms)
    run_s = sum(arm.timing.run_s for arm in result.arms)
    (primary, of_primary), *others = (
        (name, _of_input(result, spec, [row for row in rows if row["input"] == name]))
        for name, spec in result.dataset.input_spec.scored.items()
    )
    return {
        "schema_version": SCHEMA_VERSION,
        **of_primary,
        **({"input": primary, "other_inputs": dict(others)} if others else {}),
        "throughput": {
            "evaluations_per_s": evaluations / run_s,
            "attacks_per_hour": 3600 * len(first) / run_s,
            "compile_s": compile_s,
            "run_s": run_s,
            "device": device(),
            "victims": len(result.victims.labels),
        },
        "config": describe(result),
    }


def by_input(summary: dict[str, Any]) -> dict[str | None, dict[str, Any]]:
    """Makes a summary of each input by name; a single one has none, see `summarise`."""
    shared = {name: summary[name] for name in ("throughput", "config")}
    others = summary.get("other_inputs", {})
    return {
        summary.get("input"): summary,
        **{name: shared | of_input for name, of_input in others.items()},
    }


def _of_input(result: LeakResult, spec: InputSpec, rows: list[Row]) -> dict[str, Any]:
    """Summarises the rows of one input."""
    columns = columns_of(result.config)
    arms = {
        name: _summary_of([row for row in rows if row["arm"] == name], columns)
        for name in dict.fromkeys(row["arm"] for row in rows)
    }
    for name, arm in arms.items():
        if arm.get("outcomes", {}).get("ambiguous"):
            arm["ambiguous_recovered_undefended"] = count_recovered_undefended(
                rows, name
            )
    return {
        "arms": {k: v for k, v in arms.items() if not k.startswith(FLOOR)},
        "floors": {
            k.removeprefix(FLOOR): v for k, v in arms.items() if k.startswith(FLOOR)
        },
        **_of_kind(spec, rows),
    }


def _of_kind(spec: InputSpec, rows: list[Row]) -> dict[str, Any]:
    """Says what other inputs than images have: another success, sentences, cells."""
    if spec.kind == "image":
        return {}
    lines, texts = sentence_lines(rows), list_sentences(rows)
    words = {n: getattr(find_kind(spec), n) for n in ("success_words", "noun")}
    cells, shares = list_cells(rows), shares_by_column(rows)
    words |= {"cells": cells, "by_column": shares} if cells else {}
    return words | ({"sentences": lines, "texts": texts} if lines else {})


def _summary_of(rows: list[Row], columns: dict[str, Column]) -> dict[str, Any]:
    summary: dict[str, Any] = {"n": len(rows)}
    outcomes = [row["outcome"] for row in rows if row["outcome"]]
    if outcomes:
        summary["n_diverged"] = outcomes.count("diverged")
        summary["outcomes"] = {o: outcomes.count(o) for o in metrics.OUTCOMES}
        summary["recovered_rate"] = outcomes.count("recovered") / len(rows)
        if any(row["example"] for row in rows):
            for name in ("recovered", "recovered_affine"):
                summary[f"{name}_of_uploads"] = _count_by_upload(rows, name)
    for column in columns.values():
        name = column.name
        if not column.is_value or name == "success":  # which has its rate below
            continue
        values = np.array([row[name] for row in rows if row[name] is not None], float)
        if not len(values):
            continue  # does not apply to this arm
        values = values[np.isfinite(values)]
        summary[name] = float(values.mean()) if len(values) else None
    interval = metrics.interval(
        [row["success"] for row in rows], [row["group"] for row in rows], rate=True
    )
    summary["success_rate"] = interval.estimate
    summary["success_low"], summary["success_high"] = interval.low, interval.high
    summary["success_interval"] = interval.method
    return summary


def _count_by_upload(rows: list[Row], outcome: str) -> list[int]:
    counts = dict.fromkeys((row["upload"] for row in rows), 0)
    for row in rows:
        counts[row["upload"]] += row["outcome"] == outcome
    return list(counts.values())


def describe(result: LeakResult) -> dict[str, Any]:
    """Says all that is needed to repeat a study, as written to ``config.json``."""
    config = dataclasses.asdict(result.config)
    return config | {
        "threat_models": {
            arm.arm.name: {
                "knowledge": dataclasses.asdict(arm.threat.knowledge),
                "strategy": dataclasses.asdict(arm.threat.strategy),
            }
            for arm in result.arms
        },
        "compilations": {a.arm.name: a.timing.compilations for a in result.arms},
        "data_licence": result.dataset.licence,
        "own_columns": [*map(column_to_dict, own_columns(result.config).values())],
        **collect_provenance(),
    }
