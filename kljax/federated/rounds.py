"""Rounds of federated learning: broadcast, local training, aggregation.

`federated_rounds` puts one client's `LocalTraining` and one server optimiser together.
The server holds a `ServerState`; what a client keeps is a `ClientState`, and the states
of all clients are one tree of NumPy arrays with a leading axis [N], on the host: a
client's lock weights and optimiser are 98 KB and more, and only a block of clients is
ever on the devices.

The aggregate of a round is made by an `Aggregator`, of the clients whose upload is
finite: unless another is given, ``sum_c w_c delta_c / sum_c w_c``, sums first, one
division last. Under an `Encryption` the same sum is made of what the server cannot
read. Norm statistics are aggregated by the same rule: the running means, and
the running variances, are averaged with the same weights (as in the official code,
which averages every entry of the state dict; the variance between clients' means is not
added).
"""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kljax.core.drawing import draw_jointly
from kljax.core.inputs import InputSpec
from kljax.core.randomness import derive_rng
from kljax.core.targets import TargetSpec
from kljax.core.types import (
    Array,
    LockWeights,
    Model,
    Private,
    Public,
    PyTree,
    Rng,
)
from kljax.data import check_local_batches
from kljax.defences import Defence
from kljax.federated.aggregation import (
    Aggregator,
    Evidence,
    check_needs,
    find_needs,
    mean,
)
from kljax.federated.cast import cast_of
from kljax.federated.client_round import bind_client
from kljax.federated.clients import (
    Batches,
    ClientState,
    LocalTraining,
    Progress,
    all_finite,
    next_move,
)
from kljax.federated.cohorts import (
    check_examples,
    check_population,
    checked_cohort,
    collect_progress,
    gather_uploads,
    of_finite,
    side_by_side,
    write_rows,
)
from kljax.federated.encryption import (
    LEAST,
    Encryption,
    HiddenPart,
    check_encryption,
    mean_of_hidden,
)
from kljax.federated.hardening import Hardening, bind_hardening
from kljax.federated.roles import Role
from kljax.federated.server import ServerState
from kljax.parallel import Layout, Timing, sum_clients

# What the random key of `Rounds` is for; all four functions may have the same.
PURPOSES = ("network", "defence", "clients", "rounds", "aggregation")


class RoundInfo(NamedTuple):
    """How a round went; for humans."""

    clients: np.ndarray  # [n] the cohort
    loss: float  # mean over the clients averaged, weighted as they are
    accuracy: float  # the same, of examples right in the step that used them
    excluded: np.ndarray  # [m] clients of this process left out as not finite
    progress: Progress  # per client [n], of this process; NaN for others
    timing: Timing
    hidden: HiddenPart | None = None  # what was encrypted, and what it took


class NonFiniteClient(FloatingPointError):
    """A client whose update is not finite, where that stops the run."""


class NonFiniteServer(FloatingPointError):
    """What the server made of a round's uploads is not finite, and nothing was kept."""


# clients' ids [b] -> their Batches and examples [b], with a leading axis [b]
Fetch = Callable[[np.ndarray], tuple[Batches, np.ndarray]]


class Rounds(NamedTuple):
    """Federated learning as four functions.

    They may be given the same random key: each takes what is its own of it.

    Attributes:
      init: ``rng -> ServerState``.
      init_lock: ``rng -> lock weights`` that all clients start from; the server draws
        them, so it knows them. From the same rng as `init`.
      init_clients: ``(rng, ServerState, count) -> ClientState`` of NumPy arrays with a
        leading axis [count]. From the same rng as `init`.
      run_round: ``(rng, ServerState, ClientState [N], cohort [n], fetch,
        on_block=None) -> (ServerState, RoundInfo)``. The rows of the cohort in the
        states of the clients are written in place, at the end of a round that went
        well; a client that turned non-finite keeps its old row.
    """

    init: Callable[[Rng], ServerState]
    init_lock: Callable[[Rng], LockWeights]
    init_clients: Callable[[Rng, ServerState, int], ClientState]
    run_round: Callable[..., tuple[ServerState, RoundInfo]]


