"""Does DAGER read sentences off updates of several local steps, and at which rates?

What: `kljax.attacks.presets.dager` on the change of a whole local training, SGD, for
learning rates and numbers of steps; and the ranks of the first and second attention's
change, as the attacker finds them.
Device: any. Trials: the uploads of each line, of seed 0; networks drawn afresh.
Number last obtained: the second table of experiments/dager.md, which this prints.

    python experiments/dager_updates.py            # what is missing, then the table
    python experiments/dager_updates.py --lines NAME...
    python experiments/dager_updates.py --table    # computes nothing

A line is computed once, and kept in ``runs/dager_updates``.
"""

import argparse
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tabulate import tabulate

from kljax import LeakConfig, metrics
from kljax.attacks import AssumedDefence, Protocol, Setting, Task
from kljax.attacks.presets import dager
from kljax.core.types import Private, Public
from kljax.defences import none
from kljax.federated.clients import local_update
from kljax.metrics.text import exact_match, rouge
from kljax.models import bert, from_nnx, gpt
from kljax.models.losses import cross_entropy
from kljax.studies.builder.victims import choose_victims, load_victim_data
from kljax.threat import Knowledge, Strategy, ThreatModel, observe

FOLDER = Path("runs/dager_updates")
SIZES = {"width": 256, "depth": 2, "heads": 4}  # those of experiments/dager.py
RATES = (1e-4, 1e-3, 1e-2, 1e-1)
# name -> network, uploads, sentences of each, in a batch, local steps
LINES = {
    "decoder, 4 sentences, 1 step": (gpt, 2, 4, 4, 1),
    "decoder, 4 sentences, 2 steps": (gpt, 2, 4, 4, 2),
    "decoder, 4 sentences, 4 steps": (gpt, 2, 4, 4, 4),
    "decoder, 4 sentences, 8 steps": (gpt, 2, 4, 4, 8),
    "decoder, 4 sentences in 2 batches, 2 steps": (gpt, 2, 4, 2, 2),
    "decoder, 4 sentences in 2 batches, 4 steps": (gpt, 2, 4, 2, 4),
    "encoder, 1 sentence, 3 steps": (bert, 4, 1, 1, 3),
}
HEAD = (
    "updates",
    "rate",
    "sentences",
    "ranks",
    "full",
    "found",
    "exact",
    "ROUGE-1",
    "ROUGE-2",
)


def threat_of(examples: int) -> ThreatModel:
    """Makes the attacker of an update, who knows parameters, rate and steps alone."""
    hidden = ("private_key", "lock_weights", "lock_grads", "labels", "stats")
    facts = dict.fromkeys(hidden, "hidden")
    facts |= dict.fromkeys(("victim_norm", "attacker_norm"), "eval")
    facts |= {"upload": "update", "server": "honest", "visible": "all"}
    return ThreatModel(
        Knowledge(**facts, examples=examples, clients=1),
        Strategy(secret="unit", labels="recovered"),
    )


