"""What the commands that train share.

- `resumable`: a public part of a dataset, and training that goes on where it stopped.
- `wasserstein`: the other loss of train_generator.py.
- `poisoned`: who attacks, and what does not change, in trainings beside FLIP.
- `table1`: the trainings of the paper's Table 1, and what can be done of them here.
"""