def federated_rounds(
    model: Model,
    defence: Defence,
    training: LocalTraining,
    *,
    aggregator: Aggregator | None = None,
    evidence: Mapping[str, Evidence] | None = None,
    roles: Mapping[int, Role] | None = None,
    hardening: Hardening | None = None,
    encryption: Encryption | None = None,
    server_optimiser: optax.GradientTransformation | None = None,
    weighting: Literal["examples", "uniform"] = "examples",
    on_nonfinite: Literal["exclude", "stop"] = "exclude",
    layout: Layout | None = None,
    input_spec: InputSpec | None = None,
    target_spec: TargetSpec | None = None,
) -> Rounds:
    """Composes rounds.

    Args:
      model: draws the network's first parameters.
      defence: draws the public and the private parts of a defence.
      training: what a client does, see `kljax.local_training`.
      aggregator: what the server makes of the uploads; None is
        `kljax.federated.aggregation.mean`.
      evidence: what the server can find out where the aggregator needs it, by name.
      roles: of clients that are not honest, by their number.
      hardening: what clients do to their batches of a round before they train, given
        the network that they received; None for nothing.
      encryption: how uploads are added up by a server that cannot read them, or what a
        defence hides of them (`Defence.visible`); None sends them in the clear. The
        uploads of a round are then side by side on the host.
      server_optimiser: applied to minus the aggregate as if it were a gradient; None
        is ``optax.sgd(1.0)``, which adds the aggregate: FedAvg.
      weighting: a client counts as many times as it has examples, or once: in the loss
        and accuracy of a round, and under an aggregator that uses weights.
      on_nonfinite: a client with a NaN or infinity in what it uploads is
        excluded (and named in `RoundInfo.excluded`), or stops the run. It is never
        averaged in.
      layout: how clients are laid over the machine (speed only).
      input_spec, target_spec: what clients train on, by which their batches are
        checked; None for images, or tokens, and for classes.

    Raises:
      ValueError: for an unknown weighting or rule, and for an encryption that does not
        go with the rule or with several processes; and from ``run_round``, before a
        client of the block trains, for images outside [0, 1] and labels that are no
        class (`kljax.data.check_local_batches`, which raises TypeErrors, too), and for
        a cohort smaller than the aggregator needs; and, after they have trained, for
        numbers of an upload that are too large for the encryption.
      NonFiniteClient: from ``run_round``, naming the clients: under ``stop``, or when
        fewer are left than the aggregator needs. The states are then those before the
        round.
      NonFiniteServer: from ``run_round``, where the server's parameters or norm
        statistics would no longer be finite. The states are those before the round.

    Reference: Reddi et al., "Adaptive Federated Optimization" (ICLR 2021), for the
    server optimiser.
    """
    if weighting not in ("examples", "uniform"):
        raise ValueError(
            f"weighting must be 'examples' or 'uniform', got {weighting!r}"
        )
    if on_nonfinite not in ("exclude", "stop"):
        raise ValueError(
            f"on_nonfinite must be 'exclude' or 'stop', got {on_nonfinite!r}"
        )
    server_optimiser = server_optimiser or optax.sgd(1.0)
    rule, evidence = aggregator or mean(), evidence or {}
    least = rule.least
    if encryption is not None:
        check_encryption(encryption, rule)
        least = max(least, LEAST)
    check_needs(rule, evidence)
    needing = rule.name if least == rule.least else f"encryption {encryption.name!r}"
    # The keys are drawn when they are needed first.
    add_hidden = functools.cache(encryption.start if encryption else lambda: None)
    cast = cast_of(roles) if roles else None
    harden = bind_hardening(hardening, model, defence) if hardening else None

    def init(rng: Rng) -> ServerState:
        params, stats = model.init(derive_rng(rng, PURPOSES, "network"))
        rng_defence = derive_rng(rng, PURPOSES, "defence")
        public = Public(params, defence.init(rng_defence, params)[0])
        state = server_optimiser.init(public)
        memory = rule.init(public, stats)
        return ServerState(public, stats, state, jnp.zeros((), jnp.int32), memory)

    def init_lock(rng: Rng) -> LockWeights:
        params, _ = model.init(derive_rng(rng, PURPOSES, "network"))
        rng_defence = derive_rng(rng, PURPOSES, "defence")
        return defence.init(rng_defence, params)[1].trainable

    def init_clients(rng: Rng, server: ServerState, count: int) -> ClientState:
        if count < 1:
            raise ValueError(f"count must be at least 1 client, got {count!r}")
        rng_clients = derive_rng(rng, PURPOSES, "clients")
        lock = jax.jit(draw_jointly(init_lock))(rng)

        @jax.jit
        def secret(client: Array) -> PyTree:
            rng_client = jax.random.fold_in(rng_clients, client)
            return defence.init(rng_client, server.public.model)[1].secret

        # Everybody starts alike but for the secret (FedKL, methods/FedKL.py).
        start = jax.jit(training.init)(server.public, Private(secret(0), lock))
        states = jax.tree.map(lambda x: np.repeat(np.asarray(x)[None], count, 0), start)
        for client in range(count):
            write_rows(states.private.secret, client, jax.device_get(secret(client)))
        return states

    one_client = bind_client(
        training,
        rule,
        cast=cast,
        harden=harden,
        weighting=weighting,
        encrypted=encryption is not None,
    )
    run_clients = sum_clients(one_client, layout)

    @jax.jit
    def finish(
        server: ServerState, whole: PyTree, weight: Array, needs: dict[str, PyTree]
    ) -> tuple[ServerState, Array]:
        aggregate, memory = rule.finish(server, whole, weight, **needs)
        downhill = jax.tree.map(jnp.negative, aggregate.delta)
        moves, state = next_move(
            server_optimiser, downhill, server.optimiser, server.public
        )
        public = optax.apply_updates(server.public, moves)
        new = ServerState(public, aggregate.stats, state, server.round + 1, memory)
        return new, all_finite((public, aggregate.stats))

    def added_up(
        server: ServerState, number: int, kept: list, needs: dict[str, PyTree]
    ) -> tuple[tuple[ServerState, Array], HiddenPart]:
        parts = [(ids, sent) for ids, _, sent in of_finite(kept)]
        ids, (weights, uploads, visible) = side_by_side(parts)
        average, part = mean_of_hidden(
            add_hidden(), number, ids, weights, uploads, visible
        )
        weight = np.sum(weights)
        whole = jax.tree.map(lambda x: x * weight.astype(x.dtype), average)
        return finish(server, whole, weight, needs), part

    @functools.cache
    def classes_of_inputs(tree: Any, *columns: tuple[tuple[int, ...], Any]) -> int:
        def logits() -> Array:
            params, stats = model.init(jax.random.key(0))
            inputs = jax.tree.unflatten(
                tree, [jnp.zeros(*column) for column in columns]
            )
            return model.apply(params, stats, inputs, train=False).logits

        return jax.eval_shape(logits).shape[-1]

    def num_classes(inputs: PyTree) -> int:
        columns, tree = jax.tree.flatten(inputs)
        return classes_of_inputs(tree, *((x.shape, x.dtype) for x in columns))

    def run_round(
        rng: Rng,
        server: ServerState,
        states: ClientState,
        cohort: np.ndarray,
        fetch: Fetch,
        on_block: Callable[[int], Any] | None = None,
    ) -> tuple[ServerState, RoundInfo]:
        cohort = checked_cohort(cohort, states)
        check_population(rule, cohort)
        if len(cohort) < least:
            raise ValueError(
                f"{needing} needs {least} clients in a round, the cohort has "
                f"{len(cohort)}"
            )
        kept: list[tuple[np.ndarray, ClientState, Progress, PyTree]] = []
        number = int(server.round)

        def rows(ids: np.ndarray):
            batches, examples = fetch(ids)
            examples = np.asarray(examples, np.float32)
            check_examples(ids, batches, examples)
            check_local_batches(*batches, num_classes, ids, input_spec, target_spec)
            mine = jax.tree.map(lambda x: x[ids], states)
            roles_of = () if cast is None else (cast.numbers(ids, number),)
            return ids.astype(np.int32), mine, batches, examples, *roles_of

        def keep(ids: np.ndarray, result) -> None:
            kept.append((ids, *result))

        rng_rounds = derive_rng(rng, PURPOSES, "rounds")
        rng_round = jax.random.fold_in(rng_rounds, server.round)
        rng_needs = derive_rng(rng, PURPOSES, "aggregation")
        rng_needs = jax.random.fold_in(rng_needs, server.round)
        host = jax.device_get((jax.random.key_data(rng_round), server))
        (weight, failed, (loss, accuracy), *sums), timing = run_clients(
            host, cohort, rows, keep, on_block
        )
        progress = collect_progress(cohort, kept)
        broken = cohort[~progress.finite]
        left = len(cohort) - failed
        if failed and (on_nonfinite == "stop" or left < least):
            raise NonFiniteClient(
                f"round {int(server.round)}: {failed} clients of the cohort "
                f"({broken.tolist()} in this process) turned non-finite (NaN or "
                f"infinity in what they upload), and {left} are left, of the "
                f"{least} that {needing} needs; lower the learning rate, or see their "
                "data"
            )
        part = None
        seen = gather_uploads(rule, host[1], kept) if rule.gathers else None
        needs = find_needs(rule, evidence, rng_needs, host[1], seen)
        if encryption is not None:
            began = time.perf_counter()
            done, part = added_up(server, int(host[1].round), kept, needs)
            spent = time.perf_counter() - began
            timing = timing._replace(run_s=timing.run_s + spent)
        elif seen is not None:
            done = finish(server, seen.uploads, seen.weights, needs)
        else:
            done = finish(server, *sums, weight, needs)
        new, sound = done
        if not sound:
            raise NonFiniteServer(
                f"round {int(server.round)}: the server's parameters or norm "
                f"statistics turned non-finite (NaN or infinity) by {rule.name} and "
                "the server's optimiser, of uploads that are finite; lower the "
                "server's learning rate, or see what the rule is given"
            )
        for ids, state, seen, _ in kept:
            fine = np.flatnonzero(seen.finite)
            write_rows(states, ids[fine], jax.tree.map(lambda x, f=fine: x[f], state))
        means = float(loss / weight), float(accuracy / weight)
        return new, RoundInfo(cohort, *means, broken, progress, timing, part)

    return Rounds(init, init_lock, init_clients, run_round)


def nbytes(states: ClientState) -> int:
    """Counts the bytes that the states of all clients take on the host."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(states))