def compute(name: str) -> None:
    """Attacks the uploads of one line at every rate, and keeps what came of them."""
    factory, uploads, examples, batch, steps = LINES[name]
    data = "text-next-token" if factory is gpt else "text"
    config = LeakConfig(
        attack="dager",
        arms=("none",),
        data=data,
        tokens=8,
        victims=uploads,
        examples=examples,
        threat=(),
    )
    dataset = load_victim_data(config)
    victims, _ = choose_victims(config, dataset)
    spec, targets = dataset.input_spec, dataset.target_spec
    vocabulary = spec.sizes["vocabulary"]
    model = from_nnx(
        lambda rngs: factory(
            targets.outputs,
            image_shape=spec.shape,
            vocabulary=vocabulary,
            rngs=rngs,
            **SIZES,
        )
    )
    defence, threat = none(), threat_of(examples)
    assumed = AssumedDefence(
        defence.gates, defence.simulate, defence.update.simulate, ()
    )
    task = Task(model, cross_entropy, spec, targets, "fc")

    @jax.jit
    def run(rng, rate, inputs, labels):
        rng_network, rng_client, rng_attack = jax.random.split(rng, 3)
        params, stats = model.init(rng_network)
        training = local_update(
            model,
            cross_entropy,
            defence,
            optax.sgd(rate),
            steps=steps,
            batch=batch,
            targets=targets,
        )
        public = Public(params)
        state = training.init(public, Private())
        sent = training.run(rng_client, 0, public, stats, state, inputs, labels)
        protocol = Protocol(optax.sgd(rate), steps, batch, rate)
        attack = dager(Setting(task, threat, assumed, protocol))
        return attack(rng_attack, observe(threat, sent))

    done = []
    for rate in RATES:
        for n in range(uploads):
            truths = jnp.asarray(victims.inputs[n])
            labels = jnp.asarray(victims.labels[n])
            rng = jax.random.fold_in(jax.random.key(0), n)
            found = run(rng, jnp.float32(rate), truths, labels)
            row = scores(dataset, np.asarray(found.inputs), np.asarray(truths))
            numbers = {key: float(value) for key, value in found.numbers.items()}
            done.append({"rate": rate} | row | numbers)
            print(name, json.dumps(done[-1]), file=sys.stderr, flush=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    file_of(name).write_text(json.dumps(done, indent=1))


def scores(dataset, guesses: np.ndarray, truths: np.ndarray) -> dict[str, float]:
    """Scores sentences in the order that fits best, the mean over them."""
    guesses = guesses[metrics.assign(guesses, truths)]
    spell = dataset.input_spec.spell
    found = [
        rouge(spell(guess), spell(truth))
        for guess, truth in zip(guesses, truths, strict=True)
    ]
    return {
        "exact_match": float(exact_match(guesses, truths).mean()),
        "rouge_1": float(np.mean([one["rouge_1"] for one in found])),
        "rouge_2": float(np.mean([one["rouge_2"] for one in found])),
    }


def file_of(name: str) -> Path:
    """Says where a line is kept."""
    return FOLDER / f"{name.replace(' ', '_').replace(',', '')}.json"


def table() -> str:
    """Draws what there is."""
    lines = []
    for name, (_, uploads, examples, _, _) in LINES.items():
        if not file_of(name).exists():
            continue
        rows = json.loads(file_of(name).read_text())
        for rate in RATES:
            own = [row for row in rows if row["rate"] == rate]
            mean = {key: float(np.mean([row[key] for row in own])) for key in own[0]}
            full = sum(row["rank_is_full"] for row in own)
            lines.append(
                (
                    name,
                    f"{rate:g}",
                    uploads * examples,
                    f"{mean['rank_first']:.1f}, {mean['rank_second']:.1f}",
                    f"{full:.0f} of {len(own)}",
                    f"{mean['sentences_found']:.1f} of {examples}",
                    f"{mean['exact_match']:.0%}",
                    f"{mean['rouge_1']:.2f}",
                    f"{mean['rouge_2']:.2f}",
                )
            )
    return tabulate(lines, HEAD, tablefmt="github", disable_numparse=True)


PAGE = """\
## Updates of several steps

Made by `python experiments/dager_updates.py`, line by line.

A client makes steps of plain SGD on its sentences, all of them in every step or one
batch after the other, and uploads the change of its parameters. The attacker knows
what the client received, the number of steps, of batches and the rate, and no label.
Two uploads of a decoder, four of an encoder, of seed 0, each at four rates, from the
same fresh weights. *ranks*: of the change of the first and the second attention. The
sentences are those of the lines of noise in the first table: by their best floors
ROUGE-1 and ROUGE-2 are 0.20 and 0.00 (decoder), 0.35 and 0.06 (encoder).

{table}

- **The rank grows with steps and rate.** Inputs of each step are others, as embeddings
  move, so an upload of n inputs and T steps has up to T n directions. At low rates the
  later ones are below what rounding of the parameters leaves.
- **What is received is known exactly**, and so is what the first step was fed: it is in
  that larger span at any rate, as long as the span is not full.
- **At low rates** (1e-4 and 1e-3 here) directions are lost in rounding, and inputs are
  off the span by a part of their own way. That part is measured for each candidate:
  what of its way is outside of the span, up to a tenth of its length.
- **Of several batches** half of the sentences are found at 0.1, which is as many as the
  first batch has. Inputs of later ones are known on the straight way alone, which held
  at 1e-4 and fails at higher rates.
- Encoders give their sentence away in the same way.
- A full rank, or too many steps for the width, ends it, as a large batch does.
- Petrov et al. report low rates, at which inputs hardly move. Not tried: rates above
  0.1, momentum, weight decay, trained networks, averages of clients. Lines of fewer
  steps are in the script and were not run. All lines were compiled without optimisation
  (`JAX_DISABLE_MOST_OPTIMIZATIONS=1`).
"""


def page() -> str:
    """Writes the part of the page."""
    return PAGE.format(table=table())


def main() -> None:
    """Computes the lines that are missing, and prints their part of the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", nargs="+", choices=LINES, default=[])
    parser.add_argument("--table", action="store_true", help="compute nothing")
    options = parser.parse_args()
    for name in options.lines or LINES if not options.table else ():
        if not file_of(name).exists():
            compute(name)
    print(page(), end="")


if __name__ == "__main__":
    main()
