"""`make test-restore`: the whole drill. Writes build/test/restore.json."""

import asyncio
import json
import sys
import tempfile
from pathlib import Path

from tests.restore.course import LONG, run_course
from tests.restore.drill import Report
from tests.support.dev import running_cluster
from tests.support.run import own_run

OUTPUT = Path("build/test/restore.json")


def main() -> None:
    """Run it and say what held."""
    report = Report()
    with (
        own_run(),
        tempfile.TemporaryDirectory(prefix="shardbox-restore-drill-") as folder,
        running_cluster(is_durable=True, is_archiving=True) as cluster,
    ):
        asyncio.run(run_course(cluster, Path(folder), report, LONG))
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(report.as_dict(), indent=2) + "\n")
    print(OUTPUT.read_text())
    sys.exit(not report.is_clean)


if __name__ == "__main__":
    main()
