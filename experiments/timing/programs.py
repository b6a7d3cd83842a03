"""Programs of one victim or client, as the entries of the speed table time them."""

import functools

import jax

from kljax.parallel import Layout, fastest_layout

from .entries import dlg, federated, grnn, inversions

# Entries of attacks but for DLG's.
ATTACKS = (*inversions.WORK, "grnn-lenet")
NAMES = ("dlg-lenet-eval", *ATTACKS, *federated.WORK)


def victims_program(name, chunk, convolution="auto"):
    """Gives the program of one victim or client, its input [chunk, ...] and layout."""
    if name in federated.WORK:
        one, given = federated.local_step(federated.WORK[name], chunk, convolution)
        return one, given, fastest_layout("clients")
    layout = Layout("sharded", chunk)
    if name == "dlg-lenet-eval":
        problem = dlg.Problem(chunk)
        given = problem.params, problem.targets, problem.observed, problem.starts
        one = functools.partial(dlg.evaluation, convolution=convolution)
        return one, given, layout
    return *attack_program(name, chunk, convolution), layout


def attack_program(name, chunk, convolution="auto"):
    """Gives the program of one victim of `ATTACKS`, and its input [chunk, ...].

    Of `grnn-lenet` it is a whole step, with the optimiser's.
    """
    if name == "grnn-lenet":
        work = grnn.WORK._replace(victims=chunk)
        own = grnn.Generators(work, convolution)
        free, *known = own.given
        return own.step, (free, jax.vmap(own.optimiser.init)(free), *known)
    work = inversions.WORK[name]._replace(victims=chunk)
    problem = inversions.Problem(work, convolution)
    observed = problem.observe()
    given = problem.params, problem.stats, observed, problem.labels, problem.starts
    return problem.evaluation(), given
