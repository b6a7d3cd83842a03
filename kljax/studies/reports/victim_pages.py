"""Pages of victims: one file each, with all pictures inside."""

import re

from kljax.studies.reports.contents import Contents
from kljax.studies.reports.page import render
from kljax.studies.reports.strips import to_gif
from kljax.studies.reports.victims import FOLDER

VICTIM_FILE = re.compile(r"victim-\d{3}(-\d+)?\.(html|gif)")


def victim_files(contents: Contents, gif: bool = False) -> dict[str, bytes]:
    """Writes the pages of the victims of a report.

    Args:
      contents: of the report.
      gif: whether moving pictures lie beside them, one per attempt with snapshots.

    Returns:
      Path beside the page of the study -> what is in the file.
    """
    victims, files = contents.victims.shown, {}
    for number, victim in enumerate(victims):
        moving: dict[int, str] = {}
        for place, attempt in enumerate(victim.attempts):
            if gif and attempt.frames is not None:
                moving[place] = f"{victim.page}-{place}.gif"
                files[f"{FOLDER}/{moving[place]}"] = to_gif(attempt.frames)
        page = render(
            "victim.html",
            study=contents.name,
            kinds=contents.kinds,
            victim=victim,
            figure=victim.draw_convergence(),
            moving=moving,
            before=victims[number - 1] if number else None,
            after=victims[number + 1] if number + 1 < len(victims) else None,
        )
        files[f"{FOLDER}/{victim.page}.html"] = page.encode()
    return files
