"""Whether the client of an arm can work on the inputs of a study."""

import jax

from kljax.core.types import Array
from kljax.defences import as_given, everything
from kljax.studies.builder.victim_setup import (
    Source,
    Stage,
    Staged,
    draw_rng,
    sources,
)
from kljax.studies.config import LeakConfig
from kljax.threat import Update


def check_client(config: LeakConfig, staged: Staged, stage: Stage) -> None:
    """Refuses a defence that fails on the kind of input that its client trains on.

    Its client is traced, and nothing is computed. Defences that neither replace inputs
    nor hide entries look at no input, and cost nothing here.

    Raises:
      ValueError: with the arm, the kind of input, and what the defence raises.
    """
    defence = staged.arm.defence
    if defence.inputs is as_given and defence.visible is everything:
        return

    def upload(
        source: Source, images: Array, labels: Array, before: tuple[Array, ...]
    ) -> Update:
        has = list(staged.same)
        for draw in staged.draws:
            has.append(draw(source, *has))
        rng = draw_rng(source, "step")
        return staged.client(rng, defence, *has, images, labels, before)

    victims = stage.victims
    made_from = (
        sources(config, victims, staged.survey),
        victims.images,
        victims.labels,
        victims.before,
    )
    try:
        jax.eval_shape(upload, *jax.tree.map(lambda x: x[0], made_from))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"arm {staged.arm.name!r} fails on inputs of kind "
            f"{stage.dataset.inputs.kind}, which dataset {config.data!r} holds: {error}"
        ) from error
