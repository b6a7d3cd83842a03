"""Configurations: all that is needed to repeat a run, checked when they are made."""

from kljax.core.checks import default
from kljax.studies.config.leak import LeakConfig
from kljax.studies.config.train import TrainConfig

# Options that change speed and no results: whoever goes on with a run may change them.
SPEED_OPTIONS = ("layout", "convolution")

__all__ = ["SPEED_OPTIONS", "LeakConfig", "TrainConfig", "default"]
