"""``tensorboard/``: the rounds of each arm, for those who watch a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kljax.studies.run_folder.rows import MAY_BE_EMPTY, Row


def boards(folder: Path | None) -> Callable[[str, int], Any]:
    """Makes the function that opens an arm's writer, ``(name, first round) -> writer``.

    Raises:
      ValueError: without a folder.
      ImportError: if tensorboardX is not installed.
    """
    if folder is None:
        raise ValueError("tensorboard needs a run folder to write to")
    try:
        import tensorboardX
    except ImportError as error:
        raise ImportError(
            "tensorboard needs tensorboardX, which is not installed: pip install "
            "'kljax[tensorboard]'"
        ) from error

    def board(name: str, first: int):
        # What a killed process wrote after the checkpoint is hidden.
        place = str(folder / "tensorboard" / name)
        return tensorboardX.SummaryWriter(place, purge_step=first)

    return board


def write_board(board: Any, row: Row) -> None:
    """Writes a round to TensorBoard."""
    for name in MAY_BE_EMPTY:
        if row.get(name) is not None:
            board.add_scalar(name, row[name], row["round"])
    board.flush()
