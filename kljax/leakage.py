"""The main job: victims, their uploads under several arms, and the attack on each.

`leak` runs what a `kljax.config.LeakConfig` says. Networks and private keys are drawn
first, or captured from a run of `kljax train`; then one compiled function per arm takes
a victim from its upload through the wall to its reconstruction. `kljax.scoring` and
`kljax.report` take over from there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljax import captured, data, ground, threat
from kljax.arms import Arm, parse_arm
from kljax.attacks import (
    Attack,
    Candidate,
    Objective,
    Reconstruction,
    Setting,
    replay,
)
from kljax.attacks.optimisers import make_optimiser
from kljax.attacks.presets import Preset, find_preset
from kljax.config import LeakConfig
from kljax.mapping import Timing, map_victims
from kljax.models import Network
from kljax.staging import (
    Dials,
    Source,
    Stage,
    Staged,
    Victims,
    choose_victims,
    dials,
    draw_rng,
    set_stage,
    sources,
)
from kljax.typing import Array, Params, PyTree, Stats


class Attacked(NamedTuple):
    """What the compiled function says of one victim."""

    reconstruction: Reconstruction
    loss_at_truth: Array  # [] diagnostic, never shown to the attack
    loss_scale: Array  # [] objective if the faintest tensor is missed
    live_channels: Array  # [] gated channels whose scale is not 0


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
    config = captured.settle(config)
    network = ground.find_network(config)
    stage = set_stage(config, network)
    preset = find_preset(config.attack)
    classifier = _classifier(config, network, stage.dataset)
    jobs, made, functions = [], {}, {}
    for text in config.arms:
        arm = parse_arm(text, stage.sites, made)
        ground.check_norm(config, network, arm)
        declared = declare(config, arm.lock_strategy, preset.labels)
        staged = stage.stage(arm, declared.knowledge.victim_norm == "train")
        setting = Setting(
            model=staged.model,
            loss=stage.loss,
            gates=arm.defence.gates,
            simulate=arm.defence.simulate,
            image_shape=stage.dataset.shape,
            num_classes=stage.dataset.num_classes,
            classifier=classifier,
            sites=tuple(zip(stage.sites.paths, stage.sites.widths, strict=True)),
            threat=declared,
            protocol=stage.protocol,
            chain=network.chain,
        )
        _build(config, setting, preset, config.step_size)  # a typo costs nothing
        # Arms that differ in strengths alone share a function, and its compilation.
        kind = arm.skeleton, arm.lock_strategy
        if kind not in functions:
            functions[kind] = one_victim(config, setting, staged, preset)
        jobs.append(Job(staged, declared, functions[kind]))
    return Prepared(config, stage, jobs)


def prepare_again(study: Prepared, config: LeakConfig) -> Prepared:
    """Prepares a study that differs in data alone from one that is prepared already.

    Args:
      study: with one arm.
      config: of another seed, number of victims, strength or step size; everything
        else is the same (`kljax.sweeps.signature`).

    Returns:
      What `prepare` gives, but with the functions of `study`, which are compiled.
    """
    (first,) = study.jobs
    if config.from_run is not None:  # states of arms of other strengths are others
        study = prepare(config)
        (job,) = study.jobs
        staged = job.staged._replace(draws=first.staged.draws)
        return study._replace(jobs=[job._replace(staged=staged, fn=first.fn)])
    stage = study.stage
    arm = parse_arm(config.arms[0], stage.sites, {})
    job = first._replace(staged=first.staged._replace(arm=arm))
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
        sources(config, victims),
        dials(config, job.staged.arm, count),
        victims.images,
        victims.labels,
    )


def one_victim(
    config: LeakConfig, setting: Setting, staged: Staged, preset: Preset
) -> Callable[..., Attacked]:
    """Makes the function of one victim.

    Returns:
      ``(network, held, Source, Dials, images, labels) -> Attacked``.
    """
    arm = staged.arm

    def run(
        network: tuple[Params, Stats],
        held: PyTree,
        source: Source,
        dialled: Dials,
        images: Array,
        labels: Array,
    ) -> Attacked:
        # Strengths are data: the defence is made of this victim's.
        defence = arm.make(dialled.strengths)
        mine = setting._replace(gates=defence.gates, simulate=defence.simulate)
        attack = _build(config, mine, preset, dialled.step_size)
        update = staged.client(
            draw_rng(source, "step"), defence, network, held, images, labels
        )
        view = threat.observe(setting.threat, update)
        reconstruction = attack(draw_rng(source, "attack"), view)

        # Diagnostics, on this side of the wall.
        truth = Candidate(update.images, update.targets, update.private)
        loss_at_truth = loss_scale = jnp.nan
        if preset.objective is not None:
            simulated, observed = replay(mine, mine.gates)(view, truth)
            objective = preset.objective()
            loss_at_truth = objective(simulated, observed)
            lost = None
            if setting.protocol is not None:
                # Weight decay and momentum move tensors that no image moves.
                blank = truth._replace(images=jnp.full_like(update.images, 0.5))
                without, _ = replay(mine, mine.gates)(view, blank)
                lost = jax.tree.map(jnp.subtract, simulated, without)
            loss_scale = weakest_tensor(objective, observed, lost)
        gates = defence.gates(update.public.defence, update.private)
        live = sum((jnp.sum(gate.scale != 0) for gate in gates.values()), jnp.array(0))
        return Attacked(
            reconstruction, jnp.asarray(loss_at_truth), jnp.asarray(loss_scale), live
        )

    return run


def _build(config: LeakConfig, setting: Setting, preset: Preset, step_size) -> Attack:
    optimiser = None
    if config.optimiser is not None:
        optimiser = make_optimiser(config.optimiser, step_size)
    return preset.build(
        setting, optimiser, steps=config.steps, restarts=config.restarts
    )


def weakest_tensor(
    objective: Objective, observed: PyTree, lost: PyTree | None = None
) -> Array:
    """Computes what the objective says when the faintest tensor is missed entirely.

    The classifier's gradient is often a hundred times longer than the first layer's,
    in which the image is written: a loss that is small beside the whole gradient can
    still miss all of that. Tensors below float32 rounding (a millionth of the whole
    gradient's norm), such as a bias in front of a norm layer, do not count.

    Args:
      objective: ``(simulated, observed) -> []``.
      observed: what the server sees.
      lost: what of it is due to the images, and is lost where a tensor is missed;
        None for all of it.
    """
    leaves, tree = jax.tree.flatten(observed)
    parts = leaves if lost is None else jax.tree.leaves(lost)
    powers = jnp.stack([jnp.sum(part**2) for part in parts])
    missed = jnp.stack(
        [
            objective(
                jax.tree.unflatten(
                    tree, [x - parts[n] if i == n else x for i, x in enumerate(leaves)]
                ),
                observed,
            )
            for n in range(len(leaves))
        ]
    )
    return jnp.min(jnp.where(powers > 1e-12 * jnp.sum(powers), missed, jnp.inf))


def _classifier(config: LeakConfig, network: Network, dataset: data.Dataset) -> str:
    """Checks the path of the layer from which labels are read."""
    path = config.classifier or network.classifier
    model = ground.make_model(config, network, dataset, norm=False)
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    if f"{path}/kernel" not in params:
        layers = sorted(p.removesuffix("/kernel") for p in params if "/kernel" in p)
        raise ValueError(
            f"classifier {path!r} is no layer with a kernel of {config.model!r}; "
            f"those are {', '.join(layers)}"
        )
    return path


def declare(config: LeakConfig, lock_strategy: str, labels: str) -> threat.ThreatModel:
    """Declares the threat model of an arm: the least knowledge that it needs.

    Args:
      config: of the study.
      lock_strategy: of the arm.
      labels: strategy that the attack is known for; the study may have another.

    Raises:
      ValueError: for a fact that does not exist or contradicts the study, and for
        knowledge too small for the strategy.
    """
    strategy = threat.Strategy(lock=lock_strategy, labels=config.labels or labels)
    facts: dict[str, Any] = {"examples": config.examples, "upload": config.upload}
    needed = threat.STRATEGY["lock"][strategy.lock].get("lock_weights", ())
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
    return threat.least_knowledge(strategy, **facts)
