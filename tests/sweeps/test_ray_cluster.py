"""Workers of Ray without Ray: which chunk is whose, and what becomes of a lost one."""

import sys
import time
import types
from typing import NamedTuple

import pytest
from small_sweeps import sweep_of

from kljax.parallel import Layout
from kljax.studies.store.manifest import make_manifest, plan
from kljax.studies.sweeps import expand, ray_cluster, ray_worker
from kljax.studies.sweeps.computing import NO_TIME, Computed, Limits, Task
from kljax.studies.sweeps.ray_queue import TRIES, TaskQueue


def tasks_of(sweep):
    """Lists all chunks of a sweep, as missing."""
    groups = plan(make_manifest("few", sweep, expand(sweep), 8))
    return [Task(group, c, c.pieces) for group in groups for c in group.chunks]


# --- workers that are lost, or do not start -----------------------------------------


class LostError(Exception):
    """In place of Ray's errors."""


class TaskError(LostError):
    """In place of what a worker raises."""


class Call(NamedTuple):
    """A call of a worker's method, that is waited for."""

    number: int
    node: str
    method: str


class StubRay:
    """In place of Ray: a worker of one core on every node, which answers at once.

    Attributes:
      dead: nodes whose workers are lost, which Ray does not know by now.
      full: nodes whose cores are taken.
      attacked: nodes on which a chunk was begun, in order.
    """

    exceptions = types.SimpleNamespace(RayError=LostError, RayTaskError=TaskError)

    def __init__(self, *names):
        self._names, self._calls = names, 0
        self.dead, self.full, self.attacked = set(), set(), []

    def nodes(self):
        each = {"Resources": {"CPU": 1.0}, "Alive": True}
        return [{"NodeID": n, "NodeManagerAddress": n} | each for n in self._names]

    def cluster_resources(self):
        return {"CPU": float(len(self._names))}

    def available_resources(self):
        return {}  # Ray leaves out what is all taken

    def remote(self, worker):
        return self

    def options(self, *, scheduling_strategy, **_):
        node = scheduling_strategy

        def call(method):
            self._calls += 1
            if method == "attack":
                self.attacked.append(node)
            return Call(self._calls, node, method)

        methods = {
            name: types.SimpleNamespace(remote=lambda *_, n=name: call(n))
            for name in ("join", "answer", "attack")
        }
        actor = types.SimpleNamespace(**methods)
        return types.SimpleNamespace(remote=lambda *_: actor)

    def wait(self, calls, timeout):
        away = self.dead | self.full
        ready = [c for c in calls if c.method != "join" or c.node not in away]
        if not ready:
            time.sleep(0.01)
        return ready[:1], ready[1:]

    def get(self, call):
        if call.node in self.dead:
            raise LostError("gone")
        if call.method == "attack":
            return Computed({}, {}, NO_TIME, {}, Layout("chunked", 4))
        return ray_worker.Joined("", "cpu", 1) if call.method == "join" else None

    def kill(self, actor):
        pass


