"""Rounds of ours and of the peers, in turns."""

import time

import jax
import numpy as np


def turns(rounds, contestants, keep=0.0):
    """Runs everybody once per round, in turns: {name: [value per round]}.

    Who had less than `keep` of the best value in the first round is not run again.
    """
    values = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            values[name].append(run())
        best = max(first for first, *_ in values.values())
        contestants = {
            name: run
            for name, run in contestants.items()
            if values[name][0] >= keep * best
        }
    return values


def beside_peers(rounds, own, peers, choose, run):
    """Runs ours and the peers in turns, each peer at the best of its settings.

    Args:
      rounds: how many.
      own: name -> ``() -> (rate, values)``, ours.
      peers: their names.
      choose: ``name -> setting``; called for all peers before the first round.
      run: ``setting -> (rate, values)`` of a peer's round.

    Returns:
      What `turns` gives; the settings chosen, by name of the peer; and the values of
      the last round by name of all.
    """
    chosen, values = {name: choose(name) for name in peers}, {}

    def keeping(name, run):
        def kept():
            rate, found = run()
            values[name] = np.asarray(found)
            return rate

        return kept

    contestants = own | {
        name: lambda setting=setting: run(setting) for name, setting in chosen.items()
    }
    contestants = {name: keeping(name, one) for name, one in contestants.items()}
    return turns(rounds, contestants), chosen, values


def calls(program, given, amount):
    """Makes ``() -> (amount / s, values)`` of a compiled program and its input."""

    def run():
        start = time.perf_counter()
        found = np.asarray(program(*given))
        return amount / (time.perf_counter() - start), found

    return run


def mapped_calls(run, given, amount):
    """Makes the same of what `kljax.parallel.map_victims` gives; values are raveled."""

    def timed():
        found, timing = run(*given)
        return amount / timing.run_s, np.ravel(found)

    return timed


def cold_calls(compiled, amount, spent):
    """Makes ``() -> (amount / s, values)`` with all caches empty before each.

    Args:
      compiled: ``() -> (program, its input)``; its time counts.
      amount: of work.
      spent: list, to which the seconds of each are added.
    """

    def run():
        jax.clear_caches()
        jax.config.update("jax_enable_compilation_cache", False)
        start = time.perf_counter()
        program, given = compiled()
        found = np.asarray(program(*given))
        spent.append(time.perf_counter() - start)
        jax.config.update("jax_enable_compilation_cache", True)
        return amount / spent[-1], found

    return run


def largest_differences(values, *, relative=False):
    """Says whether all do the same work: how far each peer's values are from ours.

    Args:
      values: those of ``ours`` and of the peers, by name.
      relative: divides by ours.
    """
    ours = values["ours"]
    scale = ours if relative else 1.0
    return {
        name: float(np.max(np.abs((theirs - ours) / scale)))
        for name, theirs in values.items()
        if name not in ("ours", "cold")
    }
