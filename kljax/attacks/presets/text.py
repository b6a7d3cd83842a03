"""LAMP: embeddings by descent, and between the steps whole tokens elsewhere."""

import jax.numpy as jnp
import optax

from kljax.attacks.attack import (
    Attack,
    Moves,
    Objective,
    Optimiser,
    Reconstruction,
    Unknowns,
)
from kljax.attacks.drivers import descend
from kljax.attacks.labels import LABELS
from kljax.attacks.objectives import cosine_per_tensor, tag
from kljax.attacks.optimisers import from_optax
from kljax.attacks.priors import with_feature
from kljax.attacks.rearranging import (
    PROPOSALS,
    STARTS,
    best_start,
    mean_length,
    rearranged,
)
from kljax.attacks.secrets import secret_of
from kljax.attacks.setting import Setting
from kljax.attacks.simulation import replay
from kljax.attacks.starts import normal
from kljax.attacks.unknowns import searched
from kljax.core.types import Array, Rng
from kljax.threat import View

FALLS = 40  # times in a search that the rate falls to .89: every 50 of 2,000 steps
AFTER = 0.1  # of the steps, the first tokens are moved
RATE = 0.2  # see `lamp`
TAG_SHARE = 0.01  # of the absolute distance in LAMP's second variant
EVERY = 75


def lamp(
    setting: Setting,
    optimiser: Optimiser | None = None,
    *,
    steps: int,
    restarts: int,
    regulariser: float | Array = 1.0,
    perplexity: float | Array = 0.2,
    learning_rate: float = RATE,
    every: int = EVERY,
    objective: Objective | None = None,
) -> Attack:
    """Makes LAMP: 2,000 steps of Adam, and 200 orders of each sentence every 75 steps.

    The attacker has a language model (`Attacker.language_model`), here one of trigrams
    of the sentences that are no victim's. Embeddings are kept near the mean norm of the
    vocabulary's by `regulariser`; orders are judged by the gradient they give, and by
    `perplexity` times what the language model says of them. Labels are given.

    The paper's rate is .01, of word embeddings whose entries are .05 in the mean (norm
    1.4 in 768 dimensions). Latents are measured in units of the table here, so it is .2
    of them. The rate falls by 11 % a fortieth of the way.

    Differs: the language model; its perplexity has the first token in it; iterates are
    compared in which no token moves.

    Args:
      setting: with a language model.
      optimiser: in place of Adam.
      steps, restarts: of the descent.
      regulariser: weight of the norms, see `kljax.attacks.rearranging.mean_length`.
      perplexity: weight of the language model, in nats a token.
      learning_rate: of Adam at the start.
      every: steps between two rounds of proposals.
      objective: `cosine_per_tensor`, if not said.

    Raises:
      ValueError: without a language model, for inputs that are no sentences, and for
        `every` below 1.

    Reference: Balunović et al., "LAMP: Extracting Text from Gradients with Language
    Model Priors" (NeurIPS 2022); code eth-sri/lamp, attack.py, init.py, and its
    settings for BERT-base.
    """
    model, secret = setting.attacker.language_model, secret_of(setting)
    if setting.task.inputs.search.table is None:
        raise ValueError(
            f"lamp looks for sentences, and the inputs are {setting.task.inputs.kind}: "
            "of these no token can be moved"
        )
    if model is None:
        raise ValueError(
            "lamp judges sentences by a language model, and the attacker has none: "
            "give Attacker.language_model, such as "
            "kljax.models.ngrams.count_trigrams of public sentences"
        )
    falling = optax.exponential_decay(
        learning_rate, max(1, steps // FALLS), 0.89, staircase=True
    )
    moves = Moves(
        best_start(setting), rearranged(setting, model, perplexity), every, AFTER
    )
    search = descend(
        Unknowns(
            searched(setting, normal(0.0, 1.0)),
            LABELS[setting.threat.strategy.labels](setting),
            secret.unknown,
        ),
        replay(setting, secret.gates),
        objective or cosine_per_tensor(),
        optimiser or from_optax(optax.adam(falling), secret=optax.adam(0.05)),
        prior=with_feature(setting, secret.gates, mean_length(setting, regulariser)),
        moves=moves,
        steps=steps,
        restarts=restarts,
        snapshots=setting.snapshots,
    )
    rounds = sum(bool(moves.due(number, steps)) for number in range(steps))
    orders = rounds * PROPOSALS * setting.threat.knowledge.examples
    tried = restarts * (2 * STARTS + orders)

    def attack(rng: Rng, view: View) -> Reconstruction:
        found = search(rng, view)
        return found._replace(numbers=found.numbers | {"proposals": jnp.asarray(tried)})

    return attack


def lamp_l1l2() -> Objective:
    """Makes the distance of LAMP's second variant: TAG's."""
    return tag(TAG_SHARE)