@pytest.fixture
def cluster_of(monkeypatch):
    """Makes a cluster of a stub of Ray."""
    module = types.ModuleType("ray.util.scheduling_strategies")
    module.NodeAffinitySchedulingStrategy = lambda node, soft: node
    for name in ("ray", "ray.util"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    site = ray_worker.Site("", (), {})

    def make(ray, on_news=lambda line: None):
        return ray_cluster.Cluster(ray, site, Limits(), None, on_news)

    return make


def test_idle_workers_of_a_dead_machine_are_no_tries_of_a_chunk(cluster_of):
    ray, news = StubRay("a", "b", "c", "sound"), []
    cluster = cluster_of(ray, news.append)
    while sum("joined" in line for line in news) < 4:
        cluster.wait_for_worker()
        cluster._wait()
    ray.dead |= {"a", "b", "c"}
    task = tasks_of(sweep_of())[0]
    ((done_task, done),) = cluster([task], {}, Limits(), set())
    assert done_task == task and done.failed == {}
    assert ray.attacked == ["sound"]
    assert sum("idle worker on" in line for line in news) == 3


def test_workers_lost_in_a_chunk_are_tries_of_it(cluster_of):
    ray = StubRay("a", "b", "c", "d")
    cluster = cluster_of(ray)
    get = ray.get

    def die_in_a_chunk(call):
        if call.method == "attack":
            raise LostError("killed")
        return get(call)

    ray.get = die_in_a_chunk
    cluster.wait_for_worker()
    task = tasks_of(sweep_of())[0]
    ((_, done),) = cluster([task], {}, Limits(), set())
    assert done.failed.keys() == {piece.cell.id for piece in task.missing}
    assert len(ray.attacked) == TRIES


def test_a_worker_that_never_starts_is_an_error_that_says_what_is_taken(
    cluster_of, monkeypatch
):
    monkeypatch.setattr(ray_cluster, "START_S", 0.05)
    ray = StubRay("a", "b")
    ray.full |= {"a", "b"}
    wait, looks = ray.wait, []

    def wait_not_for_ever(calls, timeout):
        looks.append(calls)
        assert len(looks) < 100, "waits for ever"
        return wait(calls, timeout)

    ray.wait = wait_not_for_ever
    said = "each takes all cores of its machine, and 0 of 2 cores .* are free.*ray-cpus"
    with pytest.raises(RuntimeError, match=said):
        cluster_of(ray).wait_for_worker()


def test_the_cause_of_a_long_error_is_kept_without_colours():
    frames = "\n".join(f'  File "module_{n}.py", line {n}, in call' for n in range(20))
    cause = "ModuleNotFoundError: No module named 'shades'"
    said = f"\x1b[36mray::Worker()\x1b[39m (pid=1)\n{frames}\n\x1b[31m{cause}\x1b[0m\n"
    assert ray_cluster.brief(RuntimeError(said)) == cause
    assert len(ray_cluster.brief(RuntimeError("x" * 1000))) == 300
    # What is short stays whole: the last line alone would be no sentence.
    short = "Version mismatch:\n  Python: 3.11\n\x1b[1mhere:\x1b[0m\n  Python: 3.12"
    kept = "Version mismatch: Python: 3.11 here: Python: 3.12"
    assert ray_cluster.brief(RuntimeError(short)) == kept
    assert ray_cluster.brief(RuntimeError()) == "RuntimeError"


def test_a_worker_takes_the_layout_that_another_began_its_group_with(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
    monkeypatch.setattr(ray_worker.compilation, "use_cache", lambda: None)
    worker = ray_worker.Worker(Limits(), 1)
    first, second = Layout("chunked", 4), Layout("chunked", 2)

    def layout_of(layout):
        return worker.attack("group", 8, layout, (), set()).layout

    assert layout_of(first) == first
    assert layout_of(second) == second
    runner = worker._runner
    assert layout_of(second) == second and layout_of(None) == second
    assert worker._runner is runner  # with what it compiled


# --- which chunk comes next ---------------------------------------------------------


def test_workers_get_one_group_after_another_and_spread_over_groups():
    tasks = tasks_of(sweep_of())  # two groups, of 3 and of 5 chunks
    small, large = dict.fromkeys(task.group.name for task in tasks)
    queue = TaskQueue(tasks)
    assert queue.take(None, {}, ()) == tasks[0]
    # Not begun by a second worker before its layout is known.
    assert queue.take(None, {small: 1}, ()) == tasks[3]
    assert queue.take(None, {small: 1, large: 1}, ()) is None
    known = {small, large}
    assert queue.take(None, {small: 2, large: 1}, known) == tasks[4]
    assert queue.take(small, {small: 2, large: 1}, known) == tasks[1]
    assert queue.take(small, {}, known) == tasks[2]
    assert queue.take(small, {}, known) == tasks[5]  # its group is dealt out
    assert queue and [queue.take(large, {}, known) for _ in range(2)] == tasks[6:]
    assert not queue and queue.take(large, {}, known) is None


def test_a_lost_chunk_comes_first_again_and_not_for_ever():
    tasks = tasks_of(sweep_of())
    queue = TaskQueue(tasks)
    for attempt in range(1, TRIES + 1):
        assert queue.take(None, {}, ()) == tasks[0]
        assert queue.give_back(tasks[0])  # not begun, which is no try
        assert queue.take(None, {}, ()) == tasks[0]
        queue.begin(tasks[0])
        assert queue.tries[tasks[0].chunk.name] == attempt
        assert queue.give_back(tasks[0]) == (attempt < TRIES)
    assert queue.take(None, {}, ()) == tasks[1]
