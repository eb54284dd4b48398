"""`make bench-move` in its short form: no client notices a move."""

import secrets

import pytest
import uvloop

from loadtest.bench_move import FLAWS, Options, run_all
from loadtest.commands import Cluster
from ops.session import OperatorSession, run_session
from tests.support.dev import DevCluster

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(240)]

ACCOUNTS = 16
OPTIONS = Options(rows=1_500, copies=1, switches=3, rate=30, batch=3, quiet_s=0.5)
"""A rate that a machine with a test on each core keeps up with: a client that is put off sees an error."""


@pytest.fixture
def cluster(dev_cluster: DevCluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    status = dev_cluster.status()
    monkeypatch.setenv("SHARDBOX_DEV_DIR", str(dev_cluster.layout.root))
    monkeypatch.setenv("PGPASSFILE", status.passfile)
    return Cluster(
        dev_cluster.layout.root, status.metaserver_urls, status.blockserver_url, status.notifserver_url
    )


@pytest.fixture
def codes(dev_cluster: DevCluster, cluster: Cluster) -> list[str]:
    async def make(session: OperatorSession) -> list[str]:
        codes: list[str] = []
        for _ in range(ACCOUNTS):
            account = await session.accounts.create_account(f"{secrets.token_hex(4)}@example.org", "Ada")
            codes.append(await session.devices.make_code(account.account_id))
        return codes

    return run_session(dev_cluster.status().directory_dsn, make)


def test_clients_notice_nothing_of_moves_there_and_back(cluster: Cluster, codes: list[str]):
    figures = uvloop.run(run_all(cluster, codes, OPTIONS))
    assert {name: figures[name] for name in FLAWS} == dict.fromkeys(FLAWS, 0)
    assert figures["copies"] == OPTIONS.copies
    assert figures["switches"] >= OPTIONS.switches
    assert figures["cutovers"] >= OPTIONS.switches
    assert figures["rows_moved"] >= OPTIONS.copies * OPTIONS.rows
    assert figures["reads"] > 0
    assert figures["polls_held"] >= figures["switches"]
    assert figures["commits"] > 0
