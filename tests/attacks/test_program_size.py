"""The size of what is compiled: linear in sites at most, and the same for any steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from toys import equations, setting, threat
from victims import ground, update

from kljax.attacks import Candidate, Protocol
from kljax.attacks.priors import batch_statistics
from kljax.attacks.secrets import regress_gates
from kljax.defences import none
from kljax.defences.lock import key_lock
from kljax.threat import observe


def test_fresh_gates_are_drawn_once_for_all_sites():
    def size(count):
        sites = tuple(f"norm{i}" for i in range(count))
        lock = key_lock(sites, (3,) * count, size=4, chained=True)
        grown = setting(
            threat("regress_gates", "joint"),
            none(),
            sites=tuple((site, 3) for site in sites),
            draw_gates=lambda rng: lock.gates(
                lock.init(rng), lock.private_key(jax.random.fold_in(rng, 99))
            ),
        )
        start = regress_gates(grown).unknown.start
        return len(equations(lambda rng: start(rng, None), jax.random.key(0)))

    sizes = [size(count) for count in (2, 4, 6, 8)]
    assert len(set(np.diff(sizes))) == 1, sizes


def test_statistics_of_many_steps_are_a_loop():
    facts = {"stats": "visible", "labels": "known", "victim_norm": "train"}
    declared = threat("unit", "given", examples=2, **facts)
    view = observe(declared, update(2, train=True))
    declared = threat("unit", "given", examples=2, upload="update", **facts)

    def size(steps):
        protocol = Protocol(optax.sgd(0.1), steps=steps, batch=1, learning_rate=0.1)
        prior = batch_statistics(
            ground(declared, protocol=protocol), lambda public, lock: {}, 1.0
        )

        def total(images):
            return prior(view, Candidate(images, None, None), jnp.zeros(()))

        return len(equations(jax.grad(total), jnp.zeros((2, 8, 8, 1))))

    assert size(2) == size(8) == size(64)
