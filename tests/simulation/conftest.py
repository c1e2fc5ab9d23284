"""The simulation is a package of its own beside the tests of it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
