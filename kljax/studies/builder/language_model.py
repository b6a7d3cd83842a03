"""A study's language model: made of sentences that are no victim's."""

import numpy as np

from kljax import data
from kljax.attacks.presets import Preset
from kljax.core.language_model import LanguageModel
from kljax.models.ngrams import count_trigrams
from kljax.studies.builder.run_client import Captured, require_public
from kljax.studies.config import LeakConfig

SHARE = 0.75  # of a dataset that is public; victims are of the rest


def make_language_model(
    config: LeakConfig,
    preset: Preset,
    dataset: data.Dataset,
    others: np.ndarray | None,
    captured: Captured | None,
) -> LanguageModel | None:
    """Makes the language model of a study's attacker, if the attack needs one.

    Its sentences are a run's public ones; or the last three quarters of the order that
    victims are the first of, so that more victims change nothing of it.

    Args:
      config, preset: of the study.
      dataset: that victims are drawn from.
      others: indices of the examples that are nobody's, in random order; None for a
        run.
      captured: the run whose client is attacked; None where clients are drawn.

    Raises:
      ValueError: for more victims than leave enough sentences, for a run without public
        examples, and for inputs that are not of a vocabulary.
    """
    if not preset.language_model:
        return None
    if captured is not None:
        public = require_public(captured)
        indices = public.positions_of(np.arange(len(public)))
        sentences = public.fetch(np.arange(len(public)))[0]
    else:
        private = config.victims * config.victim_examples * (1 + config.earlier)
        there = len(others) + private
        count = int(SHARE * there)
        if count > len(others):
            raise ValueError(
                f"attack {config.attack!r} needs a language model of {count} public "
                f"sentences of dataset {dataset.name!r}, and {config.victims} victims "
                f"of {config.victim_examples} examples leave {len(others)} of {there}"
            )
        indices = others[-count:]
        sentences = dataset.fetch(indices)[0]
    return count_trigrams(sentences, dataset.input_spec.sizes["vocabulary"], indices)
