"""Entries of the speed table: values per round, taken in turns, and their medians."""

import os
import statistics
import time

import jax
import numpy as np


def spread(values):
    """Median and range."""
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
    }


def on_gpu():
    """Tells whether ours runs on a GPU, and so the peers."""
    return jax.default_backend() == "gpu"


def layout_title(layout):
    """Names a layout, with its chunk where that means something."""
    chunked = layout.kind not in ("loop", "vmap")
    return f"{layout.kind}, chunk {layout.chunk}" if chunked else layout.kind


def entry(name, ours, peers, unit, settings, share=None):
    """One line of the table; `ours` and `peers` hold a value per round.

    Ratios are ours over the peer's, round by round; a peer that was dropped after some
    rounds is compared over those.
    """
    ratios = {
        peer: statistics.median(a / b for a, b in zip(ours, values, strict=False))
        for peer, values in peers.items()
    }
    return {
        "name": name,
        "ours": spread(ours),
        "peers": {peer: spread(values) for peer, values in peers.items()},
        "ratios": ratios,
        "unit": unit,
        "device": f"{jax.default_backend()}: {jax.devices()[0].device_kind}, "
        f"{jax.local_device_count()} devices, {os.cpu_count()} cores",
        "settings": settings,
        "matmul_peak_share": share,
    }


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
      own: name -> ``() -> rate``, ours.
      peers: their names.
      choose: ``name -> setting``; called for all peers before the first round.
      run: ``setting -> (rate, values)`` of a peer's round.

    Returns:
      What `turns` gives; the settings chosen, and the values of the last round, both by
      name of the peer.
    """
    chosen, values = {}, {}
    contestants = dict(own)
    for name in peers:
        chosen[name] = choose(name)

        def run_peer(name=name):
            rate, found = run(chosen[name])
            values[name] = np.array(found)
            return rate

        contestants[name] = run_peer
    return turns(rounds, contestants), chosen, values


def as_fields(chosen):
    """Writes chosen settings down, by name of the peer."""
    return {name: setting._asdict() for name, setting in chosen.items()}


def largest_differences(values, ours):
    """Says whether all do the same work: how far each peer's values are from ours."""
    return {
        name: float(np.max(np.abs(theirs - ours))) for name, theirs in values.items()
    }


def cold_seconds(compiled):
    """Times ``compiled() -> (program, its input)`` and a run, with all caches empty."""
    jax.clear_caches()
    jax.config.update("jax_enable_compilation_cache", False)
    start = time.perf_counter()
    program, given = compiled()
    np.asarray(program(*given))
    seconds = time.perf_counter() - start
    jax.config.update("jax_enable_compilation_cache", True)
    return seconds


def warm_and_cold(name, rates, unit, settings):
    """Makes two lines of the table, of ours with a compilation in no time or in all."""
    warm, cold = rates.pop("ours"), rates.pop("cold")
    return [
        entry(f"{name}-{how}", own, rates, unit, settings)
        for how, own in (("warm", warm), ("cold", cold))
    ]


def ranking(name, rounds, contestants, unit, settings, keep=0.0):
    """One line of the table: candidates against each other, ours the first of them.

    See `turns`; how often each was run is written down.
    """
    values = turns(rounds, contestants, keep)
    ours, *_ = contestants
    counts = {label: len(own) for label, own in values.items()}
    mine = values.pop(ours)
    settings = settings | {"ours": ours, "rounds": counts}
    return entry(name, mine, values, unit, settings)


def show(made):
    """Prints an entry."""

    def numbers(values):
        return (
            f"{values['median']:.4g} [{values['low']:.4g}, {values['high']:.4g}] "
            f"{made['unit']}"
        )

    share = made["matmul_peak_share"]
    peak = "" if share is None else f", {share:.0%} of the matmul peak"
    print(f"{made['name']}: ours {numbers(made['ours'])}{peak}", flush=True)
    for peer, values in made["peers"].items():
        ratio = made["ratios"][peer]
        print(f"  {peer}: {numbers(values)}, ratio {ratio:.2f}", flush=True)
