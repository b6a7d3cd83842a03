"""Progress of a job, for people who watch it."""

import datetime
import math
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from kljax.studies.config import LeakConfig, TrainConfig
from kljax.studies.run_folder import Row
from kljax.studies.sweeps.progress import Finished
from kljax.studies.training import ArmBegun

SECONDS = 10  # between lines of one arm, where there is no terminal


class AttacksPace(ProgressColumn):
    """Attacks per second since the start, compilation included, and what is left."""

    def render(self, task):
        if not task.completed or not task.elapsed:
            return Text("-- attacks/s, ETA -:--:--")
        pace = task.completed / task.elapsed
        left = datetime.timedelta(seconds=round(task.remaining / pace))
        return Text(f"{pace:.2f} attacks/s, ETA {left}")


class LeakProgress:
    """Shows a leakage study: what is compiling, then one bar over all arms.

    Elsewhere than on a terminal, in a pipe or a log file, it writes a line for what
    begins, and for what is done one every `SECONDS`.

    Args:
      config: the study.
      console: to show it on.
      last: seconds that its compilation took the last time; None if nobody knows.
    """

    def __init__(self, config: LeakConfig, console: Console, last: float | None = None):
        self._victims, self._last = config.victims, last
        self._finished = -config.victims
        self._console, self._said, self._words = console, time.monotonic(), ""
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            AttacksPace(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=config.victims * len(config.arms))

    def __enter__(self) -> "LeakProgress":
        return self

    def __exit__(self, *error) -> None:
        if self._bar.live.is_started:
            self._bar.stop()

    def on_compile(self, names: Sequence[str]) -> None:
        if self._console.is_terminal:
            self._bar.start()  # not before the whole study is known to be sound
        last = "" if self._last is None else f" (all took {self._last:.0f} s last time)"
        self.say(f"compiling {', '.join(names)}{last}" if names else "compiled")

    def on_arm(self, name: str) -> None:
        self._finished += self._victims
        self.say(name)

    def on_block(self, done: int) -> None:
        self._bar.update(self._task, completed=self._finished + done)
        if time.monotonic() - self._said >= SECONDS:
            self._write()

    def say(self, words: str) -> None:
        self._bar.update(self._task, description=words)
        self._words = words
        self._write()

    def _write(self) -> None:
        if self._console.is_terminal:
            return  # which shows the bar
        self._said, task = time.monotonic(), self._bar.tasks[self._task]
        line = self._words
        if task.completed:
            pace = AttacksPace().render(task)
            line += f": {task.completed:.0f}/{task.total:.0f} victims, {pace}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class RoundsPace(ProgressColumn):
    """Clients per second of the last round, and the time that is left."""

    def render(self, task):
        done = task.completed - task.fields["skipped"]
        if done < 1 or not task.elapsed:
            return Text("-- clients/s, ETA -:--:--")
        left = task.remaining * task.elapsed / done
        return Text(
            f"{task.fields['pace']:.1f} clients/s, "
            f"ETA {datetime.timedelta(seconds=round(left))}"
        )


class TrainProgress:
    """Shows a training: a bar on a terminal, a line per round elsewhere."""

    def __init__(self, config: TrainConfig, console: Console):
        self._config, self._console = config, console
        self._measure = ""  # of the arm that is trained
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            RoundsPace(),
            console=console,
            disable=not console.is_terminal,
        )
        runs = 2 if config.honest_twin else 1
        total = config.rounds * len(config.arms) * runs
        self._task = self._bar.add_task("", total=total, state="", pace=0.0, skipped=0)

    def __enter__(self) -> "TrainProgress":
        return self

    def __exit__(self, *error) -> None:
        if self._bar.live.is_started:
            self._bar.stop()

    def on_arm(self, begun: ArmBegun) -> None:
        task = self._bar.tasks[self._task]
        if not self._bar.live.is_started and self._console.is_terminal:
            self._bar.start()  # not before the whole run is known to be sound
        self._measure = begun.measure
        memory = f"{begun.private_bytes / 1e6:.1f} MB"
        self._say(
            f"{begun.name}: what stays with the {self._config.clients} clients takes "
            f"{memory}" + (f"; resumed at round {begun.round}" if begun.round else "")
        )
        # Rounds of an earlier process say nothing of this one's pace.
        self._bar.update(
            self._task,
            description=begun.name,
            advance=begun.round,
            skipped=task.fields["skipped"] + begun.round,
        )

    def on_round(self, row: Row) -> None:
        pace = row["clients"] / row["run_s"]
        accuracy = row["test_accuracy"]
        measured = "" if accuracy is None else f", {self._measure} {accuracy:.1%}"
        if row["attack_success"] is not None:
            measured += f", attack success {row['attack_success']:.1%}"
        state = f"loss {row['loss']:.3f}{measured}"
        self._bar.update(self._task, advance=1, state=state, pace=pace)
        if not self._console.is_terminal:
            left = RoundsPace().render(self._bar.tasks[self._task])
            number = f"{row['round'] + 1}/{self._config.rounds}"
            self._say(f"{row['arm']}: round {number}: {state}, {left}")
        if row["excluded"]:
            self._say(
                f"{row['arm']}: clients {', '.join(map(str, row['excluded']))} turned "
                f"non-finite in round {row['round']} and were left out"
            )

    def _say(self, line: str) -> None:
        self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)


class SweepProgress:
    """Shows a sweep: a bar on a terminal, a line per chunk elsewhere."""

    def __init__(self, console: Console):
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            AttacksPace(),
            TextColumn("{task.fields[state]}", markup=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("compiling", total=None, state="")

    def __enter__(self) -> "SweepProgress":
        self._bar.start()
        return self

    def __exit__(self, *error) -> None:
        self._bar.stop()

    def on_chunk(self, done: Finished) -> None:
        where = ", ".join(done.point.values())
        if done.others:
            where += f" and {done.others} more"
        cells = f"cells {done.cells}/{done.all_cells}"
        loss = "" if math.isnan(done.loss) else f", loss {done.loss:.1e}"
        failed = f", failed {' '.join(done.failed)}" if done.failed else ""
        workers = "" if done.workers is None else f", workers {done.workers}"
        state = f"{cells}{loss}{failed}{workers}"
        self._bar.update(
            self._task,
            description=where,
            total=done.all_victims,
            completed=done.victims,
            state=state,
        )
        if not self._console.is_terminal:
            pace = AttacksPace().render(self._bar.tasks[self._task])
            self.say(
                f"{where}: {done.victims}/{done.all_victims} victims, {state}, {pace}"
            )

    def say(self, line: str) -> None:
        self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
