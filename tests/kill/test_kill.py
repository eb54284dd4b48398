"""The short form: each process killed once, a shard stopped for a moment, a few fault points."""

from pathlib import Path

import pytest

from tests.kill.course import Report
from tests.kill.suite import Plan, run_suite
from tests.support.dev import DevCluster


@pytest.mark.cluster
@pytest.mark.timeout(300)
async def test_nothing_is_lost_whoever_dies(dev_cluster: DevCluster, tmp_path: Path):
    report = Report()
    await run_suite(dev_cluster, tmp_path, report, Plan(rounds=1, stop_s=3.0, points=2), say=print)
    assert report.is_clean, report
    assert report.client_fault_points == 2, report.notes
    assert report.server_fault_points == 2, report.notes
    assert report.acked > 100
