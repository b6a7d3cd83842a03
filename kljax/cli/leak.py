"""``kljax leak`` and ``kljax demo``."""

import dataclasses
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from rich.console import Console

from kljax.cli.layouts import LayoutOptions, check_device
from kljax.cli.printing import printed_table, say, warnings_told
from kljax.cli.progress import LeakProgress
from kljax.studies.config import LeakConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leak(LayoutOptions, LeakConfig):
    """Attacks the gradients of real images and reports what was recovered.

    Attributes:
      from_run: folder of a run of ``kljax train`` to attack a client of, at the state
        before ``round``; None for networks that are drawn afresh.
      out: run folder to write; None for runs/DATE-TIME.
      dry_run: whether to say what it would take, by the cost model, and run nothing.
      device: JSON file of a device that the cost model of ``dry_run`` is to predict
        for, in the form of convolution that is fastest there; None for this one, which
        is calibrated once and kept in the user's cache.
    """

    from_run: Annotated[str | None, tyro.conf.arg(name="from")] = None
    out: Path | None = None
    dry_run: bool = False
    device: Path | None = None

    def __post_init__(self):
        """Leaves the checks to the `LeakConfig` made of it, behind the parser."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo:
    """Runs the main job on embedded images: six arms, sixteen victims.

    Attributes:
      out: run folder to write; None for runs/demo-DATE-TIME.
      data: digits or photos.
    """

    out: Path | None = None
    data: str = "digits"


def run_leak(job: Leak, console: Console) -> None:
    """Runs a study, writes its folder and prints its table."""
    from kljax.core import folders
    from kljax.parallel import compilation
    from kljax.studies import leak_report, leak_summary, leakage, scoring
    from kljax.studies.builder import from_run
    from kljax.studies.builder.study import victim_data_of
    from kljax.studies.sweeps import program_of

    check_device(job.device, job.dry_run)
    folder = job.out or Path("runs") / f"{datetime.datetime.now():%Y%m%d-%H%M%S}"
    names = [f.name for f in dataclasses.fields(LeakConfig)]
    given = {name: getattr(job, name) for name in names}
    config = LeakConfig(**given | job.layout_of("victims"))
    load = victim_data_of(config)
    config = from_run.settle(config, load)
    if job.dry_run:
        say_what_it_takes(config, job.device, console, load)
        return
    cache, program = compilation.use_cache(), program_of(config)
    last = compilation.seconds_of(program, cache)
    with warnings_told(folders.LeftOut) as told:
        with folders.claim(folder, leak_report.room_of(config)) as claimed:
            with LeakProgress(config, console, last) as progress:
                result = leakage.leak(
                    config,
                    load=load,
                    on_arm=progress.on_arm,
                    on_compile=progress.on_compile,
                    on_block=progress.on_block,
                    score_floors=scoring.score_parts_floors,
                )
                seconds = sum(arm.timing.compile_s for arm in result.arms)
                compilation.remember_seconds(program, cache, seconds)
                progress.say("scoring")
                rows = scoring.score_rows(result)
                progress.say("done")
            summary = leak_summary.summarise(result, rows) | {"warnings": [*told]}
            try:
                # Before it is printed: a terminal that is gone costs nothing.
                leak_report.write_run(claimed, result, rows, summary)
            except OSError as error:
                print_summary(result, summary, console)
                for name, text in getattr(error, "texts", {}).items():
                    say(console, f"\n{name}:\n{text}")
                raise
    print_summary(result, summary, console)
    for words in told:
        say(console, f"warning: {words}")
    if claimed.folder != folder:
        say(console, f"warning: {folder}/ appeared meanwhile, and is not touched")
    say(console, f"written: {claimed.folder}/ (summary.md, gallery.png, rows.csv, ...)")


def say_what_it_takes(
    config: LeakConfig,
    device: Path | None,
    console: Console,
    load: Callable[[], Any],
) -> None:
    """Prints what the arms of a study would take, by the cost model."""
    from kljax.studies.builder.study import build_study
    from kljax.studies.devices import CALIBRATING, basis, this_device
    from kljax.studies.sweeps.estimate import predict_attack, settle_convolution

    attacks = build_study(config, load=load).attacks  # refuses what does not fit
    known = this_device(device, lambda: say(console, CALIBRATING))
    if known.backend != jax.default_backend():
        config_there = settle_convolution(config, known)
        attacks = build_study(config_there, load=load).attacks
    layout, seconds, lines = config.layout, 0.0, []
    for attack in attacks:
        cost = predict_attack(config, attack, layout, known)
        seconds += cost.seconds
        numbers = cost.flops / 1e9, cost.nbytes / 1e9, cost.seconds
        lines.append([attack.arm.name, *(f"{x:.3g}" for x in numbers)])
    header = ["arm", "GFLOP in products", "GB", "s per victim"]
    console.print(printed_table(header, lines))
    victims = config.victims * len(attacks)
    devices = jax.local_device_count() if layout.spread else 1
    each = seconds / len(attacks)
    whole = config.victims * seconds / devices
    say(console, basis(each, whole, victims, known), wrap=True)


def print_summary(result, summary: dict[str, Any], console: Console) -> None:
    """Prints threat models, tables and speed of a finished study."""
    from kljax.studies import leak_report
    from kljax.studies.leak_summary import by_input

    config, speed = result.config, summary["throughput"]
    noun = summary.get("noun", "image")
    of = f" of {config.examples} {noun}s" if config.examples > 1 else ""
    if config.average_clients is not None:
        of = f" of {config.average_clients} client(s) averaged, {config.examples} each"
    budget = f", {config.restarts} x {config.steps} evaluations each"
    # Closed forms evaluate nothing, whatever number they were offered.
    budget = budget if speed["evaluations_per_s"] else ""
    console.print(
        f"\n{config.model} on {config.data}: {config.victims} victims{of}, attack "
        f"{config.attack}{budget}\n"
    )
    for line in leak_report.threat_lines(result):
        say(console, line, wrap=True)
    for name, of_input in by_input(summary).items():
        if name is not None:
            console.print(f"\ninput {name}:")
        for header, lines in leak_report.brief_tables(of_input):
            console.print()
            console.print(printed_table(header, lines))
    console.print()
    lines = leak_report.lines_below(summary)
    if lines:
        for line in lines:
            say(console, line, wrap=True)
        console.print()
    sentences = leak_report.sentences_of(summary)
    for line in sentences:
        say(console, line, wrap=True)
    if sentences:
        console.print()
    reading = leak_report.reading_of(result).replace("*", "").replace("`", "")
    console.print(" ".join(reading.split()), highlight=False)
    console.print()
    console.print(
        f"{speed['evaluations_per_s']:.0f} evaluations/s, "
        f"{speed['attacks_per_hour']:.0f} attacks/h on {speed['device']}; "
        f"{speed['compile_s']:.1f} s compiling, {speed['run_s']:.1f} s running"
    )


def run_demo(job: Demo, console: Console) -> None:
    """Runs the preset study of the README."""
    stamp = f"{datetime.datetime.now():%Y%m%d-%H%M%S}"
    out = job.out or Path("runs") / f"demo-{stamp}"
    leak = Leak(data=job.data, steps=1000, out=out)
    run_leak(leak, console)
