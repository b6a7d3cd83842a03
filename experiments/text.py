"""How many sentences of 8 tokens are read off gradients of small transformers?

What: `kljax.leak` on the embedded corpus, sentence by sentence, networks drawn afresh.
Device: any; eleven minutes on two cores that were shared, and as much for --few.
Trials: 16 sentences a line of seed 0, and 4 of the lines that --few prints alone.
Number last obtained: 81 % [57-93] exactly by DLG, all 16 with labels given;
experiments/text.md has the rest, and is what this prints.

    python experiments/text.py > experiments/text.md
    python experiments/text.py --few  # or --few STUDY...
    python experiments/text.py --lamp  # each line is kept in runs/text_lamp.jsonl
    python experiments/text.py --perplexity
"""

import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from studies.json_lines import add_lines, read_lines
from tabulate import tabulate

from kljax import LeakConfig, data, leak, score_rows
from kljax.metrics import wilson
from kljax.models.ngrams import count_trigrams, perplexity
from kljax.studies.builder.language_model import SHARE

VICTIMS, STEPS = 16, 300
GIVEN = {"labels": "given"}
# -- what is attacked, and how: each line is one study -------------------------------
STUDIES = (
    ("encoder, DLG", {"arms": ("none", "gaussian-noise=0.01", "gaussian-noise=0.1")}),
    ("encoder, DLG, labels given", GIVEN),
    ("causal, DLG, labels given", GIVEN | {"model": "causal-transformer"}),
    ("encoder, DLG, 16 tokens, labels given", GIVEN | {"tokens": 16}),
)
# -- the same of fewer sentences ------------------------------------------------------
FEW = 4
NEXT = {"model": "language-model", "data": "text-next-token"}
VERSES = {"data": "text-verses", "tokens": 12}
FEW_STUDIES = (
    ("encoder, DLG, labels given", GIVEN),
    ("encoder, TAG, labels given", GIVEN | {"attack": "tag"}),
    ("encoder, TAG, 2500 evaluations", GIVEN | {"attack": "tag", "steps": 2500}),
    (
        "encoder, DLG, verses of at most 12",
        GIVEN | {"data": "text-verses", "tokens": 12},
    ),
    ("language model, DLG, targets given", GIVEN | NEXT),
    ("language model, DLG, targets joint", {"labels": "joint"} | NEXT),
)
COMMON = {"model": "transformer", "data": "text", "attack": "dlg", "arms": ("none",)}
MEANS = ("token_accuracy", "rouge_1", "rouge_2", "rouge_l")
HEAD = ("study", "arm", "sentences", "all tokens [95 %]", "recovered", "tokens")
PAGE = """\
# Text: what gradients of small transformers say of sentences

Made by `python experiments/text.py` on {machine}.

Each line is {victims} sentences: the first 8 pieces (or 16) of verses of the King
James Bible, of 4,096 pieces (`kljax.data.text`). The network has two blocks of width
64 and is drawn afresh for each sentence; the attack has one start of {steps}
evaluations, looks for embeddings, and reads each as the nearest token. The gradient
of the embeddings themselves is left out of what it compares: its rows that are not 0
name the tokens, and only their order would be left to find (the floor *own_tokens*).

{table}

*all tokens*: every token in its place. *recovered*: at least half of them, and at most
half as many wrong as in the sentence's best floor. If labels are not given, DLG
optimises them along with the sentence. Lines whose intervals overlap may differ by
chance. Floors, of the first study:

{floors}
"""
FEW_PAGE = """\
## Other attacks, lengths and targets

Made by `python experiments/text.py --few`, study by study.

Of {few} sentences each, which tells much from nothing and no more. TAG adds absolute
distances and descends by Adam, in as many evaluations as DLG or in its paper's number.
*Verses of at most 12* are whole verses, with padding behind them: where they end is
read off the gradient of the places. The *language model* is trained to give the next
piece at every place. Its targets are the sentence but for the first piece, so whoever
is given them knows that much of it beforehand. *target tokens*: pieces of the target
that are right. The gradient of its last bias names the target's pieces in any order,
which a search for the targets does not use.

{others}
"""


