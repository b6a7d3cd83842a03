"""Evaluation: every gate test that has a meaning, on one trained arm."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kljax.core.registry import nearest
from kljax.core.targets import TargetSpec
from kljax.core.trees import map_columns
from kljax.core.types import (
    Gate,
    Gates,
    LockWeights,
    Loss,
    Model,
    Params,
    Private,
    PrivateKey,
    Public,
    PyTree,
    Rng,
    Stats,
)
from kljax.defences import Defence
from kljax.defences.defence import inserted_modules
from kljax.federated.evaluation.correctness import (
    BATCH,
    Examples,
    checked,
    in_batches,
    measure,
)
from kljax.federated.evaluation.gate_tests import (
    LOCKED,
    TESTS,
    GateTest,
    Insider,
    Outsider,
    with_mean_key,
)
from kljax.federated.evaluation.refitting import REFIT_STEPS, refit
from kljax.models.losses import cross_entropy

CLIENTS = 8  # the most clients that are evaluated, unless they are named


def chosen_clients(count: int) -> tuple[int, ...]:
    """Chooses the clients to evaluate: all, or 8 at equal distances from client 0."""
    chosen = min(count, CLIENTS)
    return tuple(i * count // chosen for i in range(chosen))


def evaluate(
    model: Model,
    defence: Defence,
    public: Public,
    stats: Stats,
    privates: Sequence[Private] | Private,
    *,
    unit_gates: Gates,
    test: Examples,
    rng: Rng,
    public_examples: Examples | None = None,
    initial_lock_weights: LockWeights | None = None,
    mean_gates: Gates | None = None,
    loss: Loss = cross_entropy,
    targets: TargetSpec | None = None,
    tests: Sequence[str] = tuple(TESTS),
    clients: Sequence[int] | None = None,
    draws: int = 3,
    steps: int = REFIT_STEPS,
    batch: int = BATCH,
) -> dict[str, dict[str, float | list[float]]]:
    """Computes the accuracy of one trained model under every test that applies to it.

    Args:
      model, defence: of the arm; the same objects again compile nothing again.
      public, stats: the state of the server.
      privates: private parts of all clients: a list, or one `Private` whose leaves
        have a leading axis of clients. Client c's other is client c + 1, the last
        one's is client 0.
      unit_gates: scale 1 and shift 0 at every site of the network, whether or not the
        defence gates it; ``{}`` for a network without sites.
      test: what accuracy is measured on; nothing is fitted or chosen by it.
      rng: consumed by fresh private keys and by re-fitting.
      public_examples: what an outsider has; each draw takes its N at random, the
        smaller N out of the larger. That they are neither test nor training examples
        is the caller's to see to: it cannot be found out here.
      initial_lock_weights: one client's worth of lock weights, as the server gave them
        to all clients before the first round.
      mean_gates: the outsider's other start of a refit, one gate per site; None for
        the gates of the constant private key 0.5 through `initial_lock_weights`.
        Whoever has those can give the same start to an arm without a lock.
      loss: for re-fitting.
      targets: what the labels of examples are; None for classes. Of others it is not
        accuracy that is computed, but what `TargetSpec.measure` names.
      tests: names out of `TESTS`; those without a meaning for this arm are left out.
      clients: whom to evaluate; None for `chosen_clients`. A defence without private
        parts makes all clients alike, and one is evaluated.
      draws: of each test that has some: public examples and shuffles of a refit, fresh
        private keys per client.
      steps: of each refit.
      batch: examples per forward pass; a speed option.

    Returns:
      By name of the test, in the order of `TESTS`: ``values`` (over clients, then
      draws; see `GateTest.per`), their ``mean``, and ``std``, the sample standard
      deviation, which is 0 for a single value. A refit that diverged to NaN has
      nothing right.

    Raises:
      ValueError: for an unknown test or client, `draws` below 1, fewer public examples
        than a test asks for, private parts or initial lock weights of wrong shapes,
        gates of the defence or mean gates at a site that `unit_gates` lacks, and
        examples as in `accuracy`.
    """
    if draws < 1:
        raise ValueError(f"draws must be >= 1, got {draws!r}")
    batches = jax.device_put(in_batches(test, "test", batch, targets))
    unit = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), dict(unit_gates))
    # What a defence has in the network publicly, everybody runs it with.
    public_gates = _gates(defence, public.defence, Private())
    modules = inserted_modules(public_gates)
    private_of, count = _by_client(privates)
    chosen = _checked_clients(clients, count)
    first = private_of(chosen[0])
    if jax.tree.leaves(first):
        _check_shapes(defence, public, rng, first, initial_lock_weights)
    rng_keys, rng_refit = jax.random.split(rng)

    def gates_of(private: Private) -> Gates:
        return _completed(_gates(defence, public.defence, private), unit)

    def insider(client: int, draw: int) -> Insider:
        rng_key = jax.random.fold_in(jax.random.fold_in(rng_keys, client), draw)
        other = private_of((client + 1) % count) if count > 1 else None
        return Insider(
            gates_of,
            private_of(client),
            other,
            initial_lock_weights,
            lambda: _fresh_key(defence, public.model, rng_key),
        )

    facts = {
        "sites": bool(unit),
        "gates": len(_gates(defence, public.defence, first)) > len(modules),
        "key": bool(jax.tree.leaves(first.secret)),
        "lock": bool(jax.tree.leaves(first.trainable)),
        "other": count > 1,
        "initial": initial_lock_weights is not None,
        "public": public_examples is not None,
    }
    if mean_gates is not None:
        mean_gates = _completed(mean_gates, unit) | modules
    elif all(facts[fact] for fact in (*LOCKED, "initial")):
        # Of a client only the length of its private key goes in, which is no secret.
        mean_gates = gates_of(
            with_mean_key(Private(first.secret, initial_lock_weights))
        )
    facts["mean"] = mean_gates is not None
    outsider = Outsider(unit | modules, mean_gates)
    if public_examples is not None:
        public_examples = checked(public_examples, "public_examples", targets)
    apply = _applicable(tests, facts, public_examples)

    def value(one: GateTest, client: int, draw: int) -> float:
        gates = one.gates(outsider if one.outside else insider(client, draw))
        norm = stats
        if one.examples:
            rng_rows, rng_fit = jax.random.split(jax.random.fold_in(rng_refit, draw))
            drawn = _drawn(public_examples, one.examples, rng_rows)
            gates, norm = refit(
                model,
                public.model,
                stats,
                gates,
                *drawn,
                rng=rng_fit,
                loss=loss,
                targets=targets,
                steps=steps,
            )
        return measure(model, public.model, norm, gates, batches, targets)

    everyone = chosen if jax.tree.leaves(first) else chosen[:1]
    return {
        name: mean_and_std(
            [
                value(one, client, draw)
                for client in (everyone if "client" in one.per else chosen[:1])
                for draw in range(draws if "draw" in one.per else 1)
            ]
        )
        for name, one in apply.items()
    }


@functools.partial(jax.jit, static_argnames="defence")
def _gates(defence: Defence, public: PyTree, private: Private) -> Gates:
    return dict(defence.gates(public, private))


@functools.partial(jax.jit, static_argnames="defence")
def _fresh_key(defence: Defence, params: Params, rng: Rng) -> PrivateKey:
    return defence.init(rng, params)[1].secret


def _applicable(tests, facts, public_examples) -> dict[str, GateTest]:
    """Finds the tests asked for that have a meaning, in the order of the table."""
    for name in tests:
        if name not in TESTS:
            raise ValueError(
                f"unknown test {name!r}{nearest(name, TESTS)}; tests are "
                f"{', '.join(TESTS)}"
            )
    found = {
        name: one
        for name, one in TESTS.items()
        if name in tests and all(facts[fact] for fact in one.needs)
    }
    for name, one in found.items():
        if one.examples and one.examples > len(public_examples.labels):
            raise ValueError(
                f"test {name!r} needs {one.examples} public examples, there are "
                f"{len(public_examples.labels)}: give more, or leave it out of tests"
            )
    return found


def _checked_clients(clients: Sequence[int] | None, count: int) -> tuple[int, ...]:
    chosen = chosen_clients(count) if clients is None else tuple(clients)
    if not chosen:
        raise ValueError("clients is empty: name at least one, or leave it at None")
    for client in chosen:
        if not 0 <= client < count:
            raise ValueError(f"no client {client}: there are {count}, from 0 on")
    return chosen


def _completed(gates: Gates, unit: dict[str, Gate]) -> Gates:
    """Puts unit gates where there are none: one structure, one compilation."""
    if strangers := sorted(gates.keys() - unit.keys() - inserted_modules(gates).keys()):
        raise ValueError(
            f"there are gates at {strangers}, unit_gates has {sorted(unit)}: give unit "
            "gates for every site"
        )
    return unit | dict(gates)


def _by_client(privates) -> tuple[Callable[[int], Private], int]:
    if not isinstance(privates, Private):
        if not privates:
            raise ValueError("privates is empty: one Private per client is needed")
        return lambda client: privates[client], len(privates)
    counts = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(privates)} or {(1,)}
    if len(counts) != 1 or counts == {()}:
        raise ValueError(
            f"stacked privates need one leading axis of clients, got {sorted(counts)}"
        )
    ((count,),) = counts
    return lambda client: jax.tree.map(lambda leaf: leaf[client], privates), count


def _check_shapes(defence, public, rng, private, initial_lock_weights) -> None:
    _, expected = jax.eval_shape(defence.init, rng, public.model)
    pairs = {"a client's private parts": (private, expected)}
    if initial_lock_weights is not None:
        pairs["initial_lock_weights"] = (initial_lock_weights, expected.trainable)
    for name, (found, wanted) in pairs.items():
        found, wanted = (jax.tree.map(jnp.shape, tree) for tree in (found, wanted))
        if found != wanted:
            raise ValueError(f"{name}: shapes {found}, the defence makes {wanted}")


def _drawn(examples: Examples, count: int, rng: Rng) -> Examples:
    generator = np.random.default_rng(np.asarray(jax.random.key_data(rng)))
    rows = generator.permutation(len(examples.labels))[:count]
    return Examples(
        map_columns(lambda column: column[rows], examples.inputs), examples.labels[rows]
    )


def mean_and_std(values: list[float]) -> dict[str, float | list[float]]:
    """Gives values with their mean and sample standard deviation; 0 for one value."""
    std = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "std": float(std), "values": values}
