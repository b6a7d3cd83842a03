"""A study: from its configuration to the functions that attack, in one pass.

`build_study` goes through these steps, each once:

1. the configuration is settled, from a run where it names one;
2. the attack is found, with the generator and the denoiser that its attacker has;
3. the dataset is loaded, the victims are chosen, and a language model is made of
   others, where the attacker has one;
4. the task is built: network, loss, the sites of a lock, the classifier;
5. a malicious server surveys public images, and modifies the network;
6. of each arm, the threat is declared, its client is made, drawn or of a run, the
   setting of the attack, and the function of one victim.

What can be wrong is refused on the way, before anything is computed. A user's function
that makes the dataset is called once: who settles a configuration before it is built
loads by `victim_data_of`, and hands it on.
"""

import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import numpy as np

from kljax import data
from kljax.attacks import Attacker, Setting, Task
from kljax.attacks.presets import PRESETS, Preset, find_preset
from kljax.core.inputs import InputSpec
from kljax.core.types import Model, Path, PyTree
from kljax.defences import inserts_modules
from kljax.defences.arms import Arm, check_upload, parse_arm
from kljax.models import feeding_layers
from kljax.parallel import Layout, Timing
from kljax.studies.builder.attack_setup import (
    build_attack,
    make_dials,
    require_generator,
)
from kljax.studies.builder.attacker import (
    assume_defence,
    check_density,
    check_labels,
    check_simulated,
    check_simulated_inputs,
    check_visible,
)
from kljax.studies.builder.average import check_average
from kljax.studies.builder.denoiser import find_denoiser
from kljax.studies.builder.drawn_client import (
    Client,
    check_client,
    make_drawn_client,
    make_sources,
    options_of_draws,
)
from kljax.studies.builder.from_run import settle
from kljax.studies.builder.language_model import make_language_model
from kljax.studies.builder.learning import (
    PublicExamples,
    choose_public,
    list_known_parts,
    make_learning,
    run_learning,
)
from kljax.studies.builder.observing import check_pooling, draws_secrets
from kljax.studies.builder.one_victim import Attacked, make_attack_on_one
from kljax.studies.builder.privacy import check_attacked
from kljax.studies.builder.run_client import (
    Captured,
    CapturedArm,
    capture,
    choose_own,
    make_captured_client,
    public_images,
    read_states,
)
from kljax.studies.builder.sizes import check_attack
from kljax.studies.builder.task import (
    PUBLIC,
    LearningTask,
    build_task,
    check_norm,
    find_classifier,
)
from kljax.studies.builder.threat_model import declare_threat
from kljax.studies.builder.victims import Victims, choose_victims, load_victim_data
from kljax.studies.config import LeakConfig
from kljax.studies.config.listing import join_names
from kljax.studies.row_columns import check_own


class ArmAttack(NamedTuple):
    """The attack on one arm, ready to be mapped over the victims.

    Attributes:
      arm: the defence, and what is done about it.
      setting: what the attack is built on.
      client: of the arm.
      inputs: of `attack_one`, with a leading axis [N]. They begin with what the draws
        of the client make the rest from, or with what is the same for all victims.
      attack_one: of one victim, see `make_attack_on_one`; compiled once for all arms
        of a kind.
      learn: learns what the attack needs of the arm, before any victim is attacked, and
        gives it with what that took; None where nothing is learned. `attack_one` is
        given it last, the same for all victims (`kljax.parallel.map_victims`, shared).
    """

    arm: Arm
    setting: Setting
    client: Client
    inputs: tuple[PyTree, ...]
    attack_one: Callable[..., Attacked] | None = None
    learn: Callable[[], tuple[PyTree, Timing]] | None = None


class Study(NamedTuple):
    """A study, ready to run.

    Attributes:
      config: settled.
      preset: the attack.
      attacker: what every arm's attacker brings along.
      victims: the private data.
      task: what all arms stand on.
      classifier: path of the layer from which labels are read.
      survey: what a malicious server measured on public images; () for an honest one.
      networks: by whether the norm layers of a lock are there, as clients get them.
      captured: the run whose client is attacked; None where clients are drawn.
      shared: what arms share, and studies that differ in data alone: functions, and
        with them their compilation.
      public: what an attack that learns is learned from; None for another.
      attacks: one per arm.
    """

    config: LeakConfig
    preset: Preset
    attacker: Attacker
    victims: Victims
    task: LearningTask
    classifier: str
    survey: PyTree
    networks: dict[bool, Model]
    captured: Captured | None
    shared: dict[Hashable, Any]
    public: PublicExamples | None = None
    attacks: tuple[ArmAttack, ...] = ()


def victim_data_of(config: LeakConfig) -> Callable[[], data.Dataset]:
    """Gives what loads the dataset of a study without a run, once."""
    return functools.cache(lambda: load_victim_data(config))


