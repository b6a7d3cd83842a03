"""Flower: a defence of kljax at a client, and a server's uploads kept and audited.

A client's side is a mod of Flower's, a server's a strategy around another one:

    mod = kljax.flower.defence_mod("norm-clipping=1+gaussian-noise=0.1")
    app = ClientApp(mods=[mod])
    strategy = kljax.flower.KeepUploads(FedAvg(), folder="uploads", rounds=(1, 3))

Both work on the messages of Flower 1.42 (``flwr.clientapp``, ``flwr.serverapp``), whose
train messages hold one record of arrays; it comes with the extra ``flower``.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from kljax import defences
from kljax.core.files import write_arrays
from kljax.core.randomness import draw_system_rng
from kljax.core.types import Public
from kljax.defences.arms import parse_training_arm, unplaced_sites
from kljax.defences.context import Context
from kljax.defences.defence import (
    SEND_ALL,
    Defence,
    Transform,
    at_update,
    without_release,
)
from kljax.studies.audit.auditing import Audit, audit
from kljax.studies.audit.facts import AuditConfig

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, Message
    from flwr.app import Context as FlowerContext
    from flwr.serverapp import Grid

try:
    from flwr.app import Array as FlowerArray
    from flwr.app import ArrayRecord as Record
    from flwr.serverapp.strategy import Strategy
except ImportError:  # said where it is used: `import kljax` needs no Flower
    FlowerArray = Record = None
    Strategy = object

STATE = "kljax-defence"  # what a release remembers between rounds, in Flower's context
RECEIVED = "received.npz"


def _need_flower() -> None:
    if Record is None:
        raise ImportError(
            "kljax.flower needs Flower, which is not installed: pip install "
            "'kljax[flower]'"
        )


def transform_of(defence: str | Defence) -> Transform:
    """Gives what a defence does to a whole change, which is all that a mod can do.

    Args:
      defence: ``TRANSFORM[=OPTIONS][+TRANSFORM...]`` of the catalogue, which acts on
        the whole change here, with ``@update`` or without; or a `Defence`.

    Raises:
      ValueError: for a defence that does more or another thing than change what leaves:
        gates of a network, inputs, single examples, hidden entries; and one that needs
        the gradient of a step.
    """
    name = defence if isinstance(defence, str) else "the defence"
    if isinstance(defence, str):
        defence = parse_training_arm(defence, unplaced_sites(()), {}).defence
    bare = without_release(defence)._replace(visible=defences.everything)
    if bare._replace(per_example=None, simulate_example=None) != Defence():
        raise ValueError(
            f"{name} changes the client's inputs or its network, or keeps a secret, "
            "and a mod sees what leaves alone: take one that acts on release"
        )
    if defence.visible is not defences.everything:
        raise ValueError(
            f"{name} hides entries from the server, which aggregates them all the "
            "same: Flower's messages have no such thing"
        )
    if defence.per_example is not None:
        raise ValueError(
            f"{name} acts on the gradient of each example, and a mod sees what leaves "
            "alone: build it into the client's training"
        )
    if defence.update != SEND_ALL:
        step = defence._replace(update=SEND_ALL)
        if without_release(step) != step:
            raise ValueError(
                f"{name} acts on gradients and on the change: give what acts on the "
                "change alone"
            )
        return defence.update
    try:
        return at_update(defence).update
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def defence_mod(
    defence: str | Defence, *, seed: int | None = None
) -> "Callable[..., Message]":
    """Makes a mod that applies a defence to the change that a client sends.

    What leaves is the received arrays plus what the defence releases of the change.
    Arrays of whole numbers, such as counters, leave as they are; running statistics of
    norm layers are floating and part of the change.

    Args:
      defence: see `transform_of`.
      seed: of its draws, together with the number of the call of this client; None for
        the operating system's randomness, as privacy wants it.

    Returns:
      ``(message, context, call_next) -> message``, for ``ClientApp(mods=[...])``.

    Raises:
      ValueError: as `transform_of`; and from the mod for messages with another number
        of array records than one, and arrays that are not those received.
    """
    _need_flower()
    transform = transform_of(defence)

    def mod(message: "Message", context: "FlowerContext", call_next: Callable):
        # Copied before the app runs, which may train in place.
        received = _floating(_arrays(message, "received"))
        reply = call_next(message, context)
        if reply.has_error() or not reply.content.array_records:
            return reply  # an evaluation sends numbers alone
        trained = _arrays(reply, "sent")
        floating = _floating(trained)
        shapes = [{n: x.shape for n, x in one.items()} for one in (received, floating)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"a defence of the change needs the arrays that were received: "
                f"{shapes[0]} came, and {shapes[1]} leave"
            )
        delta = Public({n: jnp.asarray(floating[n] - received[n]) for n in received})
        held = Public({n: jnp.asarray(x) for n, x in received.items()})
        state, calls = _remembered(context, transform.init_state(delta))
        if seed is None:
            rng = draw_system_rng()
        else:  # clients draw apart
            rng = jax.random.fold_in(jax.random.key(seed), calls)
            rng = jax.random.fold_in(rng, context.node_id % 2**32)
        sent, state = transform.release(
            rng, state, delta, Context(held, {}, None, None)
        )
        _remember(context, state, calls + 1)
        changed = {
            name: np.asarray(received[name] + np.asarray(sent.model[name]), x.dtype)
            if name in received
            else x
            for name, x in trained.items()
        }
        ((name, _),) = reply.content.array_records.items()
        reply.content[name] = _record(changed)
        return reply

    return mod


class KeepUploads(Strategy):
    """A strategy that keeps what clients send in some rounds, and is another otherwise.

    ``FOLDER/round-R/received.npz`` has what the server sent out in round R, and
    ``FOLDER/round-R/client-NODE.npz`` what a client changed of it: trained minus
    received arrays, as ``kljax audit --upload update`` reads them.

    Args:
      strategy: of Flower's, which chooses clients and aggregates.
      folder: where they are kept.
      rounds: from 1; None for all.
    """

    def __init__(
        self,
        strategy: Strategy,
        folder: str | Path,
        rounds: Iterable[int] | None = None,
    ):
        _need_flower()
        self.strategy, self.folder = strategy, Path(folder)
        self.rounds = None if rounds is None else frozenset(rounds)
        self._received: dict[str, np.ndarray] = {}

    def summary(self) -> None:
        """Says what the strategy inside is."""
        self.strategy.summary()

    def configure_train(
        self, server_round: int, arrays: "ArrayRecord", config: Any, grid: "Grid"
    ) -> "Iterable[Message]":
        """Remembers what is sent out."""
        self._received = {n: x.numpy().copy() for n, x in arrays.items()}
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: "Iterable[Message]"
    ) -> tuple[Any, Any]:
        """Keeps what came back, and aggregates.

        Raises:
          ValueError: for a client that sends other arrays than it received.
        """
        replies = list(replies)
        if self.rounds is None or server_round in self.rounds:
            folder = self.folder / f"round-{server_round}"
            folder.mkdir(parents=True, exist_ok=True)
            # Whole or not at all: a server may be stopped in a round.
            write_arrays(folder / RECEIVED, _floating(self._received))
            for reply in replies:
                if not reply.has_error():
                    name = f"client-{reply.metadata.src_node_id}.npz"
                    write_arrays(folder / name, self._change(reply))
        return self.strategy.aggregate_train(server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: "ArrayRecord", config: Any, grid: "Grid"
    ) -> "Iterable[Message]":
        """Leaves evaluation to the strategy inside."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: "Iterable[Message]"
    ) -> Any:
        """Leaves evaluation to the strategy inside."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def _change(self, reply: "Message") -> dict[str, np.ndarray]:
        trained = _floating(_arrays(reply, "sent"))
        received = _floating(self._received)
        if trained.keys() != received.keys():
            raise ValueError(
                f"client {reply.metadata.src_node_id} sent {', '.join(trained)}, and "
                f"received {', '.join(received)}: nothing to subtract"
            )
        return {name: trained[name] - received[name] for name in received}


def kept_uploads(folder: str | Path) -> dict[tuple[int, int], Path]:
    """Lists uploads that a `KeepUploads` kept: (round, node) -> file."""
    return {
        (
            int(path.parent.name.removeprefix("round-")),
            int(path.stem[len("client-") :]),
        ): path
        for path in sorted(Path(folder).glob("round-*/client-*.npz"))
    }


def audit_upload(path: str | Path, **facts: Any) -> Audit:
    """Audits an upload that a `KeepUploads` kept.

    Args:
      path: of `kept_uploads`.
      facts: of `kljax.studies.audit.AuditConfig`, ``model`` and ``learning_rate`` among
        them; what a client did locally is not in its upload.

    Raises:
      ValueError: as `kljax.studies.audit.audit`.
    """
    path = Path(path)
    weights = path.parent / RECEIVED
    return audit(
        AuditConfig(upload_file=path, weights=weights, upload="update", **facts)
    )


def _arrays(message: "Message", what: str) -> dict[str, np.ndarray]:
    records = message.content.array_records
    if len(records) != 1:
        raise ValueError(
            f"{len(records)} array records were {what} in a message, and a defence "
            "works on one, with all that the client trains"
        )
    (record,) = records.values()
    return {name: array.numpy() for name, array in record.items()}


def _floating(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name: x.astype(np.float32)
        for name, x in arrays.items()
        if np.issubdtype(x.dtype, np.floating)
    }


def _record(arrays: Mapping[str, np.ndarray]) -> "ArrayRecord":
    return Record({name: FlowerArray(x) for name, x in arrays.items()})


def _remembered(context: "FlowerContext", fresh: Any) -> tuple[Any, int]:
    """Reads what the release remembers of earlier rounds, and how many there were."""
    if STATE not in context.state.array_records:
        return fresh, 0
    kept = context.state.array_records[STATE]
    leaves, shape = jax.tree.flatten(fresh)
    there = [jnp.asarray(kept[str(n)].numpy()) for n in range(len(leaves))]
    return jax.tree.unflatten(shape, there), int(kept["calls"].numpy())


def _remember(context: "FlowerContext", state: Any, calls: int) -> None:
    leaves = {str(n): np.asarray(x) for n, x in enumerate(jax.tree.leaves(state))}
    context.state[STATE] = _record({**leaves, "calls": np.asarray(calls)})
