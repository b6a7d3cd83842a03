"""From a configuration to what it names: data, network, arms, victims, states of a run.

`study` builds a study in one pass, `run_setup` a training; nothing here attacks or
trains.
"""
