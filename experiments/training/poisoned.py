"""Trainings that some clients poison: what experiments on FLIP share."""

from kljax.parallel import Layout

HONEST = ("0:honest",)
POISON = "0-3:{}@10-14"
FIXED = {
    "model": "dense",
    "image_size": 8,
    "arms": ("none",),
    "clients": 10,
    "batch": 16,
    "local_epochs": 2,
    "local_steps": 16,
    "learning_rate": 0.05,
    "partition": "dirichlet=0.5",
    "public_examples": 0,
    "rounds": 15,
    "evaluate_every": 15,
    "floor": False,  # a row of its own
    "layout": Layout("sharded_loop", 8),
}
