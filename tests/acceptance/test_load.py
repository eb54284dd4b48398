"""The load test in its short form: it passes on a cluster that is well, and can fail."""

import os
import secrets
from pathlib import Path

import pytest

from loadtest.plan import LoadPlan
from loadtest.run_load import DEVICES_PER_ACCOUNT, run_locust
from ops.session import OperatorSession, run_session
from tests.support.dev import DevCluster

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("own_passfile")]

USERS = 5
SECONDS = 4


def make_codes(directory_dsn: str, accounts: int) -> list[str]:
    async def make(session: OperatorSession) -> list[str]:
        codes = []
        for _ in range(accounts):
            account = await session.accounts.create_account(f"{secrets.token_hex(4)}@example.org", "Ada")
            codes += [await session.devices.make_code(account.account_id) for _ in range(DEVICES_PER_ACCOUNT)]
        return codes

    return run_session(directory_dsn, make)


@pytest.fixture
def plan(shared_cluster: DevCluster) -> LoadPlan:
    status = shared_cluster.status()
    os.environ["PGPASSFILE"] = status.passfile  # `own_passfile` cleans up
    return LoadPlan(
        metaservers=status.metaserver_urls,
        blockserver=status.blockserver_url,
        notifserver=status.notifserver_url,
        codes=make_codes(status.directory_dsn, 3),
    )


def test_devices_work_without_a_failed_request(plan: LoadPlan, tmp_path: Path, capfd):
    report = tmp_path / "report.html"
    assert run_locust(plan, USERS, SECONDS, report) == 0
    summary = "".join(capfd.readouterr())
    assert report.stat().st_size > 1_000
    for name in ("put_pack", "/v1/files/batch", "/v1/devices/link"):
        assert name in summary


def test_a_failed_request_fails_the_run(plan: LoadPlan, tmp_path: Path):
    broken = LoadPlan(
        metaservers=plan.metaservers,
        blockserver=plan.blockserver,
        notifserver=plan.notifserver,
        codes=["1-unknown"],
    )
    assert run_locust(broken, 1, 1, tmp_path / "report.html") == 1
