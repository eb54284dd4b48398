"""`make loadtest`: devices under Locust for a while against a cluster of their own; ends with a summary.

python -m loadtest.run_load [--users N] [--seconds S] [--data-dir DIR]

Exits with 1 if any request failed. The report is build/loadtest/report.html.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from loadtest.commands import BIN, Cluster, running_cluster
from loadtest.devices import make_codes
from loadtest.plan import LoadPlan

REPORT = Path("build/loadtest/report.html")
LOCUSTFILE = Path(__file__).parent / "locustfile.py"
ROOT = LOCUSTFILE.parents[1]
DEVICES_PER_ACCOUNT = 2
"""So that what one saves wakes the other."""


def main() -> None:
    """Start a cluster, put the load on it, say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--users", type=int, default=20, help="devices, two to an account")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--data-dir", type=Path, help="keep the cluster's data here")
    options = parser.parse_args()
    with running_cluster(options.data_dir) as cluster:
        status = run_locust(make_plan(cluster, options.users), options.users, options.seconds, REPORT)
    print(f"==> {REPORT}; {'no request failed' if status == 0 else 'THERE WERE FAILURES'}")
    sys.exit(status)


def make_plan(cluster: Cluster, users: int) -> LoadPlan:
    """Accounts and codes for so many devices."""
    return LoadPlan(
        metaservers=cluster.urls,
        blockserver=cluster.blockserver_url,
        notifserver=cluster.notifserver_url,
        codes=make_codes(cluster, -(-users // DEVICES_PER_ACCOUNT), DEVICES_PER_ACCOUNT),
    )


def run_locust(plan: LoadPlan, users: int, seconds: int, report: Path) -> int:
    """Locust's exit status: 0 if every request was answered as it should be."""
    report.parent.mkdir(parents=True, exist_ok=True)
    options: list[str | Path] = [
        "--only-summary",
        "--run-time",
        f"{seconds}s",
        "--html",
        report,
        "--stop-timeout",
        "10",
    ]
    with running_locust(plan, users, *options) as locust:
        return locust.wait()


@contextmanager
def running_locust(plan: LoadPlan, users: int, *options: str | Path) -> "Iterator[subprocess.Popen[bytes]]":
    """Locust at work, until it ends by itself or is terminated; it is waited for."""
    with tempfile.TemporaryDirectory(prefix="shardbox-load-") as folder:
        file = Path(folder) / "plan.json"
        file.write_bytes(msgspec.json.encode(plan))
        command = [BIN / "locust", "--headless", "--locustfile", LOCUSTFILE, *options]
        command += ["--users", str(users), "--spawn-rate", str(users), "--exit-code-on-error", "1"]
        # The load tests are no part of what is installed.
        environment = {**os.environ, "SHARDBOX_LOAD_FILE": str(file), "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, env=environment) as child:
            yield child


if __name__ == "__main__":
    main()
