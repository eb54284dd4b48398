"""The short form: one process of each kind killed, a shard stopped for a moment, a few fault points."""

from pathlib import Path

import pytest

from tests.kill.course import Report
from tests.kill.suite import Plan, run_suite
from tests.support.dev import DevCluster

PLAN = Plan(rounds=1, stop_s=3.0, points=1, accounts=10, is_one_of_each_kind=True)


@pytest.mark.cluster
@pytest.mark.timeout(300)
async def test_nothing_is_lost_whoever_dies(dev_cluster: DevCluster, tmp_path: Path):
    report = Report()
    await run_suite(dev_cluster, tmp_path, report, PLAN, say=print)
    assert report.is_clean, report
    assert report.client_fault_points == report.server_fault_points == PLAN.points
    assert report.client_fault_points_watching == PLAN.points
    assert report.kills["client"] == PLAN.rounds
    assert len(report.accounts) == 2
    assert report.accounts.total() >= PLAN.accounts
    assert report.acked > 100