def build_study(
    config: LeakConfig,
    compiled: Study | None = None,
    load: Callable[[], data.Dataset] | None = None,
) -> Study:
    """Builds all that a study names, and runs nothing.

    Args:
      config: the study.
      compiled: a study whose functions are taken, and with them their compilation. It
        differs in data alone: the seed, the number of victims, strengths, step sizes
        (`kljax.studies.sweeps.cell.signature`).
      load: gives the dataset, see `victim_data_of`; None to load it here.

    Raises:
      ValueError: for anything in `config` that does not exist or does not fit.
    """
    load = load or victim_data_of(config)
    config = settle(config, (lambda: compiled.task.dataset) if compiled else load)
    preset = find_preset(config.attack)
    generator = require_generator(config, preset)
    denoiser = find_denoiser(config.denoise)
    captured, task = None, None
    if config.from_run is not None:
        captured = capture(config)
        task = captured.setup.task
    elif compiled is not None:
        task = compiled.task
    dataset = load() if task is None else task.dataset
    _check_inputs(config, preset, dataset.input_spec)
    check_own(config, dataset.input_spec)
    if captured is None:
        victims, others = choose_victims(config, dataset, generator, denoiser)
    else:
        victims, others = choose_own(captured, generator, denoiser), None
    if task is None:
        task = build_task(config, dataset)
    survey = _survey(config, preset, dataset, others, captured)
    study = Study(
        config,
        preset,
        Attacker(
            config.label_rule,
            config.features,
            generator,
            make_language_model(config, preset, dataset, others, captured),
            denoiser,
        ),
        victims,
        task,
        find_classifier(config, task) if compiled is None else compiled.classifier,
        survey,
        {norm: _modified(preset, task, norm, survey) for norm in (False, True)},
        captured,
        {} if compiled is None else compiled.shared,
        choose_public(config, preset, dataset, victims, others),
    )
    defences = {}
    examples = config.batch if config.upload == "update" else config.examples
    sites = task.sites._replace(batch=examples)
    arms = [parse_arm(text, sites, defences) for text in config.arms]
    states = None if captured is None else read_states(captured)
    return study._replace(
        attacks=tuple(_build_arm_attack(study, arm, states) for arm in arms)
    )


def _build_arm_attack(
    study: Study, arm: Arm, states: Callable[[Arm], tuple[CapturedArm, ...]] | None
) -> ArmAttack:
    """Builds the attack on one arm, and checks it once for all arms of its kind."""
    config, preset, task = study.config, study.preset, study.task
    check_norm(config, task.network, arm)
    check_upload(arm, config.upload)
    check_average(config, arm, preset)
    check_density(config, arm, preset, task.dataset.input_spec)
    check_simulated_inputs(config, arm)
    check_pooling(config, preset)
    threat = declare_threat(config, arm, preset)
    check_attacked(arm, study.networks[arm.norm], threat.knowledge)
    check_labels(config, arm, threat.strategy.labels)
    model, captured = study.networks[arm.norm], study.captured
    train = threat.knowledge.victim_norm == "train"
    if captured is None:
        modify = functools.partial(_modified, preset, task, arm.norm)
        share = functools.partial(_share, study.shared)
        same = list_known_parts(threat) if preset.learn is not None else ()
        client = make_drawn_client(
            config, task, arm, model, modify, share, train=train, same=same
        )
    else:
        client = make_captured_client(captured, states(arm), model, train=train)
    params = jax.eval_shape(model.init, jax.random.key(0))[0]
    inserted = preset.inserts is not None or inserts_modules(arm.defence, params)
    setting = Setting(
        Task(
            model,
            task.loss,
            task.dataset.input_spec,
            task.dataset.target_spec,
            study.classifier,
            # Behind an inserted module the chain does not begin with the image.
            chain=() if inserted else task.network.chain,
            feeds=_feeding_layers(study, arm),
        ),
        threat,
        assume_defence(
            arm, arm.defence, task.sites, config.examples, params, config.loss
        ),
        None if captured is None else captured.protocol,
        study.attacker,
        config.snapshots,
    )
    attack = ArmAttack(arm, setting, client, _inputs(study, arm, client))
    # Arms that differ in options alone share a function, and its compilation.
    kind = (
        arm.skeleton,
        arm.secret_strategy,
        arm.release_strategy,
        arm.simulates_inputs,
    )

    def make() -> Callable[..., Attacked]:
        _check_arm_attack(study, attack)
        renewed = captured is not None and captured.setup.config.fresh_private_keys
        own = draws_secrets(config, arm, renewed)
        common = config, preset, arm, task.sites, setting, client
        return make_attack_on_one(*common, own_secrets=own)

    attack = attack._replace(attack_one=_share(study.shared, kind, make))
    if preset.learn is None:
        return attack
    common = config, preset, arm, setting, client
    learn = _share(
        study.shared, ("learn", *kind), lambda: jax.jit(make_learning(*common))
    )
    source, dials = jax.tree.map(lambda x: x[0], attack.inputs[:2])
    given = source, dials.options, study.public.inputs, study.public.labels
    return attack._replace(learn=functools.partial(run_learning, learn, config, *given))


