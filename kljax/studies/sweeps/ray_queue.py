"""The chunks that workers have not begun, and which of them comes next."""

import collections
from collections.abc import Collection, Iterable, Mapping

from kljax.studies.sweeps.computing import Task

TRIES = 3  # of a chunk whose workers are lost


class TaskQueue:
    """Deals chunks to workers, one compile group after another.

    Attributes:
      tries: name of a chunk -> how many workers have begun it.
    """

    def __init__(self, tasks: Iterable[Task]):
        self.tries: collections.Counter[str] = collections.Counter()
        self._waiting: dict[str, collections.deque[Task]] = {}
        for task in tasks:
            self._waiting.setdefault(task.group.name, collections.deque()).append(task)

    def __bool__(self) -> bool:
        return any(self._waiting.values())

    def take(
        self,
        compiled: str | None,
        at_work: Mapping[str, int],
        laid_out: Collection[str],
    ) -> Task | None:
        """Takes the next chunk for a worker; None if there is none for it now.

        The first chunk of a group says how the group is laid out. Until it is there no
        other worker begins that group, so that all of them compute the same blocks.

        Args:
          compiled: name of the group that the worker has compiled.
          at_work: name of a group -> how many workers are at it.
          laid_out: names of groups whose layout is known.
        """
        names = [
            name
            for name, tasks in self._waiting.items()
            if tasks and (name in laid_out or not at_work.get(name))
        ]
        if not names:
            return None
        # Else to where the fewest are: every worker there compiles the group anew.
        fewest = min(names, key=lambda name: at_work.get(name, 0))
        return self._waiting[compiled if compiled in names else fewest].popleft()

    def begin(self, task: Task) -> None:
        """Counts a try of a chunk that was taken."""
        self.tries[task.chunk.name] += 1

    def give_back(self, task: Task) -> bool:
        """Puts back what a lost worker had taken, unless it was tried often enough."""
        again = self.tries[task.chunk.name] < TRIES
        if again:
            self._waiting[task.group.name].appendleft(task)
        return again
