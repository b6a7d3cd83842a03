"""Lines of the speed table: medians over rounds, and ratios to the peers."""

import statistics

from .device import describe_device
from .turns import turns


def spread(values):
    """Median and range."""
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
    }


def line(name, ours, peers, unit, settings, share=None):
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
        "device": describe_device(),
        "settings": settings,
        "matmul_peak_share": share,
    }


def warm_and_cold(name, rates, unit, settings):
    """Makes two lines of the table, of ours with a compilation in no time or in all."""
    warm, cold = rates.pop("ours"), rates.pop("cold")
    return [
        line(f"{name}-{how}", own, rates, unit, settings)
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
    return line(name, mine, values, unit, settings)


def as_fields(chosen):
    """Writes chosen settings down, by name of the peer."""
    return {name: setting._asdict() for name, setting in chosen.items()}


def show(made):
    """Prints a line."""

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
