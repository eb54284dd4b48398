"""`make test-kill`: the full course. Writes build/test/kill.json.

python -m tests.kill [--rounds N] [--stop-s SECONDS]
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.kill.course import Report
from tests.kill.points import ELSEWHERE, IN_THE_DRILL
from tests.kill.suite import Plan, run_suite
from tests.support.dev import running_cluster
from tests.support.run import own_run
from wire import faults

OUTPUT = Path("build/test/kill.json")


def main() -> None:
    """Run everything and say what held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often each process is killed")
    parser.add_argument("--stop-s", type=float, default=30.0, help="how long a shard is stopped")
    parser.add_argument("--points", type=int, help="how many fault points of each side; all unless told")
    options = parser.parse_args()
    plan = Plan(rounds=options.rounds, stop_s=options.stop_s, points=options.points)
    report = Report()
    with (
        own_run(),
        tempfile.TemporaryDirectory(prefix="shardbox-kill-") as folder,
        running_cluster(is_durable=True) as cluster,
    ):
        asyncio.run(run_suite(cluster, Path(folder), report, plan, say=print))
    cut_elsewhere(report)
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(report.as_dict(), indent=2) + "\n")
    print(OUTPUT.read_text())
    sys.exit(not report.is_clean)


def cut_elsewhere(report: Report) -> None:
    """Run the tests that cut the other points."""
    points = {n for n in faults.declared() if n.startswith(tuple(ELSEWHERE))}
    print(f"{len(points)} points by tests of their own", flush=True)
    files = sorted(set(ELSEWHERE.values()))
    if subprocess.run([sys.executable, "-m", "pytest", "-q", *files], check=False).returncode == 0:
        report.points_elsewhere = len(points)
    else:
        report.points_missed += sorted(points)
    report.cut_elsewhere = ELSEWHERE | IN_THE_DRILL


if __name__ == "__main__":
    main()
