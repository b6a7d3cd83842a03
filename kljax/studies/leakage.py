"""The main job: victims, their uploads under several arms, and the attack on each.

`leak` runs what a `kljax.LeakConfig` says. Networks and private keys are drawn first,
or captured from a run of `kljax train`; then one compiled function per arm takes a
victim from its upload through the boundary to its reconstruction.
`kljax.studies.scoring` and `kljax.studies.leak_report` take over from there.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from kljax import data, threat
from kljax.attacks import Attacker, Reconstruction, Setting, Task
from kljax.attacks.presets import PRESETS, Preset, find_preset
from kljax.core.types import Array, Params, Path, PyTree, Stats
from kljax.defences.arms import Arm, Sites, check_upload, parse_arm
from kljax.models import Network, feeding_layers
from kljax.parallel import Layout, Timing, map_victims
from kljax.studies.builder import from_run, task
from kljax.studies.builder.attack_setup import (
    Dials,
    build_attack,
    dials,
    require_generator,
)
from kljax.studies.builder.attacker import assume_defence, check_simulated, understood
from kljax.studies.builder.client_check import check_client
from kljax.studies.builder.sizes import check_attack
from kljax.studies.builder.victim_setup import (
    Source,
    Stage,
    Staged,
    Victims,
    choose_victims,
    draw_rng,
    options_of_draws,
    set_stage,
    sources,
    survey_public,
)
from kljax.studies.config import LeakConfig
from kljax.studies.config.listing import join_names
from kljax.studies.diagnosis import diagnose
from kljax.studies.row_columns import check_numbers, check_own

if TYPE_CHECKING:
    import pandas


class Attacked(NamedTuple):
    """What the compiled function says of one victim."""

    reconstruction: Reconstruction
    loss_at_truth: Array  # [], see `kljax.studies.diagnosis.Diagnosis`
    loss_scale: Array  # []
    live_channels: Array  # []
    feature_error: Array  # []
    replay_is_exact: Array  # [] bool
    label_rule_holds: Array  # []
    visible_share: Array  # []
    # [B, H, W, C] trained on in place of the private images; None for those themselves
    substitute: Array | None = None


class ArmResult(NamedTuple):
    """One arm, all victims."""

    arm: Arm
    threat: threat.ThreatModel
    attacked: Attacked  # with a leading axis [N]
    timing: Timing


class Job(NamedTuple):
    """One arm, ready to be attacked."""

    staged: Staged
    threat: threat.ThreatModel
    fn: Callable[..., Attacked]  # of one victim; see `one_victim`
    setting: Setting  # what everybody knows about the protocol


class Prepared(NamedTuple):
    """A study, ready to run."""

    config: LeakConfig  # settled
    stage: Stage
    jobs: list[Job]


class LeakResult(NamedTuple):
    """A finished study."""

    config: LeakConfig
    dataset: data.Dataset
    victims: Victims
    arms: list[ArmResult]

    def to_frame(self) -> "pandas.DataFrame":
        """Scores the study; see `kljax.rows_frame`."""
        from kljax.studies.frames import rows_frame  # which takes a result

        return rows_frame(self)


def leak(
    config: LeakConfig,
    *,
    on_arm: Callable[[str], Any] = lambda name: None,
    on_block: Callable[[int], Any] | None = None,
) -> LeakResult:
    """Attacks every victim under every arm.

    Args:
      config: the study.
      on_arm: called with each arm's name before it begins.
      on_block: called with the number of victims of this arm finished so far.

    Raises:
      ValueError: for anything in `config` that does not exist or does not fit,
        before anything is computed.
    """
    study = prepare(config)
    config, victims, results = study.config, study.stage.victims, []
    for job in study.jobs:
        _check_size(config, job.staged, study.stage, config.layout)
    with jax.default_matmul_precision(config.precision):
        for job in study.jobs:
            arm, draws = job.staged.arm, job.staged.draws
            on_arm(arm.name)
            run = map_victims(job.fn, config.layout, draws=draws, on_block=on_block)
            attacked, timing = run(*inputs_of(config, job, victims))
            results.append(ArmResult(arm, job.threat, attacked, timing))
    return LeakResult(config, study.stage.dataset, victims, results)


def prepare(config: LeakConfig) -> Prepared:
    """Makes all that a study names, and runs nothing.

    Raises:
      ValueError: for anything in `config` that does not exist or does not fit.
    """
    config = from_run.settle(config)
    network = task.find_network(config)
    preset = find_preset(config.attack)
    stage = set_stage(config, network, preset.inserts)
    _check_inputs(config, preset, stage)
    check_own(config, stage.dataset.inputs)
    classifier = _classifier(config, network, stage.dataset)
    generator = require_generator(config, preset)
    jobs, made, functions = [], {}, {}
    for text in config.arms:
        arm = parse_arm(text, stage.sites, made)
        task.check_norm(config, network, arm)
        check_upload(arm, config.upload)
        declared = declare(config, arm.secret_strategy, preset)
        staged = stage.stage(arm, declared.knowledge.victim_norm == "train")
        _check_size(config, staged, stage)
        setting = Setting(
            Task(
                staged.model,
                stage.loss,
                stage.dataset.inputs,
                stage.dataset.num_classes,
                classifier,
                # Behind an inserted module the chain does not begin with the image.
                chain=network.chain if preset.inserts is None else (),
                feeds=_feeds(arm, staged, stage),
            ),
            declared,
            assume_defence(arm, arm.defence, stage.sites),
            stage.protocol,
            Attacker(config.label_rule, config.features, generator),
        )
        if stage.protocol is not None:
            check_simulated(arm, setting)
        build_attack(config, setting, preset)  # a typo costs nothing
        check_client(config, staged, stage)
        # Arms that differ in options alone share a function, and its compilation.
        kind = arm.skeleton, arm.secret_strategy, arm.release_strategy
        if kind not in functions:
            functions[kind] = one_victim(config, setting, staged, preset, stage.sites)
        jobs.append(Job(staged, declared, functions[kind], setting))
    return Prepared(config, stage, jobs)


def _check_inputs(config: LeakConfig, preset: Preset, stage: Stage) -> None:
    """Refuses an attack on a kind of input that it is not made for."""
    spec = stage.dataset.inputs
    if preset.inputs is not None and spec.kind not in preset.inputs:
        able = [
            name
            for name, row in PRESETS.items()
            if row.inputs is None or spec.kind in row.inputs
        ]
        hint = f": take {join_names(able)}" if able else ""
        raise ValueError(
            f"attack {config.attack!r} looks for inputs of kind "
            f"{join_names(preset.inputs)}, and dataset {config.data!r} holds "
            f"{spec.kind}{hint}"
        )
    if spec.search.unexplained and stage.protocol is not None:
        raise ValueError(
            f"upload='update': the steps of a client train "
            f"{', '.join(spec.search.unexplained)}, which the attacker's candidates "
            f"say nothing of in dataset {config.data!r}: attack upload='gradient'"
        )


def _check_size(
    config: LeakConfig, staged: Staged, stage: Stage, layout: Layout | None = None
) -> None:
    searched = find_preset(config.attack).objective is not None
    shape = stage.dataset.shape
    check_attack(
        config, staged.arm, staged.model, shape, searched=searched, layout=layout
    )


def prepare_again(study: Prepared, config: LeakConfig) -> Prepared:
    """Prepares a study that differs in data alone from one that is prepared already.

    Args:
      study: with one arm.
      config: of another seed, number of victims, strength or step size; everything
        else is the same (`kljax.studies.sweeps.signature`).

    Returns:
      What `prepare` gives, but with the functions of `study`, which are compiled.
    """
    (first,) = study.jobs
    if config.from_run is not None:  # states of arms of other strengths are others
        study = prepare(config)
        (job,) = study.jobs
        staged = job.staged._replace(draws=first.staged.draws)
        return study._replace(jobs=[job._replace(staged=staged, fn=first.fn)])
    config, stage = from_run.settle(config), study.stage
    arm = parse_arm(config.arms[0], stage.sites, {})
    survey = survey_public(config, stage.dataset, find_preset(config.attack).inserts)
    job = first._replace(staged=first.staged._replace(arm=arm, survey=survey))
    stage = stage._replace(victims=choose_victims(config, stage.dataset))
    return Prepared(config, stage, [job])


def inputs_of(config: LeakConfig, job: Job, victims: Victims) -> tuple[PyTree, ...]:
    """Makes the arguments of the function of a job, with a leading axis [N].

    They begin with what the draws of the job make the rest from, or with what is the
    same for all victims.
    """
    count = len(victims.labels)
    same = jax.tree.map(
        lambda x: np.broadcast_to(x, (count, *np.shape(x))), job.staged.same
    )
    return (
        *same,
        sources(config, victims, job.staged.survey, options_of_draws(job.staged.arm)),
        dials(config, job.staged.arm, find_preset(config.attack), count),
        victims.images,
        victims.labels,
        *([victims.before] if victims.before else ()),
    )


def one_victim(
    config: LeakConfig, setting: Setting, staged: Staged, preset: Preset, sites: Sites
) -> Callable[..., Attacked]:
    """Makes the function of one victim.

    Returns:
      ``(network, held, Source, Dials, images, labels, before=()) -> Attacked``.
    """
    arm = staged.arm

    def run(
        network: tuple[Params, Stats],
        held: PyTree,
        source: Source,
        dialled: Dials,
        images: Array,
        labels: Array,
        before: tuple[Array, ...] = (),
    ) -> Attacked:
        # Options are data: the defence is made of this victim's.
        defence = arm.make(dialled.options)
        attacker = setting.attacker
        if attacker.generator is not None:
            generator = attacker.generator._replace(weights=dialled.generator)
            attacker = attacker._replace(generator=generator)
        of_victim = setting._replace(
            defence=assume_defence(arm, defence, sites), attacker=attacker
        )
        attack = build_attack(config, of_victim, preset, dialled)
        update = staged.client(
            draw_rng(source, "step"), defence, network, held, images, labels, before
        )
        view = understood(arm, defence, threat.observe(setting.threat, update))
        reconstruction = attack(draw_rng(source, "attack"), view)
        check_numbers(config, reconstruction.numbers)
        # Of all that is true; no attacker sees it.
        found = diagnose(of_victim, preset, update, view)
        return Attacked(reconstruction, *found, update.substitute)

    return run


def _feeds(arm: Arm, staged: Staged, stage: Stage) -> tuple[tuple[Path, Path], ...]:
    """Finds the layers below the gates, for strategies that look there."""
    if arm.secret_strategy != "regress_gates":
        return ()
    return feeding_layers(staged.model, stage.sites.paths, stage.dataset.inputs)


def _classifier(config: LeakConfig, network: Network, dataset: data.Dataset) -> str:
    """Checks the network's logits, and the layer from which labels are read."""
    path = config.classifier or network.classifier
    model = task.make_model(config, network, dataset, norm=False)
    task.check_classes(config, model, dataset)
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    if f"{path}/kernel" not in params:
        layers = sorted(p.removesuffix("/kernel") for p in params if "/kernel" in p)
        raise ValueError(
            f"classifier {path!r} is no layer with a kernel of {config.model!r}; "
            f"those are {', '.join(layers)}"
        )
    return path


