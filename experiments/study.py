"""What is the key-lock worth? A study in parts, in order of importance.

    python experiments/study.py [--out runs/study] [--hours 6] [--only PART ...]
        [--tables experiments/study]

Each part is a sweep file in experiments/study/, run by `kljax sweep` in a process of
its own. The budget is of processor time, all parts and all calls together; it is
written down in OUT/spent.json. Called again, the study goes on where it stopped, and
what is finished costs nothing. Cells that did not fit are printed as "not run".
`--tables` writes a file per part; one that was not begun in OUT keeps what is there, so
that parts may be run in different places and at different times.

Fair to all arms: within a part all have the same attack, evaluations, restarts, victims
and random keys. Papers' attacks have their papers' numbers; what no paper says was
chosen on other victims by the attacker's own loss (experiments/attack_settings.md,
which also says what was not; gate_regression.md names one exception).
Parts on Fashion-MNIST need `kljax data prepare fashion_mnist --from DIR`, where DIR
holds its four IDX files. Parts that attack trained clients also need

    kljax train --model lenet --data DATA --clients 3 --rounds 20 --batch 16 \\
        --arms none bn-control plaintext-gates keylock --learning-rate 0.05 \\
        --keep-rounds 0 10 20 --out runs/trained_DATA

for DATA fashion_mnist (with --examples 15000 --test-examples 5000) and digits (with
--local-epochs 5); their time is not in the budget.
"""

import argparse
import sys
from pathlib import Path

from studies.parts import left, markdown, read_part, run_sweep, spent
from studies.published import beside_paper

from kljax.core.files import write_text
from kljax.studies.reports.contents import make_contents
from kljax.studies.reports.tables import Table

NOISY = "keylock+gaussian-noise=0.001"
# Who is set against whom, on the same victims: one thing differs.
PAIRS = (
    ("bn-control", "none"),
    ("keylock/unit", "none"),
    ("keylock/known", "none"),
    ("plaintext-gates", "bn-control"),
    ("plaintext-gates-as-lock", "bn-control"),
    ("keylock/known", "plaintext-gates-as-lock"),
    ("keylock/known", "plaintext-gates"),
    ("keylock/regress_private_key", "keylock/known"),
    ("keylock/regress_gates", "keylock/known"),
    ("keylock/peel", "keylock/known"),
    ("keylock/fixed_random", "keylock/known"),
    *(
        (f"{NOISY}/{strategy}", f"{NOISY}/known")
        for strategy in ("regress_gates", "peel")
    ),
)
PARTS = sorted((Path(__file__).parent / "study").glob("*.toml"))
VALUE = "ssim_affine_oracle"
# Columns of comparisons that are in the reports alone (`kljax report`).
TESTS_OF_SUCCESS = ("only arm", "SSIM >= .6")


def main():
    """Runs what is missing, as far as the budget goes, and prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [part.stem for part in PARTS]
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--hours", type=float, default=6.0, help="of processor time")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--tables", type=Path, help="folder for a file per part")
    options = parser.parse_args()
    if options.tables:
        options.tables.mkdir(parents=True, exist_ok=True)
    failed = []
    for part in PARTS:
        if part.stem in options.only:
            seconds = left(options.out, options.hours)
            if seconds <= 0:
                break
            if not run_sweep(part, options.out, seconds):
                failed.append(part.stem)
    for part in PARTS:
        if part.stem in options.only:
            text = tables(part, options.out)
            print(text)
            file = options.tables and options.tables / f"{part.stem}.md"
            if file and (part.stem in spent(options.out) or not file.exists()):
                write_text(file, text)
    if failed:
        sys.exit(f"cells failed in {', '.join(failed)}: see above")


def tables(part: Path, out: Path) -> str:
    """Writes the tables of a part, and the processor time that it took."""
    first = part.read_text(encoding="utf-8").split("\n\n")[0].replace("# ", "")
    study = read_part(part, out)
    contents = make_contents(study, value=VALUE)
    hours = spent(out).get(part.stem, 0.0) / 3600
    texts = [
        f"# {part.stem}\n\n{first}\n\n{contents.progress.text()} "
        f"{hours:.2f} processor hours.",
        markdown(contents.points),
    ]
    if contents.budgets:
        texts += [contents.budgets.title + ":", markdown(contents.budgets)]
    compared = pairs(contents.comparisons) if contents.comparisons else None
    if compared and compared.lines:
        texts += ["On the same victims:", markdown(compared)]
    if part.stem.endswith("-paper"):
        texts.append(beside_paper(study))
    return "\n\n".join(texts) + "\n"


def pairs(table: Table) -> Table:
    """Keeps the comparisons of `PAIRS`, and of what they say the differences."""
    places = [
        n
        for n, name in enumerate(table.header)
        if ": p" not in name and not name.startswith(TESTS_OF_SUCCESS)
    ]
    arm, minus = table.header.index("arm"), table.header.index("minus")
    lines = [
        tuple(line[n] for n in places)
        for line in table.lines
        if (line[arm].text, line[minus].text) in PAIRS
    ]
    return table._replace(header=[table.header[n] for n in places], lines=lines)


if __name__ == "__main__":
    main()
