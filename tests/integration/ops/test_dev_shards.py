"""`shardctl dev up --shards`: an embedded cluster gets further shards, and loses those that are removed."""

import subprocess
from collections.abc import Iterator

import msgspec
import pytest

from ops.errors import EXIT_OK, EXIT_USAGE
from tests.support.commands import OPERATOR, run_command
from tests.support.databases import PgServers
from tests.support.dev import DevCluster, running_cluster
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture
def databases(pg_servers: PgServers, own_passfile: None) -> Iterator[DevCluster]:
    """The databases of a cluster of two shards."""
    with running_cluster(has_servers=False) as cluster:
        yield cluster


def shardctl(cluster: DevCluster, *args: str, fault: str = "") -> "subprocess.CompletedProcess[str]":
    env = {"SHARDBOX_DEV_DIR": str(cluster.layout.root), "SHARDBOX_FAULT": fault}
    return run_command(OPERATOR, *args, env=env, timeout_s=120)


def grow(cluster: DevCluster, shards: int, fault: str = "") -> "subprocess.CompletedProcess[str]":
    return shardctl(cluster, "dev", "up", "--databases-only", "--shards", str(shards), fault=fault)


def slots_of(cluster: DevCluster) -> dict[str, int]:
    """How many slots each shard of the directory has."""
    done = shardctl(cluster, "shard", "list", "--output", "json")
    assert done.returncode == EXIT_OK, done.stderr
    return {s["name"]: s["slot_count"] for s in msgspec.json.decode(done.stdout)["shards"]}


def servers_of(cluster: DevCluster) -> set[str]:
    """The PostgreSQL servers that run."""
    return cluster.pids().keys() - {"supervisor"}


OLD = {"directory", "shard-1", "shard-2"}


@pytest.mark.long
def test_shards_come_and_go(databases: DevCluster) -> None:
    before = slots_of(databases)

    grown = grow(databases, 3)

    assert grown.returncode == EXIT_OK, grown.stderr
    assert slots_of(databases) == before | {"shard-3": 0}
    fewer = grow(databases, 2)
    assert (fewer.returncode, fewer.stderr.split(": ")[1]) == (EXIT_USAGE, "usage")
    assert "shard remove" in fewer.stderr
    plan = msgspec.json.decode(shardctl(databases, "plan", "--output", "json").stdout)
    assert {m["target"] for m in plan["moves"]} == {"shard-3"}

    removed = shardctl(databases, "shard", "remove", "shard-3")

    assert removed.returncode == EXIT_OK, removed.stderr
    wait_for(lambda: servers_of(databases) == OLD, "the removed shard's server being stopped")
    assert grow(databases, 2).returncode == EXIT_OK
    assert slots_of(databases) == before
    assert servers_of(databases) == OLD
    assert grow(databases, 3).returncode == EXIT_OK
    assert slots_of(databases) == before | {"shard-4": 0}  # a name is not given twice


@pytest.mark.long
@pytest.mark.parametrize("point", ["migrated", "signed", "recorded"])
def test_growth_that_was_cut_short_goes_on_with_the_next_up(databases: DevCluster, point: str) -> None:
    before = slots_of(databases)
    assert grow(databases, 4, fault=f"ops.shard.{point}").returncode == -9

    databases.up()

    assert slots_of(databases) == before | {"shard-3": 0, "shard-4": 0}


@pytest.mark.long
@pytest.mark.parametrize(("point", "is_left"), [("cleared", True), ("removed", False)])
def test_a_removal_that_was_cut_short_is_not_undone(databases: DevCluster, point: str, is_left: bool) -> None:
    before = slots_of(databases)
    grow(databases, 3)
    assert shardctl(databases, "shard", "remove", "shard-3", fault=f"ops.shard.{point}").returncode == -9

    databases.up()

    assert slots_of(databases) == before | ({"shard-3": 0} if is_left else {})
    if is_left:
        assert shardctl(databases, "shard", "remove", "shard-3").returncode == EXIT_OK
    wait_for(lambda: servers_of(databases) == OLD, "the removed shard's server being stopped")
    assert slots_of(databases) == before