def line(name: str, arm: str, rows: list) -> tuple:
    """Sums the sentences of an arm up."""
    exact = [row["exact_match"] for row in rows]
    sure = wilson(sum(exact), len(exact))
    rate = f"{sure.estimate:.0%} [{100 * sure.low:.0f}-{100 * sure.high:.0f}]"
    found = [row["outcome"] == "recovered" for row in rows]
    means = [sum(row[column] for row in rows) / len(rows) for column in MEANS]
    recovered = f"{sum(found) / len(found):.0%}" if rows[0]["outcome"] else "-"
    means = [f"{means[0]:.0%}", *(f"{mean:.2f}" for mean in means[1:])]
    return (name, arm, len(rows), rate, recovered, *means)


def rows_of(changes: dict, victims: int) -> list:
    """Runs a study, and scores it."""
    options = {"victims": victims, "steps": STEPS} | COMMON | changes
    return score_rows(leak(LeakConfig(**options)))


# -- LAMP, beside the others on the same sentences ------------------------------------
LAMP_FILE = Path("runs/text_lamp.jsonl")
LAMP_LINES = {
    f"{name}, b = {batch}": GIVEN | {"attack": attack, "examples": batch}
    for batch in (1, 2)
    for name, attack in (
        ("DLG", "dlg"),
        ("TAG", "tag"),
        ("LAMP, cosine", "lamp"),
        ("LAMP, L1 + L2", "lamp-l1l2"),
    )
}
LAMP_HEAD = (
    "attack",
    "sentences",
    "evaluations, proposals",
    "all tokens [95 %]",
    "recovered",
    "tokens",
    "ROUGE-1",
    "ROUGE-2",
    "ROUGE-L",
    "best floor's",
)
LAMP_PAGE = """\
## LAMP

Made by `python experiments/text.py --lamp`, line by line.

LAMP alternates steps of Adam on embeddings with *proposals*, other orders of the tokens
that it has, which are judged by the gradient they give and by a language model (the one
below). Its first objective is the mean over tensors of 1 minus the cosine, its second
TAG's. All attacks have one start of {steps} evaluations on the same {few} uploads of b
sentences of 8 tokens, labels given, an encoder drawn afresh for each; LAMP's proposals
come on top. *best floor's*: ROUGE-1, ROUGE-2 and ROUGE-L, each of the best floor but
for *own_tokens*, which has the true tokens.

{table}
"""


def lamp_page(names: Sequence[str]) -> str:
    """Runs the lines that are missing, or those of `names`, and writes their part."""
    unknown = [name for name in names if name not in LAMP_LINES]
    if unknown:
        raise SystemExit(
            f"--lamp: no line {unknown[0]!r}; choose from {'; '.join(LAMP_LINES)}"
        )
    done = {line["name"]: line["rows"] for line in read_lines(LAMP_FILE)}
    for name in names or LAMP_LINES:
        if name not in done:
            done[name] = rows_of(LAMP_LINES[name], FEW)
            add_lines(LAMP_FILE, [{"name": name, "rows": done[name]}])
            print(*lamp_line(name, done[name]), sep=" | ", file=sys.stderr, flush=True)
    lines = [lamp_line(name, done[name]) for name in LAMP_LINES if name in done]
    drawn = tabulate(lines, LAMP_HEAD, tablefmt="github", disable_numparse=True)
    return LAMP_PAGE.format(steps=STEPS, few=FEW, table=drawn)


def lamp_line(name: str, rows: list) -> tuple:
    """Sums a line of LAMP's table up."""
    found = [row for row in rows if not row["arm"].startswith("floor/")]
    _, _, count, *sums = line(name, "none", found)
    floors = {}
    for row in rows:
        if row["arm"].startswith("floor/") and row["arm"] != "floor/own_tokens":
            floors.setdefault(row["arm"], []).append(row)
    best = [
        max(sum(row[score] for row in its) / len(its) for its in floors.values())
        for score in MEANS[1:]
    ]
    tried = found[0].get("proposals")
    spent = f"{found[0]['evaluations']}, {'-' if tried is None else tried}"
    return (name, count, spent, *sums, ", ".join(f"{score:.2f}" for score in best))


