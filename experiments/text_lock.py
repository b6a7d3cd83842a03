"""Does a key-lock on a transformer hide text, and from whom?

    python experiments/text_lock.py [--victims 8] [--steps 300] [--seed 0]
        [--from runs/text-lock] [--out runs/text_lock.jsonl] [--only NAME...]
        [--arms ARM...] [--page]

What: sentences of 8 pieces, kljax's own encoder, labels given. A lock gates the first
block's first norm, its norm in front of the dense layers, all five norms, or its dense
layer of width 256. Its attackers know the gates, guess a private key, optimise the
gates along with the sentence, or read no tensor of the block that is locked. Controls:
no lock; the norm alone that a lock brings along, without gates; and the same gates, in
plaintext.
Networks are drawn afresh, or are those of a run of

    kljax train --model transformer --data text --tokens 8 --init 0 \\
        --arms none keylock --rounds 20 --keep-rounds 20 --out runs/text-lock

Each line is kept in ``--out`` and not computed again; ``--page`` prints what is there.
Device: any. Number last obtained: see experiments/text_lock.md.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from studies.json_lines import add_lines, read_lines, write_interval
from tabulate import tabulate

from kljax import LeakConfig, leak, score_rows
from kljax.metrics import interval

CONTROLS = ("none", "bn-control", "plaintext-gates-as-lock")
LOCKED = ("keylock/known", "keylock/fixed_random", "keylock/regress_gates")
ABOVE = "blocks/1+norm+fc"  # nothing of the first block
EVERY = {"sites": ("all",)}
SECOND_NORM = {"sites": ("blocks/0/norm2",)}
DENSE = {"sites": ("blocks/0/expand",)}
# name -> the arms, and what a study has beside the common
LINES = {
    "DLG": (CONTROLS + LOCKED, {}),
    "DLG, second block": (
        ("none", *LOCKED[1:]),
        {"threat": (f"visible={ABOVE}",)},
    ),
    "LAMP": (("none", *LOCKED), {"attack": "lamp"}),
    "TAG": (("none", *LOCKED), {"attack": "tag"}),
    "DLG, 2 sentences": (("none", *LOCKED), {"examples": 2}),
    "DLG, norm of the dense layers": (("none", *LOCKED), SECOND_NORM),
    "DLG, five norms": (("bn-control", *LOCKED), EVERY),
    "DLG, dense layer": (("none", *LOCKED), DENSE),
}
HEAD = (
    "attack, what is locked",
    "arm",
    "all tokens",
    "tokens [95 %]",
    "minus best floor [95 %]",
    "ROUGE-1",
    "matched",
    "matched but wrong",
)


def compute(options: argparse.Namespace) -> None:
    """Attacks what is not in the file yet, arm by arm, and writes its rows there."""
    done = {(line["part"], line["arm"]) for line in read_lines(options.out)}
    for name, (arms, changes) in LINES.items():
        if options.only and name not in options.only:
            continue
        for arm in arms:
            if options.arms and arm not in options.arms:
                continue
            label = name + ", trained" * (options.from_run is not None)
            if (label, arm) in done:
                continue
            common = {"attack": "dlg", "labels": "given", "arms": (arm,)}
            if options.from_run is None:
                common |= {"model": "transformer", "data": "text"}
            else:
                common |= {"from_run": str(options.from_run), "round": options.round}
            common |= {"victims": options.victims, "steps": options.steps}
            rows = score_rows(leak(LeakConfig(**common | changes, seed=options.seed)))
            own = [row for row in rows if row["arm"] == arm]
            line = {"part": label, "arm": arm, "noise": None, "rows": own}
            add_lines(options.out, [line])
            print(*line_of(line), sep=" | ", file=sys.stderr, flush=True)


def line_of(line: dict) -> tuple[str, ...]:
    """Sums the sentences of an arm up."""
    rows = line["rows"]
    groups = [row["group"] for row in rows]
    tokens = [row["token_accuracy"] for row in rows]
    above = [row["token_accuracy"] - row["floor_token_accuracy"] for row in rows]
    exact = [row["exact_match"] for row in rows]
    matched = [row["matching_loss"] <= row["matching_loss_floor"] for row in rows]
    ambiguous = [row["outcome"] == "ambiguous" for row in rows]
    return (
        line["part"],
        line["arm"],
        f"{sum(exact)} of {len(rows)}",
        write_interval(interval(tokens, groups, rate=False)),
        write_interval(interval(above, groups, rate=False)),
        f"{np.mean([row['rouge_1'] for row in rows]):.2f}",
        f"{sum(matched)} of {len(rows)}",
        f"{sum(ambiguous)}",
    )


def main() -> None:
    """Computes what is missing, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--victims", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--from", dest="from_run", type=Path)
    parser.add_argument("--round", type=int, default=20)
    parser.add_argument("--only", nargs="*", choices=[*LINES], default=())
    parser.add_argument("--arms", nargs="*", default=(), help="of a line, these alone")
    parser.add_argument("--out", type=Path, default=Path("runs/text_lock.jsonl"))
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args()
    if not options.page:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        compute(options)
    lines = [line_of(line) for line in read_lines(options.out)]
    print(tabulate(lines, HEAD, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
