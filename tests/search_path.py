"""Where tests find each other in processes of their own, as pytest lets them here."""

import os
from pathlib import Path

TESTS = Path(__file__).parent
FOLDERS = (TESTS, *sorted({file.parent for file in TESTS.glob("*/test_*.py")}))
SEARCH_PATH = os.pathsep.join(map(str, FOLDERS))
