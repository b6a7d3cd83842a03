"""From a configuration to what it names: data, network, arms, victims, states of a run.

Nothing here attacks or trains.
"""
