"""The main job: victims, their uploads under several arms, and the attack on each.

`leak` runs what a `kljax.LeakConfig` says, as `kljax.studies.builder.study` builds it:
one compiled function per arm takes a victim from its upload through the boundary to
its reconstruction. `kljax.studies.scoring` and `kljax.studies.leak_report` take over
from there.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from kljax import data, threat
from kljax.defences.arms import Arm
from kljax.parallel import Timing, compile_victims, hold_programs, map_victims
from kljax.parallel.threads import beside
from kljax.studies.builder.one_victim import Attacked
from kljax.studies.builder.study import build_study, check_layout
from kljax.studies.builder.victims import Victims
from kljax.studies.config import LeakConfig
from kljax.studies.input_scores import FloorsOfInputs

if TYPE_CHECKING:
    import pandas


class ArmResult(NamedTuple):
    """One arm, all victims."""

    arm: Arm
    threat: threat.ThreatModel
    attacked: Attacked  # with a leading axis [N]
    timing: Timing


class LeakResult(NamedTuple):
    """A finished study."""

    config: LeakConfig
    dataset: data.Dataset
    victims: Victims
    arms: list[ArmResult]
    # Of the victims, where they were scored meanwhile; None where they were not
    floors: list[FloorsOfInputs] | None = None

    def to_frame(self) -> "pandas.DataFrame":
        """Scores the study; see `kljax.rows_frame`."""
        from kljax.studies.frames import rows_frame  # which takes a result

        return rows_frame(self)


def leak(
    config: LeakConfig,
    *,
    load: Callable[[], data.Dataset] | None = None,
    on_arm: Callable[[str], Any] = lambda name: None,
    on_compile: Callable[[Sequence[str]], Any] = lambda names: None,
    on_block: Callable[[int], Any] | None = None,
    score_floors: Callable[[LeakResult], list[FloorsOfInputs] | None] = lambda study: (
        None
    ),
) -> LeakResult:
    """Attacks every victim under every arm.

    Args:
      config: the study.
      load: gives its dataset, see `kljax.studies.builder.study.victim_data_of`; None
        to load it here.
      on_arm: called with each arm's name before it begins.
      on_compile: called with the names of the arms that are waited for, before any
        begins and after each that is compiled.
      on_block: called with the number of victims of this arm finished so far.
      score_floors: called in a thread of its own while the arms compile, with the study
        before its attacks; gives the `floors` of the result. No attack runs before it
        has ended, so that what runs is timed alone.

    Raises:
      ValueError: for anything in `config` that does not exist or does not fit,
        before anything is computed.
    """
    study = build_study(config, load=load)
    config, results = study.config, []
    check_layout(study)
    names = [attack.arm.name for attack in study.attacks]
    calls = [(a.attack_one, a.client.draws, a.inputs) for a in study.attacks]
    compiled: list[Timing] = []
    unattacked = LeakResult(config, study.task.dataset, study.victims, [])
    with (
        beside(lambda: score_floors(unattacked)) as wait_for_floors,
        jax.default_matmul_precision(config.precision),
        hold_programs(),
    ):
        learned = [None if a.learn is None else a.learn() for a in study.attacks]
        shared = [None if found is None else found[0] for found in learned]
        on_compile(names)
        for spent in compile_victims(calls, config.layout, shared=shared):
            compiled.append(spent)
            on_compile(names[len(compiled) :])
        floors = wait_for_floors()
        # Only now, so that what runs is timed alone.
        for i, (attack, (fn, draws, inputs)) in enumerate(
            zip(study.attacks, calls, strict=True)
        ):
            on_arm(attack.arm.name)
            run = map_victims(
                fn, config.layout, draws=draws, on_block=on_block, shared=shared[i]
            )
            attacked, timing = run(*inputs)
            timing = timing.after(compiled[i])
            if learned[i] is not None:
                timing = timing.after(learned[i][1])
            results.append(
                ArmResult(attack.arm, attack.setting.threat, attacked, timing)
            )
    return unattacked._replace(arms=results, floors=floors)
