"""How many sentences of 8 tokens are read off gradients of small transformers?

What: `kljax.leak` on the embedded corpus, sentence by sentence, networks drawn afresh.
Device: any; eleven minutes on two cores that were shared. Trials: 16 sentences a line,
of seed 0. Number last obtained: 81 % [57-93] exactly by DLG, all 16 with labels given;
experiments/text.md has the rest, and is what this prints.

    python experiments/text.py > experiments/text.md
"""

import platform
import sys

from tabulate import tabulate

from kljax import LeakConfig, leak, score_rows
from kljax.metrics import wilson

VICTIMS, STEPS = 16, 300
GIVEN = {"labels": "given"}
# -- what is attacked, and how: each line is one study -------------------------------
STUDIES = (
    ("encoder, DLG", {"arms": ("none", "gaussian-noise=0.01", "gaussian-noise=0.1")}),
    ("encoder, DLG, labels given", GIVEN),
    ("causal, DLG, labels given", GIVEN | {"model": "causal-transformer"}),
    ("encoder, DLG, 16 tokens, labels given", GIVEN | {"tokens": 16}),
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


def main() -> None:
    """Runs all studies and prints the page."""
    lines, floors = [], []
    for name, changes in STUDIES:
        config = LeakConfig(victims=VICTIMS, steps=STEPS, **COMMON | changes)
        rows = score_rows(leak(config))
        for arm in dict.fromkeys(row["arm"] for row in rows):
            here = line(name, arm, [row for row in rows if row["arm"] == arm])
            if not arm.startswith("floor/"):
                lines.append(here)
                print(*here, sep=" | ", file=sys.stderr)
            elif name == STUDIES[0][0]:
                floors.append(here[1:4] + here[5:])
    scores = ("ROUGE-1", "ROUGE-2", "ROUGE-L")
    options = {"tablefmt": "github", "disable_numparse": True}
    print(
        PAGE.format(
            machine=f"{platform.machine()}, CPU",
            victims=VICTIMS,
            steps=STEPS,
            table=tabulate(lines, (*HEAD, *scores), **options),
            floors=tabulate(floors, (*HEAD[1:4], HEAD[5], *scores), **options),
        ),
        end="",
    )


if __name__ == "__main__":
    main()
