"""What an entry of the speed table is."""

from collections.abc import Callable
from typing import Any, NamedTuple

from .device import on_gpu


class Entry(NamedTuple):
    """Something that is timed; `timing.catalogue` lists all of them.

    Attributes:
      name: on the command line.
      sentence: says what is timed, and in what unit.
      run: ``(options, work) -> lines``, see `timing.table.line`; options of the command
        line.
      work: how much is done; its type is the entry's own.
      tiny: so little that it takes seconds and measures nothing.
      on_gpu: how much is done there; None for as much as elsewhere.
      peers: names of those beside whom it is run.
      if_named: whether it is left out unless it is named.
    """

    name: str
    sentence: str
    run: Callable[[Any, Any], Any]
    work: Any
    tiny: Any
    on_gpu: Any = None
    peers: tuple[str, ...] = ()
    if_named: bool = False

    def lines(self, options):
        """Runs it, as much as suits the options and the device."""
        work = self.work
        if options.tiny:
            work = self.tiny
        elif self.on_gpu is not None and on_gpu():
            work = self.on_gpu
        return self.run(options, work)
