"""Three orders of differentiation for the image gradient of a matching objective.

    python experiments/orders.py [--only NETWORK ...] [--rounds 7]

The objective is D(g(x), g*): the distance of a candidate's gradient g(x), of the loss
by the weights, to the uploaded one. Three ways to its gradient by the image x, which
are one number:

  reverse over reverse  D(g(x), g*) is differentiated as it stands, as kljax does
  forward over reverse  r = dD/dg; then the change of the loss's image gradient along
                        the direction r of the weights; the pass that gives g is shared
  reverse over forward  r again; then the image gradient of the loss's slope along r

What: value and image gradient of the cosine distance and the total variation, victims
with own weights, norms in evaluation mode, laid out as in speed.py (`ig-resnet20`,
`ig-convnet64`, and the same of LeNet). Columns: largest difference of image gradients
to those of reverse over reverse, over the largest entry of the victim's; evaluations/s,
median and range of rounds in turns; their ratio to reverse over reverse, median of
rounds; processor seconds to trace and compile, once; temporary memory of the compiled
program on a device, beside its arguments. Results: experiments/orders.md.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from tabulate import tabulate
from timing.entries.inversions import VARIATION, Problem, Work, repeated
from timing.turns import turns

from kljax.attacks import Candidate, cosine, total_variation
from kljax.core.types import Private
from kljax.parallel import Layout, block_memory, map_victims, use_all_cores

# Chunks are those that are fastest in the order that kljax has.
WORK = {
    "lenet": (Work("lenet", victims=64, repeats=20), 8),
    "resnet20": (Work("resnet20", victims=16, repeats=3), 2),
    "convnet64": (Work("convnet64", victims=8), 2),
}
HEAD = ("network", "order", "largest difference", "evaluations/s", "range", "ratio")
HEAD += ("compiling, processor s", "temporaries MB", "arguments MB")


def reverse_over_reverse(problem):
    """Makes kljax's own evaluation."""
    return problem.evaluation()


def forward_over_reverse(problem):
    """Makes an evaluation that pushes the residual through the reverse pass."""

    def mixed(loss, distance, public, images):
        grads, push = jax.linearize(
            lambda public: jax.grad(loss, argnums=(0, 1))(public, images), public
        )
        value, residual = jax.value_and_grad(distance)(grads[0])
        return value, push(residual)[1]

    return along_residual(problem, mixed)


def reverse_over_forward(problem):
    """Makes an evaluation that differentiates the loss's slope along the residual."""

    def mixed(loss, distance, public, images):
        value, residual = jax.value_and_grad(distance)(jax.grad(loss)(public, images))

        def slope(images):
            along = jax.jvp(lambda p: loss(p, images), (public,), (residual,))
            return along[1]

        return value, jax.grad(slope)(images)

    return along_residual(problem, mixed)


def along_residual(problem, mixed):
    """Makes ``(params, stats, observed, labels, images) -> (value, image gradient)``.

    Args:
      problem: the victims.
      mixed: ``(loss, distance, public, images) -> (distance, its image gradient)``.
    """
    setting, distance = problem.setting(), cosine()
    prior = total_variation(VARIATION, relative=False)

    def evaluate(params, stats, observed, labels, images):
        view = problem.view(params, stats, observed, labels)

        def loss(public, images):
            out = setting.task.model.apply(public.model, stats, images, train=False)
            return setting.task.loss(out.logits, view.targets)

        def penalty(images):
            candidate = Candidate(images, view.targets, Private())
            return prior(view, candidate, jnp.zeros(()))

        value, grads = mixed(loss, lambda g: distance(g, observed), view.public, images)
        more, slope = jax.value_and_grad(penalty)(images)
        return value + more, grads + slope

    return evaluate


ORDERS = {
    "reverse over reverse": reverse_over_reverse,
    "forward over reverse": forward_over_reverse,
    "reverse over forward": reverse_over_forward,
}


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    use_all_cores()
    with jax.default_matmul_precision("highest"):
        rows = [row for name in options.only for row in compare(name, options.rounds)]
    print(tabulate(rows, HEAD, tablefmt="github", disable_numparse=True))


def compare(name, rounds):
    """Measures the orders on one network: its rows of the table."""
    work, chunk = WORK[name]
    problem, layout = Problem(work), Layout("sharded", chunk)
    observed = problem.observe()
    given = problem.params, problem.stats, observed, problem.labels, problem.starts
    memory, compile_s, contestants, slopes = {}, {}, {}, {}
    for order, make in ORDERS.items():
        evaluate = make(problem)
        (_, slopes[order]), _ = map_victims(evaluate, layout)(*given)
        many = repeated(evaluate, work.repeats)
        # Of the processor: the clock also counts what else the machine does.
        began = time.process_time()
        memory[order], _ = block_memory(many, layout, given)
        compile_s[order] = time.process_time() - began
        contestants[order] = rate(map_victims(many, layout), given, work)
    values = turns(rounds, contestants)
    own, *_ = ORDERS
    arguments = sum(x.nbytes for x in jax.tree.leaves(given)) * chunk / work.victims
    # Results are a number and the images of each victim.
    results = chunk * (np.float32().nbytes + problem.starts[0].nbytes)
    return [
        (
            name,
            order,
            "-" if order == own else f"{difference(slopes[order], slopes[own]):.0e}",
            three(statistics.median(mine)),
            f"{three(min(mine))}-{three(max(mine))}",
            f"{ratio(mine, values[own]):.2f}",
            f"{compile_s[order]:.1f}",
            f"{(memory[order] - arguments - results) / 1e6:.1f}",
            f"{arguments / 1e6:.1f}",
        )
        for order, mine in values.items()
    ]


def rate(run, given, work):
    """Makes ``() -> evaluations/s``, warm."""
    run(*given)
    return lambda: work.victims * work.repeats / run(*given)[1].run_s


def three(value):
    """Writes three digits, without an exponent."""
    return np.format_float_positional(
        value, 3, unique=False, fractional=False, trim="-"
    )


def ratio(mine, own):
    """Takes the median over rounds of mine / own."""
    return statistics.median(a / b for a, b in zip(mine, own, strict=True))


def difference(found, expected):
    """Finds the largest difference, relative to each victim's largest entry."""
    axes = tuple(range(1, expected.ndim))
    apart = np.max(np.abs(found - expected), axis=axes)
    return np.max(apart / np.max(np.abs(expected), axis=axes))


if __name__ == "__main__":
    main()
