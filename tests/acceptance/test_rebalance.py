"""`make bench-rebalance` in its short form: shards come and go, and no client notices."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.bench_rebalance import Options, Outcome, run_course
from loadtest.commands import Cluster
from loadtest.rebalance_course import BOUND
from tests.support.databases import PgServers
from tests.support.dev import running_cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

OPTIONS = Options(users=4, people=1, accounts=2, rows=1_000)
"""What a machine with a test on each core keeps up with: a client that is put off sees an error."""


@pytest.fixture
def cluster(pg_servers: PgServers, own_passfile: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """All processes of a cluster of one shard, as the commands find it."""
    with running_cluster(shards=1) as running:
        status = running.status()
        monkeypatch.setenv("SHARDBOX_DEV_DIR", str(running.layout.root))
        yield Cluster(
            running.layout.root, status.metaserver_urls, status.blockserver_url, status.notifserver_url
        )


def check_clients(outcome: Outcome) -> None:
    """Nobody was refused or put off, and everybody has in the end what the server has."""
    assert outcome.mix.errors == []
    assert outcome.mix.failures == outcome.refused == 0
    assert outcome.mix.requests > 0
    for person in outcome.people:
        assert person.errors == []
        assert person.changes > 0
        assert person.is_in_step
    assert outcome.changed == []


@pytest.mark.long
def test_one_shard_becomes_three_and_the_first_one_goes(cluster: Cluster, tmp_path: Path):
    outcome = run_course(cluster, tmp_path, OPTIONS, grown=[3], going=["shard-1"])

    check_clients(outcome)
    grown, shrunk = outcome.steps
    assert grown.slots.keys() == {"shard-1", "shard-2", "shard-3"}
    assert shrunk.slots.keys() == {"shard-2", "shard-3"}
    for step in outcome.steps:
        assert step.over_fair <= BOUND
        assert step.moved_slots == step.min_slots > 0
        assert 0 < step.moved_share < 1
        assert step.ails == []
    processes = {process["name"] for process in cluster.ctl("dev", "status")["processes"]}
    assert "shard-1" not in processes
    assert {"shard-2", "shard-3"} <= processes
