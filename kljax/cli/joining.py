"""Options of a job that several processes share."""

import dataclasses

from kljax.core.checks import shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class JoinOptions:
    """Who else works on the same job.

    Attributes:
      coordinator: HOST:PORT of process 0, if several processes share the work.
      processes: how many there are.
      process: which of them this is, from 0 on. ``--process auto`` asks the cluster
        (Slurm, Open MPI, Cloud TPU) for all three.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: str | None = None

    @property
    def alone(self) -> bool:
        """Tells whether nobody else was named."""
        return (self.coordinator, self.processes, self.process) == (None, None, None)

    def meeting(self) -> tuple[str | None, int | None, int | None]:
        """Gives coordinator, processes and process, as `stay_together` wants them.

        Raises:
          ValueError: for a process that is no number.
        """
        number = None
        if self.process != "auto":
            text = self.process or ""
            # No number of processes has more digits.
            if not text.isdecimal() or len(text) > 10:
                raise ValueError(
                    "process must be a number from 0 on, or auto; got "
                    f"{shown(self.process)}"
                )
            number = int(text)
        return self.coordinator, self.processes, number
