"""What one client does in a round: in which order, from which draws, with what weight.

Its parts are made up, and write down what they are given.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kljax.core.randomness import derive_rng
from kljax.federated.client_round import bind_client
from kljax.federated.clients import ROUND_PURPOSES, Upload
from kljax.federated.clients.local import Progress

ROUND, CLIENT = jax.random.key(3), 5
SERVER = SimpleNamespace(round=2, public="public", stats="stats")
STATE = SimpleNamespace(private="private")


class Written:
    """Made up parts of a client's round, and what they were given, in order."""

    def __init__(self, finite=True, sent_finite=True):
        self.finite, self.sent_finite, self.seen = finite, sent_finite, []

    def write(self, name, rng, *given):
        self.seen.append((name, jax.random.key_data(rng).tolist(), *given))

    def batches(self, role, rng, batches, hardened):
        self.write("role", rng, role, batches, hardened)
        return batches + ("r" if hardened else "p")

    def harden(self, acts, rng, server, private, batches):
        self.write("hardening", rng, acts, batches, private)
        return batches + "h"

    def run(self, rng, number, public, stats, state, batches):
        self.write("training", rng, number, batches)
        finite = jnp.asarray(self.finite)
        progress = Progress(jnp.float32(0.5), jnp.float32(0.25), finite)
        return Upload(jnp.float32(4), ()), "kept", progress

    def upload(self, role, rng, public, stats, upload):
        self.write("upload", rng, role)
        return upload, jnp.asarray(self.sent_finite)

    def visible(self, rng, public, stats, state, batches, sent):
        self.write("visible", rng, batches, float(sent))
        return "mask"


def play(written, *, honest=False, encrypted=False, gathers=False, weighting="uniform"):
    cast = SimpleNamespace(
        batches=written.batches, upload=written.upload, hardens=lambda role: role > 0
    )

    def add(server, upload, weight):
        return weight * upload.delta

    one_client = bind_client(
        SimpleNamespace(run=written.run, visible=written.visible),
        SimpleNamespace(add=add, gathers=gathers),
        cast=None if honest else cast,
        harden=written.harden,
        weighting=weighting,
        encrypted=encrypted,
    )
    shared = jax.random.key_data(ROUND), SERVER
    role = () if honest else (1,)
    return one_client(shared, CLIENT, STATE, "b", jnp.float32(3), *role)


def of(purpose):
    own = jax.random.fold_in(ROUND, CLIENT)
    rng = own if purpose is None else derive_rng(own, ROUND_PURPOSES, purpose)
    return jax.random.key_data(rng).tolist()


def test_each_thing_is_drawn_from_a_random_key_of_its_own():
    """Poisoned, hardened, poisoned by who hardens first, trained on, sent, seen."""
    written = Written()
    play(written, encrypted=True)
    assert written.seen == [
        ("role", of("role"), 1, "b", False),
        ("hardening", of("hardening"), True, "bp", "private"),
        ("role", of("role"), 1, "bph", True),
        ("training", of(None), 2, "bphr"),
        ("upload", of("role"), 1),
        ("visible", of(None), "bphr", 4.0),
    ]
    honest = Written()
    play(honest, honest=True)
    assert honest.seen == [
        ("hardening", of("hardening"), True, "b", "private"),
        ("training", of(None), 2, "bh"),
    ]


@pytest.mark.parametrize(("weighting", "weight"), [("uniform", 1), ("examples", 3)])
@pytest.mark.parametrize("broken", [None, "finite", "sent_finite"])
def test_who_is_not_finite_counts_for_nothing(weighting, weight, broken):
    written = Written(**({broken: False} if broken else {}))
    sums, (kept, progress, beside) = play(written, weighting=weighting)
    sound = broken is None
    wanted = [w * weight * sound for w in (1, 0.5, 0.25, 4)]
    total, failed, (loss, accuracy), part = sums
    np.testing.assert_array_equal([total, loss, accuracy, part], wanted)
    assert int(failed) == (not sound) and bool(progress.finite) == sound
    assert kept == "kept" and beside == ()


def test_what_is_put_side_by_side_is_what_the_server_asks_for():
    sums, (_, _, (weight, part)) = play(Written(), gathers=True, weighting="examples")
    assert len(sums) == 3 and (float(weight), float(part)) == (3, 12)
    sums, (_, _, kept_back) = play(Written(), encrypted=True, weighting="examples")
    weight, upload, seen = kept_back
    assert len(sums) == 3 and float(weight) == 3
    assert float(upload.delta) == 4 and seen == "mask"
