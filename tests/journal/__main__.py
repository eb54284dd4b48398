"""`make test-journal`: many random histories and the rules, and build/test/journal.json.

python -m tests.journal [--histories 10000] [--seed 0] [--workers N]
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import pytest

from tests.journal.results import RESULTS_VARIABLE, sum_results

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "build" / "test" / "journal.json"


def main() -> int:
    """Run, add up, write; the exit status of the tests."""
    parser = argparse.ArgumentParser(prog="python -m tests.journal")
    parser.add_argument("--histories", type=int, default=10_000)
    parser.add_argument(
        "--seed", type=int, default=0, help="the first history's; the others count up from it"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    os.environ["SHARDBOX_JOURNAL_HISTORIES"] = str(args.histories)
    os.environ["SHARDBOX_JOURNAL_SEED"] = str(args.seed)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="shardbox-journal-") as folder:
        os.environ[RESULTS_VARIABLE] = folder
        status = pytest.main(["-q", "-n", str(args.workers), str(ROOT / "tests" / "journal")])
        histories = sum_results(Path(folder), "histories")
        rules = sum_results(Path(folder), "rules")
    result = {
        "histories": histories.get("histories", 0),
        "comparisons": histories.get("comparisons", 0),
        "differences": histories.get("differences", 0),
        "rules": rules.get("rules", 0),
        "rules_caught": rules.get("rules_caught", 0),
        "first_seed": args.seed,
        "seconds": round(time.monotonic() - started),
    }
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    print(f"{OUTPUT.relative_to(ROOT)}: {msgspec.json.encode(result).decode()}")
    if result["histories"] < args.histories and not status:
        print("some histories did not run", file=sys.stderr)
        return 1
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
