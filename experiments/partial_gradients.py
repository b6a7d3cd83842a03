"""What does one tensor of a transformer's gradient say of a sentence?

    python experiments/partial_gradients.py [--victims 8] [--steps 300] [--seed 0]
        [--out runs/partial_gradients.jsonl] [--page]

What: sentences of 8 pieces, kljax's own encoder (two blocks of width 64), drawn afresh
for each sentence, labels given. The attacker reads some tensors of the gradient and no
others: all, a block, or the weight of one linear component, as Li, Xu and Dras have
them ("Seeing the Forest through the Trees", EMNLP 2024); weights only, no biases. It
looks by LAMP's cosine variant. Then the same behind DP-SGD (clip 1), with the noise
levels of the paper.

Each part of an upload is an arm here, whose number is data: one compilation serves all.
`kljax leak --threat visible=blocks/0/attention/query/kernel` attacks the same part.
Finished arms are kept in ``--out`` and not computed again; ``--page`` prints
the tables of what is there.
Device: any. Number last obtained: see experiments/partial_gradients.md.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from studies.json_lines import add_lines, read_lines, write_interval
from tabulate import tabulate

from kljax import LeakConfig, leak, score_rows
from kljax.core.types import Array, Public, PyTree
from kljax.defences import Context, Defence
from kljax.metrics import interval
from kljax.threat.parts import readable_tensors

COMPONENTS = (
    "attention/query",
    "attention/key",
    "attention/value",
    "attention/out",
    "expand",
    "contract",
)
# What is read: its name in the page -> patterns, see kljax.threat.parts.
PARTS = {
    f"{name}, block {block}": f"blocks/{block}/{name}/kernel"
    for block in (0, 1)
    for name in COMPONENTS
} | {"all": "*", "block 0": "blocks/0", "block 1": "blocks/1"}
# Clip 1, and noise of these standard deviations on every entry of one example's.
NOISES = (0.01, 0.1, 0.5)
PRIVATE = ("attention/query, block 0", "block 0", "all")
HEAD = (
    "part read",
    "of the upload",
    "tokens [95 %]",
    "minus best floor [95 %]",
    "ROUGE-1",
    "ROUGE-2",
    "ROUGE-L",
    "matched",
)
TOGETHER = 4  # arms that are computed, and then kept
FLOORS = ("by_place", "class_by_place", "same_class", "bigrams", "own_tokens")


def partial(part: float | Array) -> Defence:
    """Lets a server read one of `PARTS`, by its number; the rest is hidden from it."""

    def visible(rng, sent: Public, context: Context) -> PyTree:
        del rng, context
        masks = [readable_tensors(sent, pattern) for pattern in PARTS.values()]
        number = jnp.asarray(part, jnp.int32)
        return jax.tree.map(lambda *them: jnp.stack(them)[number], *masks)

    return Defence(visible=visible)


def studies() -> Iterator[tuple[dict[str, Any], dict[str, tuple[str, float | None]]]]:
    """Lists studies: what their configuration has, and by arm what is read of what.

    A guarantee of privacy covers no arm that hides entries, so behind a noise the part
    is a fact of the threat model.
    """
    names = list(PARTS)
    for first in range(0, len(names), TOGETHER):
        arms = {
            f"partial_gradients:partial={names.index(name)}": (name, None)
            for name in names[first : first + TOGETHER]
        }
        yield {}, arms
    for name in PRIVATE:
        threat = () if name == "all" else (f"visible={PARTS[name]}",)
        arms = {f"dp-sgd=1,{noise}": (name, noise) for noise in NOISES}
        yield {"threat": threat}, arms


def compute(options: argparse.Namespace) -> None:
    """Attacks what is not in the file yet, and writes its rows there."""
    done = {(line["part"], line["noise"]) for line in read_lines(options.out)}
    for changes, arms in studies():
        left = {arm: study for arm, study in arms.items() if study not in done}
        if not left:
            continue
        config = LeakConfig(
            model="transformer",
            data="text",
            attack="lamp",
            arms=tuple(left),
            victims=options.victims,
            steps=options.steps,
            seed=options.seed,
            **changes,
        )
        rows = score_rows(leak(config))
        kept = [
            (*study, [r for r in rows if r["arm"] == a]) for a, study in left.items()
        ]
        if ("floors", None) not in done:
            floors = [row for row in rows if row["arm"].startswith("floor/")]
            kept.append(("floors", None, floors))
            done.add(("floors", None))
        add_lines(
            options.out,
            ({"part": part, "noise": noise, "rows": own} for part, noise, own in kept),
        )
        print(*left, file=sys.stderr, flush=True)


def line_of(part: str, rows: list[dict]) -> tuple[str, ...]:
    """Sums the sentences of a part up."""
    tokens = [row["token_accuracy"] for row in rows]
    above = [row["token_accuracy"] - row["floor_token_accuracy"] for row in rows]
    groups = [row["group"] for row in rows]
    matched = [row["matching_loss"] <= row["matching_loss_floor"] for row in rows]
    rouges = (np.mean([row[f"rouge_{n}"] for row in rows]) for n in "12L".lower())
    return (
        part,
        f"{np.mean([row['visible_share'] for row in rows]):.2%}",
        write_interval(interval(tokens, groups, rate=False)),
        write_interval(interval(above, groups, rate=False)),
        *(f"{rouge:.2f}" for rouge in rouges),
        f"{sum(matched)} of {len(rows)}",
    )


def page(path: Path) -> str:
    """Draws the tables of what is finished."""
    lines, private, floors = [], [], []
    for line in read_lines(path):
        rows = line["rows"]
        if line["part"] == "floors":
            for name in FLOORS:
                own = [row for row in rows if row["arm"] == f"floor/{name}"]
                means = (
                    np.mean([row[column] for row in own])
                    for column in ("token_accuracy", "rouge_1", "rouge_2", "rouge_l")
                )
                first, *rest = means
                floors.append((name, f"{first:.0%}", *(f"{x:.2f}" for x in rest)))
        elif line["noise"] is None:
            lines.append(line_of(line["part"], rows))
        else:
            epsilon = rows[0]["epsilon"]
            name, *rest = line_of(line["part"], rows)
            private.append((name, f"{line['noise']:g}", f"{epsilon:.3g}", *rest))
    tables = [
        (lines, HEAD),
        (floors, ("floor", "tokens", "ROUGE-1", "ROUGE-2", "ROUGE-L")),
        (private, (HEAD[0], "noise", "epsilon", *HEAD[1:])),
    ]
    return "\n\n".join(
        tabulate(rows, head, tablefmt="github", disable_numparse=True)
        for rows, head in tables
        if rows
    )


def main() -> None:
    """Computes what is missing, and prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--victims", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/partial_gradients.jsonl")
    )
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args()
    if not options.page:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        compute(options)
    print(page(options.out))


if __name__ == "__main__":
    main()
