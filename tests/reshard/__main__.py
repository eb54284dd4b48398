"""`make test-moves`: the whole matrix. Writes build/test/moves.json.

python -m tests.reshard [--seed N] [--cells N] [--only TEXT] [--verbose]
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

from tests.reshard.matrix import make_cells, missed_points, spread_cells
from tests.reshard.points import declared_points
from tests.reshard.suite import Report, Stage, Suite
from tests.support.run import own_run

OUTPUT = Path("build/test/moves.json")


def main() -> None:
    """Run it and say what held."""
    parser = argparse.ArgumentParser(prog="python -m tests.reshard", description="Kill everything in moves.")
    parser.add_argument("--seed", type=int, default=0, help="turns the endings on by so many")
    parser.add_argument("--cells", type=int, help="so many of them, spread over all")
    parser.add_argument("--only", default="", help="cells whose name holds this: POINT/STATE/VICTIM/ENDING")
    parser.add_argument("--verbose", action="store_true", help="tell of each command how it ended")
    options = parser.parse_args()
    report, began = Report(seed=options.seed), time.monotonic()
    try:
        with own_run(), tempfile.TemporaryDirectory(prefix="shardbox-moves-") as folder:
            asyncio.run(_run(Path(folder), report, options))
    finally:
        report.seconds = round(time.monotonic() - began)
        OUTPUT.parent.mkdir(parents=True, exist_ok=True)
        OUTPUT.write_text(json.dumps(report.as_dict(), indent=2) + "\n")
        print(OUTPUT.read_text())
        for name in report.failures:
            print(f"failed: python -m tests.reshard --seed {options.seed} --only {name}")
    sys.exit(not report.is_clean)


async def _run(folder: Path, report: Report, options: argparse.Namespace) -> None:
    async with Stage() as stage:
        suite = Suite(stage, folder, report, _say, is_verbose=options.verbose)
        passings = await suite.find_passings()
        declared = declared_points()
        report.fault_points = len(declared)
        missed = missed_points(declared, passings)
        report.points_missed = len(missed)
        for point in missed:
            _say(f"no command comes by {point}")
        cells = [cell for cell in make_cells(passings, options.seed) if options.only in cell.name]
        await suite.play(spread_cells(cells, options.cells, options.seed))


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