def check_layout(study: Study) -> None:
    """Refuses a study whose layout has more victims at one time than surely fit.

    Raises:
      ValueError: with the numbers, and the options to lower.
    """
    for attack in study.attacks:
        _check_size(study, attack, study.config.layout)


def _check_size(study: Study, attack: ArmAttack, layout: Layout | None = None) -> None:
    check_attack(
        study.config,
        study.preset,
        study.attacker.generator,
        attack.arm,
        attack.setting.task.model,
        study.task.dataset.input_spec.entries,
        layout,
    )


def _inputs(study: Study, arm: Arm, client: Client) -> tuple[PyTree, ...]:
    """Makes the arguments of the function of one victim, see `ArmAttack`."""
    config, victims = study.config, study.victims
    count = len(victims.labels)
    same = jax.tree.map(
        lambda x: np.broadcast_to(x, (count, *np.shape(x))), client.same
    )
    return (
        *same,
        make_sources(config, victims, study.survey, options_of_draws(arm)),
        make_dials(config, arm, study.preset, study.attacker, count),
        victims.inputs,
        victims.labels,
        *([victims.before] if victims.before else ()),
    )


def _feeding_layers(study: Study, arm: Arm) -> tuple[tuple[Path, Path], ...]:
    """Finds the layers below the gates, for strategies that look there."""
    if arm.secret_strategy != "regress_gates":
        return ()
    model, task = study.networks[arm.norm], study.task
    return _share(
        study.shared,
        ("feeding layers", arm.norm),
        lambda: feeding_layers(model, task.sites.paths, task.dataset.input_spec),
    )


def _share(shared: dict[Hashable, Any], name: Hashable, make: Callable[[], Any]) -> Any:
    """Makes what arms and studies share, unless one of them has it."""
    if name not in shared:
        shared[name] = make()
    return shared[name]


def _modified(preset: Preset, task: LearningTask, norm: bool, survey: PyTree) -> Model:
    """Gives the network that clients get: a malicious server's, or the agreed one."""
    if preset.inserts is None:
        return task.models[norm]
    return preset.inserts.insert(task.models[norm], task.dataset.shape, survey)


def _survey(
    config: LeakConfig,
    preset: Preset,
    dataset: data.Dataset,
    others: np.ndarray,
    captured: Captured | None,
) -> PyTree:
    """Measures what a malicious server knows of images before it sees a client's.

    It has a run's public ones; or at most `PUBLIC` of the same dataset, and no more
    than half of it, none of which is a victim's.

    Raises:
      ValueError: for more victims than leave enough of the dataset.
    """
    if preset.inserts is None:
        return ()
    if captured is not None:
        return preset.inserts.survey(public_images(captured))
    private = config.victims * config.victim_examples * (1 + config.earlier)
    there = len(others) + private
    count = min(PUBLIC, there // 2)
    if count > len(others):
        raise ValueError(
            f"attack {config.attack!r} needs {count} public images of dataset "
            f"{dataset.name!r}, and {config.victims} victims of "
            f"{config.victim_examples} examples leave {len(others)} of {there}"
        )
    return preset.inserts.survey(dataset.fetch(others[-count:])[0])


def _check_inputs(config: LeakConfig, preset: Preset, inputs: InputSpec) -> None:
    """Refuses an attack on a kind of input that it is not made for."""
    if preset.inputs is not None and inputs.kind not in preset.inputs:
        able = [
            name
            for name, row in PRESETS.items()
            if row.inputs is None or inputs.kind in row.inputs
        ]
        hint = f": take {join_names(able)}" if able else ""
        raise ValueError(
            f"attack {config.attack!r} looks for inputs of kind "
            f"{join_names(preset.inputs)}, and dataset {config.data!r} holds "
            f"{inputs.kind}{hint}"
        )
    replayable = inputs.search.trained or not inputs.search.unexplained
    if config.upload == "update" and not replayable:
        raise ValueError(
            f"upload='update': the steps of a client train "
            f"{', '.join(inputs.search.unexplained)}, which the attacker's candidates "
            f"say nothing of in dataset {config.data!r}: attack upload='gradient'"
        )


def _check_arm_attack(study: Study, attack: ArmAttack) -> None:
    """Refuses what an arm, its client or its attack cannot work on or would not fit."""
    config, arm, setting = study.config, attack.arm, attack.setting
    _check_size(study, attack)
    check_simulated(arm, setting)
    check_visible(arm, setting)
    build_attack(config, setting, study.preset)  # a typo costs nothing
    kind = study.task.dataset.input_spec.kind
    check_client(config, kind, arm, attack.client, attack.inputs)
