"""`make test-badinput`: every kind of bad input, and build/test/badinput.json."""

import os
import sys
from pathlib import Path

import pytest

from tests.badinput.results import RESULT_VARIABLE

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "build" / "test" / "badinput.json"


def main() -> int:
    """Run and write; the exit status of the tests."""
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.unlink(missing_ok=True)
    os.environ[RESULT_VARIABLE] = str(OUTPUT)
    status = pytest.main(["-q", str(ROOT / "tests" / "badinput")])
    if OUTPUT.exists():
        print(f"{OUTPUT.relative_to(ROOT)}: {' '.join(OUTPUT.read_text().split())}")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