HELD_OUT = 500
PERPLEXITY = """\
## The language model of LAMP

`python experiments/text.py --perplexity`: trigrams with Kneser-Ney smoothing, counted
of three quarters of the sentences (`kljax.models.ngrams`), and the frequency of tokens
alone, plus one each. Perplexity of {held_out} sentences that were not counted; of
{vocabulary} tokens guessed at random it is {vocabulary}.

{table}
"""


def perplexity_page() -> str:
    """Scores language models on sentences that they have not seen."""
    lines = []
    for length in (8, 16):
        dataset = data.load("text", length=length)
        vocabulary = dataset.input_spec.sizes["vocabulary"]
        order = data.select(dataset, len(dataset), seed=0)
        counted = order[-int(SHARE * len(order)) :]
        ours, others = dataset.inputs[counted], dataset.inputs[order[:HELD_OUT]]
        frequencies = np.bincount(ours.ravel(), minlength=vocabulary) + 1
        shares = frequencies / frequencies.sum()
        alone = np.exp(-np.log(shares[others]).mean())
        found = perplexity(count_trigrams(ours, vocabulary, counted), others)
        lines.append((length, len(counted), f"{found:.0f}", f"{alone:.0f}"))
    head = ("tokens of a sentence", "sentences counted", "trigrams", "single tokens")
    drawn = tabulate(lines, head, tablefmt="github", disable_numparse=True)
    return PERPLEXITY.format(held_out=HELD_OUT, vocabulary=vocabulary, table=drawn)


def main() -> None:
    """Runs all studies and prints the page."""
    if sys.argv[1:2] == ["--perplexity"]:
        print(perplexity_page(), end="")
        return
    if sys.argv[1:2] == ["--lamp"]:
        print(lamp_page(sys.argv[2:]), end="")
        return
    if sys.argv[1:2] == ["--few"]:
        print(few_page(sys.argv[2:]), end="")
        return
    lines, floors = [], []
    for name, changes in STUDIES:
        rows = rows_of(changes, VICTIMS)
        for arm in dict.fromkeys(row["arm"] for row in rows):
            here = line(name, arm, [row for row in rows if row["arm"] == arm])
            if not arm.startswith("floor/"):
                lines.append(here)
                print(*here, sep=" | ", file=sys.stderr)
            elif name == STUDIES[0][0]:
                floors.append(here[1:4] + here[5:])
    print(
        PAGE.format(
            machine=f"{platform.machine()}, CPU",
            victims=VICTIMS,
            steps=STEPS,
            table=table(lines, HEAD),
            floors=table(floors, (*HEAD[1:4], HEAD[5])),
        )
    )
    print(few_page(), end="")
    print(f"\n{lamp_page(())}", end="")
    print(f"\n{perplexity_page()}", end="")


def few_page(names: Sequence[str] = ()) -> str:
    """Runs the studies of fewer sentences, and writes their part of the page.

    Args:
      names: of studies; none for all.
    """
    lines = []
    for name, changes in FEW_STUDIES:
        if names and name not in names:
            continue
        rows = rows_of(changes, FEW)
        found = [row for row in rows if not row["arm"].startswith("floor/")]
        _, _, *sums = line(name, "none", found)
        targets = [row["target_accuracy"] for row in found]
        told = "-" if targets[0] is None else f"{sum(targets) / len(targets):.0%}"
        lines.append((name, *sums[:4], told, *sums[4:]))
        print(*lines[-1], sep=" | ", file=sys.stderr)
    head = (HEAD[0], *HEAD[2:], "target tokens")
    return FEW_PAGE.format(few=FEW, others=table(lines, head))


def table(lines: list[tuple], head: tuple[str, ...]) -> str:
    """Draws a table, whose last columns are ROUGE."""
    head = (*head, "ROUGE-1", "ROUGE-2", "ROUGE-L")
    return tabulate(lines, head, tablefmt="github", disable_numparse=True)


if __name__ == "__main__":
    main()