def declare(
    config: LeakConfig, secret_strategy: str, preset: Preset
) -> threat.ThreatModel:
    """Declares the threat model of an arm: the least knowledge that it needs.

    Args:
      config: of the study.
      secret_strategy: of the arm.
      preset: the attack: its label strategy, in place of which the study may have
        another, and what it needs to know.

    Raises:
      IllegalThreat: for knowledge too small for the strategy or the attack.
      ValueError: for a fact that does not exist or contradicts the study.
    """
    strategy = threat.Strategy(
        secret=secret_strategy, labels=config.labels or preset.labels
    )
    if config.label_rule != "auto" and strategy.labels != "recovered":
        raise ValueError(
            f"label_rule={config.label_rule!r} needs labels='recovered', and they are "
            f"{strategy.labels!r} here"
        )
    facts: dict[str, Any] = dict(preset.needs)
    facts |= {"examples": config.examples, "upload": config.upload}
    needed = threat.STRATEGY["secret"][strategy.secret].get("lock_weights", ())
    if config.from_run is not None and "initial" in needed:
        # After round 0 the client has moved on, and the server has not seen it.
        facts["lock_weights"] = "initial"
    for fact in config.threat:
        field, equals, value = fact.partition("=")
        if not equals:
            raise ValueError(f"threat fact {fact!r}: write it as field=value")
        if field == "examples":
            raise ValueError("threat fact 'examples': set the option examples instead")
        if field == "upload" and value != config.upload:
            raise ValueError(
                f"threat fact {fact!r}: victims of this study upload what the option "
                f"upload says, upload={config.upload}"
            )
        if (field, value, config.upload) == ("victim_norm", "eval", "update"):
            raise ValueError(
                f"threat fact {fact!r}: local training runs norm layers in train mode"
            )
        facts[field] = value
    declared = threat.least_knowledge(strategy, **facts)
    needs = dict(preset.needs)
    if preset.inserts is not None:  # a user's preset may have forgotten to say so
        needs["server"] = "malicious"
    for field, value in needs.items():
        have = getattr(declared.knowledge, field)
        if have != value:
            raise threat.IllegalThreat(
                f"attack {config.attack!r} needs {field}={value!r}, but the threat "
                f"model says {field}={have!r}"
            )
    return declared
