"""The workers of a Ray cluster: who computes which chunk, and what if they are lost.

Ray places the workers. This process gives each one chunk at a time and gets its rows
back, so that no other machine need see the study's folder.
"""

import collections
import contextlib
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from kljax.parallel import Layout
from kljax.studies.store.failures import make_failure
from kljax.studies.sweeps.computing import (
    NO_TIME,
    Computed,
    Limits,
    Task,
    count_victims,
)
from kljax.studies.sweeps.ray_queue import TRIES, TaskQueue
from kljax.studies.sweeps.ray_worker import Joined, Site, Worker

WATCH_S = 1.0  # between two looks at who joined
START_S = 120  # seconds for a machine that has what a worker needs, and for a worker
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class WorkerLost(RuntimeError):
    """A worker ended while it computed; its machine was lost, or its process killed."""


class _Place(NamedTuple):
    """A worker that was asked for."""

    actor: Any
    node: str
    address: str  # of its machine


class Cluster:
    """Computes chunks by workers; is called as `computing.compute_here` is.

    Attributes:
      provenance: device and local_devices of the first worker, see
        `kljax.core.provenance.collect_provenance`.
    """

    def __init__(
        self,
        ray: Any,
        site: Site,
        limits: Limits,
        cpus: int | None,
        on_news: Callable[[str], Any],
    ):
        self._ray, self._site, self._limits = ray, site, limits
        self._cpus, self._on_news = cpus, on_news
        self._gpus = any(node["Resources"].get("GPU") for node in ray.nodes())
        # All workers are in one of these four. Keys are calls that are waited for.
        self._joining: dict[Any, _Place] = {}
        self._asked: dict[Any, tuple[_Place, Task]] = {}  # whether they are there
        self._at_work: dict[Any, tuple[_Place, Task]] = {}
        self._idle: list[tuple[_Place, str | None]] = []  # and the group compiled there
        self._misses: collections.Counter[str] = collections.Counter()
        self._refused: dict[str, str] = {}  # node -> why
        self.provenance: dict[str, Any] = {}

    def wait_for_worker(self) -> None:
        """Waits until a worker has joined.

        Raises:
          ValueError: if all machines are refused.
          RuntimeError: if there is no machine in time, or none on which a worker starts
            in time, as where other jobs hold the cores.
        """
        start, seen = time.monotonic(), set()
        while not self._idle:
            self._place_workers()
            if not seen.issuperset(self._joining):  # a worker asked for has time anew
                start, seen = time.monotonic(), seen.union(self._joining)
            self._wait()
            if self._idle:
                return
            if self._refused and not self._joining:
                raise ValueError(
                    f"no machine of the Ray cluster can work: "
                    f"{'; '.join(self._refused.values())}"
                )
            if time.monotonic() - start > START_S:
                raise RuntimeError(self._explain_no_worker())

    def __call__(
        self,
        tasks: Iterable[Task],
        layouts: Mapping[str, Layout],
        limits: Limits,
        failed: Collection[str],
    ) -> Iterator[tuple[Task, Computed]]:
        """Computes chunks, in the order in which they are done."""
        del limits  # the workers have them
        queue, waiting = TaskQueue(tasks), False
        while queue or self._asked or self._at_work:
            self._place_workers()
            self._deal(queue, layouts)
            workers = self._count_workers()
            if not workers and not waiting:
                self._on_news("no worker is left: waiting for machines to join")
            waiting = not workers
            for call in self._wait():
                if call in self._asked:
                    self._begin(call, queue, layouts, failed)
                    continue
                place, task = self._at_work.pop(call)
                try:
                    done = self._ray.get(call)
                except self._ray.exceptions.RayTaskError:  # what cells raise is caught
                    raise
                except self._ray.exceptions.RayError as error:
                    done = self._lose(place, task, queue, error)
                else:
                    self._idle.append((place, task.group.name))
                if done is not None:
                    yield task, done._replace(workers=workers)

    def _deal(self, queue: TaskQueue, layouts: Mapping[str, Layout]) -> None:
        """Finds every idle worker a chunk, and asks whether the worker is there.

        An idle worker may have been lost with its machine, which is no try of a chunk.
        """
        idle, self._idle = self._idle, []
        for place, compiled in idle:
            taken = (*self._asked.values(), *self._at_work.values())
            busy = collections.Counter(task.group.name for _, task in taken)
            task = queue.take(compiled, busy, layouts)
            if task is None:
                self._idle.append((place, compiled))
            else:
                self._asked[place.actor.answer.remote()] = place, task

    def _begin(
        self,
        call: Any,
        queue: TaskQueue,
        layouts: Mapping[str, Layout],
        failed: Collection[str],
    ) -> None:
        """Gives a worker that was asked its chunk, or the chunk back to the queue."""
        place, task = self._asked.pop(call)
        try:
            self._ray.get(call)
        except self._ray.exceptions.RayError as error:
            self._end(place)
            queue.give_back(task)
            self._on_news(
                f"idle worker on {place.address} lost ({type(error).__name__})"
            )
            return
        queue.begin(task)
        name, cells = task.group.name, {piece.cell.id for piece in task.missing}
        call = place.actor.attack.remote(
            name,
            count_victims(task.group),
            layouts.get(name),
            task.missing,
            cells.intersection(failed),
        )
        self._at_work[call] = place, task

    def _lose(
        self, place: _Place, task: Task, queue: TaskQueue, error: Exception
    ) -> Computed | None:
        """Gives the chunk of a lost worker back; after some tries its cells failed."""
        self._end(place)
        chunk = task.chunk.name
        tries = queue.tries[chunk]
        self._on_news(
            f"worker on {place.address} lost in chunk {chunk}, try {tries} of {TRIES} "
            f"({type(error).__name__})"
        )
        if queue.give_back(task):
            return None
        lost = WorkerLost(f"{tries} workers were lost in chunk {chunk}: {brief(error)}")
        cells = {piece.cell.id: piece.cell for piece in task.missing}
        failed = {name: make_failure(cell, lost) for name, cell in cells.items()}
        return Computed({}, {}, NO_TIME, failed)

    def _wait(self) -> list[Any]:
        """Waits a moment; takes in who joined, and returns what else is answered."""
        calls = [*self._joining, *self._asked, *self._at_work]
        if not calls:
            time.sleep(WATCH_S)
            return []
        ready, _ = self._ray.wait(calls, timeout=WATCH_S)
        for call in [call for call in ready if call in self._joining]:
            self._take_in(self._joining.pop(call), call)
        return [call for call in ready if call in self._asked or call in self._at_work]

    def _take_in(self, place: _Place, call: Any) -> None:
        """Takes a worker in that has joined, or refuses its machine."""
        try:
            joined: Joined = self._ray.get(call)
            problem = joined.problem
        except self._ray.exceptions.RayError as error:
            self._misses[place.node] += 1
            if self._misses[place.node] < TRIES:  # or its machine may be gone
                return self._end(place)
            problem = f"no worker starts there: {brief(error)}"
        if problem:
            self._end(place)
            if place.node not in self._refused:
                self._refused[place.node] = f"{place.address}: {problem}"
                self._on_news(f"no work for {place.address}: {problem}")
            return
        self._idle.append((place, None))
        device = {"device": joined.device, "local_devices": joined.local_devices}
        self.provenance = self.provenance or device
        self._on_news(
            f"worker on {place.address} joined ({joined.device}), "
            f"{self._count_workers()} by now"
        )

    def _place_workers(self) -> None:
        """Asks for the workers that machines have room for."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        places = [*self._joining.values(), *(place for place, _ in self._idle)]
        taken = (*self._asked.values(), *self._at_work.values())
        places += [place for place, _ in taken]
        there = collections.Counter(place.node for place in places)
        for node in self._ray.nodes():
            name, has = node["NodeID"], node["Resources"]
            if not node["Alive"] or name in self._refused:
                continue
            cores, gpus = int(has.get("CPU", 0)), int(has.get("GPU", 0))
            cpus = self._cpus or (0 if self._gpus else cores)
            wanted = gpus if self._gpus else cores // max(1, cpus)
            share = 1.0 if self._gpus else cpus / max(1, cores)
            for _ in range(wanted - there[name]):
                worker = self._ray.remote(Worker).options(
                    num_cpus=cpus,
                    num_gpus=1 if self._gpus else 0,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(name, False),
                )
                limits = self._limits._replace(share=share)
                actor = worker.remote(limits, max(1, cpus))
                place = _Place(actor, name, node["NodeManagerAddress"])
                self._joining[actor.join.remote(self._site)] = place

    def _count_workers(self) -> int:
        return len(self._idle) + len(self._asked) + len(self._at_work)

    def _explain_no_worker(self) -> str:
        """Says what the cluster lacks, if no worker has joined in time."""
        wanted = "a GPU" if self._gpus else f"{self._cpus or 1} cores"
        if not self._joining:
            return (
                f"no machine of the Ray cluster has {wanted}: start some with "
                "`ray start --address`, or ask for less"
            )
        if not self._gpus and self._cpus is None:
            wanted = "all cores of its machine"
        there, free = self._ray.cluster_resources(), self._ray.available_resources()
        kinds = {"GPU": "GPUs", "CPU": "cores"} if self._gpus else {"CPU": "cores"}
        counts = " and ".join(
            f"{free.get(kind, 0):g} of {there.get(kind, 0):g} {name}"
            for kind, name in kinds.items()
        )
        return (
            f"no worker has started in {START_S} s: each takes {wanted}, and {counts} "
            "of the Ray cluster are free. Stop what else holds them (`ray status` "
            "counts them), start machines with `ray start --address`, or ask for less "
            "by --ray-cpus"
        )

    def _end(self, place: _Place) -> None:
        with contextlib.suppress(Exception):  # it is dead, or out of reach
            self._ray.kill(place.actor)


def brief(error: Exception) -> str:
    """Shortens what Ray says: all if it fits, else its last line, which has the cause.

    Returns:
      at most 300 characters, without colours.
    """
    lines = [line.strip() for line in COLOUR.sub("", str(error)).splitlines()]
    lines = [line for line in lines if line] or [type(error).__name__]
    said = " ".join(lines)
    return said if len(said) <= 300 else lines[-1][:300]
