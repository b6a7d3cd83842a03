"""What every other package stands on: types, names, checks, files, random keys.

Nothing here knows of a network, a defence or an attack.
"""
