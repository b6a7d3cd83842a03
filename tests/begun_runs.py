"""Folders of runs that have not trained yet: quick ground for studies of a client."""

import dataclasses

from kljax.core import files
from kljax.federated import checkpoints
from kljax.parallel import Layout
from kljax.studies import run_folder
from kljax.studies.builder import run_setup
from kljax.studies.config import LeakConfig, TrainConfig

RUN = TrainConfig(
    model="dense",
    image_size=8,
    examples=40,
    test_examples=8,
    public_examples=0,
    clients=2,
    rounds=1,
    batch=1,
    private_key_size=16,
    init=0.3,
    keep_rounds=(0,),
    arms=("keylock",),
    layout=Layout("loop"),
)
UPLOADS = {
    "gradient": {"upload": "gradient"},
    "update": {"upload": "update", "local_steps": 2, "batch": 1, "labels": "given"},
}


def begin(folder, **changes):
    """Writes the folder of `RUN`; gives all that it holds, as it was made."""
    setup = run_setup.build_run_setup(dataclasses.replace(RUN, **changes))
    (arm,) = setup.arms
    server, clients = run_setup.start(setup, run_setup.arm_rounds(setup, arm).rounds)
    folder.mkdir()
    described = run_folder.describe(setup.config, setup.task.dataset.licence)
    files.write_json(folder / "config.json", described)
    checkpoints.save(folder / arm, server, clients, (0,))
    return setup, server, clients


def study(folder, **changes):
    """Makes a study of two victims of client 1."""
    options = {
        "from_run": str(folder),
        "client": 1,
        "victims": 2,
        "layout": Layout("loop"),
    }
    return LeakConfig(**(options | changes))
