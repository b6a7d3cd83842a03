"""One victim: from its upload, through the boundary, to its reconstruction."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax

from kljax import threat
from kljax.attacks import Reconstruction, Setting
from kljax.attacks.presets import Preset
from kljax.core.types import Array, Params, PyTree, Stats
from kljax.defences.arms import Arm, Sites
from kljax.studies.builder.attack_setup import Dials, build_attack
from kljax.studies.builder.attacker import assume_defence, understood
from kljax.studies.builder.drawn_client import Client, Source, draw_rng
from kljax.studies.builder.observing import pool_views
from kljax.studies.config import LeakConfig
from kljax.studies.diagnosis import diagnose, diagnose_pooled
from kljax.studies.risk import Risk, risk_scores
from kljax.studies.row_columns import check_numbers


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
    # [m, H, W, C], m >= B, trained on in place of the private images; None for those
    substitute: Array | None = None
    risk: Risk | None = None  # where the study asks for it


def make_attack_on_one(
    config: LeakConfig,
    preset: Preset,
    arm: Arm,
    sites: Sites,
    setting: Setting,
    client: Client,
    *,
    own_secrets: bool = False,
) -> Callable[..., Attacked]:
    """Makes the function of one victim of an arm.

    Args:
      config: the study.
      preset: the attack.
      arm: of any numbers: those of a victim are data.
      sites: of a lock.
      setting: of the attack on this arm.
      client: of this arm.
      own_secrets: whether what it hides is another in each observation.

    Returns:
      ``(network, held, Source, Dials, images, labels, before=()) -> Attacked``; of an
      attack that learns, with what it has learned as one argument more.
    """

    def attack_one(
        network: tuple[Params, Stats],
        held: PyTree,
        source: Source,
        dials: Dials,
        images: Array,
        labels: Array,
        *others: PyTree,
    ) -> Attacked:
        learned = others[-1] if preset.learn is not None else None
        before = others[0] if config.earlier else ()
        # Options are data: the defence is made of this victim's.
        defence = arm.make(dials.options)
        attacker = setting.attacker._replace(learned=learned)
        if attacker.generator is not None:
            generator = attacker.generator._replace(weights=dials.generator)
            attacker = attacker._replace(generator=generator)
        if attacker.language_model is not None:
            model = attacker.language_model._replace(weights=dials.language_model)
            attacker = attacker._replace(language_model=model)
        if attacker.denoiser is not None:
            denoiser = attacker.denoiser._replace(weights=dials.denoiser)
            attacker = attacker._replace(denoiser=denoiser)
        strategies = arm._replace(defence=defence).strategies
        params = network[0]
        if client.uploads is not None and not client.draws:  # of each observation
            params = jax.tree.map(lambda leaf: leaf[0], params)
        own_setting = setting._replace(
            threat=dataclasses.replace(setting.threat, strategies=strategies),
            defence=assume_defence(
                arm, defence, sites, config.examples, params, config.loss
            ),
            attacker=attacker,
        )
        attack = build_attack(config, own_setting, preset, dials)
        rng, at = draw_rng(source, "step"), (defence, network, held, images, labels)

        def seen(update: threat.Update) -> threat.View:
            return understood(arm, defence, threat.observe(setting.threat, update))

        if client.uploads is None:
            update = client.upload(rng, *at, before)
            view = seen(update)
        else:
            update = client.uploads(rng, *at)
            views = jax.lax.map(seen, update)
            view = pool_views(config, views, own_secrets=own_secrets)
        reconstruction = attack(draw_rng(source, "attack"), view)
        check_numbers(config, reconstruction.numbers)
        _check_labels(config, reconstruction.labels, labels)
        # Of all that is true; no attacker sees it.
        if client.uploads is None:
            diagnosis = diagnose(own_setting, preset, update, view)
        else:
            diagnosis = diagnose_pooled(
                own_setting, preset, update, views, config.pooling
            )
            update = jax.tree.map(lambda leaf: leaf[0], update)
        risk = risk_scores(own_setting, preset, update, view) if config.risk else None
        return Attacked(reconstruction, *diagnosis, update.substitute, risk)

    return attack_one


def _check_labels(config: LeakConfig, found: Array, true: Array) -> None:
    """Refuses labels that are not as the dataset has them.

    Raises:
      ValueError: for another shape, such as that of probabilities which nobody read.
    """
    if found.shape != true.shape:
        raise ValueError(
            f"attack {config.attack!r} finds labels of shape {found.shape}, and the "
            f"dataset has {true.shape}: its Unknown of targets needs a read, such as "
            "that of kljax.attacks.LABELS"
        )
