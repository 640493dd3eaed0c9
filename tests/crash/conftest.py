"""These tests open whole engines: `embedded` lies in the root of the tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
